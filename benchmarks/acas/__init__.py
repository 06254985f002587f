"""ACAS Xu: what a property repair costs and changes."""
