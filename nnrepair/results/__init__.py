"""What came out, and how it is saved."""
