"""Graphs whose nodes are classified."""

from nnrepair.domains.graphs.cached import cached
from nnrepair.domains.graphs.data import load
from nnrepair.domains.graphs.graph import (
    Graph,
    NodeEdits,
    NodeLocality,
    Nodes,
    NodeScope,
    inductive_split,
    mistakes,
    network,
    train,
    undirected,
)

__all__ = ["Graph", "NodeEdits", "NodeLocality", "NodeScope", "Nodes", "cached", "inductive_split", "load", "mistakes"]
__all__ += ["network", "train", "undirected"]
