"""Points that are read when they are needed: data sets and loaders, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from nnrepair.errors import InvalidInput, first_line
from nnrepair.rounding import counted
from nnrepair.spec.dense import dense, refuse_names
from nnrepair.spec.inputs import AnyInputs, Inputs, batches, numbers, to_like
from nnrepair.spec.pyg import Graphs, is_graph
from nnrepair.spec.running import joined

#: Items read at once, where no loader says how many, and numbers in them: layers make many more of each.
ITEMS, NUMBERS = 256, 4_000_000


class Labels:
    """The labels of a data set's items, as far as they were met."""

    def __init__(self) -> None:
        self._values, self._known = torch.zeros(0), torch.zeros(0, dtype=torch.bool)

    def meet(self, numbers: Tensor, labels: Tensor, items: int) -> None:
        """Keep the labels (k, ...) of some of so many items."""
        if not len(self._known):
            self._values = torch.zeros(items, *labels.shape[1:], dtype=labels.dtype)
            self._known = torch.zeros(items, dtype=torch.bool)
        if labels.shape[1:] != self._values.shape[1:]:
            raise InvalidInput(
                f"Labels of the data set have different shapes, {tuple(labels.shape[1:])} and "
                f"{tuple(self._values.shape[1:])}."
            )
        self._values[numbers], self._known[numbers] = labels.to(self._values), True

    def unmet(self, numbers: Tensor) -> Tensor:
        """Return those of the items whose labels are not known."""
        return numbers[~self._known[numbers]] if len(self._known) else numbers

    def of(self, numbers: Tensor) -> Tensor:
        """Return the labels (k, ...) of items that were met."""
        return self._values[numbers]


@dataclass(frozen=True, eq=False)
class Source:
    """Where items are read by their number, in any order and more than once.

    Attributes:
        dataset: has a length and items by number: x, or (x, y) with a label y; x is a tensor, a tuple of tensors or a
            dictionary of them.
        collate: makes a batch of a list of items.
        arguments: makes inputs of the batch's x.
        apart: takes the labels out of a dictionary.
        items: how many are read at once.
        labelled: whether items have labels.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any]
    arguments: Callable[[Any], AnyInputs]
    apart: Callable[[Mapping[Any, Any]], tuple[Any, Any]]
    items: int = ITEMS
    labelled: bool = False
    met: Labels = field(default_factory=Labels)

    def read(self, numbers: Tensor) -> AnyInputs:
        """Return the inputs of items (k,) in memory; their labels are kept."""
        parts = self.parts(self.batch(numbers.tolist()))
        if len(parts) != 1 + self.labelled:
            raise InvalidInput(
                f"Items of the data set must all be {'(x, y)' if self.labelled else 'x'}, as the first one is; some of "
                f"items {numbers[:5].tolist()} have {len(parts)} parts."
            )
        inputs = self.arguments(parts[0])
        if len(inputs) != len(numbers):
            raise InvalidInput(f"The data set's loader made {len(inputs)} points of {len(numbers)} items.")
        if self.labelled:
            refuse_names(parts[1], "The data set")
            labels = dense(parts[1], "Labels of the data set", "numbers, one or more for each item")
            if labels.shape[:1] != numbers.shape:
                raise InvalidInput(
                    f"The data set's loader made labels of shape {tuple(labels.shape)} of {len(numbers)} items; the "
                    "first axis must be the items."
                )
            self.met.meet(numbers, labels, len(self.dataset))
        return inputs

    def batch(self, numbers: Sequence[int]) -> Any:
        """Return a batch of some items."""
        several = getattr(self.dataset, "__getitems__", None)
        try:
            items = [self.dataset[k] for k in numbers] if several is None else several(list(numbers))
            return self.collate(items)
        except Exception as error:  # a user's data set may raise anything
            raise InvalidInput(self._why_not(numbers, error)) from error

    def parts(self, batch: Any) -> list[Any]:
        """Return a batch's x, and its labels where it has some."""
        if isinstance(batch, Mapping):
            x, labels = self.apart(batch)
        elif is_graph(batch):
            x, labels = Graphs.of(batch, "The data set")
        else:
            parts = list(batch) if isinstance(batch, tuple | list) else [batch]
            if parts and isinstance(parts[0], str | bytes):
                raise InvalidInput("The items of the data set are text, and models take numbers: tokenize them.")
            return parts
        return [x] if labels is None else [x, labels]

    def _why_not(self, numbers: Sequence[int], error: Exception) -> str:
        """Say which item cannot be read, or why items make no batch."""
        for k in numbers:
            try:
                item = self.dataset[k]
            except Exception as own:  # a user's data set may raise anything
                kind = "" if isinstance(own, InvalidInput) else f"{type(own).__name__}: "
                return f"Item {k} of the data set cannot be read: {kind}{first_line(own)}"
            first = item[0] if isinstance(item, tuple | list) and item else item
            if type(first).__module__.startswith("PIL."):
                return (
                    f"Item {k} of the data set is a picture, not a tensor: give the data set a transform, such as "
                    "ImageFolder(root, transform=weights.transforms())."
                )
            if is_graph(first):
                return (
                    f"Items {list(numbers[:5])} of the data set make no batch: they are graphs. Give a list of them, "
                    "or torch_geometric.loader.DataLoader."
                )
        if isinstance(error, InvalidInput):
            return f"Items {list(numbers[:5])} of the data set make no batch: {error}"
        return (
            f"Items {list(numbers[:5])} of the data set make no batch: {type(error).__name__}: {first_line(error)} "
            "Items must be tensors of one shape, or give a DataLoader with a collate_fn."
        )

    def labels(self, numbers: Tensor) -> Tensor:
        """Return the labels (k, ...) of items (k,); those that were not met before are read now."""
        for some in torch.split(self.met.unmet(numbers), self.items):
            if len(some):
                self.read(some)
        return self.met.of(numbers)

    def __repr__(self) -> str:
        return f"{type(self.dataset).__name__} of {counted(len(self.dataset), 'item')}"


