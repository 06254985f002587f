"""Time limits: whatever is being done when time is over, check() ends soon, says so, and says nothing false."""

from __future__ import annotations

import functools
import itertools
import math
import re
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp, randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import deadline, progress
from nnrepair.deadline import Deadline, OutOfTime
from nnrepair.network import private_copy
from nnrepair.verify import (
    Box,
    Case,
    Halfspace,
    Options,
    Property,
    check,
    vnnlib,
)
from nnrepair.verify.confirm import confirm
from nnrepair.verify.points import check_points
from nnrepair.verify.reading import affine
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.intervals import outputs_over


def row(coefficients: list[Any], bound: Any) -> Halfspace:
    return Halfspace(tuple(map(Fraction, coefficients)), Fraction(bound))


# A deadline ----------------------------------------------------------------------------------------------------------


def test_deadlines_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now[0])
    said: list[str] = []
    limit, never = Deadline(2.0, said.append), Deadline()
    half = limit.share(0.5)
    assert (limit.left(), half.left(), never.left(), never.share(0.5).left()) == (2.0, 1.0, math.inf, math.inf)
    limit.check("this")
    now[0] += 0.1
    limit.check("that")  # too soon to say it
    now[0] += 0.9
    limit.check()
    assert said == ["this", "that"] and limit.doing == "that" and not limit.passed and half.passed
    with pytest.raises(OutOfTime):
        half.check()
    assert list(limit.each("abc")) == ["a", "b", "c"]
    now[0] += 1.0
    with pytest.raises(OutOfTime):
        limit.check("more")
    with pytest.raises(OutOfTime):
        list(limit.each("abc"))
    assert limit.passed and limit.doing == "more"
    never.check()


# Time is over at any look at the clock -------------------------------------------------------------------------------


