"""What `fix` returns: the repaired network, what was measured on it, and what can be proved about it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from nnrepair.certificate import Certificate
from nnrepair.criteria import Criterion
from nnrepair.errors import InvalidInput
from nnrepair.outcome import Outcome
from nnrepair.patch import Patch
from nnrepair.shapes import Regions
from nnrepair.spec import Edits, LocalitySet

if TYPE_CHECKING:
    from nnrepair.verify import CheckResult, Options, Property


@dataclass(frozen=True)
class WeightChange:
    """The size of the change, over all changed parameters, as stored in the model's own dtype."""

    l1: float
    l2: float
    linf: float
    nonzeros: int


@dataclass(frozen=True)
class Kept:
    """What became of points that were no edits.

    Attributes:
        points: how many there are.
        accuracy_before, accuracy_after: share of them whose labels hold (None without labels).
        drawdown: relative loss of accuracy, negative when it rose; `drawdown_points`: the same in percentage points.
        locality: share of decisions that are unchanged, right or wrong.
    """

    points: int
    accuracy_before: float | None
    accuracy_after: float | None
    drawdown: float | None
    drawdown_points: float | None
    locality: float

    def __str__(self) -> str:
        lost = "" if self.drawdown_points is None else f"drawdown {self.drawdown_points:.2f} points, "
        return f"{lost}{self.locality:.2%} of {self.points} decisions unchanged"


