"""What `fix` returns: the repaired network, what was measured on it, and what can be proved about it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.files import write_atomically
from nnrepair.results.certificate import Certificate
from nnrepair.results.changes import WeightChange
from nnrepair.results.effects import SideEffects
from nnrepair.results.outcome import Outcome
from nnrepair.results.page import edits_table, page
from nnrepair.results.patch import Patch, saved
from nnrepair.rounding import counted, percent, that_hold
from nnrepair.spec.edits import Edits, Locality
from nnrepair.spec.inputs import to_like
from nnrepair.spec.regions import Regions
from nnrepair.spec.running import outputs
from nnrepair.spec.scores import Output, Scores
from nnrepair.wrappers.base import Wrapper

if TYPE_CHECKING:
    from nnrepair.verify import CheckResult, Comparison, Options, Property
    from nnrepair.verify.comparing.decision import Decision
    from nnrepair.verify.comparing.regions import Region

#: How a patch is reviewed, on a page.
REVIEW = (
    "nnrepair patch show PATCH.safetensors",
    "nnrepair patch apply PATCH.safetensors MODEL --out REPAIRED",
    "nnrepair patch revert PATCH.safetensors REPAIRED --out MODEL",
)


def _like(model: nn.Module) -> Tensor:
    """Return a tensor of a network's type and device."""
    tensors = (*model.parameters(), *model.buffers(), torch.zeros(()))
    return next(tensor for tensor in tensors if tensor.dtype.is_floating_point)


@dataclass(frozen=True)
class Report:
    """What was measured by running both networks in their own dtype (edits over whole regions: in float64).

    Attributes:
        edits: number of edits, points or regions; `held_before` and `held_after` say for each whether it held. Of
            `repair_property`, these are its properties.
        success_rate: share of edits that hold afterwards.
        generalization_rate: share of the edit scope that holds afterwards (None without an edit scope); where its
            points belong to single edits, the mean of their shares over the edits that have some.
        side_effects: on the locality set (None without one).
        weight_change: its size.
        seconds: wall time of the method.
        method: the method, with its hyper-parameters.
        notes: sentences from the method: which layer, which claim.
        tests: by name, side effects on points that the method never saw.
        scope_points: size of the edit scope, and `scope_edits`: how many edits have points of their own in it (None
            where all points belong to all edits).
        asked: what `edits` are: "edits", or "properties".
    """

    edits: int
    held_before: list[bool]
    held_after: list[bool]
    success_rate: float
    generalization_rate: float | None
    side_effects: SideEffects | None
    weight_change: WeightChange
    seconds: float
    method: str
    notes: list[str] = field(default_factory=list)
    tests: dict[str, SideEffects] = field(default_factory=dict)
    scope_points: int = 0
    scope_edits: int | None = None
    asked: Literal["edits", "properties"] = "edits"

    @property
    def drawdown(self) -> float | None:
        """Relative loss of accuracy on the locality set, see `SideEffects`."""
        return None if self.side_effects is None else self.side_effects.drawdown

    @property
    def drawdown_points(self) -> float | None:
        """Loss of accuracy on the locality set in percentage points, negative when it rose (None without labels)."""
        return None if self.side_effects is None else self.side_effects.drawdown_points

    @property
    def locality(self) -> float | None:
        """Share of the locality set's points whose decisions are unchanged (None without it, and for numbers)."""
        return None if self.side_effects is None else self.side_effects.locality

    @property
    def locality_points(self) -> int:
        """Points of the locality set that were measured."""
        return 0 if self.side_effects is None else self.side_effects.points

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, lists and strings (JSON)."""
        plain = asdict(self)
        for name in ("drawdown", "drawdown_points", "locality", "locality_points"):
            plain[name] = getattr(self, name)
        return {self.asked if name == "edits" else name: value for name, value in plain.items()}

    def _rows(self) -> list[tuple[str, str]]:
        return [*self.measured(), *self.weight_change.rows(), ("seconds", f"{self.seconds:.2f}")]

    def measured(self) -> list[tuple[str, str]]:
        """Return, with a name each, what was measured on points, in words."""
        what = ("edit", "edits") if self.asked == "edits" else ("property", "properties")
        held = that_hold(sum(self.held_after), self.edits, *what)
        rows = [("success rate", f"{percent(self.success_rate)} ({held})")]
        rows.append(("held before", f"{sum(self.held_before)} of {self.edits}"))
        if self.generalization_rate is not None:
            rows.append(("generalization rate", f"{percent(self.generalization_rate)} of {self._scope}"))
        if self.side_effects is not None:
            rows += [("drawdown", self.side_effects.lost)] if self.side_effects.lost else []
            rows.append(("locality", self.side_effects.stayed))
        return rows + [(name, str(found)) for name, found in self.tests.items()]

    @property
    def _scope(self) -> str:
        if self.scope_edits is None:
            return f"the {counted(self.scope_points, 'point')} of the edit scope"
        return (
            f"the edit scope: mean over the {self.scope_edits} of {self.edits} edits that have some of its "
            f"{counted(self.scope_points, 'point')}"
        )

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
        answers: (n, ...) what the original network returned at the edits' points; None where they are regions.
        output: which part of what the network returns are its scores, see `fix`; None where it is all of that.
        regions: regions to keep, or None; there is no `locality` then.
    """

    edits: Edits
    locality: Locality | None = None
    answers: Tensor | None = None
    output: Output | None = None
    regions: Edits | None = None


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
        return f"{self.name} ({self.role}): {self.result.verdict}, {counted(self.result.boxes, 'box', 'boxes')}"


