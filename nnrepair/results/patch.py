"""A repair as a small reviewable artefact: the changed tensors, where they belong, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, PatchError, printable
from nnrepair.files import plain
from nnrepair.fingerprint import digest_of_state, fingerprint, raw_bytes, same
from nnrepair.rounding import counted
from nnrepair.spec.network import copied
from nnrepair.spec.state import read_json, read_tensors, reading, write_tensors
from nnrepair.wrappers.base import Added, peeled, wrapped

#: The formats of files: other values of the same parameters alone, and with wrappers put on or taken off.
FORMAT, WRAPPING = "nnrepair-patch-1", "nnrepair-patch-2"
#: What their files tell beside tensors, in order.
TEXTS = {
    FORMAT: ("base", "repaired", "about"),
    WRAPPING: ("base", "repaired", "added", "removed", "about"),
}
#: A line of `str(patch)` is cut here: what its text may come from an untrusted file.
LONGEST = 2000


def _own(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers that the model's state names; only these are what a patch changes."""
    mine = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) in mine}


@dataclass(frozen=True)
class Patch:
    """The changed tensors of one repair: new values, and the old ones so that it can be undone.

    A patch is about parameters and buffers, and about wrappers: what a network carries beside its weights. What else a
    module keeps in its state stays as it is in the model that the patch is applied to.

    Attributes:
        new, old: by parameter name, in the model's dtype; where wrappers come or go, of the network inside them.
        base, repaired: fingerprints of the model before and after.
        about: what a reviewer wants to know (method, report, versions); plain JSON.
        added, removed: wrappers (`nnrepair.wrappers`) that are put around the network, and that were around it before,
            the innermost first.

    Raises:
        PatchError: new and old values that do not belong together, or fingerprints that are none.
    """

    new: dict[str, Tensor] = field(repr=False)
    old: dict[str, Tensor] = field(repr=False)
    base: str
    repaired: str
    about: dict[str, Any] = field(default_factory=dict)
    added: tuple[Added, ...] = ()
    removed: tuple[Added, ...] = ()

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
        """Return the patch that turns `base` into `repaired`: other weights, other wrappers, or both.

        Raises:
            PatchError: their parameters have other names, shapes or dtypes, or hold no numbers.
        """
        (start, removed), (end, added) = peeled(base), peeled(repaired)
        alike = [_form(layer) for layer in removed] == [_form(layer) for layer in added]
        before, changed = base.state_dict(), _changed(base, repaired) if alike else _changed(start, end)
        new = {name: tensor.detach().clone() for name, (_, tensor) in changed.items()}
        old = {name: tensor.detach().clone() for name, (tensor, _) in changed.items()}
        if alike:
            return cls(new, old, digest_of_state(before), digest_of_state(before | new), about or {})
        prints = fingerprint(base), fingerprint(repaired)
        return cls(new, old, *prints, about or {}, tuple(added), tuple(removed))

    def save(self, path: str | Path) -> Path:
        """Write the patch as one safetensors file, atomically; the same patch is the same bytes.

        Raises:
            PatchError: its tensors or what it tells about itself cannot be stored in such a file.
            OSError: it cannot be written; a file that was there before is there still.
        """
        tensors = {f"new.{name}": tensor for name, tensor in self.new.items()}
        tensors |= {f"old.{name}": tensor for name, tensor in self.old.items()}
        texts = {"base": self.base, "repaired": self.repaired}
        layers = {"added": self.added, "removed": self.removed}
        try:
            for what, some in layers.items():
                tensors |= {f"{what}.{k}.{name}": t for k, one in enumerate(some) for name, t in one.tensors.items()}
                texts[what] = json.dumps([[one.kind, one.settings] for one in some], allow_nan=False)
            texts["about"] = json.dumps(plain(self.about), allow_nan=False)
        except Exception as error:  # whatever it tells about itself
            raise PatchError(f"The patch cannot be stored as safetensors: {type(error).__name__}: {error}") from error
        form = WRAPPING if self.added or self.removed else FORMAT
        return write_tensors(path, form, tensors, {name: texts[name] for name in TEXTS[form]}, "patch")

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch.

        Raises:
            FileNotFoundError: no such file.
            PatchError: the file is truncated, damaged, or no patch.
        """
        with reading(path, "patch"):
            form, tensors, texts = read_tensors(path, "patch", TEXTS, unchecked=[FORMAT])
            new, old = _taken(tensors, "new."), _taken(tensors, "old.")
            layers: dict[str, tuple[Added, ...]] = {}
            for what in ("added", "removed") if form == WRAPPING else ():
                told = enumerate(read_json(texts[what]))
                layers[what] = tuple(Added(kind, given, _taken(tensors, f"{what}.{k}.")) for k, (kind, given) in told)
            if tensors:
                raise PatchError("it holds tensors that are neither new nor old values.")
            return cls(new, old, texts["base"], texts["repaired"], read_json(texts["about"]), **layers)

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a repaired copy of `model`: the model that this patch was made for, or the one inside its wrapper.

        A module that only adds a prefix to all names ("model.", "module.") may be there or not, except where the patch
        puts wrappers on or takes them off; what it returns then is in eval mode.

        Raises:
            PatchError: `model` is not the model that this patch was made for, or the patch does not make the model
                whose fingerprint is in it.
        """
        _require_module(model, "apply")
        what = "was made for", "the model it was made for"
        if self.added or self.removed:
            return self._wrap(model, (self.base, self.repaired), self.new, (self.removed, self.added), what)
        return self._write(model, self.base, self.repaired, self.new, what)

    def revert(self, model: nn.Module) -> nn.Module:
        """Return a copy of the repaired `model` with the original weights, bit for bit.

        Where wrappers come off, all parameters of the network that was inside are trainable, and it is in eval mode:
        what it was before they were put on is not known.

        Raises:
            PatchError: `model` is not what this patch produced, or the patch does not make the original again.
        """
        _require_module(model, "revert")
        what = "produced", "the model it produced"
        if self.added or self.removed:
            return self._wrap(model, (self.repaired, self.base), self.old, (self.added, self.removed), what)
        return self._write(model, self.repaired, self.base, self.old, what)

    def _wrap(
        self,
        model: nn.Module,
        prints: tuple[str, str],
        values: dict[str, Tensor],
        layers: tuple[tuple[Added, ...], tuple[Added, ...]],
        what: tuple[str, str],
    ) -> nn.Module:
        """Return a copy of `model` with other wrappers; `prints` and `layers` are those before and after."""
        core, off = peeled(model)
        if fingerprint(model) != prints[0] or [(w.kind, w.settings) for w in off] != [
            (w.kind, w.settings) for w in layers[0]
        ]:
            raise self._another(what, prints[0], model.state_dict())
        twin = _with_values(core, values, {})
        if off and not layers[1]:
            for parameter in twin.parameters():
                parameter.requires_grad_(parameter.dtype.is_floating_point)
        made = wrapped(twin, layers[1])
        if fingerprint(made) != prints[1]:
            raise PatchError(
                f"The network that this patch makes does not have the fingerprint {prints[1][:12]}... that is in it: "
                "it is damaged. Nothing was changed."
            )
        return made

    def _write(
        self, model: nn.Module, expected: str, made: str, values: dict[str, Tensor], what: tuple[str, str]
    ) -> nn.Module:
        state = model.state_dict()
        names = self._names(state, expected)
        if names is None:
            raise self._another(what, expected, state, values)
        twin = _with_values(model, values, names)
        if digest_of_state({names.get(name, name): value for name, value in twin.state_dict().items()}) != made:
            raise PatchError(
                f"The weights that this patch makes do not have the fingerprint {made[:12]}... that is in it: it is "
                "damaged, or parameters of the model share their memory that did not before. Nothing was changed."
            )
        return twin

    def _another(
        self, what: tuple[str, str], expected: str, state: Mapping[str, Any], values: Mapping[str, Tensor] | None = None
    ) -> PatchError:
        """Return what is said about a model that is another one; `values` are those that it was to get."""
        known = self.old if values is self.new else self.new
        there = values is not None and all(
            isinstance(state.get(name), Tensor)
            and digest_of_state({name: state[name]}) == digest_of_state({name: value})
            for name, value in known.items()
        )
        advice = f"Give {what[1]}, with its weights unchanged and in the same dtype."
        if there and known:
            advice = (
                "What it changes is the same in both; other tensors are not. A file that was exported is another model "
                "where the export merged layers (BatchNorm into what comes before it): apply the patch to the model in "
                "torch, and export that."
            )
        return PatchError(
            f"This patch {what[0]} a model with fingerprint {expected[:12]}..., the given one has "
            f"{digest_of_state(state)[:12]}.... {advice}"
        )

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

    def largest(self, most: int) -> list[str]:
        """Return the largest changes of each tensor, one a line: place, old and new number."""
        lines = []
        for name, new in self.new.items():
            if most > 0 and new.numel() and new.dtype.is_floating_point:
                old = self.old[name].double().cpu()
                size = (new.double().cpu() - old).abs().flatten()
                for place in size.topk(min(most, int((size > 0).sum()))).indices:
                    where = ", ".join(str(int(k)) for k in torch.unravel_index(place, new.shape))
                    before, after = float(old.flatten()[place]), float(new.flatten()[place])
                    lines.append(_line(f"  {name}[{where}]: {before:.6g} -> {after:.6g}"))
        return lines

    def __str__(self) -> str:
        lines = [f"patch for model {self.base[:12]}... -> {self.repaired[:12]}..."]
        lines += [_line(f"  {name} {_change(self.old[name], new)}") for name, new in self.new.items()]
        lines += [_line(f"  takes off {layer}") for layer in reversed(self.removed)]
        lines += [_line(f"  puts on {layer}") for layer in self.added]
        if len(lines) == 1:
            lines.append("  nothing changes")
        for key, value in self.about.items():
            lines.append(_line(f"  {key}:" if isinstance(value, dict) else f"  {key}: {_text(value)}"))
            if isinstance(value, dict):
                lines += [_line(f"    {k}: {_text(v)}") for k, v in value.items() if not isinstance(v, (list, dict))]
        return "\n".join(lines)


