"""What to repair and what to keep: edits, the edit scope they should generalise to, and the locality set.

Inputs are a tensor with one point per row, or any `Inputs` object: something with a length, indexing by an index
tensor, and `call(model)`, the only place where this domain's model is run (with a graph, a mask, a context set).
Edits may also be about `Segments` or `Polygons`: then each criterion must hold at every point of its region.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from nnrepair.errors import InvalidInput
from nnrepair.rounding import first
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.dense import dense
from nnrepair.spec.given import are_items, as_criterion, as_points
from nnrepair.spec.inputs import AnyInputs, to_like
from nnrepair.spec.streams import Stream


def _as_index(index: Any, count: int) -> Tensor:
    return torch.arange(count)[index] if isinstance(index, slice) else torch.as_tensor(index)


def _owners(of: Any, points: int, what: str) -> Tensor:
    """Return (points,) int64 on the CPU: the edit that each point belongs to."""
    found = dense(of, f"{what}: `of`", f"one edit, an integer, for each of the {points} points")
    if found.shape != (points,) or found.dtype.is_floating_point or found.dtype.is_complex or found.dtype == torch.bool:
        raise InvalidInput(
            f"{what}: `of` must name one edit, an integer, for each of the {points} points; got shape "
            f"{tuple(found.shape)}, {found.dtype}."
        )
    return found.detach().cpu().long()


def _swapped(inputs: AnyInputs, target: Any) -> bool:
    """Whether what should be inputs looks like labels, and the other way around."""
    return (
        isinstance(inputs, Tensor)
        and isinstance(target, Tensor)
        and (inputs.ndim, inputs.dtype.is_floating_point) == (1, False)
        and target.ndim > 1
        and target.dtype.is_floating_point
    )


def _advice_on_lengths(inputs: AnyInputs, asked: Criterion) -> str:
    """Say which of the two may be transposed."""
    labels = getattr(asked, "labels", None)
    if isinstance(labels, Tensor) and labels.ndim == 2 and labels.shape[1] == len(inputs):
        return " The labels seem to be transposed: labels.T."
    if isinstance(inputs, Tensor) and inputs.ndim == 2 and inputs.shape[1] == len(asked):
        return " The inputs seem to be transposed: inputs.T has one row per point."
    return ""


@dataclass(frozen=True, init=False)
class _Points:
    """Points, and what is asked of them.

    Attributes:
        inputs: as models run on them.
        asked: a criterion, or None: what labels a data set has is read when it is asked for, or met on the way.
    """

    inputs: AnyInputs
    asked: Criterion | None

    def __init__(self, inputs: Any, target: Any = None) -> None:
        inputs, own = as_points(inputs, type(self).__name__)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "asked", None)
        target = own if target is None else target
        if target is not None:
            self._ask(target)

    def _ask(self, target: Any) -> None:
        name = type(self).__name__
        if _swapped(self.inputs, target):
            raise InvalidInput(f"{name}: inputs and labels seem to be in each other's place; inputs come first.")
        asked = as_criterion(target, name)
        if len(asked) != len(self.inputs):
            raise InvalidInput(
                f"{name}: {len(self.inputs)} inputs but {len(asked)} labels or conditions."
                + _advice_on_lengths(self.inputs, asked)
            )
        object.__setattr__(self, "asked", asked)

    @property
    def criterion(self) -> Criterion | None:
        """What the outputs must satisfy."""
        if self.asked is None and isinstance(self.inputs, Stream) and self.inputs.labelled:
            self._ask(self.inputs.labels())
            if self.asked is not None:
                self.asked.numbered = self.inputs.numbered
        return self.asked

    def to(self, like: Tensor) -> Self:
        """Return the same points on `like`'s device, floating tensors in its dtype; no label is read for it."""
        moved = copy.copy(self)
        object.__setattr__(moved, "inputs", to_like(self.inputs, like))
        return moved

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Any) -> Any:
        return type(self)(*self._some(index))

    def _some(self, index: Any) -> tuple[AnyInputs, Criterion | None]:
        """Return some of the points, and what they must satisfy."""
        index = _as_index(index, len(self.inputs))
        return self.inputs[index], None if self.criterion is None else self.criterion[index]

    @classmethod
    def coerce(cls, value: Any) -> Any:
        """Accept an instance, a pair (inputs, labels or criterion), a TensorDataset, or inputs alone where allowed."""
        if isinstance(value, cls):
            return value
        if isinstance(value, _Points):
            return cls(value.inputs, value.criterion)
        if isinstance(value, TensorDataset):
            value = value.tensors
        if isinstance(value, (tuple, list)) and len(value) in (1, 2) and not are_items(value):
            return cls(*value)
        return cls(value)


