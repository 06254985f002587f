"""equivalent(): do two networks agree on every point of a region?"""

from __future__ import annotations

import math
import platform
import time
from dataclasses import replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.deadline import Deadline, OutOfTime, required_seconds
from nnrepair.errors import InvalidInput
from nnrepair.progress import progress_bar
from nnrepair.rounding import counted, percent_at_least
from nnrepair.spec.running import required_seed
from nnrepair.verify.certificate import sha256
from nnrepair.verify.check import FIRST, MOST_STARTS, STARTS
from nnrepair.verify.comparing.agreement import AgreementSearch, apart, elsewhere
from nnrepair.verify.comparing.certificate import MOST_OUTPUTS, EquivalenceCertificate
from nnrepair.verify.comparing.evidence import Witness
from nnrepair.verify.comparing.pair import paired
from nnrepair.verify.comparing.regions import Region, boxes_of
from nnrepair.verify.comparing.result import Equivalence
from nnrepair.verify.comparing.twins import require_twins
from nnrepair.verify.network import Network
from nnrepair.verify.property import Box, Case, Property
from nnrepair.verify.search.attack import LEAST, attack
from nnrepair.verify.search.jobs import NOTHING, Found, Jobs
from nnrepair.verify.search.rational import Enclosure, enclosure, inside
from nnrepair.verify.threads import one_thread


def equivalent(
    before: nn.Module | str | Path,
    after: nn.Module | str | Path,
    region: Region,
    *,
    tolerance: float | Fraction | str | None = None,
    decision: Literal["argmax", "argmin"] = "argmax",
    margin: float | Fraction | str = 0.0,
    timeout: float | None = None,
    certificate: bool = True,
    progress: bool = False,
    seed: int = 0,
) -> Equivalence:
    """Decide whether two networks of one shape agree on every point of a region.

    For rounded, quantised, pruned or retrained weights. The networks are bounded side by side: of each unit also how
    far it is from its twin, which is little where weights are nearly the same (differential verification; Paulsen et
    al. 2020, ReluDiff and NeuroDiff). The region is split into boxes until that proves each of them, in float64 with
    all rounding accounted for, or until a point is found where the networks themselves, onnxruntime (for ONNX files)
    and exact arithmetic disagree. What is neither proved nor refuted in time is "unknown".

    Args:
        before, after: modules, taken in eval mode and left untouched, or ONNX files: linear and convolution layers and
            ReLUs, in a chain, and equally many units everywhere. Weights are float32 or float64 (of a copy in half
            precision: `copy.deepcopy(model).half().float()`).
        region: a `Box`, a list of boxes, or a `Property` or VNN-LIB file, whose boxes are meant.
        tolerance: that no output differs by more than this, in the units of the outputs.
        decision: without a tolerance: that the largest ("argmax") or smallest ("argmin") output is the same, the first
            of equal ones.
        margin: of decisions: only where the output that wins before does so by this much at least. A softmax of more
            than p for one class is a margin of more than log(p / (1 - p)); then this is what Teuber et al. (2024,
            VeryDiff) call top-1 equivalence with confidence. With 0 a region that a border between two decisions
            crosses is hardly ever proved, as borders move.
        timeout: in seconds, of everything from this call on.
        certificate: whether to keep the proof.
        progress: show a line on stderr.
        seed: of the random starts of the search for witnesses.

    Raises:
        InvalidInput: networks, region and what is asked do not fit each other.
        UnsupportedModel: the networks are no such chains; `compare` takes more, with weaker bounds.

    >>> from nnrepair.verify import Box, equivalent
    >>> before = torch.nn.Linear(2, 2)
    >>> after = torch.nn.Linear(2, 2)
    >>> with torch.no_grad():
    ...     for p, q in zip(before.parameters(), after.parameters()):
    ...         _ = q.copy_(p + 0.125)
    >>> equivalent(before, after, Box([0, 0], [1, 1]), tolerance=0.5).verdict  # 0.125 (x + y + 1)
    'holds'
    >>> equivalent(before, after, Box([0, 0], [1, 1]), tolerance=0.25).verdict
    'violated'
    """
    started, cpu = time.monotonic(), time.process_time()
    required_seconds(timeout)
    seed = required_seed(seed)
    asked = Asked.of(tolerance, decision, margin)
    boxes = boxes_of(region)
    with torch.no_grad(), one_thread(torch.device("cpu")), progress_bar("equivalent", progress, counts=False) as say:
        deadline, problem, found = Deadline(timeout, say), None, NOTHING
        try:
            problem = _Problem(before, after, boxes, asked, deadline)
            found = problem.solve(torch.Generator().manual_seed(seed))
        except OutOfTime:
            pass
        answer = _answer(problem, found, deadline, timeout, certificate)
    return replace(answer, cpu_seconds=time.process_time() - cpu, wall_seconds=time.monotonic() - started)


