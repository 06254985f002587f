"""What a comparison found: how much of a region is surely the same, how much is changed, and where; or a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.files import write_atomically
from nnrepair.rounding import counted, percent_at_least, percent_at_most
from nnrepair.verify.comparing.certificate import ComparisonCertificate, EquivalenceCertificate
from nnrepair.verify.comparing.evidence import Moment, Subject, Witness
from nnrepair.verify.comparing.page import page
from nnrepair.verify.result import Answer, Verdict, shown


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
        subject: what was compared; None where time was over before networks were read.
        state: what `compare(resume=)` goes on from.
        earlier: what it was to go on from, where time was over before networks were read; then that is gone on from.
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
    subject: Subject | None = field(default=None, repr=False)
    state: Any = field(default=None, repr=False, compare=False)
    earlier: Comparison | None = field(default=None, repr=False, compare=False)

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
        try:
            points = points.detach().cpu() if isinstance(points, Tensor) else points
            x = np.asarray(points, np.float64)
            x = x.reshape(len(x), -1) if x.size else x.reshape(0, len(self.state.trees[0].free))
            fits = x.shape[1] == len(self.state.trees[0].free)
        except (TypeError, ValueError):
            fits = False
        if not fits:
            shape = np.shape(points) if isinstance(points, np.ndarray | Tensor | list) else type(points).__name__
            raise InvalidInput(f"points must be numbers (n, {len(self.state.trees[0].free)}), got {shape}.")
        codes = np.max([tree.known(x) for tree in self.state.trees], axis=0)
        kinds: NDArray[np.str_] = np.array(["unknown", "changed", "same", "identical", "outside"])[codes]
        return kinds

    def save_page(
        self,
        path: str | Path,
        *,
        title: str = "What stayed the same",
        about: str = "",
        verdict: str | None = None,
        unchecked: str = "",
        commands: Sequence[str] | None = None,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        axes: tuple[int, int] | None = None,
    ) -> Path:
        """Write one HTML page about this comparison, for people; it loads nothing from elsewhere.

        It has the shares and how they grew, a map of two inputs, witnesses, what was compared, and how to check the
        certificate.

        Args:
            path: where to write.
            title, about: heading, and a sentence on the networks and the region.
            verdict: what the independent program printed when it accepted the certificate; only this is called proved.
            unchecked: why there is no verdict.
            commands: what to type to check the certificate.
            inputs, outputs: their names; X_0, X_1, ... and Y_0, Y_1, ... by default, as in VNN-LIB.
            axes: the inputs of the map, across and up; the first two that vary by default.

        Raises:
            InvalidInput: time was over before anything was compared, or names or axes do not fit.
            MissingExtra: Jinja or matplotlib is not installed.
            OSError: the file cannot be written.
        """
        if self.subject is None or self.state is None:
            raise InvalidInput(
                "This comparison has no page: it ended before it began, or was stored. Compare again, with more time."
            )
        text = page(
            self.subject,
            (self.identical, self.same, self.changed, self.volume),
            self.state.trees,
            history=self.history,
            witnesses=self.witnesses,
            certificate=self.certificate,
            numbers=(self.boxes, max([self.cpu_seconds, *(moment.cpu_seconds for moment in self.history[-1:])])),
            reason=self.reason,
            title=title,
            about=about,
            verdict=verdict,
            unchecked=unchecked,
            commands=commands,
            names=(inputs, outputs),
            axes=axes,
        )
        return write_atomically(path, text.encode())

    def __str__(self) -> str:
        lines = [
            f"identical outputs  {percent_at_least(self.identical)} of the volume, at least",
            f"same decision      {percent_at_least(self.same)}, at least",
            f"changed decision   {percent_at_least(self.changed)}, at least; {percent_at_most(1 - self.same)} at most",
            f"unknown            {percent_at_most(self.unknown)}",
            f"{counted(len(self.witnesses), 'witness', 'witnesses')} of other decisions; "
            f"{counted(self.boxes, 'box', 'boxes')}, {self.cpu_seconds:.2f} CPU s",
        ]
        return "\n".join([*lines, *([self.reason] if self.reason else [])])


@dataclass(frozen=True)
class Equivalence(Answer):
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

    def __str__(self) -> str:
        lines, found = list[str](), self.witness
        if found is not None:
            lines = [f"input  {shown(found.input)}", f"before {shown(found.before)}"]
            lines.append(f"after  {shown(found.after)}; replayed by: {', '.join(found.replayed)}")
        return self._told(lines, "region")
