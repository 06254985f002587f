"""Random properties of the 45 ACAS Xu networks: the checker against a long plain search that shares no code with it.

`python -m benchmarks.verify.heldout --who plain` and `--who checker` fill results/heldout-{who}.json, resumable and in
either order; `--who compare` judges. Property k is drawn from the seed and k alone, from samples of the network.
"""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from benchmarks import measure
from benchmarks.verify import exhaustive
from nnrepair.domains.files import find
from nnrepair.processes import Failure, in_processes
from nnrepair.verify.property import Box, Case, Conjunction, Halfspace, Property

RESULTS = Path(__file__).parent / "results"
SEED, COUNT = 20261121, 540
#: Wall-clock seconds for one property.
LIMITS = {"checker": 60.0, "plain": 120.0}
#: The networks' normalised domain.
LOW, HIGH = np.array([-0.328422877, -0.5, -0.5, -0.5, -0.5]), np.array([0.679857769, 0.5, 0.5, 0.5, 0.5])
#: What is unsafe: one output least or greatest (as properties 2 to 4), not least (5, 6), or a linear row.
KINDS = ("row", "least", "greatest", "not least", "row")
#: Where a row's threshold lies, seen from the least sampled value, in units of the sampled range.
PLACES = (-0.3, -0.1, -0.05, -0.02, -0.01, -0.003, 0.0, 0.003, 0.02)


def network(index: int) -> Path:
    """Return the network of property `index`."""
    a, b = divmod(index % 45, 9)
    name = f"acasxu/onnx/ACASXU_run2a_{a + 1}_{b + 1}_batch_2000.onnx"
    path = find(name)
    if path is None:
        raise SystemExit(f"{name} not found: set NNREPAIR_DATA to the folder that holds it.")
    return path


def decimal(value: float) -> Fraction:
    """Round to nine decimals, as the published properties do."""
    return Fraction(round(value * 10**9), 10**9)


def box(rng: Generator) -> Box:
    """Draw a box inside the domain, its widths log-uniform from 1/300 to 1/3 of the domain's."""
    width = (HIGH - LOW) * np.exp(rng.uniform(np.log(1 / 300), np.log(1 / 3), size=5))
    low = LOW + rng.random(5) * (HIGH - LOW - width)
    return Box([decimal(v) for v in low], [decimal(v) for v in low + width])


def unsafe(kind: str, y: Tensor, rng: Generator) -> tuple[Conjunction, ...]:
    """Draw an output condition, near its border on the sampled outputs y (samples, 5) where possible."""

    def row(coefficients: Any, bound: Fraction = Fraction(0)) -> Halfspace:
        return Halfspace(tuple(map(Fraction, np.asarray(coefficients).tolist())), bound)

    unit = np.eye(5)
    if kind == "row":
        a = (unit[rng.permutation(5)[:2]] * [[1], [-1]]).sum(0) if rng.random() < 0.6 else rng.integers(-3, 4, size=5)
        a = a if np.any(a) else unit[0]
        values = y @ torch.from_numpy(np.asarray(a, float))
        least, most = float(values.min()), float(values.max())
        return ((row(a, decimal(least + PLACES[rng.integers(len(PLACES))] * (most - least))),),)
    sign = -1 if kind == "greatest" else 1
    differences = sign * (y[:, :, None] - y[:, None, :])  # (samples, k, j): below zero where k beats j
    differences[:, torch.arange(5), torch.arange(5)] = -torch.inf
    if kind == "not least":
        score = differences.amax(2).amax(0)  # below zero where k wins everywhere
    else:
        score = differences.amax(2).amin(0)  # below zero where k wins somewhere
    k = int(score.abs().argmin()) if rng.random() < 0.6 else int(rng.integers(5))
    if kind == "not least":
        return tuple((row(unit[j] - unit[k]),) for j in range(5) if j != k)
    return (tuple(row(sign * (unit[k] - unit[j])) for j in range(5) if j != k),)


