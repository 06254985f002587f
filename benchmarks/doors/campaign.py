"""Random calls of `nnrepair.fix`: what becomes of each, and what is false about it.

    python -m benchmarks.doors.campaign [--count 2500] [--seed 0] [--show INDEX] [--path FILE]

A call ends in an outcome, of which everything that it claims is checked by other means (`truth`), or in an error of the
package's own. Anything else, numpy's warnings included, is listed.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.doors import draw, truth
from nnrepair.errors import NNRepairError
from nnrepair.fix import fix

RESULTS = Path(__file__).parent / "results" / "campaign.json"
COUNT, SEED, BLOCK = 2500, 20261128, 100


def judged(call: draw.Call, loud: bool = False) -> tuple[str, list[str]]:
    """Return what became of a call, and what is wrong with that."""
    before = truth.bits(call.model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = fix(call.model, call.edits, call.locality, method=call.method, throw=False, **call.options)
    except NNRepairError as error:
        if loud:
            print(error)
        return f"refused, {type(error).__name__}", list(truth.untouched(call, before))
    except Exception as error:  # what is looked for
        if loud:
            traceback.print_exc()
        at = traceback.extract_tb(error.__traceback__)[-1]
        return "foreign", [f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno})"[:300]]
    if loud:
        print(result)
    return result.outcome.status, truth.false(call, result, before)


def block(first: int, count: int, seed: int) -> dict[str, Any]:
    """Make so many calls, and count what became of them."""
    outcomes, drawn = Counter[str](), Counter[str]()
    wrong: list[str] = []
    for index in range(first, first + count):
        try:
            call = draw.call(index, seed)
        except NNRepairError:  # a criterion of numbers that are none, or a tolerance of zero
            outcomes["refused when it was made"] += 1
            continue
        outcome, faults = judged(call)
        outcomes[outcome] += 1
        drawn.update(call.about)
        for fault in faults:
            wrong.append(f"{index} ({', '.join(call.about)}; {call.method}): {fault}")
            print(wrong[-1], flush=True)
    return {
        "seed": seed,
        "first": first,
        "calls": count,
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": wrong,
        "drawn": dict(sorted(drawn.items())),
    }


def run(path: Path, seed: int, count: int) -> list[dict[str, Any]]:
    """Make `count` calls, beginning with those of the file, and store them block by block."""
    rows = measure.load(path)
    done = sum(row["calls"] for row in rows)
    for first in range(done, count, BLOCK):
        row = measure.measured(functools.partial(block, first, min(BLOCK, count - first), seed))
        rows.append(row | {"commit": _commit()})
        measure.save(path, rows, "random calls of fix: every outcome is checked by other means")
        print(f"{first + row['calls']} calls, {len(row['wrong'])} of the last {row['calls']} wrong", flush=True)
    return rows


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=measure.ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doors.campaign", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--show", type=int, metavar="INDEX", help="one call")
    parser.add_argument("--path", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.show is not None:
        call = draw.call(given.show, given.seed)
        print(call.model, call.edits.inputs, call.edits.criterion, call.method, call.options, call.about, sep="\n")
        print(*judged(call, loud=True)[1], sep="\n")
        return
    rows = run(given.path, given.seed, given.count)
    print(sum((Counter(row["outcomes"]) for row in rows), Counter[str]()))
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
