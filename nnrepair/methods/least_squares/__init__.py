"""Keys inserted in closed form."""

from nnrepair.methods.least_squares.method import LeastSquares

__all__ = ["LeastSquares"]
