"""A user's network at work: outputs, with its own parameters or others. What it raises is named.

Whatever the network raises becomes an `UnsupportedModel` with the error as its cause.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, NNRepairError, UnsupportedModel, first_line
from nnrepair.spec.inputs import AnyInputs, batches, independent, together
from nnrepair.spec.network import uncompiled

#: What to do, by what the error says.
_HINTS = {
    "use_reentrant": "Use checkpoint(..., use_reentrant=False).",
    "modified by an inplace": "Let that operation make a new tensor.",
    "Inference tensor": "Use torch.no_grad() in place of torch.inference_mode().",
    "out of memory": "Give fewer points, or a machine with more memory.",
}


def _hint(error: Exception) -> str:
    return next((f" {hint}" for key, hint in _HINTS.items() if key in str(error)), "")


@contextmanager
def named(what: str, advice: str) -> Iterator[None]:
    """Turn what a user's network raises inside into an UnsupportedModel that says what failed and what to try."""
    try:
        yield
    except NNRepairError:
        raise
    except Exception as error:  # a user's forward or backward may raise anything
        raise UnsupportedModel(
            f"{what}: {type(error).__name__}: {first_line(error)} {_hint(error) or advice}".replace("  ", " ")
        ) from error


def call(model: nn.Module, inputs: AnyInputs) -> Tensor:
    """Run the model on a batch. The only place that knows how a domain calls its model."""
    with named("The model failed on some of the points", _RUNS), _gradients_of_recurrent_layers(model):
        y = model(inputs) if isinstance(inputs, Tensor) else inputs.call(model)
    if not isinstance(y, Tensor):
        raise UnsupportedModel(
            f"The model returns {type(y).__name__}, not a tensor. Say which part of it are the scores: fix(..., "
            'output="logits") (a name, a place in a tuple, or a function), or nnrepair.Scores(model, "logits") where '
            "there is no output=."
        )
    return y


def _gradients_of_recurrent_layers(model: nn.Module) -> AbstractContextManager[object]:
    """Where gradients follow, run recurrent layers on a GPU without cuDNN: it has none of them in eval mode."""
    if torch.is_grad_enabled():
        layers = (module for module in model.modules() if isinstance(module, nn.RNNBase))
        if any(parameter.is_cuda for layer in layers for parameter in layer.parameters()):
            return torch.backends.cudnn.flags(enabled=False)
    return nullcontext()


_RUNS = (
    "Methods run it in batches of any size and, all but egnn, with gradients; it must accept that. The error that it "
    "raised is this one's cause."
)


@torch.no_grad()
def outputs(model: nn.Module, inputs: AnyInputs) -> Tensor:
    """Return the outputs (n, ...) of all points, in batches."""
    steps = batches(inputs)
    if len(steps) <= 1 or not independent(inputs):
        return call(model, inputs)
    return joined([call(model, inputs[step]) for step in steps])


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the outputs of several batches as one.

    Raises:
        InvalidInput: they have different shapes, as scores of tokens have that were padded to other lengths each.
    """
    shapes = list(dict.fromkeys(tuple(part.shape[1:]) for part in parts))
    if len(shapes) > 1:
        raise InvalidInput(
            f"The model returns outputs of different shapes for different batches, {shapes[0]} and {shapes[1]} for one "
            "point. Pad all points to one length: padding='max_length' when they are made, or in the loader's "
            "collate_fn."
        )
    return torch.cat(list(parts))


def outputs_of(model: nn.Module, several: Sequence[AnyInputs]) -> list[Tensor]:
    """Return the outputs of several sets of points; those that can be joined (nodes of one graph) run together."""
    found: dict[int, Tensor] = {}
    for inputs, members in together(several):
        sizes = [len(several[k]) for k in members]
        found |= dict(zip(members, torch.split(outputs(model, inputs), sizes), strict=True))
    return [found[k] for k in range(len(several))]


def call_with(model: nn.Module, parameters: dict[str, Tensor], inputs: AnyInputs) -> Tensor:
    """Run the model with other parameters, whatever the domain's way to call it."""
    with _gradients_of_recurrent_layers(model):
        return call(_Swapped(model, parameters), inputs)


class _Swapped(nn.Module):
    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.__dict__["inner"], self.__dict__["swapped"] = model, parameters  # not registered: it owns nothing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.__dict__["inner"], self.__dict__["swapped"], args, kwargs)


def required_seed(seed: Any) -> int:
    """Return a seed as an integer.

    Raises:
        InvalidInput: it is no whole number that every generator takes.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise InvalidInput(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r:.80}.")
    return number


@contextmanager
def undisturbed(seed: int | None) -> Iterator[None]:
    """Keep the global random state as it was, and make the work inside reproducible and free of compiling."""
    seed = 0 if seed is None else required_seed(seed)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    before = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad(), uncompiled():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])
