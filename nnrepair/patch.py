"""A repair as a small reviewable artefact: the changed tensors, where they belong, and why."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nnrepair.errors import PatchError
from nnrepair.files import write_atomically

FORMAT = "nnrepair-patch-1"


def fingerprint(model: nn.Module) -> str:
    """Return the sha256 of a model's state: names, dtypes, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    raw: bytes = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return raw


def _ordered(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in alphabetical order; the library's order is another each time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


@dataclass(frozen=True)
class Patch:
    """The changed tensors of one repair: new values, and the old ones so that it can be undone.

    Attributes:
        new, old: by parameter name, in the model's dtype.
        base, repaired: fingerprints of the model before and after.
        about: what a reviewer wants to know (method, report, versions); plain JSON.
    """

    new: dict[str, Tensor] = field(repr=False)
    old: dict[str, Tensor] = field(repr=False)
    base: str
    repaired: str
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def between(cls, base: nn.Module, repaired: nn.Module, about: dict[str, Any] | None = None) -> Patch:
        """Return the patch that turns `base` into `repaired` (the same class with other weights)."""
        before, after = base.state_dict(), repaired.state_dict()
        if before.keys() != after.keys():
            raise PatchError("The two models do not have the same parameters, so no patch leads from one to the other.")
        tensors = [n for n, t in before.items() if isinstance(t, Tensor)]
        changed = [n for n in tensors if _bytes(before[n]) != _bytes(after[n])]
        return cls(
            {n: after[n].detach().clone() for n in changed},
            {n: before[n].detach().clone() for n in changed},
            fingerprint(base),
            fingerprint(repaired),
            about or {},
        )

    def save(self, path: str | Path) -> Path:
        """Write the patch as one safetensors file, atomically; the same patch is the same bytes."""
        tensors = {f"new.{n}": t.cpu().contiguous() for n, t in self.new.items()}
        tensors |= {f"old.{n}": t.cpu().contiguous() for n, t in self.old.items()}
        about = json.dumps(self.about, allow_nan=False, default=str)
        metadata = {"format": FORMAT, "base": self.base, "repaired": self.repaired, "about": about}
        return write_atomically(path, _ordered(safetensors.torch.save(tensors, metadata)))

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch.

        Raises:
            FileNotFoundError: no such file.
            PatchError: the file is truncated, or it is no patch.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"No patch at {path}.")
        if path.is_dir():
            raise PatchError(f"{path} is a folder, not a patch file.")
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if metadata.get("format") != FORMAT:
                raise PatchError(f"{path} is a safetensors file, but not a patch written by nnrepair.")
            new = {n.removeprefix("new."): t for n, t in tensors.items() if n.startswith("new.")}
            old = {n.removeprefix("old."): t for n, t in tensors.items() if n.startswith("old.")}
            if new.keys() != old.keys():
                raise PatchError(f"{path} is damaged: it lacks old or new values of some parameters.")
            return cls(new, old, metadata["base"], metadata["repaired"], json.loads(metadata["about"]))
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise PatchError(f"{path} is truncated or not a patch file: {error}") from error

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a repaired copy of `model`.

        Raises:
            PatchError: `model` is not the model that this patch was made for.
        """
        return self._write(model, self.base, self.new, "was made for", "the model it was made for")

    def revert(self, model: nn.Module) -> nn.Module:
        """Return a copy of the repaired `model` with the original weights, bit for bit.

        Raises:
            PatchError: `model` is not what this patch produced.
        """
        return self._write(model, self.repaired, self.old, "produced", "the model it produced")

    def _write(self, model: nn.Module, expected: str, values: dict[str, Tensor], verb: str, what: str) -> nn.Module:
        found = fingerprint(model)
        if found != expected:
            raise PatchError(
                f"This patch {verb} a model with fingerprint {expected[:12]}..., the given one has {found[:12]}.... "
                f"Give {what}, with its weights unchanged and in the same dtype."
            )
        twin = copy.deepcopy(model)
        state = twin.state_dict(keep_vars=True)
        with torch.no_grad():
            for name, value in values.items():
                state[name].copy_(value)
        return twin

    def __str__(self) -> str:
        lines = [f"patch for model {self.base[:12]}... -> {self.repaired[:12]}..."]
        for name, new in self.new.items():
            change = (new.double() - self.old[name].double()).flatten()
            lines.append(
                f"  {name} {tuple(new.shape)}: {int((change != 0).sum())} of {change.numel()} numbers change, "
                f"l1 {change.abs().sum():.4g}, l2 {change.norm():.4g}, max {change.abs().max():.4g}"
            )
        if not self.new:
            lines.append("  nothing changes")
        for key, value in self.about.items():
            lines.append(f"  {key}: {value}" if not isinstance(value, dict) else f"  {key}:")
            if isinstance(value, dict):
                lines += [f"    {k}: {v}" for k, v in value.items() if not isinstance(v, (list, dict))]
        return "\n".join(lines)