class Asked:
    """What the networks are to agree on; either a tolerance, or a decision with a margin."""

    def __init__(self, tolerance: Fraction | None, decision: str | None, margin: Fraction) -> None:
        self.tolerance, self.decision, self.margin = tolerance, decision, margin

    @classmethod
    def of(cls, tolerance: Any, decision: str, margin: Any) -> Asked:
        """Return what was asked for.

        Raises:
            InvalidInput: it is not one of these.
        """
        if decision not in ("argmax", "argmin"):
            raise InvalidInput(f"decision must be 'argmax' or 'argmin', got {decision!r}.")
        by = _number(margin, "margin")
        if tolerance is None:
            return cls(None, decision, by)
        if by:
            raise InvalidInput("margin= is about decisions; give it without tolerance=.")
        at_most = _number(tolerance, "tolerance")
        if not at_most:
            raise InvalidInput(
                "tolerance must be more than 0: bounds have rounding errors. `compare` finds equal outputs."
            )
        return cls(at_most, None, by)

    def unsafe(self, outputs: int) -> Any:
        """Return where outputs, before and after, may not lie."""
        if self.tolerance is not None:
            return apart(outputs, self.tolerance)
        assert self.decision is not None
        if outputs < 2:
            raise InvalidInput("The networks have one output, which always wins; give tolerance=.")
        return elsewhere(outputs, self.decision, self.margin)


def _number(value: Any, name: str) -> Fraction:
    try:
        number = Fraction(value.item() if isinstance(value, np.generic | Tensor) and value.ndim == 0 else value)
        if number >= 0 and math.isfinite(float(number)):
            return number
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        pass
    raise InvalidInput(f"{name} must be a finite number, at least 0, got {value!r:.80}.")


