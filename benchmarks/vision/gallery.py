"""Pictures of repaired images: the three best classes before and after, which layer, and the size of the change.

Three photographs that may be shown are repaired at once: they come with scikit-learn and matplotlib. The others
(samples of ImageNet, vehicles on snow, CIFAR-10) may be looked at, and not published:
`python -m benchmarks.vision.gallery` repairs some of them and draws them into build/gallery/.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import nnrepair
from benchmarks import measure
from benchmarks.figures import new_panels
from benchmarks.vision import cifar, imagenet
from benchmarks.vision.cut import BUILD, cut_squeezenet
from nnrepair import Edits, LocalitySet
from nnrepair.domains.images.cifar import CLASSES, cifar10_jpeg
from nnrepair.domains.images.samples import Photographs, imagenet_samples, vehicles_on_snow
from nnrepair.domains.images.squeezenet import squeezenet
from nnrepair.methods import MinimalNorm
from nnrepair.results.result import RepairResult
from nnrepair.rounding import percent

RESULTS = Path(__file__).parent / "results" / "gallery.json"
SIZE = 224
#: What is wanted of the three photographs: the dahlia is no class of ImageNet, and a daisy the nearest one.
FREE = {"china": 698, "flower": 985, "grace_hopper": 652}
CREDITS = {
    "china": "danielbuechele, CC BY 2.0",
    "flower": "vultilion, CC BY 2.0",
    "grace_hopper": "U.S. Navy, public domain",
}
METHOD = MinimalNorm(layer="classifier.1", norm="drift")
CIFAR_METHOD = MinimalNorm(layer="linear", norm="drift")
#: Pictures of one page.
SHOWN = 6

Row = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """One image of a page.

    Attributes:
        title: above it.
        pixels: (h, w, 3) from 0 to 255.
        before, after: the best classes with their probabilities, best first.
        wanted: the class that the edit asks for.
    """

    title: str
    pixels: Any
    before: list[tuple[str, float]]
    after: list[tuple[str, float]]
    wanted: str


def free_pixels(name: str) -> Any:
    """Return (224, 224, 3), the middle of one of the three photographs, its short side made 256 pixels."""
    from PIL import Image

    if name == "grace_hopper":
        from matplotlib import cbook

        with cbook.get_sample_data(f"{name}.jpg") as file, Image.open(file) as image:
            picture = image.convert("RGB")
    else:
        from sklearn.datasets import load_sample_image

        picture = Image.fromarray(load_sample_image(f"{name}.jpg"))
    share = 256 / min(picture.size)
    wide, high = (round(side * share) for side in picture.size)
    picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - SIZE) // 2, (high - SIZE) // 2
    return np.array(picture.crop((left, top, left + SIZE, top + SIZE)))


def class_names() -> list[str]:
    """Return the names of ImageNet's classes, as torchvision tells them beside its own weights."""
    from torchvision.models import SqueezeNet1_1_Weights

    names: list[str] = SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"]
    return names


@torch.no_grad()
def best(model: nn.Module, points: Tensor, names: list[str]) -> list[list[tuple[str, float]]]:
    """Return the three best classes of each point with their probabilities."""
    shares, classes = model(points).softmax(1).topk(3)
    pairs = zip(shares.tolist(), classes.tolist(), strict=True)
    return [[(names[k], round(p, 4)) for k, p in zip(*pair[::-1], strict=True)] for pair in pairs]


def measured() -> Row:
    """Repair the three photographs and return what there is to tell; half of the samples read right are kept."""
    before, rest = cut_squeezenet(squeezenet())
    at, names = imagenet.features(), class_names()
    inputs = Photographs.normalised(torch.from_numpy(np.stack([free_pixels(name) for name in FREE])))
    with torch.no_grad():
        points, mirrored = before(inputs), before(inputs.flip(3))
    right = at["right"].nonzero()[:, 0]
    kept, apart = right[::2], right[1::2]
    wanted = torch.tensor(list(FREE.values()))
    keep = LocalitySet(at["samples"][kept], at["labels"][kept])
    tests = {"samples": (at["samples"][apart], at["labels"][apart])}
    result = nnrepair.fix(rest, Edits(points, wanted), keep, method=METHOD, test_set=tests, throw=False)
    told = {"photographs": list(FREE), "wanted": [names[k] for k in FREE.values()], **change(result)}
    told |= {"before": best(rest, points, names), "after": best(result.model, points, names)}
    told["mirrored after"] = best(result.model, mirrored, names)
    return told | {
        "kept": len(kept),
        "tested": len(apart),
        "drawdown_points": result.report.tests["samples"].drawdown_points,
    }


