"""The plain way to check a property: halve the longest edge until every box is bounded. Slow, simple, independent.

Numpy and torch only, nothing from nnrepair but the Property object; float64 without outward rounding, so a box counts
as proved only where a bound clears SLACK. Counterexamples are confirmed in exact arithmetic.
"""

from __future__ import annotations

import functools
import math
import operator
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from torch import Tensor

from nnrepair.verify.property import Box, Case, Property

#: What a lower bound must exceed. ACAS Xu's numbers are below 1e3, float64 errs by far less on them.
SLACK = 1e-10
BATCH = 256


class Found(NamedTuple):
    """What a search found out."""

    verdict: str  # "holds", "violated" or "unknown"
    boxes: int
    cpu_seconds: float
    counterexample: list[float] | None


@dataclass(frozen=True)
class Net:
    """A chain of matrices (outputs, inputs) and biases with a ReLU between any two."""

    weights: list[Tensor]
    biases: list[Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        for k, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.addmm(b, x.clamp(min=0) if k else x, W.T)
        return x

    def exact(self, x: Sequence[float | Fraction]) -> list[Fraction]:
        """Return the output in exact arithmetic: integers over a growing denominator."""
        point = [Fraction(value) for value in x]
        scale = math.lcm(*(value.denominator for value in point))
        v = [int(value * scale) for value in point]
        for k, (rows, constants, unit) in enumerate(self._integers):
            v = [max(value, 0) for value in v] if k else v
            v = [sum(map(operator.mul, row, v)) + c * scale for row, c in zip(rows, constants, strict=True)]
            scale *= unit
        return [Fraction(value, scale) for value in v]

    @functools.cached_property
    def _integers(self) -> list[tuple[list[list[int]], list[int], int]]:
        """Weights and biases of each layer times a power of two that makes them integers, and that power."""
        layers = []
        for W, b in zip(self.weights, self.biases, strict=True):
            exact = [[Fraction(value) for value in row] for row in [*W.tolist(), b.tolist()]]
            unit = max(value.denominator for row in exact for value in row)
            whole = [[int(value * unit) for value in row] for row in exact]
            layers.append((whole[:-1], whole[-1], unit))
        return layers


def read(path: str | Path) -> Net:
    """Read an ONNX file of the kind of ACAS Xu: [Sub of zeros, Flatten], then MatMul, Add, Relu, ... in a row."""
    graph = onnx.load(path).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for node in graph.node:
        constant = next((constants[name] for name in node.input if name in constants), None)
        if node.op_type == "MatMul":
            weights.append(torch.tensor(constant).double().T.contiguous())
        elif node.op_type == "Add" and constant is not None and len(biases) < len(weights):
            biases.append(torch.tensor(constant).double().reshape(-1))
        elif node.op_type == "Relu" and len(biases) == len(weights):
            continue  # a ReLU follows every bias but the last
        elif weights or node.op_type not in ("Sub", "Flatten") or (constant is not None and constant.any()):
            raise ValueError(f"{path} has {node.op_type} {node.name!r}, expected MatMul, Add and Relu in turn.")
    return Net(weights, biases)


@dataclass(frozen=True)
class Goal:
    """Rows A y - b (rows, outputs), and to which unsafe conjunction each belongs."""

    A: Tensor
    b: Tensor
    of: Tensor
    conjunctions: int

    @classmethod
    def of_case(cls, case: Case) -> Goal:
        rows = [(row, k) for k, conjunction in enumerate(case.unsafe) for row in conjunction]
        A = [[float(c) for c in row.coefficients] for row, _ in rows]
        b = [float(row.bound) for row, _ in rows]
        options = {"dtype": torch.float64}
        return cls(
            torch.tensor(A, **options), torch.tensor(b, **options), torch.tensor([k for _, k in rows]), len(case.unsafe)
        )

    def worst(self, values: Tensor) -> Tensor:
        """Return for values (batch, rows) of the rows the largest within each conjunction, (batch, conjunctions)."""
        start = values.new_full((len(values), self.conjunctions), -torch.inf)
        return start.scatter_reduce(1, self.of.expand_as(values), values, "amax")


def bounds(net: Net, goal: Goal, low: Tensor, high: Tensor) -> Tensor:
    """Return lower bounds (batch, rows) of the goal's rows over boxes (batch, inputs): CROWN, all the way back."""
    relaxed: list[tuple[Tensor, Tensor, Tensor]] = []  # for each hidden layer: lower slope, upper slope, upper offset
    center, radius = (low + high) / 2, (high - low) / 2
    lo, hi = low, high

    def back(k: int, rows: Tensor, constant: Tensor, box: Tensor) -> Tensor:
        """Return lower bounds of rows . z_k + constant over the boxes numbered `box`."""
        A, c = rows @ net.weights[k], constant + rows @ net.biases[k]
        for j in range(k - 1, -1, -1):
            below, above, offset = (t[box] for t in relaxed[j])
            negative = A.clamp(max=0)
            c = c + (negative * offset).sum(1)
            A = A * below + negative * (above - below)
            c = c + A @ net.biases[j]
            A = A @ net.weights[j]
        return c + (A * center[box]).sum(1) - (A.abs() * radius[box]).sum(1)

    for k, (W, b) in enumerate(zip(net.weights[:-1], net.biases[:-1], strict=True)):
        middle, reach = torch.addmm(b, (lo + hi) / 2, W.T), ((hi - lo) / 2) @ W.abs().T
        bottom, top = middle - reach, middle + reach  # by intervals: neurons that do not bend need no better bound
        if k:
            box, neuron = ((bottom < 0) & (top > 0)).nonzero(as_tuple=True)
            unit = torch.zeros(len(box), len(b), dtype=torch.float64)
            unit[torch.arange(len(box)), neuron] = 1.0
            zero = torch.zeros(len(box), dtype=torch.float64)
            both = back(k, torch.cat([unit, -unit]), torch.cat([zero, zero]), torch.cat([box, box]))
            bottom[box, neuron] = torch.maximum(bottom[box, neuron], both[: len(box)])
            top[box, neuron] = torch.minimum(top[box, neuron], -both[len(box) :])
        bends, on = (bottom < 0) & (top > 0), (bottom >= 0).double()
        slope = torch.where(bends, top / (top - bottom).clamp(min=1e-300), on)
        below = torch.where(bends, (top > -bottom).double(), on)
        relaxed.append((below, slope, torch.where(bends, -slope * bottom, torch.zeros_like(bottom))))
        lo, hi = bottom.clamp(min=0), top.clamp(min=0)
    n, r = len(low), len(goal.b)
    box = torch.arange(n).repeat_interleave(r)
    return back(len(net.weights) - 1, goal.A.repeat(n, 1), -goal.b.repeat(n), box).reshape(n, r)


def plain_search(
    onnx_path: str | Path, property_: Property, timeout: float, relative: bool = True, batch: int = BATCH
) -> Found:
    """Decide a property by halving the longest edge of every box not yet proved.

    No clipping, no attack but the centre of every box, no choice of what to split. All unsafe conjunctions of a box are
    bounded together.

    Args:
        onnx_path: of a network like those of ACAS Xu.
        property_: what is claimed.
        timeout: wall-clock seconds.
        relative: measure edges in units of the property's box; otherwise as they are. Neither is always better.
        batch: boxes bounded at a time.
    """
    start, boxes, stuck = time.process_time(), 0, False
    deadline = time.monotonic() + timeout
    net = read(onnx_path)
    for case in property_.cases:
        goal, root = Goal.of_case(case), _outer(case.box)
        width = (root[1] - root[0]).clamp(min=1e-300) if relative else torch.ones_like(root[0])
        stack = [(root[0][None], root[1][None])]
        while stack:
            if time.monotonic() > deadline:
                return Found("unknown", boxes, time.process_time() - start, None)
            low, high = _popped(stack, batch)
            boxes += len(low)
            middle = (low + high) / 2
            values = goal.worst(net(middle) @ goal.A.T - goal.b)
            x = confirmed(net, property_, middle[(values <= 0).any(1)])
            if x is not None:
                return Found("violated", boxes, time.process_time() - start, x)
            is_open = ~(goal.worst(bounds(net, goal, low, high)) > SLACK).all(1)
            low, high, middle = low[is_open], high[is_open], middle[is_open]
            at = ((high - low) / width).argmax(1, keepdim=True)
            cut = middle.gather(1, at)
            whole = (cut > low.gather(1, at)) & (cut < high.gather(1, at))
            stuck |= not bool(whole.all())
            low, high, at, cut = (t[whole[:, 0]] for t in (low, high, at, cut))
            if len(low):
                stack.append((low, high.scatter(1, at, cut)))
                stack.append((low.scatter(1, at, cut), high))
    return Found("unknown" if stuck else "holds", boxes, time.process_time() - start, None)


def _popped(stack: list[tuple[Tensor, Tensor]], batch: int) -> tuple[Tensor, Tensor]:
    """Take the newest boxes from the stack, at most `batch`: depth first needs little memory."""
    taken: list[tuple[Tensor, Tensor]] = []
    room = batch
    while stack and room > 0:
        low, high = stack.pop()
        if len(low) > room:
            stack.append((low[:-room], high[:-room]))
            low, high = low[-room:], high[-room:]
        taken.append((low, high))
        room -= len(low)
    return torch.cat([low for low, _ in taken]), torch.cat([high for _, high in taken])


def _outer(box: Box) -> tuple[Tensor, Tensor]:
    low, high = box.outer
    return torch.from_numpy(low), torch.from_numpy(high)


def confirmed(net: Net, property_: Property, points: Iterable[Tensor], most: int = 4) -> list[float] | None:
    """Return a point that violates the property in exact arithmetic, in float32 numbers where that is possible."""
    for x in list(points)[:most]:
        for kept in (x.float().double().tolist(), x.tolist()):
            if property_.violated_at(kept, net.exact(kept)):
                return kept
    return None


def attack(
    net: Net, property_: Property, seed: int = 0, samples: int = 50_000, starts: int = 400, steps: int = 80
) -> list[float] | None:
    """Look for a violation: many uniform points, then gradient steps from random points, faces and the best points."""
    generator = torch.Generator().manual_seed(seed)
    for case in property_.cases:
        goal, (low, high) = Goal.of_case(case), (torch.from_numpy(end) for end in case.box.inner)
        if (low > high).any():
            continue
        t = torch.rand(samples, len(low), generator=generator, dtype=torch.float64)
        faces = torch.rand(t.shape, generator=generator)
        t[samples // 2 :] = torch.where(faces < 0.25, t.round(), t)[samples // 2 :]
        x = low + t * (high - low)
        values = goal.worst(net(x) @ goal.A.T - goal.b)
        found = confirmed(net, property_, x[(values <= 0).any(1)])
        if found is not None:
            return found
        for k in range(goal.conjunctions):
            best = values[:, k].argsort()[: starts // 2]
            x_k = torch.cat([x[best], x[torch.randperm(samples, generator=generator)[: starts // 2]]])
            for step in range(steps):
                x_k.requires_grad_(True)
                value = goal.worst(net(x_k) @ goal.A.T - goal.b)[:, k]
                (gradient,) = torch.autograd.grad(value.sum(), x_k)
                x_k = x_k.detach()
                found = confirmed(net, property_, x_k[value.detach() <= 0])
                if found is not None:
                    return found
                size = 0.25 * 0.93**step
                x_k = torch.clamp(x_k - size * (high - low) * gradient.sign(), low, high)
    return None


def exhaustive(onnx_path: str | Path, property_: Property, timeout: float) -> Found:
    """Attack, then search for as long as it takes."""
    start = time.process_time()
    x = attack(read(onnx_path), property_)
    if x is not None:
        return Found("violated", 0, time.process_time() - start, x)
    found = plain_search(onnx_path, property_, timeout)
    return found._replace(cpu_seconds=time.process_time() - start)


def sampled(net: Net, box: Box, count: int, rng: np.random.Generator) -> Tensor:
    """Return outputs (count, outputs) at uniform points of a box."""
    low, high = _outer(box)
    return net(low + torch.from_numpy(rng.random((count, len(low)))) * (high - low))
