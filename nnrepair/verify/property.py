"""What must hold for every point of a region: boxes of inputs, and the outputs that are unsafe there.

Everything is kept as exact fractions. Computations in float64 round a box outward to prove and inward to look for
counterexamples, and widen unsafe sets to prove.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.rounding import counted
from nnrepair.spec.criteria import (
    AllOf,
    AnyOf,
    Argmax,
    Between,
    Criterion,
    Linear,
    Near,
    Threshold,
)
from nnrepair.spec.ranks import Above

Array = NDArray[np.float64]
Exact = tuple[Fraction, ...]
#: A disjunction of criteria may fail in this many ways.
MAX_WAYS = 100_000


class Box:
    """All inputs x with `lower <= x <= upper`, entry by entry.

    >>> Box([0, 0.25], [1, 0.5])
    Box of 2 inputs, widths 0.25 to 1

    Args:
        lower, upper: numbers, fractions, arrays or tensors of the shape of one input; numbers are taken exactly.

    Raises:
        InvalidInput: the shapes differ, a bound is not finite, or `lower > upper` somewhere.
    """

    def __init__(self, lower: Any, upper: Any) -> None:
        (self.lower, shape), (self.upper, other) = _exact(lower, "lower"), _exact(upper, "upper")
        if shape != other or not self.lower:
            raise InvalidInput(f"A box needs bounds of one shape with at least one input, got {shape} and {other}.")
        self.shape = shape
        crossed = [i for i, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)) if low > high]
        if crossed:
            i = crossed[0]
            low, high = float(self.lower[i]), float(self.upper[i])
            raise InvalidInput(
                f"The box is empty: lower > upper at {len(crossed)} inputs, first at input {i}: {low!r} > {high!r}."
            )

    @classmethod
    def around(cls, center: Any, radius: float, low: float = -math.inf, high: float = math.inf) -> Box:
        """Return the points within `radius` of `center` in every input, and between `low` and `high`."""
        point, shape = _exact(center, "center")
        try:
            fits = bool(0 <= radius < math.inf and low < math.inf and high > -math.inf)
        except (TypeError, ValueError, RuntimeError):
            fits = False
        if not fits:
            raise InvalidInput(f"A radius must be a finite number >= 0, got {radius} (low={low}, high={high}).")
        (r,) = _numbers([radius], "radius", "place")
        low, high = (end.item() if isinstance(end, np.generic | Tensor) else end for end in (low, high))
        box = cls(
            [max(v - r, Fraction(low)) if low > -math.inf else v - r for v in point],
            [min(v + r, Fraction(high)) if high < math.inf else v + r for v in point],
        )
        box.shape = shape
        return box

    def __len__(self) -> int:
        """Return the number of inputs."""
        return len(self.lower)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and (self.lower, self.upper) == (other.lower, other.upper)

    def __hash__(self) -> int:
        return hash((self.lower, self.upper))

    def __repr__(self) -> str:
        exact = [high - low for low, high in zip(self.lower, self.upper, strict=True)]
        least, most = (float(min(width, Fraction(sys.float_info.max))) for width in (min(exact), max(exact)))
        return f"Box of {counted(len(self), 'input')}, widths {least:g} to {most:g}"

    @cached_property
    def outer(self) -> tuple[Array, Array]:
        """Bounds in float64 of the smallest box of floats around this one, each (inputs,)."""
        return _rounded(self.lower, -1), _rounded(self.upper, +1)

    @cached_property
    def inner(self) -> tuple[Array, Array]:
        """Bounds in float64 of the largest box of floats inside this one; where none is inside, lower > upper."""
        return _rounded(self.lower, +1), _rounded(self.upper, -1)

    def contains(self, x: Sequence[float] | Sequence[Fraction] | Array) -> bool:
        """Tell, exactly, whether a point (inputs,) lies in the box."""
        point, _ = _exact(x, "the point")
        if len(point) != len(self):
            raise InvalidInput(f"The box has {len(self)} inputs, the point {len(point)}.")
        return all(low <= v <= high for low, v, high in zip(self.lower, point, self.upper, strict=True))


@dataclass(frozen=True)
class Halfspace:
    """All outputs y with `coefficients . y <= bound`, or `< bound` if `strict`; numbers are taken exactly."""

    coefficients: Exact
    bound: Fraction
    strict: bool = False

    def __post_init__(self) -> None:
        *numbers, bound = _numbers([*self.coefficients, self.bound], "a halfspace", "place")
        object.__setattr__(self, "coefficients", tuple(numbers))
        object.__setattr__(self, "bound", bound)

    @cached_property
    def _hash(self) -> int:
        return hash((self.coefficients, self.bound, self.strict))

    def __hash__(self) -> int:
        return self._hash  # fractions are slow to hash, and a row may belong to thousands of conjunctions

    def contains(self, y: Sequence[Fraction]) -> bool:
        """Tell, exactly, whether an output lies inside."""
        value = sum((c * v for c, v in zip(self.coefficients, y, strict=True) if c), Fraction(0))
        return value < self.bound if self.strict else value <= self.bound


#: Outputs that lie in every one of these halfspaces.
Conjunction = tuple[Halfspace, ...]


@dataclass(frozen=True)
class Case:
    """No input of the box may have an output in any of the `unsafe` conjunctions.

    An empty conjunction contains every output, so such a case says that the box must be empty, which no box is.
    """

    box: Box
    unsafe: tuple[Conjunction, ...]


class Property:
    """Cases that must all hold. `Property.on(box, criterion)` makes one, and so does `nnrepair.verify.vnnlib.load`.

    >>> Property.on(Box([0, 0], [1, 1]), Argmax([2]), outputs=3)
    Property of 2 inputs and 3 outputs: 1 box, 2 ways to be unsafe

    Attributes:
        cases: what must hold, box by box; cases about the same box are joined, and each conjunction is there once.
        inputs, outputs: how many numbers the network reads and returns.
    """

    def __init__(self, cases: Sequence[Case], outputs: int) -> None:
        if not cases:
            raise InvalidInput("A property needs at least one box.")
        ways: dict[Box, list[Conjunction]] = {}
        for case in cases:
            ways.setdefault(case.box, []).extend(case.unsafe)
        self.cases = tuple(Case(box, tuple(dict.fromkeys(unsafe))) for box, unsafe in ways.items())
        self.inputs, self.outputs = len(cases[0].box), outputs
        if any(len(case.box) != self.inputs for case in cases):
            raise InvalidInput(f"All boxes need equally many inputs, got {sorted({len(c.box) for c in cases})}.")
        rows = (row for case in cases for conjunction in case.unsafe for row in conjunction)
        wrong = {len(row.coefficients) for row in rows} - {outputs}
        if wrong:
            raise InvalidInput(f"Every halfspace needs {outputs} coefficients, got {sorted(wrong)}.")

    @classmethod
    def on(cls, region: Box | Sequence[Box], criterion: Criterion, outputs: int | None = None) -> Property:
        """Return the property that `criterion` holds on every point of `region`.

        Args:
            region: one box, or several.
            criterion: about as many points as there are boxes (the k-th is required on the k-th box), or about one
                point (required on all). A disjunction may hold through different parts at different points.
            outputs: how many outputs the network has; needed for Argmax and Argmin, which do not know.
        """
        boxes = [region] if isinstance(region, Box) else list(region) if isinstance(region, Iterable) else [region]
        if not boxes:
            raise InvalidInput("A property needs at least one box.")
        if not all(isinstance(box, Box) for box in boxes):
            raise InvalidInput(f"region must be a Box, or a list of these, got {type(region).__name__} {region!r:.80}.")
        if not isinstance(criterion, Criterion):
            raise InvalidInput(f"criterion must be one of Argmax, Threshold, Linear and so on, got {criterion!r:.80}.")
        whole = isinstance(outputs, int | np.integer) and not isinstance(outputs, bool)
        if outputs is not None and not (whole and outputs > 0):
            raise InvalidInput(f"outputs must be a whole number above 0, got {outputs!r:.80}.")
        if len(criterion) not in (1, len(boxes)):
            raise InvalidInput(f"The criterion is about {len(criterion)} points; expected 1, or {len(boxes)} (boxes).")
        shape = _shape(criterion)
        if outputs is not None and (shape is None or math.prod(shape) != outputs):
            shape = (outputs,)
        if shape is None:
            raise InvalidInput(f"{criterion!r} does not say how many outputs there are: give outputs=.")
        size = math.prod(shape)
        criterion.check(torch.zeros(len(criterion), *shape))
        each = [torch.tensor([k if len(criterion) > 1 else 0]) for k in range(len(boxes))]
        cases = [Case(box, _negated(criterion[k], size)) for box, k in zip(boxes, each, strict=True)]
        return cls(cases, size)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Property) and (self.cases, self.outputs) == (other.cases, other.outputs)

    def __hash__(self) -> int:
        return hash((self.cases, self.outputs))

    def __repr__(self) -> str:
        ways, n = sum(len(case.unsafe) for case in self.cases), len(self.cases)
        return (
            f"Property of {counted(self.inputs, 'input')} and {counted(self.outputs, 'output')}: "
            f"{counted(n, 'box', 'boxes')}, {counted(ways, 'way')} to be unsafe"
        )

    def violated_at(self, x: Sequence[float] | Array, y: Sequence[Fraction]) -> bool:
        """Tell, exactly, whether input x lies in a box in which its output y is unsafe."""
        return any(
            case.box.contains(x) and any(all(row.contains(y) for row in conjunction) for conjunction in case.unsafe)
            for case in self.cases
        )


def _exact(values: Any, name: str) -> tuple[Exact, tuple[int, ...]]:
    """Return numbers as fractions, flattened, with the shape they had."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.dtype.is_floating_point else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise InvalidInput(f"{name} is no array of numbers: {error}") from error
    return _numbers(array.reshape(-1).tolist(), name, "input"), array.shape


