"""Marabou on images of a fully connected ReLU network; for a Python that has maraboupy, and without anything of ours.

    python benchmarks/baselines/marabou.py CASES.npz SECONDS

CASES: `weight0`, `bias0`, `weight1`, ..., and `low`, `high` (images, inputs), `label` (images,). Prints a line of JSON
for each image: its verdict and the CPU seconds, all but reading the file. The query asks for an input at which some
other output is at least that of the label.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from maraboupy import MarabouCore
from maraboupy.Marabou import createOptions


def main(file: str, seconds: int) -> None:
    """Decide every case, within so many seconds of wall time each."""
    cases = np.load(file)
    layers = [(cases[f"weight{k}"], cases[f"bias{k}"]) for k in range(len([n for n in cases if n.startswith("bias")]))]
    for low, high, label in zip(cases["low"], cases["high"], cases["label"], strict=True):
        started = time.process_time()
        options = createOptions(verbosity=0, timeoutInSeconds=seconds)
        code = MarabouCore.solve(query(layers, low, high, int(label)), options, "")[0]
        verdict = {"sat": "violated", "unsat": "holds"}.get(code, "unknown")
        print(json.dumps({"verdict": verdict, "cpu_seconds": round(time.process_time() - started, 3)}), flush=True)


def query(layers: list[tuple[np.ndarray, np.ndarray]], low: np.ndarray, high: np.ndarray, label: int) -> object:
    """Return the query of one image."""
    asked = MarabouCore.InputQuery()
    last = len(layers) - 1
    sizes = [len(low)] + [len(bias) * (1 if k == last else 2) for k, (_, bias) in enumerate(layers)]
    asked.setNumberOfVariables(sum(sizes))
    for k, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        asked.setLowerBound(k, a)
        asked.setUpperBound(k, b)
    before, free = list(range(len(low))), len(low)
    for k, (weight, bias) in enumerate(layers):
        into = list(range(free, free + len(bias)))
        for unit, row, shift in zip(into, weight.tolist(), bias.tolist(), strict=True):
            equation = MarabouCore.Equation()
            for variable, w in zip(before, row, strict=True):
                equation.addAddend(w, variable)
            equation.addAddend(-1.0, unit)
            equation.setScalar(-shift)
            asked.addEquation(equation)
        free += len(bias)
        before = into
        if k != last:
            before = list(range(free, free + len(bias)))
            for unit, out in zip(into, before, strict=True):
                MarabouCore.addReluConstraint(asked, unit, out)
            free += len(bias)
    ways = []
    for other in before:
        if other != before[label]:
            way = MarabouCore.Equation(MarabouCore.Equation.EquationType.GE)
            way.addAddend(1.0, other)
            way.addAddend(-1.0, before[label])
            way.setScalar(0.0)
            ways.append([way])
    MarabouCore.addDisjunctionConstraint(asked, ways)
    return asked


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