@dataclass(frozen=True)
class RepairResult:
    """The result of a repair.

    Attributes:
        model: the repaired network, of the same class as the original (a `Decoupled` for that architecture).
        outcome: what happened, with advice.
        report: what was measured.
        patch: the change alone, which can be saved, applied and reverted (None where it is more than other values of
            the same parameters and buffers, or wrappers put around the network: a replaced layer).
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

    @property
    def _scored(self) -> nn.Module:
        """The network, returning its scores alone, as a wrapper does."""
        output = None if self.asked is None else self.asked.output
        return self.model if output is None or isinstance(self.model, Wrapper) else Scores(self.model, output)

    def save_patch(self, path: str | Path) -> Path:
        """Write the patch as one safetensors file, atomically.

        Raises:
            PatchError: this repair is more than a patch can say (`patch` is None).
            OSError: the file cannot be written.
        """
        return saved(self.patch, path)

    def save_page(
        self,
        path: str | Path,
        *,
        title: str = "Repair report",
        about: str = "",
        verdict: str | None = None,
        unchecked: str = "",
        classes: Sequence[str] | None = None,
        commands: Sequence[str] | None = None,
    ) -> Path:
        """Write one HTML page about this repair, for people; it loads nothing from elsewhere.

        It shows every edit before and after, what was measured, how much of which layer changed, and how to review and
        apply the patch. For images `nnrepair.plot.html_report` makes a page with pictures.

        Args:
            path: where to write.
            title, about: heading, and a sentence on network and data.
            verdict: what the independent checker printed when it accepted the certificate; only this is called proved.
            unchecked: why there is no verdict.
            classes: names of the classes; their numbers by default.
            commands: what to type for a review, in place of the commands about a patch.

        Raises:
            MissingExtra: Jinja is not installed.
            OSError: the file cannot be written.
        """
        asked = self.asked
        points = None if asked is None or asked.answers is None else asked.edits
        unsaid = "There is no certificate." if self.certificate is None else "The certificate was not checked."
        text = page(
            self.outcome,
            self.report.measured(),
            change=self.report.weight_change.rows(),
            method=self.report.method,
            notes=self.report.notes,
            patch=self.patch,
            certificate=self.certificate,
            table=edits_table(
                points,
                None if asked is None else asked.answers,
                None if points is None else outputs(self._scored, to_like(points.inputs, _like(self.model))),
                classes,
            ),
            title=title,
            about=about,
            verdict=verdict,
            unchecked=unchecked or unsaid,
            commands=(REVIEW if self.patch is not None else ()) if commands is None else commands,
        )
        return write_atomically(path, text.encode())

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
        from nnrepair.verify.confirm import confirm

        if self.asked is None:
            raise InvalidInput(
                "This result does not know its edits; verify() works on what nnrepair.fix returned. What "
                "repair_property returned has its proofs; nnrepair.verify.check(result.model, property) makes another."
            )
        asked, points = self.asked, list[Any]()
        points.append(
            (
                "edits" if asked.edits.of is None else "points of the edits",
                asked.edits.inputs,
                asked.edits.criterion,
                None,
            )
        )
        if (kept := asked.locality) is not None:
            points.append(("points to keep", kept.inputs, kept.criterion, kept.holds))
        if (whole := asked.regions) is not None:
            points.append(("regions to keep", whole.inputs, whole.criterion, None))
        return confirm(
            self._scored,
            points,
            property,
            timeout=timeout,
            device=device,
            certificate=certificate,
            progress=progress,
            seed=seed,
            options=options,
        )

    def prove_locality(
        self,
        region: Region,
        *,
        decision: Decision = "argmax",
        outside: Region = (),
        timeout: float | None = None,
        until: float = 1e-6,
        certificate: bool = True,
        progress: bool = False,
    ) -> Comparison:
        """Bound on how much of a region the repaired network returns, and decides, what the original did.

        Args:
            region, decision, outside, timeout, until, certificate, progress: see `nnrepair.verify.compare`.

        Raises:
            InvalidInput: this repair is more than a patch can say, so that the original is not known; call
                `nnrepair.verify.compare(original, result.model, region)`. Or something does not fit.
            UnsupportedModel: the network has operations that the checker cannot read.
        """
        from nnrepair.verify import compare

        if self.patch is None:
            raise InvalidInput(
                "This result has no patch, so it does not know the original: call "
                "nnrepair.verify.compare(original, result.model, region)."
            )
        return compare(
            self.patch.revert(self._scored),
            self._scored,
            region,
            decision=decision,
            outside=outside,
            timeout=timeout,
            until=until,
            certificate=certificate,
            progress=progress,
        )

    def __str__(self) -> str:
        lines = [str(self.outcome), str(self.report)]
        measured = [] if self.report.asked == "properties" else [counted(self.report.edits, "edit")]
        if self.report.locality_points:
            measured.append(counted(self.report.locality_points, "locality point"))
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
