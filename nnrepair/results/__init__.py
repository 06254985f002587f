"""Results, patches and certificates."""
