"""Episodes for methods that are trained first: small repair tasks, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.spec.criteria import flat
from nnrepair.spec.dense import dense
from nnrepair.spec.edits import Edits, EditScope, LocalitySet
from nnrepair.spec.given import as_inputs
from nnrepair.spec.inputs import AnyInputs
from nnrepair.spec.problem import Problem, pose


@dataclass(frozen=True)
class Episode:
    """One exercise; all that a domain has for them is one large episode, of which others are a `part`.

    Attributes:
        edits: what is to hold after the exercise.
        locality_set: what is to stay.
        edit_scope: what is to follow, where anything is known of that; an edit need not have any of it.
    """

    edits: Edits
    locality_set: LocalitySet | None = None
    edit_scope: EditScope | None = None

    def part(self, generator: torch.Generator, edits: int, locality: int) -> Episode:
        """Return 1 to `edits` of the edits with their own edit scope, and at most `locality` of the points to keep.

        Raises:
            InvalidInput: the edit scope does not say whose its points are.
        """
        size = int(torch.randint(1, min(edits, len(self.edits)) + 1, (1,), generator=generator))
        mine = torch.randperm(len(self.edits), generator=generator)[:size]
        keep = None
        if self.locality_set is not None:
            keep = torch.randperm(len(self.locality_set), generator=generator)[:locality]
        return self.chosen(mine, keep)

    def chosen(self, mine: Tensor, keep: Tensor | None) -> Episode:
        """Return some of the edits, by number, with their own edit scope, and some of the points to keep.

        Raises:
            InvalidInput: the edit scope does not say whose its points are.
        """
        scope = None
        if self.edit_scope is not None:
            if self.edit_scope.of is None:
                raise InvalidInput("The edit scope must say whose each point is: EditScope(inputs, labels, of=...).")
            place = torch.full((len(self.edits),), -1)
            place[mine] = torch.arange(len(mine))
            of = place[self.edit_scope.of]
            near = torch.nonzero(of >= 0).flatten()
            scope = EditScope(self.edit_scope.inputs[near], self.edit_scope.criterion[near], of[near])
        kept = None if keep is None or self.locality_set is None else self.locality_set[keep]
        return Episode(self.edits[mine], kept, scope)


#: Episodes one after another, or what returns them for a seed: a function, or an object with a method `episodes(seed)`.
Episodes = Iterable[Episode] | Callable[[int], Iterable[Episode]]


class EpisodeStream:
    """Episodes one after another, from the start again at their end, with a position that can be stored.

    Args:
        episodes: see `Episodes`.
        seed: which of them.

    Raises:
        InvalidInput: there are none, or what is given is something else.
    """

    def __init__(self, episodes: Any, seed: int) -> None:
        source = episodes.episodes if callable(getattr(episodes, "episodes", None)) else episodes
        self._source: Callable[[], Any] = partial(source, seed) if callable(source) else lambda: source
        #: Whether the same episodes can be had once more.
        self.repeatable = callable(source) or not isinstance(source, Iterator)
        self._taken, self._each = 0, self._start()

    def _start(self) -> Iterator[Any]:
        found = self._source()
        if not isinstance(found, Iterable):
            raise InvalidInput(
                f"episodes must be an iterable of episodes, or return one for a seed; got {type(found).__name__}. Give "
                "a task of a domain, a list, or a function."
            )
        return iter(found)

    def next(self) -> Episode:
        """Return the next episode."""
        found = next(self._each, None)
        if found is None and self.repeatable and self._taken:
            self._each = self._start()
            found = next(self._each, None)
        if found is None:
            raise InvalidInput(
                f"The episodes ended after {self._taken}, and cannot be had again. Give fewer steps, a list, or a "
                "function that returns them for a seed."
            )
        if not isinstance(found, Episode):
            raise InvalidInput(
                f"Episode {self._taken} is a {type(found).__name__}; expected an nnrepair.methods.Episode: edits, and "
                "perhaps a locality set and an edit scope."
            )
        self._taken += 1
        return found

    def next_of(self, place: int, several: int) -> Episode:
        """Return one of the next `several` episodes, and pass over the others."""
        return [self.next() for _ in range(several)][place]

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        ahead = state["taken"] - self._taken
        for _ in range(ahead):
            self.next()


def posed(model: nn.Module, episode: Episode, seed: int, known: bool = False) -> Problem:
    """Return the problem of an episode, as `fix` would pose it.

    Args:
        model: in eval mode.
        episode: the exercise.
        seed: of the problem.
        known: whether one was posed of this model before, which is then not tried out again.
    """
    scope = episode.edit_scope if episode.edit_scope is not None and len(episode.edit_scope) else None
    return pose(model, episode.edits, episode.locality_set, scope, seed=seed, known=known)


@dataclass(frozen=True, eq=False)
class RandomLabels:
    """Episodes from labelled points: some of them are to get labels that are drawn at random, others are to stay.

    This is how Editable Training (Sinitsin et al., ICLR 2020) is trained: an editor that can make any change need not
    know which one will be asked for.

    >>> episodes = RandomLabels(torch.randn(50, 4), torch.arange(50) % 3, edits=2, locality=10)
    >>> episode = next(iter(episodes(seed=0)))
    >>> len(episode.edits) in (1, 2), len(episode.locality_set)
    (True, 10)

    Args:
        inputs: (n, ...) tensor or what `Edits` takes.
        labels: (n,) classes, or 0 and 1 (n,) or (n, outputs) for yes-or-no answers.
        edits: per episode, 1 to this many.
        locality: points to keep per episode; those that the network gets wrong are free.

    Raises:
        InvalidInput: too few points, or labels that are none.
    """

    inputs: AnyInputs
    labels: Tensor
    edits: int = 4
    locality: int = 64

    def __post_init__(self) -> None:
        labels = dense(self.labels, "labels", "a tensor of labels")
        object.__setattr__(self, "inputs", as_inputs(self.inputs, "RandomLabels"))
        object.__setattr__(self, "labels", labels)
        if labels.dtype.is_floating_point or len(labels) != len(self.inputs):
            raise InvalidInput(
                f"labels must be integers, one for each of {len(self.inputs)} points, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )
        if min(self.edits, self.locality) < 1 or self.edits + self.locality > len(labels):
            raise InvalidInput(
                f"An episode takes up to {self.edits} edits and {self.locality} points to keep, of {len(labels)} "
                "points: give more points, or ask for fewer, at least one of each."
            )

    def __call__(self, seed: int) -> Iterator[Episode]:
        """Yield episodes without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            size = int(torch.randint(1, self.edits + 1, (1,), generator=generator))
            order = torch.randperm(len(self.labels), generator=generator)
            mine, others = order[:size], order[size : size + self.locality]
            yield Episode(
                Edits(self.inputs[mine], self._drawn(mine, generator)),
                LocalitySet(self.inputs[others], self.labels[others]),
            )

    def _drawn(self, index: Tensor, generator: torch.Generator) -> Tensor:
        labels = self.labels[index]
        if labels.dtype == torch.bool or labels.ndim > 1:
            drawn = torch.randint(2, labels.shape, generator=generator).to(labels.dtype)
            return torch.where(flat(labels).reshape(labels.shape) >= 0, drawn, labels) if labels.ndim > 1 else drawn
        return torch.randint(int(self.labels.max()) + 1, labels.shape, generator=generator)


