"""Which layer to repair: all are tried on a part of what is asked, and the best on all of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf

import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.jacobian import layers
from nnrepair.methods.minimal_norm.attempt import Attempt, Settings, attempted
from nnrepair.methods.minimal_norm.demands import Demand, demands_of, held_out_points
from nnrepair.methods.minimal_norm.hidden import GIVEN_UP
from nnrepair.rounding import counted, percent
from nnrepair.spec.network import plain
from nnrepair.spec.problem import Problem

#: At most this many layers are tried, evenly spread from input to output.
MOST_LAYERS = 8
#: How many edits and points to keep tell layers apart. Where there are more, evenly spread ones do.
EDITS, KEPT = 12, 1000
#: Seconds of work after which no further layers are tried once one was repaired, where there is no limit.
TRYING = 20.0
#: A layer gets one of so many shares of what is left of the first half of the time, where there is a limit.
SHARES = 3
#: Rounds after which layers are compared for the first time: the most promising go on first.
ROUNDS = 1
#: How many of the layers, best first, are tried on all that is asked when the one before did not do.
SETTLED = 3


@dataclass
class Pilots:
    """Repairs of a part of the problem, layer by layer, which tell how good layers are.

    Attributes:
        part, settings, deadline: what to repair, how, and until when; half of a limit is for the layer that is chosen.
        count: how many layers there are.
        scores, told: of every layer that was judged, by name.
    """

    part: Problem
    settings: Settings
    deadline: Deadline
    count: int
    scores: dict[str, list[float]] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._held_out = held_out_points(self.part)
        self._demands = demands_of(self.part, self.settings.margin, self.settings.locality, without=self._held_out)
        self._found: list[tuple[tuple[float, float, float], str, Attempt]] = []
        self._reasons: list[str] = []
        self._limited = self.deadline.left() < inf
        self._trying = self.deadline.part(2, "")
        if not self._limited:
            self._trying = Deadline(TRYING, self.deadline.say, time.thread_time)

    @property
    def best(self) -> tuple[float, float, float]:
        """The best layer's score."""
        return min((score for score, _, _ in self._found), default=(inf, inf, inf))

    @property
    def bound(self) -> float:
        """How far outputs may move: beyond, no layer can be better than the best so far; see `HiddenRepair`."""
        comparable = (len(self._demands) > 1 or self.part.locality is None) and self.part.edits.neighbours is None
        return self.best[2] if self.best[:2] == (0.0, 0.0) and comparable else inf

    @property
    def passed(self) -> bool:
        """Whether there is no time for further layers."""
        return bool(self._found) and self._trying.passed and (self.best[0] == 0 or self._limited)

    def tried(self, layer: str, rounds: int) -> Attempt | None:
        """Return a layer's repair within so many rounds, or None where it is not possible or there is no time."""
        name = plain(layer)
        if self.passed:
            self.told[name] = f"{name}: no time left"
            return None
        until = self._trying if self._limited or self.best[0] == 0 else self.deadline
        share = until.part(SHARES, f"{len(self.told)} of {self.count} layers judged, {name}: ")
        settings = self.settings if self.settings.own else replace(self.settings, max_steps=rounds)
        try:
            chosen = layers.choose(self.part.model, layers.trainable(self.part.model, layer))
            return attempted(self.part, settings, chosen, self._demands, share, bound=self.bound)
        except (InvalidInput, UnsupportedModel) as reason:
            self.told[name] = f"{name}: not possible ({reason})"
            self._reasons.append(f"{name}: {reason}")
            return None

    def judged(self, layer: str, attempt: Attempt, last: bool = False) -> bool:
        """Judge a layer by its repair, or return False where more rounds may make it another."""
        descent = attempt.change is not None and attempt.figures is None
        rounds = len(attempt.steps)
        if descent and not last and not attempt.optimality and 0 < rounds <= ROUNDS and GIVEN_UP not in attempt.notes:
            return False
        name, score = plain(layer), attempt.score(self.part, self._held_out)
        self._found.append((score, name, attempt))
        self.scores[name] = list(score)
        self.told[name] = _said(name, attempt, score, self._held_out)
        return True

    def ranked(self, names: list[str]) -> list[tuple[str, Attempt]]:
        """Return the layers that were judged and their repairs, the best first.

        Raises:
            InvalidInput: none could be.
        """
        if not self._found:
            others = f" Nor can {', '.join(map(plain, names[:-1]))}." if len(names) > 1 else ""
            raise InvalidInput(f"No layer can be repaired. {self._reasons[0]}{others}")

        def rank(item: tuple[tuple[float, float, float], str, Attempt]) -> tuple[float, float, float]:
            (failing, lost, moved), _, attempt = item
            # A point to keep that is lost counts as much as a neighbour that is missed, each as a share of all.
            return failing, lost + attempt.missed(self.part), moved

        return [(name, attempt) for _, name, attempt in sorted(self._found, key=rank)]


