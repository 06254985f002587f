"""Edits over whole regions."""
