"""A picture of what a network decides in a slice of its inputs. Needs the extra `nnrepair[plot]`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nnrepair.errors import InvalidInput
from nnrepair.network import private_copy
from nnrepair.plot.style import INK, OTHER, PALETTE, require_matplotlib
from nnrepair.plot.view import Array, Rectangle, View, box_of, named, points_of, property_of
from nnrepair.spec.network import stated_shape
from nnrepair.verify.certificate import PropertyCertificate, sha256
from nnrepair.verify.property import Box, Property

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The title lists the values of at most this many fixed inputs.
MOST_FIXED = 4


def region(
    model: nn.Module | str | Path,
    box: Box | tuple[Any, Any],
    dims: tuple[int, int] = (0, 1),
    *,
    at: Any = None,
    resolution: int = 300,
    counterexamples: Any = (),
    certificate: PropertyCertificate | None = None,
    property: Property | str | Path | None = None,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
    classes: Sequence[str] | None = None,
    lowest_wins: bool = False,
) -> Axes:
    """Draw what the network decides in a slice of the box, and what a check found there.

    The decisions, and where the property is violated, are computed at the middle of each cell: a picture, no proof.

    Example:
        >>> from nnrepair import plot
        >>> ax = plot.region(model, result_box, counterexamples=result)  # doctest: +SKIP
        >>> ax.figure.savefig("region.png")  # doctest: +SKIP

    Args:
        model: a module that maps (n, ...) to (n, classes), taken in eval mode and left untouched, or an ONNX file.
        box: what to show: a `nnrepair.verify.Box`, or a pair of its lower and upper ends.
        dims: the inputs along the horizontal and the vertical axis.
        at: where the other inputs are held: a point; by default the first counterexample, else the box's middle.
        resolution: cells along each axis.
        counterexamples: a `CheckResult`, a `Counterexample`, an array (inputs,) or (n, inputs), or a list of these;
            hollow marks are not in the slice, their other inputs differ.
        certificate: draws the outlines of the proof's boxes where they cross the slice (as they were split; what was
            cut off from them by bounds is not in the file).
        property: whose violations are hatched, and whose regions the certificate splits; a `Property` or a .vnnlib
            file. Without it the certificate's only region is taken to be `box`.
        names: of all inputs.
        ax: where to draw; a new figure if None.
        classes: names of all outputs.
        lowest_wins: the lowest score decides (as in ACAS Xu), not the highest.

    Raises:
        InvalidInput: something does not fit the model, or the certificate is about another property.
        MissingExtra: matplotlib is not installed.
    """
    box = box if isinstance(box, Box) else box_of(box)
    points = points_of(counterexamples, len(box))
    view = View(box, dims, at, points, resolution)
    names = named(names, len(box), "names", "inputs", "input")
    claim = None if property is None else property_of(property, len(box))
    boxes = None if certificate is None else _crossing(certificate, claim, property, view)
    scores = _scores(model, view, box)
    classes = named(classes, scores.shape[2], "classes", "outputs", "class")
    if claim is not None and claim.outputs != scores.shape[2]:
        raise InvalidInput(f"The property is about {claim.outputs} outputs; the network has {scores.shape[2]}.")
    require_matplotlib()
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    key = _draw_decisions(ax, view, scores.argmin(2) if lowest_wins else scores.argmax(2), classes)
    if claim is not None:
        key += _draw_violations(ax, view, _violated(claim, view, scores))
    if boxes is not None:
        key += _draw_boxes(ax, view, boxes)
    key += _draw_points(ax, view, points)
    _label(ax, view, names)
    title = "lowest score" if lowest_wins else "highest score"
    legend = ax.legend(
        handles=key, title=title, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0.0, frameon=False
    )
    legend.set_alignment("left")
    return ax


# What is there -------------------------------------------------------------------------------------------------------


def _scores(model: nn.Module | str | Path, view: View, box: Box) -> Array:
    """Return the outputs (rows, columns, outputs) at the middles of the cells."""
    network = private_copy(model)
    like = next((p for p in network.parameters() if p.dtype.is_floating_point), torch.zeros(()))
    stated = stated_shape(network)
    shape = box.shape if stated is None else stated
    if math.prod(shape) != len(box):
        raise InvalidInput(f"The box has {len(box)} inputs, but the network reads {math.prod(shape)}.")
    step = max(1, min(8192, 4_000_000 // len(box)) // view.resolution)
    found = []
    for start in range(0, view.resolution, step):
        grid = torch.from_numpy(view.inputs(slice(start, start + step))).to(like).reshape(-1, *shape)
        try:
            with torch.no_grad():
                y = network(grid)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InvalidInput(f"The model does not accept inputs of shape {tuple(grid.shape)}: {reason}") from error
        if not isinstance(y, torch.Tensor) or len(y) != len(grid) or y[0].numel() < 2:
            given = tuple(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
            raise InvalidInput(f"Decisions need at least two outputs for each input, (n, classes); got {given}.")
        found.append(y.double().flatten(1).cpu().numpy())
    scores = np.concatenate(found).reshape(view.resolution, view.resolution, -1)
    if np.isnan(scores).any():
        raise InvalidInput(f"The model returns NaN at {int(np.isnan(scores).any(2).sum())} points of the slice.")
    return scores


def _violated(claim: Property, view: View, scores: Array) -> NDArray[np.bool_]:
    """Return (rows, columns): where an output is unsafe."""
    x, y = view.middles()
    found = np.zeros(scores.shape[:2], bool)
    for case in claim.cases:
        low, high = case.box.outer
        if not view.crosses(low, high):
            continue
        across, up = ((low[d] <= v) & (v <= high[d]) for d, v in zip(view.dims, (x, y), strict=True))
        unsafe = np.zeros_like(found)
        for conjunction in case.unsafe:
            inside = np.ones_like(found)
            for row in conjunction:
                value, bound = scores @ np.array([float(c) for c in row.coefficients]), float(row.bound)
                inside &= value < bound if row.strict else value <= bound
            unsafe |= inside
        found |= unsafe & up[:, None] & across
    return found


def _crossing(certificate: PropertyCertificate, claim: Property | None, given: Any, view: View) -> list[Rectangle]:
    """Return the proof's boxes where they cross the slice."""
    if isinstance(given, str | Path) and certificate.property_sha256 != sha256(given):
        raise InvalidInput(f"The certificate is not about the property {given}: its hash is another one.")
    if claim is None:
        roots = [(view.low, view.high)]
    else:
        roots = [case.box.outer for case in claim.cases for _ in case.unsafe]
    if certificate.trees != len(roots):
        raise InvalidInput(
            f"The certificate has {certificate.trees} trees, but there are {len(roots)} pairs of a region and a way to "
            "be unsafe there. Give the property that it is about: property=..."
        )
    return list(_leaves(certificate, roots, view))