@dataclass(frozen=True)
class Report:
    """What was measured by running both networks in their own dtype (edits over whole regions: in float64).

    Attributes:
        edits: number of edits, points or regions; `held_before` and `held_after` say for each whether it held.
        success_rate: share of edits that hold afterwards.
        generalization_rate: share of the edit scope that holds afterwards (None without an edit scope).
        drawdown: relative loss of accuracy on the locality set, and `drawdown_points`, the loss in percentage points
            (None without labels); negative when accuracy rose.
        locality: share of the locality set's decisions that are unchanged, right or wrong (None without one).
        locality_points: size of the locality set.
        weight_change: its size.
        seconds: wall time of the method.
        method: the method, with its hyper-parameters.
        notes: sentences from the method: which layer, which claim.
        tests: by name, what became of points that the method never saw.
    """

    edits: int
    held_before: list[bool]
    held_after: list[bool]
    success_rate: float
    generalization_rate: float | None
    drawdown: float | None
    drawdown_points: float | None
    locality: float | None
    locality_points: int
    weight_change: WeightChange
    seconds: float
    method: str
    notes: list[str] = field(default_factory=list)
    tests: dict[str, Kept] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, lists and strings (JSON)."""
        plain = {name: list(value) if isinstance(value, list) else value for name, value in vars(self).items()}
        tests = {name: asdict(kept) for name, kept in self.tests.items()}
        return plain | {"weight_change": asdict(self.weight_change), "tests": tests}

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("success rate", f"{self.success_rate:.2%} ({sum(self.held_after)} of {self.edits} edits hold)")]
        rows.append(("held before", f"{sum(self.held_before)} of {self.edits}"))
        if self.generalization_rate is not None:
            rows.append(("generalization rate", f"{self.generalization_rate:.2%} of the edit scope"))
        if self.drawdown_points is not None and self.drawdown is not None:
            rows.append(("drawdown", f"{self.drawdown_points:.2f} points ({self.drawdown:.2%} relative)"))
        if self.locality is not None:
            rows.append(("locality", f"{self.locality:.2%} of {self.locality_points} decisions unchanged"))
        rows += [(name, str(kept)) for name, kept in self.tests.items()]
        change = self.weight_change
        rows.append(("weights changed", f"{change.nonzeros}"))
        rows.append(("size of change", f"l1 {change.l1:.4g}, l2 {change.l2:.4g}, max {change.linf:.4g}"))
        rows.append(("seconds", f"{self.seconds:.2f}"))
        return rows

    def __str__(self) -> str:
        lines = [f"{name:<20} {value}" for name, value in self._rows()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in self._rows())
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<table>{rows}</table><ul>{notes}</ul>"


@dataclass(frozen=True)
class Asked:
    """What a repair was asked for: references to the points, not copies.

    Attributes:
        edits: what must hold.
        locality: points to keep, or None.
        keep: the criterion that keeps them, and `kept`: bool (points,), which of them it binds.
    """

    edits: Edits
    locality: LocalitySet | None = None
    keep: Criterion | None = None
    kept: Tensor | None = None


@dataclass(frozen=True)
class Proof:
    """What is known about one property of a repaired network.

    Attributes:
        name: the property's file name without its ending, or "property 1", "property 2", ...
        role: "repair" for a property that was to be repaired, "keep" for one that held and was to stay.
        result: the checker's verdict on the network as returned, with its certificate.
        source: the property's file, if it came from one.
    """

    name: str
    role: Literal["repair", "keep"]
    result: CheckResult
    source: Path | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.role}): {self.result.verdict}, {self.result.boxes} boxes"


@dataclass(frozen=True)
class RepairResult:
    """The result of a repair.

    Attributes:
        model: the repaired network, of the same class as the original (a `Decoupled` for that architecture).
        outcome: what happened, with advice.
        report: what was measured.
        patch: the change alone, which can be saved, applied and reverted (None for a decoupled network).
        certificate: a proof of minimality that `nnrepair certify` can check, where there is one.
        stats: the method's own numbers (`objective`, `lower_bound`, `gap`, layers tried, steps).
        asked: the edits and the locality set, for `verify`.
        proofs: of the properties that `repair_property` was asked to repair and to keep.
    """

    model: nn.Module
    outcome: Outcome
    report: Report
    patch: Patch | None
    certificate: Certificate | None
    stats: dict[str, Any]
    asked: Asked | None = field(default=None, repr=False, compare=False)
    proofs: tuple[Proof, ...] = ()

    def verify(
        self,
        property: Property | str | Path | Sequence[Property | str | Path] | None = None,
        *,
        timeout: float | None = None,
        device: str | torch.device | None = None,
        certificate: bool = True,
        progress: bool = False,
        seed: int = 0,
        options: Options | None = None,
    ) -> CheckResult:
        """Confirm the repaired network: every edit, every point to keep, and properties over their whole regions.

        A point is confirmed when it holds in a run of the network and for the real-valued function of its stored
        weights: in float64 with all rounding bounded, and in exact arithmetic where that leaves it open. Nothing is
        taken from the report. The verdict is "holds" when all of this is confirmed; "violated" when a point is
        certainly wrong (also a point of the locality set that the repair gave up) or a property is; else "unknown".
        Edits over regions are checked over their whole regions, as properties are (`nnrepair.verify.over`).

        Args:
            property: a `nnrepair.verify.Property`, a .vnnlib file, or a list of these.
            timeout: for everything together, in seconds.
            device, certificate, progress, seed, options: for the properties; see `nnrepair.verify.check`.

        Returns:
            The verdict. `reason` says, line by line, what was confirmed and which points were not; `counterexample` is
            the first edit that is wrong, else the first lost point, else that of a property; `proved` is the smallest
            share among edits, points to keep and properties; `certificate` is that of the property, if there is one
            property, and speaks of it alone.

        Raises:
            InvalidInput: points that are no plain tensors, or a property that does not fit.
            UnsupportedModel: the network has operations that are not piecewise linear (so has a decoupled one).
        """
        from nnrepair.verify.points import confirm

        if self.asked is None:
            raise InvalidInput(
                "This result does not know its edits; verify() works on what nnrepair.fix returned. What "
                "repair_property returned has its proofs; nnrepair.verify.check(result.model, property) makes another."
            )
        asked, points = self.asked, list[Any]()
        points.append(("edits", asked.edits.inputs, asked.edits.criterion, None))
        if asked.locality is not None and asked.keep is not None:
            points.append(("points to keep", asked.locality.inputs, asked.keep, asked.kept))
        return confirm(
            self.model,
            points,
            property,
            timeout=timeout,
            device=device,
            certificate=certificate,
            progress=progress,
            seed=seed,
            options=options,
        )

    def __str__(self) -> str:
        lines = [str(self.outcome), str(self.report)]
        measured = [] if self.proofs else [f"{self.report.edits} edits"]
        if self.report.locality_points:
            measured.append(f"{self.report.locality_points} locality points")
        if measured:
            lines.append(f"measured on {' and '.join(measured)}, in the model's own arithmetic")
        if self.proofs:
            lines.append("checked over whole regions (certificates not yet re-checked):")
            lines += [f"  {proof}" for proof in self.proofs]
        if self.asked is not None and isinstance(self.asked.edits.inputs, Regions):
            lines[-1] += " (edits over whole regions: in float64)"
        if self.certificate is not None:
            lines.append(f"certificate (not yet checked): {self.certificate.claim}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        claim = (
            ""
            if self.certificate is None
            else f"<p>Certificate (not yet checked): {html.escape(self.certificate.claim)}</p>"
        )
        return f"<p><b>{html.escape(str(self.outcome))}</b></p>{self.report._repr_html_()}{claim}"
