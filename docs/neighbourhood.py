"""Draw docs/graph-neighbourhood.png: a paper of Cora, repaired by fine-tuning and by EGNN. Needs $NNREPAIR_DATA.

python docs/neighbourhood.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot

import nnrepair
from nnrepair.domains.graphs.data import load
from nnrepair.domains.graphs.graph import (
    NodeEdits,
    NodeLocality,
    inductive_split,
    mistakes,
    network,
    train,
)
from nnrepair.domains.graphs.plot import neighbourhood
from nnrepair.methods import EGNN, FineTune

OUT = Path(__file__).parent / "graph-neighbourhood.png"
METHODS = {
    "Plain fine-tuning of all layers": FineTune(lr=0.01),
    "EGNN: beside the network, blind to neighbours": EGNN(),
}


def main() -> None:
    torch.set_num_threads(1)
    data = inductive_split(load("Cora"), seed=0)
    model = train(network("GCN", data), data)
    assert data.val_mask is not None
    locality = NodeLocality(data, data.train_mask)
    with torch.no_grad():
        before = model(data.x, data.edge_index).argmax(1)

    def after(node: int, method: nnrepair.methods.base.Method) -> torch.Tensor:
        repaired = nnrepair.fix(model, NodeEdits(data, [node]), locality, method=method).model
        with torch.no_grad():
            return repaired(data.x, data.edge_index).argmax(1)

    # Among the first twenty mistakes, the one for which fine-tuning changes most: not the average case.
    nodes = mistakes(model, data, data.val_mask)[:20].tolist()
    node = max(nodes, key=lambda n: int((after(n, METHODS["Plain fine-tuning of all layers"]) != before).sum()))
    figure = pyplot.figure(figsize=(10, 6.6), layout="constrained")
    for part, (title, method) in zip(figure.subfigures(len(METHODS), 1), METHODS.items(), strict=True):
        decisions = after(node, method)
        neighbourhood(before, decisions, data, node, ax=part.subplots(1, 2))
        part.suptitle(f"{title}: {int((decisions != before).sum())} of {len(before)} decisions change", weight="bold")
    figure.savefig(OUT, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
