"""The repair engine on its own: the solver under the rows of real networks."""
