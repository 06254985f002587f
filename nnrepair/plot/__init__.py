"""Pictures, and pages with them."""

from nnrepair.plot.pictures import region, require_matplotlib, sequence

__all__ = ["region", "require_matplotlib", "sequence"]
