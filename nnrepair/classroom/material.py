"""What a class works with: a network, digits to pick, digits to keep, and a thousand that it has never seen."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from nnrepair.classroom.drawing import Paper
from nnrepair.domains.vision import Images, digits, digits_cnn, mnist, mnist_is_here, train_classifier
from nnrepair.errors import InvalidInput
from nnrepair.spec.edits import LocalitySet
from nnrepair.spec.running import outputs

Name = Literal["digits", "mnist"]

#: Digits that only measure what a repair does to others, and digits to pick: so many, at most so many of them misread.
OTHERS, PICKS, MISREAD = 1000, 36, 18
#: MNIST's training images that the network learns from, and passes over them: seconds, and mistakes enough to repair.
LEARNED, EPOCHS = 4000, 8
#: A repair keeps at most so many of the digits that the network learned from.
KEPT = 1000
#: Copies of a digit that show whether a repair carries over, and how far they are turned (degrees), moved (shares of
#: the picture's side) and scaled (shares of the size).
COPIES, TURNED, MOVED, SCALED = 20, 12.0, 0.07, 0.08


@dataclass(frozen=True, eq=False)
class Material:
    """What a class works with.

    Attributes:
        name: of the digits.
        told: a sentence about network and digits.
        model: the network as trained; (n, 1, side, side) in [0, 1] to scores (n, 10).
        last, inner: its last layer, and the one before.
        kept: digits that it learned from and reads rightly.
        others: digits that neither training nor any repair sees.
        picks: digits to choose from, misread ones among them.
        paper: where a drawing goes.
    """

    name: Name
    told: str
    model: nn.Module
    last: str
    inner: str
    kept: Images
    others: Images
    picks: Images
    paper: Paper

    @cached_property
    def locality_set(self) -> LocalitySet:
        """What a repair is to keep."""
        return LocalitySet(self.kept.inputs, self.kept.labels)

    @cached_property
    def misread(self) -> int:
        """How many of the digits to pick the network as trained misreads."""
        return int((outputs(self.model, self.picks.inputs).argmax(1) != self.picks.labels).sum())

    @cached_property
    def decisions(self) -> Tensor:
        """What the network as trained reads each of the others as."""
        return outputs(self.model, self.others.inputs).argmax(1)


def material(name: Name | None = None, seed: int = 0) -> Material:
    """Return network and digits, the same for the same seed; it takes seconds and downloads nothing.

    Args:
        name: "digits" comes with scikit-learn, "mnist" has larger pictures; None takes MNIST where it is on this
            machine.
        seed: of splits and training.

    Raises:
        InvalidInput: another name.
        DataUnavailable: MNIST is not on this machine, or scikit-learn is not installed.
    """
    if name is None:
        name = "mnist" if mnist_is_here() else "digits"
    if name not in ("digits", "mnist"):
        raise InvalidInput(f"The classroom has the digits 'digits' and 'mnist'; given {name!r}.")
    if name == "digits":
        learned, unseen = digits(test_fraction=0.7, seed=seed)
        model = train_classifier(digits_cnn(seed=seed), learned, seed=seed)
        paper, source = Paper(side=8, box=8.0, pen=0.65), "which come with scikit-learn"
    else:
        learned, unseen = mnist("train", flat=False)[:LEARNED], mnist("test", flat=False)[: 2 * OTHERS]
        model = train_classifier(_mnist_cnn(seed), learned, epochs=EPOCHS, seed=seed)
        paper, source = Paper(side=28, box=20.0, pen=1.3), "from MNIST"
    return _made(name, source, model, learned, unseen, paper, seed)


def _made(
    name: Name, source: str, model: nn.Module, learned: Images, unseen: Images, paper: Paper, seed: int
) -> Material:
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(unseen), generator=draw)
    others, pool = unseen[order[:OTHERS]], unseen[order[OTHERS:]]
    right = outputs(model, pool.inputs).argmax(1) == pool.labels
    wrong = (~right).nonzero()[:MISREAD, 0]
    picked = torch.cat([wrong, right.nonzero()[: PICKS - len(wrong), 0]])
    known = outputs(model, learned.inputs).argmax(1) == learned.labels
    share = float((outputs(model, others.inputs).argmax(1) == others.labels).double().mean())
    told = (
        f"A small network learned to read from {len(learned):,} handwritten digits {source}. Of {OTHERS:,} others it "
        f"gets {round(share * OTHERS)} right."
    )
    return Material(
        name,
        told,
        model,
        last="fc2",
        inner="fc1",
        kept=learned[known][:KEPT],
        others=others,
        picks=pool[picked[torch.randperm(len(picked), generator=draw)]],
        paper=paper,
    )


def _mnist_cnn(seed: int) -> nn.Sequential:
    """Build the digits' network for pictures of 28 x 28 pixels, which it halves first."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        first = OrderedDict[str, nn.Module](halved=nn.AvgPool2d(2))
        wider = nn.Linear(784, 32)
    layers = dict(digits_cnn(seed=seed).named_children())
    return nn.Sequential(first | layers | {"fc1": wider})


def copies(image: Tensor, seed: int = 0) -> Tensor:
    """Return COPIES pictures (COPIES, 1, side, side) of a digit (1, 1, side, side), each turned, moved and scaled."""
    draw = torch.Generator().manual_seed(seed)
    angle, right, down, size = 2 * torch.rand(4, COPIES, generator=draw) - 1
    angle, size = angle * math.radians(TURNED), 1 + SCALED * size
    across = torch.stack([size * angle.cos(), -size * angle.sin(), 2 * MOVED * right], 1)
    along = torch.stack([size * angle.sin(), size * angle.cos(), 2 * MOVED * down], 1)
    grid = nn.functional.affine_grid(torch.stack([across, along], 1), [COPIES, *image.shape[1:]], align_corners=False)
    return nn.functional.grid_sample(image.expand(COPIES, -1, -1, -1), grid, align_corners=False)
