"""Small, nasty networks with properties, and what is true about them by exact arithmetic.

Case k is drawn from the seed and k alone; its kind is KINDS[k modulo their number].
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import nn

from benchmarks import measure
from nnrepair.spec.criteria import Argmax, Argmin, Linear
from nnrepair.verify.property import Box, Case, Conjunction, Halfspace, Property

SEED = 20261121


def module_at(name: str, path: Path) -> ModuleType:
    """Import a file that belongs to no package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.path.append(str(path.parent))  # it may read files beside it
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


reference: Any = module_at("regions", measure.ROOT / "tests" / "reference" / "regions.py")


@dataclass(frozen=True)
class Trial:
    """A network, a property and what is true about them."""

    kind: str
    model: nn.Module
    property: Property
    network: Any
    answer: Any


# ---------------------------------------------------------------------------------------------------------- networks

Draw = Callable[..., Any]


def normal(rng: Generator) -> Draw:
    return lambda *size: rng.normal(size=size)


def integers(rng: Generator) -> Draw:
    return lambda *size: rng.integers(-2, 3, size=size).astype(float)


def filled(layer: Any, weight: Any, bias: Any) -> Any:
    """Give a layer numbers; the layer's dtype rounds them."""
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(np.asarray(weight)))
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(np.asarray(bias)))
    return layer


def linear(inputs: int, outputs: int, draw: Draw, dtype: torch.dtype) -> nn.Linear:
    layer: nn.Linear = filled(
        nn.Linear(inputs, outputs, dtype=dtype), draw(outputs, inputs) / math.sqrt(inputs), draw(outputs)
    )
    return layer


