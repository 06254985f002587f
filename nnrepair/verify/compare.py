"""compare(): what did not change between two networks, bounded over a region's volume."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnrepair.deadline import Deadline, OutOfTime, required_seconds
from nnrepair.errors import InvalidInput
from nnrepair.fingerprint import digest_of_state, fingerprint
from nnrepair.progress import progress_bar
from nnrepair.rounding import counted, percent_at_least
from nnrepair.verify.certificate import sha256
from nnrepair.verify.comparing.bounds import Comparing
from nnrepair.verify.comparing.certificate import GRID, LEAST_OUTPUTS, MOST_OUTPUTS, ComparisonCertificate
from nnrepair.verify.comparing.decision import Decision, Rows, rows_of
from nnrepair.verify.comparing.evidence import Moment, Subject, Witness
from nnrepair.verify.comparing.pair import Pair, paired
from nnrepair.verify.comparing.regions import Region, free, pieces, volume
from nnrepair.verify.comparing.result import Comparison
from nnrepair.verify.comparing.search import Search
from nnrepair.verify.comparing.tree import Tree
from nnrepair.verify.comparing.witnesses import Witnesses
from nnrepair.verify.network import Network
from nnrepair.verify.property import Box, Case, Property
from nnrepair.verify.reading.affine import Dense
from nnrepair.verify.threads import one_thread

Model = nn.Module | str | Path
#: Seconds that the exact sums at the end take for each part, at most.
SUMMING = 2e-5
#: A claim of a certificate gives up so much of what was found, or of what is open, as its checker bounds parts a little
#: differently.
SPARE = 0.02
#: The history is written whenever the number of boxes has grown by this factor.
OFTEN = 1.25
#: Splits of more inputs than this are in vain.
MOST_INPUTS = 1000


def compare(
    before: Model,
    after: Model,
    region: Region,
    *,
    decision: Decision = "argmax",
    outside: Region = (),
    timeout: float | None = None,
    until: float = 1e-6,
    identical: bool = True,
    witnesses: int = 10,
    certificate: bool = True,
    progress: bool = False,
    resume: Comparison | None = None,
) -> Comparison:
    """Bound on how much of a region two networks return the same, decide the same, and decide differently.

    The region is split into boxes. On each box linear bounds of both networks, with what they share bounded once, say
    where a decision may change: between two parallel planes, whose share of the box is known exactly. What is unknown
    is split further, until time is over. Every number returned is a sound bound for the real-valued functions of the
    stored weights, in float64 with all rounding accounted for, and is proved once `nnrepair certify` accepts the
    certificate; more time only says more.

    Args:
        before, after: modules, taken in eval mode and left untouched, or ONNX files.
        region: a `Box`, a list of boxes, or a `Property` or VNN-LIB file, whose boxes are meant. Inputs that it fixes
            are fixed; the volume is that of the others (a plane of two inputs: an area).
        decision: what to compare: "argmax" or "argmin", the output that wins (the first of equal ones), or a criterion
            about one point whose truth is the decision (`nnrepair.Threshold`, for example).
        outside: leave out what lies in these boxes, likewise.
        timeout: in seconds, of everything from this call on.
        until: end once at most this share of the region is unknown: of decisions, and with `identical`, of outputs.
        identical: split for identical outputs too, not for decisions alone.
        witnesses: how many inputs with another decision to return, at most.
        certificate: whether to keep the proof.
        progress: show a line on stderr.
        resume: go on from an earlier comparison of the same networks, region and decision.

    Raises:
        InvalidInput: networks, region and decision do not fit each other.
        UnsupportedModel: a network has operations that the checker cannot read.

    >>> from nnrepair.verify import Box, compare
    >>> before = torch.nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = before.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> after = torch.nn.Linear(2, 2, bias=False)
    >>> with torch.no_grad():
    ...     _ = after.weight.copy_(torch.tensor([[1.25, 0.0], [0.0, 1.0]]))
    >>> square = Box([0, 0], [1, 1])  # decided by y > x before, and by y > 1.25 x after
    >>> found = compare(before, after, square, until=1e-7)
    >>> round(float(found.same), 6), round(float(found.changed), 6)
    (0.9, 0.1)
    """
    started, cpu = time.monotonic(), time.process_time()
    required_seconds(timeout)
    if isinstance(until, bool) or not isinstance(until, int | float | Fraction | np.floating) or not 0 <= until < 1:
        raise InvalidInput(f"until must be a share of the region from 0 to less than 1, got {until!r:.80}.")
    if isinstance(witnesses, bool) or not isinstance(witnesses, int | np.integer) or witnesses < 0:
        raise InvalidInput(f"witnesses must be a whole number, at least 0, got {witnesses!r:.80}.")
    if resume is not None and not isinstance(resume, Comparison):
        raise InvalidInput(f"resume must be an earlier Comparison of the same networks, got {type(resume).__name__}.")
    asked = Asked(decision, until, identical, witnesses, certificate)
    with progress_bar("compare", progress, counts=False) as say:
        found = compared(before, after, pieces(region, outside), asked, Deadline(timeout, say), resume)
    return replace(found, cpu_seconds=time.process_time() - cpu, wall_seconds=time.monotonic() - started)


@dataclass(frozen=True)
class Asked:
    """What `compare` was asked for; see there."""

    decision: Decision
    until: float = 1e-6
    identical: bool = True
    witnesses: int = 10
    certificate: bool = True


@dataclass(frozen=True)
class State:
    """What a comparison goes on from: its trees, and the hash of what they are about."""

    trees: list[Tree]
    about: str
    witnesses: tuple[Witness, ...]
    history: tuple[Moment, ...]


def compared(
    before: Model, after: Model, boxes: list[Box], asked: Asked, deadline: Deadline, resume: Comparison | None = None
) -> Comparison:
    """Compare over boxes that share no inside, until a deadline, which may count other seconds than the clock's."""
    whole, nothing = sum((volume(box) for box in boxes), Fraction(0)), Fraction(0)
    # What is infinite or NaN proves nothing: no warning is needed.
    with torch.no_grad(), one_thread(torch.device("cpu")), np.errstate(over="ignore", invalid="ignore"):
        try:
            problem = _Problem(before, after, boxes, asked, deadline)
        except OutOfTime:
            reason = f"the time limit was reached while {deadline.doing}"
            if resume is not None:  # whether it is about these networks is not known
                reason += "; what resume= found is not counted, and still there to go on from"
            return Comparison(nothing, nothing, nothing, whole, reason=reason, earlier=resume)
        return problem.solve(whole, resume)