@dataclass
class LayerSearch:
    """The search for the layer whose repair satisfies all edits, loses least and misses fewest of their neighbours.

    Attributes:
        problem, settings, deadline: what to repair, how, and until when.
        scores: of every layer that was tried: edits that fail, share of held-out points lost, mean change of outputs.
    """

    problem: Problem
    settings: Settings
    deadline: Deadline
    scores: dict[str, list[float]] = field(default_factory=dict)
    _tried: list[str] = field(default_factory=list)
    _chosen: str = ""

    @property
    def told(self) -> str:
        """Which layer was chosen, and what came of the others."""
        return f"layer: {self._chosen} was chosen. Tried: " + "; ".join(self._tried) + "."

    def run(self) -> Attempt:
        """Return the repair of the best layer, or the one in which most edits hold where none does what is asked.

        Raises:
            InvalidInput: no layer can be repaired.
        """
        part = _part(self.problem)
        ranked = self._ranked(part)
        whole = part is self.problem
        full = demands_of(self.problem, self.settings.margin, self.settings.locality)
        hopes = list[tuple[str, Attempt]]()
        for name, pilot in ranked[:SETTLED]:
            for found in self._settled(name, pilot, full, whole):
                if found.infeasible is None and not any(d.broken(found.model) for d in full if not d.soft):
                    self._chosen = name
                    return found
                hopes.append((name, found))
            if self.deadline.passed:
                break
        if not hopes:  # no part can be repaired: all of it says why
            self._chosen, pilot = ranked[0]
            return pilot if whole else attempted(self.problem, self.settings, pilot.names, full, self.deadline)
        hopes += ranked[:1]
        self._chosen, best = min(hopes, key=lambda hope: hope[1].score(self.problem, None)[0])
        return best

    def _ranked(self, part: Problem) -> list[tuple[str, Attempt]]:
        """Return the layers and their repairs of a part of the problem, the best first."""
        names = layers.candidates(part.model)
        if not names:
            raise InvalidInput(
                "No trainable layer with a weight matrix was found; name one with MinimalNorm(layer=...)."
            )
        if len(names) > MOST_LAYERS:
            names = [names[round(k * (len(names) - 1) / (MOST_LAYERS - 1))] for k in range(MOST_LAYERS)]
        pilots = Pilots(part, self.settings, self.deadline, len(names))
        glances = list[tuple[float, str, Attempt]]()
        for layer in reversed(names):  # the last layer is the quickest: a first answer
            glance = pilots.tried(layer, ROUNDS)
            if glance is not None and not pilots.judged(layer, glance):
                glances.append((glance.steps[-1]["moved"] if glance.steps else inf, layer, glance))
        for moved, layer, glance in sorted(glances, key=lambda item: item[0]):
            if moved > pilots.bound:
                glance.notes.append(GIVEN_UP)
            elif not pilots.passed:
                glance = pilots.tried(layer, self.settings.max_steps) or glance
            pilots.judged(layer, glance, last=True)
        self.scores, self._tried = pilots.scores, [pilots.told[plain(layer)] for layer in reversed(names)]
        return pilots.ranked(names)

    def _settled(self, name: str, pilot: Attempt, full: list[Demand], whole: bool) -> Iterator[Attempt]:
        """Yield a layer's repairs for which all points are constraints, while there is time.

        Args:
            name, pilot: the layer, and its repair of a part of the problem.
            full: all that is asked.
            whole: whether only held-out points were left out of that part.
        """
        if pilot.infeasible is not None:
            return
        if whole and not any(d.broken(pilot.model) for d in full if d.name != "neighbours"):
            yield pilot
        for start in (pilot, None) if whole else (None,):
            if not self.deadline.passed:
                self.deadline.doing = f"{name}, all points"
                yield attempted(self.problem, self.settings, pilot.names, full, self.deadline, start)


def _said(name: str, attempt: Attempt, score: tuple[float, float, float], held_out: Tensor | None) -> str:
    if attempt.infeasible is not None:
        return f"{name}: {'infeasible' if attempt.limit is None else 'not solved'}"
    if any(note.startswith("out of time") for note in attempt.notes):
        return f"{name}: out of time"
    if GIVEN_UP in attempt.notes:
        return f"{name}: given up, outputs to keep moved further than by the best so far"
    lost = f"{percent(score[1])} of held-out points to keep are lost, " if held_out is not None else ""
    return f"{name}: {counted(round(score[0]), 'edit fails', 'edits fail')}, {lost}mean output change {score[2]:.3g}"


def _part(problem: Problem) -> Problem:
    """Return a smaller problem that tells layers apart, or the problem where it is small."""
    few = _spread(len(problem.edits), EDITS)
    part = problem if few is None else replace(problem, edits=problem.edits[few])
    kept = None if problem.locality is None else _spread(len(problem.locality), KEPT)
    if kept is None or problem.locality is None:
        return part
    return replace(part, locality=problem.locality[kept])


def _spread(count: int, most: int) -> Tensor | None:
    """Return the indices of `most` of so many things, evenly spread; None where these are all."""
    return None if count <= most else torch.linspace(0, count - 1, most).long()