def drawn(index: int, seed: int = SEED) -> tuple[str, Path, Property]:
    """Return kind, network and property number `index`."""
    rng, path = np.random.default_rng([seed, index]), network(index)
    kind = KINDS[(index // 45) % len(KINDS)]
    region = box(rng)
    y = exhaustive.sampled(exhaustive.read(path), region, 2000, rng)
    return kind, path, Property([Case(region, unsafe(kind, y, rng))], 5)


def one(index: int, who: str, limit: float) -> dict[str, Any]:
    """Decide one property."""
    torch.set_num_threads(1)
    kind, path, prop = drawn(index)
    row: dict[str, Any] = {"property": index, "seed": SEED, "kind": kind, "network": path.name, "limit": limit}
    if who == "plain":
        found = exhaustive.exhaustive(path, prop, limit)
        return row | found._asdict()
    from nnrepair.verify import check

    result = check(path, prop, timeout=limit)
    x = None if result.counterexample is None else [str(value) for value in result.counterexample.exact_input]
    row |= {"verdict": result.verdict, "boxes": result.boxes, "cpu_seconds": result.cpu_seconds, "counterexample": x}
    return row | ({"reason": result.reason} if result.verdict == "unknown" else {})


def run(who: str, count: int, workers: int, limit: float) -> None:
    """Decide what the result file lacks, and again what stayed unknown within a shorter limit."""
    path = RESULTS / f"heldout-{who}.json"
    rows = {row["property"]: row for row in measure.load(path)}
    missing = [
        k for k in range(count) if k not in rows or (rows[k]["verdict"] == "unknown" and rows[k]["limit"] < limit)
    ]
    about = f"random properties of the ACAS Xu networks, decided by the {who}; limits are seconds of wall time"
    with closing(in_processes(partial(one, who=who, limit=limit), missing, workers)) as answers:
        for index, row in answers:
            if isinstance(row, Failure):
                print(f"property {index}: {row}", flush=True)
                continue
            rows[row["property"]] = row
            measure.save(path, [rows[k] for k in sorted(rows)], about)


def compare() -> tuple[str, list[str]]:
    """Return the counts as text, and every contradiction; counterexamples of both are replayed exactly."""
    sides = {who: {r["property"]: r for r in measure.load(RESULTS / f"heldout-{who}.json")} for who in LIMITS}
    both = sorted(sides["checker"].keys() & sides["plain"].keys())
    wrong, pairs = [], Counter[tuple[str, str, str]]()
    for index in both:
        ours, plain = sides["checker"][index], sides["plain"][index]
        pairs[ours["kind"], ours["verdict"], plain["verdict"]] += 1
        if {ours["verdict"], plain["verdict"]} == {"holds", "violated"}:
            wrong.append(f"property {index}: checker {ours['verdict']}, plain search {plain['verdict']}")
        _, path, prop = drawn(index)
        for who, row in (("checker", ours), ("plain", plain)):
            if row["verdict"] == "violated":
                x = [Fraction(value) for value in row["counterexample"]]
                if not prop.violated_at(x, exhaustive.read(path).exact(x)):
                    wrong.append(f"property {index}: the counterexample of {who} is none")
    lines = [f"{'kind':10} {'checker':>9} {'plain':>9}  count"]
    lines += [f"{kind:10} {ours:>9} {plain:>9}  {count}" for (kind, ours, plain), count in sorted(pairs.items())]
    for who, rows in sides.items():
        verdicts = Counter(row["verdict"] for row in rows.values())
        lines.append(f"{who}: {dict(verdicts)}, {sum(row['cpu_seconds'] for row in rows.values()):.0f} CPU s")
    lines.append(f"{len(both)} compared, {len(wrong)} contradictions")
    return "\n".join(lines), wrong


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify.heldout", description=__doc__)
    parser.add_argument("--who", choices=[*LIMITS, "compare"], required=True)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, help="wall-clock seconds for one property")
    arguments = parser.parse_args()
    if arguments.who != "compare":
        run(arguments.who, arguments.count, arguments.workers, arguments.limit or LIMITS[arguments.who])
        return
    text, wrong = compare()
    print("\n".join([text, *wrong]))


if __name__ == "__main__":
    main()
