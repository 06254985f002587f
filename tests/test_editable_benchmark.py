"""The benchmark of Editable Training on ResNet-20: what was measured, and the editors that are committed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from networks import clusters, mlp, randn

import nnrepair
from benchmarks import measure
from benchmarks.cifar import editable
from benchmarks.cifar.editable import EDITORS, RANDOM, RESULTS, SEEDS, Protocol, figures
from nnrepair import Edits, EditScope, LocalitySet
from nnrepair.domains.images import cifar
from nnrepair.fingerprint import fingerprint
from nnrepair.methods import Editor, FineTune


def rows(name: str) -> list[dict[str, Any]]:
    return [row for row in measure.load(RESULTS) if row["name"] == name]


def test_what_was_asked_of_it_was_measured() -> None:
    """Means over three seeds of 300 edits with random labels, and 50 real mistakes."""
    block, bare = rows("block"), rows("block, not prepared")
    assert sorted(row["seed"] for row in block) == list(SEEDS)
    random = [row["random labels"] for row in block]
    assert all(one["edits"] == RANDOM for one in random)
    assert min(one["success_rate"] for one in random) >= 0.98
    assert fmean(one["steps"] for one in random) <= 3.5
    lost = fmean(one["drawdown_points"]["jpeg"] for one in random)
    assert lost <= 2 and lost <= fmean(row["random labels"]["drawdown_points"]["jpeg"] for row in bare) / 3
    assert fmean(row["real mistakes"]["drawdown_points"]["jpeg"] for row in block) <= 0.3
    for row in block:
        told = row["training"]
        for name, least in (("jpeg", -0.5), ("lossless", -0.5)):
            assert 100 * (told["accuracy"][name] - told["accuracy_before"][name]) >= least


def test_the_editors_are_those_of_their_records() -> None:
    for row in rows("block"):
        path = EDITORS / f"block-{row['seed']}.safetensors"
        editor = Editor.load(path)
        assert editor.fingerprint == row["training"]["fingerprint"] and editor.steps == row["training"]["steps"]
        assert path.stat().st_size == row["training"]["bytes"] <= 5e6
        assert {value.shape for name, value in editor.learned.items() if name.startswith("values")} == {
            *((1024, 64), (1024,), (64, 1024), (64,))
        }


def test_figures_are_means_over_edits() -> None:
    model, x = mlp(4, 12, 3, seed=1), randn(6, 4, seed=5)
    kept = clusters(40, 4, seed=6)
    with torch.no_grad():
        labels, right = model(x).argsort(1)[:, 1], model(kept).argmax(1)
    labels[0] = model(x[:1]).argmax()  # holds already
    scope = EditScope(x.repeat_interleave(2, 0), labels.repeat_interleave(2), torch.arange(6).repeat_interleave(2))
    tests = {"jpeg": (kept, right), "lossless": (kept[:7], right[:7])}
    protocol = Protocol(model, Edits(x, labels), scope, LocalitySet(kept), tests)
    method = FineTune(lr=0.05)
    found = figures(protocol, method)
    results = [nnrepair.fix(model, (x[k : k + 1], labels[k : k + 1]), method=method, test_set=tests) for k in range(6)]
    lost = [result.report.tests["jpeg"].drawdown_points for result in results]
    assert (found["edits"], found["changed"], found["success_rate"], found["generalization_rate"]) == (6, 5, 1.0, 1.0)
    assert found["drawdown_points"]["jpeg"] == pytest.approx(fmean(lost))
    assert found["drawdown_points_of_changed"]["jpeg"] == pytest.approx(fmean(lost[1:]))
    assert found["drawdown_points_max"]["jpeg"] == pytest.approx(max(lost))
    assert found["steps"] == pytest.approx(fmean(result.stats.get("steps", 0) for result in results))


@pytest.mark.data
@pytest.mark.slow
def test_the_last_layer_is_edited_as_the_whole_network_is(data_dir: Callable[..., Path]) -> None:
    """What was learned for the last layer on its features belongs to the whole network too, and does the same there."""
    data_dir("cifar10/resnet20-12fca82f.th")
    network, editor = cifar.resnet20(), Editor.load(EDITORS / "block-0.safetensors")
    head = editable.head(network)
    whole = Editor(editor.method, editor.learned, fingerprint(network), editor.steps)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = network.features(x)
        labels = head(seen).argsort(1)[:, 4]
    for k in range(len(x)):
        one = nnrepair.fix(head, (seen[k : k + 1], labels[k : k + 1]), method=editor)
        two = nnrepair.fix(network, (x[k : k + 1], labels[k : k + 1]), method=whole)
        assert one.stats["steps"] == two.stats["steps"]
        with torch.no_grad():
            torch.testing.assert_close(one.model(seen), two.model(x), rtol=1e-3, atol=1e-3)
