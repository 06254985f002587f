"""What the checker makes of torch code, beside that code: values, exact values, bounds, refusals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from networks import randn, seeded
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.errors import UnsupportedModel
from nnrepair.verify import Box, Property, check
from nnrepair.verify.property import Case, Halfspace
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.reading.sparse import Rowwise, Sparse, Transposed
from nnrepair.verify.search.bounds import Bounder
from nnrepair.verify.search.intervals import outputs_over
from nnrepair.verify.search.rational import can_be_exact, rational


class Code(nn.Module):
    """A function as a module, with a few weights."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.call, self.row = call, nn.Parameter(torch.tensor([0.5, -1.25, 2.0]))
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


class Last(nn.Module):
    """What a recurrent layer returns, and its last state."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.is_pair = layer, isinstance(layer, nn.LSTM)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.layer(x)
        h = state[0] if self.is_pair else state
        return torch.cat([y.flatten(1), h.transpose(0, 1).flatten(1)], 1)


class Cells(nn.Module):
    """Cells, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.LSTMCell(4, 3), nn.GRUCell(3, 3), nn.RNNCell(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 3)
        g, r = h, x.new_zeros(x.shape[0], 2)
        for step in x.unbind(1):
            h, c = self.first(step, (h, c))
            g = self.second(h, g)
            r = self.third(g, r)
        return torch.cat([h, r], 1)


