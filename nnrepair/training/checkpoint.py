"""Checkpoints: all that the next step depends on, in a file that runs no code when it is read."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nnrepair.errors import InvalidInput, NNRepairError, PatchError, first_line, printable
from nnrepair.extras import installed
from nnrepair.files import require_writable
from nnrepair.spec.state import read_json, read_tensors, reading, write_tensors
from nnrepair.training import ranks

FORMAT = "nnrepair-training-1"
#: Seconds of work that a kill may cost, at most (and one step).
SAVE_EVERY = 5.0


class Stateful(Protocol):
    """What has a state: a module, an optimizer, a schedule, `Batches`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors and plain values, nested."""

    def load_state_dict(self, state: Any) -> Any:
        """Take a state over."""


State = Mapping[str, Stateful | torch.Generator]


@dataclass
class Checkpoint:
    """The file of one training.

    Args:
        path: a name that ends in .safetensors.
        key: what must be equal for a stored training to be this one (data, seed, hyper-parameters), by name.
        every: seconds between two writes, at least.

    Attributes:
        not_stored: why the last write failed; empty where it did not.

    Raises:
        InvalidInput: the file could not be written.
    """

    path: Path
    key: Mapping[str, str]
    every: float = SAVE_EVERY
    not_stored: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike):
            raise InvalidInput(f"resume must be the name of a file, got {self.path!r}.")
        self.path = Path(self.path)
        require_writable(self.path)
        versions = {f"version of {name}": installed(name) for name in ("nnrepair", "torch")}
        self.key, self._saved = {**self.key, **versions}, time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last write is long enough ago."""
        return time.monotonic() - self._saved > self.every

    def save(self, state: State) -> None:
        """Store the state, where this is the first process. If that fails, training goes on, and says so at its end."""
        if ranks.rank():
            return
        tensors: dict[str, Tensor] = {}
        told = packed({name: _state_of(part) for name, part in state.items()}, tensors)
        texts = {"key": json.dumps(self.key), "state": json.dumps(told)}
        try:
            write_tensors(self.path, FORMAT, tensors, texts, "checkpoint")
            self.not_stored = ""
        except (OSError, NNRepairError) as error:
            reason = getattr(error, "strerror", None) or error
            self.not_stored = f"progress could not be stored in {self.path} ({reason}); a kill would have lost it"
        self._saved = time.monotonic()

    def load(self, state: State) -> None:
        """Take over what is stored; nothing where there is no file.

        Raises:
            InvalidInput: it is the progress of another training.
            PatchError: it is damaged.
        """
        if not self.path.exists():
            return
        advice = "Name another file, or delete it to start anew."
        try:
            with reading(self.path, "checkpoint"):
                _, tensors, texts = read_tensors(self.path, "checkpoint", {FORMAT: ("key", "state")})
                theirs = dict(read_json(texts["key"]))
                stored = unpacked(read_json(texts["state"]), tensors)
        except PatchError as error:
            raise PatchError(f"{error} {advice}") from error
        other = [name for name in {**self.key, **theirs} if self.key.get(name) != theirs.get(name)]
        if other:
            pairs = "; ".join(f"{name}: {theirs.get(name)} there, {self.key.get(name)} now" for name in other[:9])
            raise InvalidInput(f"{self.path} is the progress of another training ({printable(pairs)}). {advice}")
        try:
            for name, part in state.items():
                _take_over(part, stored[name])
        except Exception as error:  # torch raises many kinds for states that do not fit
            raise PatchError(f"{self.path} is damaged: {printable(first_line(error))}. {advice}") from error


def random_numbers() -> dict[str, Stateful | torch.Generator]:
    """Return torch's own generators, for steps that draw from them."""
    devices = torch.cuda.default_generators if torch.cuda.is_available() else ()
    return {f"random numbers, {k}": generator for k, generator in enumerate((torch.default_generator, *devices))}


def _state_of(part: Stateful | torch.Generator) -> Any:
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _take_over(part: Stateful | torch.Generator, state: Any) -> None:
    if isinstance(part, torch.Generator):
        part.set_state(state)
        return
    part.load_state_dict(state)
    if isinstance(part, torch.optim.Optimizer):  # which looks at no shapes
        for parameter, values in part.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    raise PatchError(f"{name} has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}")


# Nested states as JSON and tensors -----------------------------------------------------------------------------------


def packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return nested plain values as JSON can hold them; their tensors go to `tensors`.

    Raises:
        InvalidInput: an object of another kind, which only a pickle could hold.
    """
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone()
        return {"tensor": name}
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {"items": [[key, packed(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [packed(item, tensors) for item in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    raise InvalidInput(
        f"{type(value).__name__} cannot be stored: states are tensors, numbers, texts, lists and dictionaries of these."
    )


def unpacked(told: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `packed` took apart.

    Raises:
        PatchError: it is nothing that `packed` makes.
    """
    if not isinstance(told, dict):
        return told
    ((kind, value),) = told.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "items":
        return {key: unpacked(item, tensors) for key, item in value}
    if kind in ("list", "tuple"):
        items = [unpacked(item, tensors) for item in value]
        return items if kind == "list" else tuple(items)
    if kind == "float":
        return float(value)
    raise PatchError(f"{printable(kind)} is no part of a state.")
