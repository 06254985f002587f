"""Bound, split, attack, replay."""
