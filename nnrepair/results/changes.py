"""How a repaired network differs from its original: the size of what both have, what only one has, and what else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.rounding import counted
from nnrepair.spec.network import copied
from nnrepair.wrappers.base import Wrapper

#: A list of differences names at most so many.
NAMED = 8


@dataclass(frozen=True)
class Size:
    """The size of some numbers.

    Attributes:
        numbers: how many there are, and `nonzeros`: how many of them are not zero.
        l1, l2, linf: norms (None where a number is not finite).
    """

    numbers: int = 0
    nonzeros: int = 0
    l1: float | None = 0.0
    l2: float | None = 0.0
    linf: float | None = 0.0

    @classmethod
    def of(cls, tensors: Iterable[Tensor]) -> Size:
        """Return the size of all numbers of some tensors together."""
        numbers = nonzeros = 0
        l1 = squares = linf = 0.0
        finite = True
        for tensor in tensors:
            x = _plain(tensor)
            numbers, nonzeros = numbers + x.numel(), nonzeros + int((x != 0).sum())
            finite = finite and bool(torch.isfinite(x).all())
            if x.numel() and finite:
                l1, squares = l1 + float(x.abs().sum()), squares + float(x.square().sum())
                linf = max(linf, float(x.abs().max()))
        norms = (l1, squares**0.5, linf) if finite else (None, None, None)
        return cls(numbers, nonzeros, *norms)

    def norms(self) -> str:
        """Return the norms in words."""
        if self.l1 is None or self.l2 is None or self.linf is None:
            return "not finite"
        return f"l1 {self.l1:.4g}, l2 {self.l2:.4g}, max {self.linf:.4g}"


@dataclass(frozen=True)
class WeightChange:
    """The size of the change, as stored in the model's own dtype.

    Attributes:
        l1, l2, linf: norms of the change of all parameters and buffers together (None where that is not all that
            changed, or not finite: `why` says so), and `nonzeros`: how many of these numbers changed.
        of: what the four measure.
        why: why they are not given; empty where they are.
        parameters, buffers: the change of those that both networks have.
        added, removed: those that only the repaired or only the original network has, as they are.
        differences: what else is not the same: modules, attributes, shapes, dtypes, hooks.
        carried: what a wrapper carries beside the original network; empty where there is none.
    """

    l1: float | None
    l2: float | None
    linf: float | None
    nonzeros: int | None
    of: str = "parameters and buffers"
    why: str = ""
    parameters: Size = field(default_factory=Size)
    buffers: Size = field(default_factory=Size)
    added: Size = field(default_factory=Size)
    removed: Size = field(default_factory=Size)
    differences: list[str] = field(default_factory=list)
    carried: str = ""

    @property
    def is_patch(self) -> bool:
        """Whether other values of the same parameters and buffers are all that there is to the change."""
        return not (self.added.numbers or self.removed.numbers or self.differences)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, lists and strings (JSON)."""
        return asdict(self)

    def rows(self) -> list[tuple[str, str]]:
        """Return what a report says of it."""
        rows = []
        if self.nonzeros is None:
            rows.append(("size of change", f"not one number: {self.why}"))
        elif self.is_patch:
            buffers = f", {self.buffers.nonzeros} of {self.buffers.numbers} in buffers" if self.buffers.nonzeros else ""
            changed = f"{self.parameters.nonzeros} of {self.parameters.numbers}{buffers}"
            rows.append(("weights changed", changed))
            rows.append(("size of change", Size(0, 0, self.l1, self.l2, self.linf).norms()))
        else:
            rows.append(("size of change", f"{Size(0, 0, self.l1, self.l2, self.linf).norms()}, of {self.of}"))
        if not self.is_patch or self.nonzeros is None:
            for name, size in (("parameters changed", self.parameters), ("buffers changed", self.buffers)):
                norms = f": {size.norms()}" if size.nonzeros else ""
                if size.numbers:
                    rows.append((name, f"{size.nonzeros} of {size.numbers} that both networks have{norms}"))
            for name, size in (("added", self.added), ("removed", self.removed)):
                if size.numbers:
                    rows.append((name, f"{counted(size.numbers, 'number')}: {size.norms()}"))
        if self.carried:
            rows.append(("carried", self.carried))
        if self.differences:
            more = len(self.differences) - NAMED
            said = "; ".join(self.differences[:NAMED])
            rows.append(("also different", said + (f"; and {more} more" if more > 0 else "")))
        return rows


