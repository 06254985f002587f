"""What a caller gives, in any form: inputs and labels, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nnrepair.errors import InvalidInput, first_line
from nnrepair.rounding import first
from nnrepair.spec.criteria import Argmax, Criterion, Threshold, flat
from nnrepair.spec.dense import dense, refuse_names
from nnrepair.spec.inputs import Adapted, AnyInputs, Arguments, Inputs
from nnrepair.spec.pyg import Graphs, is_batch, is_graph
from nnrepair.spec.regions import Regions
from nnrepair.spec.streams import streamed

#: What data sets call their items' labels; models never get them.
LABELS = ("labels", "label")


def as_points(given: Any, what: str) -> tuple[AnyInputs, Any]:
    """Return points as models run on them, and the labels that came with them, or None.

    Labels come with graphs (`y`) and under a name of `LABELS` with dictionaries; those of a data set are met later.

    Args:
        given: see `as_inputs`.
        what: how messages call it.
    """
    if isinstance(given, Mapping):
        inputs, labels = apart(given)
        return as_inputs(inputs, what), labels
    if is_batch(given) or _are_graphs(given):
        return Graphs.of(given, what)
    return as_inputs(given, what), None


def apart(given: Mapping[Any, Any]) -> tuple[dict[Any, Any], Any]:
    """Return a dictionary without its labels, and the labels, or None.

    >>> apart({"x": 1, "labels": 2})
    ({'x': 1}, 2)
    """
    name = next((name for name in LABELS if name in given), None)
    return {k: v for k, v in given.items() if k != name}, None if name is None else given[name]


def as_inputs(inputs: Any, what: str) -> AnyInputs:
    """Return points as models run on them.

    Args:
        inputs: a tensor, or what becomes one, with one point per row; several as a tuple, `model(*inputs)`, or by name
            in a dictionary, `model(**inputs)`; a data set, a list of items (x, label) or of dictionaries, or a loader,
            which is read a batch at a time; graphs of PyTorch Geometric; an `Inputs` object or what can do the same; or
            regions, for edits and what is to be kept.
        what: how the message calls it.

    Raises:
        InvalidInput: it is none of these, holds NaN, or arguments of unequal lengths.
    """
    if isinstance(inputs, Regions):
        if what not in ("Edits", "LocalitySet"):
            raise InvalidInput(
                f"{what}: {inputs!r} cannot be used here; only edits, and what is to be kept, can be about whole "
                "regions. Give points."
            )
        return inputs
    if isinstance(inputs, Inputs):
        _refuse_no_length(inputs, what)
        return inputs
    if isinstance(inputs, Mapping):
        return _as_arguments(dict(inputs), what)
    if isinstance(inputs, tuple) and inputs and all(isinstance(part, Tensor | np.ndarray) for part in inputs):
        return _as_arguments(dict(enumerate(inputs)), what)
    if is_graph(inputs):
        if is_batch(inputs):
            return Graphs.of(inputs, what)[0]
        raise InvalidInput(
            f"{what}: one graph is many points, its nodes: say which, with nnrepair.domains.graphs.NodeEdits(data, "
            "nodes) and NodeLocality(data, mask). Where graphs are points, give a list of them."
        )
    if isinstance(inputs, Dataset | DataLoader) or are_items(inputs) or _has_rows(inputs):
        return streamed(inputs, lambda x: as_inputs(tuple(x) if isinstance(x, list) else x, what), apart, what)
    if not isinstance(inputs, Tensor) and Adapted.fits(inputs):
        _refuse_no_length(inputs, what)
        return Adapted(inputs)
    return _rows(inputs, f"{what}: inputs", "a tensor or an Inputs object")


def _refuse_no_length(inputs: Any, what: str) -> None:
    try:
        len(inputs)
    except Exception as error:  # a user's class may raise anything
        raise InvalidInput(
            f"{what}: {type(inputs).__name__} does not say how many points it has: len() raised "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def are_items(given: Any) -> bool:
    """Whether something is a list of items, as a data set would give them: (x, label), dictionaries, or graphs.

    >>> x = torch.zeros(2, 3)
    >>> are_items([(x[0], 4), (x[1], 2)]), are_items((x, [4, 2])), are_items([[x[0], x[1]], [4, 2]])
    (True, False, False)
    >>> are_items([{"x": x[0], "labels": 4}, {"x": x[1], "labels": 2}])
    True
    """
    if isinstance(given, list) and given and all(isinstance(item, Mapping) for item in given):
        return True
    return _are_graphs(given) or (
        isinstance(given, list | tuple)
        and len(given) > 0
        and all(isinstance(item, tuple | list) and len(item) == 2 for item in given)
        and not any(isinstance(x, list | int | float) for x, _ in given)
        and all(isinstance(y, int | np.integer) or (isinstance(y, Tensor) and y.ndim == 0) for _, y in given)
    )


def _are_graphs(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) > 0 and all(map(is_graph, given))


def _has_rows(given: Any) -> bool:
    """Whether something is a table that gives dictionaries by number, as `datasets.Dataset` is."""
    return all(hasattr(given, name) for name in ("column_names", "features", "__getitem__", "__len__"))


def _as_arguments(given: dict[Any, Any], what: str) -> Arguments:
    """Return the arguments of a call, by place (integers) or by name: tensors with one row per point."""
    parts = {name: _rows(part, f"{what}: inputs[{name!r}]", "a tensor") for name, part in given.items()}
    by_place = list(parts) == list(range(len(parts)))
    if not parts or not (by_place or all(isinstance(name, str) for name in parts)):
        raise InvalidInput(
            f"{what}: inputs in a dictionary are a model's arguments by name, model(**inputs), got the keys "
            f"{list(parts)}."
        )
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r}: {length}" for name, length in lengths.items())
        raise InvalidInput(
            f"{what}: inputs of several arguments need one row per point in each, got as many as {listed}. A list of "
            "points, unlike a tuple, is stacked."
        )
    return Arguments(tuple(parts.values())) if by_place else Arguments((), parts)


def _rows(given: Any, what: str, expected: str) -> Tensor:
    """Return a tensor (n, ...) of finite numbers."""
    points = dense(given, what, expected)
    if points.ndim == 0:
        raise InvalidInput(f"{what} must have one point per row, got a single number.")
    if points.dtype.is_floating_point and not torch.isfinite(points).all():
        bad = torch.nonzero(~torch.isfinite(flat(points)).all(1)).flatten().tolist()
        raise InvalidInput(f"{what} must be finite; NaN or infinity at {first(bad)}.")
    return points


def as_criterion(target: Any, what: str) -> Criterion:
    """Return a criterion as it is, and labels as a criterion that is marked as made from labels."""
    if isinstance(target, Criterion):
        return target
    refuse_names(target, what)
    labels = dense(target, f"{what}: labels", "a tensor of labels, or a Criterion")
    if labels.dtype.is_floating_point:
        raise InvalidInput(f"{what}: {_advice_on_floats(labels)}")
    try:
        answers = labels.dtype == torch.bool or (labels.ndim > 1 and bool(((labels >= -1) & (labels <= 1)).all()))
        if labels.ndim > 1 and labels.shape[1:] == (1,) and not answers:
            raise InvalidInput(f"labels of shape {tuple(labels.shape)} are one per point: give labels.squeeze(1).")
        made = Threshold(labels) if answers else Argmax(labels)
        made.plain = True
        return made
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"{what}: {error}") from None


def _advice_on_floats(labels: Tensor) -> str:
    """Say what floating-point labels may be meant as."""
    given = f"labels are floating-point numbers, {tuple(labels.shape)} of {str(labels.dtype).removeprefix('torch.')}"
    coins = bool(((labels == 0) | (labels == 1)).all())
    if labels.ndim == 2 and labels.shape[1] > 1 and coins and bool((labels.sum(1) == 1).all()):
        return f"{given}, one 1 in each row. For one class per point give its number: labels.argmax(1)."
    if coins or (labels.ndim == 1 and bool((labels == labels.round()).all()) and bool((labels >= 0).all())):
        return f"{given}. For classes, or yes-or-no answers, use labels.long()."
    if bool(((labels >= 0) & (labels <= 1)).all()):
        return f"{given} between 0 and 1. Decide: (labels > 0.5) for yes-or-no answers, labels.argmax(1) for classes."
    return f"{given}. Where outputs are numbers, say how near they must be: Near(labels, tol=...)."
