"""Hidden layers of the MNIST networks in the same architecture, two checkouts side by side.

`python -m benchmarks.engine.hidden '{"net": "9x100", "layer": "fc1", "norm": "drift", "edits": 100}'` measures one call
of `nnrepair.fix`: misread digits in fog, drawn by seed 1, with 10 000 clean training digits to keep; `"corruption"` and
`"seed"` name others (see `benchmarks.engine.corruptions`).
`python -m benchmarks.engine.hidden --against CHECKOUT` measures every case here and there, in turns; without a checkout
it measures here alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

import nnrepair
from benchmarks import measure
from nnrepair.domains.vision import Images, mnist, mnist_fog, relu_mlp
from nnrepair.methods import MinimalNorm

KEPT = 10_000


def cases() -> Iterator[dict[str, Any]]:
    """Yield the layers in the drift norm, then the search for a layer, then the other norms."""
    for edits, (net, depth) in product((100, 10), (("3x100", 3), ("9x100", 9))):
        for layer in range(1, depth):
            yield {"net": net, "layer": f"fc{layer}", "norm": "drift", "edits": edits}
    yield {"net": "9x100", "layer": "auto", "norm": "drift", "edits": 100}
    for layer, norm in product(("fc1", "fc2"), ("l2", "l1", "linf", "mean+max", "nuclear")):
        yield {"net": "9x100", "layer": layer, "norm": norm, "edits": 10}
    for net, depth in (("3x100", 3), ("9x100", 9)):
        for layer in range(1, depth):
            yield {"net": net, "layer": f"fc{layer}", "norm": "drift", "edits": 200}


def case(net: str, layer: str, norm: str, edits: int, corruption: str = "fog", seed: int = 1) -> dict[str, Any]:
    """Repair one case."""
    model, corrupted, train = relu_mlp(net), digits_in(corruption), mnist("train")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        wrong = (model(corrupted.inputs).argmax(1) != corrupted.labels).nonzero()[:, 0]
    mine = wrong[torch.randperm(len(wrong), generator=generator)[:edits]]
    clean = torch.randperm(len(train), generator=generator)[:KEPT]
    asked = nnrepair.Edits(corrupted.inputs[mine], corrupted.labels[mine])
    locality = nnrepair.LocalitySet(train.inputs[clean], train.labels[clean])
    nnrepair.fix(model, asked[torch.tensor([0])], method=MinimalNorm(f"fc{net[0]}", "l2"), throw=False)  # warm up

    def work() -> dict[str, Any]:
        result = nnrepair.fix(model, asked, locality, method=MinimalNorm(layer, norm), throw=False)  # type: ignore[arg-type]
        report, before = result.report, dict(model.named_parameters())
        moved = {n: (p - before[n]).detach().double() for n, p in result.model.named_parameters()}
        changed = {n: d for n, d in moved.items() if d.any()}
        flat = torch.cat([d.flatten() for d in changed.values()]) if changed else torch.zeros(1)
        size = sum(before[n].numel() for n in changed)
        found = {
            "status": result.outcome.status,
            "success_rate": report.success_rate,
            "locality": report.locality,
            "drift": _drift(model, changed, locality.inputs),
            "l1": float(flat.abs().sum()),
            "largest": float(flat.abs().max()),
            "share": float((flat != 0).double().mean()) if size else 0.0,
        }
        return found

    return measure.measured(work)


def digits_in(corruption: str) -> Images:
    """Return the test digits, corrupted."""
    if corruption == "fog":
        return mnist_fog()
    from nnrepair.domains.images.corruptions import CORRUPTIONS  # other checkouts lack it

    digits = mnist("test")
    made = CORRUPTIONS[corruption](digits.inputs.reshape(-1, 28, 28).numpy(), 0)
    return Images(torch.from_numpy(made).float().flatten(1), digits.labels)


def _drift(model: torch.nn.Module, changed: dict[str, torch.Tensor], kept: Any) -> float:
    """Return the root mean square change of the changed layer's output on the digits to keep."""
    names = {name.rpartition(".")[0] for name in changed}
    if len(names) != 1:
        return 0.0
    (layer,) = names
    caught: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda module, x, y: caught.append(x[0].detach().double()))
    with torch.no_grad():
        model(kept)
    hook.remove()
    weight, bias = changed.get(f"{layer}.weight"), changed.get(f"{layer}.bias")
    moved = torch.zeros(()) if weight is None else caught[0] @ weight.T
    moved = moved if bias is None else moved + bias
    return float(moved.square().sum(1).mean().sqrt())


if __name__ == "__main__":
    from benchmarks.engine.against import Comparison  # other checkouts may lack it

    about = "misread digits in fog, seed 1, 10 000 clean digits kept; CPU seconds of fix, here and in another checkout"
    Comparison(Path(__file__), Path(__file__).parent / "results" / "hidden.json", about, limit=(90, 90)).main(
        cases, case
    )
