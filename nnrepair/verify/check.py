"""check(): is the property true of every point of its region?"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair.deadline import Deadline, OutOfTime, required_seconds
from nnrepair.errors import InvalidInput
from nnrepair.progress import progress_bar
from nnrepair.rounding import counted, percent_at_least
from nnrepair.spec.running import required_seed
from nnrepair.verify import vnnlib
from nnrepair.verify.certificate import PropertyCertificate, sha256
from nnrepair.verify.network import Network
from nnrepair.verify.parts import SearchedPart, parts_of
from nnrepair.verify.property import Case, Conjunction, Exact, Halfspace, Property
from nnrepair.verify.reading.affine import Affine, Convolution, Dense, Diagonal, Pick, Place
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.sparse import Rowwise, Sparse
from nnrepair.verify.result import CheckResult, Counterexample, Verdict
from nnrepair.verify.search.attack import LEAST, attack
from nnrepair.verify.search.boxes import Search
from nnrepair.verify.search.jobs import NOTHING, Confirm, Found, Jobs, Options
from nnrepair.verify.search.phases import PhaseSearch
from nnrepair.verify.search.rational import TooLong, can_be_exact
from nnrepair.verify.search.ties import Flat, between, equation, flat, sides
from nnrepair.verify.threads import one_thread

#: Networks with more inputs are split at their ReLUs.
WIDE = 24
#: The first attack, and the search for ties, may each take this share of the time that is left. The attack has so many
#: starts, or enough for all jobs, but at most so many.
FIRST, STARTS, MOST_STARTS = 0.5, 256, 65_536
#: Of points that no run shows to be counterexamples, so many at once are tried in exact arithmetic, until that took so
#: many multiplications.
ALONE, ALONE_WORK = 2, 500_000_000
#: Unsafe sets that are looked at for an interior, during at most this share of the time; those without in which ties
#: are sought.
FLAT, RECOGNISING, TIES = 2000, 0.1, 20
Tree = tuple[NDArray[np.int16], NDArray[np.float64]]
TIED = "Where that is allowed, say so: conditions of Linear may hold with equality (docs/properties.md, Ties)"


def check(
    model: nn.Module | str | Path,
    property: Property | str | Path,
    *,
    timeout: float | None = None,
    device: str | torch.device | None = None,
    certificate: bool = True,
    progress: bool = False,
    seed: int = 0,
    options: Options | None = None,
) -> CheckResult:
    """Decide whether a property holds on every point of its region.

    First counterexamples are sought by following gradients. Then the region is split into boxes until linear bounds
    prove each of them, in float64 with all rounding accounted for; what looks like a counterexample on the way is
    replayed. A counterexample is reported only if the network itself, onnxruntime (for an ONNX file) and exact
    arithmetic agree on it. Sound always; complete up to rounding: what cannot be decided is "unknown".

    Args:
        model: a module that maps (n, *shape) to (n, outputs), taken in eval mode and left untouched, or an ONNX file.
        property: see `Property.on`, or a VNN-LIB 1.0 file.
        timeout: in seconds, of everything from this call on, except that a step in code that is not ours (importing
            it, parsing the file, one run of the network or of a layer) is not cut short; then the
            verdict is "unknown" and says how far it got. None: no limit; a hard property may take years.
        device: where to compute; None is the CPU.
        certificate: whether to keep the proof.
        progress: show a line on stderr.
        seed: of the random starts.
        options: how to search.

    Raises:
        InvalidInput: model and property do not fit, or one of them is damaged.
        UnsupportedModel: the model has operations that the checker cannot read.

    >>> import nnrepair
    >>> from nnrepair.verify import Box, Property, check
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    >>> with torch.no_grad():
    ...     for p, value in zip(model.parameters(), [[[1.0, -1], [-1, 1]], [0.0, 0], [[1.0, 1], [0, 0]], [0.5, 0]]):
    ...         _ = p.copy_(torch.tensor(value))
    >>> check(model, Property.on(Box([0, 0], [1, 1]), nnrepair.Argmax([0]), outputs=2)).verdict  # |x - y| + 0.5 > 0
    'holds'
    """
    with progress_bar("check", progress, counts=False) as say:
        return checked(model, property, say, timeout, device, certificate, seed, options)


def checked(
    model: nn.Module | str | Path,
    property: Property | str | Path,
    say: Callable[[str], None],
    timeout: float | None = None,
    device: str | torch.device | None = None,
    certificate: bool = True,
    seed: int = 0,
    options: Options | None = None,
) -> CheckResult:
    """Do what `check` does; `say` is told now and then what is being done."""
    started, cpu = time.monotonic(), time.process_time()
    required_seconds(timeout)
    seed = required_seed(seed)
    place, problem = _device(device), None
    with torch.no_grad(), one_thread(place):
        deadline = Deadline(timeout, say)
        try:
            problem = _Problem(model, property, place, deadline)
            with torch.backends.cudnn.flags(enabled=False):  # its convolutions may go through Fourier space
                found = problem.solve(torch.Generator().manual_seed(seed), options or Options(), certificate)
        except OutOfTime:
            found = NOTHING
    answer = _answer(problem, found, deadline, timeout, certificate)
    return replace(answer, cpu_seconds=time.process_time() - cpu, wall_seconds=time.monotonic() - started)


def _answer(
    problem: _Problem | None, found: Found, deadline: Deadline, timeout: float | None, certificate: bool
) -> CheckResult:
    """Return the verdict with what there is to say about it; no problem is one that was not even read in time."""
    counterexample = None if problem is None else problem.counterexample
    verdict: Verdict = "violated" if counterexample is not None else "holds" if found.closed else "unknown"
    kept, reason = None, ""
    if problem is not None and verdict == "holds" and certificate:
        kept, reason = problem.certificate(found)
    elif problem is not None and verdict == "violated":
        reason = problem.remark
    elif verdict == "unknown":
        limits = found.limits(deadline, timeout)
        reason = "; ".join(limits if problem is None else [*limits, *problem.why_open(found)])
    return CheckResult(
        verdict=verdict,
        counterexample=counterexample,
        boxes=found.boxes,
        certificate=kept,
        proved=found.share,
        worst_bound=found.worst,
        reason=reason,
    )


class _Problem:
    """A network and a property that fit each other, and the counterexample once there is one."""

    def __init__(
        self, model: nn.Module | str | Path, property: Property | str | Path, device: torch.device, deadline: Deadline
    ) -> None:
        self.deadline, self.path = deadline, Path(model) if isinstance(model, str | Path) else None
        deadline.check("reading the property")
        self.property = property if isinstance(property, Property) else vnnlib.load(property, deadline)
        self.property_sha256 = None if isinstance(property, Property) else sha256(property)
        deadline.check("reading the network")
        self.network = network = Network.of(model, self.property.cases[0].box.shape, deadline)
        graph = network.graph
        if (graph.inputs, graph.outputs) != (self.property.inputs, self.property.outputs):
            raise InvalidInput(
                f"The property is about {self.property.inputs} inputs and {self.property.outputs} outputs, but the "
                f"network has {graph.inputs} and {graph.outputs}."
            )
        if graph.regional:
            graph = network.read_for(*self._region(), deadline)
        self.replay = network.replay(deadline, graph)
        deadline.check("comparing what was read with the network")
        network.compare(self.property, self.replay, deadline)
        #: Which of two probabilities is larger, their scores tell as well.
        self.compares = all(_compares(row) for case in self.property.cases for ways in case.unsafe for row in ways)
        searched = self._searched(graph)
        self.replay.scores = None if searched is graph else searched
        self.graph = searched.to(device)
        self.work: list[tuple[Case, Conjunction]] = [(c, u) for c in self.property.cases for u in c.unsafe]
        self.empty = 0  # unsafe sets without any output
        self.flat: dict[int, Flat] = {}  # unsafe sets without interior, by job
        self.counterexample: Counterexample | None = None
        self.settled = False  # whether a counterexample that no run of the network shows is enough
        self.spent = 0  # multiplications, on such counterexamples
        self.refused = 0  # points that seemed to be counterexamples and failed replay
        self.remark = ""

    def solve(self, generator: torch.Generator, options: Options, proof: bool) -> Found:
        """Look for counterexamples, then for a proof."""
        if not self.work:
            return Found(True, False, 0, 1.0, None, 0, (np.zeros(0, np.int16), np.zeros(0)))
        self.deadline.check("reading the property")
        jobs = self._jobs()
        if not self.work:
            return Found(True, False, 0, 1.0, None, 0, None)
        parts = list(parts_of(jobs, self._read_for, self.graph, self.deadline))

        def attacked(part: SearchedPart, starts: int, deadline: Deadline = self.deadline) -> bool:
            return attack(part.graph, part.jobs, self._confirming(part), generator, starts, deadline=deadline)

        self.deadline.check("looking for counterexamples")
        starts = max(STARTS, min(LEAST * len(jobs), MOST_STARTS)) // len(parts)
        self._for_a_while(FIRST, lambda deadline: any(attacked(part, starts, deadline) for part in parts))
        self.settled = True
        if self.counterexample is None:
            self._for_a_while(FIRST, lambda deadline: self._meet(jobs, generator, deadline))
        if self.counterexample is not None:
            return Found(False, True, 0, 0.0, None, 0, None)
        self.deadline.check("bounding whole boxes")
        found = list[Found]()
        for part in parts:

            def report(share: float, boxes: int) -> None:
                done = (len(found) + share) / len(parts)
                boxes += sum(each.boxes for each in found)
                self.deadline.doing = (
                    f"{percent_at_least(done, 1)} of the volume proved, {counted(boxes, 'box', 'boxes')}"
                )

            found.append(self._search(part, options, proof).run(report, partial(attacked, part)))
            if not found[-1].closed:
                break
        return self._together(parts, found)

    def _search(self, part: SearchedPart, options: Options, proof: bool) -> Search | PhaseSearch:
        """Return the search for one part."""
        split, inputs = options.split, part.graph.inputs
        if split == "auto":
            split = "inputs" if inputs <= WIDE else "relus"
        if split == "inputs" and inputs > np.iinfo(np.int16).max:
            raise InvalidInput(f"{inputs} inputs are too many to split: leave Options.split at 'auto'.")
        confirm = self._confirming(part)
        if split == "relus":
            return PhaseSearch(part.graph, part.jobs, confirm, most=options.most, deadline=self.deadline)
        return Search(part.graph, part.jobs, confirm, options, self.deadline, proof and not self.empty)

    @staticmethod
    def _together(parts: Sequence[SearchedPart], found: Sequence[Found]) -> Found:
        """Return how the searches of all parts ended, the last of which may have been the first not to close."""
        last = found[-1]
        share = sum(each.share for each in found) / len(parts)
        boxes = sum(each.boxes for each in found)
        trees = [_numbered(part, each.tree) for part, each in zip(parts, found, strict=False) if each.tree is not None]
        if len(trees) < len(parts):
            return replace(last, share=share, boxes=boxes, tree=None)
        tree = tuple(np.concatenate(each) for each in zip(*trees, strict=True))
        return replace(last, share=share, boxes=boxes, tree=(tree[0], tree[1]))

    def _region(self) -> tuple[Tensor, Tensor]:
        """Return the ends of the smallest box around all boxes."""
        boxes = [case.box.outer for case in self.deadline.each(self.property.cases)]
        low, high = (torch.from_numpy(np.stack([box[end] for box in boxes])) for end in (0, 1))
        return low.amin(0), high.amax(0)

    def _read_for(self, low: Tensor, high: Tensor) -> Graph:
        """Return the network for a region; for most networks it is the same everywhere."""
        if not self.network.graph.regional:
            return self.graph
        return self._searched(self.network.read_for(low.cpu(), high.cpu(), self.deadline)).to(self.graph.device)

    def _searched(self, graph: Graph) -> Graph:
        """Return what is searched in place of a graph: up to its scores, where these tell what outputs are unsafe."""
        return graph.scores if self.compares and graph.scores is not None else graph

    def _confirming(self, part: SearchedPart) -> Confirm:
        """Return what confirms points of a part."""
        return lambda points, jobs: self.confirm(part.whole(points), part.index[jobs])

    def _jobs(self) -> Jobs:
        """Return what is to be proved, without unsafe sets that contain nothing."""
        jobs, known = Jobs.of(self.property, self.graph.device, self.deadline), dict[int, Flat | None]()

        def recognise(deadline: Deadline) -> None:
            for _, conjunction in self.work:
                deadline.check()
                if id(conjunction) not in known and len(known) < FLAT:
                    known[id(conjunction)] = flat(conjunction)

        self._for_a_while(RECOGNISING, recognise)
        found = [known.get(id(conjunction)) for _, conjunction in self.work]
        kept = [t for t, each in enumerate(found) if each is None or not each.empty]
        self.empty = len(found) - len(kept)
        self.work = [self.work[t] for t in kept]
        self.flat = {new: each for new, t in enumerate(kept) if (each := found[t]) is not None}
        if self.empty:
            jobs = jobs[torch.tensor(kept, dtype=torch.long, device=jobs.lower.device)]
        if self.flat:
            jobs.flat = torch.zeros(len(jobs), dtype=torch.bool, device=jobs.lower.device)
            jobs.flat[list(self.flat)] = True
        return jobs

    def _for_a_while(self, share: float, work: Callable[[Deadline], object]) -> None:
        """Do some work for a share of the time that is left, at most."""
        try:
            work(self.deadline.share(share))
        except OutOfTime:
            self.deadline.check()

    # Counterexamples -------------------------------------------------------------------------------------------------

    def confirm(self, points: Tensor, jobs: Tensor) -> bool:
        """Keep the first point that all evaluations find to be a counterexample, else one that exact arithmetic does.

        Returns:
            Whether that is enough: a better one may follow until the first attack is over.
        """
        points, each = points.cpu(), jobs.tolist()
        for point, job in zip(points, each, strict=True):
            self.deadline.check()
            if self._try(self.replay.in_box(point, self.work[job][0].box), job):
                return True
        for point, job in list(zip(points, each, strict=True))[:ALONE]:
            if self.counterexample is None and self.spent < ALONE_WORK:
                self.spent += self.graph.work
                self._try(self.replay.in_box(point, self.work[job][0].box, own=False), job, alone=True)
        self.refused += len(points) if self.counterexample is None else 0
        return self.settled and self.counterexample is not None

    def _try(self, point: Exact, job: int, alone: bool = False) -> bool:
        """Keep a point of a job's box if it is a counterexample; see `Replay`."""
        found = self.replay(point, self.work[job][1], alone)
        if found is not None:
            self.counterexample, self.remark = found, ""
            if job in self.flat:
                self.remark = f"the outputs meet an unsafe set without interior: {self._equation(job)}. {TIED}"
        return found is not None

    def _equation(self, job: int) -> str:
        """Return in words what holds in an unsafe set without interior."""
        return equation(self.work[job][1][self.flat[job].equal[0]])

    def _meet(self, jobs: Jobs, generator: torch.Generator, deadline: Deadline) -> None:
        """Look for points whose outputs meet unsafe sets without interior."""
        for job in list(self.flat)[:TIES] if can_be_exact(self.graph) else []:
            case, conjunction = self.work[job]
            row = conjunction[self.flat[job].equal[0]]
            for pair in sides(self.graph, jobs[job : job + 1], self.flat[job].equal, generator, deadline):
                p, q = (self.replay.in_box(end.cpu(), case.box) for end in pair)
                with suppress(TooLong):
                    x = between(self.graph, p, q, row, deadline)
                    if x is not None and self._try(x, job, alone=True):
                        return

    # What to say -----------------------------------------------------------------------------------------------------

    def why_open(self, found: Found) -> list[str]:
        """Return why a search ended without a verdict, besides the limits that it reached."""
        said = []
        if found.stuck:
            parts = counted(
                found.stuck, "part that cannot be split further has", "parts that cannot be split further have"
            )
            said.append(f"{parts} bounds that touch the unsafe set")
        if self.refused:
            said.append(f"{counted(self.refused, 'point')} that seemed to violate the property failed replay")
        if self.flat:
            row = self._equation(next(iter(self.flat)))
            sets = counted(len(self.flat), "unsafe set has", "unsafe sets have")
            said.append(f"{sets} no interior, as {row}, which no splitting decides. {TIED}")
        return said

    def certificate(self, found: Found) -> tuple[PropertyCertificate | None, str]:
        """Return the proof that the search found, or why there is none for the independent checker."""
        if self.empty:
            sets = counted(self.empty, "unsafe set is", "unsafe sets are")
            return None, f"no certificate: {sets} empty, which the independent checker cannot see"
        if found.tree is None:
            return (
                None,
                "no certificate: the proof splits ReLUs, and the independent checker reads splits of inputs only",
            )
        dim, cut = found.tree
        graph = self.replay.graph
        unread = sorted({each.name for each in graph.activations if not each.has_certificates})
        if unread:
            return None, f"no certificate: the independent checker does not know {', '.join(unread)}{_jumps(graph)}"
        if any(n.affine is not None and not _is_certified(n.affine) for n in graph.nodes[1:]):
            return None, "no certificate: the independent checker does not know a map that the network has"
        if self.graph.inputs > np.iinfo(dim.dtype).max:
            return None, f"no certificate: its format numbers at most {np.iinfo(dim.dtype).max} inputs"
        if self.property_sha256 is None:
            try:
                text = vnnlib.dumps(self.property, self.deadline)
            except InvalidInput as error:
                return None, f"no certificate: {error}"
            except OutOfTime:
                return None, "no certificate: too little time was left to write down the property"
            self.property_sha256 = hashlib.sha256(text.encode()).hexdigest()
        versions = {name: _version(name) for name in ("torch", "numpy")} | {"python": platform.python_version()}
        network = None if self.path is None else sha256(self.path)
        return PropertyCertificate(len(self.work), dim, cut, network, self.property_sha256, versions), ""


