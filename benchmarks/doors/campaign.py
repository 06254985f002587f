"""Random calls of `nnrepair.fix`: what becomes of each, and what is false about it.

    python -m benchmarks.doors.campaign [--count 3000] [--seed 0] [--show INDEX] [--path FILE]

A call ends in an outcome, of which everything that it claims is checked by other means (`truth`), or in an error of the
package's own. Anything else, numpy's warnings included, is listed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.doors import draw, truth
from nnrepair.errors import NNRepairError
from nnrepair.files import write_atomically
from nnrepair.fix import fix

RESULTS = Path(__file__).parent / "results" / "campaign.json"
COUNT, SEED = 3000, 20261128


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


def run(first: int, count: int, seed: int) -> dict[str, Any]:
    """Make so many calls."""
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
        "calls": count,
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": wrong,
        "drawn": dict(sorted(drawn.items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doors.campaign", description=__doc__)
    parser.add_argument("--first", type=int, default=0)
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
    started = time.process_time()
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=measure.ROOT, capture_output=True, text=True)
    found = run(given.first, given.count, given.seed)
    about = {"about": "random calls of fix, each outcome checked by other means", **measure.machine()}
    about |= {"commit": done.stdout.strip(), "cpu_seconds": round(time.process_time() - started, 1)}
    write_atomically(given.path, (json.dumps(about | found, indent=1) + "\n").encode())
    print(json.dumps(found["outcomes"], indent=1))
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
