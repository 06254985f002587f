"""Images completed from some of their pixels, by networks that can be repaired."""
