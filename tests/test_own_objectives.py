"""MinimalNorm with an objective and constraints of the caller's own."""

from __future__ import annotations

import argparse
import builtins
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from networks import clusters, mistakes, mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Decoupled, Edits, InvalidInput, LocalitySet, MissingExtra, RepairFailed, provenance
from nnrepair.cli import method_options
from nnrepair.methods import MinimalNorm
from nnrepair.methods.minimal_norm.own import program as programs
from nnrepair.solver.norms import NAMES

cp = pytest.importorskip("cvxpy", reason="objectives of one's own need the extra [cvxpy]")

Change = Mapping[str, Any]
MARGIN = 0.05


def small_task(points: int = 15) -> tuple[nn.Sequential, Edits, Tensor]:
    model = mlp(4, 12, 10, 3, seed=3)
    x = randn(3, 4, seed=5)
    return model, Edits(x, mistakes(model, x)), clusters(points, 4, seed=6)


def fix(method: MinimalNorm, **options: Any) -> tuple[nn.Sequential, Any]:
    model, edits, locality = small_task()
    return model, nnrepair.fix(model, edits, locality, method=method, **options)


def change_of(model: nn.Module, result: Any) -> dict[str, np.ndarray]:
    """Return what was added to each parameter, in float64."""
    if isinstance(result.model, Decoupled):
        return {name: delta.double().numpy() for name, delta in result.model.change.items()}
    new = dict(result.model.named_parameters())
    return {n: (new[n].double() - p.double()).detach().numpy() for n, p in model.named_parameters()}


def l1(change: Change) -> Any:
    return sum(cp.sum(cp.abs(v)) for v in change.values())


def l2(change: Change) -> Any:
    return cp.norm(cp.hstack([cp.vec(v, order="C") for v in change.values()]))


def linf(change: Change) -> Any:
    return cp.max(cp.hstack([cp.max(cp.abs(v)) for v in change.values()]))


def neurons(change: Change, layer: str = "2") -> Any:
    rows = cp.hstack([change[f"{layer}.weight"], cp.reshape(change[f"{layer}.bias"], (-1, 1), order="C")])
    return cp.sum(cp.norm(rows, axis=1))


def each(write: Any, change: Change) -> list[Any]:
    return [write(v) for v in change.values()]


def nothing(change: Change) -> list[Any]:
    return []


@pytest.mark.parametrize(("layer", "architecture"), [("4", "same"), ("2", "decoupled"), (["0", "2"], "decoupled")])
@pytest.mark.parametrize(("norm", "own"), [("l1", l1), ("l2", l2), ("linf", linf)])
def test_a_norm_written_by_hand_has_the_optimum_of_the_built_in_one(layer: Any, architecture: Any, norm: Any, own: Any):
    _, ours = fix(MinimalNorm(layer, objective=own, margin=MARGIN, architecture=architecture))
    _, built_in = fix(MinimalNorm(layer, norm, margin=MARGIN, architecture=architecture))
    assert ours.stats["objective"] == pytest.approx(built_in.stats["objective"], rel=1e-5)
    assert ours.outcome.status == "repaired" and ours.report.locality == 1.0
    assert ours.certificate is None and "solver's tolerance" in str(ours)


@pytest.mark.parametrize("norm", NAMES)
def test_a_built_in_norm_takes_constraints(norm: Any) -> None:
    _, free = fix(MinimalNorm("4", norm, margin=MARGIN))
    _, same = fix(MinimalNorm("4", norm, margin=MARGIN, constraints=nothing))
    _, bound = fix(MinimalNorm("4", norm, margin=MARGIN, constraints=lambda c: [c["4.bias"] == 0]))
    assert same.stats["objective"] == pytest.approx(free.stats["objective"], rel=1e-5)
    assert bound.stats["objective"] > 1.001 * free.stats["objective"]
    assert torch.equal(bound.model[4].bias, small_task()[0][4].bias)


