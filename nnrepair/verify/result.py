"""What a check found, and how far it got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nnrepair.rounding import counted, percent_at_least
from nnrepair.verify.certificate import PropertyCertificate
from nnrepair.verify.search.rational import nearest

Verdict = Literal["holds", "violated", "unknown"]


@dataclass(frozen=True)
class Counterexample:
    """An input inside the property's region whose output is unsafe.

    Attributes:
        input: (inputs,), the witness in numbers of the network's own precision; where the box has no such numbers (it
            fixes an input to 0.1, for example) the nearest ones, just outside.
        output: (outputs,), what the network returns at `input`.
        margin: how deep the output lies in the unsafe set, in units of its rows; 0 is its border.
        replayed: how the output was found to be unsafe before this was reported. "exact" (rational arithmetic) or
            "enclosure" (float64 with every rounding error bounded, for networks too large for it), about `exact_input`;
            and "network" (torch) and "onnxruntime", about `input`. Where these are missing the violation is that of the
            real-valued function alone, and too narrow to survive the rounding of a run.
        exact_input: (inputs,), the witness in exact numbers, inside the box; the numbers of `input` if left out.
        exact_output: (outputs,), two fractions around each output of the real-valued function there, equal if "exact".
    """

    input: NDArray[np.float64]
    output: NDArray[np.float64]
    margin: float
    replayed: tuple[str, ...]
    exact_input: tuple[Fraction, ...] = field(default=(), repr=False)
    exact_output: tuple[tuple[Fraction, Fraction], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.exact_input:
            object.__setattr__(self, "exact_input", tuple(map(Fraction, self.input.tolist())))

    @property
    def is_rounded(self) -> bool:
        """Whether `input` differs from the exact input."""
        return any(Fraction(v) != exact for v, exact in zip(self.input.tolist(), self.exact_input, strict=True))

    def __str__(self) -> str:
        lines = [f"input  {shown(self.input)}", f"output {shown(self.output)}"]
        if self.is_rounded:
            lines[0] += ", the nearest numbers of the network's own precision to the exact input, which is in the box"
        lines.append(f"{self.margin:.3g} inside the unsafe set; replayed by: {', '.join(self.replayed)}")
        if self.replayed[:1] in (("exact",), ("enclosure",)):
            exact = np.array([nearest((low + high) / 2) for low, high in self.exact_output])
            lines.append(f"the real-valued function has the unsafe output {shown(exact)}; a run rounds it away")
        return "\n".join(lines)


def shown(values: NDArray[np.float64]) -> str:
    """Return numbers as text, the first of many."""
    text = ", ".join(f"{v:.9g}" for v in values[:12])
    return f"[{text}{', ...' if len(values) > 12 else ''}]"


class Answer:
    """What is told of a verdict about every point of a region, whatever it is about."""

    verdict: Verdict
    boxes: int
    cpu_seconds: float
    proved: float
    worst_bound: float | None
    reason: str

    @property
    def holds(self) -> bool:
        """Whether what was asked is true of every point."""
        return self.verdict == "holds"

    def _told(self, point: Sequence[str], of: str) -> str:
        """Return the verdict as text: with lines about a point that violates, and the share that is proved of what."""
        lines = [f"{self.verdict} ({counted(self.boxes, 'box', 'boxes')}, {self.cpu_seconds:.2f} CPU s)", *point]
        if self.verdict == "unknown":
            worst = "" if self.worst_bound is None else f", worst remaining bound {self.worst_bound:.3g}"
            lines.append(f"proved for {percent_at_least(self.proved, 1)} of the {of}{worst}")
        return "\n".join([*lines, self.reason] if self.reason else lines)


@dataclass(frozen=True)
class CheckResult(Answer):
    """The verdict on one property, about every point of its region.

    Attributes:
        verdict: "holds" (for the real-valued function of the stored weights, with all rounding accounted for),
            "violated" (see `counterexample`) or "unknown" (see `reason`).
        counterexample: present when violated.
        boxes: how many parts of the region were bounded.
        cpu_seconds, wall_seconds: what it took.
        certificate: present when the property holds and was asked for; `nnrepair certify` re-checks it. A verdict
            whose certificate that program accepted is proved; before that it rests on this package.
        proved: the share of the region's volume, 0 to 1, that is proved.
        worst_bound: the lowest bound on what is still open, in units of the unsafe set's rows, each scaled by a power
            of two to a largest coefficient near 1; None when nothing is.
        reason: why the verdict is unknown, or why there is no certificate; what a violation by a tie means.
    """

    verdict: Verdict
    counterexample: Counterexample | None = None
    boxes: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    certificate: PropertyCertificate | None = field(default=None, repr=False)
    proved: float = 0.0
    worst_bound: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        return self._told([] if self.counterexample is None else [str(self.counterexample)], "volume")
