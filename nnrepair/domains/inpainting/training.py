"""Training of networks that complete images, and the measure that they are compared by."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.domains.inpainting import contexts
from nnrepair.domains.inpainting.data import grey
from nnrepair.domains.inpainting.networks import CNP, Completion, features, grid
from nnrepair.errors import InvalidInput
from nnrepair.progress import progress_bar
from nnrepair.provenance import digest
from nnrepair.spec.network import copied
from nnrepair.training import Batches, Checkpoint, Descent, Record, Training, warmed_cosine

#: How many points the curve of a training has.
CURVE = 40
#: Images that complete together when errors are measured.
TOGETHER = 50


def train_inpainter(
    model: CNP,
    images: Tensor,
    *,
    steps: int = 13_000,
    batch_size: int = 16,
    targets: int = 128,
    least: int = 3,
    most: int = 1000,
    mirrored: bool = True,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool = False,
    resume: str | Path | None = None,
    record: Record | None = None,
) -> CNP:
    """Train a copy of a CNP to complete images, and return it in eval mode.

    Each step draws images, a random context of as many pixels for all of them, and other pixels, given ones among
    them, whose likelihood is raised. Adam warms up over 3 % of the steps and ends along a cosine. The model given and
    the global random state stay as they were; the same seed gives the same result on the CPU.

    Args:
        model: the network.
        images: (n, channels, height, width) uint8.
        steps: of Adam.
        batch_size: images in a step; many small steps did better than few large ones.
        targets: pixels of each image that are asked for in a step.
        least, most: pixels in a context; numbers between are drawn evenly by their logarithms.
        mirrored: whether to show half of the images mirrored.
        lr: Adam's largest step size.
        seed: of every random choice.
        progress: show a progress bar on stderr.
        resume: a file (.safetensors) in which progress is stored; the same call goes on from there.
        record: told how it went.

    Raises:
        InvalidInput: what cannot be trained, or `resume` is the progress of another training.

    Warns when the loss becomes infinite or no number; the network is then that of the step before.
    """
    _check(model, images, steps, batch_size, targets, lr)
    model, record = copied(model).train(), Record() if record is None else record
    assert isinstance(model, CNP)
    pixels = images.shape[2] * images.shape[3]
    most = min(most, pixels)
    generator = torch.Generator().manual_seed(seed)
    batches = Batches(len(images), batch_size, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    step = Descent(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: warmed_cosine(k, steps)), clip=1.0)
    places = features(grid(*images.shape[2:]))

    def loss() -> Tensor:
        some = grey(images[batches.next()])
        if mirrored:
            some = torch.where(torch.rand(len(some), 1, 1, 1, generator=generator) < 0.5, some.flip(3), some)
        values = some.flatten(2).transpose(1, 2)
        count = int(contexts.counts(1, least, most, generator))
        given = torch.rand(len(some), pixels, generator=generator).argsort(1)[:, :count]
        asked = torch.randint(pixels, (len(some), targets), generator=generator)
        found = model.outputs(places[given], _at(values, given), places[asked], torch.ones(*given.shape, 1))
        off = (_at(values, asked) - found.mean) / found.scale
        lost = (off.square() / 2 + found.scale.log()).mean()
        record.add(float(lost.detach()), max(1, steps // CURVE))
        return lost

    def update(lost: Tensor) -> None:
        step(lost)
        record.lap()

    with torch.enable_grad(), progress_bar("train", progress) as report:
        training = Training(
            loss,
            update,
            steps,
            model=model,
            state={**step.state, "random numbers": generator, "batches": batches, "record": record},
            checkpoint=_checkpoint(resume, model, images, locals()),
            report=report,
        )
        record.lap()
        training.run().warn()
    model.zero_grad()
    return model.eval()


@torch.no_grad()
def error(model: CNP, images: Tensor, given: Tensor) -> Tensor:
    """Return (n,) the mean squared error of every image's completion, over all its pixels and channels, float64.

    Args:
        model: in eval mode.
        images: (n, channels, height, width) in [0, 1].
        given: (n, 1, height, width) bool, the context.
    """
    height, width = images.shape[2:]
    completion = Completion(model, height, width, int(given.flatten(1).sum(1).max())).eval()
    masked = contexts.masked(images, given)
    found = [
        (completion(some) - true).double().square().flatten(1).mean(1)
        for some, true in zip(torch.split(masked, TOGETHER), torch.split(images, TOGETHER), strict=True)
    ]
    return torch.cat(found)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Return (n, k, channels) the values (n, pixels, channels) of some pixels (n, k)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def _checkpoint(resume: str | Path | None, model: nn.Module, images: Tensor, told: dict[str, Any]) -> Checkpoint | None:
    if resume is None:
        return None
    names = ("steps", "batch_size", "targets", "least", "most", "mirrored", "lr", "seed")
    key = {"model": digest(model), "images": digest(images)} | {name: repr(told[name]) for name in names}
    return Checkpoint(Path(resume), key)


def _check(model: CNP, images: Tensor, steps: int, batch_size: int, targets: int, lr: float) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8 or len(images) == 0:
        raise InvalidInput(
            f"Images to train on are uint8 (n, channels, height, width), grey levels of 0 to 255; given {images.dtype} "
            f"{tuple(images.shape)}."
        )
    if images.shape[1] != model.channels:
        raise InvalidInput(f"This CNP has {model.channels} channels, the images {images.shape[1]}.")
    if min(steps, batch_size, targets) < 1 or not (lr > 0 and math.isfinite(lr)):
        raise InvalidInput(
            f"steps, batch_size, targets and lr must be positive, given {steps}, {batch_size}, {targets} and {lr}."
        )
