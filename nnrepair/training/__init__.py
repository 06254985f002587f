"""One loop for all training.

Of small networks, first guesses, fine-tuning, and editors that are trained first.
"""

from nnrepair.training.batches import Batches
from nnrepair.training.checkpoint import Checkpoint, Stateful
from nnrepair.training.loop import Descent, Trained, Training
from nnrepair.training.record import Record, warmed_cosine

__all__ = ["Batches", "Checkpoint", "Descent", "Record", "Stateful", "Trained", "Training", "warmed_cosine"]
