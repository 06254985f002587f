"""HTML pages: what all share."""