def _numbers(values: Sequence[Any], name: str, place: str) -> Exact:
    """Return numbers as fractions."""
    exact = []
    for i, value in enumerate(values):
        if isinstance(value, (np.generic, Tensor)):
            value = value.item()  # a fraction of numpy's integers would overflow
        try:
            number = value if type(value) is Fraction else Fraction(value)
            if number.numerator.bit_length() - number.denominator.bit_length() > 1022:
                float(number)  # only there it can be too large, and this takes long
            exact.append(number)
        except (TypeError, ValueError, OverflowError):
            try:
                shown = str(value)[:80]
            except ValueError:
                shown = "an integer with thousands of digits"
            raise InvalidInput(f"Every number must be finite in float64; {name} has {shown} at {place} {i}.") from None
    return tuple(exact)


def _rounded(values: Exact, direction: int) -> Array:
    """Return the nearest floats on one side: below for -1, above for +1."""
    near = np.array([float(v) for v in values])
    ratios = map(float.as_integer_ratio, near.tolist())
    off = [(n * v.denominator - v.numerator * d) * direction < 0 for (n, d), v in zip(ratios, values, strict=True)]
    near[off] = np.nextafter(near[off], direction * np.inf)
    return near


def _shape(criterion: Criterion) -> tuple[int, ...] | None:
    """Return the shape of one point's outputs, where the criterion says it."""
    if isinstance(criterion, Linear):
        return (int(criterion.A.shape[2]),)
    if isinstance(criterion, Near | Threshold):
        given = criterion.target if isinstance(criterion, Near) else criterion.labels
        return tuple(given.shape[1:])
    if isinstance(criterion, (AllOf, AnyOf)):
        shapes = [shape for shape in map(_shape, criterion.parts) if shape is not None]
        return max(shapes, key=len, default=None)  # Near knows more than Linear
    return None


