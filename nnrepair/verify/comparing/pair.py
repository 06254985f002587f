"""Two networks as one: what they have in common once, their outputs side by side, and which units a change hangs on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.fingerprint import fingerprint
from nnrepair.verify.reading.activations.base import Activation
from nnrepair.verify.reading.affine import Affine, Dense, Place
from nnrepair.verify.reading.graph import Graph, Node


@dataclass(frozen=True)
class Moved:
    """What a change of the last map alone hangs on: outputs stay bit for bit where all these units are zero.

    Attributes:
        node: what goes into the units, in the joint graph.
        units: (moved,), their places there.
        change: (outputs, moved), of the weights; every column has an entry that is not zero.
        bias: (outputs,), of the bias.
    """

    node: int
    units: Tensor
    change: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Pair:
    """Two networks side by side.

    Attributes:
        graph: its outputs (2 m) are those of the network before, then those of the network after.
        outputs: m.
        shared: how many nodes are computed once for both.
        moved: None where the change is not one of the last map alone, behind ReLUs.
        equal: whether they are one function, for certain.
    """

    graph: Graph
    outputs: int
    shared: int
    moved: Moved | None
    equal: bool = False

    def told(self) -> list[Any]:
        """Return all that tells it from other pairs, as nested lists and dictionaries of tensors and plain values."""
        nodes = self.graph.nodes
        return [self.outputs, *([[*n.sources], n.size, _told(n.affine), _told(n.activation)] for n in nodes)]


def paired(before: Graph, after: Graph) -> Pair:
    """Return two networks as one.

    Raises:
        InvalidInput: they have other numbers of inputs or outputs.
    """
    if (before.inputs, before.outputs) != (after.inputs, after.outputs):
        raise InvalidInput(
            f"Two networks are compared that read and return as many numbers; got {before.inputs} inputs and "
            f"{before.outputs} outputs before, {after.inputs} and {after.outputs} after."
        )
    if _shape(before) == _shape(after):
        last, nodes = len(before.nodes) - 1, list(before.nodes)
        changed = [k for k in range(1, last + 1) if not _alike(before.nodes[k], after.nodes[k])]
        a, b = before.nodes[last].affine, after.nodes[last].affine
        if changed in ([], [last]) and isinstance(a, Dense) and isinstance(b, Dense):
            both = Dense(torch.cat([a.weight, b.weight]), torch.cat([a.bias, b.bias]), max(a.inexact, b.inexact))
            nodes[last] = replace(before.nodes[last], size=2 * before.outputs, affine=both)
            graph = Graph(nodes, before.device)
            return Pair(graph, before.outputs, last, _moved(graph, a, b), equal=not changed)
        return replace(_side_by_side(before, after), equal=not changed)
    return _side_by_side(before, after)


def _moved(graph: Graph, before: Dense, after: Dense) -> Moved | None:
    """Return what a change of the last map hangs on, if it reads ReLUs."""
    units = graph.nodes[graph.nodes[-1].sources[0]]
    if units.activation is None or units.activation.name != "ReLU":
        return None
    change = after.weight - before.weight  # exact or not, it is zero only where both are equal
    moves = (before.weight != after.weight).any(0).nonzero()[:, 0]
    return Moved(units.sources[0], moves, change[:, moves], after.bias - before.bias)


def _side_by_side(before: Graph, after: Graph) -> Pair:
    """Return a graph with the nodes of both; equal ones that come before all differences are there once."""
    nodes, place, units = list(before.nodes), [0], before.hidden
    shared = 1
    for k, node in enumerate(after.nodes[1:], 1):
        sources = tuple(place[s] for s in node.sources)
        twin = before.nodes[k] if k < len(before.nodes) - 1 else None
        if twin is not None and twin.sources == sources and twin.size == node.size and _alike(twin, node):
            place.append(k)
            shared += 1
            continue
        own = None
        if node.activation is not None:
            own = slice(units, units + node.size)
            units += node.size
        place.append(len(nodes))
        nodes.append(replace(node, sources=sources, units=own))
    m, each = before.outputs, torch.arange(before.outputs, device=before.device)
    ends = []
    for source, index in ((len(before.nodes) - 1, each), (place[-1], each + m)):
        ends.append(len(nodes))
        nodes.append(Node((source,), 2 * m, Place(index, 2 * m)))
    nodes.append(Node(tuple(ends), 2 * m))
    return Pair(Graph(nodes, before.device), m, shared, None)


def _shape(graph: Graph) -> list[tuple[object, ...]]:
    return [(node.sources, node.size, type(node.activation), type(node.affine)) for node in graph.nodes]


def _alike(a: Node, b: Node) -> bool:
    """Tell whether two nodes with the same sources compute the same, for certain."""
    return _same(a.affine, b.affine) and _same(a.activation, b.activation)


def _same(a: Affine | Activation | None, b: Affine | Activation | None) -> bool:
    """Tell whether two maps or activations are equal, with all their numbers (an epsilon, a type), for certain."""
    if a is None or b is None:
        return a is b
    if type(a) is not type(b) or set(vars(a)) != set(vars(b)):
        return False
    return all(_equal(value, vars(b)[name]) for name, value in vars(a).items())


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool((a == b).all())
    if isinstance(a, Affine) and isinstance(b, Affine):
        return _same(a, b)
    if isinstance(a, nn.Module) and isinstance(b, nn.Module):  # the layer of a convolution
        return repr(a) == repr(b) and fingerprint(a) == fingerprint(b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(value, b[key]) for key, value in a.items())
    plain = isinstance(a, int | float | str | torch.dtype | None)
    return plain and type(a) is type(b) and bool(a == b)


def _told(part: object) -> Any:
    if not isinstance(part, Affine | Activation):
        return part
    return [type(part).__name__, {name: _told(value) for name, value in vars(part).items()}]
