"""What a classifier makes of a data set: which items it reads right, and which wrong."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from nnrepair.errors import InvalidInput
from nnrepair.network import private_copy
from nnrepair.progress import progress_bar
from nnrepair.spec.given import as_inputs
from nnrepair.spec.inputs import batches, to_like
from nnrepair.spec.problem import check_model, refuse_other_classes
from nnrepair.spec.running import call, undisturbed
from nnrepair.spec.streams import Stream


@dataclass(frozen=True, eq=False)
class Classified:
    """A data set beside what a model says of it.

    Attributes:
        dataset: the items (image, label).
        labels: (n,) int64, the data set's.
        predicted: (n,) int64, the highest output.
    """

    dataset: Any
    labels: Tensor
    predicted: Tensor

    @cached_property
    def wrong(self) -> Subset[Any]:
        """The items that the model reads wrong: `Edits(found.wrong)`."""
        return Subset(self.dataset, (self.labels != self.predicted).nonzero()[:, 0].tolist())

    @cached_property
    def right(self) -> Subset[Any]:
        """The items that it reads right: `LocalitySet(found.right)`."""
        return Subset(self.dataset, (self.labels == self.predicted).nonzero()[:, 0].tolist())

    @property
    def accuracy(self) -> float:
        """The share that it reads right."""
        return float((self.labels == self.predicted).double().mean())


@torch.no_grad()
def classified(model: nn.Module, dataset: Any, *, progress: bool = False) -> Classified:
    """Run a model once over a data set, a batch at a time, and say which items it reads right.

    Args:
        model: scores of classes; it runs in eval mode and is left as it was.
        dataset: items (image, label) by number, a loader of them, whose batch size is used, or a pair of tensors
            (images, labels).
        progress: show a progress bar on stderr.

    Raises:
        InvalidInput: no such items, or labels that are no outputs of the model.
        UnsupportedModel: the model fails on some of them, or returns no scores of classes.
    """
    if isinstance(dataset, tuple) and len(dataset) == 2 and all(isinstance(part, Tensor) for part in dataset):
        dataset = TensorDataset(*dataset)
    private = private_copy(model)
    like = check_model(private)
    inputs = as_inputs(dataset, "the data set")
    if not isinstance(inputs, Stream) or not inputs.labelled:
        raise InvalidInput(f"classified: items must be (image, label), given {type(dataset).__name__} without labels.")
    found = list[Tensor]()
    steps, points = batches(inputs), to_like(inputs, like)
    with undisturbed(None), torch.no_grad(), progress_bar("classify images", progress) as report:
        for k, step in enumerate(steps):
            y = call(private, points[step])
            if y.ndim != 2 or y.shape[1] < 2 or len(y) != len(step):
                raise InvalidInput(
                    f"classified: the model must return a score for each of several classes, got {tuple(y.shape)} for "
                    f"{len(step)} images."
                )
            if k == 0:
                refuse_other_classes(inputs.numbered, y)
            found.append(y.argmax(1).cpu())
            report(f"batch {k + 1} of {len(steps)}")
    labels = inputs.labels()
    if labels.ndim != 1 or labels.dtype.is_floating_point or not (labels.min() >= 0 and labels.max() < y.shape[1]):
        raise InvalidInput(
            f"classified: labels must be numbers of outputs, 0 to {y.shape[1] - 1}, got {labels.dtype} in "
            f"{labels.min()} to {labels.max()}. Folder(root, transform, classes=...) makes them of folders' names."
        )
    whole: Any = dataset.dataset if isinstance(dataset, DataLoader) else dataset
    items = whole if torch.equal(inputs.index, torch.arange(len(whole))) else Subset(whole, inputs.index.tolist())
    return Classified(items, labels.long(), torch.cat(found))
