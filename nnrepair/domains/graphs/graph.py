"""Graphs with labelled nodes, and the papers' protocol of splitting, training and finding mistakes.

PyTorch Geometric is needed only for its own networks and downloads. What makes edits of a graph's nodes is in `nodes`
and can be imported from here; real graphs are in `graph_data`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnrepair.domains.graphs.checks import LabelledNodes, as_index, check_graph, check_nodes, refuse_weights
from nnrepair.domains.graphs.known import known
from nnrepair.domains.graphs.nodes import NodeEdits, NodeLocality, Nodes, NodeScope, graph_of, inputs_of, labels_of
from nnrepair.errors import DataUnavailable, InvalidInput
from nnrepair.progress import progress_bar
from nnrepair.provenance import digest
from nnrepair.rounding import counted
from nnrepair.spec.given import as_criterion
from nnrepair.spec.network import copied
from nnrepair.spec.problem import fitted
from nnrepair.training import Checkpoint, Descent, Training

__all__ = [
    "Graph", "NodeEdits", "NodeLocality", "NodeScope", "Nodes", "induced", "inductive_split", "mistakes", "network",
    "train", "undirected",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Graph(LabelledNodes):
    """A graph with labelled nodes; every function here also takes a `torch_geometric.data.Data` in its place.

    Args:
        x: (n, features) floating.
        edge_index: (2, edges) int64; an undirected edge is listed in both directions.
        y: (n,) int64 classes.
        train_mask, val_mask, test_mask: (n,) bool, or None.
        undirected: that edge_index has both directions of every edge, which is then checked. A list with one direction
            runs as well, and every node then gets messages from only half of its neighbours.

    Raises:
        InvalidInput: features, edges, labels or masks that make no graph, or edges without their reverse where these
            are said to be there.

    >>> Graph(torch.eye(3), torch.tensor([[0], [1]]), torch.tensor([0, 1, 1])).num_classes
    2
    """

    x: Tensor
    edge_index: Tensor
    y: Tensor
    train_mask: Tensor | None = None
    val_mask: Tensor | None = None
    test_mask: Tensor | None = None
    undirected: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_graph(self.x, self.edge_index)
        check_nodes(len(self.x), self.y, **self.masks)
        if self.undirected:
            _refuse_one_way(self.edge_index, len(self.x))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({counted(self.num_nodes, 'node')}, {counted(self.num_features, 'feature')})"


def undirected(edge_index: Tensor, nodes: int) -> Tensor:
    """Return (2, m) the edges in both directions, each once, in ascending order.

    >>> undirected(torch.tensor([[0, 1, 2], [1, 0, 2]]), nodes=3)
    tensor([[0, 1, 2],
            [1, 0, 2]])

    Args:
        edge_index: (2, edges) integers.
        nodes: how many there are.
    """
    keys = torch.unique(torch.cat([_keys(edge_index, nodes), _keys(edge_index.flip(0), nodes)]))
    return torch.stack([keys // nodes, keys % nodes])


def _keys(edge_index: Tensor, nodes: int) -> Tensor:
    """Return (edges,) one number per edge."""
    return edge_index[0].long() * nodes + edge_index[1]


def _refuse_one_way(edge_index: Tensor, nodes: int) -> None:
    if tuple(edge_index.shape) == (nodes, nodes) and edge_index.dtype.is_floating_point:
        raise InvalidInput("Graph(undirected=True) checks a list of edges (2, edges), not an adjacency: leave it out.")
    checked = known(edge_index).checked
    if -nodes in checked:  # the same edges with other masks
        return
    forth, back = _keys(edge_index, nodes), _keys(edge_index.flip(0), nodes)
    single = ~torch.isin(back, forth)
    if single.any():
        count = int(single.sum())
        start, end = edge_index[:, single][:, 0].tolist()
        raise InvalidInput(
            f"{count} of {len(forth)} edges lack their reverse, such as {start} -> {end} without {end} -> {start}. Add "
            "them with edge_index = undirected(edge_index, nodes), or give undirected=False if directions are meant."
        )
    checked.add(-nodes)


@contextmanager
def _pyg(why: str) -> Iterator[None]:
    """Import PyTorch Geometric inside: quietly, and with advice where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of its own use of torch.jit
            yield
    except ModuleNotFoundError as error:
        raise DataUnavailable(f"{why}: pip install 'nnrepair[graph]'.") from error