def _require_module(model: Any, call: str) -> None:
    """Require a network, and say how to get one from a file.

    Raises:
        InvalidInput: it is something else.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInput(
            f"{call} takes the network itself, a torch.nn.Module, got {type(model).__name__}. An ONNX file becomes one "
            "by nnrepair.onnx.load(path), or use `nnrepair patch` on the command line; a state by load_state_dict."
        )


def _form(layer: Added) -> tuple[Any, ...]:
    """Return what is the same for two wrappers that differ in the values of their tensors at most."""
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in layer.tensors.items()}
    return layer.kind, layer.settings, shapes


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors with a prefix out of a dictionary, and return them without it."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}


def _changed(base: nn.Module, repaired: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the parameters and buffers that differ between two models of the same parts: old and new values."""
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
        if not same(name, old, new):
            changed[name] = (old, new)
    return changed


def _with_values(model: nn.Module, values: dict[str, Tensor], names: Mapping[str, str]) -> nn.Module:
    """Return a copy of a model with other values, given by the names that `names` says, by default its own."""
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
    return twin


def _twin(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except InvalidInput as error:
        raise PatchError(str(error)) from error


def saved(patch: Patch | None, path: str | Path) -> Path:
    """Write the patch of a repair.

    Raises:
        PatchError: there is none.
    """
    if patch is None:
        raise PatchError(
            f"{path} was not written: this repair has no patch, because other values of the same parameters, or "
            "wrappers around the network, are not all that changed (or because edits were independent). Save the "
            "network itself: torch.save(result.model.state_dict(), ...), or nnrepair.onnx.save(result.model, x, ...)."
        )
    return patch.save(path)


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
        bits = [raw_bytes(tensor).reshape(tensor.numel(), -1) for tensor in (old, new)]
    except (RuntimeError, NotImplementedError):  # a dtype without arithmetic, or no plain tensor
        return f"{shape}: {new.dtype}"
    return (
        f"{shape}: {int((bits[0] != bits[1]).any(1).sum())} of {counted(len(change), 'number')} change, "
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
