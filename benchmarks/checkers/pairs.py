"""Certificates about two networks that are right, and what onnxruntime says of them: what forgeries start from.

Claims come from the checker's own bounds; that they are right is confirmed by samples.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper

from benchmarks.checkers import truth
from benchmarks.checkers.valid import KINDS, Array, Builder, check
from benchmarks.checkers.valid import tree as halves

import compare  # isort: skip  # of verification/, which valid.py puts on the path
import twins  # isort: skip

GRID = 10**6
COUNT, FEW = 20_000, 300  # samples; of networks that take one point at a time
SPREAD = 5.0  # standard deviations that a share of the samples may be off by


@dataclass
class Pair:
    """A certificate about two networks, with its files; `write` makes its hashes and counts right unless given.

    `about` is "shares" (of a region's volume that two networks decide alike) or "agreement" (everywhere).
    """

    about: str
    kind: str
    before: ModelProto
    after: ModelProto
    boxes: Any
    arrays: dict[str, Any]
    meta: dict[str, Any]
    archive: Callable[[bytes], bytes] = field(default=lambda data: data)

    def copy(self) -> Pair:
        return copy.deepcopy(self)

    @property
    def networks(self) -> list[ModelProto]:
        return [self.before, self.after]

    def digests(self) -> dict[str, str]:
        """Return the hashes of both files."""
        found = zip(("before", "after"), self.networks, strict=True)
        return {f"{name}_sha256": hashlib.sha256(proto.SerializeToString()).hexdigest() for name, proto in found}

    def write(self, folder: Path) -> list[str]:
        """Write the files and give the arguments of the checker."""
        paths = [folder / name for name in ("cert.npz", "before.onnx", "after.onnx")]
        for path, proto in zip(paths[1:], self.networks, strict=True):
            path.write_bytes(proto.SerializeToString())
        meta = {"format": compare.FORMAT, "boxes": self.boxes}
        if self.about == "agreement":
            meta |= {
                "format": compare.EQUIVALENCE,
                "trees": len(self.boxes or ()),
                "nodes": len(self.arrays.get("dim", ())),
            }
        meta |= self.digests() | self.meta
        np.savez(paths[0], meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), **self.arrays)
        paths[0].write_bytes(self.archive(paths[0].read_bytes()))
        return [str(path) for path in paths]


# Networks ------------------------------------------------------------------------------------------------------------


def _plane(rng: np.random.Generator) -> tuple[Builder, str]:
    form = str(rng.choice(["plain", "transposed", "matmul"]))
    b = Builder(rng, (2,), int(rng.choice([7, 9, 11, 13, 17, 21])))
    b.linear("fc2", b.add("Relu", b.linear("fc1", "x", 2, 6, form)), 6, 3, form)
    return b, "fc2"


def _deep(rng: np.random.Generator) -> tuple[Builder, str]:
    b = Builder(rng, (1, 2), int(rng.choice([9, 13, 14, 21])))
    h = b.add("Relu", b.linear("fc1", b.add("Flatten", "x", _axis=1), 2, 5, "transposed"))
    h = b.add("Relu", b.linear("fc2", b.add("Identity", h), 5, 5, "matmul"))
    b.linear("fc3", h, 5, 3, "plain")
    return b, "fc3"


def _straight(rng: np.random.Generator) -> tuple[Builder, str]:
    """Two maps without ReLUs between them, and one behind."""
    b = Builder(rng, (2,), int(rng.choice([8, 13])))
    h = b.add("Relu", b.linear("fc2", b.linear("fc1", "x", 2, 3, "plain"), 3, 5, "transposed"))
    b.linear("fc3", h, 5, 3, "plain")
    return b, "fc3"


def _conv(rng: np.random.Generator) -> tuple[Builder, str]:
    b = Builder(rng, (1, 2, 2), int(rng.choice([11, 13, 18])))
    h = b.add("Conv", "x", b.weight("conv.weight", 2, 1, 2, 2), b.weight("conv.bias", 2), pads=[1, 0, 0, 1], _group=1)
    h = b.add("AveragePool", b.add("Relu", h), kernel_shape=[2, 1], _strides=[1, 1], _count_include_pad=0)
    b.linear("fc", b.add("Flatten", h), 4, 3, "plain")
    return b, "fc"


NETWORKS = {"plane": _plane, "deep": _deep, "straight": _straight, "mlp": KINDS["mlp"], "conv": _conv}
NETWORKS |= {"chain": KINDS["chain"], "shifted": KINDS["shifted"], "mirrored": KINDS["mirrored"]}
LAST = {"mlp": "fc2", "mirrored": "fc2", "shifted": "fc2", "chain": "fc3"}


def constants(proto: ModelProto) -> list[Any]:
    """Return the weights and biases of a network."""
    return [t for t in proto.graph.initializer if t.name.endswith(("weight", "bias"))]


def store(tensor: Any, value: Any) -> None:
    """Write other numbers into a constant, in its own type."""
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value).astype(old.dtype), tensor.name))


def _two(rng: np.random.Generator, kind: str, about: str) -> tuple[ModelProto, ModelProto, int]:
    """Return a network, with a change of its last layer, or of all its layers, and how many numbers it reads."""
    builder, layer = NETWORKS[kind](rng)
    last = LAST.get(kind, layer)
    if kind != "conv":
        builder.dtype = rng.choice([np.float16, np.float32, np.float64], p=[0.1, 0.5, 0.4])
    before = builder.model(3)
    after = copy.deepcopy(before)
    biases = about == "agreement" or rng.random() < 0.4
    for tensor in constants(after):
        value = numpy_helper.to_array(tensor).astype(float)
        if about == "agreement":
            store(tensor, value + 0.03 * rng.normal(size=value.shape))
        elif tensor.name == f"{last}.bias" and biases:
            store(tensor, value + 0.3 * rng.normal(size=value.shape))
        elif tensor.name == f"{last}.weight":
            turned = value if len(value) == 3 else value.T
            turned[:, rng.integers(turned.shape[1], size=2)] += rng.normal(size=(3, 2))
            store(tensor, value)
    return before, after, math.prod(builder.shape)


# Certificates --------------------------------------------------------------------------------------------------------


def _regions(rng: np.random.Generator, size: int) -> list[tuple[Array, Array]]:
    """Return boxes whose ends are floats; one half of a box each if there are two."""
    lower = np.round(rng.uniform(-1.5, 0, size), 2)
    upper = lower + np.round(rng.uniform(0.5, 2, size), 2) * (1 if size < 3 else 0.3)
    if rng.random() < 0.5:
        return [(lower, upper)]
    (low, high), middle = (lower.copy(), upper.copy()), (lower[0] + upper[0]) / 2
    low[0] = high[0] = middle
    return [(lower, high), (low, upper)]


def written(regions: list[tuple[Array, Array]]) -> list[list[list[str]]]:
    """Return boxes as a certificate has them."""
    return [[[str(Fraction(float(v))) for v in end] for end in box] for box in regions]


def pair(rng: np.random.Generator, about: str, kind: str) -> Pair:
    """Give a valid certificate."""
    while True:
        made = (_shares if about == "shares" else _agreement)(rng, kind)
        if made is not None:
            return made


def _shares(rng: np.random.Generator, kind: str) -> Pair | None:
    before, after, size = _two(rng, kind, "shares")
    regions, decision = _regions(rng, size), str(rng.choice(["argmin", "argmax"]))
    layers = tuple(check.read_network(proto.SerializeToString()) for proto in (before, after))
    dims, cuts, bits = list[int](), list[float](), list[int]()
    totals, whole = np.zeros(3), 0.0
    for low, high in regions:
        dim, cut = halves(rng, low, high, int(rng.integers(0, 7)))
        taken = _taken(rng, dim)
        arrays = {"dim": np.array(dim, np.int16), "cut": np.array(cut, float), "taken": np.array(taken, np.uint8)}
        (tasks,) = compare.read_tasks(arrays, [(low, high)], size)
        ends = [tuple(Fraction(float(v)) for v in end) for end in (low, high)]
        with np.errstate(all="ignore"):
            joint = compare.Pair(layers, 1 if decision == "argmin" else -1, *ends)
            parts = [compare.Sums(joint, [task]) for task in tasks]
            for part, task in zip(parts, tasks, strict=True):  # claims may need that parts are halved
                part.refine([q for q in range(3) if task[2] >> q & 1], 1)
            found = [part.totals() for part in parts]
        totals += np.array(found).astype(float).sum(0)
        whole += float(np.prod(high - low))
        dims, cuts, bits = dims + dim, cuts + cut, bits + taken
    maybe, sure, differs = totals / whole
    if maybe > 0.9 and differs > 0.9:  # nothing is claimed then
        return None
    claims = [GRID * 0.999 * max(0, v) for v in (1 - differs, 1 - maybe, sure)]
    meta = dict(zip(("identical", "same", "changed"), map(int, claims), strict=True))
    arrays = {"dim": np.array(dims, np.int16), "cut": np.array(cuts, float), "taken": np.array(bits, np.uint8)}
    return Pair("shares", kind, before, after, written(regions), arrays, meta | {"grid": GRID, "decision": decision})


def _taken(rng: np.random.Generator, dim: list[int]) -> list[int]:
    """Choose at random where on each way through a tree in preorder each volume is taken, at leaves mostly."""
    bits, stack = list[int](), [7]
    for d in dim:
        left = stack.pop()
        here = left if d < 0 else sum(2**q for q in range(3) if left >> q & 1 and rng.random() < 0.1)
        bits.append(here)
        if d >= 0:
            stack += [left & ~here] * 2
    return bits


def _agreement(rng: np.random.Generator, kind: str) -> Pair | None:
    before, after, size = _two(rng, kind, "agreement")
    regions = _regions(rng, size)
    if rng.random() < 0.2:  # an input that is fixed
        for low, high in regions:
            high[size - 1] = low[size - 1]
    dims, cuts = list[int](), list[float]()
    for low, high in regions:
        dim, cut = halves(rng, low, high, int(rng.integers(0, 5)))
        dims, cuts = dims + dim, cuts + cut
    arrays = {"dim": np.array(dims, np.int16), "cut": np.array(cuts, float)}
    made = Pair("agreement", kind, before, after, written(regions), arrays, {})
    _, y, z, _ = _sampled(made, rng)
    moved = float(np.abs(y - z).max())
    made.meta = {"tolerance": str(Fraction(round(moved * 1.1, 4))), "decision": None, "margin": "0"}
    if rng.random() < 0.5:
        made.meta = {"tolerance": None, "decision": str(rng.choice(["argmin", "argmax"]))}
        made.meta["margin"] = str(Fraction(round(moved * 2.2, 4)))
    return made


# What is true --------------------------------------------------------------------------------------------------------


def _sampled(made: Pair, rng: np.random.Generator) -> tuple[Array, Array, Array, float]:
    """Return random points of the region, the outputs before and after, and what is less than their rounding."""
    try:
        ends = [np.array([[float(Fraction(v)) for v in end] for end in side]) for side in zip(*made.boxes, strict=True)]
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise truth.Undecided("the boxes are none") from error
    runners = [truth.Runner(proto) for proto in made.networks]
    shapes = [[d.dim_value for d in p.graph.input[0].type.tensor_type.shape.dim][1:] for p in made.networks]
    if (ends[0] > ends[1]).any() or any(math.prod(shape) != ends[0].shape[1] for shape in shapes):
        raise truth.Undecided("the boxes are empty, or of other inputs")
    wide = ends[1] - ends[0]
    sizes = np.prod(np.where(wide > 0, wide, 1), 1)
    box = rng.choice(len(sizes), COUNT, p=sizes / sizes.sum())
    x = rng.uniform(ends[0][box], ends[1][box])
    if made.about == "agreement":
        corner = rng.random(x.shape)
        x = np.where(corner < 0.2, ends[0][box], np.where(corner > 0.8, ends[1][box], x))
    found = []
    for runner, shape in zip(runners, shapes, strict=True):
        try:
            found.append(runner(x.reshape(COUNT, *shape)))
        except truth.Undecided:  # the file takes one point at a time
            found.append(runner.one_by_one(x[:FEW].reshape(FEW, *shape)))
    count = min(map(len, found))
    y, z = (v[:count] for v in found)
    if y.ndim != 2 or y.shape != z.shape or count not in (COUNT, FEW) or not (np.isfinite(y) & np.isfinite(z)).all():
        raise truth.Undecided(f"outputs of shapes {y.shape} and {z.shape}")
    near = (1e-9 if all(runner.exact for runner in runners) else 1e-4) * (1 + float(np.abs([y, z]).max()))
    return x[:count], y, z, near


def false(made: Pair, rng: np.random.Generator) -> str:
    """Say which claim of a certificate is clearly false, or nothing where none is shown to be.

    Raises:
        Undecided: onnxruntime does not run the files, or the claims are none.
    """
    _, y, z, near = _sampled(made, rng)
    sign = {"argmin": -1.0, "argmax": 1.0}.get(made.meta["decision"], 0.0)
    first = (sign * y).argmax(1)
    lead, behind = _lead(sign * y, first), _lead(sign * z, first)
    if made.about == "agreement":
        if made.meta["tolerance"] is not None:
            far = (np.abs(y - z) > float(Fraction(made.meta["tolerance"])) + near).any()
            return "an output moves by more" if far else ""
        other = (lead > float(Fraction(made.meta["margin"])) + near) & (behind < -near)
        return "a decision is another" if sign and other.any() else ""
    shares = {"identical": np.abs(y - z).max(1) <= near}
    shares |= {"same": (behind > -near) | (lead < near), "changed": (behind < near) | (lead < near)}
    for name, holds in shares.items():
        claim, share = made.meta[name] / made.meta["grid"], holds.mean()
        if claim > share + SPREAD * math.sqrt((share * (1 - share) + 1e-4) / len(holds)) + 1e-3:
            return f"fewer are {name}"
    return ""


def _lead(y: Array, first: Array) -> Array:
    """Return by how much an output of each row is above all others."""
    each, others = np.arange(len(y)), y.copy()
    others[each, first] = -np.inf
    return np.asarray(y[each, first] - others.max(1))


__all__ = ["Pair", "compare", "constants", "false", "pair", "store", "twins", "written"]
