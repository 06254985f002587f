"""A repair as a small reviewable artefact: the changed tensors, where they belong, and why."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, PatchError, printable
from nnrepair.files import plain, write_atomically
from nnrepair.fingerprint import digest_of_state, raw_bytes
from nnrepair.spec.network import copied

FORMAT = "nnrepair-patch-1"
#: A line of `str(patch)` is cut here: its text may come from an untrusted file.
LONGEST = 2000


def _same(name: str, old: Tensor, new: Tensor) -> bool:
    """Tell whether two tensors of one kind are the same, bit for bit."""
    if old.layout is torch.strided and not old.is_quantized and not old.is_meta:
        return torch.equal(raw_bytes(old), raw_bytes(new))
    return digest_of_state({name: old}) == digest_of_state({name: new})


def _own(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers that the model's state names; only these are what a patch changes."""
    mine = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) in mine}


def _ordered(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in alphabetical order; the library's order is another each time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _checksum(tensors: Mapping[str, Tensor], base: str, repaired: str, about: str) -> str:
    return hashlib.sha256("\n".join([FORMAT, base, repaired, digest_of_state(tensors), about]).encode()).hexdigest()


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


@dataclass(frozen=True)
class Patch:
    """The changed tensors of one repair: new values, and the old ones so that it can be undone.

    A patch is about parameters and buffers. What else a module keeps in its state stays as it is in the model that the
    patch is applied to.

    Attributes:
        new, old: by parameter name, in the model's dtype.
        base, repaired: fingerprints of the model before and after.
        about: what a reviewer wants to know (method, report, versions); plain JSON.

    Raises:
        PatchError: new and old values that do not belong together, or fingerprints that are none.
    """

    new: dict[str, Tensor] = field(repr=False)
    old: dict[str, Tensor] = field(repr=False)
    base: str
    repaired: str
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.new.keys() != self.old.keys():
            raise PatchError("it lacks old or new values of some parameters.")
        for name, new in self.new.items():
            old = self.old[name]
            if not isinstance(new, Tensor) or not isinstance(old, Tensor):
                raise PatchError(f"the values of {name!r} are no tensors.")
            if (new.shape, new.dtype) != (old.shape, old.dtype):
                raise PatchError(f"the new values of {name!r} are {_kind(new)}, the old ones {_kind(old)}.")
        for print_ in (self.base, self.repaired):
            if not isinstance(print_, str) or not re.fullmatch("[0-9a-f]{64}", print_):
                raise PatchError("its fingerprints are not 64 hexadecimal digits each.")
        if not isinstance(self.about, dict):
            raise PatchError(f"what it tells about itself is a {type(self.about).__name__}, expected a dictionary.")

    @classmethod
    def between(cls, base: nn.Module, repaired: nn.Module, about: dict[str, Any] | None = None) -> Patch:
        """Return the patch that turns `base` into `repaired` (the same class with other weights).

        Raises:
            PatchError: their parameters have other names, shapes or dtypes, or hold no numbers.
        """
        before, after = base.state_dict(), repaired.state_dict()
        if before.keys() != after.keys():
            raise PatchError("The two models do not have the same parameters, so no patch leads from one to the other.")
        changed = {}
        for name in _own(base):
            old, new = before[name], after[name]
            if (new.shape, new.dtype) != (old.shape, old.dtype):
                raise PatchError(
                    f"{name} is {_kind(old)} in one model and {_kind(new)} in the other, so no patch leads from one to "
                    "the other."
                )
            if not _same(name, old, new):
                changed[name] = new
        return cls(
            {n: t.detach().clone() for n, t in changed.items()},
            {n: before[n].detach().clone() for n in changed},
            digest_of_state(before),
            digest_of_state(before | changed),
            about or {},
        )

    def save(self, path: str | Path) -> Path:
        """Write the patch as one safetensors file, atomically; the same patch is the same bytes.

        Raises:
            PatchError: its tensors or what it tells about itself cannot be stored in such a file.
            OSError: it cannot be written; a file that was there before is there still.
        """
        tensors = {f"new.{n}": t.detach().cpu().contiguous() for n, t in self.new.items()}
        tensors |= {f"old.{n}": t.detach().cpu().contiguous() for n, t in self.old.items()}
        try:
            about = json.dumps(plain(self.about), allow_nan=False)
            metadata = {"format": FORMAT, "base": self.base, "repaired": self.repaired, "about": about}
            metadata["sha256"] = _checksum(tensors, self.base, self.repaired, about)
            content = _ordered(safetensors.torch.save(tensors, metadata))
        except PatchError:
            raise
        except Exception as error:  # safetensors raises many kinds for dtypes, layouts and names that it does not know
            raise PatchError(f"The patch cannot be stored as safetensors: {type(error).__name__}: {error}") from error
        return write_atomically(path, content)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch.

        Raises:
            FileNotFoundError: no such file.
            PatchError: the file is truncated, damaged, or no patch.
        """
        path = Path(path)
        try:
            mode = path.stat().st_mode
        except FileNotFoundError as error:
            raise FileNotFoundError(f"No patch at {path}.") from error
        except OSError as error:
            raise PatchError(f"{path} cannot be read: {error.strerror}.") from error
        if not stat.S_ISREG(mode):
            raise PatchError(
                f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'a device or a pipe'}, not a patch file."
            )
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if metadata.get("format") != FORMAT:
                raise PatchError("it is a safetensors file, but not a patch written by nnrepair.")
            new = {n.removeprefix("new."): t for n, t in tensors.items() if n.startswith("new.")}
            old = {n.removeprefix("old."): t for n, t in tensors.items() if n.startswith("old.")}
            if len(new) + len(old) < len(tensors):
                raise PatchError("it holds tensors that are neither new nor old values.")
            base, repaired, about = (metadata[key] for key in ("base", "repaired", "about"))
            told = json.loads(about, parse_constant=_no_number)
            checksum = metadata.get("sha256")  # patches of earlier versions have none
            if checksum is not None and checksum != _checksum(tensors, base, repaired, about):
                raise PatchError("its content does not have the checksum that is stored in it.")
            return cls(new, old, base, repaired, told)
        except PatchError as error:
            raise PatchError(f"{path} is damaged or not a patch: {error}") from error
        except Exception as error:  # safetensors, torch and json raise many kinds on a damaged file
            raise PatchError(f"{path} is truncated or not a patch file: {printable(str(error))}") from error

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a repaired copy of `model`: the model that this patch was made for, or the one inside its wrapper.

        A wrapper that only adds a prefix to all names ("model.", "module.") may be there or not.

        Raises:
            PatchError: `model` is not the model that this patch was made for, or the patch does not make the model
                whose fingerprint is in it.
        """
        return self._write(model, self.base, self.repaired, self.new, "was made for", "the model it was made for")

    def revert(self, model: nn.Module) -> nn.Module:
        """Return a copy of the repaired `model` with the original weights, bit for bit.

        Raises:
            PatchError: `model` is not what this patch produced, or the patch does not make the original again.
        """
        return self._write(model, self.repaired, self.base, self.old, "produced", "the model it produced")

    def _write(
        self, model: nn.Module, expected: str, made: str, values: dict[str, Tensor], verb: str, what: str
    ) -> nn.Module:
        state = model.state_dict()
        names = self._names(state, expected)
        if names is None:
            raise PatchError(
                f"This patch {verb} a model with fingerprint {expected[:12]}..., the given one has "
                f"{digest_of_state(state)[:12]}.... Give {what}, with its weights unchanged and in the same dtype."
            )
        twin = _twin(model)
        places = {names.get(name, name): (name, tensor) for name, tensor in _own(twin).items()}
        given = {tensor.data_ptr() for tensor in _own(model).values() if tensor.layout is torch.strided}
        with torch.no_grad():
            for name, value in values.items():
                if name not in places:
                    raise PatchError(f"This patch changes {name!r}, which is no parameter or buffer of the model.")
                own, tensor = places[name]
                if (value.shape, value.dtype) != (tensor.shape, tensor.dtype):
                    raise PatchError(f"This patch has {_kind(value)} for {own}, which is {_kind(tensor)}.")
                if tensor.numel() and tensor.data_ptr() in given:
                    raise PatchError(f"A copy of this model shares {own} with it, so a patch would change the model.")
                try:
                    tensor.copy_(value)
                except RuntimeError as error:  # torch refuses, say, a tensor whose elements share their memory
                    raise PatchError(f"{own} cannot be written: {error}") from error
        if digest_of_state({names.get(name, name): value for name, value in twin.state_dict().items()}) != made:
            raise PatchError(
                f"The weights that this patch makes do not have the fingerprint {made[:12]}... that is in it: it is "
                "damaged, or parameters of the model share their memory that did not before. Nothing was changed."
            )
        return twin

    def _names(self, state: Mapping[str, Any], expected: str) -> dict[str, str] | None:
        """Return what the patch calls each entry of a model's state, None where the fingerprint is another."""
        if digest_of_state(state) == expected:
            return {name: name for name in state}
        first = next(iter(self.new), "")
        outer = {first.removesuffix(name) for name in state if first.endswith(f".{name}")}
        inner = {name.removesuffix(first) for name in state if first and name.endswith(f".{first}")}
        for names in (
            *({name: prefix + name for name in state} for prefix in sorted(outer)),
            *({name: name.removeprefix(prefix) for name in state} for prefix in sorted(inner)),
        ):
            fits = self.new.keys() <= set(names.values()) and len(set(names.values())) == len(names)
            if fits and digest_of_state({names[name]: value for name, value in state.items()}) == expected:
                return names
        return None

    def __str__(self) -> str:
        lines = [f"patch for model {self.base[:12]}... -> {self.repaired[:12]}..."]
        lines += [_line(f"  {name} {_change(self.old[name], new)}") for name, new in self.new.items()]
        if not self.new:
            lines.append("  nothing changes")
        for key, value in self.about.items():
            lines.append(_line(f"  {key}:" if isinstance(value, dict) else f"  {key}: {_text(value)}"))
            if isinstance(value, dict):
                lines += [_line(f"    {k}: {_text(v)}") for k, v in value.items() if not isinstance(v, (list, dict))]
        return "\n".join(lines)


def _twin(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except InvalidInput as error:
        raise PatchError(str(error)) from error


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _change(old: Tensor, new: Tensor) -> str:
    """Say how large a change is; numbers count as changed when their bits do."""
    shape = f"{tuple(new.shape)}"
    if not new.numel():
        return f"{shape}: no numbers"
    try:
        wide = torch.complex128 if new.is_complex() else torch.float64
        change = (new.cpu().to(wide) - old.cpu().to(wide)).flatten().abs()
        raw = [raw_bytes(tensor).reshape(tensor.numel(), -1) for tensor in (old, new)]
    except (RuntimeError, NotImplementedError):  # a dtype without arithmetic, or no plain tensor
        return f"{shape}: {new.dtype}"
    return (
        f"{shape}: {int((raw[0] != raw[1]).any(1).sum())} of {len(change)} numbers change, "
        f"l1 {change.sum():.4g}, l2 {change.norm():.4g}, max {change.max():.4g}"
    )


def _text(value: Any) -> str:
    try:
        return str(value)
    except (RecursionError, ValueError):  # Python refuses to write very long integers
        return "(too deep or too long to be shown)"


def _line(text: str) -> str:
    """Return one line without control characters, since a patch file may come from anybody."""
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)")
