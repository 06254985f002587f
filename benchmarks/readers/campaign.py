"""Random ONNX graphs through all four readers, each compared with onnxruntime.

`python -m benchmarks.readers.campaign` runs what is missing in results/readers.json; `--show linear 17` shows a graph.
A reader either computes what onnxruntime computes, or refuses with its own error.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx.printer
import torch

from benchmarks import measure
from benchmarks.readers.graphs import POINTS, SEED, STYLES, Case, case
from benchmarks.readers.readers import READERS, Reading
from benchmarks.readers.truth import Mixed, Truth, apart, by_reference, invalid, opened
from nnrepair.errors import NNRepairError
from nnrepair.processes import Failure, in_processes

RESULTS = Path(__file__).parent / "results"
BLOCK = 5000
#: How many graphs each reader must have read.
TARGET = 50_000
#: Graphs of each style, at least.
LEAST = 30_000
#: The reader that each style is drawn for.
AIMS = {"chain": "reading", "images": "minimality", "linear": "lower", "all": "load", "wide": "load"}
#: How many faults of a reader in a block are kept in words; all are counted.
SHOWN = 20
#: What becomes of graphs that are no faults of a reader; onnx, or onnxruntime, refuses those that are undecided.
SETTLED, UNDECIDED = ("agrees", "refused", "reference agrees", "overflow", "wide"), ("invalid", "unconfirmed")
#: How wide an enclosure may be, relative to the numbers in it, before it is called wide.
WIDE = 1e-6
#: Numbers that lead to overflow soon.
LARGEST = {np.dtype(kind): float(np.finfo(kind).max) / 4 for kind in (np.float16, np.float32, np.float64)}
#: Sizes of batches, whatever the file fixes.
BATCHES = (POINTS, 1, 2, 0)


def judged(case: Case, reader: str, truth: Truth, path: Path) -> str:
    """Return what became of one graph: "agrees", or a word and, where it is a fault, what is wrong."""
    how = READERS[reader]
    try:
        reading = how.read(path, case)
    except how.refusals as refusal:
        return f"refused: {refusal}"
    except Exception as error:  # a crash is what is looked for
        return f"crash: reading: {type(error).__name__}: {error}"
    try:
        return compared(case, reading, truth)
    except how.refusals as refusal:
        return f"refused: {refusal}"
    except Exception as error:  # a crash is what is looked for
        return f"crash: running: {type(error).__name__}: {error}"


def compared(case: Case, reading: Reading, truth: Truth) -> str:
    size = int(np.prod(case.shape))
    if reading.bare:
        return by_whole(case, reading, truth)
    if reading.single is not None:
        return by_single(case, reading, truth)
    if reading.inputs != size:
        other = resized(case, reading.shape)
        if other is not None:
            return compared(other, reading, Truth(other))
        if truth.whole is None:
            return unconfirmed(case, reading, truth)
        if reading.inputs != truth.whole[0].shape[1]:
            return f"difference: it has {reading.inputs} inputs, the file {truth.whole[0].shape[1]}"
        return difference(reading, truth, *truth.whole) or "agrees"
    wanted = truth.items
    if wanted is None:
        return unconfirmed(case, reading, truth)
    if isinstance(wanted, Mixed):
        return f"difference: read, but {wanted.how}"
    for n in BATCHES if reading.exact else (POINTS, 2):
        wrong = difference(reading, truth, case.points[:n], wanted[:n])
        if wrong:
            return f"{wrong} (batch of {n})"
    return "agrees"


def resized(case: Case, shape: tuple[int, ...] | None) -> Case | None:
    """Return a case with points of another shape, where the file leaves open what differs; else None."""
    dims = opened(case.model)[1:]
    if shape is None or len(dims) != len(shape) or any(d not in (None, n) for d, n in zip(dims, shape, strict=True)):
        return None
    return replace(case, points=np.resize(case.points, (POINTS, *shape)))


def by_whole(case: Case, reading: Reading, truth: Truth) -> str:
    """Compare a reader that takes the whole input of the file for one point, or for a point without a batch."""
    counts = [case.batch] if case.batch else [reading.inputs // int(np.prod(case.shape)), POINTS, 3, 2, 1]
    for number in counts:
        batches = [case.points[[(first + k) % POINTS for k in range(number)]] for first in range(2)]
        outputs = [truth.run(batch) for batch in batches]
        if all(output is not None for output in outputs):
            break
    else:
        return unconfirmed(case, reading, truth)
    if reading.exact:
        for batch, output in zip(batches, outputs, strict=True):
            wrong = difference(reading, truth, batch, output)
            if wrong:
                return wrong
    return difference(reading, truth, np.stack(batches), np.stack(outputs)) or "agrees"


def by_single(case: Case, reading: Reading, truth: Truth) -> str:
    """Compare a reader that runs points one at a time, or moves them to the front of the output."""
    assert reading.single is not None
    size = case.batch or 1
    orders = [[(first + k) % POINTS for k in range(size)] for first in range(0, POINTS, size)]
    outputs = [truth.run(case.points[order]) for order in orders]
    if any(output is None for output in outputs):
        return unconfirmed(case, reading, truth)
    wanted = np.concatenate([reading.single(output) for output in outputs])[:POINTS]
    for n in BATCHES if reading.exact else (POINTS, 2):
        wrong = difference(reading, truth, case.points[:n], wanted[:n])
        if wrong:
            return f"{wrong} (batch of {n})"
        together = truth.run(case.points[:n]) if n > 1 and case.batch is None else None
        if together is not None:
            wrong = difference(reading, truth, case.points[:n], reading.single(together))
            if wrong:
                return f"{wrong} ({n} together)"
    return "agrees"


def difference(reading: Reading, truth: Truth, points: Any, wanted: Any) -> str:
    """Compare outputs; return what is wrong, or nothing."""
    low, high = reading.run(points)
    if reading.exact and (low.shape != wanted.shape or low.dtype != wanted.dtype):
        return f"difference: {low.dtype} {low.shape}, expected {wanted.dtype} {wanted.shape}"
    if low.size != wanted.size or (wanted.ndim and len(low) != len(wanted)):
        return f"difference: outputs {low.shape}, expected {wanted.shape}"
    if not (reading.exact or np.isfinite(low).all()) and np.isfinite(wanted).all():
        return "overflow: bounds that are not finite"
    low, high = low.reshape(wanted.shape), high.reshape(wanted.shape)
    tolerance = truth.tolerance(wanted)
    wrong = apart(low, high, wanted, tolerance, reading.exact)
    if wrong.any():
        if not truth.finite or not (reading.exact or truth.scale < LARGEST.get(truth.dtype, 2**30)):
            return "overflow: infinities on the way"
        tolerance = max(tolerance, truth.scale * truth.coarsest)
        wrong = apart(low, high, wanted, tolerance, reading.exact)
    if wrong.any():
        k = tuple(np.argwhere(wrong)[0])
        return (
            f"difference: {low[k]!r} to {high[k]!r} at {[int(i) for i in k]}, expected {wanted[k]!r}, +-{tolerance:.2g}"
        )
    with np.errstate(all="ignore"):
        width = float((high - low).max(initial=0.0))
        wide = (high - low > WIDE * (1 + np.abs(low))).any() and width > WIDE * (1 + truth.scale)
    if wide and reading.near is not None:  # true, but nothing was compared closely
        low, high = (end.reshape(wanted.shape) for end in reading.near(points))
        wide = apart(low, high, wanted, max(tolerance, truth.scale * truth.coarsest)).any()
    return f"wide: {width:.2g}" if wide else ""


def unconfirmed(case: Case, reading: Reading, truth: Truth) -> str:
    """Say of a graph that onnxruntime refuses what onnx says of it."""
    reason = invalid(case.model)
    if reason:
        return f"invalid: {reason}"
    wanted = by_reference(case)
    if wanted is None or wanted.dtype.kind != "f" or reading.inputs != np.prod(case.shape):
        return f"unconfirmed: {truth.refusal}"
    return difference(reading, truth, case.points, wanted) or "reference agrees"


def block(style: str, first: int, count: int, seed: int) -> dict[str, Any]:
    """Try a block of graphs, and count what became of them."""
    outcomes = {reader: Counter[str]() for reader in READERS}
    operators = {reader: Counter[str]() for reader in READERS}
    faults: dict[str, list[str]] = {reader: [] for reader in READERS}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in range(first, first + count):
            drawn = case(style, index, seed)
            path, truth = Path(folder) / "graph.onnx", Truth(drawn)
            path.write_bytes(drawn.data)
            for reader in READERS:
                outcome = judged(drawn, reader, truth, path)
                word = outcome.split(":")[0]
                outcomes[reader][word] += 1
                if word == "agrees":
                    operators[reader].update(set(drawn.operators))
                elif word not in (*SETTLED, *UNDECIDED):
                    faults[reader].append(f"{style} {index} {reader} {outcome}"[:300])
    return {
        "seed": seed,
        "style": style,
        "first": first,
        "graphs": count,
        "outcomes": {reader: dict(sorted(counts.items())) for reader, counts in outcomes.items()},
        "operators": {reader: dict(sorted(counts.items())) for reader, counts in operators.items()},
        "faults": [fault for found in faults.values() for fault in found[:SHOWN]],
    }


def run(path: Path, seed: int, target: int, jobs: int) -> list[dict[str, Any]]:
    """Run blocks until every reader has read `target` graphs, going on with those of the file.

    After LEAST graphs of each style come those that are drawn for the reader that has read the fewest.

    Raises:
        NNRepairError: the process of a block ended; the others are stored.
    """
    rows, lost = measure.load(path), list[str]()
    while not lost and (style := wanted([row for row in rows if row["seed"] == seed], target)) is not None:
        done = {row["first"] for row in rows if (row["style"], row["seed"]) == (style, seed)}
        missing = list(islice((first for first in count(0, BLOCK) if first not in done), jobs))
        with closing(in_processes(partial(_measured, style, seed), missing, jobs)) as answers:
            for first, row in answers:
                if isinstance(row, Failure):
                    lost.append(f"{style} {first}: {row}")
                    continue
                rows.append(row | {"commit": _commit(), "packages": {p: version(p) for p in ("onnx", "onnxruntime")}})
                measure.save(path, rows, "random ONNX graphs: four readers against onnxruntime")
                speed = BLOCK / row["cpu_seconds"]
                print(f"{style} {first}: {speed:.0f} graphs per CPU second, read so far: {read(rows)}", flush=True)
                print(*row["faults"], sep="\n", flush=True)
    if lost:
        raise NNRepairError(f"Blocks without an answer: {'; '.join(lost)}.")
    return rows


def _measured(style: str, seed: int, first: int) -> dict[str, Any]:
    return measure.measured(partial(block, style, first, BLOCK, seed))


def read(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many graphs each reader has read, and computed what onnxruntime computes."""
    return {reader: sum(row["outcomes"][reader].get("agrees", 0) for row in rows) for reader in READERS}


