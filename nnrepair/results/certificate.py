"""Certificates of minimality: multipliers that prove how small a repair could be, in a file that others can check.

`verification/minimality.py`, which `nnrepair certify` runs, re-derives every number in such a file from the networks
alone, with its own arithmetic and rounding; it imports nothing from this package. Until it has accepted a certificate,
the claim in it is a claim.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nnrepair.files import read_arrays, write_arrays

FORMAT = "nnrepair-minimality-1"
#: What the meta data of a file may be; numbers are finite.
_NUMBERS = ("lower_bound", "objective", "margin")
_KINDS: dict[str, tuple[type, ...]] = dict.fromkeys(_NUMBERS, (float, int))
_KINDS |= dict.fromkeys(("weight", "norm", "architecture"), (str,)) | {"bias": (str, type(None)), "lowest": (bool,)}


def at_least(number: float, digits: int = 6) -> str:
    """Write a lower bound in few digits, rounded down.

    >>> at_least(5.787298195)
    '5.78729'
    """
    return _rounded(number, digits, decimal.ROUND_FLOOR)


def at_most(number: float, digits: int = 6) -> str:
    """Write an upper bound in few digits, rounded up.

    >>> at_most(5.787298140)
    '5.7873'
    """
    return _rounded(number, digits, decimal.ROUND_CEILING)


def _rounded(number: float, digits: int, rounding: str) -> str:
    short = decimal.Context(digits, rounding).create_decimal_from_float(number + 0.0).normalize()
    return f"{short:f}" if -5 < short.adjusted() < digits else f"{short:e}"


@dataclass(frozen=True)
class Certificate:
    """What a proof of minimality consists of.

    Attributes:
        weight, bias: names of the changed parameters (bias may be None).
        norm: the norm that is minimal.
        architecture: "same" (the changed network is the original with other weights, and everything after the layer is
            affine) or "decoupled" (the claim is about the decoupled network).
        lower_bound, objective: no admissible change is smaller than the first; this change has the second size.
        arrays: see verification/minimality.py for the file format.
    """

    weight: str
    bias: str | None
    norm: str
    architecture: str
    lower_bound: float
    objective: float
    margin: float
    lowest_wins: bool
    arrays: dict[str, NDArray[Any]] = field(repr=False, compare=False)

    @property
    def gap(self) -> float:
        """The relative distance from minimal that is left."""
        return (self.objective - self.lower_bound) / self.objective if self.objective else 0.0

    @property
    def claim(self) -> str:
        """The claim in one sentence."""
        where = "this network" if self.architecture == "same" else "its decoupled network"
        return (
            f"Among all changes of {self.weight.removesuffix('.weight')} that satisfy the conditions in {where}, "
            f"none has {self.norm} norm below {at_least(self.lower_bound)}; this one has at most "
            f"{at_most(self.objective)} (before rounding, a gap of at most {at_most(max(0.0, self.gap), 2)})."
        )

    def save(self, path: str | Path) -> Path:
        """Write the certificate (.npz, no pickle), atomically."""
        meta = {
            "weight": self.weight,
            "bias": self.bias,
            "norm": self.norm,
            "architecture": self.architecture,
            "lower_bound": self.lower_bound,
            "objective": self.objective,
            "margin": self.margin,
            "lowest": self.lowest_wins,
        }
        return write_arrays(path, FORMAT, meta, self.arrays)

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read a certificate.

        Raises:
            InvalidInput: the file is truncated or no certificate.
        """

        def made(meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Certificate:
            wrong = [name for name, kinds in _KINDS.items() if type(meta[name]) not in kinds]
            wrong += [name for name in _NUMBERS if name not in wrong and not math.isfinite(meta[name])]
            if wrong:
                raise ValueError(f"{', '.join(wrong)} is of another kind")
            return cls(lowest_wins=meta.pop("lowest"), arrays=arrays, **meta)

        return read_arrays(path, FORMAT, "minimality certificate", made)
