"""What people ask of networks: labels of pixels and tokens, ranks, vetoes, targets in their own units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import mlp, randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import Above, Argmax, Between, Edits, InvalidInput, LocalitySet, Near, Threshold, TopK
from nnrepair.methods import EGNN, GRACE, FineTune, MinimalNorm
from nnrepair.penalties import EWC, KL

X, KEPT = randn(3, 6, seed=1), randn(40, 6, seed=2)
IMAGES = randn(12, 1, 5, 4, seed=3)


class Segments(nn.Module):
    """Pixels (n, classes, height, width)."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)))


class Words(nn.Module):
    """Tokens (n, tokens, classes), each seen with the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(40, 16), nn.Linear(32, 48), nn.Linear(48, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        h = self.embed(input_ids)
        weight = attention_mask.to(h.dtype)[..., None]
        mean = ((h * weight).sum(1) / weight.sum(1))[:, None].expand_as(h)
        return {"logits": self.head(torch.relu(self.body(torch.cat([h, mean], 2))))}


@pytest.mark.parametrize(
    "method",
    [
        MinimalNorm(layer="head"),
        MinimalNorm(layer="conv"),
        MinimalNorm(layer="head", norm="fisher", locality="soft"),
        FineTune(lr=0.02, penalties=[KL(0.1)]),
        FineTune(lr=0.02, penalties=[EWC(0.1)], rehearsal=4),
        GRACE(),
    ],
    ids=["last", "hidden", "fisher", "ft+kl", "ewc", "grace"],
)
def test_labels_of_pixels(method: Any) -> None:
    model = seeded(Segments).eval()
    y = model(IMAGES).detach()
    labels = y.argmax(1)
    wanted = labels[:1].clone()
    wanted[0, 2, 2] = y[0, :, 2, 2].argsort()[1]
    wanted[0, 4] = -100  # the last row may be anything
    kept = LocalitySet(IMAGES[1:], labels[1:])
    result = nnrepair.fix(model, (IMAGES[:1], wanted), kept, method=method, throw=False)
    now, asked = result.model(IMAGES[:1]).argmax(1), wanted != -100
    assert result.outcome.ok and torch.equal(now[asked], wanted[asked])
    effects = result.report.side_effects
    assert effects is not None and effects.decisions == 20
    assert effects.locality == (result.model(IMAGES[1:]).argmax(1) == labels[1:]).flatten(1).all(1).double().mean()


def test_two_classes_of_pixels_in_zeros_and_ones() -> None:
    model = seeded(lambda: Segments(2)).eval()
    y = model(IMAGES).detach()
    wanted = y[:1].argmax(1)
    wanted[0, 0, 0] = 1 - wanted[0, 0, 0]
    for labels in (wanted, wanted.bool()):  # a mask of two classes, not one answer per output
        result = nnrepair.fix(model, (IMAGES[:1], labels), IMAGES[1:], method=MinimalNorm(layer="conv"))
        assert torch.equal(result.model(IMAGES[:1]).argmax(1), wanted)
        assert result.report.locality == 1.0


def test_labels_of_tokens_with_padding() -> None:
    model, draw = seeded(Words).eval(), torch.Generator().manual_seed(0)
    mask = torch.arange(7) < torch.randint(3, 8, (12, 1), generator=draw)
    words = {"input_ids": torch.randint(1, 40, (12, 7), generator=draw) * mask, "attention_mask": mask.long()}
    y = model(**words)["logits"].detach()
    labels = torch.where(mask, y.argmax(2), -100)
    wanted = labels[:1].clone()
    wanted[0, 1] = y[0, 1].argsort()[-2]
    first, others = ({name: part[k] for name, part in words.items()} for k in (slice(0, 1), slice(1, None)))
    method = MinimalNorm(layer="body")
    result = nnrepair.fix(model, {**first, "labels": wanted}, {**others, "labels": labels[1:]}, method=method)
    now = result.model(**words)["logits"].argmax(2)
    assert torch.equal(now[0][mask[0]], wanted[0][mask[0]]) and torch.equal(
        now[1:][mask[1:]], y.argmax(2)[1:][mask[1:]]
    )
    assert result.report.drawdown == 0.0
    history = nnrepair.fix(model, {**first, "labels": wanted}, LocalitySet(others), method=method, mode="successive")
    assert history.success_rate == 1.0


@pytest.mark.parametrize("layer", ["2", "0"])
def test_ranks(layer: str) -> None:
    model = mlp(6, 24, 5)
    y = model(X).detach()
    order = y.argsort(1, descending=True)
    asked = {
        "one of two among the best two": TopK([[order[k, 3], order[k, 4]] for k in range(3)], 2),
        "the last above the second": Above(order[:, 4], order[:, 1]),
        "either": TopK(order[:, 4], 1) | TopK(order[:, 3], 2),
        "both": TopK(order[:, 3], 2) & Argmax(order[:, 0]),
    }
    for name, criterion in asked.items():
        assert not criterion.holds(y).any(), name
        result = nnrepair.fix(model, Edits(X, criterion), KEPT, method=MinimalNorm(layer=layer))
        assert criterion.holds(result.model(X).detach()).all() and result.report.locality == 1.0, name


def test_a_veto_of_one_box_keeps_what_is_seen() -> None:
    """A detector with 6 boxes and 2 kinds of things: it is to see nothing in box 4."""
    detector = nn.Sequential(mlp(6, 32, 12), nn.Sigmoid(), nn.Unflatten(1, (6, 2))).eval()
    with torch.no_grad():
        detector[0][2].bias -= 1.0
        detector[0][2].bias[8] += 2.0  # box 4, kind 0
    labels = torch.full((3, 6, 2), -1)
    labels[:, 4, 0] = 0
    seen = detector(KEPT) > 0.5
    result = nnrepair.fix(
        detector, Edits(X, Threshold(labels, threshold=0.5)), KEPT, method=MinimalNorm(layer="0.2"), throw=False
    )
    assert (result.model(X)[:, 4, 0] < 0.5).all()
    assert result.report.locality == ((result.model(KEPT) > 0.5) == seen).flatten(1).all(1).double().mean()
    by_number = Edits(X, Between(high=0.4, at=(4, 0), points=3))
    result = nnrepair.fix(detector, by_number, KEPT, method=MinimalNorm(layer="0.2", locality="soft"), throw=False)
    assert (result.model(X)[:, 4, 0] <= 0.4).all()


@pytest.mark.parametrize("criterion", ["near", "between"])
def test_targets_in_degrees(criterion: str) -> None:
    model, units = mlp(6, 24, 1), (20.0, 5.0)
    degrees = model(X).detach() * 5.0 + 20.0
    wanted = degrees + 2.0
    asked = {"near": Near(wanted, 0.5, units=units), "between": Between(wanted - 0.5, wanted + 0.5, units=units)}
    result = nnrepair.fix(
        model, Edits(X, asked[criterion]), LocalitySet(KEPT, Near(model(KEPT).detach() * 5 + 20, 4.0, units=units))
    )
    assert ((result.model(X) * 5.0 + 20.0 - wanted).abs() <= 0.5 + 1e-4).all()
    assert result.report.side_effects is not None
    assert result.report.side_effects.measures["mean squared error"][0] < 1e-10


def test_a_criterion_that_no_convex_set_is_refused_over_regions() -> None:
    segment = nnrepair.Segments(X[:1], X[1:2])
    with pytest.raises(InvalidInput, match="TopK holds on no convex set"):
        nnrepair.fix(mlp(6, 8, 5), Edits(segment, TopK([1], 2)))
    model = mlp(6, 24, 5)
    result = nnrepair.fix(model, Edits(segment, Above([1], [0])), method=MinimalNorm(layer="2"))
    assert result.outcome.ok and result.verify().holds


def test_egnn_takes_labels_of_positions_too() -> None:
    model = nn.Sequential(mlp(6, 12, 12), nn.Unflatten(1, (3, 4))).eval()
    wanted = model(X).argsort(1)[:, 1]
    result = nnrepair.fix(model, (X, Argmax(wanted, axis=1)), KEPT, method=EGNN(lr=0.02, steps=2000))
    assert torch.equal(result.model(X).argmax(1), wanted)
