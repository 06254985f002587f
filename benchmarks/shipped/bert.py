"""A network of BERT's size: twenty sentences get another label, a thousand others keep theirs.

`python -m benchmarks.shipped.bert` measures what is missing in results/bert.json, each row in a process of its own. The
weights are random (nothing is downloaded), and so are the sentences: what is measured is time, memory and how many
points the network runs on, not what is learnt.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nnrepair
from benchmarks import measure
from nnrepair.methods import MinimalNorm
from nnrepair.results import markdown
from nnrepair.rounding import percent

RESULTS = Path(__file__).parent / "results" / "bert.json"
ABOUT = "a network of BERT's size with random weights: sentences that get another label, and others that keep theirs"
EDITS, KEPT, LENGTH = 20, 1000, 64
METHODS = {
    "last layer": MinimalNorm(layer="classifier"),
    "auto": MinimalNorm(time_limit=60.0),  # of a clock: where others use the processor, too, it may end with nothing
    "auto, no limit": MinimalNorm(),
}
#: The others are small: they try hidden layers, through which gradients flow for every point.
CASES: list[dict[str, Any]] = [
    {"name": "last layer", "seed": 0},
    {"name": "auto", "seed": 0, "edits": 4, "kept": 60},
    {"name": "auto, no limit", "seed": 0, "edits": 4, "kept": 60},
]
LIMIT = 14400.0


def network(seed: int) -> Any:
    """Return BertForSequenceClassification with bert-base's sizes and two labels; it counts the points it runs on."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import BertConfig, BertForSequenceClassification

    class Counted(BertForSequenceClassification):  # type: ignore[misc]
        points = 0

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            Counted.points += len(input_ids)
            return super().forward(input_ids=input_ids, attention_mask=attention_mask)

    torch.manual_seed(seed)
    return Counted(BertConfig(num_labels=2)).eval()


def sentences(count: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Return token numbers of sentences of 8 to 64 words, padded, with the mask that says so."""
    lengths = torch.randint(8, LENGTH + 1, (count, 1), generator=draw)
    mask = (torch.arange(LENGTH) < lengths).long()
    return {"input_ids": torch.randint(1000, 30000, (count, LENGTH), generator=draw) * mask, "attention_mask": mask}


def repaired(name: str, seed: int, edits: int = EDITS, kept: int = KEPT) -> dict[str, Any]:
    """Return what a repair took."""
    torch.set_num_threads(1)
    model, draw = network(seed), torch.Generator().manual_seed(seed)
    few, many = sentences(edits, draw), sentences(kept, draw)
    with torch.no_grad():
        labels = 1 - model(**few).logits.argmax(1)
    type(model).points = 0

    def work() -> dict[str, Any]:
        result = nnrepair.fix(model, (few, labels), nnrepair.LocalitySet(many), method=METHODS[name], throw=False)
        report = result.report
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "edits": edits,
            "kept": kept,
            "success_rate": report.success_rate,
            "locality": report.locality,
            "status": result.outcome.status,
            "layer": result.stats.get("layer"),
            "passes": type(model).points / (edits + kept),
            "weights_changed": report.weight_change.nonzeros,
        }

    return measure.measured(work)


def lines() -> list[str]:
    """Return the table of what was measured."""
    header = ["layer", "edits that hold", "other decisions kept", "passes over all points", "CPU s", "memory, GiB"]
    rows = [
        [
            row["name"],
            f"{row['success_rate']:.0%} of {row['edits']}",
            f"{percent(row['locality'])} of {row['kept']}",
            f"{row['passes']:.2f}",
            f"{row['cpu_seconds']:.0f}",
            f"{row['peak_mib'] / 1024:.1f}",
        ]
        for row in measure.load(RESULTS)
        if "passes" in row
    ]
    return markdown.table(header, rows).splitlines()


def run() -> None:
    """Measure the rows that are missing."""
    measure.missing(RESULTS, repaired, CASES, ABOUT, LIMIT, ["benchmarks.shipped.bert"])


if __name__ == "__main__":
    run()