def _negated(criterion: Criterion, outputs: int) -> tuple[Conjunction, ...]:
    """Return the outputs at which a criterion about one point fails, as conjunctions of halfspaces."""

    def row(signs: dict[int, float], bound: Any, strict: bool) -> Halfspace:
        return Halfspace(tuple(Fraction(signs.get(k, 0)) for k in range(outputs)), Fraction(bound), strict)

    if isinstance(criterion, Argmax) and criterion.labels.ndim == 1:
        label, sign = int(criterion.labels[0]), criterion.sign
        others = (k for k in range(outputs) if k != label)
        return tuple((row({label: sign, k: -sign}, criterion.margin_, not criterion.strict),) for k in others)
    if isinstance(criterion, Threshold):
        labels = criterion.labels[0].reshape(-1).tolist()
        at = criterion.threshold.tolist() * (outputs if len(criterion.threshold) == 1 else 1)
        margin, closed = Fraction(criterion.margin_), not criterion.strict
        signs = ((k, 1 if label else -1) for k, label in enumerate(labels) if label >= 0)
        return tuple((row({k: s}, s * Fraction(at[k]) + margin, closed),) for k, s in signs)
    if isinstance(criterion, Linear):
        A, b = criterion.A[0].tolist(), criterion.b[0].tolist()
        return tuple((row(dict(enumerate(a)), bound, True),) for a, bound in zip(A, b, strict=True))
    if isinstance(criterion, Near):
        target, tol = (v.reshape(-1).tolist() for v in (criterion.target[0], criterion.tol[0]))
        near = [(k, Fraction(t), Fraction(d)) for k, (t, d) in enumerate(zip(target, tol, strict=True)) if d < math.inf]
        return tuple((row({k: s}, s * t - d, True),) for k, t, d in near for s in (1, -1))
    if isinstance(criterion, Between):
        ends = [v[0].tolist() for v in criterion[torch.tensor([0])].bounds(torch.zeros(1, outputs))]
        bounds = [(k, s * end, s) for values, s in zip(ends, (1, -1), strict=True) for k, end in enumerate(values)]
        return tuple((row({k: s}, bound, True),) for k, bound, s in bounds if math.isfinite(bound))
    if isinstance(criterion, Above):
        first, closed = int(criterion.higher[0]), not criterion.strict
        lower = [k for k in criterion.lower[0].tolist() if k >= 0]
        return tuple((row({first: 1, k: -1}, criterion.margin_, closed),) for k in lower)
    if isinstance(criterion, AllOf):
        return tuple(conjunction for part in criterion.parts for conjunction in _negated(part, outputs))
    if isinstance(criterion, AnyOf):
        each = [_negated(part, outputs) for part in criterion.parts]
        if math.prod(map(len, each)) > MAX_WAYS:
            raise InvalidInput(f"{criterion!r} can fail in more than {MAX_WAYS} ways; check its parts one by one.")
        return tuple(tuple(itertools.chain(*chosen)) for chosen in itertools.product(*each))
    name = type(criterion).__name__
    raise InvalidInput(
        f"{name} cannot be checked over a region; use Argmax, Argmin (a label per point), Threshold, Linear, Near, "
        "Between or Above."
    )