class _Problem:
    """Two networks and a region that fit each other, and the witness once there is one."""

    def __init__(self, before: Any, after: Any, boxes: list[Box], asked: Asked, deadline: Deadline) -> None:
        self.boxes, self.asked, self.deadline = boxes, asked, deadline
        deadline.check("reading the networks")
        self.networks = tuple(Network.of(model, boxes[0].shape, deadline) for model in (before, after))
        one, two = self.graphs = self.networks[0].graph, self.networks[1].graph
        self.joint = paired(one, two).graph
        if any(len(box) != one.inputs for box in boxes):
            raise InvalidInput(
                f"The region has {sorted({len(box) for box in boxes})} inputs, but the networks read {one.inputs}."
            )
        if one.inputs > np.iinfo(np.int16).max:
            raise InvalidInput(f"{one.inputs} inputs are too many to split; at most {np.iinfo(np.int16).max} are read.")
        require_twins(one, two)
        self.unsafe = asked.unsafe(one.outputs)
        about = Property([Case(box, ()) for box in boxes], one.outputs)
        self.replays = [network.replay(deadline) for network in self.networks]
        for network, replay in zip(self.networks, self.replays, strict=True):
            deadline.check("comparing what was read with the networks")
            network.compare(about, replay, deadline)
        self.witness: Witness | None = None
        self.refused = 0

    def solve(self, generator: torch.Generator) -> Found:
        """Look for a witness, then for a proof."""
        cases = [Case(box, self.unsafe) for box in self.boxes]
        # Jobs of equal boxes would be one case.
        jobs = Jobs.of(Property(cases, self.joint.outputs), deadline=self.deadline)
        self.boxes = list(dict.fromkeys(self.boxes))

        def attacked(starts: int, deadline: Deadline = self.deadline) -> bool:
            return attack(self.joint, jobs, self.confirm, generator, starts, deadline=deadline)

        self.deadline.check("looking for witnesses")
        try:
            violated = attacked(max(STARTS, min(LEAST * len(jobs), MOST_STARTS)), self.deadline.share(FIRST))
        except OutOfTime:
            violated = False
            self.deadline.check()
        if violated:
            return Found(False, True, 0, 0.0, None, 0, None)

        def report(share: float, boxes: int) -> None:
            self.deadline.doing = f"{percent_at_least(share, 1)} of the volume proved, {counted(boxes, 'box', 'boxes')}"

        search = AgreementSearch(self.graphs, self.joint, self.boxes, self.unsafe, jobs, self.confirm, self.deadline)
        return search.run(report, attacked)

    def confirm(self, points: Tensor, jobs: Tensor) -> bool:
        """Keep the first of some points (n, inputs) at which everything finds that the networks disagree."""
        for point, job in zip(points, jobs.tolist(), strict=True):
            self.deadline.check()
            box, way = divmod(job, len(self.unsafe))
            if self._try(point, self.boxes[box], way):
                return True
            self.refused += 1
        return False

    def _try(self, point: Tensor, box: Box, way: int) -> bool:
        conjunction, exact = self.unsafe[way], self.replays[0].in_box(point, box)
        x = self.replays[0].rounded(exact)
        if any(Fraction(v) != each for v, each in zip(x.tolist(), exact, strict=True)):
            return False  # the box has no such number of the network's own precision
        runs = [replay.runs(x.to(replay.dtype)) for replay in self.replays]
        names = [name for name in runs[0] if name in runs[1]]
        for name in names:
            y = [run[name] for run in runs]
            if not all(np.isfinite(each).all() for each in y):
                return False
            if not inside(conjunction, [(Fraction(v), Fraction(v)) for each in y for v in each.tolist()]):
                return False
        found = [enclosure(graph, exact, self.deadline) for graph in self.graphs]
        outputs: Enclosure = [*found[0][0], *found[1][0]]
        if not inside(conjunction, outputs):
            return False
        how = "exact" if all(is_exact for _, is_exact in found) else "enclosure"
        last = [run[names[-1]] for run in runs]
        self.witness = Witness(x.double().numpy().astype(np.float64), last[0], last[1], (*names, how))
        return True

    def certificate(self, found: Found) -> tuple[EquivalenceCertificate | None, str]:
        """Return the proof."""
        if found.tree is None:
            return None, "no certificate: a part could not be split"
        if self.graphs[0].outputs > MOST_OUTPUTS:
            return None, f"no certificate: the independent checker reads networks with at most {MOST_OUTPUTS} outputs"
        dim, cut = found.tree
        hashes = [None if network.path is None else sha256(network.path) for network in self.networks]
        versions = {name: version(name) for name in ("torch", "numpy")} | {"python": platform.python_version()}
        asked = self.asked
        return EquivalenceCertificate(
            asked.tolerance, asked.decision, asked.margin, tuple(self.boxes), dim, cut, hashes[0], hashes[1], versions
        ), ""


def _answer(
    problem: _Problem | None, found: Found, deadline: Deadline, timeout: float | None, certificate: bool
) -> Equivalence:
    """Return the verdict with what there is to say about it; no problem is one that was not even read in time."""
    kept, reason = None, ""
    if problem is not None and problem.witness is not None:
        return Equivalence("violated", problem.witness, found.boxes)
    if problem is not None and found.closed:
        kept, reason = problem.certificate(found) if certificate else (None, "")
        return Equivalence("holds", None, found.boxes, certificate=kept, proved=1.0, reason=reason)
    said = found.limits(deadline, timeout)
    if found.stuck:
        touch = "touches" if found.stuck == 1 else "touch"
        said.append(f"{counted(found.stuck, 'part')} that cannot be split further {touch} the border")
    if problem is not None and problem.refused:
        seemed = counted(problem.refused, "point that seemed to be a witness", "points that seemed to be witnesses")
        said.append(f"{seemed} failed replay")
    return Equivalence(
        "unknown", None, found.boxes, proved=found.share, worst_bound=found.worst, reason="; ".join(said)
    )