def inductive_split(data: Any, seed: int, validation: int = 500, test: int = 500) -> Graph:
    """Return the graph with random masks: so many nodes to validate and to test, and all others to train on.

    >>> graph = Graph(torch.eye(5), torch.tensor([[0], [1]]), torch.tensor([0, 1, 1, 0, 1]))
    >>> inductive_split(graph, seed=0, validation=1, test=1).train_mask.sum()
    tensor(3)
    """
    count = len(data.x)
    if validation < 0 or test < 0 or validation + test >= count:
        raise InvalidInput(
            f"{validation} validation and {test} test nodes leave none of {count} to train on; take fewer."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    masks = [torch.zeros(count, dtype=torch.bool) for _ in range(3)]
    for mask, part in zip(masks, torch.split(order, [count - validation - test, validation, test]), strict=True):
        mask[part] = True
    masks = [mask.to(data.x.device) for mask in masks]
    refuse_weights(data)
    if isinstance(data, Graph):
        return replace(data, train_mask=masks[0], val_mask=masks[1], test_mask=masks[2])
    return Graph(data.x, data.edge_index, data.y, *masks)


def network(
    kind: Literal["GCN", "GraphSAGE", "GAT"],
    data: Any,
    *,
    hidden: int = 32,
    layers: int = 2,
    dropout: float = 0.1,
    seed: int = 0,
) -> nn.Module:
    """Build one of PyTorch Geometric's networks for a graph, untrained; its layers are `convs.0`, `convs.1`, ...

    The defaults are those with which editors of graph networks are compared on Cora.
    """
    if kind not in ("GCN", "GraphSAGE", "GAT"):
        raise InvalidInput(f"Unknown network {kind!r}; choose GCN, GraphSAGE or GAT, or bring any module of your own.")
    with _pyg(f"{kind} is PyTorch Geometric's"):
        from torch_geometric.nn import models
    classes = int(data.y.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        built: nn.Module = getattr(models, kind)(data.x.shape[1], hidden, layers, classes, dropout=dropout)
    return built


def train(
    model: nn.Module,
    data: Any,
    *,
    epochs: int = 200,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: bool = False,
    resume: str | Path | None = None,
) -> nn.Module:
    """Train a copy of a model inductively with Adam on the cross-entropy, and return it in eval mode.

    Inductively: only nodes of `data.train_mask` and edges among them are seen. The model given and the global random
    state stay as they were; the same seed gives the same result on the CPU. With `resume`, a file (.safetensors),
    progress is stored there, and the same call goes on from it. Warns when the loss becomes infinite or no number; the
    network is then that of the step before.
    """
    if epochs < 1 or not (lr > 0 and math.isfinite(lr)):
        raise InvalidInput(f"epochs and lr must be positive, given {epochs} and {lr}.")
    if getattr(data, "train_mask", None) is None:
        raise InvalidInput("The graph has no train_mask: make one with inductive_split(data, seed).")
    nodes = as_index(data.train_mask, len(data.x))
    if len(nodes) == 0:
        raise InvalidInput("The training set is empty.")
    model = copied(model).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InvalidInput("The model has no trainable parameters: set requires_grad_(True) on some.")
    device, dtype = parameters[0].device, parameters[0].dtype
    x, labels = data.x[nodes].to(device, dtype), labels_of(data, nodes, None).to(device)
    edges = induced(data.edge_index, nodes, len(data.x)).to(device)
    checkpoint = None
    if resume is not None:
        values = {"epochs": epochs, "lr": lr, "weight_decay": weight_decay, "seed": seed, "device": device.type}
        key = {"model": digest(model), "graph": digest([x, edges, labels])} | {n: repr(v) for n, v in values.items()}
        checkpoint = Checkpoint(Path(resume), key)
    step = Descent(torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay))

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x, edges), labels)

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), progress_bar("train", progress) as report:
        torch.default_generator.manual_seed(seed)
        generators = {"dropout": torch.default_generator}
        for one in devices:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
                generators["dropout on the device"] = torch.cuda.default_generators[torch.cuda.current_device()]
        Training(
            loss, step, epochs, model=model, state={**step.state, **generators}, checkpoint=checkpoint, report=report
        ).run().warn()
    model.zero_grad()
    return model.eval()


def induced(edge_index: Tensor, nodes: Tensor, count: int) -> Tensor:
    """Return (2, edges) the edges among `nodes` of a graph with `count` nodes, in the numbers 0..len(nodes)-1."""
    if edge_index.layout != torch.strided or edge_index.dtype.is_floating_point:
        raise InvalidInput("Edges among some nodes are taken from a list of edges (2, edges), got an adjacency.")
    number = torch.full((count,), -1, dtype=edge_index.dtype, device=edge_index.device)
    number[nodes] = torch.arange(len(nodes), dtype=edge_index.dtype, device=edge_index.device)
    edges = number[edge_index.long()]
    return edges[:, (edges >= 0).all(0)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and each of its modules back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@torch.no_grad()
def mistakes(model: nn.Module, data: Any, mask: Any) -> Tensor:
    """Return (k,) the nodes of a mask that the model, run on the whole graph, gets wrong, in ascending order.

    These make edits: `NodeEdits(data, mistakes(model, data, data.val_mask))`. The model is run in eval mode, whatever
    its mode is. For a `CachedNetwork`, give the same as `data`.
    """
    nodes = inputs_of(data, mask).to(next(model.parameters()))
    with evaluating(model):
        y = nodes.call(model)
    right = fitted(as_criterion(labels_of(graph_of(data), nodes.index, None), "mistakes"), y)
    right.check(y)
    wrong = ~right.holds(y)
    found: Tensor = nodes.index[wrong].sort().values
    return found
