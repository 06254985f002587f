"""Networks carrying edits beside weights.

All of them are imported here, so that files can name them.
"""

from nnrepair.wrappers.base import Added, Wrapper
from nnrepair.wrappers.decoupled import Decoupled
from nnrepair.wrappers.stitched import OwnMLP, Stitched

__all__ = ["Added", "Decoupled", "OwnMLP", "Stitched", "Wrapper"]
