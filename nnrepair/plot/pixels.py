"""Images and heat maps as colours, for pictures inside a page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nnrepair.errors import InvalidInput
from nnrepair.spec.inputs import described

Array = npt.NDArray[np.float64]

#: A heat map shows at most this many cells along each axis.
MOST_CELLS = 512

_POSITIVE, _NEGATIVE = (217, 95, 2), (44, 112, 201)  # orange and blue: told apart by colour-blind readers too


def pictures(inputs: Any) -> Array:
    """Return (n, height, width) or (n, height, width, 3) in [0, 1]."""
    if not isinstance(inputs, Tensor):
        raise InvalidInput(f"A report about images needs a tensor of them, got {described(inputs)}.")
    images = inputs.detach().cpu().double().numpy()
    side = math.isqrt(images[0].size)
    if images.ndim == 4 and images.shape[1] == 3:
        images = np.moveaxis(images, 1, 3)
    elif images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    elif images.ndim == 2 and side * side == images.shape[1]:
        images = images.reshape(-1, side, side)
    elif images.ndim != 3:
        raise InvalidInput(
            f"A report about images needs inputs (n, height, width), (n, 1 or 3, height, width) or (n, side * side), "
            f"given {tuple(inputs.shape)}."
        )
    low, high = images.min(), images.max()
    return np.asarray((images - low) / ((high - low) or 1.0))


def heat(matrix: Array) -> Array:
    """Return the colours (rows, columns, 4) of a change, of at most MOST_CELLS cells along each axis."""
    small = pooled(matrix)
    share = np.abs(small) / (float(np.abs(matrix).max()) or 1.0)
    colours = np.zeros((*small.shape, 4))
    colours[..., :3] = np.where((small > 0)[..., None], np.array(_POSITIVE), np.array(_NEGATIVE)) / 255
    colours[..., 3] = np.where(small != 0, 0.3 + 0.7 * share, 0.0)  # zero is clear, so that it suits light and dark
    return colours


def pooled(matrix: Array) -> Array:
    """Return a matrix of at most MOST_CELLS x MOST_CELLS, each cell the entry of largest magnitude of its block."""
    for axis in (0, 1):
        step = -(-matrix.shape[axis] // MOST_CELLS)
        if step > 1:
            rows = np.moveaxis(matrix, axis, 0)
            rows = np.pad(rows, ((0, -len(rows) % step), (0, 0))).reshape(-1, step, rows.shape[1])
            rows = np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1)[:, 0]
            matrix = np.asarray(np.moveaxis(rows, 0, axis))
    return matrix
