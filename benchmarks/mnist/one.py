"""One measurement on MNIST, in a process of its own: `python -m benchmarks.mnist.one '{"kind": ...}'`."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

import nnrepair
from benchmarks.measure import measured
from nnrepair.domains.vision import Images, mnist, mnist_fog, relu_mlp
from nnrepair.spec.running import outputs


def accuracy(model: torch.nn.Module, images: Images) -> float:
    return float((outputs(model, images.inputs).argmax(1) == images.labels).double().mean())


def like_for_like(net: str, layer: str, edits: int, solver: str, time_limit: float = 600) -> dict[str, Any]:
    """PRDNN's problem (objective mean+max, margin 0.05, decoupled network, no locality rows) by one solver."""
    model, fog = relu_mlp(net), mnist_fog()
    inputs, labels = fog.inputs[:edits], fog.labels[:edits]
    names = [f"{layer}.weight", f"{layer}.bias"]
    clean = mnist("test")
    held_out = Images(fog.inputs[edits:], fog.labels[edits:])
    weight = dict(model.named_parameters())[names[0]]
    size = weight.numel() + weight.shape[0]
    warm_up()
    if solver == "prdnn":
        from benchmarks.baselines import prdnn

        def work() -> dict[str, Any]:
            objective, d, status = prdnn.solve(*prdnn.jacobian(model, names, inputs, labels, 0.05), time_limit)
            return {"objective": objective, "status": status, "change": d}

    else:
        method = nnrepair.methods.MinimalNorm(layer=layer, norm="mean+max", margin=0.05, architecture="decoupled")

        def work() -> dict[str, Any]:
            result = nnrepair.fix(model, (inputs, labels), method=method, throw=False)
            stats = result.stats
            answer = {k: stats.get(k) for k in ("objective", "lower_bound", "gap", "rounds", "newton_steps")}
            answer |= {"linear_programs": stats.get("linear_programs"), "rows": stats.get("rows")}
            return answer | {"status": result.outcome.status, "model": result.model}

    answer = measured(work)
    change, repaired = answer.pop("change", None), answer.pop("model", None)
    if change is not None:
        split = torch.from_numpy(change).float().split([weight.numel(), weight.shape[0]])
        repaired = nnrepair.Decoupled(relu_mlp(net), {names[0]: split[0].reshape(weight.shape), names[1]: split[1]})
    if repaired is not None:
        original = relu_mlp(net)
        fixed = Images(inputs, labels)
        answer["success_rate"] = accuracy(repaired, fixed)
        answer["drawdown_points"] = 100 * (accuracy(original, clean) - accuracy(repaired, clean))
        answer["fog_gain_points"] = 100 * (accuracy(repaired, held_out) - accuracy(original, held_out))
    return answer | {"weights": size, "all_rows": edits * 9}


def with_locality(
    net: str, layer: str, norm: str, edits: int, locality: int, mode: str = "hard", max_steps: int = 40
) -> dict[str, Any]:
    """Repair fog digits in the same architecture with clean training digits as locality set."""
    model, fog, train, clean = relu_mlp(net), mnist_fog(), mnist("train"), mnist("test")
    inputs, labels = fog.inputs[:edits], fog.labels[:edits]
    kept = (train.inputs[:locality], train.labels[:locality]) if locality else None
    method = nnrepair.methods.MinimalNorm(layer=layer, norm=norm, locality=mode, max_steps=max_steps)
    warm_up()

    def work() -> dict[str, Any]:
        result = nnrepair.fix(model, (inputs, labels), kept, method=method, throw=False)
        return {"result": result}

    answer = measured(work)
    result = answer.pop("result")
    held_out = Images(fog.inputs[edits:], fog.labels[edits:])
    stats = result.stats
    return answer | {
        "status": result.outcome.status,
        "chosen": stats.get("layer"),
        "margin": stats.get("margin"),
        "gap": stats.get("gap"),
        "steps": len(stats.get("steps", [])),
        "success_rate": result.report.success_rate,
        "decisions_unchanged": result.report.locality,
        "drawdown_points": 100 * (accuracy(model, clean) - accuracy(result.model, clean)),
        "fog_gain_points": 100 * (accuracy(result.model, held_out) - accuracy(model, held_out)),
        "clean_accuracy_before": accuracy(model, clean),
        "fog_accuracy_before": accuracy(model, held_out),
    }


def warm_up() -> None:
    """Import and first-call costs are paid once per process and not counted (the same for every solver)."""
    small = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = (small(x).argmax(1) + 1) % 3
    method = nnrepair.methods.MinimalNorm(layer="0", norm="mean+max", architecture="decoupled")
    nnrepair.fix(small, (x[:2], labels[:2]), x[2:], method=method, throw=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments = json.loads(sys.argv[1])
    kind = arguments.pop("kind")
    answer = {"like_for_like": like_for_like, "with_locality": with_locality}[kind](**arguments)
    print(json.dumps(answer))
