"""Is the property checker right, and how fast: against exact answers, a slow search, and published instances."""
