"""Whole benchmarks, killable."""
