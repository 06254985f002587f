"""Points as data sets have them: dictionaries with labels, tables, rows of different lengths; labels that are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import mlp, randn
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

import nnrepair
from nnrepair import Argmax, Edits, InvalidInput, LocalitySet
from nnrepair.methods import MinimalNorm

X, KEPT = randn(3, 6, seed=1), randn(30, 6, seed=2)
LAST = MinimalNorm(layer="net.2")


class Keywords(nn.Module):
    """Returns a loss beside its scores where it gets labels, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 24, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        assert labels is None, "labels reached the model"
        return self.net(x)


class Table:
    """As datasets.Dataset: rows by number, columns by name, lists for arrays."""

    def __init__(self, x: Tensor, labels: Tensor, name: str = "label") -> None:
        self.x, self.labels, self.column_names, self.features = x, labels, ["x", name], {"x": None, name: None}

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, k: Any) -> Any:
        return {self.column_names[0]: self.x[k].tolist(), self.column_names[1]: int(self.labels[k])}


class Rows(Dataset[Any]):
    def __init__(self, table: Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, k: int) -> Any:
        return {"x": self.table.x[k], "labels": int(self.table.labels[k])}


def rows(table: Table) -> list[Any]:
    return [Rows(table)[k] for k in range(len(table))]


FORMS: dict[str, Any] = {
    "a table": lambda table: table,
    "a list of dictionaries": rows,
    "a data set": Rows,
    "parts of data sets": lambda table: ConcatDataset(
        [Subset(Rows(table), range(len(table) // 2)), Subset(Rows(table), range(len(table) // 2, len(table)))]
    ),
    "a loader": lambda table: DataLoader(Rows(table), batch_size=4, shuffle=True),
    "a loader of a list": lambda table: DataLoader(rows(table), batch_size=4),
    "dictionaries beside labels": lambda table: [({"x": row["x"]}, row["labels"]) for row in rows(table)],
    "one dictionary": lambda table: {"x": table.x.numpy(), "label": table.labels.tolist()},
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_that_come_with_points_say_what_is_asked(form: str) -> None:
    model = Keywords().eval()
    wrong, today = model(X).argsort(1)[:, 1], model(KEPT).argmax(1)
    today[:5] = (today[:5] + 1) % 3  # wrong today, and free to change
    given = FORMS[form]
    result = nnrepair.fix(model, Edits(given(Table(X, wrong))), given(Table(KEPT, today)), method=LAST)
    assert torch.equal(result.model(X).argmax(1), wrong)
    effects = result.report.side_effects
    assert effects is not None and effects.accuracy_before == pytest.approx(25 / 30) and effects.drawdown is not None
    alone = LocalitySet(given(Table(KEPT, today)), labels=False)
    effects = nnrepair.fix(model, (X, wrong), alone, method=LAST).report.side_effects
    assert effects is not None and effects.accuracy_before is None and effects.locality == 1.0


def test_labels_of_ones_own_go_before_those_of_the_points() -> None:
    model = Keywords().eval()
    edits = Edits({"x": X, "labels": torch.zeros(3, dtype=torch.int64)}, Argmax([1, 1, 1]))
    assert isinstance(edits.criterion, Argmax) and edits.criterion.labels.tolist() == [1, 1, 1]
    assert torch.equal(nnrepair.fix(model, edits, method=LAST).model(X).argmax(1), torch.ones(3).long())


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.embed(words))


def test_scores_of_tokens_that_were_padded_otherwise_are_refused() -> None:
    def padded(items: list[Tensor]) -> Any:
        width = max(len(item) for item in items)
        return default_collate([torch.cat([item, torch.zeros(width - len(item), dtype=torch.int64)]) for item in items])

    sentences = [torch.randint(1, 9, (3 + k // 4,)) for k in range(16)]
    with pytest.raises(InvalidInput, match="outputs of different shapes for different batches.*Pad all points"):
        nnrepair.fix(
            Tagger().eval(),
            (torch.randint(1, 9, (1, 4)), [[0, 1, 2, 1]]),
            DataLoader(sentences, batch_size=4, collate_fn=padded),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.0, 1.0, 2.0]), r"use labels.long\(\)"),
        (torch.tensor([0.5, 7.0, -1.0]), r"Near\(labels, tol=...\)"),
        (torch.rand(3, 3), r"\(labels > 0.5\) for yes-or-no answers, labels.argmax\(1\)"),
        (torch.eye(3), r"one 1 in each row.*labels.argmax\(1\)"),
        (torch.tensor([[0], [1], [2]]), r"give labels.squeeze\(1\)"),
        (torch.tensor([1, 2, 3]), "counted from 1.*labels - 1"),
        (["cat", "dog", "cat"], "labels are names.*names.index"),
        ([0, 1], "3 inputs but 2 labels"),
        (torch.zeros(2, 3).long(), r"seem to be transposed: labels.T"),
        (torch.tensor([0, 1, 255]), "ignore=255"),
    ],
)
def test_labels_that_are_none_are_refused_with_what_they_may_be(labels: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(mlp(6, 8, 3), (X, labels), KEPT)


def test_inputs_that_stand_on_their_side_or_at_the_end() -> None:
    with pytest.raises(InvalidInput, match="inputs.T has one row per point"):
        Edits(X.T, [0, 1, 2])
    with pytest.raises(InvalidInput, match="in each other's place"):
        Edits(torch.tensor([0, 1, 2]), X)
