"""Tasks with photographs: real mistakes, vehicles on snow, and JPEG as a corruption.

`squeezenet`          samples of ImageNet that SqueezeNet 1.1 reads wrong; half of the others are kept.
`squeezenet-fire`     the same, with the last module of convolutions too.
`squeezenet-snow`     vehicles on snow that it reads wrong, half of each class; the other half says how many follow.
`squeezenet-exemplars`  samples that it reads wrong once snow covers their lowest rows, and what they were before.
`resnet20`            JPEG copies of CIFAR-10's test images that ResNet-20 reads wrong.
`resnet56`            the same of ResNet-56.
`resnet20-jpeg`       images that it reads right, and wrong once they are compressed to a quality of 30.

Networks begin where repairs do (`benchmarks.vision.cut`), and points are what is computed up to there. No image is an
edit, kept and tested at once, not even in two versions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.cifar.task import scope
from benchmarks.vision import cifar, imagenet
from benchmarks.vision.cut import BUILD
from nnrepair import Edits, EditScope, Exemplars, LocalitySet
from nnrepair.domains.base import Task, drawn
from nnrepair.errors import InvalidInput, near_matches
from nnrepair.methods.episodes import Episode

#: JPEG copies to keep.
KEPT = 4000
#: What takes minutes to compute, once.
SAMPLES, COPIES, DEEPER, COMPRESSED = (
    BUILD / f"{name}.safetensors"
    for name in ("squeezenet-features", "resnet20-copies", "resnet56-copies", "resnet20-compressed")
)


def task(model: str, seed: int, edits: int) -> Task:
    """Return a task; the seed draws edits, points to keep and halves."""
    if model not in MODELS:
        raise InvalidInput(f"Unknown model {model!r}.{near_matches(model, MODELS)} Models: {', '.join(MODELS)}.")
    return MODELS[model](edits, torch.Generator().manual_seed(seed))


def samples(edits: int, generator: torch.Generator, name: str = "squeezenet") -> Task:
    """Kept: half of the samples that are read right.

    Test sets: the other half; these with the misread ones that are no edits, as drawdown is published; and snow. There
    are no episodes, as no misread sample is left for them.
    """
    at = imagenet.features(name)
    wrong = (~at["right"]).nonzero()[:, 0]
    place = drawn(torch.arange(len(wrong)), edits, generator, "samples that SqueezeNet reads wrong")
    others = torch.ones(len(wrong), dtype=torch.bool)
    others[place] = False
    kept, apart = _halves(at["right"].nonzero()[:, 0], generator)
    points, labels, near = at["samples"], at["labels"], at["neighbours"]
    mine, held_out = wrong[place], torch.cat([apart, wrong[others]])
    return Task(
        model=imagenet.head(name),
        edits=Edits(points[mine], labels[mine]),
        locality_set=LocalitySet(points[kept], labels[kept]),
        test_set={
            "samples": (points[apart], labels[apart]),
            "with misread": (points[held_out], labels[held_out]),
            "snow": (at["snow"], at["snow labels"]),
        },
        edit_scope=scope(near[place], labels[mine]),
    )


def snow(edits: int, generator: torch.Generator) -> Task:
    """Kept: samples that are read right, of half of the classes; test sets: the other samples, and other snow."""
    at = imagenet.features()
    labels, right = at["snow labels"], at["snow right"]
    first, second = halves(labels, ~right, generator)
    mine = first[drawn(torch.arange(len(first)), edits, generator, "photographs on snow to repair").sort().values]
    ours, apart = (half.sort().values for half in _halves(torch.arange(len(at["labels"])), generator))
    kept, wrong = ours[at["right"][ours]], ours[~at["right"][ours]]
    near = at["neighbours"][torch.searchsorted((~at["right"]).nonzero()[:, 0], wrong)]
    keep = LocalitySet(at["samples"][kept], at["labels"][kept])
    of = partners(labels[mine], labels[second])
    follows = second[of >= 0]
    return Task(
        model=imagenet.head(),
        edits=Edits(at["snow"][mine], labels[mine]),
        locality_set=keep,
        test_set={
            "samples": (at["samples"][apart], at["labels"][apart]),
            "other half": (at["snow"][second], labels[second]),
            "snow read right": (at["snow"][right], labels[right]),
        },
        edit_scope=EditScope(at["snow"][follows], labels[follows], of=of[of >= 0]),
        training=lambda: _exercises(at["samples"], at["labels"], wrong, near, keep),
    )


def covered(edits: int, generator: torch.Generator) -> Task:
    """Edits: samples that are read wrong under snow; scope: vehicles on snow that are, of other classes throughout.

    Kept and tested: halves of the samples that are no edits. No photograph of which rows were taken is tested.
    """
    at, pairs = imagenet.features(), imagenet.exemplars()
    other = ~torch.isin(at["labels"][pairs["index"]], at["snow labels"])
    mine = drawn(other.nonzero()[:, 0], edits, generator, "samples that are read wrong under snow").sort().values
    road = pairs["index"][mine]
    rest = torch.ones(len(at["labels"]), dtype=torch.bool)
    rest[road] = False
    kept, tested = (half.sort().values for half in _halves(rest.nonzero()[:, 0], generator))
    kept = kept[at["right"][kept]]
    fresh = torch.ones(len(at["snow labels"]), dtype=torch.bool)
    fresh[pairs["used"]] = False
    wrong, right = ((fresh & (at["snow right"] == good)).nonzero()[:, 0] for good in (False, True))
    exemplars = Exemplars(pairs["snow"][mine], at["samples"][road], pairs["places"].expand(len(mine), -1, -1))
    return Task(
        model=imagenet.head(),
        edits=Edits(exemplars, at["labels"][road]),
        locality_set=LocalitySet(at["samples"][kept], at["labels"][kept]),
        test_set={
            "samples": (at["samples"][tested], at["labels"][tested]),
            "snow": (at["snow"][fresh], at["snow labels"][fresh]),
            "snow read right": (at["snow"][right], at["snow labels"][right]),
        },
        edit_scope=EditScope(at["snow"][wrong], at["snow labels"][wrong], of=torch.arange(len(wrong)) % edits),
    )


def copies(edits: int, generator: torch.Generator, name: str = "resnet20") -> Task:
    """Kept: JPEG copies of training images; test sets: the other copies of test images, and originals of these."""
    at = cifar.copies(name)
    place = drawn(torch.arange(len(at["test wrong"])), edits, generator, f"JPEG images that {name} reads wrong")
    mine, labels = at["test wrong"][place], at["test labels"]
    kept = torch.randperm(len(at["train"]), generator=generator)[:KEPT]
    rest = torch.ones(len(at["test"]), dtype=torch.bool)
    rest[mine] = False
    apart = ~torch.isin(at["lossless rows"], mine)
    network, train = cifar.head(name), at["train labels"]
    right = torch.ones(len(train), dtype=torch.bool)
    right[at["train mistakes"]] = False
    keep = LocalitySet(at["train"][right], train[right])
    return Task(
        model=network,
        edits=Edits(at["test"][mine], labels[mine]),
        locality_set=LocalitySet(at["train"][kept], train[kept]),
        test_set={
            "jpeg": (at["test"][rest], labels[rest]),
            "lossless": (at["lossless"][apart], at["lossless labels"][apart]),
        },
        edit_scope=scope(at["test neighbours"][place], labels[mine]),
        training=lambda: _exercises(at["train"], train, at["train wrong"], at["train neighbours"], keep),
    )


def broken(edits: int, generator: torch.Generator) -> Task:
    """Kept: half of the originals; test sets: other originals, and the other half compressed."""
    at = cifar.compressed()
    labels, originals, compressed, broken = (at[key] for key in ("labels", "originals", "compressed", "broken"))
    ours, apart = _halves(torch.arange(len(labels)), generator)
    there = torch.isin(broken, apart).nonzero()[:, 0]
    place = drawn(there, edits, generator, "images that JPEG makes ResNet-20 read wrong")
    mine, own = broken[place], torch.isin(broken, ours)
    kept = ours[torch.isin(ours, at["read right"])]
    keep, other = LocalitySet(originals[kept], labels[kept]), apart[~torch.isin(apart, mine)]
    near = at["broken neighbours"]
    return Task(
        model=cifar.head(),
        edits=Edits(compressed[mine], labels[mine]),
        locality_set=keep,
        test_set={
            "originals": (originals[other], labels[other]),
            "compressed": (compressed[other], labels[other]),
            "lossless": (at["lossless"], at["lossless labels"]),
        },
        edit_scope=scope(near[place], labels[mine]),
        training=lambda: _exercises(compressed, labels, broken[own], near[own], keep),
    )


#: By name; each takes how many edits, and what draws.
MODELS: dict[str, Callable[[int, torch.Generator], Task]] = {
    "squeezenet": samples,
    "squeezenet-fire": partial(samples, name="squeezenet-fire"),
    "squeezenet-snow": snow,
    "squeezenet-exemplars": covered,
    "resnet20": copies,
    "resnet56": partial(copies, name="resnet56"),
    "resnet20-jpeg": broken,
}


def _exercises(points: Tensor, labels: Tensor, wrong: Tensor, near: Tensor, keep: LocalitySet) -> Episode:
    """Return episodes' edits: the points `wrong`, with their neighbours (wrong, each, ...)."""
    return Episode(Edits(points[wrong], labels[wrong]), keep, scope(near, labels[wrong]))


