"""The building blocks of a `Graph`, collected while a model is read: affine maps, activations, sums, and their like."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.deadline import NEVER, Deadline
from nnrepair.onnx.modules import OnnxGraph
from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.activations.relu import RELU
from nnrepair.verify.reading.activations.square import SQUARE
from nnrepair.verify.reading.affine import Affine, Diagonal, Pick, Place, Shape
from nnrepair.verify.reading.graph import Graph, Node

# Stands for the size of the batch where a model asks for it.
BATCH = "batch"
# Maps without structure of their own are written as matrices up to this many entries.
MATRIX_LIMIT = 50_000_000
# So many numbers go through them at once for that.
UNIT_NUMBERS = 2_000_000


@dataclass(frozen=True)
class Value:
    """What one node of the graph holds."""

    node: int
    shape: Shape  # of one item, without the batch
    dtype: torch.dtype | None = None  # of whole numbers and truth values; None where it is of floating point


class Unreadable(Exception):
    """This one operation cannot be read, for the reason given."""


class Builder:
    """Collect nodes while a model is read operation by operation."""

    def __init__(
        self,
        model: nn.Module,
        shape: Shape,
        deadline: Deadline = NEVER,
        region: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.problems, self.deadline = list[str](), deadline
        self.region, self.asked = region, False  # whether anything was written for a region
        self.ranges = [] if region is None else [region]  # of nodes, as far as they were asked for
        self.nodes = [Node((), math.prod(shape))]
        self.input = Value(0, tuple(shape))
        self.dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
        self.precision = self.dtype  # of the values
        if isinstance(model, OnnxGraph):
            kinds = [each.dtype for each in model.inputs] + [t.dtype for t in (*model.parameters(), *model.buffers())]
            floats = [kind for kind in kinds if kind.is_floating_point]
            self.precision = max(floats, key=lambda kind: torch.finfo(kind).bits, default=self.precision)
            self.dtype = torch.float64  # the numbers in its layers are those of the file, not decimals to be rounded
        self.memory: dict[int, int] = {}  # views: whose memory a node's value shares
        self.changed = set[int]()  # nodes whose values were overwritten in place
        self.ordered: dict[int, int] = {}  # nodes whose entries are in the order of those of another one

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
        return Graph(nodes, regional=self.asked, scores=self._scores(output.node))

    def _scores(self, k: int) -> Graph | None:
        """Return the graph up to what is in the same order as a node, if there is such a node before it."""
        node = self.nodes[k]
        before = node.sources[0] if node.activation is not None and node.activation.increases else self.ordered.get(k)
        if before is None:
            return None
        found = self.graph(Value(before, (self.nodes[before].size,)))
        return found.scores or found

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

    def scaled(
        self,
        x: Value,
        factor: Tensor | float,
        bias: Tensor | float | None = None,
        inexact: float = 0,
        of: tuple[Tensor, ...] = (),
    ) -> Value:
        """Return factor * x + bias; both broadcast to one item. See `Diagonal` for inexact factors."""
        full = [None if v is None else self.constant(v).expand(x.shape).reshape(-1) for v in (factor, bias)]
        assert full[0] is not None
        return self.affine(x, Diagonal(full[0], full[1], inexact, of), x.shape)

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

    def fixed(self, x: Value) -> Tensor | None:
        """Return the entries of a value exactly, where they are inputs that the region leaves no choice; else None."""
        self.asked = True
        if self.region is None:
            return None
        chain, node = list[Affine](), self.nodes[x.node]
        while isinstance(node.affine, Pick | Place):
            chain.append(node.affine)
            node = self.nodes[node.sources[0]]
        low, high = self.region
        if node.sources:
            return None
        value = torch.where(low == high, low, torch.nan)
        for map in reversed(chain):
            value = map.apply(value)
        return None if bool(value.isnan().any()) else value

    def product(self, x: Value, y: Value) -> Value:
        """Return x y, entry by entry, of two values of the same shape.

        With s = a (x - c) + (y - d) / a and t = a (x - c) - (y - d) / a it is (s^2 - t^2) / 4 + d x + c y - c d, for
        any a, c and d. Lines around the squares are closest where c and d are in the middle of what x and y can be and
        a makes their widths alike: they lose twice what the best planes around a product do (McCormick, 1976). All
        three have few digits, so that nothing is rounded: c and d those of float32, and a is a power of two.
        """
        self.asked = True
        (c, wide), (d, high) = self._middle(x), self._middle(y)
        a = torch.exp2(((high / wide).log2() / 2).round().nan_to_num(0.0, 20.0, -20.0).clamp(-20, 20))
        parts = self.scaled(x, a, -a * c), self.scaled(y, 1 / a, -d / a)
        squares = [self.activation(part, SQUARE) for part in (self.total(*parts), self.difference(*parts))]
        quarters = [self.scaled(square, sign / 4) for square, sign in zip(squares, (1.0, -1.0), strict=True)]
        return self.total(*quarters, self.scaled(x, d), self.scaled(y, c, -c * d))

    def _middle(self, x: Value) -> tuple[Tensor, Tensor]:
        """Return the middle of what a value can be over the region, in few digits, and about how wide that is."""
        if not self.ranges:
            return torch.zeros(x.shape, dtype=torch.float64), torch.ones(x.shape, dtype=torch.float64)
        for node in self.nodes[len(self.ranges) :]:
            self.deadline.check()
            low, high = self.ranges[node.sources[0]]
            if node.affine is not None:
                middle = node.affine.apply((low + high) / 2) + node.affine.bias
                radius = node.affine.magnitude((high - low) / 2)
                self.ranges.append((middle - radius, middle + radius))
            elif node.activation is not None:
                self.ranges.append(node.activation.enclose(low, high))
            else:
                parts = [self.ranges[source] for source in node.sources]
                self.ranges.append((sum((p[0] for p in parts[1:]), low), sum((p[1] for p in parts[1:]), high)))
        low, high = (end.reshape(x.shape) for end in self.ranges[x.node])
        middle = ((low + high) / 2).float().double()
        return middle.nan_to_num(0.0, 0.0, 0.0), (high - low).clamp(min=0)

    def units(self, size: int) -> Iterator[Tensor]:
        """Yield the unit vectors (n, size) in batches of a few numbers: all of them may not fit in memory."""
        for part in torch.split(torch.arange(size), max(1, UNIT_NUMBERS // size)):
            self.deadline.check()
            yield torch.zeros(len(part), size, dtype=torch.float64).scatter_(1, part[:, None], 1.0)

    def owner(self, value: Value) -> int:
        """Return the node that owns the memory of a value."""
        return self.memory.get(value.node, value.node)
