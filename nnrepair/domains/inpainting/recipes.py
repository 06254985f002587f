"""Networks by name, and how each is trained. Those whose files lie in `trained/` come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnrepair.domains import recipes
from nnrepair.domains.inpainting import contexts, data
from nnrepair.domains.inpainting.networks import CNP, AttentiveCNP
from nnrepair.domains.inpainting.training import error, train_inpainter
from nnrepair.provenance import source
from nnrepair.training import Record

FOLDER = Path(__file__).parent / "trained"
FORMAT, COMMAND = "nnrepair-inpainter-1", "python -m nnrepair.domains.inpainting"
#: Images that a trained network is measured on, at most.
HELD_OUT = 1000
#: Contexts that a network is measured at: kind and number of pixels.
MEASURED: tuple[tuple[contexts.Kind, int], ...] = (
    *(("random", count) for count in (10, 100, 1000)),
    *(("ordered", count) for count in (10, 100, 1000)),
)


@dataclass(frozen=True)
class Recipe:
    """One network and its training.

    Attributes:
        data: "celeba", "mnist" or "digits" (those of scikit-learn).
        size: of the images, in pixels.
        attentive: which of the two networks.
        steps: of the training.
        width, last: of the network's layers.
        targets: pixels that a step asks for.
        mirrored: whether images are shown mirrored too.
        least, most: pixels of the smallest and the largest context in training.
        seed: of weights and training.
    """

    data: str
    size: int
    attentive: bool
    steps: int
    width: int = 128
    last: int = 256
    targets: int = 128
    mirrored: bool = True
    least: int = 3
    most: int = 1000
    seed: int = 0

    def images(self, split: str) -> Tensor:
        """Return the images (n, channels, size, size), uint8."""
        return data.faces(split, self.size) if self.data == "celeba" else data.digits(split, self.size)

    def untrained(self) -> CNP:
        """Return the network before its training."""
        channels = 3 if self.data == "celeba" else 1
        return (AttentiveCNP if self.attentive else CNP)(channels, self.width, self.last, self.seed)


RECIPES: Mapping[str, Recipe] = {
    "celeba-32": Recipe("celeba", 32, False, 20_000, targets=200),
    "celeba-32-attentive": Recipe("celeba", 32, True, 10_000),
    "mnist-attentive": Recipe("mnist", 28, True, 6000, mirrored=False, most=766),
    "celeba-64": Recipe("celeba", 64, False, 2500, most=4000),
    "mnist": Recipe("mnist", 28, False, 13_000, mirrored=False, most=766),
    "digits": Recipe("digits", 8, True, 700, 64, 128, targets=200, least=1, most=60, mirrored=False),
}


def recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        InvalidInput: there is none of that name.
    """
    return recipes.named(name, RECIPES)


def trained(name: str, folder: Path = FOLDER) -> CNP:
    """Load a trained network, in eval mode.

    >>> trained("digits").channels
    1

    Raises:
        InvalidInput: there is none of that name, or its file is damaged.
        DataUnavailable: it is a recipe whose network does not come with the package; train it first.
    """
    model = recipe(name).untrained()
    recipes.load(model, folder, name, FORMAT, COMMAND)
    return model.eval()


def measured(model: CNP, images: Tensor, seed: int = 0) -> dict[str, float]:
    """Return the mean squared error on images (n, channels, height, width) in [0, 1], by context."""
    pixels = images.shape[2] * images.shape[3]
    found = {}
    for kind, count in MEASURED:
        count = min(count, pixels * 1000 // 1024)  # as large a part of smaller images
        given = contexts.context(kind, images, count, torch.Generator().manual_seed(seed))
        found[f"{kind} {count}"] = float(error(model, images, given).mean())
    return found


def train(name: str, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train a network by its recipe and write it with its record to a folder; return the record.

    Progress is stored beside them and deleted at the end; the same call goes on after a kill.
    """
    made, record, code = recipe(name), Record(), source("domains/inpainting", "training")
    folder.mkdir(parents=True, exist_ok=True)
    progress_file = folder / f"{name}.progress.safetensors"
    model = train_inpainter(
        made.untrained(),
        made.images("train"),
        steps=made.steps,
        targets=made.targets,
        mirrored=made.mirrored,
        least=made.least,
        most=made.most,
        seed=made.seed,
        progress=progress,
        resume=progress_file,
        record=record,
    )
    held_out = data.grey(made.images("test")[:HELD_OUT])
    mse = {at: round(value, 5) for at, value in measured(model, held_out).items()}
    figures = {"held_out_images": len(held_out), "mse": mse}
    told = recipes.store(model, folder, name, FORMAT, made=made, record=record, code=code, figures=figures)
    progress_file.unlink(missing_ok=True)
    return told
