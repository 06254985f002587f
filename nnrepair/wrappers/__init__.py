"""Networks carrying edits beside weights."""
