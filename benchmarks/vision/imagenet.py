"""What the end of SqueezeNet sees: of ImageNet's samples, of those moved and mirrored, and of vehicles on snow."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.vision.cut import cut_squeezenet, seen, stored
from nnrepair.domains.images.samples import Photographs, imagenet_samples, vehicles_on_snow
from nnrepair.domains.images.squeezenet import squeezenet

FILES = tuple(
    f"imagenet/{name}.npz" for name in ("imagenet_sample_1000", "vehicles_on_snow", "squeezenet1_1_caffe_torchvision")
)
#: By name, the layer or module with which the end begins.
ENDS = {"squeezenet": "classifier", "squeezenet-fire": "features.12"}
#: Pixels by which neighbours of a sample are moved.
MOVED = 8
#: Rows of a road that are covered with snow, of 224.
COVERED = 80
#: Photographs that are decoded together.
BATCH = 50


def head(name: str = "squeezenet") -> nn.Sequential:
    """Return the end, (n, 512, 13, 13) to logits (n, 1000): the last layer, `classifier.1`, or the last module too."""
    return cut_squeezenet(squeezenet(), ENDS[name])[1]


def features(name: str = "squeezenet") -> dict[str, Tensor]:
    """Return, from the cache or computed anew (about a minute and 0.8 GB of file):

    `samples` (1000, 512, 13, 13) with `labels`, and `right`, whether the network reads them right; `neighbours`
    (wrong, 3, 512, 13, 13) of those it reads wrong, in their order: mirrored, moved left, moved up; and `snow` (127,
    512, 13, 13) with `snow labels` and `snow right`.
    """
    parts = cut_squeezenet(squeezenet(), ENDS[name])
    return stored(f"{name}-features", FILES, Path(__file__), lambda: _computed(*parts))


@torch.no_grad()
def _computed(before: nn.Module, rest: nn.Module) -> dict[str, Tensor]:
    def through(photographs: Photographs) -> tuple[Tensor, Tensor]:
        parts = torch.arange(len(photographs)).split(BATCH)
        at = torch.cat([before(photographs.images(part).inputs) for part in parts])
        return at, torch.cat([rest(part) for part in at.split(BATCH)]).argmax(1) == photographs.labels

    photographs, snow = imagenet_samples(), vehicles_on_snow()
    at, right = through(photographs)
    snow_at, snow_right = through(snow)
    wide = imagenet_samples(224 + 2 * MOVED)
    wrong = (~right).nonzero()[:, 0]
    near = [seen(before, neighbours(wide.images(part).inputs).flatten(0, 1)) for part in wrong.split(BATCH)]
    return {
        "samples": at,
        "labels": photographs.labels,
        "right": right,
        "neighbours": torch.cat(near).unflatten(0, (len(wrong), -1)),
        "snow": snow_at,
        "snow labels": snow.labels,
        "snow right": snow_right,
    }


def exemplars() -> dict[str, Tensor]:
    """Return samples that are read wrong once snow covers their lowest rows, from the cache or computed anew:

    `index` (m,), which samples; `snow` (m, 512, 13, 13), what the last layer sees of them under the snow; `places` (13,
    13), which places have some of these rows; and `used` (7,), the photographs whose rows they are, one of each class.
    """
    parts = cut_squeezenet(squeezenet(), ENDS["squeezenet"])
    return stored("squeezenet-exemplars", FILES, Path(__file__), lambda: _covered(*parts))


@torch.no_grad()
def _covered(before: nn.Module, rest: nn.Module) -> dict[str, Tensor]:
    photographs, snow, right = imagenet_samples(), vehicles_on_snow(), features()["right"].nonzero()[:, 0]
    used = torch.stack([(snow.labels == label).nonzero()[0, 0] for label in snow.labels.unique()])
    rows, found, index = snow.images(used).inputs[:, :, -COVERED:], [], []
    for part in right.split(BATCH):
        images = photographs.images(part).inputs
        images[:, :, -COVERED:] = rows[part % len(rows)]
        at = before(images)
        wrong = rest(at).argmax(1) != photographs.labels[part]
        found.append(at[wrong])
        index.append(part[wrong])
    seen_at = torch.cat(found)
    there = torch.zeros(1, images.shape[2], images.shape[3])
    there[:, -COVERED:] = 1.0
    places = nn.functional.adaptive_max_pool2d(there, seen_at.shape[2:])[0] > 0
    return {"index": torch.cat(index), "snow": seen_at, "places": places, "used": used}


def neighbours(wide: Tensor) -> Tensor:
    """Return (n, 3, c, h, w) of images (n, c, h + 16, w + 16): their middle mirrored, and moved left and up."""
    edge = MOVED
    middle = wide[:, :, edge:-edge, edge:-edge]
    return torch.stack([middle.flip(3), wide[:, :, edge:-edge, 2 * edge :], wide[:, :, 2 * edge :, edge:-edge]], 1)
