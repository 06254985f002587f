"""Vectors of rational numbers: integers with one denominator for all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Numbers:
    """`whole * 2 ** exponent / odd`, entry by entry: every float is an integer times a power of two.

    >>> x = Numbers.of([Fraction(1, 3), Fraction(-2)])
    >>> (x * (x + 3).clip(0, 6) * Fraction(1, 6)).fractions()
    [Fraction(5, 27), Fraction(-1, 3)]

    Attributes:
        whole: integers, an array of Python's own.
        exponent, odd: the denominator; `odd` is an odd number.
    """

    whole: NDArray[Any]
    exponent: int
    odd: int = 1

    @classmethod
    def of(cls, values: list[Fraction]) -> Numbers:
        """Return fractions (n,) as one vector."""
        common = math.lcm(*(v.denominator for v in values))
        twos = (common & -common).bit_length() - 1
        return cls(np.array([v.numerator * (common // v.denominator) for v in values], object), -twos, common >> twos)

    @classmethod
    def stored(cls, values: Tensor) -> Numbers:
        """Return floats, exactly."""
        mantissa, exponents = np.frexp(values.detach().cpu().double().numpy())
        least = lowest_exponent(mantissa, exponents)
        return cls(integers(mantissa, exponents, least), least)

    @property
    def bits(self) -> int:
        """How long the denominator is."""
        return self.odd.bit_length() - min(self.exponent, 0)

    def fractions(self) -> list[Fraction]:
        """Return the entries."""
        scale = Fraction(2) ** self.exponent / self.odd
        return [int(v) * scale for v in self.whole]

    def __add__(self, other: Numbers | Fraction | int) -> Numbers:
        a, b = _alike(self, other)
        return Numbers(a.whole + b.whole, a.exponent, a.odd)

    def __mul__(self, other: Numbers | Fraction | int) -> Numbers:
        other = _numbers(other)
        return Numbers(self.whole * other.whole, self.exponent + other.exponent, self.odd * other.odd)

    def clip(self, low: Fraction | int | None = None, high: Fraction | int | None = None) -> Numbers:
        """Return the entries, those below `low` or above `high` replaced by it."""
        made = self
        for end, chosen in ((low, np.maximum), (high, np.minimum)):
            if end == 0:
                made = Numbers(chosen(made.whole, 0), made.exponent, made.odd)
            elif end is not None:
                a, b = _alike(made, end)
                made = Numbers(chosen(a.whole, b.whole), a.exponent, a.odd)
        return made


def _numbers(value: Numbers | Fraction | int) -> Numbers:
    return value if isinstance(value, Numbers) else Numbers.of([Fraction(value)])


def _alike(a: Numbers, b: Numbers | Fraction | int) -> tuple[Numbers, Numbers]:
    """Return the same numbers with the same denominator."""
    b = _numbers(b)
    exponent, odd = min(a.exponent, b.exponent), math.lcm(a.odd, b.odd)
    return _over(a, exponent, odd), _over(b, exponent, odd)


def _over(x: Numbers, exponent: int, odd: int) -> Numbers:
    factor = 2 ** (x.exponent - exponent) * (odd // x.odd)
    return x if factor == 1 else Numbers(x.whole * factor, exponent, odd)


def lowest_exponent(mantissa: NDArray[Any], exponents: NDArray[Any]) -> int:
    """Return e so that all floats are integers times 2 ** e."""
    used = exponents[mantissa != 0]
    return int(used.min()) - 53 if used.size else 0


def integers(mantissa: NDArray[Any], exponents: NDArray[Any], least: int) -> NDArray[Any]:
    """Return floats divided by 2 ** least, as integers."""
    whole = (mantissa * 2.0**53).astype(np.int64).astype(object)
    shifts = np.where(mantissa != 0, exponents - 53 - least, 0).astype(object)
    shifted: NDArray[Any] = np.left_shift(whole, shifts)
    return shifted
