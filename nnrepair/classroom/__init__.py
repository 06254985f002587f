"""The browser classroom."""
