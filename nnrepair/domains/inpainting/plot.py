"""Pictures of completions and of their repairs. Needs the extra `nnrepair[plot]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nnrepair.domains.inpainting.networks import LEAST, Completion
from nnrepair.errors import InvalidInput
from nnrepair.plot.style import INK, require_matplotlib
from nnrepair.spec.criteria import Near

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is shown where no pixel is given.
HIDDEN = 0.35
INCHES = 1.1


@torch.no_grad()
def completions(model: Completion, images: Tensor, masked: Sequence[Tensor], titles: Sequence[str]) -> Figure:
    """Draw what a network makes of images from several contexts, as in the paper: for each context the given pixels,
    the mean, and the standard deviation above the least that there is (white: the row's largest); the truth on top.

    Args:
        model: in eval mode.
        images: (n, channels, height, width) in [0, 1], a column each.
        masked: for each context, what the network sees, see `contexts.masked`.
        titles: of the contexts.
    """
    if len(masked) != len(titles):
        raise InvalidInput(f"Every context needs its title: {len(masked)} contexts, {len(titles)} titles.")
    rows, names = [images], ["image"]
    for some, title in zip(masked, titles, strict=True):
        found = model.distribution(some)
        mean, scale = (torch.unflatten(part.transpose(1, 2), 2, model.size) for part in found)
        more = (scale - LEAST).mean(1, keepdim=True)
        rows += [visible(some), mean, more / more.amax()]
        names += [title, "mean", "deviation"]
    cells = [[row[k] for k in range(len(images))] for row in rows]
    return _grid(cells, rows=names)


@torch.no_grad()
def gallery(before: nn.Module, after: Sequence[nn.Module], edits: Tensor, asked: Near, neighbours: Tensor) -> Figure:
    """Draw repairs, a row for each: context, completion before, what was asked, after, a neighbour before and after.

    The last column is by how much the neighbour changed, in absolute value, ten times as bright. The frame is around
    the pixels that were asked for.

    Args:
        before: the network as it was.
        after: the repaired one of each edit.
        edits: (n, channels + 1, height, width) masked images.
        asked: what was asked of their completions.
        neighbours: (n, channels + 1, height, width) masked images that were to stay.
    """
    if not len(after) == len(edits) == len(neighbours) == len(asked):
        raise InvalidInput("A gallery needs a repaired network, an edit and a neighbour for each of its rows.")
    near = torch.isfinite(asked.tol)
    cells, frames = [], []
    old, old_neighbours = before(edits), before(neighbours)
    for k, repaired in enumerate(after):
        new, neighbour = repaired(edits[k : k + 1])[0], repaired(neighbours[k : k + 1])[0]
        wanted = torch.where(near[k], asked.target[k], old[k])
        moved = 10 * (neighbour - old_neighbours[k]).abs()
        cells.append([visible(edits)[k], old[k], wanted, new, old_neighbours[k], neighbour, moved])
        frames.append(near[k].any(0))
    columns = ["context", "before", "asked", "after", "neighbour before", "after", "change x 10"]
    figure = _grid(cells, columns=columns)
    for k, frame in enumerate(frames):
        for column in (1, 2, 3):
            _frame(figure.axes[k * len(columns) + column], frame)
    return figure


def visible(masked: Tensor) -> Tensor:
    """Return (n, channels, height, width) the given pixels on grey."""
    return torch.where(masked[:, -1:] > 0, masked[:, :-1], HIDDEN)


def _frame(axis: Any, inside: Tensor) -> None:
    """Draw a frame around pixels (height, width)."""
    from matplotlib.patches import Rectangle

    place = inside.nonzero()
    if not len(place):
        return
    (top, left), (bottom, right) = place.amin(0).tolist(), place.amax(0).tolist()
    corner, size = (left - 0.5, top - 0.5), (right - left + 1, bottom - top + 1)
    axis.add_patch(Rectangle(corner, *size, fill=False, color="#CC6677", linewidth=1.2))


def _grid(cells: Sequence[Sequence[Tensor]], rows: Sequence[str] = (), columns: Sequence[str] = ()) -> Figure:
    """Draw images (channels, height, width) in rows and columns."""
    require_matplotlib()
    from matplotlib import pyplot as plt

    size = (INCHES * len(cells[0]) + (0.9 if rows else 0.1), INCHES * len(cells) + 0.25)
    figure, axes = plt.subplots(len(cells), len(cells[0]), figsize=size, layout="constrained", squeeze=False)
    for i, row in enumerate(cells):
        for j, image in enumerate(row):
            axis = axes[i, j]
            pixels = image.clamp(0, 1).permute(1, 2, 0).cpu().numpy()
            axis.imshow(pixels.repeat(3, 2) if pixels.shape[2] == 1 else pixels, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if i == 0 and columns:
                axis.set_title(columns[j], fontsize=7, color=INK)
            if j == 0 and rows:
                axis.set_ylabel(rows[i], fontsize=7, rotation=0, ha="right", va="center", color=INK)
    return figure