@dataclass(frozen=True, eq=False)
class Stream(Inputs):
    """Points of a data set, read a batch at a time whenever a model runs on them.

    Attributes:
        source: where they are read.
        index: (n,) int64, which items.
        like: its device and floating dtype are those of the points; None leaves them as they are read.
    """

    source: Source
    index: Tensor
    like: Tensor | None = None

    @property
    def batch(self) -> int:  # type: ignore[override]  # the loader's
        return self.source.items

    @property
    def labelled(self) -> bool:
        """Whether items have labels."""
        return self.source.labelled

    @property
    def numbered(self) -> int | None:
        """How many classes the labels number, where the data set says that: folders of images do."""
        dataset = self.source.dataset
        while isinstance(dataset, Subset):
            dataset = dataset.dataset
        names: Any = getattr(dataset, "class_to_idx", None)
        stated = getattr(dataset, "model_outputs", None)
        if not self.labelled or isinstance(stated, int):
            return stated if self.labelled else None
        folders = isinstance(names, dict) and hasattr(dataset, "samples")
        if not folders or getattr(dataset, "target_transform", None) is not None:
            return None
        return len(names) if sorted(names.values()) == list(range(len(names))) else None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor) -> Stream:
        return replace(self, index=self.index[index.cpu()].reshape(-1))

    def to(self, like: Tensor) -> Stream:
        return replace(self, like=like.detach().flatten()[:1].clone())

    def call(self, model: nn.Module) -> Tensor:
        """Return the outputs (n, ...); without gradients no more than a batch is in memory."""
        if not torch.is_grad_enabled() and len(self) > self.batch:
            return joined([self[step].call(model) for step in batches(self)])
        inputs = self.loaded()
        y: Tensor = model(inputs) if isinstance(inputs, Tensor) else inputs.call(model)
        return y

    def loaded(self) -> AnyInputs:
        inputs = self.source.read(self.index)
        return inputs if self.like is None else to_like(inputs, self.like)

    def labels(self) -> Tensor:
        """Return the labels (n, ...)."""
        return self.source.labels(self.index)

    def without_labels(self) -> Stream:
        """Return the same points, whose labels are not looked at."""
        source = self.source
        if not source.labelled:
            return self
        alone = replace(source, collate=lambda items: source.parts(source.collate(items))[0], labelled=False)
        return replace(self, source=alone)

    def own(self) -> Tensor:
        """Return (n, ...) the points' own features, all of them in memory."""
        inputs = self.loaded()
        return inputs if isinstance(inputs, Tensor) else inputs.own()

    def same(self) -> Tensor | None:
        inputs = self.loaded()
        return inputs if isinstance(inputs, Tensor) else inputs.same()

    def tensors(self) -> list[Tensor]:
        """Return none: a model runs on tensors that were made for it."""
        return []

    def copied(self) -> Stream:
        return self

    def __repr__(self) -> str:
        return f"{len(self)} of {self.source!r}"


