"""The building blocks of a `Graph`, collected while a model is read: affine maps, activations, sums, and their like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.deadline import NEVER, Deadline
from nnrepair.onnx.modules import OnnxGraph
from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.activations.relu import RELU
from nnrepair.verify.reading.affine import Affine, Dense, Diagonal, Pick, Shape
from nnrepair.verify.reading.graph import Graph, Node

# Maps without structure of their own are written as matrices up to this many entries.
MATRIX_LIMIT = 50_000_000
# So many numbers go through them at once for that.
UNIT_NUMBERS = 2_000_000


@dataclass(frozen=True)
class Value:
    """What one node of the graph holds."""

    node: int
    shape: Shape  # of one item, without the batch


class Unreadable(Exception):
    """This one operation cannot be read, for the reason given."""


class Builder:
    """Collect nodes while a model is read operation by operation."""

    def __init__(self, model: nn.Module, shape: Shape, deadline: Deadline = NEVER) -> None:
        self.problems, self.deadline = list[str](), deadline
        self.nodes = [Node((), math.prod(shape))]
        self.input = Value(0, tuple(shape))
        self.dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
        if isinstance(model, OnnxGraph):
            self.dtype = torch.float64  # the numbers in its layers are those of the file, not decimals to be rounded
        self.memory: dict[int, int] = {}  # views: whose memory a node's value shares
        self.changed = set[int]()  # nodes whose values were overwritten in place

    def graph(self, output: Value) -> Graph:
        """Return the graph up to `output`, without what it does not need."""
        needed, stack = set[int](), [output.node, 0]
        while stack:
            k = stack.pop()
            if k not in needed:
                needed.add(k)
                stack.extend(self.nodes[k].sources)
        place = {k: i for i, k in enumerate(sorted(needed))}
        start, nodes = 0, []
        for k in sorted(needed):
            node = self.nodes[k]
            units = None if node.activation is None else slice(start, start + node.size)
            start += 0 if units is None else node.size
            nodes.append(replace(node, sources=tuple(place[s] for s in node.sources), units=units))
        if nodes[-1].activation is not None or len(nodes) == 1:  # so that the output is always an affine node or a sum
            same = Diagonal(torch.ones(nodes[-1].size, dtype=torch.float64))
            nodes.append(Node((len(nodes) - 1,), nodes[-1].size, same))
        return Graph(nodes)

    # Building blocks -------------------------------------------------------------------------------------------------

    def affine(self, x: Value, map: Affine, shape: Shape) -> Value:
        self.deadline.check()
        self.nodes.append(Node((x.node,), len(map.bias), map))
        return Value(len(self.nodes) - 1, shape)

    def activation(self, x: Value, function: Activation) -> Value:
        self.nodes.append(Node((x.node,), math.prod(x.shape), activation=function))
        return Value(len(self.nodes) - 1, x.shape)

    def relu(self, x: Value) -> Value:
        return self.activation(x, RELU)

    def total(self, *parts: Value) -> Value:
        if len({part.shape for part in parts}) != 1:
            raise Unreadable(f"it adds values of the shapes {', '.join(str(p.shape) for p in parts)}")
        self.nodes.append(Node(tuple(part.node for part in parts), math.prod(parts[0].shape)))
        return Value(len(self.nodes) - 1, parts[0].shape)

    def scaled(self, x: Value, factor: Tensor | float, bias: Tensor | float | None = None, inexact: float = 0) -> Value:
        """Return factor * x + bias; both broadcast to one item."""
        full = [None if v is None else self.constant(v).expand(x.shape).reshape(-1) for v in (factor, bias)]
        assert full[0] is not None
        return self.affine(x, Diagonal(full[0], full[1], inexact), x.shape)

    def constant(self, value: Any) -> Tensor:
        """Return a constant as the network computes with it: Python's numbers in the precision of its weights."""
        given = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype)
        return given.double()

    def item(self, constant: Any, x: Value) -> Tensor:
        """Return a constant, without its batch axis of size 1, in the shape of a value."""
        value = self.constant(constant)
        if value.ndim == len(x.shape) + 1 and value.shape[0] == 1:
            value = value[0]
        try:
            return value.expand(x.shape)
        except RuntimeError:
            raise Unreadable(
                f"a constant of shape {tuple(value.shape)} does not fit values of shape {x.shape}"
            ) from None

    def maximum(self, x: Value, windows: Tensor, shape: Shape) -> Value:
        """Return the maximum over each row of `windows` (outputs, entries), pair by pair."""
        size, parts = math.prod(x.shape), [windows[:, k] for k in range(windows.shape[1])]
        values = [self.affine(x, Pick(part, size), shape) for part in parts]
        while len(values) > 1:
            pairs = [values[k : k + 2] for k in range(0, len(values), 2)]
            values = [pair[0] if len(pair) == 1 else self.larger(pair[0], pair[1]) for pair in pairs]
        return values[0]

    def larger(self, x: Value, y: Value, sign: float = 1.0) -> Value:
        """Return max(x, y), or min(x, y) if `sign` is -1."""
        more = self.relu(self.difference(y, x) if sign > 0 else self.difference(x, y))
        return self.total(x, more if sign > 0 else self.scaled(more, -1.0))

    def difference(self, a: Value, b: Value) -> Value:
        return self.total(a, self.scaled(b, -1.0))

    def matrix(self, x: Value, call: Callable[[Tensor], Tensor], inexact: float, bias: Tensor | None = None) -> Value:
        """Return an affine operation as the matrix that its values at the unit vectors spell out.

        Args:
            x: what it reads.
            call: the operation, without the bias if it has one: adding and subtracting it again would round the matrix.
            inexact: relative error of the matrix.
            bias: (channels,), for every channel.
        """
        size = math.prod(x.shape)
        with torch.no_grad():
            origin = call(torch.zeros(1, *x.shape, dtype=torch.float64))
            if size * origin.numel() > MATRIX_LIMIT:
                raise Unreadable(f"it would need a matrix of {origin.numel()} x {size} numbers")
            columns = torch.cat([call(unit.reshape(-1, *x.shape)) - origin for unit in self._units(size)])
        if not bool(torch.isfinite(columns).all()):
            raise Unreadable("it adds infinities")
        shape = tuple(origin.shape[1:])
        if bias is not None:
            origin = bias.detach().double().reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        return self.affine(x, Dense(columns.reshape(size, -1).T, origin.reshape(-1), inexact), shape)

    def _units(self, size: int) -> Iterator[Tensor]:
        """Yield the unit vectors (n, size) in batches of a few numbers: all of them may not fit in memory."""
        for part in torch.split(torch.arange(size), max(1, UNIT_NUMBERS // size)):
            self.deadline.check()
            yield torch.zeros(len(part), size, dtype=torch.float64).scatter_(1, part[:, None], 1.0)

    def owner(self, value: Value) -> int:
        """Return the node that owns the memory of a value."""
        return self.memory.get(value.node, value.node)
