"""What a domain hands to methods, benchmarks and training: a `Task`, and episodes for editors that are trained first.

A domain is a function `task(model, seed, edits) -> Task`; the same arguments give the same task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.methods.episodes import AnyEdits, Episode
from nnrepair.spec.criteria import flat
from nnrepair.spec.edits import Edits, EditScope, LocalitySet
from nnrepair.spec.inputs import AnyInputs
from nnrepair.spec.problem import fitted
from nnrepair.spec.running import outputs

#: At most so many edits, and so many points to keep, in one episode.
EDITS, LOCALITY = 10, 100


@dataclass(frozen=True)
class EpisodeSampler:
    """Episodes without end: iterate over them, or take the k-th, which is the same whichever were taken before.

    >>> x = torch.arange(6.0)[:, None]
    >>> edits, near = Edits(x[:2], [1, 1]), EditScope(x[2:4], [1, 1], of=[0, 1])
    >>> everything = Episode(edits, LocalitySet(x[4:], [0, 0]), near)
    >>> episodes = EpisodeSampler(lambda: everything, seed=0)
    >>> bool((episodes[7].edits.inputs == episodes[7].edits.inputs).all()), len(episodes[7].locality_set)
    (True, 2)

    Args:
        all: returns everything that episodes are drawn from; called when one is taken.
        seed: of the drawing; the global random state is not used.
        edits, locality: at most so many edits, and points to keep, in each.
    """

    all: Callable[[], Episode]
    seed: int
    edits: int = EDITS
    locality: int = LOCALITY

    def __getitem__(self, k: int) -> Episode:
        if k < 0:
            raise IndexError(f"Episodes have no end to count from; {k} was asked for.")
        (mixed,) = np.random.SeedSequence([self.seed, k]).generate_state(1, np.uint64)
        return self.all().part(torch.Generator().manual_seed(int(mixed >> np.uint64(1))), self.edits, self.locality)

    def __iter__(self) -> Iterator[Episode]:
        return map(self.__getitem__, count())


@dataclass(frozen=True)
class Task:
    """What a method is asked for in one domain.

    Attributes:
        model: the network.
        edits: mistakes that it really makes, with their true labels.
        locality_set: labelled points that every method may use.
        test_set: name -> (inputs, labels), labelled points that no method sees; the first is the one in tables.
        edit_scope: neighbours of each edit, with `of`; measured only.
        training: returns all that the network's training data offers to editors that are trained first: its mistakes
            there with their true labels, neighbours of these, with `of`, and labelled points that it gets right. Called
            when the first episode is asked for. None: this domain has none.
        further: what else is measured of a network with the edits, by name; None: nothing.
    """

    model: nn.Module
    edits: Edits
    locality_set: LocalitySet
    test_set: Mapping[str, tuple[Any, Any]]
    edit_scope: EditScope
    training: Callable[[], Episode] | None = None
    further: Callable[[nn.Module], Mapping[str, float]] | None = None

    def episodes(self, seed: int, edits: int = EDITS, locality: int = LOCALITY) -> EpisodeSampler:
        """Return episodes drawn from training data alone; no edit, and no point of a test set, is among them.

        Args:
            seed: the same one gives the same episodes.
            edits, locality: at most so many edits, and points to keep, in each.

        Raises:
            InvalidInput: the domain has no training data to draw from, or the network makes no mistake there.
        """
        if edits < 1 or locality < 1 or seed < 0:
            given = f"{edits}, {locality}, {seed}"
            raise InvalidInput(f"edits and locality must be at least 1 and seed at least 0, given {given}.")
        return EpisodeSampler(lambda: self._all, seed, edits, locality)

    def any_edits(self, edits: int = EDITS, locality: int = LOCALITY) -> AnyEdits:
        """Return the same with labels that are drawn too, for editors that would else learn which labels are right.

        Args:
            edits, locality: at most so many edits, and points to keep, in each.
        """
        return AnyEdits(lambda: self._all, edits, locality)

    @cached_property
    def _all(self) -> Episode:
        if self.training is None:
            raise InvalidInput("This task has no episodes: its domain gives no training data. Pass training= to Task.")
        return self.training()

    @torch.no_grad()
    def faults(self, episodes: int = 3) -> list[str]:
        """Return what is wrong with the task, in words; nothing where it is what it promises to be.

        >>> inputs = torch.tensor([[-1.0], [1.0], [2.0], [3.0]])
        >>> edits, scope = Edits(inputs[:1], [1]), EditScope(inputs[1:2], [1], of=[0])
        >>> test_set = {"all": (inputs, torch.ones(4, dtype=torch.int64))}
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Hardtanh())  # one output: its sign decides
        >>> _ = model[0].weight.data.fill_(1.0), model[0].bias.data.zero_()
        >>> Task(model, edits, LocalitySet(inputs[2:], [1, 1]), test_set, scope).faults()
        ["1 edits are points of the test set 'all'", "2 points of the locality set are points of the test set 'all'"]

        Args:
            episodes: how many to look at, where the domain has any.
        """
        found = _not_mistakes(self.model, self.edits, "edits")
        wrong, points = _wrong(self.model, self.locality_set), len(self.locality_set)
        if wrong is None:
            found.append("the locality set has no labels")
        elif 2 * wrong >= points:
            found.append(f"the network gets {wrong} of {points} points of the locality set wrong")
        of = self.edit_scope.of
        if of is None or not set(of.tolist()) <= set(range(len(self.edits))):
            found.append("the edit scope does not say whose neighbour each point is: EditScope(inputs, labels, of=...)")
        tests = {f"the test set {name!r}": points for name, (points, _) in self.test_set.items()}
        seen = {"the locality set": self.locality_set.inputs}
        found += _shared("edits", self.edits.inputs, tests | seen)
        found += _shared("neighbours", self.edit_scope.inputs, seen)
        found += _shared("points of the locality set", self.locality_set.inputs, tests)
        hidden = tests | {"the edits": self.edits.inputs}
        for k in range(episodes if self.training is not None else 0):
            found += [f"episode {k}: {fault}" for fault in _episode_faults(self.model, self.episodes(0)[k], hidden)]
        return found


def _episode_faults(model: nn.Module, episode: Episode, hidden: Mapping[str, Any]) -> list[str]:
    found = _not_mistakes(model, episode.edits, "edits")
    keep = episode.locality_set
    if keep is not None and (wrong := _wrong(model, keep)):
        found.append(f"the network gets {wrong} of {len(keep)} points to keep wrong")
    for what, points in (("edits", episode.edits), ("neighbours", episode.edit_scope), ("points", keep)):
        found += [] if points is None else _shared(what, points.inputs, hidden)
    return found


def _not_mistakes(model: nn.Module, edits: Edits, what: str) -> list[str]:
    right = int(edits.together(_holds(model, edits)).sum())
    return [f"the network gets {right} of {len(edits)} {what} right already"] if right else []


def _wrong(model: nn.Module, points: LocalitySet) -> int | None:
    """Return how many points the network gets wrong; None where they have no labels."""
    return None if points.criterion is None else int((~_holds(model, points)).sum())


def _holds(model: nn.Module, points: Edits | LocalitySet) -> Tensor:
    assert points.criterion is not None
    y = outputs(model, points.inputs)
    return fitted(points.criterion, y).holds(y)


def _shared(what: str, points: AnyInputs, others: Mapping[str, AnyInputs]) -> list[str]:
    mine, found = _rows(points), []
    for name, other in others.items():
        theirs = set(_rows(other))
        if shared := sum(row in theirs for row in mine):
            found.append(f"{shared} {what} are points of {name}")
    return found


def _rows(points: AnyInputs) -> list[bytes]:
    """Return for each point what is equal where two points are one; nothing where the inputs do not say."""
    same = points if isinstance(points, Tensor) else points.same()
    return [] if same is None else [row.tobytes() for row in flat(same).cpu().numpy()]


def drawn(candidates: Tensor, count: int, generator: torch.Generator, what: str) -> Tensor:
    """Return `count` of the candidates (n,), drawn at random.

    >>> drawn(torch.arange(5), 5, torch.Generator().manual_seed(0), "mistakes").sort().values
    tensor([0, 1, 2, 3, 4])

    Raises:
        InvalidInput: there are not that many, or none were asked for.
    """
    if count < 1:
        raise InvalidInput(f"edits must be at least 1, given {count}.")
    if len(candidates) < count:
        raise InvalidInput(f"{count} edits were asked for, but there are only {len(candidates)} {what}.")
    return candidates[torch.randperm(len(candidates), generator=generator)[:count]]
