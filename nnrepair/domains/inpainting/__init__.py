"""Images completed by neural processes."""

from nnrepair.domains.inpainting.contexts import context, masked
from nnrepair.domains.inpainting.data import digits, faces, grey
from nnrepair.domains.inpainting.networks import CNP, AttentiveCNP, Completion, grid
from nnrepair.domains.inpainting.recipes import trained
from nnrepair.domains.inpainting.task import patched, task
from nnrepair.domains.inpainting.training import error, train_inpainter

__all__ = [
    "CNP",
    "AttentiveCNP",
    "Completion",
    "context",
    "digits",
    "error",
    "faces",
    "grey",
    "grid",
    "masked",
    "patched",
    "task",
    "train_inpainter",
    "trained",
]