def weight_change(before: nn.Module, after: nn.Module) -> WeightChange:
    """Return how large the change is, and what of it has no size."""
    found = _compared(before, after)
    around = _around(before, after)
    if around and not found.is_patch:
        own = Size.of(tensor for wrapper in around for tensor in wrapper.change.values())
        carries = " and ".join(dict.fromkeys(wrapper.carries for wrapper in around))
        found = replace(found, l1=own.l1, l2=own.l2, linf=own.linf, nonzeros=own.nonzeros, of=carries)
    if isinstance(after, Wrapper):
        found = replace(found, carried=_carried(around or [after]))
    if not found.is_patch and found.of == WeightChange.of:
        return unsized(found, "the networks do not have the same parts")
    return unsized(found, "some of the new numbers are not finite") if found.l1 is None else found


def _around(before: nn.Module, after: nn.Module) -> list[Wrapper]:
    """Return the wrappers around a network as it was, or around what is inside its own; none where it has changed."""
    starts = [before]
    while isinstance(starts[-1], Wrapper):
        starts.append(starts[-1].base)
    found: list[Wrapper] = []
    while isinstance(after, Wrapper):
        found.append(after)
        after = after.base
        for start in starts:
            change = _compared(start, after)
            if change.is_patch and change.nonzeros == 0:
                return found
    return []


def _carried(wrappers: list[Wrapper]) -> str:
    added = [wrapper.added for wrapper in wrappers]
    if len(added) == 1:
        return str(added[0])
    numbers, size = sum(a.numbers for a in added), sum(a.bytes for a in added)
    return f"{len(added)} wrappers: {counted(numbers, 'number')}, {counted(size, 'byte')}"


def _compared(before: nn.Module, after: nn.Module) -> WeightChange:
    """Return what both networks have, what only one has, and what else differs."""
    prefix = _prefix(before, after)
    pairs, lost, fresh, moved = _matched(_tensors(before), _tensors(after), prefix)
    differences = _modules(before, after, prefix)
    if differences:  # what copying alone takes away (hooks of an exported program) is no change of the method's
        alike = _modules(before, copied(before), "")
        differences = [difference for difference in differences if difference not in alike]
    both, parameters, buffers = (Size.of(_changes(pairs, is_parameter)) for is_parameter in (None, True, False))
    return WeightChange(
        both.l1,
        both.l2,
        both.linf,
        both.nonzeros,
        parameters=parameters,
        buffers=buffers,
        added=Size.of(_distinct(fresh)),
        removed=Size.of(_distinct(lost)),
        differences=[*differences, *moved, *_kept_otherwise(pairs)],
    )


def unsized(change: WeightChange, why: str) -> WeightChange:
    """Return the same without one number for the size, which would not be true."""
    return replace(change, l1=None, l2=None, linf=None, nonzeros=None, why=why)


@dataclass(frozen=True)
class _Held:
    """A parameter or a buffer, `stored` where it is part of the network's state."""

    tensor: Tensor
    is_parameter: bool
    stored: bool


def _tensors(model: nn.Module) -> dict[str, _Held]:
    """Return all tensors that a network holds, by name; tied ones under every name."""
    state = model.state_dict(keep_vars=True)
    held = {n: _Held(p.detach(), True, True) for n, p in model.named_parameters(remove_duplicate=False)}
    held |= {n: _Held(b.detach(), False, n in state) for n, b in model.named_buffers(remove_duplicate=False)}
    return held


def _matched(
    old: dict[str, _Held], new: dict[str, _Held], prefix: str
) -> tuple[dict[str, tuple[_Held, _Held]], dict[str, _Held], dict[str, _Held], list[str]]:
    """Return which tensors are the same part of both networks, those of only one, and words on what moved."""
    pairs: dict[str, tuple[_Held, _Held]] = {}
    lost, fresh, said = dict(old), dict(new), list[str]()
    for name, held in old.items():
        other = new.get(prefix + name)
        if other is not None and held.tensor.shape == other.tensor.shape:
            pairs[name] = (lost.pop(name), fresh.pop(prefix + name))
        elif other is not None:
            said.append(f"{name}: shape {tuple(held.tensor.shape)} -> {tuple(other.tensor.shape)}")
    for name, held in list(lost.items()):
        same = next((n for n, other in fresh.items() if _equal(held.tensor, other.tensor)), None)
        if same is not None:  # the same numbers under another name
            pairs[name] = (lost.pop(name), fresh.pop(same))
            said.append(f"{name} is now {same}")
    return pairs, lost, fresh, said


def _prefix(before: nn.Module, after: nn.Module) -> str:
    """Return where in the new network the old one is: "" for the whole of it, "base." for a part of that name."""
    names = {name: p.shape for name, p in before.named_parameters()}
    other = {name: p.shape for name, p in after.named_parameters(remove_duplicate=False)}
    for prefix in ("", *(f"{name}." for name, _ in after.named_modules() if name)):
        if all(other.get(prefix + name) == shape for name, shape in names.items()):
            return prefix
    return ""