def test_few_neurons_change() -> None:
    model, result = fix(MinimalNorm("2", objective=neurons, architecture="decoupled"))
    _, plain = fix(MinimalNorm("2", "l2", architecture="decoupled"))
    few, many = (change_of(model, r)["2.weight"] for r in (result, plain))
    assert 0 < (few != 0).any(1).sum() <= 3 < (many != 0).any(1).sum()


def test_convolutions_have_variables_of_four_axes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 3)).eval()
    x = randn(2, 1, 5, 5)

    def filters(change: Change) -> Any:
        return cp.sum(cp.norm(cp.reshape(change["0.weight"], (6, 9), order="C"), axis=1)) + cp.norm(change["0.bias"])

    method = MinimalNorm(
        "0", objective=filters, constraints=lambda c: [c["0.weight"][0] == 0], architecture="decoupled"
    )
    result = nnrepair.fix(model, Edits(x, mistakes(model, x)), method=method)
    change = change_of(model, result)["0.weight"]
    assert result.outcome.ok and (change[0] == 0).all()
    assert 0 < (change != 0).any((1, 2, 3)).sum() < 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("layer", "architecture"), [("4", "same"), ("2", "decoupled"), ("2", "same")])
def test_bounds_and_pruned_zeros_hold_exactly_in_the_returned_weights(
    dtype: Any, layer: str, architecture: Any
) -> None:
    model, edits, locality = small_task()
    model = model.to(dtype)
    weight = model[int(layer)].weight
    with torch.no_grad():
        weight[:, ::3] = 0.0
    edits = Edits(edits.inputs.to(dtype), mistakes(model, edits.inputs.to(dtype)))
    W = weight.detach().double().numpy()
    most = 0.9 * np.abs(W).max() if architecture == "same" else 0.2
    base = W if architecture == "same" else 0 * W
    name = f"{layer}.weight"

    def within(change: Change) -> list[Any]:
        inside = np.abs(base) <= most  # others may not move outwards
        new = base + change[name]
        away = cp.multiply(np.sign(base) * ~inside, change[name])
        return [change[name][W == 0] == 0, new[inside] <= most, new[inside] >= -most, away <= 0]

    method = MinimalNorm(layer, objective=linf, constraints=within, architecture=architecture)
    result = nnrepair.fix(model, edits, locality.to(dtype), method=method, throw=False)
    change = change_of(model, result)[name]
    assert (change[W == 0] == 0).all() and np.abs(change).max() > 0
    inside = np.abs(base) <= most
    assert np.abs(base + change)[inside].max() <= most
    assert (np.sign(base) * change)[~inside].max(initial=0.0) <= 0
    assert result.outcome.ok or dtype == torch.bfloat16


@pytest.mark.parametrize(
    "write", [lambda v: cp.abs(v) <= 0.08, lambda v: cp.norm_inf(v) <= 0.08, lambda v: cp.max(cp.abs(v)) <= 0.08]
)
def test_bounds_may_be_written_in_several_ways(write: Any) -> None:
    bounds = partial(each, write)
    model, result = fix(MinimalNorm("2", "l1", MARGIN, "decoupled", constraints=bounds))
    change = np.concatenate([part.ravel() for part in change_of(model, result).values()])
    assert np.abs(change).max() <= 0.08 and (np.abs(change) > 0.0799999).any()  # the bound binds, and none is lost
    assert "constraints exactly" in " ".join(result.report.notes) or result.stats["constraints_missed"] < 1e-8


def test_tied_entries_change_alike_and_sums_stay() -> None:
    model, edits, locality = small_task()
    with torch.no_grad():
        model[2].weight[:, 1] = model[2].weight[:, 0]

    def sides(change: Change) -> list[Any]:
        W = change["2.weight"]
        return [W[:, 0] == W[:, 1], cp.sum(W, axis=0) == 0]

    result = nnrepair.fix(model, edits, locality, method=MinimalNorm("2", objective=l2, constraints=sides))
    W = result.model[2].weight
    assert torch.equal(W[:, 0], W[:, 1]) and not torch.equal(W[:, 0], model[2].weight[:, 0])
    assert (W - model[2].weight).sum(0).abs().max() < 1e-6
    assert 0 < result.stats["constraints_missed"] < 1e-6