PLACES = torch.tensor([[[[3, 0], [1, 1], [2, 2]]] * 2])
#: Functions of (n, 2, 3, 4), in words, with what they need.
FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "slices": lambda m, x: x[:, 1:, ::2, -3:],
    "an index": lambda m, x: x[:, 0, [2, 0, 0]],
    "transposed twice": lambda m, x: x.transpose(1, 3).movedim(1, 2).swapaxes(1, 2),
    "squeezed": lambda m, x: x.unsqueeze(2).expand(-1, -1, 5, -1, -1).squeeze(0).reshape(x.shape[0], -1),
    "split": lambda m, x: torch.cat([part * k for k, part in enumerate(x.split(2, 3), 1)][::-1], 3),
    "chunks": lambda m, x: torch.stack(x.chunk(2, -1), 1),
    "unbound": lambda m, x: x.unbind(2)[1] - x.select(2, 0) + x.narrow(2, 1, 1).squeeze(2),
    "tiled": lambda m, x: x.repeat(1, 2, 1, 1) + x.tile(1, 2, 1, 1) - x.repeat_interleave(2, 1),
    "flipped": lambda m, x: x.flip(2).roll(1, 3) + torch.tril(x),
    "joined with constants": lambda m, x: torch.cat([x, m.row.expand(x.shape[0], 2, 4, 3).transpose(2, 3)], 1),
    "padded": lambda m, x: F.pad(x, (1, 2, 0, 1), value=0.5) * 2,
    "padded by reflection": lambda m, x: F.pad(x, (1, 1, 2, 0), "reflect") - F.pad(x, (1, 1, 0, 2), "replicate"),
    "cut": lambda m, x: F.pad(x, (-1, 1, 0, -1)),
    "shuffled pixels": lambda m, x: F.pixel_shuffle(x.repeat(1, 2, 1, 1), 2),
    "gathered": lambda m, x: x.gather(3, PLACES.expand(x.shape[0], -1, -1, -1)),
    "broadcast": lambda m, x: x * 2 + x[:, :1] - x[:, :, :, :1] + m.row[:, None],
    "arithmetic": lambda m, x: (3 - x) / 4 + (-x).mul(m.row[0]) - torch.sub(x, 1, alpha=2) + torch.add(x, x, alpha=-3),
    "sums": lambda m, x: x.sum((1, 2)) + x.sum(dim=3, keepdim=True).mean([1, 3]).sum(1, keepdim=True),
    "running sums": lambda m, x: x.cumsum(2),
    "extremes": lambda m, x: x.amax((2, 3)) - x.amin(dim=(1, 2))[:, :2] + torch.max(x[:, 0, 0, :2], x[:, 1, 1, 2:]),
    "masked": lambda m, x: torch.where(torch.tensor([True, False, True, False]), x, 1.5) + x.masked_fill(
        torch.tensor([False, True, False, False]), 0.0),
    "constants on the left": lambda m, x: torch.tensor([[1.0, 2, 0], [0, 0.5, -1]], dtype=x.dtype) @ x,
    "constants on the right": lambda m, x: x @ torch.tensor([[1.0, 2], [0, 0.5], [2, 2], [-1, 0]], dtype=x.dtype),
    "largest windows": lambda m, x: F.max_pool2d(x, (2, 3), (1, 2), (1, 1), ceil_mode=True),
    "largest of sequences": lambda m, x: F.max_pool1d(x[:, 0], 2, 1, dilation=2),
    "averages": lambda m, x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False),
    "nearest neighbours": lambda m, x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda m, x: F.interpolate(x, (5, 7), mode="bilinear", align_corners=True),
    "comparisons": lambda m, x: (x > 0.5).to(x) - (x[:, :1] <= x).to(x) * 2 + torch.where(x < 0, x, -x),
    "truth values": lambda m, x: ((x > 0) & ~(x > 1) | (x < -1)).to(x),
    "places": lambda m, x: x.argmax(2).to(x) * 10 + (x.argmax(2) == 1).to(x) + (x.argmin(2) != 0).to(x),
    "rounded": lambda m, x: (3 * x).floor() + (2 * x).ceil() - (2.5 * x).trunc(),
    "products": lambda m, x: x * x.transpose(1, 2).transpose(1, 2).flip(3) + x * x,
    "products over an axis": lambda m, x: x.prod(3),
    "attention": lambda m, x: torch.softmax(x @ x.transpose(2, 3) / 2, -1) @ x,
    "quotients": lambda m, x: x / (1.5 + x.abs().sum(3, keepdim=True)) + 1 / (x * x + 1),
    "log softmax": lambda m, x: x.log_softmax(3),
    "layer norm": lambda m, x: F.layer_norm(x, (3, 4)) + F.layer_norm(x, (4,), m.row.new_ones(4) * 2),
    "group norm": lambda m, x: F.group_norm(x, 2, m.row[:2], m.row[1:]) - F.instance_norm(x),
    "thresholds": lambda m, x: F.hardshrink(x) + 2 * F.softshrink(x, 0.25) - F.threshold(x, 0.5, -1) + F.rrelu(x),
    "rounded to even": lambda m, x: torch.round(2 * x) + torch.frac(x) - torch.fmod(x, 0.75) + torch.remainder(x, 1.5),
    "norms": lambda m, x: x.norm(1, 3) + torch.linalg.vector_norm(x, float("inf"), 3),
    "powers": lambda m, x: x**4 + 0.1 * x**5 - 0.01 * x**6 + x.pow(1),
    "gates": lambda m, x: F.glu(x, 3) + F.mish(x[..., :2]) - F.logsigmoid(x[..., 2:]) + F.tanhshrink(x[..., 1:3]),
    "other powers": lambda m, x: (x.abs() + 0.5) ** 1.5 + (x * x + 1) ** -2,
    "exponentials": lambda m, x: torch.sinh(x) - torch.cosh(x) + torch.exp2(x) + torch.log2(x * x + 1) + x.expm1(),
    "other logarithms": lambda m, x: torch.log10(x * x + 1) - torch.log1p(x * x) + torch.erfc(x) - F.softsign(x),
    "deviations": lambda m, x: x / (1 + x.std(3, keepdim=True)) + x.var((2, 3), keepdim=True, unbiased=False),
    "dot products": lambda m, x: F.scaled_dot_product_attention(x, x.flip(2), x * 2),
    "smooth": lambda m, x: torch.sin(x) * 2 + torch.cos(x / 2) - (x**2 + 0.1).sqrt() + x.exp().log() + F.silu(x),
}  # fmt: skip
#: They are enclosed; the others are computed exactly.
INEXACT = {
    *("attention", "quotients", "log softmax", "layer norm", "group norm", "smooth", "gates", "other powers"),
    *("transformer", "transformer, normalised first", "LSTM", "GRU", "cells"),
    *("exponentials", "other logarithms", "deviations", "dot products", "rounded to even"),
}
#: Where floats may be on the other side of a jump.
JUMPS = {"comparisons", "truth values", "places", "rounded", "thresholds", "rounded to even"}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1, 1), (2, 3, 4)),
    "transposed, dilated, in groups": (lambda: nn.ConvTranspose2d(4, 6, (2, 3), (1, 2), 0, 0, 2, True, 2), (4, 3, 3)),
    "transposed over sequences": (lambda: nn.ConvTranspose1d(2, 3, 4, 3, 1), (2, 5)),
    "same padding": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same", dilation=2), (2, 5, 6)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 6)),
    "sequences": (lambda: nn.Conv1d(2, 4, 3, 2, 1, groups=2), (2, 7)),
    "volumes, averaged": (lambda: nn.AvgPool3d(2, 1), (2, 3, 3, 3)),
    "volumes, largest": (lambda: nn.MaxPool3d(2, 1), (1, 3, 3, 3)),
    "rows": (lambda: nn.Linear(4, 3), (2, 5, 4)),
    "upsampled": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 3)),
    "normalised": (lambda: nn.LayerNorm(4), (3, 4)),
    "batches of volumes": (lambda: nn.BatchNorm3d(2).eval(), (2, 2, 2, 2)),
    "softmax": (lambda: nn.Softmax(1), (3, 2)),
    "LSTM": (lambda: Last(nn.LSTM(4, 2, 2, bidirectional=True, batch_first=True)), (3, 4)),
    "GRU": (lambda: Last(nn.GRU(4, 3, batch_first=True)), (3, 4)),
    "RNN": (lambda: Last(nn.RNN(4, 3, nonlinearity="relu", bias=False, batch_first=True)), (3, 4)),
    "cells": (lambda: Cells(), (3, 4)),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 5, 0.0, batch_first=True).eval(), (3, 4)),
    "transformer, normalised first": (
        lambda: nn.TransformerEncoderLayer(4, 1, 5, activation="gelu", norm_first=True, batch_first=True).eval(),
        (2, 4),
    ),
    "channels shuffled": (lambda: nn.ChannelShuffle(2), (4, 2, 2)),
    "pixels unshuffled": (lambda: nn.PixelUnshuffle(2), (1, 4, 4)),
}


