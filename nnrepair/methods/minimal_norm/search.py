"""Which layer to repair: all are tried on a part of what is asked, and the best on all of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.jacobian import layers
from nnrepair.methods.minimal_norm.attempt import Attempt, Settings, attempted
from nnrepair.methods.minimal_norm.demands import Demand, demands_of, held_out_points
from nnrepair.rounding import percent
from nnrepair.spec.network import plain
from nnrepair.spec.problem import Problem

#: At most this many layers are tried, evenly spread from input to output.
MOST_LAYERS = 8
#: How many edits and points to keep tell layers apart. Where there are more, evenly spread ones do.
EDITS, KEPT = 12, 1000
#: A layer gets one of so many shares of what is left of the first half of the time, where there is a limit.
SHARES = 3
#: How many of the layers, best first, are tried on all that is asked when the one before did not do.
SETTLED = 3


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
        """Return the repair of the best layer.

        Raises:
            InvalidInput: no layer can be repaired.
        """
        part = _part(self.problem)
        ranked = self._ranked(part)
        full = demands_of(self.problem, self.settings.margin, self.settings.locality)
        for name, pilot in ranked[:SETTLED]:
            found = self._settled(name, pilot, full, part is self.problem)
            if found is not None:
                self._chosen = name
                return found
        self._chosen, best = ranked[0]
        if part is self.problem:
            return best
        return attempted(self.problem, self.settings, best.names, full, self.deadline)

    def _ranked(self, part: Problem) -> list[tuple[str, Attempt]]:
        """Return the layers and their repairs of a part of the problem, the best first."""
        names = layers.candidates(part.model)
        if not names:
            raise InvalidInput(
                "No trainable layer with a weight matrix was found; name one with MinimalNorm(layer=...)."
            )
        if len(names) > MOST_LAYERS:
            names = [names[round(k * (len(names) - 1) / (MOST_LAYERS - 1))] for k in range(MOST_LAYERS)]
        held_out = held_out_points(part)
        demands = demands_of(part, self.settings.margin, self.settings.locality, without=held_out)
        found: list[tuple[tuple[float, float, float], str, Attempt]] = []
        reasons = list[str]()
        half = self.deadline.part(2, "")  # the other half is for the layer that is chosen
        for count, layer in enumerate(reversed(names), start=1):  # the last layer is the quickest: a first answer
            name = plain(layer)
            if found and half.passed:
                self._tried.append(f"{name}: no time left")
                continue
            share = half.part(SHARES, f"layer {count} of {len(names)}, {name}: ")
            try:
                chosen = layers.choose(part.model, layers.trainable(part.model, layer))
                attempt = attempted(part, self.settings, chosen, demands, share)
            except (InvalidInput, UnsupportedModel) as reason:
                self._tried.append(f"{name}: not possible ({reason})")
                reasons.append(f"{name}: {reason}")
                continue
            score = attempt.score(part, held_out)
            found.append((score, name, attempt))
            self.scores[name] = list(score)
            self._tried.append(_said(name, attempt, score, held_out))
        if not found:
            others = f" Nor can {', '.join(map(plain, names[:-1]))}." if len(names) > 1 else ""
            raise InvalidInput(f"No layer can be repaired. {reasons[0]}{others}")
        # A point to keep that is lost counts as much as a neighbour that is missed, each as a share of all.
        found.sort(key=lambda item: (item[0][0], item[0][1] + item[2].missed(part), item[0][2]))
        return [(name, attempt) for _, name, attempt in found]

    def _settled(self, name: str, pilot: Attempt, full: list[Demand], whole: bool) -> Attempt | None:
        """Return a layer's repair for which all points are constraints, or None where there is none.

        Args:
            name, pilot: the layer, and its repair of a part of the problem.
            full: all that is asked.
            whole: whether only held-out points were left out of that part.
        """
        if pilot.infeasible is not None:
            return None
        if whole and not any(d.broken(pilot.model) for d in full if d.name != "neighbours"):
            return pilot
        for start in (pilot, None) if whole else (None,):
            self.deadline.doing = f"{name}, all points"
            found = attempted(self.problem, self.settings, pilot.names, full, self.deadline, start)
            if found.infeasible is None and not any(d.broken(found.model) for d in full if not d.soft):
                return found
        return None


def _said(name: str, attempt: Attempt, score: tuple[float, float, float], held_out: Tensor | None) -> str:
    if attempt.infeasible is not None:
        return f"{name}: {'infeasible' if attempt.limit is None else 'not solved'}"
    if any(note.startswith("out of time") for note in attempt.notes):
        return f"{name}: out of time"
    lost = f"{percent(score[1])} of held-out points to keep are lost, " if held_out is not None else ""
    return f"{name}: {score[0]:.0f} edits fail, {lost}mean output change {score[2]:.3g}"


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
