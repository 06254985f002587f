"""What a network runs on: a tensor with one point per row, or an object that knows how its domain calls a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput

#: Points per forward pass when nothing but the outputs is needed.
BATCH = 4096


@runtime_checkable
class Inputs(Protocol):
    """How a domain presents points to a model; a plain tensor needs none of this.

    An object may offer more, and is used better where it does: `own()`, (n, ...) each point's own features;
    `same()`, (n,) or (n, ...), equal for two points exactly where they are one, so that a point with two labels is
    refused; `joined(other)`, both in one where one pass serves both, else None; and `whole()`, all points of the
    domain, where they influence each other and one pass computes all of them anyway.
    """

    #: Whether one point's output depends on that point alone (not so for the nodes of a graph).
    independent: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Inputs: ...

    def to(self, like: Tensor) -> Inputs:
        """Return the same points on `like`'s device, floating tensors in `like`'s dtype."""

    def call(self, model: nn.Module) -> Tensor:
        """Return the outputs, one row per point."""


AnyInputs = Tensor | Inputs


def own(inputs: AnyInputs) -> Tensor:
    """Return (n, features): each point's own features, flat; what it is apart from all other points.

    A tensor's are its rows. An `Inputs` object has a method `own()`, which returns (n, ...).

    Raises:
        InvalidInput: the inputs do not say what is a point's own.
    """
    if isinstance(inputs, Tensor):
        if not inputs.dtype.is_floating_point:
            raise InvalidInput(
                f"This method needs every point's own features, got {inputs.dtype}: numbers of points or tokens are no "
                "features. Give an Inputs object with a method own() that returns them."
            )
        x = inputs
    elif callable(given := getattr(inputs, "own", None)):
        x = given()
    else:
        raise InvalidInput(
            f"This method needs every point's own features, and {type(inputs).__name__} does not say which these are. "
            "Give it a method own() that returns them, one row per point: those rows of the model's first argument."
        )
    if len(x) != len(inputs):
        raise InvalidInput(f"own() must return one row for each of {len(inputs)} points, got {tuple(x.shape)}.")
    return x.reshape(len(x), -1)


def to_like(inputs: AnyInputs, like: Tensor) -> AnyInputs:
    """Move inputs to the device and floating dtype of `like`."""
    if isinstance(inputs, Tensor):
        inputs = inputs.clone() if inputs.is_inference() else inputs
        return inputs.to(like) if inputs.dtype.is_floating_point else inputs.to(like.device)
    return inputs.to(like)


def batches(count: int) -> list[Tensor]:
    """Return the indices 0..count-1 in batches."""
    return list(torch.split(torch.arange(count), BATCH))


def together(several: Sequence[AnyInputs]) -> list[tuple[AnyInputs, list[int]]]:
    """Return the points in as few parts as run in one pass each, and which of the given sets each part holds."""
    joined: list[tuple[AnyInputs, list[int]]] = []
    for k, inputs in enumerate(several):
        for place, (some, members) in enumerate(joined):
            if (both := join(some, inputs)) is not None:
                joined[place] = (both, [*members, k])
                break
        else:
            joined.append((inputs, [k]))
    return joined


def join(first: AnyInputs, second: AnyInputs) -> AnyInputs | None:
    """Return points that run in one pass of a whole domain (`Inputs.joined`), or None where that saves nothing."""
    joined: Callable[[AnyInputs], AnyInputs | None] | None = getattr(first, "joined", None)
    return None if joined is None else joined(second)
