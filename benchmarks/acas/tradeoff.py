"""What a margin buys: size of the change, length of the proof and agreement, for six repairs and five margins each.

One measurement: `python -m benchmarks.acas.tradeoff '{"network": "2_1", "properties": [2], "margin": 0.01}'`.
All of them: `python -m benchmarks run --domain acas --part tradeoff`, one fresh process each; resumes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

import nnrepair
from benchmarks import measure
from nnrepair import onnx
from nnrepair.domains import acas
from nnrepair.verify import check

RESULTS = Path(__file__).parent / "results" / "tradeoff.json"
MOST_BOXES, TIMEOUT = 50_000, 100.0
#: Wall seconds after which a whole repair is given up ("not finished").
LIMIT = 300.0
#: States on which decisions are compared: none of them is in the locality set, which has seed 0.
STATES, SEED = 200_000, 1
#: Network, properties to repair, properties to keep, margins (network units) from thin to thick.
THIN_TO_THICK = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
CASES: tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[float, ...]], ...] = (
    ("2_1", (2,), (1, 3, 4), THIN_TO_THICK),
    ("2_7", (2,), (1, 3, 4), THIN_TO_THICK),
    ("3_8", (2,), (1, 3, 4), THIN_TO_THICK),
    ("4_6", (2,), (1, 3, 4), THIN_TO_THICK),
    ("1_8", (3, 4), (1,), THIN_TO_THICK),
    ("2_9", (8,), (1, 3, 4), (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)),
)


def one(network: str, properties: list[int], margin: float) -> dict[str, Any]:
    """Repair the last layer with one margin and measure."""
    base, keep = next((acas.network(*map(int, name.split("_"))), k) for name, _, k, _ in CASES if name == network)
    model = onnx.load(base)
    check(base, acas.property_file(1), timeout=10)  # so that start-up is not counted
    kept = acas.locality_set(model)

    def work() -> dict[str, Any]:
        files = [acas.property_file(number) for number in properties]
        result = nnrepair.repair_property(
            base,
            files,
            keep=[acas.property_file(number) for number in keep],
            locality_set=kept,
            layer="last",
            margin=margin,
            most_boxes=MOST_BOXES,
            timeout=TIMEOUT,
            throw=False,
        )
        return {"result": result}

    answer = measure.measured(work)
    result = answer.pop("result")
    change, mine = result.report.weight_change, [proof for proof in result.proofs if proof.role == "repair"]
    return answer | {
        "status": result.outcome.status,
        "l1": change.l1,
        "linf": change.linf,
        "nonzeros": change.nonzeros,
        "verdicts": {proof.name: proof.result.verdict for proof in result.proofs},
        "proof_boxes": sum(proof.result.boxes for proof in mine),
        "proof_cpu_seconds": sum(proof.result.cpu_seconds for proof in mine),
        "from_parts": sorted(result.stats.get("from_parts", ())),
        "kept": result.report.locality,
        "agreement": agreement(model, result.model),
        "stats": {key: value for key, value in result.stats.items() if isinstance(value, int)},
        "notes": result.report.notes,
    }


def agreement(before: nn.Module, after: nn.Module) -> float:
    """Return the share of random states with the same advice."""
    x = acas.states(STATES, SEED).reshape(-1, 1, 1, 5)

    def advice(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([model(part).flatten(1).argmin(1) for part in x.split(50_000)])

    return float((advice(before) == advice(after)).double().mean())


def run() -> None:
    """Measure all cases."""
    rows = measure.load(RESULTS)
    cases: list[dict[str, Any]] = [
        {"network": network, "properties": list(properties), "margin": margin}
        for network, properties, _, margins in CASES
        for margin in margins
    ]
    about = f"repair_property, last layer, 20 000 states to keep (seed 0), at most {MOST_BOXES} boxes and {TIMEOUT:g} s"
    about += f" for a check, agreement on {STATES} states (seed {SEED}); repairs have seed 0"
    for case in tqdm(cases, desc="margins"):
        if not any(case.items() <= row.items() for row in rows):
            rows.append(case | measure.in_fresh_process("benchmarks.acas.tradeoff", case, timeout=LIMIT))
            measure.save(RESULTS, rows, about)


if __name__ == "__main__":
    print(json.dumps(one(**json.loads(sys.argv[1]))))