def change(result: RepairResult) -> Row:
    """Return which parameters were changed, and by how much: the norm of the change, and its share of their own."""
    size = result.report.weight_change
    own = dict(result.model.named_parameters())
    names = list(result.stats.get("layer") or [])
    known = sum(float(own[name].detach().double().square().sum()) for name in names if name in own) ** 0.5
    told = {"status": result.outcome.status, "parameters": names, "l2": size.l2, "linf": size.linf}
    return told | {"relative": size.l2 / known if size.l2 is not None and known else None}


def run() -> None:
    """Measure, and store it, unless it is stored."""
    if not RESULTS.exists():
        found = measure.measured(measured)
        measure.save(RESULTS, [{"commit": measure.commit(), "seed": 0, "options": repr(METHOD)} | found], "gallery")


def draw(shown: list[Shown], path: Path, told: str) -> None:
    """Draw a page: each image with its best classes before and after, the wanted one in another colour."""
    from matplotlib import pyplot as plt

    fig, axes = new_panels(len(shown), 3, size=(2.9, 2.0))
    for (image, *bars), one in zip(axes, shown, strict=True):
        image.imshow(one.pixels)
        image.set_axis_off()
        image.set_title(one.title, fontsize="small")
        for axis, some, when in zip(bars, (one.before, one.after), ("before", "after"), strict=True):
            colours = ["#44AA99" if name == one.wanted else "#CCCCCC" for name, _ in some]
            axis.barh(range(3), [share for _, share in some], color=colours)
            axis.set(xlim=(0, 1), ylim=(2.6, -0.6), xticks=[], yticks=[])
            axis.set_title(when, fontsize="small")
            axis.grid(visible=False)
            axis.spines["bottom"].set_visible(False)
            for place, (name, share) in enumerate(some):
                axis.text(0.02, place, f"{name}, {percent(share, 0)}", va="center", fontsize="small")
    fig.suptitle(told, fontsize="medium")
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)


def picture(path: Path) -> None:
    """Draw the three photographs from the committed result file."""
    (row,) = json.loads(RESULTS.read_text())["rows"]
    zipped = zip(row["photographs"], row["wanted"], row["before"], row["after"], strict=True)
    shown = [Shown(f"wanted: {wanted}", free_pixels(name), *found, wanted) for name, wanted, *found in zipped]
    draw(shown, path, f"SqueezeNet 1.1, {METHOD.layer}: changed by {percent(row['relative'], 1)} of its norm")


def local(folder: Path) -> list[Path]:
    """Repair and draw images that may not be published: some of ImageNet's samples, of those on snow, of CIFAR-10."""
    folder.mkdir(parents=True, exist_ok=True)
    at, names = imagenet.features(), class_names()
    keep = LocalitySet(at["samples"][at["right"]], at["labels"][at["right"]])
    packs = {
        "samples": (imagenet_samples(), "labels", "right"),
        "snow": (vehicles_on_snow(), "snow labels", "snow right"),
    }
    for name, (photographs, labels, right) in packs.items():
        wrong = (~at[right]).nonzero()[:, 0]
        mine = _spread(wrong)
        pixels = [photographs.pixels(k) for k in mine.tolist()]
        page(folder / f"{name}.png", imagenet.head(), METHOD, (at[name][mine], at[labels][mine]), keep, pixels, names)
    copies, images = cifar.copies(), cifar10_jpeg("test")
    mine = _spread(copies["test mistakes"])
    keep = LocalitySet(copies["train"][::5], copies["train labels"][::5])
    pixels = list(images.inputs[mine].movedim(1, -1).numpy())
    given = copies["test"][mine], images.labels[mine]
    page(folder / "cifar.png", cifar.head(), CIFAR_METHOD, given, keep, pixels, list(CLASSES))
    return sorted(folder.glob("*.png"))


def _spread(numbers: Tensor) -> Tensor:
    """Return some of the numbers, evenly spread: images are stored class by class."""
    return numbers[torch.linspace(0, len(numbers) - 1, SHOWN).long()]


def page(
    path: Path,
    model: nn.Module,
    method: MinimalNorm,
    edits: tuple[Tensor, Tensor],
    keep: LocalitySet,
    pixels: list[Any],
    names: list[str],
) -> None:
    """Repair a network at some points with labels, and draw the images that these points are of."""
    points, labels = edits
    result = nnrepair.fix(model, Edits(points, labels), keep, method=method, throw=False)
    wanted = [names[k] for k in labels.tolist()]
    both = best(model, points, names), best(result.model, points, names)
    shown = [Shown(f"wanted: {name}", *rest, name) for name, *rest in zip(wanted, pixels, *both, strict=True)]
    told = change(result)
    draw(shown, path, f"{method.layer}: changed by {percent(told['relative'], 1)} of its norm; {told['status']}")


if __name__ == "__main__":
    print(*local(BUILD / "gallery"), sep="\n")