class Ends:
    """Deadlines end at the k-th look at the clock, wherever that is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks, self.last = 0, math.inf
        old = Deadline.check

        def check(limit: Deadline, doing: str | None = None) -> None:
            old(limit, doing)
            self.looks += limit.end < math.inf
            if limit.end < math.inf and self.looks >= self.last:
                limit.end = -math.inf  # it has passed, and stays so
                raise OutOfTime

        monkeypatch.setattr(Deadline, "check", check)

    def after(self, looks: float, work: Callable[[], Any]) -> Any:
        self.looks, self.last = 0, looks
        return work()


def chain(seed: int) -> nn.Sequential:
    return mlp(2, 8, 8, 3, seed=seed)


def images() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)))


SQUARE, IMAGE = Box([-1, -1], [1, 1]), Box(np.full((1, 3, 3), -0.5), np.full((1, 3, 3), 0.5))


def least(model: nn.Module, box: Box) -> float:
    """Return nearly the least output 0 over a box."""
    low, high = (torch.tensor([float(v) for v in end]) for end in (box.lower, box.upper))
    x = low + torch.rand(20_000, len(box), generator=torch.Generator().manual_seed(0)) * (high - low)
    with torch.no_grad():
        return float(model(x.reshape(-1, *box.shape))[:, 0].min())


@pytest.mark.parametrize("what", ["holds", "holds by relus", "violated", "ties", "image", "file", "decimals"])
def test_time_may_be_over_anywhere(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, box, options = chain(0), SQUARE, Options()
    if what == "image":
        model, box, options = images(), IMAGE, Options(split="relus")
    bound = Fraction(least(model, box))
    cases = [Case(box, ((row([1, 0, 0], bound - Fraction(1, 20)),), (row([1, 0, 0], -100), row([0, 1, 0], -100))))]
    given: Any = Property(cases, 3)
    if what == "holds by relus":
        options = Options(split="relus")
    elif what == "violated":
        given = Property([Case(box, ((row([1, 0, 0], bound + Fraction(1, 100)),),))], 3)
    elif what == "ties":
        model = chain(3)  # outputs 1 and 2 are equal somewhere
        with torch.no_grad():
            model[-1].bias[0] -= 10
        given = Property.on(Box([-3, -3], [3, 3]), nnrepair.Argmax([1]) | nnrepair.Argmax([2]), outputs=3)
    elif what == "decimals":
        tenth = Fraction(1, 10)
        given = Property([Case(Box([tenth, -1], [tenth, 1]), ((row([-1, 0, 0], 100),),))], 3)
    elif what == "file":
        given = tmp_path / "p.vnnlib"
        given.write_text(vnnlib.dumps(Property(cases, 3)))
    ends = Ends(monkeypatch)

    def work() -> Any:
        return check(model, given, timeout=1000, options=options)

    truth = ends.after(math.inf, work)
    assert truth.verdict == {"violated": "violated", "ties": "violated", "decimals": "violated"}.get(what, "holds")
    looks, seen = ends.looks, set()
    for k in sorted(
        {*range(1, 60, 2), *np.linspace(1, looks + 1, 40).astype(int).tolist()}
    ):  # the last one never comes
        result = ends.after(k, work)
        seen.add(result.verdict)
        assert result.verdict in (truth.verdict, "unknown")
        if result.verdict == "unknown":
            assert "the time limit of 1000 s was reached" in result.reason and result.counterexample is None
            assert result.certificate is None and 0 <= result.proved < 1 and result.worst_bound is not None
    assert seen == {truth.verdict, "unknown"}


def test_confirming_points_may_end_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = chain(0), randn(40, 2)
    with torch.no_grad():
        labels = model(x).argmax(1)
    near = Property.on(Box.around(x[0], 1e-3), nnrepair.Argmax(labels[:1]), outputs=3)
    ends = Ends(monkeypatch)

    def work() -> Any:
        return confirm(model, [("edits", x, nnrepair.Argmax(labels), None)], near, timeout=1000)

    assert ends.after(math.inf, work).verdict == "holds"
    verdicts = [ends.after(k, work).verdict for k in range(1, ends.looks, 3)]
    assert set(verdicts) <= {"holds", "unknown"} and verdicts[0] == "unknown"


def test_another_clock_is_kept_by_parts_and_shares() -> None:
    now = [5.0]
    deadline = Deadline(3.0, clock=lambda: now[0])
    half, part = deadline.share(0.5), deadline.part(3, "")
    assert (deadline.left(), half.left(), part.left()) == (3.0, 1.5, 1.0)
    now[0] += 1.25
    assert (deadline.passed, half.passed, part.passed) == (False, False, True)
    with pytest.raises(OutOfTime):
        part.check()


def test_no_time_limit_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit the clock says nothing, however late it is."""
    monkeypatch.setattr(deadline.time, "monotonic", itertools.count(0, 10**6).__next__)
    model = chain(0)
    prop = Property([Case(SQUARE, ((row([1, 0, 0], Fraction(least(model, SQUARE)) - 1),),))], 3)
    assert check(model, prop).verdict == "holds"
    assert bool(check_points(model, torch.zeros(1, 2), nnrepair.Near(torch.zeros(1, 3), 10.0)).all())


def test_copying_and_reading_end_where_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look at the clock once for each part, however many there are."""
    many = nn.Sequential(nn.Linear(2, 3), *(nn.ReLU() for _ in range(300)), nn.Linear(3, 3))
    pytest.importorskip("onnxruntime")
    file, chained = tmp_path / "n.onnx", nn.Sequential(nn.Linear(2, 3), *(nn.ReLU() for _ in range(9)))
    nnrepair.onnx.save(chained, torch.zeros(1, 2), file)
    ends = Ends(monkeypatch)
    for model, parts in ((many, 300), (file, 10)):

        def work(model: Any = model) -> Any:
            return private_copy(model, Deadline(1000))

        ends.after(math.inf, work)
        assert ends.looks > parts
        for k in range(2, ends.looks, 1 + ends.looks // 9):
            with pytest.raises(OutOfTime):
                ends.after(k, work)


# Time limits are kept ------------------------------------------------------------------------------------------------


class Image(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 3, 32, 32)


def biased(model: nn.Sequential) -> nn.Sequential:
    """Double the weights, and let class 0 win everywhere, so that bounds are bad and there is nothing to be found."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
        model[-1].bias[0] += 1e3
    return model


