"""The smallest change, by linear programs."""

from nnrepair.methods.minimal_norm.method import MinimalNorm

__all__ = ["MinimalNorm"]
