"""What is asked, checked once."""
