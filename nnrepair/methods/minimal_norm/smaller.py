"""From a change that is small in the Euclidean norm towards one that is small in another: coordinates to go on in.

The l1 and nuclear norms by reweighted least squares (Daubechies et al. 2010; Mohan & Fazel 2012): entries, or singular
values, are measured relative to their present size, so that small ones become smaller still; l1 drops those that
are negligible. The largest entry by a limit that no entry can pass.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nnrepair.methods.minimal_norm.coordinates import Coordinates, Part

#: How many times to go on. The other norms are Euclidean.
TRIES = {"l1": 4, "nuclear": 4, "linf": 3, "mean+max": 3}
#: Entries below this share of the largest are dropped.
DROPPED = 0.03
#: By how much sizes that are added to present ones, so that zero can change again, fall each time.
SHARPENING = 10.0
#: What share of the present largest entry the next limit is.
LIMIT = 0.5


def next_coordinates(norm: str, coordinates: Coordinates, change: dict[str, Tensor], turn: int) -> Coordinates:
    """Return coordinates in which changes near the present one are short if they are small in the norm.

    Args:
        norm: one of `TRIES`.
        coordinates: the present ones.
        change: the present change, by parameter name.
        turn: how many times this was done before.
    """
    flat = [torch.from_numpy(p.group.flat(change)) for p in coordinates.parts]
    largest = max(float(d.abs().max()) for d in flat)
    if norm in ("linf", "mean+max"):
        return Coordinates([replace(p, basis=None, limit=LIMIT * largest) for p in coordinates.parts])
    blur = SHARPENING ** -(turn + 1)
    if norm == "nuclear":
        pairs = zip(coordinates.parts, flat, strict=True)
        return Coordinates([_with(p, _root_of_size(d.reshape(p.group.head.out, -1), blur)) for p, d in pairs])
    scales = [torch.where(d.abs() > DROPPED * largest, (d.abs() + blur * largest).sqrt(), 0.0) for d in flat]
    return Coordinates([_with(p, s) for p, s in zip(coordinates.parts, scales, strict=True)])


def _with(part: Part, scale: Tensor) -> Part:
    return replace(part, basis=None, scale=scale.to(part.like))


def _root_of_size(d: Tensor, blur: float) -> Tensor:
    """Return the fourth root of d d^T (out, out), with a share of its largest eigenvalue added to all."""
    values, vectors = torch.linalg.eigh(d @ d.T)
    values = values.clamp(min=0)
    root: Tensor = (vectors * (values + blur**2 * values.max()) ** 0.25) @ vectors.T
    return root
