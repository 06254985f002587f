"""A network of onnx_graph.py written out as a chain of matrices, for check.py: nothing computed, nothing rounded.

Every layer maps all that is there to what is needed next: its first units may have ReLUs, the others have none. A value
that is needed again later is carried along by units that copy it, so that sums of values fit into a chain. Convolutions
and averages are matrices; max(a, b) is a + max(b - a, 0). All entries are numbers of the file, 1, -1 or 1 / 2^n: an
average over another number of entries, and a normalisation, would have to be rounded, and is not read.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_graph
from bounded import Unreadable
from matrices import affine, windows
from reading import Array, Layer, limit

MAX_WEIGHTS = 2**26  # of a network, with those of layers that only copy and add


class Chain:
    """The layers so far, and where the entries of each value are among what the last of them gives."""

    def __init__(self, graph: onnx_graph.Graph) -> None:
        self.graph, self.layers = graph, list[Layer]()
        self.places = {graph.input: np.arange(math.prod(graph.shapes[graph.input])).reshape(graph.shapes[graph.input])}
        self.last = {name: k for k, node in enumerate(graph.nodes) for name in node.inputs} | {graph.output: math.inf}

    @property
    def size(self) -> int:
        return len(self.layers[-1].bias) if self.layers else math.prod(self.graph.shapes[self.graph.input])

    def extend(self, count: int, entries: list[Any], k: int, bent: int = 0, bias: Any = 0.0) -> None:
        """Add a layer of `count` units, the first `bent` of them with ReLUs, and copies of what nodes after k read.

        Entries are (unit, place, number), arrays of one shape.
        """
        live = [name for name in self.places if self.last.get(name, -1) > k]
        carried = np.unique(np.concatenate([np.arange(0), *(self.places[name].ravel() for name in live)]))
        held, size = sum(layer.weight.size for layer in self.layers), self.size
        limit("weights", held + (count + len(carried)) * size, MAX_WEIGHTS)
        weight = np.zeros((count + len(carried), size))
        for unit, place, number in entries:
            np.add.at(weight, np.broadcast_arrays(unit, place), number)
        weight[count + np.arange(len(carried)), carried] = 1
        moved = np.zeros(size, int)
        moved[carried] = count + np.arange(len(carried))
        self.places = {name: moved[self.places[name]] for name in live}
        bias = np.concatenate([np.broadcast_to(bias, count), np.zeros(len(carried))])
        self.layers.append(Layer(weight, bias, bent > 0, len(bias) - bent if bent else 0))

    def alone(self, name: str, k: int) -> bool:
        """Tell whether the last layer has no ReLUs yet, and node k alone reads what its first units give, `name`."""
        place = self.places[name].ravel()
        others = [self.places[other] for other in self.places if other != name and self.last.get(other, -1) > k]
        first = bool(self.layers) and not self.layers[-1].relu and np.array_equal(place, np.arange(len(place)))
        return first and self.last[name] == k and all((other >= len(place)).all() for other in others)

    def add(self, k: int, node: onnx_graph.Node) -> None:
        """Add a node."""
        values = [name for name in node.inputs if name in self.graph.shapes]
        constants = [self.graph.constants[name] for name in node.inputs if name in self.graph.constants]
        at, count = self.places[values[0]], math.prod(node.shape)
        units = np.arange(count)
        if node.op in ("Flatten", "Reshape", "Identity"):
            place = at.reshape(node.shape)
        elif node.op == "Transpose":
            place = at.transpose([axis - 1 for axis in node.options["perm"][1:]])
        elif node.op in ("Add", "Sub") and constants:
            if node.op == "Sub" and node.inputs[0] != values[0]:
                raise Unreadable("it subtracts from a constant; only the opposite is supported")
            bias = np.broadcast_to(constants[0].astype(float), (1, *node.shape)).ravel()
            bias, place = -bias if node.op == "Sub" else bias, at
            if bias.any() and self.alone(values[0], k) and not self.layers[-1].bias[units].any():
                self.layers[-1].bias[units] = bias
            elif bias.any():
                self.extend(count, [(units, at.ravel(), 1.0)], k, bias=bias)
                place = units.reshape(node.shape)
        elif node.op == "Relu" and self.alone(values[0], k):
            self.layers[-1].relu, self.layers[-1].carried = True, len(self.layers[-1].bias) - count
            place = at
        else:
            if node.op == "MaxPool":
                self.largest(k, windows(at, node.options).reshape(count, -1))
            elif node.op == "Relu":
                self.extend(count, [(units, at.ravel(), 1.0)], k, bent=count)
            elif node.op in ("Add", "Sub"):
                sign = -1.0 if node.op == "Sub" else 1.0
                entries = [(units, self.places[name].ravel(), f) for name, f in zip(values, (1.0, sign), strict=True)]
                self.extend(count, entries, k)
            else:
                entries, bias = affine(node, at, [c.astype(float) for c in constants])
                self.extend(count, entries, k, bias=bias)
            place = units.reshape(node.shape)
        self.places[node.output] = place

    def largest(self, k: int, entries: Array) -> None:
        """Add layers whose first units give the largest entry of each row of places, -1 being none."""
        n, outside = len(entries), entries.max(1, keepdims=True)
        parts = [column[:, None] for column in np.where(entries < 0, outside, entries).T]  # each a sum of units
        while len(parts) > 1:
            pairs, odd = len(parts) // 2, len(parts) % 2
            at, more = np.arange(n)[:, None], []
            for i in range(pairs):
                more += [(i * n + at, parts[2 * i + 1], 1.0), (i * n + at, parts[2 * i], -1.0)]
            for i in range(pairs + odd):
                more.append(((pairs + i) * n + at, parts[2 * i], 1.0))
            self.extend((2 * pairs + odd) * n, more, k, bent=pairs * n)
            parts = [np.hstack([i * n + at, (pairs + i) * n + at]) for i in range(pairs)]
            parts += [(2 * pairs + i) * n + at for i in range(odd)]
        self.extend(n, [(np.arange(n)[:, None], parts[0], 1.0)], k)


def read_network(data: bytes) -> list[Layer]:
    """Read the layers of a network, or raise Unreadable."""
    chain = Chain(onnx_graph.read(data))
    for k, node in enumerate(chain.graph.nodes):
        try:
            chain.add(k, node)
        except Unreadable as error:
            raise Unreadable(f"{node.op} {node.output[:80]!a}: {error}") from None
    place = chain.places[chain.graph.output].ravel()
    if not chain.layers or not np.array_equal(place, np.arange(chain.size)):
        chain.last = {}
        chain.extend(len(place), [(np.arange(len(place)), place, 1.0)], len(chain.graph.nodes))
    return chain.layers