def mlp(sizes: Sequence[int], draw: Draw, dtype: torch.dtype) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [linear(a, b, draw, dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def sizes_of(rng: Generator, inputs: int | None = None) -> list[int]:
    """Draw the widths of a network that bends at most 18 times, less often in more dimensions."""
    n = int(rng.integers(1, 5)) if inputs is None else inputs
    most = {1: 18, 2: 16, 3: 12, 4: 9}[n]
    depth = int(rng.integers(1, 4))
    return [n, *(int(rng.integers(1, max(most // depth, 1) + 1)) for _ in range(depth)), int(rng.integers(1, 5))]


def linears(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def doubled(model: nn.Sequential, rng: Generator) -> nn.Sequential:
    """Give neurons twins, so that relaxations and outputs tie exactly."""
    with torch.no_grad():
        for layer in linears(model):
            if layer.out_features > 1:
                a, b = rng.choice(layer.out_features, 2, replace=False)
                layer.weight[b], layer.bias[b] = layer.weight[a], layer.bias[a]
    return model


def holed(model: nn.Sequential, rng: Generator) -> nn.Sequential:
    """Put zeros in place of weights, rows, columns and sometimes of a whole layer."""
    with torch.no_grad():
        for layer in linears(model):
            layer.weight[torch.as_tensor(rng.random(tuple(layer.weight.shape)) < 0.4)] = 0.0
            layer.bias[torch.as_tensor(rng.random(layer.out_features) < 0.5)] = 0.0
            if rng.random() < 0.15:
                layer.weight.zero_()
    return model


def scaled(model: nn.Sequential, factors: Sequence[float]) -> nn.Sequential:
    with torch.no_grad():
        for layer, factor in zip(linears(model), itertools.cycle(factors), strict=False):
            layer.weight.mul_(factor)
            layer.bias.mul_(factor)
    return model


def bent_at_corners(model: nn.Sequential, box: Box, rng: Generator) -> nn.Sequential:
    """Set the first layer's biases so that its kinks go exactly through corners of the box (integer weights)."""
    first = linears(model)[0]
    with torch.no_grad():
        for k in range(first.out_features):
            corner = [float((low, high)[rng.integers(2)]) for low, high in zip(box.lower, box.upper, strict=True)]
            first.bias[k] = -float(sum(w * x for w, x in zip(first.weight[k].tolist(), corner, strict=True)))
    return model


def conv(draw: Draw, dtype: torch.dtype, inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    layer: nn.Conv2d = nn.Conv2d(inputs, outputs, **options, dtype=dtype)
    return filled(layer, draw(*layer.weight.shape), draw(outputs))  # type: ignore[no-any-return]


def convolutional(rng: Generator, draw: Draw, dtype: torch.dtype) -> tuple[nn.Module, tuple[int, ...]]:
    """Draw a network that starts with a convolution: padded, strided, grouped, without bias, averaged at times."""
    options: dict[str, Any] = [
        {"kernel_size": 2},
        {"kernel_size": 2, "padding": 1, "stride": 2},
        {"kernel_size": (1, 2), "bias": False},
        {"kernel_size": (1, 2), "padding": (0, 1), "groups": int(rng.integers(1, 3))},
        {"kernel_size": 1},
    ][rng.integers(5)]
    shape = (2, 1, 2) if "groups" in options else (1, 2, 2)
    first = conv(draw, dtype, shape[0], 2, **options)
    average: list[nn.Module] = [nn.AvgPool2d(2)] if options["kernel_size"] == 1 else []
    front = nn.Sequential(first, nn.ReLU(), *average, nn.Flatten())
    flat = front(torch.zeros(1, *shape, dtype=dtype)).numel()
    middle = [linear(flat, 2, draw, dtype), nn.ReLU()] if rng.random() < 0.5 else []
    last = linear(2 if middle else flat, int(rng.integers(1, 4)), draw, dtype)
    return nn.Sequential(*front, *middle, last), shape


def pooled(rng: Generator, draw: Draw, dtype: torch.dtype) -> tuple[nn.Module, tuple[int, ...]]:
    """Draw a network with a maximum over windows: of one channel, or of two with padding."""
    if rng.random() < 0.5:
        front = [conv(draw, dtype, 1, 1, kernel_size=1), nn.MaxPool2d(2), nn.Flatten()]
        back = [linear(1, 2, draw, dtype), nn.ReLU(), linear(2, 2, draw, dtype)]
        return nn.Sequential(*front, *back), (1, 2, 2)
    front = [conv(draw, dtype, 1, 2, kernel_size=2, padding=1), nn.MaxPool2d(2, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*front, linear(2, 3, draw, dtype)), (1, 1, 2)


def residual(rng: Generator, draw: Draw, dtype: torch.dtype) -> nn.Sequential:
    """Draw x + inner(x), once or twice, nested at times."""
    n = int(rng.integers(1, 4))
    width = int(rng.integers(1, 4))

    def block(size: int, hidden: int) -> nn.Module:
        return reference.Residual(  # type: ignore[no-any-return]
            nn.Sequential(linear(size, hidden, draw, dtype), nn.ReLU(), linear(hidden, size, draw, dtype))
        )

    parts = [block(n, width)]
    if rng.random() < 0.5:
        parts += [linear(n, 2, draw, dtype), nn.ReLU(), block(2, 2)]
        n = 2
    if rng.random() < 0.3:
        parts = [reference.Residual(nn.Sequential(*parts))] if parts[-1] is parts[0] else parts
    return nn.Sequential(*parts, nn.ReLU(), linear(n, int(rng.integers(1, 4)), draw, dtype))


# -------------------------------------------------------------------------------------------------------- properties


def grid_box(rng: Generator, n: int, shape: Sequence[int] | None = None, width: float | None = None) -> Box:
    """Draw a box whose corners are multiples of 1/4."""
    low = rng.integers(-8, 5, size=n) / 4
    high = low + (rng.integers(1, 9, size=n) / 4 if width is None else width)
    return shaped([Fraction(v) for v in low.tolist()], [Fraction(v) for v in high.tolist()], shape)


def shaped(low: Sequence[Fraction], high: Sequence[Fraction], shape: Sequence[int] | None) -> Box:
    shape = (len(low),) if shape is None else tuple(shape)
    return Box(np.array(low, dtype=object).reshape(shape), np.array(high, dtype=object).reshape(shape))


def flattened(rng: Generator, box: Box) -> Box:
    """Take the width from some inputs, at times from all."""
    all_of_them = rng.random() < 0.3
    pairs = list(zip(box.lower, box.upper, strict=True))
    chosen = [all_of_them or bool(rng.random() < 0.5) for _ in pairs]
    high = [low if c else high for c, (low, high) in zip(chosen, pairs, strict=True)]
    return shaped(list(box.lower), high, box.shape)


def decimal_box(rng: Generator, n: int) -> Box:
    """Draw bounds that no float equals: tenths and thirds."""

    def number() -> Fraction:
        return Fraction(int(rng.integers(-9, 10)), (10, 3)[rng.integers(2)])

    ends = [sorted((number(), number())) for _ in range(n)]
    return shaped([low for low, _ in ends], [high for _, high in ends], None)


def direction(rng: Generator, outputs: int) -> list[Fraction]:
    """Draw a row's coefficients; not all zero, which a file could not say."""
    while not any(row := _direction(rng, outputs)):
        pass
    return row


def _direction(rng: Generator, outputs: int) -> list[Fraction]:
    style = rng.integers(4)
    if style == 0:
        row = np.eye(outputs)[rng.integers(outputs)] * rng.choice([-1, 1])
    elif style == 1 and outputs > 1:
        a, b = rng.choice(outputs, 2, replace=False)
        row = np.eye(outputs)[a] - np.eye(outputs)[b]
    elif style == 2:
        row = rng.integers(-3, 4, size=outputs).astype(float)
    else:
        return [Fraction(int(v), 10) for v in rng.integers(-30, 31, size=outputs)]
    return [Fraction(v) for v in row.tolist()]


#: Where a threshold lies, in units of the range of the row over the box, seen from the exact minimum.
PLACES = [-1.0, -0.3, -0.05, -1e-3, -1e-6, -1e-9, -1e-13, 1e-13, 1e-9, 1e-6, 1e-3, 0.02, 0.1, 0.3]


def row_near(rng: Generator, regions: Any, places: Sequence[float], strict: bool = False) -> Halfspace:
    """Return a row whose threshold lies near the exact minimum over the box; 0 in `places` means at it."""
    a = direction(rng, regions.network.outputs)
    least, most = regions.least(a), -regions.least([-c for c in a])
    spread = (most - least) or max(abs(most), Fraction(1))
    place = places[rng.integers(len(places))]
    bound = least + Fraction(place) * spread
    if place and rng.random() < 0.7:
        bound = Fraction(float(bound))
    return Halfspace(tuple(a), bound, strict)


def conjunction(rng: Generator, regions: Any, strict: float = 0.0) -> Conjunction:
    """Return rows that all hold at one random point of the box, or nearly do."""
    box, network = regions.box, regions.network
    t = [Fraction(int(rng.integers(0, 9)), 8) for _ in box.lower]
    y = network.at([low + s * (high - low) for low, high, s in zip(box.lower, box.upper, t, strict=True)])
    rows = []
    for _ in range(int(rng.integers(2, 5))):
        a = direction(rng, network.outputs)
        value = sum((c * v for c, v in zip(a, y, strict=True)), Fraction(0))
        least, most = regions.least(a), -regions.least([-c for c in a])
        place = rng.choice([-0.2, -0.02, -1e-4, 1e-9, 1e-4, 0.02, 0.2], p=[0.14, 0.1, 0.06, 0.1, 0.2, 0.2, 0.2])
        bound = Fraction(float(value + Fraction(place) * ((most - least) or 1)))
        rows.append(Halfspace(tuple(a), bound, bool(rng.random() < strict)))
    return tuple(rows)


def usual(rng: Generator, regions: Any) -> tuple[Conjunction, ...]:
    """Return a condition of any sort."""
    if rng.random() < 0.6:
        return ((row_near(rng, regions, PLACES),),)
    return tuple(conjunction(rng, regions) for _ in range(int(rng.integers(1, 3))))


def claim(rng: Generator, model: nn.Module, boxes: Sequence[Box], unsafe: Callable[..., Any] = usual) -> Any:
    """Return the property with `unsafe(rng, regions)` on every box, the exact network and the regions."""
    network = reference.Network(model, boxes[0].shape)
    regions = [reference.Regions(network, box) for box in boxes]
    cases = [Case(box, unsafe(rng, r)) for box, r in zip(boxes, regions, strict=True)]
    return Property(cases, network.outputs), network, regions


def plain(rng: Generator, dtype: torch.dtype) -> Any:
    sizes = sizes_of(rng)
    model = mlp(sizes, normal(rng), dtype)
    return model, claim(rng, model, [grid_box(rng, sizes[0])])


def ties(rng: Generator, dtype: torch.dtype) -> Any:
    """Integer weights, twins, and criteria on outputs that can be equal."""
    sizes = sizes_of(rng)
    sizes[-1] = max(sizes[-1], 2)
    model = doubled(
        mlp(sizes, lambda *s: np.round(2 * rng.normal(size=s)) * math.sqrt(s[-1] if len(s) == 2 else 1), dtype), rng
    )
    for layer in linears(model):
        layer.weight.data.round_()
    box = grid_box(rng, sizes[0])
    if rng.random() < 0.5:
        network = reference.Network(model, box.shape)
        label = int(rng.integers(sizes[-1]))
        kind: type[Argmax] = (Argmax, Argmin)[rng.integers(2)]
        criterion = kind([label], margin=float(rng.choice([0.0, 0.5, 1.0])))
        prop = Property.on(box, criterion, sizes[-1])
        return model, (prop, network, [reference.Regions(network, box)])
    return model, claim(rng, model, [box], lambda r, g: ((row_near(r, g, [0.0], bool(r.random() < 0.5)),),))


def degenerate(rng: Generator, dtype: torch.dtype) -> Any:
    sizes = sizes_of(rng)
    model = mlp(sizes, normal(rng), dtype)
    return model, claim(rng, model, [flattened(rng, grid_box(rng, sizes[0]))])


def zeros(rng: Generator, dtype: torch.dtype) -> Any:
    sizes = sizes_of(rng)
    model = holed(mlp(sizes, (normal, integers)[rng.integers(2)](rng), dtype), rng)
    return model, claim(rng, model, [grid_box(rng, sizes[0])])


def huge(rng: Generator, dtype: torch.dtype) -> Any:
    sizes = sizes_of(rng)
    model = scaled(mlp(sizes, normal(rng), dtype), (10.0 ** rng.uniform(6, 9 if len(sizes) > 3 else 12),))
    return model, claim(rng, model, [grid_box(rng, sizes[0])])


def tiny(rng: Generator, dtype: torch.dtype) -> Any:
    sizes = sizes_of(rng)
    model = scaled(mlp(sizes, normal(rng), dtype), (10.0 ** -rng.uniform(9, 12 if len(sizes) > 3 else 30),))
    return model, claim(rng, model, [grid_box(rng, sizes[0])])


def mixed_scales(rng: Generator, dtype: torch.dtype) -> Any:
    """Layers of very different size, and a huge offset that only cancels in the last layer."""
    sizes = sizes_of(rng)
    power = 10.0 ** rng.uniform(4, 9)
    model = scaled(mlp(sizes, normal(rng), dtype), (power, 1 / power))
    if rng.random() < 0.5 and sizes[-2] > 1:
        doubled(model, rng)
        with torch.no_grad():
            last = linears(model)[-1]
            last.weight[:, 0], last.weight[:, 1] = power, -power
    return model, claim(rng, model, [grid_box(rng, sizes[0])])


def corners(rng: Generator, dtype: torch.dtype) -> Any:
    sizes = sizes_of(rng)
    box = grid_box(rng, sizes[0])
    model = mlp(sizes, integers(rng), dtype)
    for layer in linears(model):
        layer.weight.data.copy_(torch.as_tensor(rng.integers(-3, 4, size=tuple(layer.weight.shape))))
    bent_at_corners(model, box, rng)
    places = [0.0, -1e-9, 1e-9, -1e-3, 1e-3]
    return model, claim(rng, model, [box], lambda r, g: ((row_near(r, g, places, bool(r.random() < 0.3)),),))


def conjunctions(rng: Generator, dtype: torch.dtype) -> Any:
    sizes = sizes_of(rng)
    sizes[-1] = max(sizes[-1], 2)
    model = mlp(sizes, normal(rng), dtype)
    return model, claim(rng, model, [grid_box(rng, sizes[0])], lambda r, g: (conjunction(r, g),))


def disjunctions(rng: Generator, dtype: torch.dtype) -> Any:
    sizes = sizes_of(rng)
    model = mlp(sizes, normal(rng), dtype)
    count = int(rng.integers(2, 5))
    safe_places = [*PLACES[:6], 0.001]
    return model, claim(
        rng,
        model,
        [grid_box(rng, sizes[0])],
        lambda r, g: tuple(
            (row_near(r, g, safe_places),) if r.random() < 0.7 else conjunction(r, g) for _ in range(count)
        ),
    )


def several_boxes(rng: Generator, dtype: torch.dtype) -> Any:
    """Two to four boxes, with equal or different conditions; some boxes touch, or are points."""
    sizes = sizes_of(rng, int(rng.integers(1, 4)))
    model = mlp(sizes, normal(rng), dtype)
    boxes = [grid_box(rng, sizes[0]) for _ in range(int(rng.integers(2, 5)))]
    boxes = [flattened(rng, box) if rng.random() < 0.2 else box for box in boxes]
    places = [*PLACES[:7], 0.001, 0.1]
    return model, claim(rng, model, boxes, lambda r, g: ((row_near(r, g, places),),))


def strict_rows(rng: Generator, dtype: torch.dtype) -> Any:
    sizes = sizes_of(rng)
    model = mlp(sizes, normal(rng), dtype)
    box = grid_box(rng, sizes[0])
    if rng.random() < 0.4:
        network = reference.Network(model, box.shape)
        regions = reference.Regions(network, box)
        row = row_near(rng, regions, PLACES)
        A = torch.tensor([[[-float(c) for c in row.coefficients]]], dtype=torch.float64)
        criterion = Linear(A, torch.tensor([[float(-row.bound)]], dtype=torch.float64))  # -a.y <= -b, broken by a.y < b
        return model, (Property.on(box, criterion), network, [regions])
    return model, claim(rng, model, [box], lambda r, g: (conjunction(r, g, strict=0.6),))


def single_neurons(rng: Generator, dtype: torch.dtype) -> Any:
    """One input, one neuron, one output, in a chain; or no neuron at all."""
    depth = int(rng.integers(0, 4))
    model = mlp([int(rng.integers(1, 3)), *[1] * depth, 1], (normal, integers)[rng.integers(2)](rng), dtype)
    box = grid_box(rng, linears(model)[0].in_features)
    return model, claim(rng, model, [box], lambda r, g: ((row_near(r, g, [*PLACES, 0.0], bool(r.random() < 0.3)),),))


def decimals(rng: Generator, dtype: torch.dtype) -> Any:
    """Bounds of boxes and rows that no float equals."""
    sizes = sizes_of(rng)
    model = mlp(sizes, normal(rng), dtype)

    def unsafe(r: Generator, g: Any) -> tuple[Conjunction, ...]:
        row = row_near(r, g, PLACES)
        return ((Halfspace(row.coefficients, Fraction(round(float(row.bound) * 10**6), 10**6), row.strict),),)

    return model, claim(rng, model, [decimal_box(rng, sizes[0])], unsafe)


def no_floats(rng: Generator, dtype: torch.dtype) -> Any:
    """Boxes so thin that they hold few floats or none: unknown may be the only honest answer to a violation."""
    sizes = sizes_of(rng)
    model = mlp(sizes, normal(rng), dtype)
    width = Fraction(1, int(rng.choice([10**7, 10**10, 10**17, 10**25])))
    low = [Fraction(int(rng.integers(-9, 10)), (10, 3)[rng.integers(2)]) for _ in range(sizes[0])]
    high = [v + width * int(rng.integers(0, 5)) for v in low]
    return model, claim(rng, model, [shaped(low, high, None)])


def far_away(rng: Generator, dtype: torch.dtype) -> Any:
    """Boxes far from the origin: what matters is the difference of large numbers."""
    sizes = sizes_of(rng)
    model = mlp(sizes, normal(rng), dtype)
    box = grid_box(rng, sizes[0])
    shift = [Fraction(int(v)) for v in (rng.choice([-1, 1], sizes[0]) * 10 ** rng.integers(3, 7, sizes[0])).tolist()]
    box = shaped(
        [a + s for a, s in zip(box.lower, shift, strict=True)],
        [a + s for a, s in zip(box.upper, shift, strict=True)],
        None,
    )
    first = linears(model)[0]
    with torch.no_grad():
        middle = torch.tensor([float(a + b) / 2 for a, b in zip(box.lower, box.upper, strict=True)], dtype=dtype)
        first.bias.sub_(first.weight @ middle)
    if rng.random() < 0.5:
        return model, claim(rng, model, [box])
    places = [-1e-9, -1e-12, 0.0, 0.0, 1e-12, 1e-9]
    return model, claim(rng, model, [box], lambda r, g: ((row_near(r, g, places),),))


def hidden_minimum(rng: Generator, dtype: torch.dtype) -> Any:
    """Closed thresholds at the exact minimum of boxes with decimal corners.

    Violated, usually at a single point that is no float: no witness can save a bound that is a trifle too high.
    """
    sizes = sizes_of(rng)
    model = mlp(sizes, (normal, integers)[rng.integers(2)](rng), dtype)

    def unsafe(r: Generator, g: Any) -> tuple[Conjunction, ...]:
        always = (row_near(r, g, [2.0]),) if r.random() < 0.3 else ()
        return ((row_near(r, g, [0.0]), *always),)

    return model, claim(rng, model, [decimal_box(rng, sizes[0])], unsafe)


def thresholds(rng: Generator, dtype: torch.dtype) -> Any:
    """Thresholds within 1e-9 of the exact minimum, or exactly there."""
    sizes = sizes_of(rng)
    model = mlp(sizes, normal(rng), dtype)
    places = [-1e-9, -1e-11, -1e-13, -1e-16, 0.0, 1e-16, 1e-13, 1e-11, 1e-9]
    return model, claim(
        rng, model, [grid_box(rng, sizes[0])], lambda r, g: ((row_near(r, g, places, bool(r.random() < 0.3)),),)
    )


def convolutions(rng: Generator, dtype: torch.dtype) -> Any:
    model, shape = convolutional(rng, (normal, integers)[rng.integers(2)](rng), dtype)
    return model, claim(rng, model, [grid_box(rng, math.prod(shape), shape)])


def max_pools(rng: Generator, dtype: torch.dtype) -> Any:
    model, shape = pooled(rng, (normal, integers)[rng.integers(2)](rng), dtype)
    return model, claim(rng, model, [grid_box(rng, math.prod(shape), shape)])


def residuals(rng: Generator, dtype: torch.dtype) -> Any:
    model = residual(rng, (normal, integers)[rng.integers(2)](rng), dtype)
    return model, claim(rng, model, [grid_box(rng, next(iter(linears(model))).in_features)])


KINDS: dict[str, Callable[[Generator, torch.dtype], Any]] = {
    make.__name__: make
    for make in (
        plain,
        ties,
        degenerate,
        zeros,
        huge,
        tiny,
        mixed_scales,
        corners,
        conjunctions,
        disjunctions,
        several_boxes,
        strict_rows,
        single_neurons,
        decimals,
        no_floats,
        far_away,
        hidden_minimum,
        thresholds,
        convolutions,
        max_pools,
        residuals,
    )
}


def trial(index: int, seed: int = SEED) -> Trial:
    """Make case `index`; networks that bend too often for the reference are drawn again."""
    kind = list(KINDS)[index % len(KINDS)]
    for attempt in itertools.count():
        rng = np.random.default_rng([seed, index, attempt])
        dtype = (torch.float32, torch.float64)[rng.integers(2)]
        try:
            model, (prop, network, regions) = KINDS[kind](rng, dtype)
            return Trial(kind, model.eval(), prop, network, reference.decide(network, prop, regions))
        except reference.TooManyRegionsError:
            continue
    raise AssertionError
