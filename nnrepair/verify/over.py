"""Is a criterion true at every point of a segment or a polygon? As a property of a network with one or two inputs."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

from nnrepair.spec.criteria import Criterion
from nnrepair.spec.network import copied
from nnrepair.spec.regions import plane
from nnrepair.verify.property import Box, Case, Halfspace, Property


class Over(nn.Module):
    """A network along a segment, or on the plane of a polygon, in float64.

    A segment is t -> start + t (end - start), 0 <= t <= 1. A polygon is a box of its plane; more outputs, one for each
    edge, are at most 0 inside. Directions and edges are rounded to float64, the network's own weights are not; its
    constants (the slope of a leaky ReLU) are those of a float64 network.

    Args:
        model: the network.
        corners: (k, ...) of one region.
    """

    def __init__(self, model: nn.Module, corners: Tensor) -> None:
        super().__init__()
        self.model = copied(model).cpu().double().eval()
        flat, self.shape = corners.flatten(1), tuple(corners.shape[1:])
        if len(corners) == 2:
            origin, axes, place = flat[0], (flat[1] - flat[0])[None], torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        else:
            place, axes, _ = plane(corners)
            origin, axes, place = flat.mean(0), axes[:2], place[:, :2]
        self.box = Box(place.amin(0), place.amax(0))
        self.place = _linear(axes.T, origin)
        self.edges = _linear(*_edges(place)) if len(corners) > 2 else None
        self.sides = 0 if self.edges is None else self.edges.out_features

    def forward(self, z: Tensor) -> Tensor:
        y: Tensor = self.model(self.place(z).reshape(-1, *self.shape)).flatten(1)
        return y if self.edges is None else torch.cat([y, self.edges(z)], 1)

    def property(self, criterion: Criterion, outputs: int) -> Property:
        """Return the property that a criterion (about one point) holds on all of the region."""
        (case,), each = Property.on(self.box, criterion, outputs).cases, range(self.sides)
        nothing = (Fraction(0),) * self.sides
        inside = [
            Halfspace((Fraction(0),) * outputs + tuple(Fraction(int(k == edge)) for k in each), Fraction(0))
            for edge in each
        ]
        unsafe = tuple(
            (*(Halfspace(row.coefficients + nothing, row.bound, row.strict) for row in conjunction), *inside)
            for conjunction in case.unsafe
        )
        return Property([Case(self.box, unsafe)], outputs + self.sides)


def _edges(place: Tensor) -> tuple[Tensor, Tensor]:
    """Return (weight, bias): `weight z + bias <= 0` for every edge inside a convex polygon with corners (k, 2)."""
    side = place.roll(-1, 0) - place
    outward = torch.stack([side[:, 1], -side[:, 0]], 1)
    turn = side[:, 0] * side.roll(-1, 0)[:, 1] - side[:, 1] * side.roll(-1, 0)[:, 0]
    outward = outward * math.copysign(1.0, float(turn.sum())) / outward.norm(dim=1, keepdim=True)
    return outward, -(outward * place).sum(1)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # meta: draws no random numbers
    layer.weight, layer.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias)
    return layer