def wanted(rows: list[dict[str, Any]], target: int) -> str | None:
    """Return the style that is to be drawn next."""
    graphs = {style: sum(row["graphs"] for row in rows if row["style"] == style) for style in AIMS}
    counts = read(rows)
    behind = min(AIMS, key=lambda style: counts[AIMS[style]])
    short = [style for style in AIMS if graphs[style] < min(LEAST, target)]
    return short[0] if short else behind if counts[AIMS[behind]] < target else None


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=measure.ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def show(style: str, index: int, seed: int) -> None:
    """Print a graph and what becomes of it."""
    drawn = case(style, index, seed)
    print(onnx.printer.to_text(drawn.model), f"batch {drawn.batch}, one point {drawn.shape}", sep="\n")
    truth = Truth(drawn)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "graph.onnx"
        path.write_bytes(drawn.data)
        print("onnxruntime:", truth.refusal or (truth.items if isinstance(truth.items, Mixed) else "runs"))
        for reader in READERS:
            print(f"{reader}: {judged(drawn, reader, truth, path)}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers.campaign", description=__doc__)
    parser.add_argument("--target", type=int, default=TARGET)
    parser.add_argument("--jobs", type=int, default=1, metavar="PROCESSES")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--show", nargs=2, metavar=("STYLE", "INDEX"), help=f"one graph; styles: {', '.join(STYLES)}")
    parser.add_argument("--path", type=Path, default=RESULTS / "readers.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.show:
        show(arguments.show[0], int(arguments.show[1]), arguments.seed)
    else:
        run(arguments.path, arguments.seed, arguments.target, arguments.jobs)


if __name__ == "__main__":
    main()
