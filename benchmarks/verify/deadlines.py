"""Does check() keep its time limit? Random networks of all shapes, random properties, limits of 1, 2 and 5 seconds.

    python -m benchmarks.verify.deadlines               fills results/deadlines.json; resumes where it was stopped
    python -m benchmarks.verify.deadlines --case 17     shows one case

Each case has a process of its own, with one thread. Where several processes share a core, wall time says nothing about
the code: `--clock cpu` lets deadlines read the CPU time of the process, and then CPU seconds are what is judged.
A case is late if it takes more than LATE times the limit and GRACE seconds. What is not counted: imports, and making
the network and the property.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

from benchmarks import measure
from nnrepair import AnyOf, Argmax, Criterion, Linear, Near
from nnrepair.verify import Box, Property

RESULTS = Path(__file__).parent / "results"
SEED, COUNT, LIMITS = 20261203, 180, (1.0, 2.0, 5.0)
LATE, GRACE = 1.2, 1.0
#: Wall-clock seconds after which a case is given up.
PATIENCE = 600.0

Trial = tuple[nn.Module, Property | str]


# ------------------------------------------------------------------------------------------------------------- networks


def mlp(*sizes: int) -> nn.Sequential:
    """Return a fully connected network whose values neither grow nor fade with its depth."""
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layer = nn.Linear(a, b)
        nn.init.normal_(layer.weight, std=(2 / a) ** 0.5)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Image(nn.Module):
    """Give flat inputs the shape of images."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, *self.shape)


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


def cnn(rng: Generator, side: int, channels: int) -> nn.Sequential:
    """Return convolutions, at times with batch normalisation, pooling or residual blocks, and two linear layers."""
    width, parts = int(rng.choice([8, 16, 32])), list[nn.Module]()
    for k in range(int(rng.integers(1, 5))):
        stride = 2 if side > 8 and rng.random() < 0.6 else 1
        parts += [nn.Conv2d(channels if k == 0 else width, width, 3, stride, 1)]
        side = (side + stride - 1) // stride
        if rng.random() < 0.3:
            parts.append(nn.BatchNorm2d(width))
        parts.append(nn.ReLU())
        if rng.random() < 0.2:
            parts.append(Residual(nn.Conv2d(width, width, 3, 1, 1)))
        if side > 8 and rng.random() < 0.2:
            parts.append(nn.MaxPool2d(2))
            side //= 2
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(width * side**2, 64), nn.ReLU(), nn.Linear(64, 10))


# ----------------------------------------------------------------------------------------------------------- properties


def around(rng: Generator, model: nn.Module, shape: tuple[int, ...]) -> Property:
    """Return a claim about what the network decides around a random point, of any radius."""
    x = torch.from_numpy(rng.random((1, *shape))).float()
    with torch.no_grad():
        y = model.eval()(x)
    order = y[0].argsort(descending=True)
    label = order[: 1 if rng.random() < 0.6 else 2][-1:]
    box = Box.around(x[0], float(10 ** rng.uniform(-4, 0)), low=-1, high=2)
    choices: list[Criterion] = [Argmax(label), Near(y, float(10 ** rng.uniform(-3, 1)))]
    if y.shape[1] <= 10:
        choices += [AnyOf(Argmax(order[:1]), Argmax(order[1:2])), AnyOf(Near(y, 1.0), Argmax(label))]
    criterion = choices[0] if rng.random() < 0.5 else choices[int(rng.integers(len(choices)))]
    return Property.on(box, criterion, outputs=y.shape[1])


def text(rng: Generator, inputs: int, outputs: int, asserts: str) -> str:
    """Return a VNN-LIB file with a box, which must be named first, and what else is asserted."""
    names = [f"(declare-const X_{i} Real)" for i in range(inputs)] + [
        f"(declare-const Y_{i} Real)" for i in range(outputs)
    ]
    ends = [f"(assert (and (>= X_{i} {low:.3f}) (<= X_{i} {low + 1:.3f})))" for i, low in enumerate(rng.random(inputs))]
    return "\n".join([*names, *ends, asserts])


# ---------------------------------------------------------------------------------------------------------------- kinds


def dense_wide(rng: Generator) -> Trial:
    inputs = int(rng.choice([3, 20, 100, 1000, 5000]))
    model = mlp(inputs, *(int(rng.integers(300, 3000)) for _ in range(rng.integers(1, 4))), int(rng.integers(2, 20)))
    return model, around(rng, model, (inputs,))


def dense_deep(rng: Generator) -> Trial:
    inputs, width = int(rng.choice([2, 5, 20, 200])), int(rng.integers(20, 250))
    model = mlp(inputs, *[width] * int(rng.integers(8, 40)), int(rng.integers(2, 10)))
    return model, around(rng, model, (inputs,))


def small(rng: Generator) -> Trial:
    inputs = int(rng.integers(1, 8))
    model = mlp(inputs, *[int(rng.integers(5, 60))] * int(rng.integers(1, 7)), int(rng.integers(2, 6)))
    return model, around(rng, model, (inputs,))