def _plain(tensor: Tensor) -> Tensor:
    """Return any tensor's numbers in float64 on the CPU."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    tensor = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return tensor.to("cpu", torch.float64)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and not bool((_difference(a, b) != 0).any())


def _difference(old: Tensor, new: Tensor) -> Tensor:
    """Return new - old; 0 where both are the same infinity, or NaN."""
    alike = old.dtype == new.dtype and old.layout == new.layout == torch.strided and old.device == new.device
    if alike and torch.equal(old, new):  # large buffers (a graph's edges) need no copies then
        return torch.zeros((), dtype=torch.float64).expand(old.shape)
    a, b = _plain(old), _plain(new)
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, b - a)


def _changes(pairs: dict[str, tuple[_Held, _Held]], is_parameter: bool | None) -> Iterator[Tensor]:
    """Yield the change of every tensor, of tied ones once."""
    chosen = [pair for pair in pairs.values() if is_parameter in (None, pair[0].is_parameter)]
    for old, new in {(_place(old), _place(new)): (old, new) for old, new in chosen}.values():
        yield _difference(old.tensor, new.tensor)


def _distinct(held: dict[str, _Held]) -> Iterator[Tensor]:
    """Yield tensors, tied ones once."""
    yield from {_place(each): each.tensor for each in held.values()}.values()


def _place(held: _Held) -> tuple[Any, ...]:
    """Return what is the same for two names of one tensor."""
    x = held.tensor
    return (x.data_ptr(), x.shape, x.stride()) if x.numel() and x.layout == torch.strided else (id(held),)


def _kept_otherwise(pairs: dict[str, tuple[_Held, _Held]]) -> list[str]:
    """Return which tensors are of another dtype or kind now, or changed without being part of the state."""
    found, retyped = [], dict[str, list[str]]()
    for name, (old, new) in pairs.items():
        if old.tensor.dtype != new.tensor.dtype:
            retyped.setdefault(f"{old.tensor.dtype} -> {new.tensor.dtype}", []).append(name)
        if old.is_parameter != new.is_parameter:
            found.append(f"{name} is {'a parameter' if new.is_parameter else 'no parameter'} now")
        if not (old.stored and new.stored) and not _equal(old.tensor, new.tensor):
            found.append(f"{name}, which is not part of the state, has changed")
    return [f"{how}: {', '.join(names)}" for how, names in retyped.items()] + found


def _modules(before: nn.Module, after: nn.Module, prefix: str) -> list[str]:
    """Return which modules are other ones now, or have other settings or hooks."""
    old, new = (dict(model.named_modules(remove_duplicate=False)) for model in (before, after))
    found = []
    if prefix:
        found.append(f"the network is the part {prefix[:-1]!r} of a {type(after).__name__} now")
    place = {name: (prefix + name).removesuffix(".") for name in old}
    for name, module in old.items():
        other = new.get(place[name])
        if other is None:
            parent = name.rpartition(".")[0]
            if place[parent] in new or not name:
                found.append(f"{name}: {type(module).__name__} is gone")
        elif _title(module) != _title(other):
            found.append(f"{name or 'the network'}: {type(module).__name__} -> {type(other).__name__}")
        else:
            found += [f"{name}{'.' if name else ''}{what}" for what in _settings(module, other)]
    known = set(place.values())
    parts = prefix.split(".")
    above = {".".join(parts[:k]) for k in range(len(parts))}
    fresh = [name for name in new if name not in known | above]
    tops = [name for name in fresh if name.rpartition(".")[0] not in fresh]
    return found + [f"new: {name} ({type(new[name]).__name__})" for name in tops]


def _title(module: nn.Module) -> str:
    """Name a module's class; generated classes (of exported programs) are another object for each copy."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _settings(old: nn.Module, new: nn.Module) -> list[str]:
    """Return which plain attributes and hooks of a module are not the same."""
    mine, theirs = _attributes(old), _attributes(new)
    found = []
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            found.append(f"{name}: {mine.get(name)!r} -> {theirs.get(name)!r}")
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        counts = [len(getattr(module, hooks)) for module in (old, new)]
        if counts[0] != counts[1]:
            found.append(f"{hooks[1:].replace('_', ' ')}: {counts[0]} -> {counts[1]}")
    if vars(old).get("forward") is None and vars(new).get("forward") is not None:
        found.append("forward was replaced")
    return found


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Return the settings of a wrapper or one of torch's own layers; others may count or cache when they run."""
    if isinstance(module, Wrapper):
        return module.settings
    if not type(module).__module__.startswith("torch."):
        return {}
    plain = (bool, int, float, str)
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training"
        if isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(v, plain) for v in value))
    }