@dataclass(frozen=True, eq=False)
class AnyEdits:
    """Episodes from mistakes and their neighbours, from which it cannot be learned which labels are right.

    In every second episode, drawn at random, the edits get labels that are drawn too, and their neighbours the same;
    and in every second the points to keep are other mistakes, which are to stay as the network has them. An editor that
    learned to recognise what all mistakes have in common would change those.

    >>> edits = Edits(torch.randn(6, 4), [0, 1, 2, 0, 1, 2])
    >>> episodes = AnyEdits(Episode(edits, LocalitySet(torch.randn(9, 4))), edits=2)
    >>> [len(episode.edits) <= 2 for _, episode in zip(range(3), episodes(seed=0))]
    [True, True, True]

    Args:
        all: all mistakes with one label each, their neighbours, and points to keep; or a function that returns them.
        edits, locality: at most so many edits, and points to keep, in each.

    Raises:
        InvalidInput: mistakes without labels of classes, when the first episode is taken.
    """

    all: Episode | Callable[[], Episode]
    edits: int = 10
    locality: int = 100

    def __call__(self, seed: int) -> Iterator[Episode]:
        """Yield episodes without end."""
        known = self.all if isinstance(self.all, Episode) else self.all()
        labels = getattr(known.edits.criterion, "labels", None)
        if not isinstance(labels, Tensor) or labels.ndim != 1 or known.edits.of is not None:
            raise InvalidInput(f"AnyEdits needs one label for each mistake, got {known.edits.criterion!r}.")
        classes, points = int(labels.max()) + 1, 0 if known.locality_set is None else len(known.locality_set)
        generator = torch.Generator().manual_seed(seed)
        while True:
            size = int(torch.randint(1, min(self.edits, len(labels)) + 1, (1,), generator=generator))
            order = torch.randperm(len(labels), generator=generator)
            mine, others = order[:size], order[size:][: self.locality]
            keep = torch.randperm(points, generator=generator)[: self.locality] if points else None
            drawn = torch.randint(classes, (size,), generator=generator)
            other_labels, other_points = (torch.rand(2, generator=generator) < 0.5).tolist()
            episode = known.chosen(mine, keep)
            if other_labels:
                scope = episode.edit_scope
                scope = None if scope is None else EditScope(scope.inputs, drawn[scope.of], scope.of)
                episode = Episode(Edits(episode.edits.inputs, drawn), episode.locality_set, scope)
            if len(others) and (other_points or keep is None):
                kept = LocalitySet(known.edits.inputs[others])
                episode = Episode(episode.edits, kept, episode.edit_scope)
            yield episode
