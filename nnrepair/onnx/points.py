"""Whether a model that was read runs, and treats the points of a batch one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnrepair.deadline import Deadline
from nnrepair.errors import first_line
from nnrepair.onnx.modules import OnnxGraph
from nnrepair.onnx.trying import CannotRun, Entry, Mixed, weightless
from nnrepair.spec.network import copied
from nnrepair.spec.noise import noise

#: How often points are drawn.
DRAWS = 2
#: Sizes of batches that a file may mean beside those that were tried.
OTHERS = (2, 3, 4, 5, 6, 7, 8, 16)
#: Sizes of batches that every model has to run on: even, odd, and larger than what a table may have for each point.
BATCHES = (4, 5, 1009)


def check(model: OnnxGraph, entries: Sequence[Entry], deadline: Deadline) -> None:
    """Run a model on points together and alone.

    Raises:
        CannotRun: it does not run on inputs of these shapes, in its own precision.
        Mixed: what a point gives depends on the others.
        OutOfTime: it is too late.
    """
    double = copied(model, deadline).double()  # then only mixing makes a difference, not rounding
    for which in range(2):
        items = [entry.shapes[which][1:] for entry in entries]
        if which and items == [entry.shapes[0][1:] for entry in entries]:
            break
        deadline.check()
        run(model, [torch.zeros(1, *item, dtype=entry.dtype) for item, entry in zip(items, entries, strict=True)])
        if not model.alone:
            _check_batches(model, entries, items, deadline)
        for draw in range(DRAWS):
            deadline.check()
            _check_pair(double, drawn(entries, items, draw), poison=draw == 0)


def drawn(entries: Sequence[Entry], items: Sequence[Sequence[int]], draw: int, points: int = 2) -> list[Tensor]:
    """Draw points: numbers of both signs, or between 0 and 1; whole ones are small, as tokens of any table are."""
    source, made = torch.Generator().manual_seed(draw), []
    for entry, item in zip(entries, items, strict=True):
        if not entry.dtype.is_floating_point:
            made.append(torch.randint(0, 2, (points, *item), generator=source).to(entry.dtype))
        elif draw % 2:
            made.append(torch.rand(points, *item, generator=source, dtype=torch.float64))
        else:
            made.append(torch.randn(points, *item, generator=source, dtype=torch.float64))
    return made


def run(model: OnnxGraph, inputs: Sequence[Tensor]) -> Tensor:
    """Return what a model gives.

    Raises:
        CannotRun: it fails.
    """
    try:
        with torch.no_grad():
            y: Tensor = model(*inputs)
    except (RuntimeError, IndexError, ValueError) as error:
        shapes = ", ".join(f"{tuple(x.shape)} and type {x.dtype}" for x in inputs)
        raise CannotRun(f"cannot run on an input of shape {shapes}: {first_line(error)}") from error
    return y


def _check_batches(
    model: OnnxGraph, entries: Sequence[Entry], items: Sequence[Sequence[int]], deadline: Deadline
) -> None:
    """Run a model on batches of other sizes, for shapes alone."""
    twin = weightless(model)

    def shape(n: int) -> torch.Size:
        given = [torch.empty(n, *item, dtype=e.dtype, device="meta") for item, e in zip(items, entries, strict=True)]
        return twin.run(*given).shape

    one = shape(1)
    for n in BATCHES:
        deadline.check()
        try:
            made = shape(n)
        except Exception as error:  # torch raises many kinds
            raise CannotRun(f"runs on a few points together, but not on {n}: {first_line(error)}") from error
        if made != (n, *one[1:]):
            raise Mixed(
                f"does not treat the inputs of a batch one by one: {n} inputs give {tuple(made)} together, one "
                f"{tuple(one)} alone. The first axis must be the batch throughout."
            )


def _check_pair(model: OnnxGraph, pair: list[Tensor], poison: bool) -> None:
    together = run(model, pair)
    alone = [run(model, [x[k : k + 1] for x in pair]) for k in range(2)]
    fits = all(y.ndim and len(y) == 1 for y in alone) and together.ndim and together.shape == torch.cat(alone).shape
    if not fits or not _agree(torch.cat(alone), together, model, pair):
        raise Mixed(
            f"does not treat the inputs of a batch one by one: two inputs give {tuple(together.shape)} together "
            f"and {', '.join(str(tuple(y.shape)) for y in alone)} alone. The first axis must be the batch throughout."
        )
    if not (poison or model.alone):
        five = [0, 1, 0, 1, 0]
        if not _agree(run(model, [x[five] for x in pair]), together[five], model, [x[five] for x in pair]):
            raise Mixed("does not treat the inputs of a batch one by one: one of five gives something else than alone.")
    floating = [x.is_floating_point() for x in pair]
    if not poison or not any(floating) or model.alone:
        return
    # NaN in one point shows also what saturates: whatever it reaches is NaN.
    spoiled = [
        torch.cat([x[:1], torch.full_like(x[1:], torch.nan)]) if f else x for x, f in zip(pair, floating, strict=True)
    ]
    try:
        beside = run(model, spoiled)
    except CannotRun:  # NaN is no index
        return
    if not _agree(beside[:1], alone[0], model, [x[:1] for x in pair]):
        raise Mixed(
            "does not treat the inputs of a batch one by one: NaN in one of them reaches the output of another."
        )


def _agree(a: Tensor, b: Tensor, model: OnnxGraph, points: list[Tensor]) -> bool:
    """Tell whether outputs of a model at points, of other batches or by other code, differ by no more than rounding."""
    a, b = a.double(), b.double()
    if a.shape != b.shape:
        return False
    close = torch.isclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True)
    return bool(close.all()) or bool((close | ((a - b).abs() <= noise(model, lambda twin: run(twin, points)))).all())


def same(a: OnnxGraph, b: OnnxGraph, entries: Sequence[Entry]) -> bool:
    """Tell whether two models give the same for a few points."""
    items = [entry.shapes[0][1:] for entry in entries]
    twins = [copied(model).double() for model in (a, b)]
    for draw in range(2, 4):
        points = drawn(entries, items, draw, points=5)
        first, second = (run(model, points) for model in twins)
        if not _agree(second, first, twins[0], points):
            return False
    return True


def runs_on_more(model: OnnxGraph, entries: Sequence[Entry]) -> int | None:
    """Return a number of points from two on that the operations of the file run on at once, or None."""
    twin = weightless(model)
    sizes = {size for entry in entries for size in entry.shapes[0] if 1 < size <= 64}
    for n in sorted({*OTHERS, *sizes}):
        inputs = [torch.empty(n, *entry.shapes[0][1:], dtype=entry.dtype, device="meta") for entry in entries]
        try:
            twin.run(*inputs)
        except Exception:  # torch raises many kinds
            continue
        return n
    return None
