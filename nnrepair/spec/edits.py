"""What to repair and what to keep: edits, the edit scope they should generalise to, and the locality set.

Inputs are a tensor with one point per row, or any `Inputs` object: something with a length, indexing by an index
tensor, and `call(model)`, the only place that knows how this domain runs its model (a graph, a mask, a context set).
Edits may also be about `Segments` or `Polygons`: then each criterion must hold at every point of its region.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from nnrepair.errors import InvalidInput
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.given import as_criterion, as_inputs
from nnrepair.spec.inputs import AnyInputs


def _as_index(index: Any, count: int) -> Tensor:
    return torch.arange(count)[index] if isinstance(index, slice) else torch.as_tensor(index)


@dataclass(frozen=True, init=False)
class _Points:
    inputs: AnyInputs
    criterion: Criterion | None

    def __init__(self, inputs: Any, target: Any = None) -> None:
        name = type(self).__name__
        object.__setattr__(self, "inputs", as_inputs(inputs, name))
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
