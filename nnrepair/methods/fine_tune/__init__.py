"""Gradient descent, held by penalties."""

from nnrepair.methods.fine_tune import named as named
from nnrepair.methods.fine_tune.method import FineTune

__all__ = ["FineTune"]