def test_a_hidden_layer_gets_better_and_never_worse_than_where_it_began() -> None:
    model, result = fix(MinimalNorm("2", objective=l1, margin=MARGIN))
    _, decoupled = fix(MinimalNorm("2", "l1", margin=MARGIN, architecture="decoupled"))
    assert type(result.model) is type(model) and result.outcome.status == "repaired" and result.report.locality == 1.0
    assert result.stats["met"] and result.stats["objective"] < 0.6 * result.stats["start"]
    assert result.stats["objective"] < 1.2 * decoupled.stats["objective"]
    assert "not proved" in " ".join(result.report.notes)


def test_auto_takes_the_layer_that_the_objective_allows() -> None:
    _, result = fix(MinimalNorm(objective=partial(neurons, layer="2")))
    assert result.stats["layer"] == ["2.weight", "2.bias"] and result.outcome.ok
    assert "not possible (The change has no parameter '2.weight'" in " ".join(result.report.notes)


def test_other_variables_may_be_used_where_outputs_are_affine_in_the_change() -> None:
    most = cp.Variable()
    method = MinimalNorm(
        "4", objective=lambda c: most, constraints=lambda c: [cp.abs(v) <= most for v in c.values()], margin=MARGIN
    )
    _, result = fix(method)
    _, built_in = fix(MinimalNorm("4", "linf", margin=MARGIN))
    assert result.stats["objective"] == pytest.approx(built_in.stats["objective"], rel=1e-5)
    with pytest.raises(InvalidInput, match="no other variables"):
        fix(MinimalNorm("2", objective=method.objective, constraints=method.constraints))


def test_any_change_may_do() -> None:
    _, result = fix(MinimalNorm("2", objective=lambda c: 0, constraints=lambda c: [cp.sum(c["2.bias"]) == 0]))
    assert result.outcome.ok and (result.model[2].bias - small_task()[0][2].bias).sum().abs() < 1e-6


def test_soft_points_may_be_missed_at_a_price() -> None:
    model, edits, _ = small_task()
    clash = LocalitySet(edits.inputs)  # the edits themselves are to stay as they are
    with pytest.raises(RepairFailed, match="infeasible"):
        nnrepair.fix(model, edits, clash, method=MinimalNorm("4", objective=l1))
    for layer in ("4", "2"):
        result = nnrepair.fix(model, edits, clash, method=MinimalNorm(layer, objective=l1, locality="soft"))
        assert result.outcome.status == "repaired", layer


