from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Tied, clusters, mistakes, mlp, randn, seeded
from reference import dense_jacobian, dense_rows, min_norm_cvxpy
from torch import Tensor, nn

import nnrepair
from nnrepair import (
    AnyOf,
    Argmax,
    Argmin,
    Decoupled,
    Edits,
    InvalidInput,
    Linear,
    LocalitySet,
    Near,
    RepairFailed,
    judge,
)
from nnrepair.deadline import Deadline
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods import MinimalNorm
from nnrepair.methods.minimal_norm import elsewhere
from nnrepair.methods.minimal_norm.affine import ExactRepair
from nnrepair.methods.minimal_norm.conflicts import conflict
from nnrepair.methods.minimal_norm.demands import Demand, demands_of
from nnrepair.solver.minnorm import Infeasible
from nnrepair.solver.norms import METRICS, NAMES
from nnrepair.spec.kinds import Classes
from nnrepair.spec.problem import pose

MARGIN = 0.05


def small_task(points: int = 15) -> tuple[nn.Sequential, Edits, Tensor]:
    model = mlp(4, 12, 10, 3, seed=3)
    x = randn(3, 4, seed=5)
    return model, Edits(x, mistakes(model, x)), clusters(points, 4, seed=6)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def rows_of(model: nn.Module, names: Sequence[str], x: Tensor, criterion: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return (G, slack) of all conditions, by the slow twin, one row per output and the bias last."""
    slack = criterion.slack(copy.deepcopy(model).double()(x.double())).detach()
    point, condition = torch.nonzero(torch.isfinite(slack)).T
    rows = [flat(row, names) for row in dense_rows(model, names, x, criterion, point, condition)]
    return np.stack(rows), slack[point, condition].numpy()


def flat(change: dict[str, Tensor], names: Sequence[str]) -> np.ndarray:
    weight, bias = (change[n].detach() for n in names)
    return torch.cat([weight.flatten(1), bias[:, None]], 1).double().numpy().ravel()


@pytest.mark.parametrize("norm", NAMES)
@pytest.mark.parametrize(("layer", "architecture"), [("4", "same"), ("2", "decoupled")])
@pytest.mark.parametrize("keep", [True, False], ids=["locality", "no locality"])
def test_the_change_is_the_smallest_one(norm: Any, layer: str, architecture: Any, keep: bool) -> None:
    model, edits, locality = small_task()
    if norm in METRICS and not keep:
        pytest.skip("this norm is measured on the locality set")
    names = [f"{layer}.weight", f"{layer}.bias"]
    method = MinimalNorm(layer, norm, margin=MARGIN, architecture=architecture)
    result = nnrepair.fix(model, edits, locality if keep else None, method=method)

    G, slack = rows_of(model, names, edits.inputs, edits.criterion)
    h = MARGIN - slack
    if keep:
        stay = Argmax(outputs(copy.deepcopy(model).double(), locality.double()).argmax(1))
        more, slack = rows_of(model, names, locality, stay)
        G, h = np.concatenate([G, more]), np.concatenate([h, np.minimum(slack, MARGIN) - slack])
    shape = tuple(model[int(layer)].weight.shape)
    metric = None
    if norm in METRICS:
        line = Linearization(model, names, edits.inputs)
        ((factor, left),) = line.metric(locality, Classes(), fisher=norm == "fisher").sides
        metric = np.kron(np.eye(shape[0]) if left is None else left.T, factor.T)
    optimum, _ = min_norm_cvxpy(G, h, norm, (shape[0], shape[1] + 1), metric)
    assert result.stats["objective"] == pytest.approx(optimum, rel=1e-5)
    assert result.stats["lower_bound"] <= optimum * (1 + 1e-6)
    assert result.stats["gap"] <= 1e-6
    assert result.outcome.status == "repaired"
    # What was changed is what was claimed.
    if isinstance(result.model, Decoupled):
        change = result.model.change
    else:
        old = dict(model.named_parameters())
        change = {n: p.double() - old[n].double() for n, p in result.model.named_parameters() if n in names}
        assert all(torch.equal(p, old[n]) for n, p in result.model.named_parameters() if n not in names)
    assert (h - G @ flat(change, names)).max() <= 1e-5
    if keep:
        assert torch.equal(outputs(result.model, locality).argmax(1), outputs(model, locality).argmax(1))
        assert result.report.locality == 1.0


@pytest.mark.parametrize("norm", NAMES)
def test_same_architecture_repairs_a_hidden_layer(norm: Any) -> None:
    model, edits, locality = small_task()
    result = nnrepair.fix(model, edits, locality, method=MinimalNorm("0", norm))
    assert type(result.model) is type(model)
    assert result.report.success_rate == 1.0
    assert torch.equal(outputs(result.model, edits.inputs).argmax(1), edits.criterion.labels)
    changed = [n for n, p in result.model.named_parameters() if not torch.equal(p, dict(model.named_parameters())[n])]
    assert set(changed) <= {"0.weight", "0.bias"}
    assert changed
    assert "not proved minimal" in " ".join(result.report.notes)
    assert result.certificate is None


@pytest.mark.parametrize("layer", ["4.weight", "4.bias", ["2", "4"], ["4", "0"], ["4.bias", "4.weight"]])
@pytest.mark.parametrize("architecture", ["same", "decoupled"])
def test_layers_and_parameters_by_name(layer: Any, architecture: Any) -> None:
    model, edits, _ = small_task()
    edits = edits[torch.tensor([0])] if layer == "4.bias" else edits
    result = nnrepair.fix(model, edits, method=MinimalNorm(layer, architecture=architecture))
    assert result.outcome.ok
    wanted = [layer] if isinstance(layer, str) else layer
    if isinstance(result.model, Decoupled):
        changed = list(result.model.change)
    else:
        changed = [
            n for n, p in result.model.named_parameters() if not torch.equal(p, dict(model.named_parameters())[n])
        ]
    assert changed
    assert all(any(n == w or n.startswith(w + ".") for w in wanted) for n in changed)


def test_a_certificate_comes_with_an_exact_repair() -> None:
    model, edits, locality = small_task()
    result = nnrepair.fix(model, edits, locality, method=MinimalNorm("4", "linf"))
    assert result.certificate is not None
    assert result.certificate.lower_bound <= result.certificate.objective
    assert "none has linf norm below" in result.certificate.claim
    assert "certificate (not yet checked)" in str(result)


def test_auto_chooses_a_layer_and_says_what_was_tried() -> None:
    model, edits, locality = small_task(points=60)
    result = nnrepair.fix(model, edits, locality)
    assert result.outcome.ok
    note = " ".join(result.report.notes)
    for layer in ("0", "2", "4"):
        assert f"{layer}: " in note
    assert "was chosen" in note
    assert set(result.stats["layers_tried"]) == {"0", "2", "4"}


def test_auto_takes_another_layer_where_the_last_is_infeasible() -> None:
    model, edits = alike_for_the_last_layer()
    result = nnrepair.fix(model, edits)
    assert result.outcome.ok
    assert "2: infeasible" in " ".join(result.report.notes)


def test_soft_locality_may_be_missed() -> None:
    model, edits, _ = small_task()
    near = edits.inputs  # their decisions of today hold every edit back
    labels = outputs(model, near).argmax(1)
    with pytest.raises(RepairFailed) as caught:
        nnrepair.fix(model, edits, near, method=MinimalNorm("4", "l2", locality="hard", margin=0.5))
    assert caught.value.result.outcome.status == "infeasible"
    for norm in NAMES:
        method = MinimalNorm("4", norm, locality="soft", margin=0.5)  # type: ignore[arg-type]
        result = nnrepair.fix(model, edits, (near, labels), method=method)
        assert result.outcome.ok
        assert result.report.locality is not None
        assert result.report.locality < 1


def test_soft_locality_that_costs_nothing_is_kept() -> None:
    model, edits, locality = small_task()
    free = nnrepair.fix(model, edits, locality, method=MinimalNorm("4", "l2", locality="none"))
    soft = nnrepair.fix(model, edits, locality, method=MinimalNorm("4", "l2", locality="soft"))
    hard = nnrepair.fix(model, edits, locality, method=MinimalNorm("4", "l2", locality="hard"))
    sizes = [r.report.weight_change.l2 for r in (free, soft, hard)]
    kept = [r.report.locality for r in (free, soft, hard)]
    assert sizes[0] <= sizes[1] * (1 + 1e-5) <= sizes[2] * (1 + 2e-5)
    assert kept[0] <= kept[1] <= kept[2] == 1.0


def test_labelled_points_that_are_wrong_may_change() -> None:
    model, edits, locality = small_task()
    labels = outputs(model, locality).argmax(1)
    labels[::2] = (labels[::2] + 1) % 3
    result = nnrepair.fix(model, edits, (locality, labels), method=MinimalNorm("4"))
    after = outputs(result.model, locality).argmax(1)
    assert torch.equal(after[1::2], labels[1::2])
    assert result.report.drawdown == pytest.approx(1 - float((after == labels).double().mean()) / (7 / 15))
    assert result.report.drawdown_points is not None
    assert result.report.drawdown_points <= 0


def alike_for_the_last_layer() -> tuple[nn.Sequential, Edits]:
    """Two edits whose last features are equal, with different labels; the first layer can tell them apart."""
    model = mlp(2, 12, 3)
    with torch.no_grad():
        model[0].weight[:, 1] = model[0].weight[:, 0]  # sees the sum of its inputs alone
    return model, Edits(torch.tensor([[0.5, -1.5], [-1.5, 0.5], [1.0, 1.0]]), [0, 1, 2])


def test_infeasible_names_the_conflict_and_the_layers_that_would_do() -> None:
    model, edits = alike_for_the_last_layer()
    with pytest.raises(RepairFailed, match="contradict each other") as caught:
        nnrepair.fix(model, edits, method=MinimalNorm("2"))
    outcome = caught.value.result.outcome
    assert outcome.status == "infeasible"
    assert outcome.conflict == [0, 1]
    assert outcome.layers == ["0"]
    assert "0" in outcome.message
    assert nnrepair.fix(model, edits, method=MinimalNorm("0", architecture="decoupled")).outcome.ok


@pytest.mark.parametrize("norm", ["l1", "linf", "mean+max", "nuclear"])
def test_infeasible_in_every_norm(norm: Any) -> None:
    model, edits = alike_for_the_last_layer()
    result = nnrepair.fix(model, edits, method=MinimalNorm("2", norm), throw=False)
    assert result.outcome.status == "infeasible"
    assert result.outcome.conflict == [0, 1]


def test_a_conflict_with_the_locality_set_is_called_one() -> None:
    model, edits, _ = small_task()
    result = nnrepair.fix(model, edits, edits.inputs, method=MinimalNorm("4"), throw=False)
    assert result.outcome.status == "infeasible"
    assert "locality" in result.outcome.message
    assert result.outcome.layers == []  # no layer can both change a decision and keep it


@pytest.mark.parametrize("layer", ["2", "4"])
@pytest.mark.parametrize("architecture", ["same", "decoupled"])
@pytest.mark.parametrize("kind", ["argmin", "linear", "near", "or", "and", "nested"])
def test_criteria_end_to_end(kind: str, layer: str, architecture: Any) -> None:
    model, edits, locality = small_task()
    x = edits.inputs
    y = outputs(model, x)
    criterion = {
        "argmin": lambda: Argmin(y.topk(2, largest=False).indices[:, 1]),
        "linear": lambda: Linear([[1.0, -1.0, 0.0], [0.0, 1.0, 1.0]], [0.1, 0.1], points=3),
        "near": lambda: Near(y + 0.3, tol=0.1),
        "or": lambda: AnyOf(edits.criterion, Near(y + 5.0, 0.1)),
        "and": lambda: edits.criterion & Linear([[1.0, 1.0, 1.0]], [0.2], points=3),
        "nested": lambda: (Near(y + 0.3, 0.1) | Near(y - 0.2, 0.1)) & Linear([[1.0, 0.0, 0.0]], [-9.0], points=3),
    }[kind]()
    assert not criterion.holds(y).all()
    method = MinimalNorm(layer, architecture=architecture)
    result = nnrepair.fix(model, Edits(x, criterion), locality if kind == "or" else None, method=method)
    assert result.outcome.ok
    assert criterion.holds(outputs(result.model, x)).all()


@pytest.mark.parametrize("layer", ["0", "4"])
@pytest.mark.parametrize("margin", [0.0, 0.01, 0.3])
def test_the_margin_is_respected(layer: str, margin: float) -> None:
    model, edits, _ = small_task()
    result = nnrepair.fix(model, edits, method=MinimalNorm(layer, margin=margin), throw=margin > 0)
    slack = edits.criterion.margin(outputs(result.model, edits.inputs))
    assert slack.min() >= 0.9 * margin
    if layer == "4":
        assert slack.min() == pytest.approx(margin, abs=1e-5)


def test_image_outputs_of_a_last_convolution() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1)))
    x = randn(2, 1, 5, 5)
    criterion = Near(outputs(model, x) + 0.3, 0.25)  # a larger bias would do
    assert not criterion.holds(outputs(model, x)).any()
    for layer in ("2", "2.bias"):
        result = nnrepair.fix(model, Edits(x, criterion), method=MinimalNorm(layer, "l2"))
        assert criterion.holds(outputs(result.model, x)).all()


def test_a_last_layer_applied_by_position() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    x = randn(3, 5, 3)
    criterion = Near(outputs(model, x) + 0.2, 0.15)
    result = nnrepair.fix(model, Edits(x, criterion), method=MinimalNorm("2"))
    assert criterion.holds(outputs(result.model, x)).all()
    assert result.stats["gap"] <= 1e-6


def test_one_number_per_point() -> None:
    model = nn.Sequential(mlp(4, 6, 1), nn.Flatten(0))
    x = randn(3, 4)
    criterion = Near(outputs(model, x) + 1, 0.5)
    result = nnrepair.fix(model, Edits(x, criterion), method=MinimalNorm("0.2"))
    assert criterion.holds(outputs(result.model, x)).all()


def test_a_shared_weight_is_moved_once() -> None:
    model = seeded(Tied)
    x = randn(2, 4)
    edits = Edits(x, mistakes(model, x))
    for layer in ("a", "b", ["a", "b"]):
        result = nnrepair.fix(model, edits, method=MinimalNorm(layer))
        assert result.outcome.ok
        assert result.model.a.weight is result.model.b.weight


def test_a_frozen_rest_does_not_matter() -> None:
    model, edits, _ = small_task()
    model[0].requires_grad_(False)
    result = nnrepair.fix(model, edits)
    assert result.outcome.ok
    assert "0: " not in " ".join(result.report.notes)
    assert [p.requires_grad for p in result.model.parameters()] == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l3"}, "Unknown norm 'l3'; choose one of auto, l1"),
        ({"architecture": "other"}, "Unknown architecture 'other'; choose one of same, decoupled"),
        ({"locality": "firm"}, "Unknown locality 'firm'; choose one of hard, soft, none"),
        ({"margin": -1.0}, "margin must be a finite number >= 0, got -1"),
        ({"margin": float("nan")}, "margin must be a finite number >= 0, got nan"),
        ({"gap": 0.0}, "gap must lie between 0 and 1"),
        ({"gap": 1.0}, "gap must lie between 0 and 1"),
        ({"gap": "small"}, "gap must lie between 0 and 1, got 'small'"),
        ({"max_steps": 0}, "max_steps must be an integer >= 1, got 0"),
        ({"max_steps": "many"}, "max_steps must be an integer >= 1, got 'many'"),
        ({"margin": "big"}, "margin must be a finite number >= 0, got 'big'"),
        ({"time_limit": "3"}, "time_limit must be a positive number of seconds or None, got '3'"),
    ],
)
def test_options_are_checked_when_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        MinimalNorm(**options)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (MinimalNorm("4", "drift"), 'norm="drift" measures change on the locality set'),
        (MinimalNorm("4", "fisher"), 'norm="fisher" measures change on the locality set'),
        (MinimalNorm("fc"), "Layer 'fc' not found"),
        (MinimalNorm(["2", "4"], "nuclear", architecture="decoupled"), "one linear or convolution layer"),
        (MinimalNorm(["2", "4"], "nuclear"), "one linear or convolution layer"),
    ],
)
def test_options_that_do_not_fit_the_problem(method: MinimalNorm, message: str) -> None:
    model, edits, _ = small_task()
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(model, edits, method=method)


# The decoupled network as a module.


def decoupled() -> tuple[nn.Sequential, Decoupled, dict[str, Tensor]]:
    model = mlp(4, 6, 5, 3)
    change = {
        n: 0.5 * randn(*dict(model.named_parameters())[n].shape, seed=k) for k, n in enumerate(["2.weight", "0.bias"])
    }
    return model, Decoupled(model, change), change


def test_decoupled_is_the_first_order_effect() -> None:
    model, net, change = decoupled()
    x = randn(5, 4)
    J = dense_jacobian(model, list(change), x)
    moved = sum((J[n] * d.double()).flatten(2).sum(2) for n, d in change.items())
    torch.testing.assert_close(outputs(net, x).double(), outputs(model, x).double() + moved, atol=1e-5, rtol=1e-5)


def test_decoupled_is_what_finite_differences_say() -> None:
    model, net, change = decoupled()
    x = randn(5, 4)
    ends = []
    for eps in (1e-6, -1e-6):
        twin = copy.deepcopy(model).double()
        with torch.no_grad():
            for n, d in change.items():
                dict(twin.named_parameters())[n].add_(eps * d)
        ends.append(outputs(twin, x.double()))
    expected = outputs(model, x).double() + (ends[0] - ends[1]) / 2e-6
    torch.testing.assert_close(outputs(net, x).double(), expected, atol=1e-4, rtol=1e-4)


def test_decoupled_is_linear_in_its_change() -> None:
    model, net, change = decoupled()
    x = randn(5, 4)
    twice = Decoupled(model, {n: 2 * d for n, d in change.items()})
    torch.testing.assert_close(outputs(twice, x) - outputs(net, x), outputs(net, x) - outputs(model, x))
    none = Decoupled(model, {n: 0 * d for n, d in change.items()})
    torch.testing.assert_close(outputs(none, x), outputs(model, x))


def test_decoupled_state_round_trip(tmp_path: Path) -> None:
    model, net, change = decoupled()
    x = randn(5, 4)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = Decoupled(mlp(4, 6, 5, 3, seed=9), {n: torch.zeros_like(d) for n, d in change.items()})
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(outputs(other, x), outputs(net, x))
    assert not torch.equal(outputs(net, x), outputs(model, x))


def test_decoupled_is_an_ordinary_module() -> None:
    model, net, change = decoupled()
    x = randn(5, 4)
    twin = copy.deepcopy(net)
    assert torch.equal(outputs(twin, x), outputs(net, x))
    assert outputs(twin.double(), x.double()).dtype == torch.float64
    assert twin.change["2.weight"].dtype == torch.float64
    with torch.no_grad():
        model[0].weight.zero_()  # the base is a copy
    assert torch.equal(outputs(copy.deepcopy(net), x), outputs(net, x))
    assert net.change.keys() == change.keys()


def test_decoupled_stays_in_eval_mode() -> None:
    model = nn.Sequential(mlp(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    x = randn(5, 4)
    net = Decoupled(model.eval(), {"0.0.bias": torch.ones(8)})
    before = outputs(net, x)
    assert torch.equal(outputs(net.train(), x), before)


def test_decoupled_with_a_shared_weight() -> None:
    model = seeded(Tied)
    x = randn(3, 4)
    for name in ("a.weight", "b.weight"):
        change = {name: 0.1 * randn(4, 4)}
        J = dense_jacobian(model, [name], x)[name]
        expected = outputs(model, x).double() + (J * change[name].double()).flatten(2).sum(2)
        torch.testing.assert_close(outputs(Decoupled(model, change), x).double(), expected, atol=1e-5, rtol=1e-5)


def test_decoupled_can_be_repaired_again() -> None:
    model, edits, _ = small_task()
    first = nnrepair.fix(model, edits, method=MinimalNorm("2", architecture="decoupled"))
    x = randn(2, 4, seed=11)
    more = Edits(x, mistakes(first.model, x))
    again = nnrepair.fix(first.model, more, LocalitySet(edits.inputs), method=MinimalNorm("base.4"))
    assert again.outcome.ok
    assert again.report.locality == 1.0


def test_decoupled_exports_to_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnxruntime = pytest.importorskip("onnxruntime")
    import nnrepair.onnx

    model, edits, _ = small_task()
    result = nnrepair.fix(model, edits, method=MinimalNorm("2", architecture="decoupled"))
    path = tmp_path / "net.onnx"
    nnrepair.onnx.save(result.model, edits.inputs, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = randn(9, 4, seed=2)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, outputs(result.model, x).numpy(), atol=1e-5)


@pytest.mark.parametrize("margin", [None, 0.0, 0.5])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_last_layer_of_zeros(norm: Any, margin: float | None) -> None:
    """All outputs tie, so nothing says how far apart classes usually are."""
    model, x = mlp(4, 8, 3), randn(5, 4)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    method = MinimalNorm(layer="2", norm=norm, margin=margin)
    result = nnrepair.fix(model, (x, [0, 1, 2, 0, 1]), method=method)
    assert result.report.success_rate == 1.0 and outputs(result.model, x).argmax(1).tolist() == [0, 1, 2, 0, 1]


def test_nothing_missed_is_no_change() -> None:
    model, x = mlp(4, 5, 3), randn(6, 4)
    line = Linearization(model, ["2.weight", "2.bias"], x)
    criterion = Argmax(outputs(model, x).argmax(1))
    demand = Demand(x, criterion, torch.full((6, 3), -torch.inf, dtype=torch.float64), False, "edits")
    solution = ExactRepair(line, [demand], "l2", None, 1e-6, "same", Deadline()).run()
    assert solution.objective == 0.0 and not solution.d.any() and len(solution.d) == 18


def test_repaired_at_the_price_of_kept_points_is_not_called_repaired() -> None:
    model, edits, _ = small_task()
    result = nnrepair.fix(
        model, edits, edits.inputs, method=MinimalNorm("0"), throw=False
    )  # keep what is to be changed
    assert not result.outcome.ok
    assert "locality" in result.outcome.message or not edits.criterion.holds(outputs(result.model, edits.inputs)).all()


def crowded(pairs: int) -> tuple[nn.Module, Edits]:
    """More contradictions than a message has room for: each two edits are alike for the last layer."""
    model = mlp(2, 12, 3)
    with torch.no_grad():
        model[0].weight[:, 1] = model[0].weight[:, 0]
    x = torch.linspace(0.1, 1.0, pairs)
    points = torch.stack([torch.stack([x, -2 * x], 1), torch.stack([-2 * x, x], 1)], 1).reshape(-1, 2)
    return model, Edits(points, [0, 1] * pairs)


def test_elsewhere_is_sought_within_its_budget_and_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, edits = alike_for_the_last_layer()
    monkeypatch.setattr(elsewhere, "SECONDS", 0.0)
    outcome = nnrepair.fix(model, edits, method=MinimalNorm("2"), throw=False).outcome
    assert outcome.conflict == [0, 1] and outcome.layers == []
    assert "No time was left to try 0." in outcome.message and "none of the other" not in outcome.message
    monkeypatch.undo()
    problem = pose(model, edits, None)
    none_left = Deadline(1e-9)
    could, untried = elsewhere.feasible_elsewhere(problem, 0.1, "hard", 1e-6, ["2.weight", "2.bias"], none_left)
    assert (could, untried) == ([], ["0"])
    assert elsewhere.feasible_elsewhere(problem, 0.1, "hard", 1e-6, ["2.weight", "2.bias"], Deadline(60)) == (["0"], [])


def test_messages_name_some_of_many_edits_and_count_them() -> None:
    assert judge._first(list(range(20))) == str(list(range(20)))
    said = judge._first(list(range(487)))
    assert said.startswith("[0, 1, 2,") and said.endswith("18, 19, ...] (487 of them)")
    model, edits = crowded(15)
    outcome = nnrepair.fix(model, edits, method=MinimalNorm("2"), throw=False).outcome
    assert outcome.status == "infeasible" and len(outcome.message) < 600


def test_a_conflict_is_named_although_no_time_is_left_to_make_it_smaller() -> None:
    model, edits = crowded(15)
    line = Linearization(model, ["2.weight", "2.bias"], edits.inputs)
    problem = pose(model, edits, None)
    with pytest.raises(Infeasible) as caught:
        ExactRepair(line, demands_of(problem, 0.1, "none"), "l2", None, 1e-6, "same", Deadline()).run()
    whole, late = conflict(caught.value), conflict(caught.value, Deadline(1e-9))
    assert whole.smallest and len(whole.edits) == 2
    assert set(whole.edits) <= set(late.edits) and (not late.smallest or late.edits == whole.edits)
