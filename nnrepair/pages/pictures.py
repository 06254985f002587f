"""Pictures inside a page. Needs the extra `nnrepair[plot]`."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnrepair.extras import needed

_NO_METADATA: Any = {"Software": None}  # the same page for every version of matplotlib


def png(colours: NDArray[np.float64]) -> str:
    """Return grey levels (height, width) or colours (height, width, 3 or 4) in [0, 1] as a data URL."""
    with needed("plot", "Reports need matplotlib"):
        from matplotlib.image import imsave
    if colours.ndim == 2:
        colours = np.repeat(colours[..., None], 3, 2)
    buffer = io.BytesIO()
    imsave(buffer, np.round(255 * colours).astype(np.uint8), format="png", metadata=_NO_METADATA)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
