"""Graphs that are like Reddit: 232 965 nodes, 114 615 892 edges, 602 features, 41 classes; or of other sizes.

`reddit_like` makes them with stated degrees and homophily, and `statistics` counts what a graph is like; Reddit itself
is loaded by `nnrepair.domains.graphs.data.reddit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnrepair.domains.graphs.checks import NODES
from nnrepair.domains.graphs.large import CHUNK, Csr, LargeGraph, chunks
from nnrepair.errors import InvalidInput

Array = np.ndarray[Any, Any]

#: Shares of nodes to train on and to validate with, as in Reddit; the others are to test.
TRAIN, VALIDATE = 0.66, 0.10
#: Rounds in which parallel edges are replaced before a graph is called too dense.
ROUNDS = 60


def reddit_like(
    nodes: int = 232_965,
    edges: int = 114_615_892,
    features: int = 602,
    classes: int = 41,
    *,
    homophily: float = 0.77,
    spread: float = 2.0,
    partner: float = 0.5,
    degree_sigma: float = 1.25,
    signal: float = 3.0,
    seed: int = 0,
) -> LargeGraph:
    """Make a graph with communities, heavy-tailed degrees and exactly so many edges, without loops or parallel edges.

    * Class k has a share of the nodes in proportion to 1 / sqrt(k + 1).
    * Node v has a weight w[v], lognormal with `degree_sigma`, and a share a[v] of it, Beta distributed with mean
      `homophily`, for its own class. Edges within classes join nodes in proportion to w * a, and edges between classes
      in proportion to w * (1 - a): degrees follow w except where a class has no more room for distinct edges.
    * Of the edges between classes, a share `partner` leads to the one class that its first node prefers. A node whose
      own share is small thus looks like one of another class: these are the mistakes that networks make.
    * Features are the class mean, a random direction of length `signal`, plus standard normal noise in every feature.
    * Two thirds of the nodes are to train on, a tenth to validate and a quarter to test, as in Reddit.

    The same arguments give the same graph. Peak memory: about 12 bytes per edge, or the features and 4 bytes per edge,
    whichever is more (1.3 GiB at the default size, of which 1.0 GiB is the graph).

    >>> graph = reddit_like(nodes=500, edges=5_000, features=8, classes=5)
    >>> len(graph.edges), graph.x.shape, round(statistics(graph).homophily, 2)
    (5000, torch.Size([500, 8]), 0.77)

    Args:
        nodes, features, classes: how many.
        edges: how many in the list of edges, which holds each in both directions: an even number.
        homophily: share of the edges that join nodes of one class.
        spread: how alike nodes are in their own shares; the sum of the Beta distribution's parameters.
        partner: see above.
        degree_sigma: standard deviation of log w; 0 gives all nodes the same weight.
        signal: length of a class mean.
        seed: of all random choices; the global random state is not used.

    Raises:
        InvalidInput: numbers out of range, or more edges than such a graph has room for.
    """
    for value, low, what in (
        (nodes, 2, "nodes"),
        (edges, 2, "edges"),
        (features, 1, "features"),
        (classes, 2, "classes"),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise InvalidInput(f"{what} must be an integer of at least {low}, got {value!r}.")
    if edges % 2 or nodes < 2 * classes or nodes >= 2**31:
        raise InvalidInput(
            f"edges must be even (each is listed in both directions), and there must be two nodes per class, at most "
            f"{2**31 - 1}; got edges={edges}, nodes={nodes}, classes={classes}."
        )
    for number, fits, name, needed in (
        (homophily, 0 < homophily < 1, "homophily", "between 0 and 1"),
        (spread, spread > 0, "spread", "positive"),
        (partner, 0 <= partner <= 1, "partner", "from 0 to 1"),
        (degree_sigma, degree_sigma >= 0, "degree_sigma", "at least 0"),
        (signal, signal >= 0, "signal", "at least 0"),
    ):
        if not fits or not np.isfinite(number):
            raise InvalidInput(f"{name} must be {needed}, got {number}.")
    random, means, noise = (np.random.default_rng([seed, stream]) for stream in range(3))
    labels = _labels(nodes, classes, random)
    weight = random.lognormal(0.0, degree_sigma, nodes)
    own = random.beta(homophily * spread, (1 - homophily) * spread, nodes)
    prefers = random.integers(0, classes - 1, nodes)
    prefers += prefers >= labels
    communities = _Communities(labels, classes, weight * own, weight * (1 - own), prefers, partner, random)
    csr = Csr.of_keys(communities.edges(edges // 2, homophily), nodes)
    x = _features(labels, signal * _directions(classes, features, means), noise)
    part = torch.from_numpy(random.permutation(nodes))
    train, validate = round(TRAIN * nodes), round(VALIDATE * nodes)
    masks = (part < train, (part >= train) & (part < train + validate), part >= train + validate)
    return LargeGraph(x, csr, torch.from_numpy(labels), *masks)


def _labels(nodes: int, classes: int, random: np.random.Generator) -> Array:
    share = 1 / np.sqrt(np.arange(classes) + 1)
    labels = random.choice(classes, nodes, p=share / share.sum())
    labels[: 2 * classes] = np.arange(2 * classes) % classes  # no class may have fewer than two nodes
    random.shuffle(labels)
    return np.asarray(labels, np.int64)


def _directions(classes: int, features: int, random: np.random.Generator) -> Array:
    found = random.standard_normal((classes, features))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def _features(labels: Array, means: Array, random: np.random.Generator) -> Tensor:
    x = np.empty((len(labels), means.shape[1]), np.float32)
    for part in chunks(len(x), NODES):
        x[part] = random.standard_normal(x[part].shape, np.float32)
        x[part] += means.astype(np.float32)[labels[part]]
    return torch.from_numpy(x)


class _Communities:
    """Pairs of nodes, drawn in proportion to weights. Within this class nodes are numbered in the order of their class.

    Attributes:
        order: (n,) the node at each place.
        bounds: (classes + 1,) the places of class k are bounds[k], ..., bounds[k + 1] - 1.
        within, between: (n + 1,) the sums of the weights of all earlier places.
    """

    def __init__(
        self,
        labels: Array,
        classes: int,
        within: Array,
        between: Array,
        prefers: Array,
        partner: float,
        random: np.random.Generator,
    ) -> None:
        self.count, self.partner, self.random = len(labels), partner, random
        self.order = np.argsort(labels, kind="stable")
        self.label, self.prefers = labels[self.order], prefers[self.order]
        self.bounds = np.concatenate([[0], np.bincount(labels, minlength=classes).cumsum()])
        self.within = np.concatenate([[0.0], within[self.order].cumsum()])
        self.between = np.concatenate([[0.0], between[self.order].cumsum()])

    def edges(self, pairs: int, homophily: float) -> Array:
        """Return (2 * pairs,) int64 target * n + source, in both directions, in no order."""
        inside = round(homophily * pairs)
        parts = [
            self._distinct(inside, self.within, self._inside),
            self._distinct(pairs - inside, self.between, self._outside),
        ]
        keys = np.empty(2 * pairs, np.int64)
        start = 0
        while parts:
            found = parts.pop(0)
            for part in chunks(len(found), CHUNK):
                a, b = (self.order[place] for place in np.divmod(found[part], self.count))
                stop = start + len(a)
                np.add(a * self.count, b, out=keys[start:stop])
                np.add(b * self.count, a, out=keys[pairs + start : pairs + stop])
                start = stop
        return keys

    def _distinct(self, wanted: int, sums: Array, other: Callable[[Array], Array]) -> Array:
        """Return (wanted,) int64 smaller place * n + larger place, all different, ascending."""
        found = np.empty(0, np.int64)
        for _ in range(ROUNDS):
            missing = wanted - len(found)
            if missing <= 0:
                break
            found = _unique(np.concatenate([found, self._draw(missing + missing // 50 + 16, sums, other)]))
        if len(found) < wanted:
            raise InvalidInput(
                f"Nodes and classes have no room for {wanted} distinct edges of this kind ({len(found)} were found): "
                "take fewer edges, more nodes, fewer classes, or a smaller degree_sigma."
            )
        extra = self.random.choice(len(found), len(found) - wanted, replace=False, shuffle=False)
        return np.delete(found, extra)

    def _draw(self, count: int, sums: Array, other: Callable[[Array], Array]) -> Array:
        """Return (about count,) pairs, less those of a node with itself."""
        share = np.diff(sums)
        starts = self.random.multinomial(count, share / share.sum())
        ends = starts.cumsum()
        keys = np.empty(count, np.int64)
        used = first = 0
        while first < self.count:
            before = int(ends[first - 1]) if first else 0
            stop = max(first + 1, int(np.searchsorted(ends, before + CHUNK, side="right")))
            a = np.repeat(np.arange(first, stop), starts[first:stop])
            b = other(a)
            apart = a != b
            a, b = a[apart], b[apart]
            keys[used : used + len(a)] = np.minimum(a, b) * self.count + np.maximum(a, b)
            used, first = used + len(a), stop
        return keys[:used]

    def _inside(self, a: Array) -> Array:
        """Return partners of the same class."""
        return self._in_class(self.within, self.label[a])

    def _outside(self, a: Array) -> Array:
        """Return partners of other classes."""
        b = np.empty_like(a)
        preferred = self.random.random(len(a)) < self.partner
        b[preferred] = self._in_class(self.between, self.prefers[a[preferred]])
        own = self.label[a[~preferred]]
        low, high = self.between[self.bounds[own]], self.between[self.bounds[own + 1]]
        at = self.random.random(len(own)) * (self.between[-1] - (high - low))
        at += np.where(at >= low, high - low, 0.0)  # as if the own class were not there
        found = np.searchsorted(self.between, at, side="right") - 1
        found = np.clip(found, 0, self.count - 1)
        same = self.label[found] == own  # rounding at the ends of a class
        found[same] = (self.bounds[own[same] + 1]) % self.count
        b[~preferred] = found
        return b

    def _in_class(self, sums: Array, classes: Array) -> Array:
        low, high = sums[self.bounds[classes]], sums[self.bounds[classes + 1]]
        found = np.searchsorted(sums, low + self.random.random(len(classes)) * (high - low), side="right") - 1
        return np.asarray(np.clip(found, self.bounds[classes], self.bounds[classes + 1] - 1))


def _unique(keys: Array) -> Array:
    """Return what is in keys, once each and ascending; keys are sorted in place."""
    keys.sort()
    new = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return keys if bool(new.all()) else keys[new]


@dataclass(frozen=True)
class GraphStatistics:
    """What a graph is like, as counted.

    Attributes:
        nodes, edges, features, classes: how many; edges as listed.
        homophily: share of the edges that join nodes of one class.
        node_homophily: the same share for each node's incoming edges, averaged over nodes that have some.
        degree_mean, degree_median, degree_max: of incoming edges.
        degree_log_sigma: standard deviation of the logarithm of the degrees above 0.
        isolated: nodes without incoming edges.
        loops, parallel: edges from a node to itself, and edges listed before.
        largest_class, smallest_class: shares of the nodes.
    """

    nodes: int
    edges: int
    features: int
    classes: int
    homophily: float
    node_homophily: float
    degree_mean: float
    degree_median: float
    degree_max: int
    degree_log_sigma: float
    isolated: int
    loops: int
    parallel: int
    largest_class: float
    smallest_class: float


def statistics(data: Any) -> GraphStatistics:
    """Count what a graph (`LargeGraph`, `Graph` or `Data`) is like; it looks at every edge, a few million at a time."""
    graph = LargeGraph.of(data)
    csr, y = graph.edges, graph.y
    same = torch.zeros(graph.num_nodes, dtype=torch.int64)
    parallel = 0
    for some, edges in csr.groups():
        source = csr.source[edges]
        target = torch.repeat_interleave(torch.arange(some.start, some.stop), csr.degrees[some])
        same.index_add_(0, target, (y[source] == y[target]).long())
        key = (target * csr.nodes + source).sort().values
        parallel += int((key[1:] == key[:-1]).sum())
    degrees = csr.degrees
    some_edges = degrees > 0
    busy = degrees[some_edges].double()
    sizes = torch.bincount(y[y >= 0]).double() / len(y)
    return GraphStatistics(
        nodes=csr.nodes,
        edges=len(csr),
        features=graph.num_features,
        classes=graph.num_classes,
        homophily=float(same.sum()) / max(len(csr), 1),
        node_homophily=float((same[some_edges] / busy).mean()) if len(busy) else 0.0,
        degree_mean=len(csr) / csr.nodes,
        degree_median=float(degrees.double().quantile(0.5)),
        degree_max=int(degrees.max()),
        degree_log_sigma=float(busy.log().std()) if len(busy) > 1 else 0.0,
        isolated=int((~some_edges).sum()),
        loops=int(csr.loops.sum()),
        parallel=parallel,
        largest_class=float(sizes.max()),
        smallest_class=float(sizes.min()),
    )