class _Problem:
    """Two networks, the boxes to compare them on, and what is asked."""

    def __init__(self, before: Model, after: Model, boxes: list[Box], asked: Asked, deadline: Deadline) -> None:
        self.boxes, self.asked, self.deadline, self.free = boxes, asked, deadline, free(boxes[0])
        deadline.check("reading the networks")
        shape = boxes[0].shape
        self.networks = Network.of(before, shape, deadline), Network.of(after, shape, deadline)
        graphs = [network.graph for network in self.networks]
        self.pair: Pair = paired(*graphs)
        if graphs[0].inputs != len(boxes[0]):
            raise InvalidInput(f"The region has {len(boxes[0])} inputs, but the networks read {graphs[0].inputs}.")
        if graphs[0].inputs > MOST_INPUTS:
            raise InvalidInput(f"{graphs[0].inputs} inputs are too many to split; at most {MOST_INPUTS} are compared.")
        self.rows: Rows = rows_of(asked.decision, graphs[0].outputs)
        (one, first), (other, second) = map(_named, (before, after))
        self.subject = Subject(one, other, (first, second), tuple(boxes), asked.decision)
        about = Property([Case(box, ()) for box in boxes], graphs[0].outputs)
        for network in self.networks:
            deadline.check("comparing what was read with the networks")
            network.compare(about, network.replay(deadline), deadline)
        self.witnesses = Witnesses(self.networks, self.rows, asked.witnesses, deadline)

    @property
    def about(self) -> str:
        """What identifies networks, boxes and decision, with all their numbers."""
        boxes = [[*map(str, (*box.lower, *box.upper))] for box in self.boxes]
        return digest_of_state({"boxes": boxes, "rows": vars(self.rows), "networks": self.pair.told()})

    def solve(self, whole: Fraction, resume: Comparison | None) -> Comparison:
        """Search until the deadline, and sum up."""
        about, cpu = self.about, time.process_time()
        state = State([Tree.root(box, self.free) for box in self.boxes], about, (), ())
        while resume is not None and resume.state is None and resume.subject is None:  # it ended before it began
            resume = resume.earlier
        if resume is not None:
            if resume.state is None:
                raise InvalidInput("resume= does not know its parts any more: it was stored. Compare anew.")
            if not isinstance(resume.state, State) or resume.state.about != about:
                raise InvalidInput("resume= is a comparison of other networks, another region or another decision.")
            state = State([tree.copy() for tree in resume.state.trees], about, resume.witnesses, resume.history)
        self.witnesses.found += state.witnesses
        past = state.history[-1] if state.history else Moment(0.0, 0, 0.0, 0.0, 0.0)
        history, shares = list(state.history), [float(volume(box) / whole) for box in self.boxes]
        searches = list[Search]()

        def now() -> float:
            """Add to the history; return what is open, of decisions and of outputs."""
            spent = past.cpu_seconds + time.process_time() - cpu
            boxes = past.boxes + sum(search.boxes for search in searches)
            maybe, sure, differs, moves = (np.array(shares) @ [tree.totals() for tree in state.trees]).tolist()
            history.append(Moment(spent, boxes, max(0.0, 1 - differs), max(0.0, 1 - maybe), sure))
            self.deadline.doing = (
                f"{percent_at_least(max(0.0, 1 - maybe), 1)} decided the same, {counted(boxes, 'box', 'boxes')}"
            )
            return float(max(maybe - sure, differs - moves if searches and searches[0].identical else 0.0))

        reason = ""
        try:
            for box, tree in zip(self.boxes, state.trees, strict=True):
                searches.append(self._search(box, tree))
            self._loop(searches, shares, now)
        except OutOfTime:
            reason = "the time limit was reached"
        now()
        return self._summed(state, whole, history, reason)

    def _search(self, box: Box, tree: Tree) -> Search:
        lower, upper = map(torch.from_numpy, box.outer)
        comparing = Comparing(self.pair, self.rows, lower, upper, self.free, self.deadline)
        return Search(
            comparing,
            tree,
            lambda points: self.witnesses.confirm(points, box),
            self.asked.identical,
            self.deadline,
        )

    def _loop(self, searches: list[Search], shares: list[float], now: Callable[[], float]) -> None:
        """Split what is most unknown, anywhere, until little is, or the rest of the time is needed to sum up."""
        following = 64.0
        while True:
            worst = max(range(len(searches)), key=lambda k: searches[k].unknown * shares[k])
            if not searches[worst].heap:
                return
            if self.deadline.left() < SUMMING * sum(search.tree.size for search in searches):
                raise OutOfTime
            searches[worst].step()
            if (boxes := sum(search.boxes for search in searches)) >= following:
                following = OFTEN * boxes
                if now() <= self.asked.until:
                    return

    def _summed(self, state: State, whole: Fraction, history: list[Moment], reason: str) -> Comparison:
        """Sum up in exact arithmetic, and keep the proof."""
        maybe, sure, differs, flags = Fraction(0), Fraction(0), Fraction(0), []
        for box, tree in zip(self.boxes, state.trees, strict=True):
            found, taken = tree.exact()
            beyond = volume(tree.box(0), self.free) - volume(box)  # the box of floats is a little larger
            maybe, differs = maybe + found[0], differs + found[2]
            sure += max(Fraction(0), found[1] - beyond)
            flags.append(taken)
        same, changed, identical = (
            max(1 - maybe / whole, Fraction(0)),
            sure / whole,
            max(1 - differs / whole, Fraction(0)),
        )
        proof, why = self._certificate(state, flags, identical, same, changed) if self.asked.certificate else (None, "")
        return Comparison(
            identical,
            same,
            changed,
            whole,
            tuple(self.witnesses.found),
            history[-1].boxes,
            history=tuple(history),
            certificate=proof,
            reason="; ".join(filter(None, (reason, why))),
            subject=self.subject,
            state=State(state.trees, state.about, tuple(self.witnesses.found), tuple(history)),
        )

    def _certificate(
        self, state: State, flags: list[NDArray[np.uint8]], identical: Fraction, same: Fraction, changed: Fraction
    ) -> tuple[ComparisonCertificate | None, str]:
        """Return the proof, or why there is none that the independent checker reads."""
        graph, moved = self.pair.graph, self.pair.moved
        chain = all(
            isinstance(n.affine, Dense) or (n.affine is None and n.activation is not None) for n in graph.nodes[1:]
        )
        many = LEAST_OUTPUTS <= self.pair.outputs <= MOST_OUTPUTS
        if moved is None or not chain or not isinstance(self.asked.decision, str) or not self.free.all() or not many:
            return None, (
                "no certificate: the independent checker compares fully connected networks that differ in their last "
                f"layer and have {LEAST_OUTPUTS} to {MOST_OUTPUTS} outputs, by argmin or argmax, over boxes that fix "
                "no input"
            )
        parts = [tree.preorder(taken) for tree, taken in zip(state.trees, flags, strict=True)]
        dim, cut, taken = (np.concatenate(column) for column in zip(*parts, strict=True))

        def less(share: Fraction) -> int:
            return max(0, int((share - SPARE * min(share, 1 - share)) * GRID) - 1)

        claims = less(identical), less(same), max(0, int(changed * Fraction(1 - SPARE) * GRID) - 1)
        hashes = [None if network.path is None else sha256(network.path) for network in self.networks]
        versions = {name: _version(name) for name in ("torch", "numpy")} | {"python": platform.python_version()}
        return (
            ComparisonCertificate(
                self.asked.decision, tuple(self.boxes), *claims, dim, cut, taken, hashes[0], hashes[1], versions
            ),
            "",
        )


def _named(model: Model) -> tuple[str, str]:
    """Return what a network is called, and its hash."""
    if isinstance(model, nn.Module):
        return type(model).__name__, fingerprint(model)
    return Path(model).name, sha256(model)


@cache
def _version(package: str) -> str:
    return version(package)
