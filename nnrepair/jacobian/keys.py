"""Outputs that are affine in the chosen parameters, written as one linear map applied to one key per point.

Put the chosen parameters side by side, each as a matrix with one row per class: W (out, inp). A layer's output is very
often y[v] = y0[v] + (W - W0) k[v], however the layer works inside: before or after the messages of a graph are summed,
with one matrix for a node and another for its neighbours, before or after pooling. The keys k (points, inp) then
determine the outputs, and what holds for a network's last linear map holds for W: rows are outer products, drift is the
keys' second moment, and no repair needs the network again.

That a model is of this kind is tested, not proved: at random W, near and far and on both sides of the present one, its
outputs must be those computed from the keys, to within rounding in float64. It covers only the points it is made on:
those that a repair will use, and on all nodes of a graph, since one node may be affine where its neighbours
are not (attention of a node to itself alone).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnrepair.errors import UnsupportedModel
from nnrepair.jacobian.tangents import gradients

#: Sizes of the random changes of W, relative to W, at which outputs must be those computed from the keys.
REACHES = (1.0, 1000.0)
#: And where some keys are zero: an output that nothing moves may lie behind a ReLU that only a larger change activates.
FAR = 1e9
#: Random directions at every reach, each in both signs: a kink at zero shows on one side only.
DIRECTIONS = 2
#: What rounding may add, relative to the largest change of an output.
ROUNDING = 1e-9


def fits(y: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether outputs and parameters have the shapes of one linear map: one output per row of every parameter."""
    return y.ndim == 2 and all(p.ndim >= 1 and p.shape[0] == y.shape[1] for p in parameters)


def keys(y: Tensor, parameters: Sequence[Tensor]) -> Tensor | None:
    """Return (points, inp) what the map would be applied to, or None where the model cannot be differentiated twice.

    With cotangents u (points, out), reverse mode gives sum_v u[v, o] k[v, i] at W[o, i], which is linear in u: its
    derivative along u[v, o] is k[v, i]. Every row o serves another i, so inp / out further passes, and none of them
    through what comes before the layer, give the keys of all points.
    """
    out = y.shape[1]
    u = torch.zeros_like(y, requires_grad=True)
    try:
        grads = gradients(y, parameters, u, create_graph=True)
        sides = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
        summed = torch.cat([side.reshape(out, -1) for side in sides], 1)
        found = []
        for start in range(0, summed.shape[1], out):
            count = min(out, summed.shape[1] - start)
            row = torch.arange(count, device=y.device)
            seed = torch.zeros_like(summed).index_put_((row, start + row), y.new_ones(count))
            (part,) = gradients(summed, [u], seed)
            found.append(torch.zeros_like(u[:, :count]) if part is None else part[:, :count])
    except UnsupportedModel:
        return None
    return torch.cat(found, 1).detach()


@torch.no_grad()
def foretell(k: Tensor, y: Tensor, parameters: Sequence[Tensor], run: Callable[[], Tensor]) -> bool:
    """Whether the outputs at random values of the parameters are those computed from the keys.

    Args:
        k, y: (points, inp) the keys and (points, out) the outputs at the present parameters.
        parameters: moved, and put back.
        run: computes the outputs at whatever values the parameters have.
    """
    generator = torch.Generator().manual_seed(0)
    start = [p.clone() for p in parameters]
    size = max(float(torch.cat([p.flatten() for p in start]).square().mean().sqrt()), 1e-3)
    try:
        reaches = REACHES if k.any(1).all() else (*REACHES, FAR)
        for reach, _ in itertools.product(reaches, range(DIRECTIONS)):
            random = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in start]
            for length in (reach * size, -reach * size):
                change = [length * r for r in random]
                for p, before, c in zip(parameters, start, change, strict=True):
                    p.copy_(before + c)
                predicted = k @ torch.cat([c.reshape(y.shape[1], -1) for c in change], 1).T
                missed = (run() - y - predicted).abs().max()
                # Not `missed > ...`: NaN must not pass.
                if not missed <= ROUNDING * max(float(predicted.abs().max()), float(y.abs().max())):
                    return False
    finally:
        for p, before in zip(parameters, start, strict=True):
            p.copy_(before)
    return True
