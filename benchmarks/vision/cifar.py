"""What the ends of CIFAR-10's ResNets see: of JPEG copies, originals, and originals that are compressed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cifar.task import shifted
from benchmarks.vision.cut import cut_resnet, seen, stored
from nnrepair.domains.images.cifar import ResNet, cifar10_jpeg, cifar10_lossless, lossless_rows, resnet20, resnet56

FILES = tuple(f"cifar10/cifar10_{name}.npz" for name in ("jpeg_test", "jpeg_train", "lossless"))
#: By name: the network, its weights, and the stage or block with which its end begins.
ENDS: dict[str, tuple[Callable[[], ResNet], str, str]] = {
    "resnet20": (resnet20, "cifar10/resnet20-12fca82f.th", "layer3"),
    "resnet56": (resnet56, "cifar10/resnet56-4bfd9763.th", "layer3.8"),
}
#: Every so manieth training image is used, and so many of those that the network reads wrong have neighbours.
EVERY, MISTAKES = 5, 500
#: Qualities of compression: of edits, and of their neighbours.
QUALITY, NEAR = 30, (20, 45)


def parts(network: str) -> tuple[Callable[[Tensor], Tensor], nn.Sequential]:
    """Return what comes before the end of a network, and the end as a network of its own."""
    make, _, first = ENDS[network]
    return cut_resnet(make(), first)


def head(network: str = "resnet20") -> nn.Sequential:
    """Return the end: ResNet-20's last stage with what follows, (n, 32, 16, 16) to logits (n, 10), or 56's last block.

    Layers keep their names, `layer3.0.conv1` to `linear`.
    """
    return parts(network)[1]


def copies(network: str = "resnet20") -> dict[str, Tensor]:
    """Return what the end sees of JPEG copies, from the cache or computed anew (some minutes, 0.8 GB).

    `test`, `train`, `lossless` (n, ...), each with `labels`; `test mistakes`, `train mistakes`: rows that the network
    reads wrong; `test wrong`, `train wrong`: those of them that have neighbours, which are `test neighbours`, `train
    neighbours` (n, 2, ...), mirrored and moved by one pixel; `lossless rows`: of `test`, with the same pictures.
    """
    files = (*FILES, ENDS[network][1])
    return stored(f"{network}-copies", files, Path(__file__), lambda: _copies(*parts(network)))


def compressed() -> dict[str, Tensor]:
    """Return what it sees of original training images and of the same ones compressed, from the cache or anew.

    `originals` and `compressed` (4000, 32, 16, 16) with `labels`; `read right`: rows whose originals are read right;
    `broken`: those of them that are read wrong once they are compressed, with `broken neighbours` (n, 2, 32, 16, 16),
    compressed to other qualities; `lossless`: original test images, with `lossless labels`.
    """
    return stored("resnet20-compressed", (*FILES, ENDS["resnet20"][1]), Path(__file__), _compressed)


@torch.no_grad()
def _copies(before: Callable[[Tensor], Tensor], rest: nn.Module) -> dict[str, Tensor]:
    test, lossless, train = cifar10_jpeg("test"), cifar10_lossless("test"), cifar10_jpeg("train")[::EVERY]
    found: dict[str, Tensor] = {"lossless rows": lossless_rows("test")}
    for name, images, most in (("test", test, len(test)), ("train", train, MISTAKES), ("lossless", lossless, 0)):
        found[name], found[f"{name} labels"] = seen(before, images.inputs), images.labels
        mistakes = (seen(rest, found[name]).argmax(1) != images.labels).nonzero()[:, 0]
        wrong = mistakes[:most].clone()
        if most:
            found[f"{name} mistakes"] = mistakes
            near = shifted(images[wrong].inputs)[:, [0, 3]].flatten(0, 1)
            found[f"{name} wrong"] = wrong
            found[f"{name} neighbours"] = seen(before, near).unflatten(0, (len(wrong), -1))
    return found


@torch.no_grad()
def _compressed() -> dict[str, Tensor]:
    before, rest = parts("resnet20")
    images, test = cifar10_lossless("train"), cifar10_lossless("test")
    originals = seen(before, images.inputs)
    degraded = seen(before, saved(images.inputs, QUALITY))
    right, still = (seen(rest, at).argmax(1) == images.labels for at in (originals, degraded))
    broken = (right & ~still).nonzero()[:, 0]
    near = torch.stack([saved(images.inputs[broken], quality) for quality in NEAR], 1).flatten(0, 1)
    return {
        "originals": originals,
        "compressed": degraded,
        "labels": images.labels,
        "read right": right.nonzero()[:, 0],
        "lossless": seen(before, test.inputs),
        "lossless labels": test.labels,
        "broken": broken,
        "broken neighbours": seen(before, near).unflatten(0, (len(broken), -1)),
    }


def saved(images: Tensor, quality: int) -> Tensor:
    """Return images (n, 3, h, w) in [0, 1] as they are after saving them as JPEG of a quality from 1 to 95."""
    from PIL import Image

    def one(pixels: np.ndarray) -> np.ndarray:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            return np.array(image)

    pixels = images.movedim(1, -1).mul(255).round().byte().numpy()
    return torch.from_numpy(np.stack([one(each) for each in pixels])).float().div(255).movedim(-1, 1).contiguous()