def _leaves(certificate: PropertyCertificate, roots: Sequence[tuple[Array, Array]], view: View) -> Iterator[Rectangle]:
    """Walk through the trees, each in preorder, with the part of the slice in each node; None where it is empty."""
    i, j = view.dims
    nodes, cuts = iter(certificate.dim.tolist()), iter(certificate.cut.tolist())
    at = view.at.tolist()
    try:
        for low, high in roots:
            whole = (float(low[i]), float(high[i]), float(low[j]), float(high[j]))
            stack: list[Rectangle | None] = [whole if view.crosses(low, high) else None]
            while stack:
                here, d = stack.pop(), next(nodes)
                if d < 0:
                    if here is not None:
                        yield here
                    continue
                cut, fixed = next(cuts), at[d]
                if here is None:
                    stack += [None, None]
                    continue
                x0, x1, y0, y1 = here
                if d == i:
                    below, above = (x0, min(x1, cut), y0, y1), (max(x0, cut), x1, y0, y1)
                elif d == j:
                    below, above = (x0, x1, y0, min(y1, cut)), (x0, x1, max(y0, cut), y1)
                else:
                    stack += [None, here] if fixed <= cut else [here, None]
                    continue
                stack += [r if r[0] <= r[1] and r[2] <= r[3] else None for r in (above, below)]
        damaged = next(nodes, None) is not None
    except (StopIteration, IndexError, RuntimeError):
        damaged = True
    if damaged:
        raise InvalidInput("The certificate is damaged, or not about this network: its trees do not add up.")


