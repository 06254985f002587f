"""What criteria about numbers measure, in reports and histories of regression models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, Edits, InvalidInput, Linear, LocalitySet, Near, Threshold
from nnrepair.methods import FineTune, MinimalNorm

Y = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
ERROR, WITHIN = "mean squared error", "share within tolerance"


def test_measures_of_every_criterion() -> None:
    target, tol = torch.zeros(2, 2), torch.tensor([1.0, torch.inf])
    assert Near(target, 1.0).measures(Y) == {ERROR: 5 / 4, WITHIN: 0.5}
    assert Near(target, tol).measures(Y) == {ERROR: 2.0, WITHIN: 0.5}  # an output that is free has no error
    assert Near(target, torch.inf).measures(Y) == {ERROR: 0.0, WITHIN: 1.0}
    assert Linear([[1.0, 0.0]], [1.0], points=2).measures(Y) == {"share within bounds": 0.5}
    assert Argmax([0, 1]).measures(Y) == {} and Threshold([[1, 0], [1, 0]]).measures(Y) == {}
    assert (Argmax([0, 1]) & Near(target, 1.0)).measures(Y) == {ERROR: 5 / 4, WITHIN: 0.5}
    assert (Near(target, 1.0) | Near(target, 2.0)).measures(Y) == {}


def regression() -> tuple[nn.Module, Edits, Tensor, Tensor]:
    model, x = mlp(4, 16, 2, seed=1), randn(30, 4, seed=2)
    with torch.no_grad():
        y = model(x)
    edits = Edits(x[:1] + 1, Near(y[:1] + 1.0, 0.05))
    return model, edits, x, y + 0.05 * randn(30, 2, seed=3)


@pytest.mark.parametrize("method", [FineTune(lr=0.01), MinimalNorm(layer="2", locality="none")])
def test_reports_of_regression_models(method: Any) -> None:
    model, edits, x, target = regression()
    locality = LocalitySet(x, Near(target, 0.1))
    result = nnrepair.fix(model, edits, locality, method=method, test_set={"mine": locality, "bare": x})
    kept = result.report.side_effects
    assert kept is not None and kept.locality is None and kept.decisions == 0
    with torch.no_grad():
        outputs = [network(x) for network in (model, result.model)]
    errors = [float((y - target).double().square().mean()) for y in outputs]
    within = [float(((y - target).abs() <= 0.1).all(1).double().mean()) for y in outputs]
    assert kept.measures == {ERROR: pytest.approx(errors), WITHIN: pytest.approx(within)}
    assert (kept.accuracy_before, kept.accuracy_after) == pytest.approx(tuple(within))
    assert kept.drawdown_points == pytest.approx(100 * (within[0] - within[1]))
    assert result.report.tests["mine"].measures == kept.measures
    assert result.report.tests["bare"].measures == {} and result.report.tests["bare"].moved is not None
    said = str(result.report)
    assert f"mean squared error {errors[0]:.3g} before, {errors[1]:.3g} now" in said
    assert "share within tolerance" in said and "drawdown" in said
    assert result.report.as_dict()["side_effects"]["measures"] == kept.measures


def test_histories_of_regression_models(tmp_path: Path) -> None:
    model, _, x, target = regression()
    with torch.no_grad():
        edits = Edits(x[:2] + 1, Near(model(x[:2] + 1) + 0.5, 0.05))
    file = tmp_path / "r.safetensors"
    arguments: dict[str, Any] = {"method": FineTune(lr=0.01), "mode": "independent", "resume": file}
    locality = LocalitySet(x, Near(target, 0.1))
    history = nnrepair.fix(model, edits, locality, **arguments)
    (kept,) = history.side_effects.values()
    steps = [step.side_effects["locality set"].measures for step in history.steps]
    assert kept.measures[ERROR] == pytest.approx([sum(s[ERROR][k] for s in steps) / 2 for k in (0, 1)])
    again = nnrepair.fix(model, edits, locality, **arguments)
    assert [step.side_effects["locality set"].measures for step in again.steps] == steps


def test_outputs_that_are_no_longer_finite_have_no_measure() -> None:
    from nnrepair.results.metrics import before_and_after

    assert before_and_after(Near(Y, 1.0), Y, Y / 0) == {WITHIN: [1.0, 0.0]}


def test_a_stored_step_with_damaged_measures_is_refused() -> None:
    from nnrepair.results.history import Step

    model, edits, x, target = regression()
    history = nnrepair.fix(model, edits, LocalitySet(x, Near(target, 0.1)), method="ft", mode="independent")
    plain = history.steps[0].as_dict()
    assert Step.from_dict(plain) == history.steps[0]
    earlier = {"kept" if name == "side_effects" else name: value for name, value in plain.items()}
    assert Step.from_dict(earlier) == history.steps[0]  # as files once called them
    for broken in ({ERROR: [1.0]}, {ERROR: [1.0, float("nan")]}, {ERROR: "two"}, {3: [1.0, 2.0]}):
        kept = plain["side_effects"]["locality set"] | {"measures": broken}
        with pytest.raises(InvalidInput, match="damaged"):
            Step.from_dict(plain | {"side_effects": {"locality set": kept}})
