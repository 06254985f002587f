"""Growth with the number of edges: graphs like Reddit, from 100 thousand edges to its 114.6 million.

`python -m benchmarks.graph.scale '{"edges": 100000, "kind": "GraphSAGE"}'` measures one size. The graph is generated
(`reddit_like`, as dense as Reddit at every size), a network of two layers is trained on a subgraph of training nodes,
and single validation nodes that it gets wrong are repaired, each from the network as trained, in its last layer.

Each phase has wall and CPU seconds, peak_mib above what was held before it, and process_mib, the whole process's peak.
"inference" runs over all nodes in blocks; "inference_at_once", up to a million edges, is the network's own forward
pass, to compare with. An edit's time is that of `fix`, with all its checks and its judgement on the locality set;
drawdown over all nodes comes on top.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor

import nnrepair
from benchmarks.measure import ROOT, _status_mib, in_fresh_process, load, measured, save

RESULTS = ROOT / "benchmarks" / "graph" / "results" / "scale.json"
ABOUT = (
    "Generated graphs like Reddit, and repairs of single nodes in a network's last layer: seconds, memory and drawdown "
    "over all nodes. See benchmarks/graph/scale.py."
)
#: Reddit's size.
EDGES, NODES = 114_615_892, 232_965
CASES = [{"edges": edges, "kind": "GraphSAGE"} for edges in (100_000, 1_000_000, 10_000_000, EDGES)]
CASES.append({"edges": EDGES, "kind": "GCN"})
#: Edges up to which PyTorch Geometric also runs on the whole graph at once: 4 bytes per edge and feature.
AT_ONCE = 1_000_000
#: Seconds that a size may take.
LIMIT = 3600.0


def case(
    edges: int,
    kind: Literal["GCN", "GraphSAGE"],
    hidden: int = 256,
    trained_on: int = 4000,
    kept: int = 3000,
    edits: int = 12,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure one size of graph."""
    from benchmarks.graph.reddit import reddit_like
    from benchmarks.graph.reddit import statistics as count
    from nnrepair.domains.graphs.cached import cached
    from nnrepair.domains.graphs.graph import network, train
    from nnrepair.domains.graphs.layerwise import evaluate

    phases: dict[str, Any] = {}
    graph = _phase(phases, "generation", lambda: reddit_like(round(NODES * (edges / EDGES) ** 0.5), edges, seed=seed))
    about = asdict(count(graph))
    generator = torch.Generator().manual_seed(seed)

    def some(mask: Tensor, most: int) -> Tensor:
        nodes = torch.nonzero(mask).flatten()
        return nodes[torch.randperm(len(nodes), generator=generator)[:most]]

    def fitted() -> torch.nn.Module:
        part = graph.induced(some(graph.train_mask, trained_on))
        part = type(part)(part.x, part.edge_index, part.y, torch.ones(len(part.x), dtype=torch.bool))
        return train(network(kind, graph, hidden=hidden, dropout=0.5, seed=seed), part, epochs=25, seed=seed)

    model = _phase(phases, "training", fitted)
    y = _phase(phases, "inference", lambda: evaluate(model, graph))
    ordinary = None
    if edges <= AT_ONCE:
        with torch.no_grad():
            ordinary = _phase(phases, "inference_at_once", lambda: model(graph.x, graph.edge_index))
    lens = _phase(phases, "caching", lambda: cached(model, graph))
    before = y.argmax(1)
    right = before == graph.y
    gap = float((lens.logits - y).abs().max())
    wrong = some(graph.val_mask & ~right, edits)
    train_nodes = some(graph.train_mask, kept)
    locality = (train_nodes, graph.y[train_nodes])
    method = nnrepair.methods.MinimalNorm(layer=lens.layer, norm="drift")
    nnrepair.fix(lens, (wrong[:1], graph.y[wrong[:1]]), locality, method=method, throw=False)  # warm up

    def one_by_one() -> list[dict[str, Any]]:
        return [_edit(lens, node, locality, method, right, before) for node in wrong[:, None]]

    each = _phase(phases, "edits", one_by_one)
    last = nnrepair.fix(lens, (wrong[-1:], graph.y[wrong[-1:]]), locality, method=method, throw=False).model
    again = _phase(phases, "inference_of_a_repaired_network", lambda: evaluate(lens.restore(last), graph))
    return {
        "status": "measured",
        "graph": about,
        "accuracy": {
            name: float(right[getattr(graph, f"{name}_mask")].double().mean()) for name in ("train", "val", "test")
        },
        "phases": phases,
        "process_mib": max(phase["process_mib"] for phase in phases.values()),
        "logits_max": float(y.abs().max()),
        "inference_differs_by": None if ordinary is None else float((ordinary - y).abs().max()),
        "cached_differs_by": gap,
        "restored_differs_by": float((again - lens.outputs(last)).abs().max()),
        "locality_points": len(train_nodes),
        "edits": len(each),
        "success_rate": statistics.mean(float(e["holds"]) for e in each),
        "edit_seconds": statistics.median(e["edit_seconds"] for e in each),
        "edit_seconds_max": max(e["edit_seconds"] for e in each),
        "edit_cpu_seconds": statistics.median(e["edit_cpu_seconds"] for e in each),
        "drawdown_seconds": statistics.median(e["drawdown_seconds"] for e in each),
        "drawdown_points": statistics.mean(e["drawdown_points"] for e in each),
        "drawdown_points_max": max(e["drawdown_points"] for e in each),
        "unchanged": statistics.mean(e["unchanged"] for e in each),
        "unchanged_min": min(e["unchanged"] for e in each),
        "each": each,
    }


def _phase(phases: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    """Run a part of the work, write down what it took, and return its result."""
    found: dict[str, Any] = {}
    phases[name] = measured(lambda: found.update(result=work()) or {})
    phases[name]["process_mib"] = _status_mib("VmHWM")
    return found["result"]


def _edit(lens: Any, node: Tensor, locality: Any, method: Any, right: Tensor, before: Tensor) -> dict[str, Any]:
    """Repair one node, judged on the locality set by `fix`, and compare the decisions at all nodes."""
    y = lens.graph.y
    wall, cpu = time.perf_counter(), time.process_time()
    result = nnrepair.fix(lens, (node, y[node]), locality, method=method, throw=False)
    seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    wall = time.perf_counter()
    after = lens.outputs(result.model).argmax(1)
    drawdown = 100 * float(right.double().mean() - (after == y).double().mean())
    return {
        "node": int(node),
        "status": result.outcome.status,
        "holds": bool(after[node] == y[node]),
        "edit_seconds": seconds,
        "edit_cpu_seconds": cpu,
        "method_seconds": result.report.seconds,
        "drawdown_seconds": time.perf_counter() - wall,
        "drawdown_points": drawdown,
        "unchanged": float((after == before).double().mean()),
        "locality_drawdown_points": result.report.drawdown_points,
    }


def run_scale() -> None:
    """Measure every size that has no row yet, smallest first."""
    rows = load(RESULTS)
    done = [row["case"] for row in rows if row["status"] == "measured"]
    for arguments in CASES:
        if arguments in done:
            continue
        row = {"case": arguments} | in_fresh_process("benchmarks.graph.scale", arguments, LIMIT)
        rows = [other for other in rows if other["case"] != arguments] + [row]
        save(RESULTS, rows, ABOUT)
        print(
            f"{arguments['edges']:>11} edges, {arguments['kind']}: {row['status']}"
            + (f", an edit takes {row['edit_seconds']:.2f} s" if row["status"] == "measured" else ""),
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(json.dumps(case(**json.loads(sys.argv[1]))))
