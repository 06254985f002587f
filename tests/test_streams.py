"""Data sets and loaders: read in a fixed order, a batch at a time, and never held in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import clusters, mistakes, mlp, randn
from test_arguments import Tokens, run, seeded, sentences
from test_methods import METHODS, every_method, ready
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import nnrepair
from nnrepair import Edits, EditScope, InvalidInput, LocalitySet, Near, Threshold
from nnrepair.methods import EGNN, FineTune, Method, MinimalNorm
from nnrepair.methods.fine_tune.penalties import EWC, KL
from nnrepair.spec.streams import Stream


class Items(Dataset[Any]):
    """Points, with labels or without; counts how many that it gave are still held, and which were read."""

    def __init__(self, x: Any, labels: Tensor | None = None) -> None:
        self.x, self.labels = x, labels
        self.alive, self.most, self.read = 0, 0, list[int]()

    def __len__(self) -> int:
        return len(next(iter(self.x.values()))) if isinstance(self.x, dict) else len(self.x)

    def __getitem__(self, k: int) -> Any:
        self.read.append(k)
        x = {name: part[k] for name, part in self.x.items()} if isinstance(self.x, dict) else self.x[k].clone()
        return x if self.labels is None else (x, int(self.labels[k]))

    def collate(self, items: list[Any]) -> Any:
        """Make a batch, and watch it."""
        batch = default_collate(items)
        x = batch if self.labels is None else batch[0]
        self.alive += len(x)
        self.most = max(self.most, self.alive)
        weakref.finalize(x, self._gone, len(x))
        return batch

    def _gone(self, count: int) -> None:
        self.alive -= count


def task(points: int = 400, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Edits, Tensor, Tensor]:
    model = mlp(4, 32, 3, seed=1).to(dtype)
    x = randn(3, 4, seed=5, dtype=dtype)
    kept = clusters(points, 4, seed=6).to(dtype)
    with torch.no_grad():
        labels = model(kept).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3  # where the model is wrong
    return model, Edits(x, mistakes(model, x)), kept, labels


@every_method
@pytest.mark.parametrize("labelled", [True, False])
def test_a_stream_is_the_same_as_the_points_in_memory(make: Callable[[], Method], labelled: bool) -> None:
    model, edits, kept, labels = task(60, torch.float64)  # float32's rounding in other batches is not what is asked
    given = Items(kept, labels if labelled else None)
    plain = LocalitySet(kept, labels) if labelled else LocalitySet(kept)
    method = ready(make, model, plain)
    found = [
        nnrepair.fix(model, edits, locality, method=method, test_set=locality, throw=False)
        for locality in (plain, LocalitySet(given), DataLoader(given, batch_size=7))
    ]
    first = found[0].report.as_dict()
    for result in found[1:]:
        report = result.report.as_dict()
        for name in ("held_after", "locality_points"):
            assert report[name] == first[name]
        for name in ("locality", "drawdown", "success_rate"):
            assert report[name] == pytest.approx(first[name])
        assert report["tests"].keys() == first["tests"].keys()
        assert report["side_effects"]["free"] == first["side_effects"]["free"]
        torch.testing.assert_close(result.report.weight_change.l2, found[0].report.weight_change.l2, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "method",
    [
        MinimalNorm(layer="2"),
        MinimalNorm(layer="0"),
        MinimalNorm(),
        MinimalNorm(layer="0", architecture="decoupled", locality="soft"),
        FineTune(lr=0.01, rehearsal=8, penalties=[KL(0.1)], batch_size=16),
        FineTune(lr=0.01, penalties=[EWC(0.1, points=20)], batch_size=16),
    ],
    ids=["last", "hidden", "auto", "decoupled", "rehearsal", "ewc"],
)
def test_no_more_than_a_few_batches_are_ever_held(method: Method) -> None:
    # In the solver's dtype: what it keeps of a batch keeps the batch.
    model, edits, kept, labels = task(800, torch.float64)
    items = Items(kept, labels)
    loader = DataLoader(items, batch_size=20, collate_fn=items.collate)
    result = nnrepair.fix(model, edits, loader, method=method, test_set=loader, throw=False)
    gc.collect()
    assert result.report.locality_points == 800
    # A batch, one that is read anew, and the points whose rows are computed together.
    assert items.most <= 2 * 20 + 256
    assert set(items.read) == set(range(800))
    assert items.alive == 0


def test_egnn_says_that_it_holds_everything() -> None:
    model, edits, kept, _ = task(300)
    result = nnrepair.fix(model, edits, Items(kept), method=EGNN(lr=0.02), throw=False)
    assert "held the own features of all 300 points of the locality set in memory" in " ".join(result.report.notes)


def test_labels_are_met_on_the_way() -> None:
    _, edits, kept, labels = task(50)
    items = Items(kept, labels)
    model = mlp(4, 32, 3, seed=1)
    locality = LocalitySet(items)
    assert items.read == [0]
    nnrepair.spec.problem.pose(model, edits, locality)
    assert items.read.count(40) == 1  # the pass that looks at all points is the one that meets labels
    items.read.clear()
    assert torch.equal(locality.criterion.labels, labels) and items.read == []
    fresh = LocalitySet(items)
    assert torch.equal(fresh.criterion.labels, labels) and len(items.read) == 51
    kept_as_they_are = LocalitySet(items, labels=False)
    assert kept_as_they_are.criterion is None
    assert nnrepair.fix(model, edits, kept_as_they_are, throw=False).report.drawdown is None


def test_the_order_is_the_data_sets() -> None:
    _, _, kept, labels = task(50)
    items = Items(kept, labels)
    for loader in (DataLoader(items, batch_size=8, shuffle=True), DataLoader(items), items, Subset(items, range(50))):
        found = LocalitySet(loader)
        assert torch.equal(found.inputs.loaded(), kept) and torch.equal(found.criterion.labels, labels)
    part = LocalitySet(DataLoader(items, batch_size=8, sampler=SubsetRandomSampler([3, 1, 9])))
    assert torch.equal(part.inputs.loaded(), kept[[3, 1, 9]])
    assert torch.equal(part[torch.tensor([True, False, True])].inputs.loaded(), kept[[3, 9]])


def test_edits_are_read_into_memory() -> None:
    model, edits, kept, _ = task(50)
    given = Items(edits.inputs, edits.criterion.labels)
    read = Edits(given)
    assert torch.equal(read.inputs, edits.inputs) and torch.equal(read.criterion.labels, edits.criterion.labels)
    result = nnrepair.fix(model, DataLoader(given, batch_size=2), kept, method=MinimalNorm(layer="2"))
    assert result.certificate is not None and result.report.edits == 3
    groups = Edits(given, of=[0, 1, 0])
    assert len(groups) == 2
    scope = EditScope(Items(edits.inputs + 0.01, edits.criterion.labels), of=[0, 1, 2])
    assert isinstance(scope.inputs, Stream)
    assert nnrepair.fix(model, edits, edit_scope=scope).report.generalization_rate is not None
    assert nnrepair.fix(model, TensorDataset(edits.inputs, edits.criterion.labels)).outcome.ok


def test_certificates_name_streamed_points_that_bind() -> None:
    model, edits, kept, _ = task(100)
    method = MinimalNorm(layer="2", norm="l2")
    memory, stream = (nnrepair.fix(model, edits, given, method=method) for given in (kept, Items(kept)))
    assert memory.certificate is not None and stream.certificate is not None
    mine, theirs = memory.certificate.arrays, stream.certificate.arrays
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-6)
    with pytest.raises(InvalidInput, match="points to keep: only points in a plain tensor"):
        stream.verify()


def test_items_of_several_arguments() -> None:
    model, few, many = seeded(Tokens), sentences(3, 1), sentences(20, 2)
    labels = run(model, few).topk(2, 1).indices[:, 1]
    assert len(METHODS) > 3
    for method in (MinimalNorm(layer="head"), FineTune(lr=0.01, rehearsal=4)):
        results = [
            nnrepair.fix(model, (few, labels), given, method=method)
            for given in (LocalitySet(many), Items(many), DataLoader(Items(many), batch_size=6))
        ]
        for result in results[1:]:
            torch.testing.assert_close(run(result.model, many), run(results[0].model, many))


def test_answers_numbers_and_criteria_beside_a_data_set() -> None:
    kept = clusters(30, 4, seed=6)
    model = mlp(4, 8, 1, seed=1)
    with torch.no_grad():
        y = model(kept)
    answers = LocalitySet(Items(kept, (y[:, 0] > 0).long()), Threshold(y[:, 0] > 0))
    near = LocalitySet(Items(kept), Near(y, 0.5))
    edit = kept[:1] + 1
    with torch.no_grad():
        wanted = model(edit) <= 0
    for locality in (answers, near, Items(kept, (y[:, 0] > 0).long())):
        assert nnrepair.fix(model, (edit, wanted), locality, method="ft", throw=False).report.side_effects is not None


def test_sequences_read_streams(tmp_path: Any) -> None:
    model, edits, kept, labels = task(40)
    items = Items(kept, labels)
    arguments: dict[str, Any] = {
        "method": MinimalNorm(layer="2"),
        "mode": "successive",
        "resume": tmp_path / "s.safetensors",
    }
    history = nnrepair.fix(model, edits, items, **arguments)
    assert history.success_rate == 1.0
    assert len(nnrepair.fix(model, edits, items, **arguments).steps) == 3
    with pytest.raises(InvalidInput, match="points: locality set"):
        nnrepair.fix(model, edits, Items(kept.flip(0), labels), **arguments)


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(randn(3, 4))


class Noisy(Items):
    def __getitem__(self, k: int) -> Any:
        return self.x[k] + torch.rand(4)


class Broken(Items):
    def __getitem__(self, k: int) -> Any:
        if k == 17:
            raise OSError("no such image")
        return super().__getitem__(k)


class Words:
    def clone(self) -> Words:
        return self


X = torch.linspace(0, 1, 160).reshape(40, 4)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "iterable": (Endless, "Endless has no items by number"),
    "loader of an iterable": (lambda: DataLoader(Endless()), "Endless has no items by number"),
    "weights": (
        lambda: DataLoader(Items(X), sampler=WeightedRandomSampler([1.0] * 40, 40)),
        r"by WeightedRandomSampler has no order.*loader\.dataset",
    ),
    "batches of its own": (
        lambda: DataLoader(Items(X), batch_sampler=type("Mine", (BatchSampler,), {})(range(40), 4, False)),
        "by Mine has no order",
    ),
    "three parts": (lambda: TensorDataset(X, X, X), r"got 3 parts.*\(\(a, b\), y\)"),
    "empty": (lambda: Items(X[:0]), "Items has no items"),
    "no tensors": (lambda: Items([Words()] * 3), r"Items \[0\] of the data set make no batch: TypeError"),
    "broken": (lambda: Broken(X), "Item 17 of the data set cannot be read: OSError: no such image"),
    "random": (lambda: Noisy(X), "differ when they are read again: it is random"),
    "nan": (lambda: Items(torch.full((5, 4), torch.nan)), "NaN"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_read_again_is_refused(form: str) -> None:
    make, message = REFUSED[form]
    model, edits, _, _ = task(10)
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(model, edits, LocalitySet(make()), method="ft")
