"""The linear regions of a piecewise linear network on segments and flat polygons.

Restricted to a segment or a polygon, a network of affine maps and piecewise linear activations is affine on finitely
many pieces (Sotoudeh & Thakur, "Computing linear restrictions of neural networks", NeurIPS 2019). Node by node, every
piece is cut where an activation bends. All pieces of all regions are cut at once, and neighbours share their corners by
construction: an edge that is cut gets one new corner, whichever pieces it belongs to. Computed in float64; nothing here
bounds its rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.spec.network import copied, shape_of_one
from nnrepair.spec.regions import Regions
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.lowering import lower
from nnrepair.verify.runs import rounding_explains

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Values below this share of a layer's largest count as zero: a cut there would only follow rounding errors.
ZERO = 1e-12
#: On which side of a cut a corner lies; 0 is on it.
ABOVE, BELOW = np.int8(1), np.int8(2)
#: So many regions go together, divided by the numbers that the network computes for one corner.
TOGETHER = 125_000
#: Corners at which the network that was read is compared with the model.
PROBES = 64


@dataclass(frozen=True)
class Pieces:
    """Linear regions: on each piece the network is affine, so a piece lies in the hull of its corners' outputs.

    Attributes:
        points: (v, ...) all corners, in float64; pieces of one region share theirs.
        outputs: (v, outputs) of the network there.
        corners: (pieces, most) which points are the corners of each piece, in order; a piece with fewer repeats its
            first one.
        count: (pieces,) how many corners a piece has.
        region: (pieces,) the region that each piece belongs to, and `home`: (v,) the region of each point.
    """

    points: Tensor
    outputs: Tensor
    corners: Tensor
    count: Tensor
    region: Tensor
    home: Tensor

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def centers(self) -> Tensor:
        """(pieces, ...) a point inside each piece: the mean of its corners."""
        return self.means(self.points)

    def means(self, values: Tensor) -> Tensor:
        """Return (pieces, ...): the mean over each piece's corners of `values` (v, ...)."""
        real = torch.arange(self.corners.shape[1]) < self.count[:, None]
        weight = (real.double() / self.count[:, None]).reshape(*real.shape, *[1] * (values.ndim - 1))
        return (values[self.corners] * weight).sum(1)