def _numbered(part: SearchedPart, tree: Tree) -> Tree:
    """Return a part's tree with the numbers that its inputs have in the whole network."""
    dim, cut = tree
    free = part.free.cpu().numpy()
    return np.where(dim < 0, -1, free[np.maximum(dim, 0)]).astype(dim.dtype), cut


def _jumps(graph: Graph) -> str:
    """Say where a run may differ much from the function that a verdict is about."""
    found = sorted({each.name for each in graph.activations if each.jumps})
    many = f"; a run whose rounding crosses a jump ({', '.join(found)}) computes another function there"
    return many if found else ""


def _compares(row: Halfspace) -> bool:
    """Tell whether a row only says which of two outputs is larger."""
    given = [c for c in row.coefficients if c]
    return row.bound == 0 and len(given) == 2 and sum(given) == 0


def _is_certified(affine: Affine) -> bool:
    """Tell whether the independent checker may know a map: all its numbers are the file's, 1, -1 or 1 / 2^n."""
    if isinstance(affine, Diagonal):
        return bool((affine.factor.abs() == 1).all())
    if isinstance(affine, Convolution):
        return int(affine.settings["groups"]) == 1
    return isinstance(affine, Dense) or (isinstance(affine, Pick | Place | Rowwise | Sparse) and not affine.inexact)


@cache
def _version(package: str) -> str:
    """Return a package's version, which takes milliseconds to find."""
    return version(package)


def _device(name: Any) -> torch.device:
    """Return a device that is there."""
    try:
        device = torch.device(name or "cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(f"The device {str(name)!r} cannot be used ({reason}); device=None is the CPU.") from error
    return device