def few_inputs() -> tuple[Any, Any]:
    """Sixteen inputs, then images: the first bounds alone take a minute."""
    parts = [nn.Linear(16, 3 * 32 * 32), Image()]
    for a, b, kernel, stride in ((3, 16, 4, 2), (16, 32, 3, 1), (32, 32, 3, 1), (32, 32, 4, 2)):
        parts += [nn.Conv2d(a, b, kernel, stride, 1), nn.ReLU()]
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10))
    return biased(model), Property.on(Box([-0.3] * 16, [0.3] * 16), nnrepair.Argmax([0]), outputs=10)


def many_inputs() -> tuple[Any, Any]:
    convolutions = [nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU()]
    model = biased(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(32 * 24 * 24, 10)))
    return model, Property.on(Box.around(torch.zeros(3, 48, 48), 1.0), nnrepair.Argmax([0]), outputs=10)


def wide() -> tuple[Any, Any]:
    model = biased(mlp(20, 1500, 1500, 1500, 5))
    return model, Property.on(Box([-1] * 20, [1] * 20), nnrepair.Argmax([0]), outputs=5)


def deep() -> tuple[Any, Any]:
    return biased(mlp(8, *[100] * 25, 5)), Property.on(Box([-1] * 8, [1] * 8), nnrepair.Argmax([0]), outputs=5)


def many_cases() -> tuple[Any, Any]:
    """A short file with 2 ** 14 ways to be unsafe."""
    ends = "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1) (>= Y_0 99)))"
    names = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))
    return mlp(2, 10, 2), names + ends + "".join(f"(assert (or (<= Y_0 {i}) (<= Y_1 {i})))" for i in range(14))


def many_boxes() -> tuple[Any, Any]:
    """A short file with 2 ** 14 boxes."""
    ends = "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1) (>= Y_0 99)))"
    names = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))
    return mlp(2, 10, 2), names + ends + "".join(f"(assert (or (<= X_0 0.{i}) (<= X_1 0.{i})))" for i in range(85, 99))


def long_numbers() -> tuple[Any, Any]:
    """Inputs fixed to fractions whose common denominator has a million digits; unsafe whatever the outputs are."""
    point = [Fraction(1, 10**3000 + 7 * i * i + 13) for i in range(300)]
    return mlp(300, 100, 2), Property([Case(Box(point, point), ((row([1, -1], 0),), (row([-1, 1], 0),)))], 2)


def dependent_rows() -> tuple[Any, Any]:
    """A conjunction without interior that only a combination of all of its 151 rows shows."""
    drawn = np.random.default_rng(0).integers(-(10**8), 10**8, (150, 150)).tolist()
    rows = [*drawn, [-sum(column) for column in zip(*drawn, strict=True)]]
    return mlp(5, 20, 150), Property([Case(Box([0] * 5, [1] * 5), (tuple(row(r, 0) for r in rows),))], 150)


MANY = [few_inputs, many_inputs, wide, deep, many_cases, many_boxes, long_numbers, dependent_rows]


@pytest.mark.parametrize("make", MANY)
def test_time_limits_are_kept(make: Callable[[], tuple[Any, Any]], tmp_path: Path) -> None:
    """With CPU seconds, as other processes may hold up this one; most of these took from 20 to 100."""
    model, given = seeded(make)
    if isinstance(given, str):
        (tmp_path / "p.vnnlib").write_text(given)
        given = tmp_path / "p.vnnlib"
    started = time.process_time()
    result = check(model, given, timeout=1)
    assert time.process_time() - started < 4
    assert result.verdict in (("violated", "unknown") if make is long_numbers else ("holds", "unknown"))


