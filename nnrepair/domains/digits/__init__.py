"""Scikit-learn's handwritten digits, and the ones among them that a small network misreads."""

from nnrepair.domains.digits.task import task

__all__ = ["task"]
