"""Networks that carry edits beside their weights."""
