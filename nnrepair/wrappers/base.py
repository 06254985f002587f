"""The base class of networks that carry edits beside their weights: the network as it was, and what was added."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnrepair.errors import PatchError, near_matches, printable
from nnrepair.fingerprint import digest_of_state, fingerprint
from nnrepair.rounding import counted
from nnrepair.spec.network import copied
from nnrepair.spec.state import read_json, read_tensors, reading, write_tensors

FORMAT = "nnrepair-wrapper-1"


@dataclass(frozen=True)
class Added:
    """What a wrapper adds to its base network, as plain data.

    Attributes:
        kind: the name of the wrapper's class.
        settings: what its tensors do not say; plain JSON.
        tensors: by name.

    Raises:
        PatchError: these are no such things.
    """

    kind: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not isinstance(self.settings, dict):
            raise PatchError("what it adds has no name of a class, or no settings.")
        if not all(isinstance(tensor, Tensor) for tensor in self.tensors.values()):
            raise PatchError(f"what {self.kind} holds are no tensors.")

    @property
    def numbers(self) -> int:
        """How many numbers the tensors hold."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """How many bytes these take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def same(self, other: Added) -> bool:
        """Whether another wrapper adds the same, bit for bit."""
        if (self.kind, self.settings) != (other.kind, other.settings):
            return False
        return digest_of_state(self.tensors) == digest_of_state(other.tensors)

    def __str__(self) -> str:
        return f"{self.kind}: {counted(self.numbers, 'number')}, {counted(self.bytes, 'byte')}"


class Wrapper(nn.Module, ABC):
    """A network that holds another one, `base`, as it was, and the edits beside it.

    A subclass has a `forward`, and says in `around` how it is made of plain data again: it can then be saved, and has
    patches. It gives a name to what `change` is (`carries`), and its `settings` where tensors do not say everything.

    Args:
        base: the network as it was; kept as the submodule `base`, always in eval mode.
    """

    #: What a report calls `change`.
    carries: ClassVar[str] = "what the network carries beside the original weights"
    #: Whether it is affine wherever its base is.
    keeps_regions: ClassVar[bool] = False
    #: Whether it can be written as ONNX or by torch.export.
    exports: ClassVar[bool] = True
    kinds: ClassVar[dict[str, type[Wrapper]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Wrapper.kinds[cls.__name__] = cls

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.eval()

    @classmethod
    @abstractmethod
    def around(cls, base: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Wrapper:
        """Return the wrapper of `base` with these settings and tensors, which may come from an untrusted file.

        Any exception refuses them. Sizes must be read from the tensors, which fit in memory.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """What `around` needs to know besides tensors; plain JSON."""
        return {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers beside the base."""
        held = [*self.named_parameters(remove_duplicate=False), *self.named_buffers(remove_duplicate=False)]
        return {name: tensor.detach() for name, tensor in held if not name.startswith("base.")}

    @property
    def change(self) -> dict[str, Tensor]:
        """The numbers whose size a report gives as that of the change, by name."""
        return self.tensors

    @property
    def added(self) -> Added:
        """What was added, as plain data of its own."""
        return Added(type(self).__name__, self.settings, {name: t.clone() for name, t in self.tensors.items()})

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the parameters and buffers beside the base these values; what they held, on any device, is not read.

        Raises:
            PatchError: other names, shapes or dtypes than theirs.
        """
        own = self.tensors
        if own.keys() != tensors.keys():
            raise PatchError(f"{type(self).__name__} has {', '.join(own)}, not {', '.join(map(printable, tensors))}.")
        for name, tensor in own.items():
            given = tensors[name]
            if (given.shape, given.dtype) != (tensor.shape, tensor.dtype):
                raise PatchError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, got {given.dtype} of another shape.")
            place, _, leaf = name.rpartition(".")
            part = self.get_submodule(place)
            if leaf in part._parameters:
                setattr(part, leaf, nn.Parameter(given.clone()))
            else:
                part._buffers[leaf] = given.clone()

    def train(self, mode: bool = True) -> Wrapper:
        """Set this module's mode; the base stays in eval mode."""
        super().train(mode)
        self.base.eval()
        return self

    def save(self, path: str | Path) -> Path:
        """Write what was added as one safetensors file, atomically; the base is named by its fingerprint alone.

        Raises:
            PatchError: tensors that cannot be stored in such a file.
            OSError: it cannot be written; a file that was there before is there still.
        """
        added = self.added
        texts = {"kind": added.kind, "base": fingerprint(self.base), "whole": fingerprint(self)}
        texts["settings"] = json.dumps(added.settings, allow_nan=False)
        return write_tensors(path, FORMAT, added.tensors, texts, "wrapper")

    @staticmethod
    def load(path: str | Path, base: nn.Module) -> Wrapper:
        """Return the network that was saved, around a copy of `base`, in eval mode.

        Raises:
            FileNotFoundError: no such file.
            PatchError: `base` is another network, or the file is damaged, hostile or of an unknown class.
        """
        with reading(path, "wrapper"):
            _, tensors, texts = read_tensors(path, "wrapper", {FORMAT: ("kind", "base", "whole", "settings")})
            added = Added(texts["kind"], read_json(texts["settings"]), tensors)
        found = fingerprint(base)
        if found != texts["base"]:
            raise PatchError(
                f"{path} belongs to a network with fingerprint {printable(texts['base'][:12])}..., the given one has "
                f"{found[:12]}.... Give the network that was wrapped, with its weights unchanged and in the same dtype."
            )
        made = wrapped(base, [added])
        if fingerprint(made) != texts["whole"]:
            raise PatchError(f"{path} is damaged: it does not make the network whose fingerprint is in it.")
        assert isinstance(made, Wrapper)
        return made


def wrapped(base: nn.Module, layers: Sequence[Added]) -> nn.Module:
    """Return a copy of `base` with these wrappers around it, the innermost first, in eval mode.

    Raises:
        PatchError: a class that is not known, or data that does not make one of its wrappers, exactly.
    """
    made = copied(base)
    like = next((p for p in base.parameters()), None)
    for added in layers:
        kind = Wrapper.kinds.get(added.kind)
        if kind is None:
            hint = near_matches(added.kind, Wrapper.kinds)
            raise PatchError(
                f"The class {printable(added.kind)!r} of a wrapper is not known here.{hint} Import the module that "
                f"defines it first. Known: {', '.join(Wrapper.kinds)}."
            )
        tensors = {name: t if like is None else t.to(like.device) for name, t in added.tensors.items()}
        try:
            with torch.no_grad():
                made = kind.around(made, added.settings, tensors)
            right = made.added.same(added)
        except Exception as error:  # strangers' data may raise anything
            raise PatchError(f"This {added.kind} cannot be made: {printable(str(error))}") from error
        if not right:
            raise PatchError(f"What it holds does not make a {added.kind}, exactly.")
    return made.eval() if layers else made


def peeled(model: nn.Module) -> tuple[nn.Module, list[Added]]:
    """Return the network inside all wrappers, and what these add, the innermost first."""
    layers: list[Added] = []
    while isinstance(model, Wrapper):
        layers.insert(0, model.added)
        model = model.base
    return model, layers
