"""The smallest change, certified."""

from nnrepair.methods.minimal_norm.method import MinimalNorm

__all__ = ["MinimalNorm"]