def images(rng: Generator) -> Trial:
    shape = int(rng.choice([1, 3])), int(rng.choice([16, 28, 32, 64])), 0
    model = cnn(rng, shape[1], shape[0]).eval()
    return model, around(rng, model, (shape[0], shape[1], shape[1]))


def large_images(rng: Generator) -> Trial:
    side = int(rng.choice([96, 160, 224]))
    convolutions = nn.Conv2d(3, 16, 7, 4, 3), nn.Conv2d(16, 32, 5, 2, 2), nn.Conv2d(32, 32, 3, 2, 1)
    parts = [part for each in convolutions for part in (each, nn.ReLU())]
    left = -(-side // 16) // 2
    model = nn.Sequential(*parts, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32 * left**2, 10))
    return model, around(rng, model, (3, side, side))


def few_inputs_large_images(rng: Generator) -> Trial:
    inputs, side = int(rng.integers(2, 24)), int(rng.choice([16, 32, 48]))
    model = nn.Sequential(nn.Linear(inputs, 3 * side**2), Image(3, side, side), *cnn(rng, side, 3)).eval()
    return model, around(rng, model, (inputs,))


def many_cases(rng: Generator) -> Trial:
    """Disjunctions that multiply, on outputs, on inputs or on both."""
    inputs, outputs = int(rng.integers(2, 6)), int(rng.integers(2, 6))
    model = mlp(inputs, 20, 20, outputs)
    lines = []
    for i in range(int(rng.integers(3, 17))):
        if rng.random() < 0.7:
            a, b = rng.integers(outputs, size=2)
            lines.append(f"(assert (or (<= Y_{a} {10 - i}.{i}) (<= Y_{b} {9 - i}.5)))")
        else:
            a, b = rng.integers(inputs, size=2)
            lines.append(f"(assert (or (<= X_{a} {1 + i / 100:.3f}) (<= X_{b} {1.005 + i / 100:.3f})))")
    return model, text(rng, inputs, outputs, "\n".join([*lines, "(assert (>= Y_0 -1000))"]))


def many_boxes(rng: Generator) -> Trial:
    """Thousands of boxes, each with rows of its own."""
    inputs, count = int(rng.integers(1, 4)), int(10 ** rng.uniform(2, 4.3))
    model = mlp(inputs, 30, 30, 2)
    low = rng.random((count, inputs)).round(4)
    clauses = [
        "(and " + " ".join(f"(>= X_{i} {v:.4f}) (<= X_{i} {v + 0.01:.4f})" for i, v in enumerate(row))
        + f" (>= Y_0 {rng.uniform(0.5, 3):.4f}))" for row in low
    ]  # fmt: skip
    names = [f"(declare-const X_{i} Real)" for i in range(inputs)] + [
        "(declare-const Y_0 Real)",
        "(declare-const Y_1 Real)",
    ]
    return model, "\n".join([*names, f"(assert (or {' '.join(clauses)}))"])


def many_ways(rng: Generator) -> Trial:
    """Alternatives whose failures multiply, and long conditions."""
    inputs, outputs = int(rng.integers(2, 50)), int(rng.integers(4, 40))
    model = mlp(inputs, 50, outputs)
    box = Box.around(rng.random(inputs), 0.1)
    labels = [Argmax([k]) for k in range(max(2, min(outputs, int(4 / np.log10(outputs)))))]
    if rng.random() < 0.3:
        rows = rng.normal(size=(1, int(rng.integers(100, 3000)), outputs))
        return model, Property.on(box, Linear(rows, np.full(rows.shape[:2], -20.0)))
    return model, Property.on(box, AnyOf(*labels), outputs=outputs)


def ties(rng: Generator) -> Trial:
    """Unsafe sets that the outputs only touch."""
    inputs = int(rng.integers(1, 8))
    model = mlp(inputs, *[int(rng.integers(5, 60))] * int(rng.integers(1, 5)), 4)
    with torch.no_grad():
        y = model(torch.from_numpy(rng.random((1, inputs))).float())[0]
    equal = [f"(assert (= Y_{k} {float(y[k]):.6f}))" for k in range(int(rng.integers(1, 4)))]
    return model, text(rng, inputs, 4, "\n".join(equal))


def exact(rng: Generator) -> Trial:
    """Violated, by networks that rational arithmetic takes seconds for, from boxes of decimals."""
    inputs = int(rng.choice([10, 500]))
    width = int(rng.integers(500, 1400))
    model = mlp(inputs, width, width, 3)
    fixed = [f"(assert (and (>= X_{i} 0.{i + 1:03d}) (<= X_{i} 0.{i + 1:03d})))" for i in range(inputs)]
    names = [f"(declare-const X_{i} Real)" for i in range(inputs)] + [f"(declare-const Y_{i} Real)" for i in range(3)]
    return model, "\n".join([*names, *fixed, "(assert (or (<= Y_0 Y_1) (<= Y_1 Y_0)))"])


