"""Networks carrying edits beside weights.

All of them are imported here, so that files can name them.
"""

from nnrepair.wrappers.base import Added, Wrapper
from nnrepair.wrappers.codebook import Codebook
from nnrepair.wrappers.conditioned import Conditioned
from nnrepair.wrappers.decoupled import Decoupled
from nnrepair.wrappers.inserted import EditingBlock, Inserted
from nnrepair.wrappers.parallel import Parallel
from nnrepair.wrappers.regional import Regional
from nnrepair.wrappers.scoped import Scoped
from nnrepair.wrappers.stitched import OwnMLP, Stitched

__all__ = [
    "Added",
    "Codebook",
    "Conditioned",
    "Decoupled",
    "EditingBlock",
    "Inserted",
    "OwnMLP",
    "Parallel",
    "Regional",
    "Scoped",
    "Stitched",
    "Wrapper",
]