def split(model: nn.Module, regions: Regions, then: Callable[[Mesh], None] | None = None) -> Pieces:
    """Return the linear regions of a model on each region.

    >>> from nnrepair.spec.regions import Segments
    >>> model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    >>> with torch.no_grad():
    ...     _ = model[0].weight.fill_(1.0), model[0].bias.zero_()
    >>> split(model, Segments([[-1.0]], [[1.0]])).points.flatten().tolist()
    [-1.0, 1.0, 0.0]

    Args:
        model: a module that maps (n, ...) to (n, outputs), taken in eval mode and left untouched.
        regions: where.
        then: cuts further, given the mesh with the outputs as its values.

    Raises:
        UnsupportedModel: the model is not piecewise linear; the message names the operations.
        InvalidInput: the regions' inputs do not fit the model.
    """
    model = copied(model).cpu().eval()
    graph = _lowered(model, regions.shape)
    widest = sum(node.size for node in graph.nodes)
    step = max(1, TOGETHER // widest)
    each = torch.split(torch.arange(len(regions)), step)
    parts = [_split(graph, [regions.corners[k] for k in some.tolist()], int(some[0]), then) for some in each]
    pieces = _joined(parts, regions.shape)
    _compare(model, graph, pieces)
    return pieces


class Mesh:
    """Pieces that share corners, and values at the corners that are affine on every piece.

    Attributes:
        corners: (pieces, most) indices of corners, in order; a piece with fewer repeats its first one.
        count, region: (pieces,) how many corners, and of which region.
        home: (v, 1) the region of each corner.
        values: by name, (v, size) arrays; cuts extend them all.
    """

    def __init__(self, regions: Sequence[Tensor], first: int) -> None:
        sizes = np.asarray([len(r) for r in regions])
        starts = np.cumsum(sizes) - sizes
        place = np.arange(sizes.max())
        self.corners: Index = starts[:, None] + np.where(place < sizes[:, None], place, 0)
        self.count: Index = sizes
        self.region: Index = first + np.arange(len(sizes))
        self.values: dict[str | int, _Table] = {"home": _Table(np.repeat(self.region, sizes).astype(float)[:, None])}
        self.values[0] = _Table(torch.cat([r.flatten(1) for r in regions]).numpy())

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, name: str | int) -> Array:
        return self.values[name].rows

    def __setitem__(self, name: str | int, rows: Array) -> None:
        self.values[name] = _Table(rows)

    def cut(self, heights: Array, zero: float, only: NDArray[np.bool_] | None = None) -> int:
        """Cut every piece (or `only` some) where a function is zero, and return how many corners are new.

        Args:
            heights: (v,) the function at the corners; affine on every piece that is cut.
            zero: heights up to this count as zero.
            only: (pieces,) which pieces may be cut.
        """
        side = (heights > zero) * ABOVE + (heights < -zero) * BELOW  # bits: a piece has the bits of its corners
        mixed = np.bitwise_or.reduce(side[self.corners], axis=1) == ABOVE + BELOW
        which = np.flatnonzero(mixed if only is None else mixed & only)
        if len(which) == 0:
            return 0
        faces, count = self.corners[which], self.count[which]
        sides = side[faces]
        after = np.roll(faces, -1, 1)  # a short piece repeats its first corner, so its last edge closes it as well
        crossed = sides | np.roll(sides, -1, 1) == ABOVE + BELOW
        crossed[count == 2, 1:] = False  # a segment has one edge, not two
        old, ends, new = len(side), np.sort(np.stack([faces[crossed], after[crossed]], 1), 1), np.full(faces.shape, -1)
        edges, number = np.unique(ends[:, 0] * old + ends[:, 1], return_inverse=True)
        new[crossed] = old + number.reshape(-1)
        a, b = edges // old, edges % old
        share = heights[a] / (heights[a] - heights[b])
        for table in self.values.values():
            table.append(table.rows[a] + share[:, None] * (table.rows[b] - table.rows[a]))
        self.values["home"].rows[old:] = self["home"][a]
        # Around a piece: corner, new corner after it, corner, ...; each side keeps its own and those at zero.
        around = np.stack([faces, new], 2).reshape(len(faces), -1)
        is_new = np.stack([np.zeros_like(crossed), crossed], 2).reshape(around.shape)
        real = np.arange(faces.shape[1]) < count[:, None]
        halves = []
        for other in (BELOW, ABOVE):
            own = np.stack([real & (sides != other), np.zeros_like(real)], 2).reshape(around.shape)
            halves.append(_gathered(around, own | is_new))
        (above, above_count), (below, below_count) = halves
        most = max(self.corners.shape[1], above.shape[1], below.shape[1])
        self.corners = _widened(self.corners, most)
        self.corners[which], self.count[which] = _widened(above, most), above_count
        self.corners = np.concatenate([self.corners, _widened(below, most)])
        self.count = np.concatenate([self.count, below_count])
        self.region = np.concatenate([self.region, self.region[which]])
        return len(edges)


class _Table:
    """Rows to which more are appended."""

    def __init__(self, rows: Array) -> None:
        self._all, self._used = rows, len(rows)

    @property
    def rows(self) -> Array:
        return self._all[: self._used]

    def append(self, new: Array) -> None:
        used = self._used + len(new)
        if used > len(self._all):
            grown = np.empty((2 * used, self._all.shape[1]))
            grown[: self._used] = self.rows
            self._all = grown
        self._all[self._used : used], self._used = new, used


def _gathered(around: Index, kept: NDArray[np.bool_]) -> tuple[Index, Index]:
    """Return the kept corners of each piece, in order, padded with the first; and their number."""
    count = kept.sum(1)
    order = np.argsort(~kept, axis=1, kind="stable")[:, : count.max()]
    corners = np.take_along_axis(around, order, 1)
    return np.where(np.arange(corners.shape[1]) < count[:, None], corners, corners[:, :1]), count


def _widened(corners: Index, most: int) -> Index:
    missing = most - corners.shape[1]
    return np.concatenate([corners, np.repeat(corners[:, :1], missing, 1)], 1) if missing else corners


