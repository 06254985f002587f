"""Papers of the citation network Cora that a small graph network labels wrong.

The protocol is that of `benchmarks.graph.task`. Trained networks are stored in build/.
"""

from __future__ import annotations

from benchmarks.graph.task import KINDS, posed, trained
from benchmarks.measure import ROOT
from nnrepair.domains.base import Task
from nnrepair.domains.graphs import graph
from nnrepair.domains.graphs.data import load
from nnrepair.errors import InvalidInput, near_matches


def task(model: str, seed: int, edits: int, *, whole: bool = True) -> Task:
    """Edits: wrong validation nodes; kept: training nodes; test set: test nodes; scope: neighbours in their class.

    With `whole=False` what comes before the last layer's weights is computed once, see `benchmarks.graph.task`; but not
    for networks with attention, whose last layer has more before it than can be computed once.
    """
    if model not in KINDS:
        raise InvalidInput(f"Unknown network {model!r}.{near_matches(model, KINDS)} Networks: {', '.join(KINDS)}.")
    data = graph.inductive_split(load("Cora"), seed)
    network = trained(model, seed, data, ROOT / "build" / "cora" / f"{model}-{seed}.npz")
    return posed(network, seed, data, edits, model, whole=whole or model == "gat")