KINDS: dict[str, Callable[[Generator], Trial]] = {
    make.__name__: make
    for make in (
        dense_wide,
        dense_deep,
        small,
        images,
        large_images,
        few_inputs_large_images,
        many_cases,
        many_boxes,
        many_ways,
        ties,
        exact,
    )
}


# ------------------------------------------------------------------------------------------------------------ measuring


def run_case(index: int, clock: str, seed: int = SEED) -> dict[str, Any]:
    """Check one case, half of those without convolutions as ONNX files."""
    import onnxruntime  # noqa: F401 - now, so that no case pays for it

    from benchmarks.verify.soundness import onnx_bytes
    from nnrepair import deadline
    from nnrepair.verify import check

    warnings.simplefilter("ignore")
    if clock == "cpu":
        setattr(deadline, "time", SimpleNamespace(monotonic=time.process_time))  # noqa: B010 - mypy
    kind = list(KINDS)[index % len(KINDS)]
    rng = np.random.default_rng([seed, index])
    torch.manual_seed(int(rng.integers(2**31)))
    limit = LIMITS[index // len(KINDS) % len(LIMITS)]
    model, prop = KINDS[kind](rng)
    row: dict[str, Any] = {"case": index, "kind": kind, "limit": limit, "clock": clock}
    chain = isinstance(model, nn.Sequential) and all(isinstance(part, nn.Linear | nn.ReLU) for part in model)
    with tempfile.TemporaryDirectory() as folder:
        given: Any = model
        if chain and rng.random() < 0.5:
            given = Path(folder) / "network.onnx"
            given.write_bytes(onnx_bytes(model, (int(next(model.parameters()).shape[1]),)))
        if isinstance(prop, str):
            (Path(folder) / "property.vnnlib").write_text(prop)
            prop = str(Path(folder) / "property.vnnlib")
        check(mlp(1, 1), Property.on(Box([0], [0]), Near(torch.zeros(1, 1), 1e9)), timeout=60)  # first uses of torch

        def work() -> dict[str, Any]:
            result = check(given, prop, timeout=limit)
            return {"verdict": result.verdict, "boxes": result.boxes, "reason": result.reason[:200]}

        row |= measure.measured(work)
    spent = row["cpu_seconds"] if clock == "cpu" else row["wall_seconds"]
    return row | {"late": bool(spent > LATE * limit + GRACE)}


def run(count: int, clock: str, path: Path) -> list[dict[str, Any]]:
    """Run the cases that the result file lacks."""
    rows, commit = {row["case"]: row for row in measure.load(path)}, measure.commit()
    todo = [{"index": index, "clock": clock} for index in range(count) if index not in rows]
    preload = ["benchmarks.verify.soundness", "onnxruntime"]
    for case, row in measure.each_in_its_process(run_case, todo, PATIENCE, preload):
        index = case["index"]
        about = {"case": index, "kind": list(KINDS)[index % len(KINDS)], "seed": SEED, "commit": commit}
        rows[index] = about | {"late": True} | row
        measure.save(path, [rows[k] for k in sorted(rows)], f"check() with time limits of {LIMITS} seconds")
        print(shown(rows[index]), flush=True)
    return list(rows.values())


def shown(row: dict[str, Any]) -> str:
    """Return a case as a line."""
    if "verdict" not in row:
        return f"{row['case']:>4} {row['kind']:<24} {row['status']}  LATE"
    took = f"{row['cpu_seconds']:6.2f} CPU s {row['wall_seconds']:6.2f} s {row['peak_mib']:6.0f} MiB"
    found = f"{row['verdict']:<8} {row['boxes']:>7} boxes{'  LATE' * row['late']}  {row['reason'][:60]}"
    return f"{row['case']:>4} {row['kind']:<24} limit {row['limit']:g}  {took}  {found}"


def summary(rows: list[dict[str, Any]]) -> str:
    """Return how many were late, and by how much the worst was."""
    lines = []
    for kind in KINDS:
        mine = [row for row in rows if row["kind"] == kind]
        over = [
            (row["cpu_seconds"] if row["clock"] == "cpu" else row["wall_seconds"]) - row["limit"]
            for row in mine
            if "limit" in row
        ]
        peak = max((row["peak_mib"] for row in mine if "limit" in row), default=0)
        late = sum(row["late"] for row in mine)
        lines.append(
            f"{kind:<24} {len(mine):>3} cases, {late} late, at most {max(over, default=0):+.2f} s, {peak:.0f} MiB"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify.deadlines", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path, default=RESULTS / "deadlines.json")
    parser.add_argument("--case", type=int)
    arguments = parser.parse_args()
    if arguments.case is not None:
        torch.set_num_threads(1)
        print(shown(run_case(arguments.case, arguments.clock)))
        return
    print(summary(run(arguments.count, arguments.clock, arguments.out)))


if __name__ == "__main__":
    main()
