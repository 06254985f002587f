"""JPEG copies of CIFAR-10 test images that ResNet-20 gets wrong, repaired in its last layer.

The last layer sees 64 features that no repair of it can change, so that the task's model is that layer, and its points
are features: the same network, without running 19 layers again for every method. The features are computed once (about
a minute) and stored in build/.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import ROOT
from benchmarks.neighbours import beside
from nnrepair import Edits, EditScope, LocalitySet
from nnrepair.domains.base import Task, drawn
from nnrepair.domains.files import find
from nnrepair.domains.images.cifar import ResNet, cifar10_jpeg, cifar10_lossless, lossless_rows, resnet20
from nnrepair.domains.vision import Images
from nnrepair.errors import InvalidInput
from nnrepair.files import read_arrays, write_arrays
from nnrepair.methods.episodes import Episode
from nnrepair.provenance import source

CACHE = ROOT / "build" / "cifar10-features.npz"
FORMAT = "nnrepair benchmark features 1"
#: The parts of the package that decide the features; no change elsewhere is to cost that minute again.
SOURCE = ("domains/files.py", "domains/images")
#: Size of the locality set; it is drawn from every fifth training image.
LOCALITY, EVERY = 2500, 5
#: Training images that episodes take their edits from, of those that the network gets wrong.
MISTAKES = 500


def head(network: ResNet) -> nn.Sequential:
    """Return the last layer as a network of its own, with the same name: features (n, 64) to logits (n, 10)."""
    return nn.Sequential(OrderedDict(linear=network.linear))


def task(model: str, seed: int, edits: int, *, neighbours: str = "none") -> Task:
    """Edits: JPEG test images; kept: JPEG training images; test sets: the other JPEG test images, and originals.

    Args:
        model, seed, edits: which network, draw, and how many.
        neighbours: "wanted" or "demanded" gives methods each edited image moved by a pixel in four other directions
            than in the edit scope.
    """
    if model != "resnet20":
        raise InvalidInput(f"The task has one model, resnet20; given {model!r}.")
    network, at = head(resnet20()), features()
    generator = torch.Generator().manual_seed(seed)
    place = drawn(torch.arange(len(at["wrong"])), edits, generator, "JPEG images that ResNet-20 gets wrong")
    mine = at["wrong"][place]
    labels = at["test labels"][mine]
    kept = torch.randperm(len(at["train"]), generator=generator)[:LOCALITY]
    rest = torch.ones(len(at["test"]), dtype=torch.bool)
    rest[mine] = False
    apart = ~torch.isin(at["lossless rows"], mine)  # an edited image's own original is no test of what was kept
    asked = Edits(at["test"][mine], labels)
    if neighbours != "none":
        asked = beside(asked, scope(at["diagonal"][place], labels), neighbours)
    return Task(
        model=network,
        edits=asked,
        locality_set=LocalitySet(at["train"][kept], at["train labels"][kept]),
        test_set={
            "jpeg": (at["test"][rest], at["test labels"][rest]),
            "lossless": (at["lossless"][apart], at["lossless labels"][apart]),
        },
        edit_scope=scope(at["neighbours"][place], labels),
        training=lambda: training(network, at),
    )


def training(network: nn.Module, at: dict[str, Tensor]) -> Episode:
    """Edits: JPEG training images; scope: the same, moved and mirrored; kept: JPEG training images."""
    wrong = at["train wrong"]
    with torch.no_grad():
        right = network(at["train"]).argmax(1) == at["train labels"]
    return Episode(
        Edits(at["train"][wrong], at["train labels"][wrong]),
        LocalitySet(at["train"][right], at["train labels"][right]),
        scope(at["train neighbours"], at["train labels"][wrong]),
    )


def scope(neighbours: Tensor, labels: Tensor) -> EditScope:
    """Return (n, each, 64) neighbours of n edits as an edit scope."""
    each = neighbours.shape[1]
    of = torch.arange(len(labels)).repeat_interleave(each)
    return EditScope(neighbours.flatten(0, 1), labels.repeat_interleave(each), of)


def shifted(images: Tensor) -> Tensor:
    """Return (n, 5, ...) for images (n, 3, h, w): mirrored, and moved by one pixel up, down, left and right.

    The row or column that becomes free repeats its neighbour.
    """
    return torch.cat([images.flip(3)[:, None], moved(images, (-1, 0), (1, 0), (0, -1), (0, 1))], 1)


def moved(images: Tensor, *ways: tuple[int, int]) -> Tensor:
    """Return (n, ways, ...) for images (n, 3, h, w): moved by at most one pixel down and right, in each of the ways."""
    wide = nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    h, w = images.shape[2:]
    return torch.stack([wide[:, :, 1 + a : 1 + a + h, 1 + b : 1 + b + w] for a, b in ways], 1)


def features() -> dict[str, Tensor]:
    """Return what the last layer sees of all images that tasks need, from the cache or computed anew."""
    made_from = _made_from()
    try:
        return read_arrays(CACHE, FORMAT, "file of features", lambda meta, arrays: _checked(meta, arrays, made_from))
    except (FileNotFoundError, InvalidInput):
        arrays = _computed()
        with suppress(OSError, InvalidInput):  # then the next one computes them again
            write_arrays(CACHE, FORMAT, {"made_from": made_from}, {name: t.numpy() for name, t in arrays.items()})
        return arrays


def _checked(meta: dict[str, Any], arrays: dict[str, Any], made_from: str) -> dict[str, Tensor]:
    if meta["made_from"] != made_from:
        raise ValueError("made from other images or weights")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _made_from() -> str:
    """Return the hash of all that decides the features: code, data, weights, and what computes."""
    files = ("cifar10_jpeg_test.npz", "cifar10_jpeg_train.npz", "cifar10_lossless.npz", "resnet20-12fca82f.th")
    digest = hashlib.sha256(Path(__file__).read_bytes() + f"{source(*SOURCE)} {torch.__version__}".encode())
    for file in files:
        path = find(f"cifar10/{file}")
        digest.update(path.read_bytes() if path is not None else b"missing")
    return digest.hexdigest()


@torch.no_grad()
def _computed() -> dict[str, Tensor]:
    network = resnet20()

    def seen(images: Tensor) -> Tensor:
        return torch.cat([network.features(part) for part in images.split(250)])

    test, lossless = cifar10_jpeg("test"), cifar10_lossless("test")
    train = cifar10_jpeg("train")[::EVERY]

    def near(images: Images, copies: Callable[[Tensor], Tensor]) -> Tensor:
        return seen(copies(images.inputs).flatten(0, 1)).unflatten(0, (len(images), -1))

    def mistakes(images: Images, at: Tensor, most: int) -> Tensor:
        wrong = (network.linear(at).argmax(1) != images.labels).nonzero()[:, 0]
        if len(wrong) > most:  # images are stored class by class
            wrong = wrong[torch.randperm(len(wrong), generator=torch.Generator().manual_seed(0))[:most]]
        return wrong

    at, at_train = seen(test.inputs), seen(train.inputs)
    wrong, train_wrong = mistakes(test, at, len(test)), mistakes(train, at_train, MISTAKES)
    return {
        "test": at,
        "test labels": test.labels,
        "wrong": wrong,
        "neighbours": near(test[wrong], shifted),
        "diagonal": near(test[wrong], lambda images: moved(images, (-1, -1), (-1, 1), (1, -1), (1, 1))),
        "train": at_train,
        "train labels": train.labels,
        "train wrong": train_wrong,
        "train neighbours": near(train[train_wrong], shifted),
        "lossless": seen(lossless.inputs),
        "lossless labels": lossless.labels,
        "lossless rows": lossless_rows("test"),
    }