def _split(graph: Graph, regions: list[Tensor], first: int, then: Callable[[Mesh], None] | None) -> Mesh:
    """Return the pieces of some regions, with the values 0 (inputs) and "outputs"."""
    mesh = Mesh(regions, first)
    needed = {source: k for k, node in enumerate(graph.nodes) for source in node.sources}
    for k, node in enumerate(graph.nodes[1:], 1):
        source = node.sources[0]
        if node.activation is not None:
            for bend in node.activation.bends or ():
                _cut_at(bend, mesh, source)
            mesh[k] = node.activation.apply(torch.from_numpy(mesh[source])).numpy()
        elif node.affine is not None:
            mesh[k] = (node.affine.apply(torch.from_numpy(mesh[source])) + node.affine.bias).numpy()
        else:
            mesh[k] = reduce(np.add, [mesh[s] for s in node.sources])
        for old in [s for s in node.sources if s and needed[s] == k]:
            mesh.values.pop(old, None)
    mesh.values["outputs"] = mesh.values.pop(len(graph.nodes) - 1)
    for leftover in [name for name in mesh.values if isinstance(name, int) and name]:
        del mesh.values[leftover]
    if then is not None:
        then(mesh)
    return mesh


def _cut_at(bend: float, mesh: Mesh, source: int) -> None:
    """Cut every piece where an entry of a value passes the bend of the activation that reads it."""
    heights = mesh[source] - bend
    zero = ZERO * float(np.abs(heights).max())
    # A cut makes no function switch its sign that did not: new corners lie between old ones.
    for unit in np.flatnonzero((heights.min(0) < -zero) & (heights.max(0) > zero)).tolist():
        new = mesh.cut(mesh[source][:, unit] - bend, zero)
        mesh[source][len(mesh[source]) - new :, unit] = bend


def _joined(parts: list[Mesh], shape: tuple[int, ...]) -> Pieces:
    most = max(mesh.corners.shape[1] for mesh in parts)
    sizes = np.asarray([len(mesh[0]) for mesh in parts])
    starts = np.cumsum(sizes) - sizes

    def every(rows: Sequence[NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.concatenate(rows))

    return Pieces(
        points=every([mesh[0] for mesh in parts]).reshape(-1, *shape),
        outputs=every([mesh["outputs"] for mesh in parts]),
        corners=every([_widened(m.corners, most) + start for m, start in zip(parts, starts, strict=True)]),
        count=every([mesh.count for mesh in parts]),
        region=every([mesh.region for mesh in parts]),
        home=every([mesh["home"][:, 0] for mesh in parts]).long(),
    )


def _lowered(model: nn.Module, shape: tuple[int, ...]) -> Graph:
    needed = "A region is split where the network bends, so the network must be piecewise linear."
    try:
        graph = lower(model, shape_of_one(model, torch.empty(1, *shape)))
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{needed} {error}") from error
    smooth = sorted({each.name for each in graph.activations if each.bends is None})
    if smooth:
        raise UnsupportedModel(f"{needed} {', '.join(smooth)}: not piecewise linear.")
    return graph


def _compare(model: nn.Module, graph: Graph, pieces: Pieces) -> None:
    """Compare what was read with the model itself: hooks, for example, are not seen when a model is read."""
    some = torch.linspace(0, len(pieces.points) - 1, min(PROBES, len(pieces.points))).long()
    try:
        with torch.no_grad():
            y = copied(model).double()(pieces.points[some]).double()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        given = tuple(pieces.points.shape[1:])
        raise InvalidInput(f"The model does not accept inputs of shape {given} in float64: {reason}") from error
    read = pieces.outputs[some]
    if y.ndim != 2 or y.shape != read.shape:
        raise InvalidInput(
            f"Region edits need one row of outputs per input, (points, outputs); the model returns {tuple(y.shape)}."
        )
    if not torch.allclose(y, read, rtol=1e-6, atol=1e-6 * float(read.abs().max())):
        raise UnsupportedModel(
            rounding_explains(graph, pieces.points[some].flatten(1).double(), y, torch.float64, "the model")
            or "The model computes another function than was read from it. Forward hooks, randomness and operations "
            "that change tensors in place may do that; remove them, or write the model to ONNX and load it again."
        )
