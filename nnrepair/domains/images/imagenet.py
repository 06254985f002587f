"""ImageNet's photographs, and natural adversarial examples (ImageNet-A), with the labels of trained models' outputs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from torch.utils.data import Dataset

from nnrepair.domains import files
from nnrepair.domains.files import Resource
from nnrepair.domains.images.classes import Classes, wnids
from nnrepair.domains.images.packed import TarImages, read_members, whole
from nnrepair.errors import DataUnavailable, InvalidInput, near_matches

# Downloads need an account and an agreement. The sums are those that TensorFlow Datasets and torchvision pin.
_SITE = "https://image-net.org/data/ILSVRC/2012/"
_VAL = Resource(
    "imagenet/ILSVRC2012_img_val.tar",
    _SITE + "ILSVRC2012_img_val.tar",
    sha256="c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
    md5="29b22e2961454d5413ddabcf34fc5622",
)
_DEVKIT = Resource(
    "imagenet/ILSVRC2012_devkit_t12.tar.gz",
    _SITE + "ILSVRC2012_devkit_t12.tar.gz",
    sha256="b59243268c0d266621fd587d2018f69e906fb22875aca0e295b48cafaa927953",
    md5="fa75699e90414af021442c21a62c3abf",
)
_NAE = Resource(
    "imagenet-a/imagenet-a.tar",
    "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
    sha256="3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
    md5="c3e55429088dc681f30d81f4726b6595",
)
_KIT = "ILSVRC2012_devkit_t12/data/"

Transform = Callable[[Any], Any]


def imagenet(split: Literal["train", "val"] = "val", transform: Transform | None = None) -> Dataset[Any]:
    """Return ImageNet's images (ILSVRC 2012) as items (picture, label), read when they are needed.

    Reads `imagenet/val/n01440764/*.JPEG` in a data folder, as torchvision lays it out; or, for "val", the official
    archive with the development kit, from which it unpacks nothing.

    Args:
        split: "val", 50,000 images, or "train".
        transform: makes a tensor of a picture, such as `weights.transforms()`.

    Raises:
        DataUnavailable: the images are not on this machine; they are not downloaded, as this needs an agreement.
        InvalidInput: another split, or an archive that is damaged.
    """
    if split not in ("train", "val"):
        raise InvalidInput(
            f"ImageNet has no split {split!r}.{near_matches(str(split), ['train', 'val'])} Splits: train, val."
        )
    folder = files.find_folder(f"imagenet/{split}")
    if folder is not None:
        return _folder(folder, transform)
    if split == "val" and all(files.find(resource.path) is not None for resource in (_VAL, _DEVKIT)):
        labels = _labels(files.locate(_DEVKIT))
        return TarImages(
            files.locate(_VAL), lambda name: labels.get(name.name), transform, "ImageNet's validation images"
        )
    raise DataUnavailable(_advice(split))


def imagenet_a(transform: Transform | None = None) -> Dataset[Any]:
    """Return ImageNet-A, 7,500 natural adversarial examples of 200 of ImageNet's classes, as items (picture, label).

    Labels are outputs of models with 1,000 outputs. Hendrycks et al., "Natural adversarial examples" (CVPR 2021).
    Reads the folder `imagenet-a/imagenet-a/` or the archive `imagenet-a/imagenet-a.tar`, and downloads the latter
    once (688 MB).

    Raises:
        DataUnavailable: it is not on this machine and cannot be downloaded.
        InvalidInput: the archive is damaged.
    """
    folder = files.find_folder("imagenet-a/imagenet-a")
    if folder is not None:
        return _folder(folder, transform)
    numbers = {name: k for k, name in enumerate(wnids())}

    def label(name: PurePosixPath) -> int | None:
        hidden = name.name.startswith(".")
        return None if hidden or name.suffix.lower() not in (".jpg", ".jpeg") else numbers.get(name.parent.name)

    return TarImages(files.locate(_NAE), label, transform, "ImageNet-A")


def _folder(folder: Path, transform: Transform | None) -> Dataset[Any]:
    from nnrepair.domains.images.folder import Folder

    found: Dataset[Any] = Folder(folder, transform, Classes(wnids(), wnids()), upright=False)
    return found


def _labels(kit: Path) -> dict[str, int]:
    """Return the label of each validation image by its file's name, from the development kit."""
    from scipy.io import loadmat

    what = "ImageNet's development kit"
    parts = read_members(kit, [f"{_KIT}meta.mat", f"{_KIT}ILSVRC2012_validation_ground_truth.txt"], what)
    with whole(kit, what):
        table = loadmat(io.BytesIO(parts[f"{_KIT}meta.mat"]), squeeze_me=True)["synsets"]
        numbers = {name: k for k, name in enumerate(wnids())}
        of = {int(row["ILSVRC2012_ID"]): numbers[str(row["WNID"])] for row in table if int(row["num_children"]) == 0}
        truth = parts[f"{_KIT}ILSVRC2012_validation_ground_truth.txt"].split()
        return {f"ILSVRC2012_val_{k:08d}.JPEG": of[int(number)] for k, number in enumerate(truth, 1)}


def _advice(split: str) -> str:
    folder = files.cache_folder() / "imagenet"
    archive = f"ILSVRC2012_img_{split}.tar"
    return (
        f"ImageNet's {split} images were not found on this machine. They are given to those who agree to its terms, at "
        f"https://image-net.org/download. Either name a folder that holds them:\n"
        f"  export NNREPAIR_DATA=/path/to/data   # with $NNREPAIR_DATA/imagenet/{split}/n01440764/*.JPEG\n"
        f"or put {archive} and ILSVRC2012_devkit_t12.tar.gz into {folder} and let torchvision unpack them:\n"
        f"  python -c \"from torchvision.datasets import ImageNet; ImageNet('{folder}', '{split}')\""
    )
