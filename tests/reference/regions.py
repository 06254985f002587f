"""Whether a small ReLU network violates a property, decided exactly: every linear region, its corners, its outputs.

A region of the input box on which no neuron bends is a polytope on which the network is affine. It is kept as the list
of its corners, each with the values that the network has there. A neuron whose sign differs between corners cuts the
polytope in two. In the end a row `a . y <= b` is one more cut. Everything is computed with Python's integers: a corner
is a ray (w, x, v), w > 0, that stands for the point x / w and the values v / w there. No tolerance occurs anywhere.

Regions are closed and share their faces, and the network is continuous, so nothing is lost on a boundary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from nnrepair.verify.property import Box, Conjunction, Halfspace, Property

Point = tuple[Fraction, ...]
#: An affine form: coefficients by index, with the constant at -1.
Form = dict[int, Fraction]


class TooManyRegionsError(Exception):
    """The network bends too often for this slow method."""


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@dataclass(frozen=True)
class Layer:
    """v -> form(v) for every form, cut off at zero where `bent`."""

    forms: list[Form]
    bent: list[bool]


class Network:
    """A torch model as a list of layers with the exact values of its stored weights.

    Reads Sequential, Linear, Conv2d, ReLU, MaxPool2d, AvgPool2d, Flatten, Unflatten and Residual.
    """

    def __init__(self, model: nn.Module, shape: Sequence[int]) -> None:
        self.inputs, self.shape = math.prod(shape), tuple(shape)
        self.layers: list[Layer] = []
        self._now: list[Form] = [{i: Fraction(1)} for i in range(self.inputs)]
        self._kept: list[list[Form]] = []  # what waits beside the current value, for the sums of residual blocks
        self._read(model)
        self.outputs = len(self._now)
        self._bend([False] * self.outputs)

    def at(self, x: Iterable[Fraction]) -> Point:
        """Return the exact output at an exact input; shares no code with the search for regions."""
        v = list(x)
        for layer in self.layers:
            z = [sum((c * (v[i] if i >= 0 else 1) for i, c in form.items()), Fraction(0)) for form in layer.forms]
            v = [max(value, Fraction(0)) if bent else value for value, bent in zip(z, layer.bent, strict=True)]
        return tuple(v)

    def _bend(self, bent: list[bool]) -> None:
        """Close a layer: what was computed so far becomes the values that the next layer reads."""
        waiting = [form for forms in self._kept for form in forms]
        self.layers.append(Layer(self._now + waiting, bent + [False] * len(waiting)))
        fresh = iter(range(len(bent) + len(waiting)))
        self._now = [{next(fresh): Fraction(1)} for _ in bent]
        self._kept = [[{next(fresh): Fraction(1)} for _ in forms] for forms in self._kept]

    def _read(self, m: nn.Module) -> None:
        if isinstance(m, nn.Sequential):
            for part in m:
                self._read(part)
        elif isinstance(m, nn.Linear):
            bias = _numbers(m.bias) if m.bias is not None else [Fraction(0)] * m.out_features
            rows = [_numbers(row) for row in m.weight]
            self._now = [_sum(zip(row, self._now, strict=True), b) for row, b in zip(rows, bias, strict=True)]
            self.shape = (m.out_features,)
        elif isinstance(m, nn.ReLU):
            self._bend([True] * len(self._now))
        elif isinstance(m, nn.Flatten):
            self.shape = (len(self._now),)
        elif isinstance(m, nn.Unflatten):
            self.shape = tuple(m.unflattened_size)
        elif isinstance(m, nn.Conv2d):
            self._convolve(m)
        elif isinstance(m, nn.AvgPool2d):
            windows = self._windows(m.kernel_size, m.stride, m.padding, 1)
            assert m.padding == 0
            self._now = [_sum((Fraction(1, len(w)), self._now[i]) for i in w) for w in windows]
        elif isinstance(m, nn.MaxPool2d):
            self._maxima(self._windows(m.kernel_size, m.stride, m.padding, m.dilation))
        elif isinstance(m, Residual):
            self._kept.append(self._now)
            self._read(m.inner)
            before = self._kept.pop()
            self._now = [_sum([(Fraction(1), a), (Fraction(1), b)]) for a, b in zip(before, self._now, strict=True)]
        else:
            raise TypeError(f"The reference cannot read {type(m).__name__}.")

    def _convolve(self, m: nn.Conv2d) -> None:
        assert isinstance(m.padding, tuple)
        (_, height, width), forms = self.shape, []
        inputs, outputs = m.in_channels // m.groups, m.out_channels // m.groups
        down = (height + 2 * m.padding[0] - m.dilation[0] * (m.kernel_size[0] - 1) - 1) // m.stride[0] + 1
        right = (width + 2 * m.padding[1] - m.dilation[1] * (m.kernel_size[1] - 1) - 1) // m.stride[1] + 1
        for channel, row, column in itertools.product(range(m.out_channels), range(down), range(right)):
            terms = []
            for c, i, j in itertools.product(range(inputs), *map(range, m.kernel_size)):
                r = row * m.stride[0] + i * m.dilation[0] - m.padding[0]
                s = column * m.stride[1] + j * m.dilation[1] - m.padding[1]
                if 0 <= r < height and 0 <= s < width:
                    source = (channel // outputs) * inputs + c
                    weight = Fraction(m.weight[channel, c, i, j].item())
                    terms.append((weight, self._now[(source * height + r) * width + s]))
            forms.append(_sum(terms, Fraction(m.bias[channel].item()) if m.bias is not None else Fraction(0)))
        self._now, self.shape = forms, (m.out_channels, down, right)

    def _windows(self, kernel: int, stride: int, padding: int, dilation: int) -> list[list[int]]:
        channels, height, width = self.shape
        down, right = ((n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n in (height, width))
        found = []
        for c, row, column in itertools.product(range(channels), range(down), range(right)):
            places = itertools.product(range(kernel), repeat=2)
            at = [(row * stride + i * dilation - padding, column * stride + j * dilation - padding) for i, j in places]
            found.append([(c * height + r) * width + s for r, s in at if 0 <= r < height and 0 <= s < width])
        self.shape = (channels, down, right)
        return found

    def _maxima(self, windows: list[list[int]]) -> None:
        """Take the maximum of each window, two at a time: max(a, b) = b + relu(a - b)."""
        groups = [[self._now[i] for i in window] for window in windows]
        while any(len(group) > 1 for group in groups):
            flat: list[Form] = []
            bent: list[bool] = []
            for group in groups:
                for k in range(0, len(group), 2):
                    pair = group[k : k + 2]
                    if len(pair) == 2:
                        flat.append(_sum([(Fraction(1), pair[0]), (Fraction(-1), pair[1])]))
                        bent.append(True)
                    flat.append(pair[-1])
                    bent.append(False)
            self._now = flat
            self._bend(bent)
            values = iter(self._now)
            groups = [
                [
                    _sum([(Fraction(1), next(values)) for _ in range(min(2, len(group) - k))])
                    for k in range(0, len(group), 2)
                ]
                for group in groups
            ]
        self._now = [group[0] for group in groups]


def _numbers(values: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in values.detach().double().tolist()]


def _sum(terms: Iterable[tuple[Fraction, Form]], constant: Fraction = Fraction(0)) -> Form:
    total: Form = {-1: constant}
    for factor, form in terms:
        for i, c in form.items():
            total[i] = total.get(i, Fraction(0)) + factor * c
    return {i: c for i, c in total.items() if c}


Ray = list[int]


@dataclass(frozen=True)
class Cell:
    """A polytope by its corners; `tight[k]` has one bit for every constraint that corner k meets with equality."""

    rays: list[Ray]
    tight: list[int]
    constraints: int

    def part(self, height: list[int]) -> Cell | None:
        """Return where an affine function is >= 0, from its values at the corners; None where that is empty."""
        if min(height) >= 0:
            return self
        bit = 1 << self.constraints
        keep = [k for k, h in enumerate(height) if h >= 0]
        rays = [self.rays[k] for k in keep]
        tight = [self.tight[k] | (bit if height[k] == 0 else 0) for k in keep]
        below = [k for k, h in enumerate(height) if h < 0]
        for p, q in itertools.product((k for k in keep if height[k] > 0), below):
            common = self.tight[p] & self.tight[q]
            # An edge of a polytope is a face that has no third corner.
            if not any(common & t == common for k, t in enumerate(self.tight) if k not in (p, q)):
                a, b = -height[q], height[p]
                rays.append(_reduced([a * u + b * v for u, v in zip(self.rays[p], self.rays[q], strict=True)]))
                tight.append(common | bit)
        return Cell(rays, tight, self.constraints + 1) if rays else None


def _reduced(ray: Ray) -> Ray:
    divisor = math.gcd(*ray)
    return [v // divisor for v in ray]


def _start(box: Box) -> Cell:
    """Return the box itself: its corners, which are fewer where it has no width."""
    sides = [sorted({low, high}) for low, high in zip(box.lower, box.upper, strict=True)]
    rays, tight = [], []
    for corner in itertools.product(*sides):
        w = math.lcm(*(v.denominator for v in corner))
        point = [int(v * w) for v in corner]
        rays.append(_reduced([w, *point, *point]))
        ends = enumerate(zip(corner, box.lower, box.upper, strict=True))
        tight.append(sum(((v == low) << 2 * i) | ((v == high) << 2 * i + 1) for i, (v, low, high) in ends))
    return Cell(rays, tight, 2 * len(box))


class Regions:
    """All regions of a network over a box, with the outputs at their corners."""

    def __init__(self, network: Network, box: Box, limit: int = 4000) -> None:
        self.network, self.box, self._first = network, box, 1 + network.inputs
        self.cells: list[Cell] = []
        for cell in self._through(_start(box), 0):
            self.cells.append(cell)
            if len(self.cells) > limit:
                raise TooManyRegionsError(f"more than {limit} regions")

    def _through(self, cell: Cell, depth: int) -> Iterator[Cell]:
        if depth == len(self.network.layers):
            yield cell
            return
        layer = self.network.layers[depth]
        scale = math.lcm(*(c.denominator for form in layer.forms for c in form.values()))
        forms = [[(i, int(c * scale)) for i, c in form.items()] for form in layer.forms]
        n, rays = self._first, []
        for ray in cell.rays:
            values = [sum(c * (ray[n + i] if i >= 0 else ray[0]) for i, c in form) for form in forms]
            rays.append(_reduced([v * scale for v in ray[:n]] + values))
        bent = [n + k for k, b in enumerate(layer.bent) if b]
        for part in _bent(Cell(rays, cell.tight, cell.constraints), bent):
            yield from self._through(part, depth + 1)

    def least(self, coefficients: Sequence[Fraction]) -> Fraction:
        """Return the minimum of `coefficients . y` over the box."""
        rays = (ray for cell in self.cells for ray in cell.rays)
        return min(_dot(coefficients, ray[self._first :]) / ray[0] for ray in rays)

    def inside(self, conjunction: Conjunction, strict: bool | None = None) -> Point | None:
        """Return an input whose output is in every halfspace; `strict` says it for all rows in place of their own."""
        for cell in self.cells:
            point = self._inside(cell, conjunction, strict)
            if point is not None:
                return point
        return None

    def _inside(self, cell: Cell, conjunction: Conjunction, strict: bool | None) -> Point | None:
        part: Cell | None = cell
        for row in conjunction:
            assert part is not None
            part = part.part(self._depth(part, row.coefficients, row.bound))
            if part is None:
                return None
        assert part is not None
        # Convexity: where every strict row is strict somewhere, it is so at the mean of all corners.
        must = [row for row in conjunction if (row.strict if strict is None else strict)]
        if any(max(self._depth(part, row.coefficients, row.bound)) == 0 for row in must):
            return None
        points = [[Fraction(v, ray[0]) for v in ray[1 : self._first]] for ray in part.rays]
        return tuple(sum(values, Fraction(0)) / len(points) for values in zip(*points, strict=True))

    def _depth(self, cell: Cell, coefficients: Sequence[Fraction], bound: Fraction) -> list[int]:
        """Return a positive multiple of `bound - coefficients . y` at every corner, as integers."""
        scale = math.lcm(bound.denominator, *(c.denominator for c in coefficients))
        a, b = [int(c * scale) for c in coefficients], int(bound * scale)
        return [b * ray[0] - sum(c * v for c, v in zip(a, ray[self._first :], strict=True)) for ray in cell.rays]


def _bent(cell: Cell, columns: list[int]) -> Iterator[Cell]:
    """Yield the parts of a cell on which no column changes its sign, with negative ones replaced by zero."""
    if not columns:
        yield cell
        return
    column, rest = columns[0], columns[1:]
    heights = [ray[column] for ray in cell.rays]
    if max(heights) > 0 or min(heights) == 0:
        active = cell.part(heights)
        assert active is not None
        yield from _bent(active, rest)
    if min(heights) < 0:
        idle = cell.part([-h for h in heights])
        if idle is not None:
            cut = [[*ray[:column], 0, *ray[column + 1 :]] for ray in idle.rays]
            yield from _bent(Cell(cut, idle.tight, idle.constraints), rest)


def _dot(a: Sequence[Fraction], v: Sequence[int]) -> Fraction:
    return sum((c * x for c, x in zip(a, v, strict=True) if c), Fraction(0))


@dataclass(frozen=True)
class Answer:
    """What is true, and how narrowly.

    Attributes:
        witness: an exact input with an unsafe output; None when the property holds.
        nearness: "tie" if the answer would be another with closed rows in place of strict ones, or the reverse;
            "narrow" if it changes when all thresholds move by NARROW times the size of the row's values over the box;
            else "clear".
    """

    witness: Point | None
    nearness: str

    @property
    def verdict(self) -> str:
        return "holds" if self.witness is None else "violated"


#: Relative distances that float32 cannot tell from none.
NARROW = Fraction(1, 10**6)


def decide(network: Network, property_: Property, regions: Sequence[Regions] | None = None) -> Answer:
    """Decide a property; its witness is run through the network once more, exactly.

    Args:
        network: what is checked.
        property_: what is claimed.
        regions: those of the property's boxes, where they are known already.
    """
    regions = [Regions(network, case.box) for case in property_.cases] if regions is None else regions

    def search(strict: bool | None = None, moved: Fraction = Fraction(0)) -> Point | None:
        for case, r in zip(property_.cases, regions, strict=True):
            for rows in case.unsafe:
                point = r.inside(_moved(rows, r, moved) if moved else rows, strict)
                if point is not None:
                    return point
        return None

    witness = search()
    if witness is not None:
        assert violates(network, property_, witness), "a bug in the reference: its witness is none"
    if (search(strict=False) is None) != (search(strict=True) is None):
        return Answer(witness, "tie")
    narrow = (search(moved=NARROW) is None) != (search(moved=-NARROW) is None)
    return Answer(witness, "narrow" if narrow else "clear")


def _moved(conjunction: Conjunction, regions: Regions, share: Fraction) -> Conjunction:
    """Return rows with all thresholds raised by a share of the size of the row's values over the box."""
    rows = []
    for row in conjunction:
        most = max(abs(regions.least(row.coefficients)), abs(regions.least([-c for c in row.coefficients])))
        rows.append(Halfspace(row.coefficients, row.bound + share * most, row.strict))
    return tuple(rows)


def violates(network: Network, property_: Property, x: Iterable[Fraction]) -> bool:
    """Tell whether an exact input is a counterexample, straight from the definition."""
    point = tuple(x)
    y = network.at(point)
    for case in property_.cases:
        if all(low <= v <= high for low, v, high in zip(case.box.lower, point, case.box.upper, strict=True)):
            for conjunction in case.unsafe:
                depths = [
                    (row.bound - sum(c * v for c, v in zip(row.coefficients, y, strict=True)), row.strict)
                    for row in conjunction
                ]
                if all(depth > 0 or (depth == 0 and not strict) for depth, strict in depths):
                    return True
    return False


def stored(values: Tensor | Sequence[float]) -> Point:
    """Return floats as exact numbers."""
    return tuple(map(Fraction, torch.as_tensor(values).double().reshape(-1).tolist()))
