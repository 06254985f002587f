"""Images in a folder for each class, and images that cannot be read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Subset

from nnrepair.domains.images.classes import Classes, as_classes
from nnrepair.domains.images.decoding import PIXELS, read_image
from nnrepair.errors import InvalidInput, first_line
from nnrepair.extras import needed
from nnrepair.progress import progress_bar

with needed("vision", "Folders of images are read by torchvision"):
    from torchvision.datasets import ImageFolder


class Folder(ImageFolder):  # type: ignore[misc]  # torchvision has no types
    """torchvision's `ImageFolder`, whose labels are the outputs of a model, and whose images are read by `read_image`.

    `ImageFolder` numbers the folders that it finds: five folders for a model with 1,000 outputs are its first five
    classes, whatever they hold, and an edit asks for these without anybody noticing.

    Args:
        root: has a folder for each class, named as the classes are.
        transform: makes a tensor of a picture, as the model was trained on (`weights.transforms()`).
        classes: of the model, in the order of its outputs: `imagenet_classes()`, names, or a class-index file; folders
            need not be there for all of them. None: the folders are the classes, in alphabetic order.
        upright, pixels: see `read_image`.

    Raises:
        InvalidInput: no such folder, no images in it, or folders that are no classes; all of these are named.
        MissingExtra: torchvision is not installed.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[Any], Any] | None = None,
        classes: Classes | Sequence[str] | str | Path | None = None,
        *,
        upright: bool = True,
        pixels: int = PIXELS,
    ) -> None:
        self.of_model = None if classes is None else as_classes(classes)
        if not Path(root).is_dir():
            raise InvalidInput(f"There is no folder {root} with a folder for each class.")
        read = partial(read_image, upright=upright, pixels=pixels)
        super().__init__(str(root), transform, loader=read, allow_empty=True)
        if not self.samples:
            raise InvalidInput(
                f"The folders in {root} hold no images: {', '.join(self.classes[:5])}. Files are known by their "
                "endings, such as .jpg, .png or .webp."
            )

    @property
    def model_outputs(self) -> int:
        """How many outputs a model of these classes has."""
        return len(self.classes if self.of_model is None else self.of_model)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Return the folders, and the output that each stands for; torchvision calls this."""
        there = [entry.name for entry in Path(directory).iterdir() if entry.is_dir()]
        folders = sorted(name for name in there if not name.startswith("."))  # .ipynb_checkpoints and the like
        if not folders:
            raise InvalidInput(f"{directory} has no folders; images lie in a folder for each class.")
        if self.of_model is None:
            return folders, {name: k for k, name in enumerate(folders)}
        numbers, strange = dict[str, int](), list[str]()
        for name in folders:
            try:
                numbers[name] = self.of_model.index(name)
            except InvalidInput as error:
                strange.append(str(error))
        if strange:
            more = f" So are {len(strange) - 3} others." if len(strange) > 3 else ""
            raise InvalidInput(
                f"Folders in {directory} are no classes of the model: {' '.join(strange[:3])}{more} Rename or move "
                "them, or give other classes."
            )
        return folders, numbers


@dataclass(frozen=True)
class Damaged:
    """An item that cannot be read.

    Attributes:
        item: its number in the data set.
        path: its file, where the data set says.
        reason: why not.
    """

    item: int
    path: str | None
    reason: str


@dataclass(frozen=True)
class Sifted:
    """A data set without the items that cannot be read.

    Attributes:
        readable: the others, in their order.
        damaged: those that cannot be read.
    """

    readable: Subset[Any]
    damaged: tuple[Damaged, ...]


def sifted(dataset: Any, *, progress: bool = False) -> Sifted:
    """Read every item of a data set once, and return those that can be read and a list of the others.

    Without this, an item that cannot be read is refused where it is first needed, which is before a repair begins.

    Args:
        dataset: items by number, such as `Folder` or torchvision's `ImageFolder`, or a loader of them.
        progress: show a progress bar on stderr.

    Raises:
        InvalidInput: none can be read.

    >>> class Readings:
    ...     def __len__(self): return 3
    ...     def __getitem__(self, k): return 1 / (k - 1)
    >>> sifted(Readings()).damaged
    (Damaged(item=1, path=None, reason='division by zero'),)
    """
    dataset = dataset.dataset if isinstance(dataset, DataLoader) else dataset
    readable, damaged = list[int](), list[Damaged]()
    with progress_bar("read images", progress) as report:
        for k in range(len(dataset)):
            try:
                dataset[k]
                readable.append(k)
            except Exception as error:  # a user's data set may raise anything
                damaged.append(Damaged(k, path_of(dataset, k), first_line(error)))
            report(f"{k + 1} of {len(dataset)}")
    if not readable:
        said = damaged[0].reason if damaged else "it has none"
        raise InvalidInput(f"No item of {type(dataset).__name__} can be read. The first: {said}")
    return Sifted(Subset(dataset, readable), tuple(damaged))


def path_of(dataset: Any, item: int) -> str | None:
    """Return the file of an item of torchvision's folders, of a part or several of them; None where it is not known."""
    while isinstance(dataset, Subset | ConcatDataset):
        if isinstance(dataset, Subset):
            dataset, item = dataset.dataset, int(dataset.indices[item])
        else:
            which = bisect_right(dataset.cumulative_sizes, item)
            item -= dataset.cumulative_sizes[which - 1] if which else 0
            dataset = dataset.datasets[which]
    samples = getattr(dataset, "samples", None)
    try:
        return None if samples is None else str(samples[item][0])
    except (IndexError, KeyError, TypeError):
        return None
