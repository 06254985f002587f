"""Colours, and the package that draws."""

from __future__ import annotations

from nnrepair.extras import needed

# Paul Tol's scheme for light fills, which colour-blind readers tell apart too; lines and marks stay legible on them.
PALETTE = ("#77AADD", "#EE8866", "#EEDD88", "#44BB99", "#FFAABB", "#99DDFF", "#AAAA00", "#BBCC33", "#C2A5CF")
# And his "muted" scheme for lines.
STRONG = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
OTHER, INK = "#DDDDDD", "#222222"
#: Cells along each axis of a picture, at most.
MOST_CELLS = 4000


def require_matplotlib() -> None:
    """Say how to install matplotlib where it is missing."""
    with needed("plot", "Pictures need matplotlib"):
        import matplotlib  # noqa: F401
