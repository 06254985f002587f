"""Photographs with ImageNet's labels that lie in one file each: a sample of every class, and vehicles on snow.

They are read a photograph at a time, so that a data set of any size can be edits, or points to keep:

    photographs = imagenet_samples()
    nnrepair.fix(model, edits, photographs, ...)      # streamed, in batches

ImageNet's photographs are for non-commercial research, and photographs of Flickr are their authors': look at them, and
do not publish them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nnrepair.domains import files
from nnrepair.domains.files import Resource
from nnrepair.domains.images.data import Images
from nnrepair.domains.images.decoding import read_image
from nnrepair.errors import InvalidInput

#: By what torchvision's classifiers of ImageNet expect colours to be normalised: red, green, blue.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Pixels of a photograph, before it is decoded: no more are read.
MOST = 4_000_000

_SAMPLES = Resource(
    "imagenet/imagenet_sample_1000.npz", sha256="246bd1d2de1776988f4a727b586eefe03afa9e45dd263a05a3071d1c393e23e7"
)
_SNOW = Resource(
    "imagenet/vehicles_on_snow.npz", sha256="ac04de24be94b542037f72e47098e51112bedcfc7f7974c6517b04170f82b231"
)


@dataclass(frozen=True, eq=False)
class Photographs:
    """Labelled JPEG files in memory, decoded when they are asked for: a data set of pairs (inputs, label).

    Inputs are float32 (3, size, size): the middle of the photograph, a colour normalised by `MEAN` and `STD`.

    Args:
        path: where they come from, for messages.
        data: (bytes,) uint8, one file after another.
        offsets: (n + 1,) where each begins, and the last one ends.
        labels: (n,) int64, ImageNet's classes in their usual order, 0 to 999.
        names: n texts that tell one photograph from another.
        size: pixels, of both sides.
    """

    path: Path
    data: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]
    labels: Tensor
    names: tuple[str, ...]
    size: int = 224

    def __post_init__(self) -> None:
        ends, n = self.offsets, len(self.labels)
        if len(ends) != n + 1 or len(self.names) != n or n == 0 or ends[0] < 0 or ends[-1] > len(self.data):
            raise InvalidInput(
                f"{self.path}: {len(ends)} offsets into {len(self.data)} bytes, {n} labels and {len(self.names)} names "
                "do not fit; there must be one label and one name for each photograph, and one offset more."
            )
        if (np.diff(ends) < 1).any():
            raise InvalidInput(f"{self.path}: a photograph of no bytes. Fetch the file again.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        """Return inputs (3, size, size) and the label ()."""
        return self.normalised(torch.from_numpy(self.pixels(k))), self.labels[k]

    def pixels(self, k: int) -> npt.NDArray[np.uint8]:
        """Return (size, size, 3): the middle of photograph k.

        Raises:
            InvalidInput: it is no JPEG image, or smaller than that.
        """
        content = self.data[self.offsets[k] : self.offsets[k + 1]].tobytes()
        try:
            image = read_image(content, upright=False, pixels=MOST, formats=["JPEG"])
            (width, height), size = image.size, self.size
            if min(width, height) < size:
                raise InvalidInput(f"{width} x {height} pixels; expected at least {size} each way")
        except InvalidInput as error:
            raise InvalidInput(f"{self.path}: {self.names[k]} cannot be read as a JPEG image ({error}).") from error
        left, top = (width - size) // 2, (height - size) // 2
        return np.array(image.crop((left, top, left + size, top + size)))

    @staticmethod
    def normalised(pixels: Tensor) -> Tensor:
        """Return inputs (..., 3, h, w) for pixels (..., h, w, 3) from 0 to 255."""
        return ((pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, -3).contiguous()

    def images(self, index: Sequence[int] | Tensor | None = None) -> Images:
        """Return some of them in memory, all without `index`: inputs (n, 3, size, size), 0.6 MB each at 224."""
        chosen = torch.arange(len(self)) if index is None else torch.as_tensor(index)
        inputs = torch.empty(len(chosen), 3, self.size, self.size)
        for place, k in enumerate(chosen.tolist()):
            inputs[place] = self[k][0]
        return Images(inputs, self.labels[chosen])


def imagenet_samples(size: int = 224) -> Photographs:
    """Return 1,000 photographs of ImageNet, one of each class, in the order of classes.

    Reads `imagenet/imagenet_sample_1000.npz`, which has them with a short side of 256 pixels. Whether they are among
    those that networks were trained on is not known: accuracy on them may be flattering.

    >>> len(imagenet_samples())  # doctest: +SKIP
    1000
    """
    return _photographs(_SAMPLES, "wnid", size)


def vehicles_on_snow(size: int = 224) -> Photographs:
    """Return 127 photographs of seven classes on snow: a shift that happens, as natural adversarial examples are.

    Reads `imagenet/vehicles_on_snow.npz`: the test photographs of Santurkar et al., "Editing a classifier by rewriting
    its prediction rules" (NeurIPS 2021), from Flickr, with a short side of 256 pixels.

    >>> vehicles_on_snow().labels.unique().tolist()  # doctest: +SKIP
    [479, 555, 670, 751, 779, 847, 920]
    """
    return _photographs(_SNOW, "filename", size)


def _photographs(resource: Resource, names: str, size: int) -> Photographs:
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 256:
        raise InvalidInput(f"size must be a whole number of pixels from 1 to 256, given {size!r}.")
    path = files.locate(resource)
    with files.open_npz(path) as file:
        wanted = ("data", "offsets", "label", names)
        missing = [name for name in wanted if name not in file.files]
        if missing:
            raise InvalidInput(f"{path} lacks {', '.join(missing)}; it has {', '.join(file.files) or 'nothing'}.")
        arrays: dict[str, npt.NDArray[Any]] = {name: file[name] for name in wanted}
    labels = torch.from_numpy(arrays["label"].astype(np.int64))
    told = tuple(str(name) for name in arrays[names])
    return Photographs(path, arrays["data"], arrays["offsets"].astype(np.int64), labels, told, size)
