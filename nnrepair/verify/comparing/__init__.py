"""Two networks over a region."""
