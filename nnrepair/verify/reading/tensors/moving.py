"""What moves entries: reshaping, choosing, joining, padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nnrepair.verify.reading.affine import Place
from nnrepair.verify.reading.builder import Builder, Unreadable, Value
from nnrepair.verify.reading.symbols import Symbol, Table


def moving(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the reader of a function that only moves entries, or leaves zeros."""

    def read(b: Builder, x: Any, *arguments: Any, **settings: Any) -> Any:
        if not isinstance(x, Symbol):
            raise Unreadable("where it looks depends on the input")
        made = function(x.places(), *arguments, **settings)
        return tuple(x.moved(part) for part in made) if isinstance(made, tuple | list) else x.moved(made)

    return read


def joined(b: Builder, parts: Sequence[Any], join: Callable[[list[Tensor]], Tensor]) -> Symbol:
    """Return what joins tensors, some of which are constants."""
    symbols = [part for part in parts if isinstance(part, Symbol)]
    starts = [sum(part.numel() for part in symbols[:k]) for k in range(len(symbols))]
    offsets = iter(starts)
    places = join(
        [p.places() + next(offsets) if isinstance(p, Symbol) else torch.zeros(p.shape).double() for p in parts]
    )
    stored = join([torch.zeros(p.shape).double() if isinstance(p, Symbol) else b.constant(p) for p in parts])
    index, size, pieces = places.reshape(-1).long() - 1, places.numel(), list[Value]()
    for symbol, start in zip(symbols, starts, strict=True):
        mine = ((index >= start) & (index < start + symbol.numel())).nonzero()[:, 0]
        part = symbol.moved((index[mine] - start + 1).double())
        pieces.append(b.affine(part.flat, Place(mine, size), (size,)))
    made = pieces[0] if len(pieces) == 1 else b.total(*pieces)
    if bool((stored != 0).any()):
        made = b.scaled(made, 1.0, stored.reshape(-1))
    return Symbol(b, made.node, places.shape, symbols[0].dtype)


def _cat(b: Builder, parts: Sequence[Any], dim: int = 0) -> Symbol:
    return joined(b, parts, lambda tensors: torch.cat(tensors, dim))


def _stack(b: Builder, parts: Sequence[Any], dim: int = 0) -> Symbol:
    return joined(b, parts, lambda tensors: torch.stack(tensors, dim))


def _pad(b: Builder, x: Symbol, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Symbol:
    places = F.pad(x.places(), tuple(pad), mode)
    made = x.moved(places)
    if not value:
        return made
    if not math.isfinite(value):
        raise Unreadable(f"it pads with {value}")
    return made.shaped(b.scaled(made.flat, 1.0, b.constant(value) * (places.reshape(-1) == 0)))


MOVES = (
    *("reshape", "view", "flatten", "permute", "transpose", "swapaxes", "movedim", "moveaxis", "squeeze", "unsqueeze"),
    *("expand", "repeat", "tile", "narrow", "select", "index_select", "flip", "roll", "split", "chunk", "unbind"),
    *("diagonal", "tril", "triu", "repeat_interleave", "unflatten"),
)


def _method(name: str) -> Callable[..., Any]:
    return lambda x, *arguments, **settings: getattr(x, name)(*arguments, **settings)


def _same(b: Builder, x: Symbol, *arguments: Any, **settings: Any) -> Symbol:
    return x


MOVING: Table = {
    **{name: moving(_method(name)) for name in MOVES},
    **{
        name: moving(getattr(torch, name)) for name in ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "gather")
    },
    "getitem": moving(lambda x, index: x[index]),
    "expand_as": moving(lambda x, other: x.expand(other.shape)),
    "view_as": moving(lambda x, other: x.reshape(other.shape)),
    **dict.fromkeys(("contiguous", "clone", "detach", "alias"), _same),
    **dict.fromkeys(("cat", "concat"), _cat),
    "stack": _stack,
    "pad": _pad,
    "zeros_like": lambda b, x, **more: torch.zeros(x.shape, dtype=x.dtype),
    "ones_like": lambda b, x, **more: torch.ones(x.shape, dtype=x.dtype),
    "full_like": lambda b, x, value, **more: torch.full(x.shape, value, dtype=x.dtype),
    "new_zeros": lambda b, x, *size, **more: torch.zeros(*size, dtype=x.dtype),
}