# What cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": l1, "norm": "l1"}, "not both"),
        ({"objective": "l1"}, "must be a function"),
        ({"constraints": [1]}, "must be a function"),
    ],
)
def test_errors_at_the_door(options: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        MinimalNorm("4", **options)


@pytest.mark.parametrize(
    ("objective", "constraints", "message"),
    [
        (lambda c: cp.sqrt(cp.sum_squares(c["4.weight"])), None, r"not convex.*PowerApprox|not convex.*power"),
        (lambda c: -cp.norm(c["4.weight"]), None, "minimize a function that is concave"),
        (lambda c: c["4.weight"], None, r"one real number, got shape \(3, 10\)"),
        (lambda c: "small", None, "must return a cvxpy expression, got str"),
        (lambda c: cp.Minimize(l1(c)), None, "not a cvxpy objective"),
        (lambda c: l1({"w": c["4.wieght"]}), None, "no parameter '4.wieght'. Did you mean '4.weight'"),
        (l1, lambda c: [cp.norm(c["4.bias"]) >= 1], r"Constraint 0 \(.*is not convex"),
        (l1, lambda c: [c["4.bias"] == 0, True], "Constraint 1 is no cvxpy constraint but True"),
        (l1, lambda c: c["4.bias"] == 0, "must return a list of cvxpy constraints, got Equality"),
        (l1, lambda c: [c["4.bias"] <= cp.Variable(3, boolean=True)], "Integer and boolean"),
        (l1, lambda c: [c["4.bias"] <= -1, c["4.bias"] >= 1], "constraints contradict each other"),
        (lambda c: cp.sum(c["4.weight"]), None, "no minimum under the constraints"),
    ],
)
def test_what_the_functions_return_is_checked(objective: Any, constraints: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"(?s){message}"):
        fix(MinimalNorm("4", objective=objective, constraints=constraints))


def test_constraints_that_forbid_the_edits_are_told_from_edits_that_contradict_each_other() -> None:
    tight = MinimalNorm("4", objective=l1, constraints=lambda c: [cp.abs(v) <= 1e-3 for v in c.values()])
    model, edits, locality = small_task()
    result = nnrepair.fix(model, edits, locality, method=tight, throw=False)
    assert result.outcome.status == "infeasible" and len(result.outcome.conflict) == 1
    assert "contradict the constraints there, not each other" in result.outcome.message
    both = nnrepair.fix(model, edits, LocalitySet(edits.inputs), method=tight, throw=False)
    assert both.outcome.status == "infeasible" and "the locality set (hard)" in both.outcome.message
    assert "the constraints" not in both.outcome.message


def test_too_large_a_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LARGEST", 100)
    with pytest.raises(InvalidInput, match="at most 100 numbers"):
        fix(MinimalNorm("4", objective=l1))


def test_without_cvxpy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def none(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cvxpy":
            raise ModuleNotFoundError("No module named 'cvxpy'", name="cvxpy")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(MissingExtra, match=r"nnrepair\[cvxpy\]"):
        fix(MinimalNorm("4", objective=l1))
    assert fix(MinimalNorm("4", "l1"))[1].outcome.ok


def test_what_is_free_is_said() -> None:
    _, result = fix(MinimalNorm("4", objective=lambda c: cp.norm(c["4.weight"])))
    assert "say anything of 4.bias: free to change" in " ".join(result.report.notes)


# A method's face -----------------------------------------------------------------------------------------------------


def test_functions_are_printed_by_name_compared_and_told_apart() -> None:
    method = MinimalNorm("2", objective=neurons)
    assert "objective=neurons#" in repr(method) and " at 0x" not in repr(method) and "constraints" not in repr(method)
    assert repr(method) == repr(MinimalNorm("2", objective=neurons)) and method == MinimalNorm("2", objective=neurons)
    assert "objective" not in repr(MinimalNorm("2"))
    some = [lambda c, k=k: k * l1(c) for k in (1, 2)] + [lambda c: l1(c) + 1, partial(neurons, layer="0"), neurons]
    assert len({repr(MinimalNorm("2", objective=f)) for f in some}) == len(some)
    assert len({provenance.digest(MinimalNorm("2", objective=f)) for f in some}) == len(some)


def test_values_that_a_function_uses_count() -> None:
    def scaled(by: Any) -> Any:
        return lambda change: by * l1(change)

    ones, twos = (provenance.digest(scaled(torch.full((2,), k))) for k in (1.0, 2.0))
    assert ones != twos and ones == provenance.digest(scaled(torch.ones(2)))


def test_functions_are_no_options_on_the_command_line() -> None:
    assert {"objective", "constraints"}.isdisjoint(option.field for option in method_options.options_of(MinimalNorm))
    method_options.add(argparse.ArgumentParser(), "minimal-norm")


def test_linear_programs_that_are_large_are_not_solved_to_a_corner(monkeypatch: pytest.MonkeyPatch) -> None:
    _, corner = fix(MinimalNorm("4", objective=l1, margin=MARGIN))
    monkeypatch.setattr(programs, "CORNER", 0)
    _, inside = fix(MinimalNorm("4", objective=l1, margin=MARGIN))
    assert (corner.stats["solver"], inside.stats["solver"]) == ("HiGHS", "Clarabel")
    assert inside.stats["objective"] == pytest.approx(corner.stats["objective"], rel=1e-5)
    assert corner.report.weight_change.nonzeros <= inside.report.weight_change.nonzeros < 10  # zeros are swept
