"""Read torch code by running it on what stands for a tensor: every operation becomes nodes of the graph.

Unlike tracing, this knows all sizes, so that code may compute with them. A `Symbol` has the shape of the tensor for one
point, the batch of one among its axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnrepair.verify.reading.affine import Pick, Place
from nnrepair.verify.reading.builder import BATCH, Builder, Unreadable, Value

#: Tells what a function of this name makes of symbols; set by `read_with`.
Table = dict[str, Callable[..., Any]]
_TABLE: Table = {}


def read_with(table: Table) -> None:
    """Add readers to those that symbols ask: functions of (builder, arguments...) by the name of the function."""
    _TABLE.update(table)


@dataclass(frozen=True, eq=False)
class Symbol:
    """A tensor that depends on the input.

    Attributes:
        b: where its node is. node: which one.
        shape: of the tensor, for one point.
        dtype: of the tensor; of whole numbers and truth values it is known that they are whole.
    """

    b: Builder
    node: int
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(
        cls, b: Builder, value: Value, shape: Iterable[int] | None = None, dtype: torch.dtype | None = None
    ) -> Symbol:
        """Return the tensor of a value, which has a batch of one in front unless `shape` says otherwise."""
        dtype = dtype or value.dtype or b.precision
        return cls(b, value.node, torch.Size((1, *value.shape) if shape is None else shape), dtype)

    @property
    def value(self) -> Value:
        """The value, if the batch is still in front."""
        if not self.shape or self.shape[0] != 1:
            raise Unreadable("it moves the batch")
        return Value(self.node, tuple(self.shape[1:]), None if self.dtype.is_floating_point else self.dtype)

    @property
    def flat(self) -> Value:
        """All entries, one after the other."""
        return Value(self.node, (math.prod(self.shape),))

    def shaped(self, value: Value, dtype: torch.dtype | None = None) -> Symbol:
        """Return what was computed entry by entry in this shape."""
        return Symbol(self.b, value.node, self.shape, dtype or self.b.precision)

    def places(self) -> Tensor:
        """Return where each entry is, from 1 on, in the shape of the tensor: what moves these moves the entries."""
        return torch.arange(1.0, math.prod(self.shape) + 1, dtype=torch.float64).reshape(self.shape)

    def moved(self, places: Tensor) -> Symbol:
        """Return the entries at `places`; where these are 0, zeros."""
        index, size = places.reshape(-1).long() - 1, math.prod(self.shape)
        node, kept = self.flat, index >= 0
        if not bool(kept.all()):
            node = self.b.affine(node, Pick(index[kept], size), (int(kept.sum()),))
            node = self.b.affine(node, Place(kept.nonzero()[:, 0], len(index)), (len(index),))
        elif len(index) != size or bool((index != torch.arange(size)).any()):
            node = self.b.affine(node, Pick(index, size), (len(index),))
        self.b.memory[node.node] = self.b.owner(self.flat)  # it may be a view
        return Symbol(self.b, node.node, places.shape, self.dtype)

    # As a tensor -----------------------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def requires_grad(self) -> bool:
        return False

    @property
    def is_nested(self) -> bool:
        """Whether it holds tensors of several sizes; layers of torch ask."""
        return False

    @property
    def is_cuda(self) -> bool:
        return False

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or the size of an axis."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of entries."""
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        """Tell whether it is neither of whole numbers nor of truth values."""
        return self.dtype.is_floating_point

    def __hash__(self) -> int:
        return id(self)

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        raise Unreadable("what it does depends on the values of its input")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in ("T", "mT"):
            return apply("transpose", [self, -1, -2], {})
        return lambda *arguments, **settings: apply(name, [self, *arguments], settings)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: Any = (), settings: dict[str, Any] | None = None
    ) -> Any:
        return apply(function.__name__, arguments, settings or {})


def apply(name: str, arguments: Iterable[Any], settings: dict[str, Any]) -> Any:
    """Return what a function of torch makes of symbols."""
    plain = name.strip("_")
    arguments = list(arguments)
    settings = {key: value for key, value in settings.items() if key != "inplace" or value is not False}
    if name.endswith("_") and not name.startswith("_"):
        raise Unreadable(f"{name} changes a value in place")
    if plain not in _TABLE:
        raise Unreadable(f"the function {name} is not supported")
    b = next(each.b for each in _symbols([arguments, settings]))
    return _TABLE[plain](b, *arguments, **settings)


def lifted(b: Builder, given: Any) -> Any:
    """Return arguments with symbols in place of values, and 1 for the size of the batch."""
    if isinstance(given, dict):
        return {key: lifted(b, each) for key, each in given.items()}
    if isinstance(given, list | tuple):
        return type(given)(lifted(b, each) for each in given)
    return Symbol.of(b, given) if isinstance(given, Value) else 1 if given is BATCH else given


def lowered(made: Any) -> Any:
    """Return results with values in place of symbols, where the batch is still in front."""
    if isinstance(made, list | tuple):
        return type(made)(lowered(each) for each in made)
    return made.value if isinstance(made, Symbol) and made.shape[:1] == (1,) else made


def known(name: str) -> bool:
    """Tell whether symbols know a function, or a method, by its name."""
    return name.strip("_") in _TABLE and not (name.endswith("_") and not name.startswith("_"))


def any_of(*given: Any) -> bool:
    """Tell whether there are symbols among arguments."""
    return next(iter(_symbols(given)), None) is not None


def _symbols(given: Any) -> Iterable[Symbol]:
    if isinstance(given, Symbol):
        yield given
    elif isinstance(given, dict):
        yield from _symbols(list(given.values()))
    elif isinstance(given, list | tuple):
        for each in given:
            yield from _symbols(each)


def _operator(name: str) -> Callable[..., Any]:
    return lambda self, *others: apply(name, [self, *others], {})


def _turned(name: str) -> Callable[..., Any]:
    return lambda self, other: apply(name, [other, self], {})


_OPERATORS = ("add", "sub", "mul", "truediv", "pow", "matmul", "and", "or", "xor")
for _name in (*_OPERATORS, "neg", "invert", "abs", "getitem", "gt", "ge", "lt", "le", "eq", "ne"):
    setattr(Symbol, f"__{_name}__", _operator(_name))
for _name in _OPERATORS:
    setattr(Symbol, f"__r{_name}__", _turned(_name))
