"""Networks carrying edits beside weights.

All of them are imported here, so that files can name them.
"""

from nnrepair.wrappers.base import Added, Wrapper
from nnrepair.wrappers.codebook import Codebook
from nnrepair.wrappers.decoupled import Decoupled
from nnrepair.wrappers.stitched import OwnMLP, Stitched

__all__ = ["Added", "Codebook", "Decoupled", "OwnMLP", "Stitched", "Wrapper"]
