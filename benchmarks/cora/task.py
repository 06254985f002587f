"""Papers of the citation network Cora that a small graph network labels wrong.

The protocol of Liu et al., "Editable graph neural network for node classification" (EGNN, 2023): inductive training,
mistakes on validation nodes, drawdown on test nodes, evaluation on the whole graph; a seed is another random split.
Trained networks are stored in build/.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.editing import Task, drawn
from benchmarks.measure import ROOT
from nnrepair import EditScope
from nnrepair.domains import graph
from nnrepair.domains.graph import Graph, NodeEdits, NodeLocality, Nodes
from nnrepair.errors import InvalidInput, near_matches
from nnrepair.files import read_arrays, write_arrays

FORMAT = "nnrepair benchmark network 1"
KINDS: dict[str, Any] = {"gcn": "GCN", "sage": "GraphSAGE"}


def task(model: str, seed: int, edits: int) -> Task:
    """Edits: wrong validation nodes; kept: training nodes; test set: test nodes; scope: neighbours in their class."""
    if model not in KINDS:
        raise InvalidInput(f"Unknown network {model!r}.{near_matches(model, KINDS)} Networks: {', '.join(KINDS)}.")
    data = graph.inductive_split(graph.planetoid("Cora"), seed)
    network = trained(model, seed, data)
    generator = torch.Generator().manual_seed(seed)
    wrong = graph.mistakes(network, data, data.val_mask)
    mine = drawn(wrong, edits, generator, f"validation nodes that {model} gets wrong with seed {seed}")
    near, of = neighbours(data, mine)
    assert data.test_mask is not None
    return Task(
        model=network,
        edits=NodeEdits(data, mine),
        locality_set=NodeLocality(data, data.train_mask),
        test_set={"test": (Nodes(data.x, data.edge_index, data.test_mask), data.y[data.test_mask])},
        edit_scope=EditScope(Nodes(data.x, data.edge_index, near), data.y[near], of=of),
    )


def neighbours(data: Graph, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the neighbours of `nodes` (k,) in the same class, none of `nodes` themselves, and whose they are."""
    start, end = data.edge_index
    own = (start[None] == nodes[:, None]) & (data.y[end] == data.y[start]) & ~torch.isin(end, nodes)
    of, edge = own.nonzero(as_tuple=True)
    return end[edge], of


def trained(model: str, seed: int, data: Graph) -> nn.Module:
    """Return the network of one split, from build/ or trained anew (seconds)."""
    network = graph.network(KINDS[model], data, seed=seed)
    path = ROOT / "build" / "cora" / f"{model}-{seed}.npz"
    try:
        weights = read_arrays(path, FORMAT, "trained network", lambda _, arrays: _fitting(arrays, network))
        network.load_state_dict(weights)
    except (FileNotFoundError, InvalidInput):
        network = graph.train(network, data, seed=seed)
        write_arrays(path, FORMAT, {}, {name: t.numpy() for name, t in network.state_dict().items()})
    return network.eval()


def _fitting(arrays: dict[str, Any], network: nn.Module) -> dict[str, Tensor]:
    own = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    if own != {name: array.shape for name, array in arrays.items()}:
        raise ValueError("the weights of another network")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