# Drawing -------------------------------------------------------------------------------------------------------------


def _draw_decisions(ax: Axes, view: View, decision: NDArray[np.int64], classes: Sequence[str]) -> list[Any]:
    """Fill each class's part of the slice; return the legend's entries."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    present, area = np.unique(decision, return_counts=True)
    if len(classes) <= len(PALETTE):
        shown = {int(k): PALETTE[k] for k in present}
    else:  # colours go to the largest areas
        largest = sorted(present[np.argsort(-area, kind="stable")][: len(PALETTE)].tolist())
        shown = dict(zip(largest, PALETTE, strict=False))
    order = [*shown, -1]
    number = {k: n for n, k in enumerate(order)}
    image = np.vectorize(lambda k: number.get(k, number[-1]), otypes=[int])(decision)
    colours = ListedColormap([*shown.values(), OTHER])
    ax.imshow(
        image, cmap=colours, vmin=-0.5, vmax=len(order) - 0.5, extent=view.extent, origin="lower", aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    ax.set_xlim(view.extent[:2])
    ax.set_ylim(view.extent[2:])
    key = [Patch(color=colour, label=classes[k]) for k, colour in shown.items()]
    rest = len(present) - len(shown)
    return [*key, Patch(color=OTHER, label=f"{rest} others")] if rest else key


def _draw_violations(ax: Axes, view: View, violated: NDArray[np.bool_]) -> list[Any]:
    from matplotlib.patches import Patch

    if not violated.any():
        return []
    drawn = ax.contourf(*view.middles(), violated, levels=[0.5, 1.5], colors="none", hatches=["////"])
    drawn.set_edgecolor(INK)
    drawn.set_linewidth(0)
    if not violated.all():
        ax.contour(*view.middles(), violated, levels=[0.5], colors=INK, linewidths=1.2)
    return [Patch(facecolor="none", edgecolor=INK, hatch="////", label="violated")]


def _draw_boxes(ax: Axes, view: View, boxes: Sequence[Rectangle]) -> list[Any]:
    from matplotlib.collections import PolyCollection
    from matplotlib.patches import Patch

    corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, x1, y0, y1 in boxes]
    ax.add_collection(PolyCollection(corners, facecolors="none", edgecolors=INK, linewidths=0.6, alpha=0.7))
    return [Patch(facecolor="none", edgecolor=INK, linewidth=0.6, label=f"proof ({len(boxes)} boxes here)")]


def _draw_points(ax: Axes, view: View, points: Array) -> list[Any]:
    near = 1e-6 * (view.high - view.low) + 1e-12
    inside = (np.abs(points - view.at) <= near)[:, view.others].all(1)
    drawn = []
    for mine, face, edge, label in (
        (inside, INK, "white", "counterexample"),
        (~inside, "white", INK, "counterexample outside the slice"),
    ):
        if mine.any():
            x, y = (points[mine, d] for d in view.dims)
            drawn.append(ax.scatter(x, y, s=80, marker="X", c=face, edgecolors=edge, linewidths=1.2, zorder=5))
            drawn[-1].set_label(label)
    return drawn


def _label(ax: Axes, view: View, names: Sequence[str]) -> None:
    ax.set_xlabel(names[view.dims[0]])
    ax.set_ylabel(names[view.dims[1]])
    if view.others:
        fixed = ", ".join(f"{names[d]} = {view.at[d]:.4g}" for d in view.others)
        text = fixed if len(view.others) <= MOST_FIXED else f"the other {len(view.others)} inputs are fixed"
        ax.set_title(text, loc="left", fontsize="small", color="#555555")
