"""Handwritten digits."""

from nnrepair.domains.digits.task import task

__all__ = ["task"]