def streamed(
    given: Dataset[Any] | DataLoader[Any] | Sequence[Any],
    arguments: Callable[[Any], AnyInputs],
    apart: Callable[[Mapping[Any, Any]], tuple[Any, Any]],
    what: str,
) -> Stream:
    """Return a data set's points, in its own order.

    Args:
        given: a data set with items by number, a list of such items, or a loader of a data set, of which the batch
            size and the collate_fn are used. A loader that shuffles is read in its data set's order.
        arguments: makes inputs of a batch's x.
        apart: takes the labels out of a dictionary.
        what: how the message calls it.

    Raises:
        InvalidInput: no items, none by number, or a loader that repeats, weighs or groups items.
    """
    loader = given if isinstance(given, DataLoader) else None
    dataset: Any = given if loader is None else loader.dataset
    if hasattr(loader, "node_sampler") or hasattr(loader, "link_sampler"):
        raise InvalidInput(
            f"{what}: {type(loader).__name__} draws other neighbours each time, so what is kept could not be "
            "confirmed. Give nodes of the whole graph: nnrepair.domains.graphs.NodeLocality(data, mask)."
        )
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise InvalidInput(
            f"{what}: {type(dataset).__name__} has no items by number, so no order that can be read again. Give a data "
            "set with __len__ and __getitem__, or stack what it yields: torch.stack([x for x, _ in items])."
        )
    try:
        count = len(dataset)
    except Exception as error:  # a user's data set may raise anything
        raise InvalidInput(
            f"{what}: {type(dataset).__name__} does not say how many items it has: len() raised "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    index = torch.arange(count) if loader is None else _order(loader, what)
    if not len(index):
        kind = type(dataset).__name__
        raise InvalidInput(f"{what}: the data set {kind} has no items. Give some points, or leave it out.")
    if loader is None or loader.batch_size is None:
        source = Source(dataset, collated, arguments, apart)
    else:
        source = Source(dataset, loader.collate_fn, arguments, apart, loader.batch_size)
    parts = source.parts(source.batch([int(index[0])]))
    if len(parts) not in (1, 2):
        raise InvalidInput(
            f"{what}: items of a data set must be x, or (x, y) with a label, got {len(parts)} parts. Of a model with "
            "several arguments, let items be ((a, b), y), (dictionary, y) or a dictionary with labels."
        )
    if loader is None or loader.batch_size is None:
        source = replace(source, items=_at_once(parts[0]))
    return Stream(replace(source, labelled=len(parts) == 2), index)


def collated(items: Sequence[Any]) -> Any:
    """Return items as one batch: as torch does, and graphs as one, and lists of numbers in dictionaries as rows."""
    first = items[0]
    if is_graph(first):
        from torch_geometric.data import Batch

        return Batch.from_data_list(list(items))
    if isinstance(first, Mapping):
        return {name: _column(name, [item[name] for item in items]) for name in first}
    if isinstance(first, tuple | list) and len(first) == 2 and (isinstance(first[0], Mapping) or is_graph(first[0])):
        return [collated(column) for column in zip(*items, strict=True)]
    return default_collate(list(items))


def _column(name: Any, values: list[Any]) -> Any:
    """Return what all items have under one name."""
    if any(isinstance(value, str | bytes) or value is None for value in values):
        raise InvalidInput(
            f"{name!r} is {'missing' if None in values else 'text'}, and models take numbers: leave it out, as by "
            f"dataset.remove_columns([{name!r}])."
        )
    rows = [torch.as_tensor(value) for value in values]
    if len({row.shape for row in rows}) > 1:
        raise InvalidInput(
            f"{name!r} has different lengths: {', '.join(str(tuple(row.shape)) for row in rows[:4])}. Pad it when the "
            'data are made (padding="max_length"), or give a DataLoader whose collate_fn does '
            "(DataCollatorWithPadding)."
        )
    return torch.stack(rows)


def _at_once(first: Any) -> int:
    """Return how many items like the first one, a batch of its own, are read at once."""
    parts = (
        list(first.values()) if isinstance(first, Mapping) else first if isinstance(first, tuple | list) else [first]
    )
    size = sum(numbers(part) for part in parts if isinstance(part, Tensor))
    return max(1, min(ITEMS, NUMBERS // max(1, size)))


def _order(loader: DataLoader[Any], what: str) -> Tensor:
    """Return (n,) the items that a loader yields, in a fixed order."""
    sampler, count = loader.sampler, len(loader.dataset)  # type: ignore[arg-type]
    if type(loader.batch_sampler) is BatchSampler:
        if isinstance(sampler, SequentialSampler):
            return torch.arange(count)
        if isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == count:
            return torch.arange(count)
        if isinstance(sampler, SubsetRandomSampler):
            return dense(list(sampler.indices), f"{what}: the sampler's indices", "integers", torch.long)
    by = sampler if type(loader.batch_sampler) is BatchSampler else loader.batch_sampler
    raise InvalidInput(
        f"{what}: a loader that takes items by {type(by).__name__} has no order of its own that can be read again. "
        "Give its data set (loader.dataset), or torch.utils.data.Subset(loader.dataset, indices)."
    )