class Edits(_Points):
    """Known mistakes: inputs and what their outputs must satisfy.

    >>> edits = Edits(torch.zeros(2, 4), [1, 0])
    >>> edits.criterion
    Argmax(2 labels, margin=0)

    Args:
        inputs: (n, ...) tensor; several tensors as a tuple, `model(*inputs)`, or by name in a dictionary,
            `model(**inputs)`; a data set or a loader of (x, y), which is read into memory; an `Inputs` object; or
            regions: `Segments` or `Polygons`.
        target: a `Criterion`, or labels. Integers (n,) are classes, `Argmax(labels)`; for a model with a single output
            0 and 1 are the sign of it, `Threshold(labels)`, as are booleans (n,). Labels (n, outputs) of 0 and 1 (or
            booleans; -1 leaves an output free) are one yes-or-no answer per output.
        of: (n,) the edit that each point belongs to, numbered from 0 without gaps: an edit with several points (views
            of one sample) holds where all of its points do, and is repaired as one. Each point is an edit by default.
        neighbours: an `EditScope`, or inputs with labels: points that a repair should reach too (the same sample, moved
            or corrupted otherwise), as far as what must hold allows. They are wanted, not demanded: no report counts
            them among the edits. `of` says whose they are where edits are repaired one after another. To demand them,
            give them as points of their edit, with `of`.

    Raises:
        InvalidInput: nothing to edit, unequal lengths, NaN, labels that are neither integers nor booleans, `of` that
            leaves numbers out.
    """

    asked: Criterion
    of: Tensor | None
    neighbours: EditScope | None

    def __init__(self, inputs: Any, target: Any = None, of: Any = None, neighbours: Any = None) -> None:
        super().__init__(inputs, target)
        stream = self.inputs if isinstance(self.inputs, Stream) else None
        read = stream.loaded() if stream is not None and stream.labelled else None  # its labels are met on the way
        if super().criterion is None:
            raise InvalidInput("Edits need labels or a criterion beside their inputs: Edits(inputs, labels).")
        if stream is not None:
            object.__setattr__(self, "inputs", stream.loaded() if read is None else read)
        object.__setattr__(self, "of", None if of is None else _owners(of, len(self.inputs), "Edits"))
        object.__setattr__(self, "neighbours", None if neighbours is None else EditScope.coerce(neighbours))
        if len(self.inputs) == 0:
            raise InvalidInput("There is nothing to repair: the edits are empty.")
        if self.of is not None and not torch.equal(torch.unique(self.of), torch.arange(len(self))):
            raise InvalidInput(
                f"Edits: `of` must number the edits 0, 1, 2, ... without gaps, got "
                f"{first(torch.unique(self.of).tolist())}."
            )

    @property
    def criterion(self) -> Criterion:
        """What the outputs must satisfy."""
        return self.asked

    def __len__(self) -> int:
        """Return the number of edits, each of one point or several."""
        return len(self.inputs) if self.of is None else int(self.of.max()) + 1

    def __getitem__(self, index: Any) -> Edits:
        if self.of is None and self.neighbours is None:
            return Edits(*self._some(index))
        chosen = torch.arange(len(self))[_as_index(index, len(self))].reshape(-1)
        near = None if self.neighbours is None else self.neighbours.near(chosen)
        if self.of is None:
            return Edits(*self._some(chosen), neighbours=near)
        mine = self.of == chosen[:, None]  # (chosen, points)
        edit, point = torch.nonzero(mine, as_tuple=True)
        return Edits(*self._some(point), of=edit, neighbours=near)

    def points(self) -> Edits:
        """Return every point as an edit of its own; an edit's neighbours are then those of its first point."""
        if self.of is None:
            return self
        near = self.neighbours
        if near is not None and near.of is not None:
            _, first = np.unique(self.of.numpy(), return_index=True)
            near = EditScope(near.inputs, near.criterion, first[near.of.numpy()])
        return Edits(self.inputs, self.criterion, neighbours=near)

    def together(self, holds: Tensor) -> Tensor:
        """Return (edits,) bool: the edits all of whose points hold.

        Args:
            holds: (points,) bool.
        """
        if self.of is None:
            return holds
        failing = torch.bincount(self.of.to(holds.device), (~holds).double(), minlength=len(self))
        return failing == 0

    def owners(self, points: Sequence[int]) -> list[int]:
        """Return the edits that some points belong to, in order."""
        return sorted(set(points if self.of is None else self.of[torch.tensor(points, dtype=torch.long)].tolist()))


