"""What to repair and what to keep: edits, the edit scope they should generalise to, and the locality set.

Inputs are a tensor with one point per row, or any `Inputs` object: something with a length, indexing by an index
tensor, and `call(model)`, the only place that knows how this domain runs its model (a graph, a mask, a context set).
Edits may also be about `Segments` or `Polygons`: then each criterion must hold at every point of its region.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nnrepair.errors import InvalidInput, first_line
from nnrepair.spec.criteria import Argmax, Criterion, Threshold
from nnrepair.spec.inputs import AnyInputs, Inputs
from nnrepair.spec.regions import Regions


def _as_inputs(inputs: Any, what: str) -> AnyInputs:
    if isinstance(inputs, Regions):
        if what != "Edits":
            raise InvalidInput(
                f"{what}: {inputs!r} cannot be used here; only edits can be about whole regions. Give points."
            )
        return inputs
    if isinstance(inputs, Inputs) and not isinstance(inputs, Tensor):
        return inputs
    points = dense(inputs, f"{what}: inputs", "a tensor or an Inputs object")
    if points.ndim == 0:
        raise InvalidInput(f"{what}: inputs must have one point per row, got a single number.")
    if points.dtype.is_floating_point and not torch.isfinite(points).all():
        bad = torch.nonzero(~torch.isfinite(points.flatten(1) if points.ndim > 1 else points[:, None]).all(1))
        raise InvalidInput(f"{what}: inputs {bad.flatten().tolist()[:10]} contain NaN or infinity.")
    return points


def dense(value: Any, what: str, expected: str) -> Tensor:
    """Return a tensor of plain numbers without a history, from a tensor, array, data frame or list.

    Args:
        value: what was given.
        what, expected: how the message calls it, and what it should have been.

    Raises:
        InvalidInput: it holds no such numbers, or is a tensor without them (meta), sparse, nested or of eight bits.
    """
    advice = " Stack the items of a data set: torch.stack([x for x, _ in items])." if _holds_items(value) else ""
    try:
        found = value if isinstance(value, Tensor) else _converted(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        given = f"{type(value).__name__}" + (f" of {value.dtype}" if isinstance(value, np.ndarray) else "")
        reason = f" ({first_line(error)})" if isinstance(value, list | tuple | np.ndarray) else ""
        raise InvalidInput(f"{what} must be {expected}, got {given}{reason}.{advice}") from None
    if found.layout != torch.strided or found.is_nested:
        raise InvalidInput(f"{what} are {'nested' if found.is_nested else 'sparse'}; give a dense tensor (to_dense()).")
    if found.is_meta or found.is_quantized or (found.dtype.is_floating_point and found.element_size() < 2):
        kind = "on the meta device, without numbers" if found.is_meta else f"{found.dtype}"
        raise InvalidInput(f"{what} are {kind}; give a tensor of plain numbers.")
    return found.detach() if found.requires_grad else found


def _converted(value: Any) -> Tensor:
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor | np.ndarray) for part in value):
        return torch.stack([dense(part, "parts", "tensors or arrays") for part in value])
    if not hasattr(value, "__array__"):
        return torch.as_tensor(value)
    array = np.asarray(value)
    kind = np.float64 if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, kind, order="C"))  # a copy: torch takes no array that must not be written


def _holds_items(value: Any) -> bool:
    return isinstance(value, Dataset | DataLoader | Iterator)


def as_criterion(target: Any, what: str) -> Criterion:
    """Return a criterion as it is, and labels as one that says that they were nothing but labels."""
    if isinstance(target, Criterion):
        return target
    labels = dense(target, f"{what}: labels", "a tensor of labels, or a Criterion")
    try:
        made = Threshold(labels) if labels.dtype == torch.bool or labels.ndim > 1 else Argmax(labels)
        made.plain = True
        return made
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"{what}: {error}") from None


def _as_index(index: Any, count: int) -> Tensor:
    return torch.arange(count)[index] if isinstance(index, slice) else torch.as_tensor(index)


@dataclass(frozen=True, init=False)
class _Points:
    inputs: AnyInputs
    criterion: Criterion | None

    def __init__(self, inputs: Any, target: Any = None) -> None:
        name = type(self).__name__
        object.__setattr__(self, "inputs", _as_inputs(inputs, name))
        object.__setattr__(self, "criterion", None if target is None else as_criterion(target, name))
        if self.criterion is not None and len(self.criterion) != len(self.inputs):
            raise InvalidInput(f"{name}: {len(self.inputs)} inputs but {len(self.criterion)} labels or conditions.")

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: Any) -> Any:
        index = _as_index(index, len(self))
        return type(self)(self.inputs[index], None if self.criterion is None else self.criterion[index])

    @classmethod
    def coerce(cls, value: Any) -> Any:
        """Accept an instance, a pair (inputs, labels or criterion), a TensorDataset, or inputs alone where allowed."""
        if isinstance(value, cls):
            return value
        if isinstance(value, _Points):
            return cls(value.inputs, value.criterion)
        if isinstance(value, TensorDataset):
            value = value.tensors
        if isinstance(value, (tuple, list)) and len(value) in (1, 2):
            return cls(*value)
        return cls(value)


class Edits(_Points):
    """Known mistakes: inputs and what their outputs must satisfy.

    >>> edits = Edits(torch.zeros(2, 4), [1, 0])
    >>> edits.criterion
    Argmax(2 labels, margin=0)

    Args:
        inputs: (n, ...) tensor, an `Inputs` object, or regions: `Segments` or `Polygons`.
        target: a `Criterion`, or labels. Integers (n,) are classes, `Argmax(labels)`; for a model with a single output
            0 and 1 are the sign of it, `Threshold(labels)`, as are booleans (n,). Labels (n, outputs) of 0 and 1 (or
            booleans; -1 leaves an output free) are one yes-or-no answer per output.

    Raises:
        InvalidInput: nothing to edit, unequal lengths, NaN, labels that are neither integers nor booleans.
    """

    criterion: Criterion

    def __init__(self, inputs: Any, target: Any = None) -> None:
        super().__init__(inputs, target)
        if self.criterion is None:
            raise InvalidInput("Edits need labels or a criterion beside their inputs: Edits(inputs, labels).")
        if len(self) == 0:
            raise InvalidInput("There is nothing to repair: the edits are empty.")


class LocalitySet(_Points):
    """Points whose decisions must stay: every decision of the unrepaired model, or those that `target` calls right.

    With labels, a point that the model gets wrong is free to change, and drawdown is measured as accuracy. Where the
    edits speak of no decisions (`Near`, `Linear`), outputs must stay near what they were; the report says how near.
    """


class EditScope(_Points):
    """Points that the edits should generalise to (neighbours, corrupted copies); only ever measured.

    >>> EditScope(torch.zeros(3, 4), [1, 1, 0], of=[0, 0, 1]).of  # two neighbours of edit 0, one of edit 1
    tensor([0, 0, 1])

    Args:
        inputs: (n, ...) tensor or an `Inputs` object; leave the edits themselves out.
        target: labels, as for `Edits`, or a `Criterion`.
        of: (n,) the index of the edit that each point belongs to. Edits that are repaired one after another are then
            each measured on their own points; without it every step is measured on all of them.
    """

    criterion: Criterion
    of: Tensor | None

    def __init__(self, inputs: Any, target: Any = None, of: Any = None) -> None:
        super().__init__(inputs, target)
        if self.criterion is None:
            raise InvalidInput("An edit scope needs labels or a criterion beside its inputs.")
        if of is not None:
            of = torch.as_tensor(of)
            if of.shape != (len(self),) or of.dtype.is_floating_point or of.dtype == torch.bool:
                raise InvalidInput(
                    f"EditScope: `of` must name one edit, an integer, for each of the {len(self)} points; got shape "
                    f"{tuple(of.shape)}, {of.dtype}."
                )
        object.__setattr__(self, "of", of)

    def __getitem__(self, index: Any) -> EditScope:
        index = _as_index(index, len(self))
        return EditScope(self.inputs[index], self.criterion[index], None if self.of is None else self.of[index])
