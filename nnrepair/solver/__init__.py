"""The smallest change under rows."""