def test_confirming_counts_reading(tmp_path: Path) -> None:
    model, text = seeded(many_boxes)
    path = tmp_path / "p.vnnlib"
    path.write_text(text)
    started = time.process_time()
    near = nnrepair.Near(torch.zeros(1, 2), 9.0)
    result = confirm(model, [("edits", torch.zeros(1, 2), near, None)], path, timeout=0.01)
    assert time.process_time() - started < 1
    assert result.verdict == "unknown" and result.reason == "the time limit of 0.01 s was reached"


def test_wide_layers_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values are the same, and the clock is looked at before each piece."""
    looks: list[None] = []
    monkeypatch.setattr(Deadline, "check", lambda limit, doing=None: looks.append(None))
    graph, x, limit = lower(images(), (1, 3, 3)), randn(50, 9, dtype=torch.float64), Deadline()
    rows = randn(50, 3, dtype=torch.float64)
    found = []
    for piece in (affine.PIECE_WORK, 30):
        monkeypatch.setattr(affine, "PIECE_WORK", piece)
        looks.clear()
        bounder = Bounder(graph, -torch.ones(9).double(), torch.ones(9).double(), deadline=limit)
        relaxation = bounder.relax(x - 0.1, x + 0.1)
        bound = bounder.backward(relaxation, len(graph.nodes) - 1, rows, torch.arange(50))
        values = [graph(x, limit), *outputs_over(graph, x - 0.1, x + 0.1, limit), bound.A, bound.c]
        found.append((len(looks), [*values, *relaxation.lower, *relaxation.upper]))
    (few, whole), (many, parts) = found
    assert many > few + 50
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(whole, parts, strict=True))


def test_writing_down_a_property_counts() -> None:
    """A short property with numbers that take seconds to write: it holds, and there is no certificate."""
    model = chain(0)
    with torch.no_grad():
        model[-1].bias[0] += 100
    thin = [Fraction(k, 5**5600) for k in range(1, 200)]
    unsafe = tuple((row([1 - t, -1, 0], t),) for t in thin)
    assert check(model, Property([Case(SQUARE, unsafe[:1])], 3), timeout=60).certificate is not None
    started = time.process_time()
    result = check(model, Property([Case(SQUARE, unsafe)], 3), timeout=1)
    assert time.process_time() - started < 4
    assert result.verdict == "holds" and result.certificate is None
    assert result.reason == "no certificate: too little time was left to write down the property"
    with pytest.raises(OutOfTime):
        vnnlib.dumps(Property([Case(SQUARE, unsafe)], 3), Deadline(1e-9))


# Progress ------------------------------------------------------------------------------------------------------------


def test_progress_is_shown_before_the_search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deadline, "INTERVAL", -1.0)  # nothing is left out
    monkeypatch.setattr(progress, "tqdm", functools.partial(progress.tqdm, mininterval=0, miniters=1))
    model = chain(0)
    unsafe = row([1, 0, 0], Fraction(least(model, SQUARE)) - 1)
    assert check(model, Property([Case(SQUARE, ((unsafe,),))], 3), progress=True).verdict == "holds"
    shown = re.findall(r"check: \d\d:\d\d, ([a-z ]+)", capsys.readouterr().err)
    assert list(dict.fromkeys(text.strip() for text in shown))[:5] == [
        "reading the property",
        "reading the network",
        "comparing what was read with the network",
        "looking for counterexamples",
        "bounding whole boxes",
    ]


def test_rounds_are_counted_after_the_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "tqdm", functools.partial(progress.tqdm, mininterval=0, miniters=1))
    with progress.progress_bar("repair", True) as say:
        say("first: unknown")
    assert re.search(r"repair: \d\d:\d\d, round 1, first: unknown", capsys.readouterr().err)
