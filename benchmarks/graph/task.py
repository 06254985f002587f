"""Nodes of real graphs that a small graph network labels wrong.

The protocol of Liu et al., "Editable graph neural network for node classification" (EGNN, 2023): inductive training,
mistakes on validation nodes, drawdown on test nodes, evaluation on the whole graph; a seed is another random split.
Graphs of more than 5000 nodes have 2000 validation and 1000 test nodes, smaller ones 500 each. Networks are trained on
at most 2000 nodes and the edges among them, and stored in build/.

A task is posed in one of two ways. Through `cached` networks, what comes before the last layer's weights is computed
once and frozen; that is exact for methods that change the last layer or add something to the outputs, and no edit
passes over the graph. Otherwise the network runs on the whole graph, for methods that tune all of its layers.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import ROOT
from nnrepair.domains.base import Task, drawn
from nnrepair.domains.graphs import graph
from nnrepair.domains.graphs.cached import cached
from nnrepair.domains.graphs.data import load
from nnrepair.domains.graphs.graph import Graph, NodeEdits, NodeLocality, NodeScope
from nnrepair.domains.graphs.nodes import inputs_of
from nnrepair.errors import InvalidInput, near_matches
from nnrepair.files import read_arrays, write_arrays
from nnrepair.methods.episodes import Episode
from nnrepair.provenance import digest, source

FORMAT = "nnrepair benchmark network 2"
KINDS: dict[str, Any] = {"gcn": "GCN", "sage": "GraphSAGE", "gat": "GAT"}
GRAPHS = {name.lower(): name for name in ("CiteSeer", "Photo", "Computers", "CS", "Physics", "facebook", "tolokers")}
#: Above so many nodes, more are held out: on some of these graphs few are wrong.
LARGE = 5000
#: At most so many training nodes train a network, and at most so many (others among them) are kept by methods.
TRAINED, KEPT = 2000, 2000
STORE = ROOT / "build" / "graph"
#: The parts of the package that decide what training makes.
SOURCE = ("domains/graphs", "spec", "training")


def task(model: str, seed: int, edits: int, *, whole: bool = False) -> Task:
    """Return a task of `<graph>-<network>`.

    Args:
        model: such as "citeseer-gcn".
        seed: of the split, the training and the drawing.
        edits: how many wrong validation nodes.
        whole: run the network on the whole graph instead of on what comes before its last layer's weights.
    """
    models = [f"{name}-{kind}" for name in GRAPHS for kind in ("gcn", "sage")]
    if model not in models:
        raise InvalidInput(f"Unknown network {model!r}.{near_matches(model, models)} Networks: {', '.join(models)}.")
    name, kind = model.split("-")
    data = load(GRAPHS[name])
    validation, test = (2000, 1000) if len(data.x) > LARGE else (500, 500)
    data = graph.inductive_split(data, seed, validation, test)
    network = trained(kind, seed, _fewer(data, seed), STORE / f"{model}-{seed}.npz", epochs=100, lr=0.05)
    return posed(network, seed, data, edits, model, whole=whole, kept=KEPT)


def posed(
    network: nn.Module, seed: int, data: Graph, edits: int, name: str, *, whole: bool, kept: int | None = None
) -> Task:
    """Edits: wrong validation nodes; kept: training nodes; test set: test nodes.

    Edit scope: neighbours in the edits' classes, without training nodes, which methods may see.
    """
    generator = torch.Generator().manual_seed(seed)
    assert data.train_mask is not None and data.val_mask is not None and data.test_mask is not None
    model: nn.Module
    source: Any
    if whole:
        model, source = network, data
    else:
        model = source = cached(network, data)
    wrong = graph.mistakes(model, source, data.val_mask)
    mine = drawn(wrong, edits, generator, f"validation nodes that {name} gets wrong with seed {seed}")
    keep = data.train_mask.nonzero().flatten()
    if kept is not None:
        keep = keep[torch.randperm(len(keep), generator=generator)[:kept]]
    return Task(
        model=model,
        edits=NodeEdits(source, mine),
        locality_set=NodeLocality(source, keep),
        test_set={"test": (inputs_of(source, data.test_mask), data.y[data.test_mask])},
        edit_scope=NodeScope(source, mine, same_class=True, without=data.train_mask),
        training=lambda: training(model, source, data),
    )


def training(model: nn.Module, source: Any, data: Graph) -> Episode:
    """Edits: wrong training nodes; scope: their neighbours among these, in their classes; kept: the right ones."""
    assert data.train_mask is not None
    wrong = graph.mistakes(model, source, data.train_mask)
    right = data.train_mask.clone()
    right[wrong] = False
    return Episode(
        NodeEdits(source, wrong),
        NodeLocality(source, right),
        NodeScope(source, wrong, same_class=True, without=~data.train_mask),
    )


def trained(kind: str, seed: int, data: Graph, path: Path, *, epochs: int = 200, lr: float = 0.01) -> nn.Module:
    """Return the network of one split, from a file that says it was made alike, or trained anew (seconds)."""
    network = graph.network(KINDS[kind], data, seed=seed)
    options = {"kind": kind, "seed": seed, "epochs": epochs, "lr": lr}
    origin = options | {"graph": digest(data), "source": source(*SOURCE), "torch": torch.__version__}

    def fitting(meta: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Tensor]:
        if meta != origin:
            raise ValueError("made in another way")
        return _fitting(arrays, network)

    try:
        weights = read_arrays(path, FORMAT, "trained network", fitting)
        network.load_state_dict(weights)
    except (FileNotFoundError, InvalidInput):
        network = graph.train(network, data, epochs=epochs, lr=lr, seed=seed)
        with suppress(OSError, InvalidInput):  # then the next one trains it again
            write_arrays(path, FORMAT, origin, {name: t.numpy() for name, t in network.state_dict().items()})
    return network.eval()


def _fewer(data: Graph, seed: int) -> Graph:
    """Return the graph with at most TRAINED training nodes."""
    assert data.train_mask is not None
    nodes = data.train_mask.nonzero().flatten()
    if len(nodes) <= TRAINED:
        return data
    nodes = nodes[torch.randperm(len(nodes), generator=torch.Generator().manual_seed(seed))[:TRAINED]]
    mask = torch.zeros_like(data.train_mask)
    mask[nodes] = True
    return replace(data, train_mask=mask)


def _fitting(arrays: dict[str, Any], network: nn.Module) -> dict[str, Tensor]:
    own = {name: (str(t.dtype), tuple(t.shape)) for name, t in network.state_dict().items()}
    if own != {name: (f"torch.{array.dtype}", array.shape) for name, array in arrays.items()}:
        raise ValueError("the weights of another network")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
