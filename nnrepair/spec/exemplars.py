"""Points with what they were before they were changed: what a network is to treat them as."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.rounding import first
from nnrepair.spec.given import as_inputs
from nnrepair.spec.inputs import AnyInputs, Inputs, described, independent, positions, to_like, words


class Exemplars(Inputs):
    """Points that were changed, what they were before, and where they were changed.

    A car wheel whose spokes became wooden ones, a vehicle on a road that is covered with snow. Networks run on the
    changed points. As the inputs of edits they tell `Rewriting` what a layer is to return there.

    >>> road, snow = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    >>> snow[:, :, :4] = road[:, :, :4]
    >>> Exemplars(snow, road).places.sum((1, 2))
    tensor([32, 32])

    Args:
        changed: (n, ...) tensor or `Inputs`, what networks run on.
        originals: the same points before.
        places: (n, ...) bool, where they were changed: pixels (n, height, width), or whatever positions a layer works
            on. By default pictures (n, channels, height, width) are compared, and of other points all places count.

    Raises:
        InvalidInput: unequal numbers of points, points that influence each other, or nothing that was changed.
    """

    def __init__(self, changed: Any, originals: Any, places: Tensor | None = None) -> None:
        self.changed, self.originals = as_inputs(changed, "Exemplars"), as_inputs(originals, "Exemplars")
        if len(self.changed) != len(self.originals):
            raise InvalidInput(f"{len(self.changed)} changed points need as many originals, got {len(self.originals)}.")
        if not independent(self.changed) or not independent(self.originals):
            raise InvalidInput(
                "Exemplars are points whose outputs depend on that point alone; nodes of graphs are none."
            )
        self.places = self._compared() if places is None else places
        if self.places is None:
            return
        if self.places.dtype != torch.bool or len(self.places) != len(self) or self.places.ndim < 2:
            raise InvalidInput(
                f"places must be bool, with a row for each of {len(self)} points, got {self.places.dtype} "
                f"{tuple(self.places.shape)}."
            )
        empty = torch.nonzero(~self.places.flatten(1).any(1)).flatten().tolist()
        if empty:
            raise InvalidInput(f"Exemplars {first(empty)} were changed nowhere: give originals that differ, or places.")

    def _compared(self) -> Tensor | None:
        a, b = self.changed, self.originals
        pictures = isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim >= 4 and a.shape == b.shape
        return (a != b).any(1) if pictures and isinstance(a, Tensor) and isinstance(b, Tensor) else None

    @property
    def positions(self) -> bool:  # type: ignore[override]
        return positions(self.changed)

    @property
    def batch(self) -> int:  # type: ignore[override]
        return super().batch if isinstance(self.changed, Tensor) else self.changed.batch

    def __len__(self) -> int:
        return len(self.changed)

    def __getitem__(self, index: Tensor) -> Exemplars:
        places = None if self.places is None else self.places[index.to(self.places.device)]
        changed, originals = (
            part[index.to(part.device)] if isinstance(part, Tensor) else part[index]
            for part in (self.changed, self.originals)
        )
        return self._with(changed, originals, places)

    def to(self, like: Tensor) -> Exemplars:
        places = None if self.places is None else self.places.to(like.device)
        return self._with(to_like(self.changed, like), to_like(self.originals, like), places)

    def call(self, model: nn.Module) -> Tensor:
        y: Tensor = model(self.changed) if isinstance(self.changed, Tensor) else self.changed.call(model)
        return y

    def own(self) -> Tensor:
        return self.changed if isinstance(self.changed, Tensor) else self.changed.own()

    def same(self) -> Tensor | None:
        if isinstance(self.changed, Tensor):
            return torch.from_numpy(words(self.changed).view("int32"))
        return self.changed.same()

    def about(self) -> Exemplars:
        if isinstance(self.changed, Tensor) or isinstance(self.originals, Tensor):
            return self
        return self._with(self.changed.about(), self.originals.about(), self.places)

    def filled(self) -> Tensor | None:
        return None if isinstance(self.changed, Tensor) else self.changed.filled()

    def tensors(self) -> list[Tensor]:
        parts = (self.changed, self.originals)
        return [each for part in parts for each in ([part] if isinstance(part, Tensor) else part.tensors())]

    def copied(self) -> Exemplars:
        changed, originals = (
            part.clone() if isinstance(part, Tensor) else part.copied() for part in (self.changed, self.originals)
        )
        return self._with(changed, originals, self.places)

    def _with(self, changed: AnyInputs, originals: AnyInputs, places: Tensor | None) -> Exemplars:
        """Return others, of which everything is known to be right."""
        made = object.__new__(Exemplars)
        made.changed, made.originals, made.places = changed, originals, places
        return made

    def __repr__(self) -> str:
        return f"Exemplars({described(self.changed)})"
