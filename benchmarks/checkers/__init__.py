"""Campaigns against the independent checkers of `verification/`."""