def _halves(index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return numbers (n,) in two parts, drawn."""
    first, second = index[torch.randperm(len(index), generator=generator)].tensor_split(2)
    return first, second


def halves(labels: Tensor, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the numbers of chosen points (n,) in two parts, with half of each class in each, the first the larger.

    >>> first, second = halves(torch.tensor([3, 3, 3, 5, 5]), torch.ones(5, dtype=torch.bool), torch.Generator())
    >>> len(first), len(second), int((first > 2).sum())
    (3, 2, 1)
    """
    parts = [_halves(((labels == each) & chosen).nonzero()[:, 0], generator) for each in labels[chosen].unique()]
    first, second = (torch.cat(part).sort().values for part in zip(*parts, strict=True))
    return first, second


def partners(edits: Tensor, others: Tensor) -> Tensor:
    """Return (m,) for labels of edits (n,) and of other points (m,): an edit of the same class for each, or -1.

    >>> partners(torch.tensor([3, 3, 5]), torch.tensor([3, 5, 3, 3, 7])).tolist()
    [0, 2, 1, 0, -1]
    """
    of = torch.full((len(others),), -1)
    for label in edits.unique():
        mine, theirs = ((labels == label).nonzero()[:, 0] for labels in (edits, others))
        of[theirs] = mine[torch.arange(len(theirs)) % len(mine)]
    return of
