"""Handwritten digits that a small convolutional network misreads; nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnrepair.domains.base import Task, drawn
from nnrepair.domains.vision import Images, digits, digits_cnn, train_classifier
from nnrepair.errors import InvalidInput
from nnrepair.methods.episodes import Episode
from nnrepair.spec.edits import Edits, EditScope, LocalitySet


def task(model: str = "cnn", seed: int = 0, edits: int | None = None) -> Task:
    """Edits: misread test digits; kept: training digits; test set: the other test digits; scope: digits moved a pixel.

    Args:
        model: "cnn", the only network here (11,034 parameters).
        seed: of the split, the training and the drawing.
        edits: how many of the misread test digits, in random order; None: all of them, in the order of the test digits.

    Raises:
        InvalidInput: another model, or more edits than there are misread digits.
        DataUnavailable: scikit-learn is not installed.
    """
    if model != "cnn":
        raise InvalidInput(f"The digits have one network, 'cnn'; given {model!r}.")
    train, test = digits(seed=seed)
    network = train_classifier(digits_cnn(seed=seed), train, seed=seed)
    right, known = _right(network, test), _right(network, train)
    mine = torch.nonzero(~right).flatten()
    if edits is not None:
        mine = drawn(mine, edits, torch.Generator().manual_seed(seed), f"digits that it misreads with seed {seed}")
    if not len(mine):
        raise InvalidInput(f"With seed {seed} the classifier makes no mistake to repair. Choose another seed.")
    rest = torch.ones(len(test), dtype=torch.bool)
    rest[mine] = False
    return Task(
        model=network,
        edits=Edits(test[mine].inputs, test[mine].labels),
        locality_set=LocalitySet(train[known].inputs, train[known].labels),
        test_set={"test": (test[rest].inputs, test[rest].labels)},
        edit_scope=moved(test[mine]),
        training=lambda: Episode(
            Edits(train[~known].inputs, train[~known].labels),
            LocalitySet(train[known].inputs, train[known].labels),
            moved(train[~known]),
        ),
    )


def moved(images: Images) -> EditScope:
    """Return each digit moved by one pixel to the left, to the right, up and down; what becomes free is empty."""
    wide = nn.functional.pad(images.inputs, (1, 1, 1, 1))
    h, w = images.inputs.shape[2:]
    each = [wide[:, :, a : a + h, b : b + w] for a, b in ((1, 2), (1, 0), (2, 1), (0, 1))]
    return EditScope(torch.cat(each), images.labels.repeat(len(each)), of=torch.arange(len(images)).repeat(len(each)))


@torch.no_grad()
def _right(network: nn.Module, images: Images) -> Tensor:
    y: Tensor = network(images.inputs)
    return y.argmax(1) == images.labels
