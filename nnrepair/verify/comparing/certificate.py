"""Certificates of comparisons: how the boxes were split, and what is claimed of them together.

`verification/compare.py`, which `nnrepair certify` runs, bounds every part again with its own arithmetic; it imports
nothing from this package. Nothing in the file is believed but where to split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nnrepair.errors import InvalidInput
from nnrepair.files import read_arrays, write_arrays
from nnrepair.verify.certificate import sha256
from nnrepair.verify.property import Box

FORMAT, EQUIVALENCE = "nnrepair-comparison-1", "nnrepair-comparison-equivalence-1"
#: Claims are whole multiples of 1 / GRID.
GRID = 10**9
#: The independent checker reads networks with so many outputs; one output decides nothing.
LEAST_OUTPUTS, MOST_OUTPUTS = 2, 64


class _OfTwo:
    """A certificate about two networks, of which the hashes of their files are known, or not yet."""

    before_sha256: str | None
    after_sha256: str | None

    def for_networks(self, before: str | Path, after: str | Path) -> Self:
        """Return the certificate for the ONNX files that the models were written to."""
        found: Self = dataclasses.replace(self, before_sha256=sha256(before), after_sha256=sha256(after))  # type: ignore[type-var]
        return found

    def _hashes(self) -> dict[str, str]:
        """Return the hashes of both files, by name.

        Raises:
            InvalidInput: they are not known.
        """
        if self.before_sha256 is None or self.after_sha256 is None:
            raise InvalidInput(
                "This certificate is about a model in memory. Write both with nnrepair.onnx.save(...) and use "
                "certificate.for_networks(before, after)."
            )
        return {"before_sha256": self.before_sha256, "after_sha256": self.after_sha256}


@dataclass(frozen=True)
class ComparisonCertificate(_OfTwo):
    """One split tree for each box of the region.

    Attributes:
        decision: "argmin" or "argmax".
        boxes: of the region; they share no inside.
        identical, same, changed: what is claimed, as multiples of 1 / GRID of the region's volume.
        dim: (nodes,), each tree in preorder: the input that is split, or -1 for a leaf.
        cut: (inner nodes,), where.
        taken: (nodes,), which of the three volumes are summed up from this node's own bounds (bit 0: decisions that
            may change, bit 1: decisions that surely do, bit 2: outputs that may differ).
        before_sha256, after_sha256: of the ONNX files; None for models that came without one.
        versions: of what was used.
    """

    decision: str
    boxes: tuple[Box, ...] = field(repr=False)
    identical: int
    same: int
    changed: int
    dim: NDArray[np.int16] = field(repr=False, compare=False)
    cut: NDArray[np.float64] = field(repr=False, compare=False)
    taken: NDArray[np.uint8] = field(repr=False, compare=False)
    before_sha256: str | None
    after_sha256: str | None
    versions: dict[str, str]

    def save(self, path: str | Path) -> Path:
        """Write the certificate (.npz, no pickle), atomically."""
        meta = {
            **self._hashes(),
            "decision": self.decision,
            "boxes": [[_texts(box.lower), _texts(box.upper)] for box in self.boxes],
            "grid": GRID,
            "identical": self.identical,
            "same": self.same,
            "changed": self.changed,
            "nodes": len(self.dim),
            "arithmetic": "float64, every rounding error bounded; real-valued functions of the stored weights",
            "versions": self.versions,
        }
        return write_arrays(path, FORMAT, meta, {"dim": self.dim, "cut": self.cut, "taken": self.taken})

    @classmethod
    def load(cls, path: str | Path) -> ComparisonCertificate:
        """Read a certificate.

        Raises:
            InvalidInput: the file is truncated or no certificate.
        """

        def made(meta: dict[str, Any], arrays: dict[str, Any]) -> ComparisonCertificate:
            kinds = {"decision": str, "identical": int, "same": int, "changed": int}
            kinds |= {"before_sha256": str, "after_sha256": str, "versions": dict}
            wrong = [name for name, kind in kinds.items() if type(meta[name]) is not kind]
            found = [(arrays[name].dtype, arrays[name].ndim) for name in ("dim", "cut", "taken")]
            if wrong or found != [(np.int16, 1), (np.float64, 1), (np.uint8, 1)]:
                raise ValueError(f"{', '.join(wrong) or 'dim, cut or taken'} is of another kind")
            boxes = tuple(Box(*([Fraction(text) for text in end] for end in ends)) for ends in meta["boxes"])
            return cls(boxes=boxes, **arrays, **{name: meta[name] for name in kinds})

        return read_arrays(path, FORMAT, "certificate of a comparison", made)


@dataclass(frozen=True)
class EquivalenceCertificate(_OfTwo):
    """One split tree for each box of the region, on all of which two networks agree.

    Attributes:
        tolerance: by so much outputs differ at most; or None,
        decision, margin: "argmin" or "argmax", and by how much an output wins before where it wins after, too.
        boxes: of the region.
        dim: (nodes,), each tree in preorder: the input that is split, or -1 for a leaf.
        cut: (inner nodes,), where.
        before_sha256, after_sha256: of the ONNX files; None for models that came without one.
        versions: of what was used.
    """

    tolerance: Fraction | None
    decision: str | None
    margin: Fraction
    boxes: tuple[Box, ...] = field(repr=False)
    dim: NDArray[np.int16] = field(repr=False, compare=False)
    cut: NDArray[np.float64] = field(repr=False, compare=False)
    before_sha256: str | None
    after_sha256: str | None
    versions: dict[str, str]

    def save(self, path: str | Path) -> Path:
        """Write the certificate (.npz, no pickle), atomically."""
        meta = {
            **self._hashes(),
            "tolerance": None if self.tolerance is None else str(self.tolerance),
            "decision": self.decision,
            "margin": str(self.margin),
            "boxes": [[_texts(box.lower), _texts(box.upper)] for box in self.boxes],
            "nodes": len(self.dim),
            "trees": len(self.boxes),
            "arithmetic": "float64, every rounding error bounded; real-valued functions of the stored weights",
            "versions": self.versions,
        }
        return write_arrays(path, EQUIVALENCE, meta, {"dim": self.dim, "cut": self.cut})

    @classmethod
    def load(cls, path: str | Path) -> EquivalenceCertificate:
        """Read a certificate.

        Raises:
            InvalidInput: the file is truncated or no certificate.
        """

        def made(meta: dict[str, Any], arrays: dict[str, Any]) -> EquivalenceCertificate:
            tolerance, decision = meta["tolerance"], meta["decision"]
            kinds = {"margin": str, "before_sha256": str, "after_sha256": str, "versions": dict}
            wrong = [name for name, kind in kinds.items() if type(meta[name]) is not kind]
            dim, cut = arrays["dim"], arrays["cut"]
            if wrong or (dim.dtype, cut.dtype, dim.ndim, cut.ndim) != (np.int16, np.float64, 1, 1):
                raise ValueError(f"{', '.join(wrong) or 'dim or cut'} is of another kind")
            boxes = tuple(Box(*([Fraction(text) for text in end] for end in ends)) for ends in meta["boxes"])
            given = {name: meta[name] for name in kinds if name != "margin"}
            bound = None if tolerance is None else Fraction(tolerance)
            return cls(bound, decision, Fraction(meta["margin"]), boxes, dim, cut, **given)

        return read_arrays(path, EQUIVALENCE, "certificate of an equivalence", made)


def _texts(values: Sequence[Fraction]) -> list[str]:
    """Return fractions as text."""
    return [str(value) for value in values]