def every() -> list[Any]:
    """Return all models, their shapes and names."""
    rows: list[Any] = [pytest.param(name, Code(call), (2, 3, 4), id=name) for name, call in FUNCTIONS.items()]
    return rows + [pytest.param(name, seeded(make, 3), shape, id=name) for name, (make, shape) in LAYERS.items()]


def read(model: nn.Module, shape: tuple[int, ...], radius: float = 2.0) -> Graph:
    size = torch.Size(shape).numel()
    ends = torch.full((size,), radius, dtype=torch.float64)
    return lower(model, shape, region=(-ends, ends))


@pytest.mark.parametrize(("name", "model", "shape"), every())
def test_value(name: str, model: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = model.double().eval(), randn(4, *shape, dtype=torch.float64)
    for graph in (read(model, shape), lower(model, shape)):
        with torch.no_grad():
            y = graph(x.flatten(1))
            # Squares, of which products are made, are larger than these and differ by them.
            near = 1e-7 if name in INEXACT else 1e-12
            torch.testing.assert_close(y, model(x).flatten(1), rtol=near, atol=near)
    exact = can_be_exact(graph)
    assert name in LAYERS or exact == (name not in INEXACT)
    if exact:
        values = rational(graph, [Fraction(v) for v in x[0].flatten().tolist()])
        torch.testing.assert_close(torch.tensor([float(v) for v in values]).double(), y[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "model", "shape"), every())
def test_bounds_contain_samples(name: str, model: nn.Module, shape: tuple[int, ...]) -> None:
    graph = read(model.double().eval(), shape)
    ends = torch.full((graph.inputs,), 2.0, dtype=torch.float64)
    bounder, last = Bounder(graph, -ends, ends), len(graph.nodes) - 1
    centre = randn(3, graph.inputs, dtype=torch.float64).clamp(-1.5, 1.5)
    low, high = centre - 0.2, centre + 0.2
    x = (
        low
        + (
            torch.rand(200, *low.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(4).round()
            / 4
        )
        * 0.4
    )
    y = graph(x.reshape(-1, graph.inputs)).reshape(200, 3, -1)
    slack = 1e-9 if name in JUMPS else 0.0
    for least, most in (outputs_over(graph, low, high), _backward(bounder, low, high, last)):
        assert bool((least - slack <= y).all()) and bool((y <= most + slack).all())


def _backward(bounder: Bounder, low: Tensor, high: Tensor, last: int) -> tuple[Tensor, Tensor]:
    relaxation, n = bounder.relax(low, high), bounder.graph.outputs
    ends = []
    for sign in (1.0, -1.0):
        rows = sign * torch.eye(n, dtype=torch.float64).repeat(len(low), 1)
        box = torch.arange(len(low)).repeat_interleave(n)
        bound = bounder.backward(relaxation, last, rows, box).minimum(low[box], high[box])
        ends.append(sign * bound.reshape(len(low), n))
    return ends[0], ends[1]


def test_maps_agree_with_their_matrices() -> None:
    index = torch.tensor([[0, 2], [2, 2], [1, 0], [3, 1]])
    forward = lower(nn.ConvTranspose2d(2, 3, 3, 2, 1, 1), (2, 3, 4)).nodes[1].affine
    assert isinstance(forward, Transposed)
    for map, inputs in (
        (Sparse(index, randn(4, 2), 5), 5),
        (Sparse(index, None, 4), 4),
        (Rowwise(randn(3, 2), randn(3), 4), 8),
        (forward, 24),
    ):
        eye = torch.eye(inputs, dtype=torch.float64)
        matrix = map.apply(eye).T
        x, A = randn(2, inputs, dtype=torch.float64), randn(2, len(matrix), dtype=torch.float64)
        torch.testing.assert_close(map.apply(x), x @ matrix.T)
        torch.testing.assert_close(map.back(A), A @ matrix)
        assert bool((map.magnitude(x.abs()) >= x.abs() @ matrix.abs().T - 1e-12).all())
        torch.testing.assert_close(map.rows(torch.tensor([1, 0])), matrix[[1, 0]])
        assert map.back(A[:0]).shape == (0, inputs)
        assert map.terms >= int((matrix != 0).sum(1).max()) and map.work >= len(matrix)


@pytest.mark.parametrize("width", [0.0, 1e-3, 1.0])
def test_products_lose_twice_what_planes_do(width: float) -> None:
    """Over a box of any shape and place, the squares that a product is made of are that close to it."""
    for c, d, high in itertools.product((0.0, 100.0), (-3.0, 0.1), (0.5, 40.0)):
        low = torch.tensor([c, d], dtype=torch.float64)
        up = low + torch.tensor([width, high], dtype=torch.float64)
        graph = lower(Code(lambda m, x: x[:, :1] * x[:, 1:]), (2,), region=(low, up))
        bounder, last = Bounder(graph, low, up), len(graph.nodes) - 1
        least, most = _backward(bounder, low[None], up[None], last)
        corners = [float(a * b) for a, b in itertools.product((low[0], up[0]), (low[1], up[1]))]
        slack = width * high + 1e-6 * (1 + high) * (1 + abs(c))
        assert (
            min(corners) - slack <= float(least) <= min(corners) and max(corners) <= float(most) <= max(corners) + slack
        )
        assert rational(graph, [Fraction(1, 3), Fraction(2, 7)]) == [Fraction(2, 21)]


def test_what_depends_on_values_is_refused() -> None:
    for call, words in (
        (lambda m, x: x[:, x.argmax(1)[0]], "looks depends|not in this form"),
        (lambda m, x: x.flatten(1).gather(1, x.flatten(1).argmax(1, keepdim=True)), "."),
        (lambda m, x: x @ x.erfinv(), "erfinv"),
        (lambda m, x: F.pad(x, (1, 1), value=float("inf")), "pads with inf"),
        (lambda m, x: x.sum(0).expand(3, 2, 2).sum(2), "one tensor"),
    ):
        with pytest.raises(UnsupportedModel, match=words):
            lower(Code(call), (2, 2))


TRUTH: dict[str, tuple[Callable[[Any, Tensor], Tensor], bool]] = {
    # what torch does with numbers, truth values and bits are three things; whether it can be read
    "not of numbers": (lambda m, x: torch.logical_not(torch.relu(x)).float(), True),
    "and of numbers": (lambda m, x: torch.logical_and(torch.relu(x), x > -1).float(), True),
    "xor of numbers": (lambda m, x: torch.logical_xor(torch.relu(x), x > -1).float(), True),
    "not of truth values": (lambda m, x: (~(x > 0)).reshape(-1, 3).float(), True),
    "not, moved": (lambda m, x: (~((x > 0)[:, [2, 0, 1]])).float(), True),
    "not of bits": (lambda m, x: (~x.long()).float(), False),
    "and of bits": (lambda m, x: (x.long() & 3).float(), False),
    "sum of truth values": (lambda m, x: ((x > 0) + (x > -1)).float(), False),
    "sum of truth values, moved": (lambda m, x: ((x > 0)[:, [1, 2, 0]] + (x > -1)).float(), False),
    "bytes": (lambda m, x: (x * 300).to(torch.uint8).float(), False),
}


@pytest.mark.parametrize(("call", "is_read"), TRUTH.values(), ids=TRUTH)
def test_truth_values_are_no_numbers(call: Callable[[Any, Tensor], Tensor], is_read: bool) -> None:
    model = Code(call).double()
    if not is_read:
        with pytest.raises(UnsupportedModel, match="truth values|bits|casts to"):
            lower(model, (3,))
        return
    x = 3 * randn(50, 3, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(lower(model, (3,))(x), model(x).double())


def test_models_that_mix_a_batch_are_refused() -> None:
    prop = Property([Case(Box([-1, -1], [1, 1]), ((Halfspace((Fraction(1), Fraction(0)), Fraction(-9)),),))], 2)
    with pytest.raises(UnsupportedModel, match="sums over a batch"):
        check(Code(lambda m, x: x - x.mean(0, keepdim=True)), prop)


# Inputs that a box fixes ---------------------------------------------------------------------------------------------


def fixed_case(decimal: bool, edge: Fraction) -> tuple[nn.Module, Property]:
    """Return a network of 40 inputs of which two are free, and a property with its border at the least output."""
    model = seeded(lambda: nn.Sequential(nn.Linear(40, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)), 1)
    low = [Fraction(k, 10) if decimal else Fraction(k, 8) for k in range(-20, 20)]
    high = [v + (Fraction(k in (3, 30))) for k, v in enumerate(low)]
    row = Halfspace((Fraction(1),), edge)
    return model, Property([Case(Box(low, high), ((row,),))], 1)


@pytest.mark.parametrize("decimal", [False, True])
def test_inputs_without_choice_are_constants(decimal: bool) -> None:
    model, prop = fixed_case(decimal, Fraction(0))
    x = torch.tensor([float(v) for v in prop.cases[0].box.lower], dtype=torch.float64).repeat(101 * 101, 1)
    x[:, [3, 30]] += torch.cartesian_prod(*[torch.linspace(0, 1, 101, dtype=torch.float64)] * 2)
    with torch.no_grad():
        y = model.double()(x)
    least, spread = float(y.min()), float(y.max() - y.min())
    for edge, verdict in ((least - 0.02 * spread, "holds"), (least + 0.02 * spread, "violated")):
        model, prop = fixed_case(decimal, Fraction(edge))
        result = check(model.double(), prop, timeout=60)
        assert result.verdict == verdict, str(result)
        if result.counterexample is not None:
            point = result.counterexample.exact_input
            box = prop.cases[0].box
            assert all(a <= v <= b for a, v, b in zip(box.lower, point, box.upper, strict=True))


def test_boxes_that_fix_inputs_to_different_numbers_are_searched_one_by_one() -> None:
    """The query (k, x) is about |x| times k: the largest product decides."""
    model = Code(lambda m, x: (x[:, :1] * x[:, 1:]).abs())
    row = Halfspace((Fraction(-1),), Fraction(-41, 10))
    boxes = [Box([k, -1], [k, 1]) for k in (1, 2, 3, 4)]
    result = check(model, Property([Case(box, ((row,),)) for box in boxes], 1))
    assert result.verdict == "holds" and result.proved == 1
    row = Halfspace((Fraction(-1),), Fraction(-39, 10))
    result = check(model, Property([Case(box, ((row,),)) for box in boxes], 1))
    assert result.verdict == "violated" and result.counterexample is not None
    assert result.counterexample.exact_input[0] == 4


def test_the_certificate_of_a_network_with_fixed_inputs_names_the_inputs_of_the_file() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1)), 2)
    box = Box([0.5, -2, 0.25, -2, 1], [0.5, 2, 0.25, 2, 1])
    with torch.no_grad():
        x = torch.tensor([0.5, 0, 0.25, 0, 1]).repeat(10000, 1)
        x[:, [1, 3]] = torch.cartesian_prod(*[torch.linspace(-2, 2, 100)] * 2)
        least = float(model(x).min()) - 0.01
    result = check(model, Property([Case(box, ((Halfspace((Fraction(1),), Fraction(least)),),))], 1))
    assert result.verdict == "holds" and result.certificate is not None
    assert set(result.certificate.dim.tolist()) <= {-1, 1, 3}
