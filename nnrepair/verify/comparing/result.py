"""What a comparison found: how much of a region is surely the same, how much is changed, and where; or a verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnrepair.errors import InvalidInput
from nnrepair.rounding import percent
from nnrepair.verify.comparing.certificate import ComparisonCertificate, EquivalenceCertificate
from nnrepair.verify.result import Verdict, shown


@dataclass(frozen=True)
class Witness:
    """An input at which the networks decide differently, in their own precision and in exact arithmetic.

    Attributes:
        input: (inputs,), a number of the networks' own precision for each input.
        before, after: (outputs,), what the networks return there.
        replayed: what agreed that the decision is another: "network" (torch), "onnxruntime", "exact".
    """

    input: NDArray[np.float64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    replayed: tuple[str, ...]


@dataclass(frozen=True)
class Moment:
    """What was known after so many seconds and boxes, as shares of the region; floats, for curves.

    Attributes:
        cpu_seconds, boxes: since the comparison began.
        identical, same, changed: as in `Comparison`.
    """

    cpu_seconds: float
    boxes: int
    identical: float
    same: float
    changed: float


@dataclass(frozen=True)
class Comparison:
    """Shares of a region's volume, exact fractions from 0 to 1; rounding only ever made what is claimed smaller.

    Attributes:
        identical: at least on this share all outputs are the same, for the real-valued functions of the weights.
        same: at least on this share, `identical` included, the decision is the same.
        changed: at least on this share the decision is another one.
        volume: of the region, in the units of its inputs.
        witnesses: inputs at which the decision changes; there may be some where no volume is proved to change.
        boxes: how many parts were bounded.
        cpu_seconds, wall_seconds: what it took.
        history: what was known meanwhile.
        certificate: the proof, which `nnrepair certify` checks; None where there is none, see `reason`.
        reason: why there is no certificate, or why the search ended early.
        state: what `compare(resume=)` goes on from.
    """

    identical: Fraction
    same: Fraction
    changed: Fraction
    volume: Fraction
    witnesses: tuple[Witness, ...] = ()
    boxes: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    history: tuple[Moment, ...] = field(default=(), repr=False)
    certificate: ComparisonCertificate | None = field(default=None, repr=False)
    reason: str = ""
    state: Any = field(default=None, repr=False, compare=False)

    @property
    def unknown(self) -> Fraction:
        """The share of which neither is known."""
        return 1 - self.same - self.changed

    def known(self, points: Any) -> NDArray[np.str_]:
        """Return, for points (n, inputs), which of what is proved covers them; for maps.

        "identical", "same" or "changed" where a whole part of the region around the point is proved to be so, else
        "unknown", and "outside" of the region. Parts that are proved to a share of their volume count as unknown.
        """
        if self.state is None:
            raise InvalidInput("This comparison does not know its parts: it ended before it began, or was stored.")
        x = np.asarray(points, np.float64).reshape(len(points), -1)
        codes = np.max([tree.known(x) for tree in self.state.trees], axis=0)
        kinds: NDArray[np.str_] = np.array(["unknown", "changed", "same", "identical", "outside"])[codes]
        return kinds

    def __str__(self) -> str:
        lines = [
            f"identical outputs  {percent(float(self.identical))} of the volume, at least",
            f"same decision      {percent(float(self.same))}, at least",
            f"changed decision   {percent(float(self.changed))}, at least; {percent(float(1 - self.same))} at most",
            f"unknown            {percent(float(self.unknown))}",
            f"{len(self.witnesses)} witnesses of other decisions; {self.boxes} boxes, {self.cpu_seconds:.2f} CPU s",
        ]
        return "\n".join([*lines, *([self.reason] if self.reason else [])])


@dataclass(frozen=True)
class Equivalence:
    """The verdict on whether two networks agree, about every point of a region.

    Attributes:
        verdict: "holds" (for the real-valued functions of the stored weights, with all rounding accounted for),
            "violated" (see `witness`) or "unknown" (see `reason`).
        witness: present when violated: an input at which the networks disagree in their own precision and exactly.
        boxes: how many parts of the region were bounded.
        cpu_seconds, wall_seconds: what it took.
        certificate: the proof, which `nnrepair certify` checks; it is proved once that program has accepted it.
        proved: the share of the region that is proved, 0 to 1; boxes count alike, halves half.
        worst_bound: the lowest bound on what is still open, in units of the outputs; positive would be proved.
        reason: why the verdict is unknown, or why there is no certificate.
    """

    verdict: Verdict
    witness: Witness | None = None
    boxes: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    certificate: EquivalenceCertificate | None = field(default=None, repr=False)
    proved: float = 0.0
    worst_bound: float | None = None
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether the networks agree."""
        return self.verdict == "holds"

    def __str__(self) -> str:
        lines = [f"{self.verdict} ({self.boxes} boxes, {self.cpu_seconds:.2f} CPU s)"]
        if self.witness is not None:
            for name, values in (("input ", self.witness.input), ("before", self.witness.before)):
                lines.append(f"{name} {shown(values)}")
            lines.append(f"after  {shown(self.witness.after)}; replayed by: {', '.join(self.witness.replayed)}")
        if self.verdict == "unknown":
            worst = "" if self.worst_bound is None else f", worst remaining bound {self.worst_bound:.3g}"
            lines.append(f"proved for {percent(self.proved, 1)} of the region{worst}")
        return "\n".join([*lines, *([self.reason] if self.reason else [])])