class LocalitySet(_Points):
    """Points whose decisions must stay: every decision of the unrepaired model, or those that `target` calls right.

    With labels, a point that the model gets wrong is free to change, and drawdown is measured as accuracy. Where the
    edits speak of no decisions (`Near`, `Linear`), outputs must stay near what they were; the report says how near.

    Args:
        inputs: as for `Edits`, points in any number: a data set or a loader is read a batch at a time, whenever points
            are needed, and never held in memory. Its items are x, or (x, y) with labels. Or regions, `Segments` or
            `Polygons`, with labels or a criterion: what holds at every point of them must still do so.
        target: labels or a `Criterion`, as for `Edits`; by default a data set's own labels.
        labels: whether the labels of a data set are taken for right; without, the model's own decisions stay.
    """

    def __init__(self, inputs: Any, target: Any = None, *, labels: bool = True) -> None:
        super().__init__(inputs, target)
        if not labels and target is None:
            object.__setattr__(self, "asked", None)
        if not labels and isinstance(self.inputs, Stream):
            object.__setattr__(self, "inputs", self.inputs.without_labels())


@dataclass(frozen=True)
class Locality:
    """Points to keep, as a method gets them.

    Attributes:
        points: as they were given, with their labels read.
        criterion: what keeps them: their own, or else that of what the network decides there today.
        holds: (points,) bool, where it holds today; the other points are free to change.
        before: (points, ...) the outputs of the network that a repair starts from; None where they are not known.
    """

    points: LocalitySet
    criterion: Criterion
    holds: Tensor
    before: Tensor | None

    @property
    def inputs(self) -> AnyInputs:
        """What the network runs on."""
        return self.points.inputs

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Tensor) -> Locality:
        """Return some of the points, (k,) int64."""
        there = index.to(self.holds.device)
        before = None if self.before is None else self.before[there]
        return Locality(self.points[index], self.criterion[index], self.holds[there], before)


class EditScope(_Points):
    """Points that the edits should generalise to (neighbours, corrupted copies).

    As `edit_scope` of `fix` they are only ever measured; as `neighbours` of `Edits` a method works towards them.

    >>> EditScope(torch.zeros(3, 4), [1, 1, 0], of=[0, 0, 1]).of  # two neighbours of edit 0, one of edit 1
    tensor([0, 0, 1])

    Args:
        inputs: (n, ...) tensor or an `Inputs` object; leave the edits themselves out.
        target: labels, as for `Edits`, or a `Criterion`.
        of: (n,) the index of the edit that each point belongs to. Edits that are repaired one after another are then
            each measured on their own points; without it every step is measured on all of them.
    """

    asked: Criterion
    of: Tensor | None

    def __init__(self, inputs: Any, target: Any = None, of: Any = None) -> None:
        super().__init__(inputs, target)
        if super().criterion is None:
            raise InvalidInput("An edit scope needs labels or a criterion beside its inputs.")
        object.__setattr__(self, "of", None if of is None else _owners(of, len(self), "EditScope"))

    @property
    def criterion(self) -> Criterion:
        """What the outputs must satisfy."""
        return self.asked

    def __getitem__(self, index: Any) -> EditScope:
        index = _as_index(index, len(self))
        return EditScope(self.inputs[index], self.criterion[index], None if self.of is None else self.of[index])

    def near(self, edits: Tensor) -> EditScope | None:
        """Return the points of some edits, which are then numbered anew; all where none says whose it is.

        Args:
            edits: (k,) int64; an edit that is named twice has its points twice.
        """
        if self.of is None:
            return self
        edit, point = torch.nonzero(self.of == edits[:, None], as_tuple=True)
        return EditScope(self.inputs[point], self.criterion[point], edit) if len(point) else None
