"""Repairs of hidden layers in the same architecture: coordinates, norms, units that are off, time that ends."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, LocalitySet, Near
from nnrepair.deadline import Deadline
from nnrepair.jacobian.linearize import Linearization
from nnrepair.jacobian.suffix import Suffix
from nnrepair.methods import MinimalNorm
from nnrepair.methods.minimal_norm import search
from nnrepair.methods.minimal_norm.coordinates import Coordinates
from nnrepair.methods.minimal_norm.demands import demands_of
from nnrepair.methods.minimal_norm.hidden import GIVEN_UP, HiddenRepair
from nnrepair.methods.minimal_norm.lagrangian import Lagrangian, shortest
from nnrepair.methods.minimal_norm.trial import Trial
from nnrepair.solver.norms import NAMES
from nnrepair.spec.problem import pose


def labelled(model: nn.Module, x: Tensor, by: int) -> Tensor:
    """Return labels: the model's class, plus a number."""
    with torch.no_grad():
        y = model(x)
    return (y.argmax(1) + by) % y.shape[1]


def lines(model: nn.Module, names: list[str], x: Tensor) -> Linearization:
    return Linearization(model, names, x, [])


@pytest.mark.parametrize("names", [["2.weight", "2.bias"], ["0.weight", "2.weight", "2.bias"]])
@pytest.mark.parametrize("norm", ["l2", "drift", "fisher"])
def test_coordinates_are_as_long_as_the_change_and_go_back(names: list[str], norm: str) -> None:
    model, x = mlp(3, 6, 5, 2), randn(40, 3, seed=1)
    line = lines(model, names, x)
    metric = None if norm == "l2" else line.metric(x, fisher=norm == "fisher")
    like = torch.zeros((), dtype=torch.float64)
    whole = Coordinates.of(line.groups, metric, like)
    there = randn(whole.size, seed=2, dtype=torch.float64)
    change = whole.change(there)
    assert torch.allclose(whole.coordinates(change), there, atol=1e-9)
    flat = line.flatten(change)
    rows = line.rows(x, nnrepair.Argmax(labelled(model, x, 0)), torch.tensor([0]), torch.tensor([0]))
    true = flat if metric is None else metric.coordinates(flat, rows)
    assert np.isclose(np.linalg.norm(true), float(there.norm()))


def test_the_fisher_norm_of_a_linear_network_is_how_far_its_outputs_move() -> None:
    """Without kinks, and with gradients that are the same everywhere, Kronecker's product is no approximation."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double(), randn(500, 4, seed=1).double()
    line = lines(model, ["0.weight", "0.bias"], x)
    metric = line.metric(x, fisher=True)
    rows = line.rows(x, nnrepair.Argmax(labelled(model, x, 0)), torch.tensor([0]), torch.tensor([0]))
    for seed in range(5):
        change = randn(6, 4, seed=seed).double(), randn(6, seed=seed + 9).double()
        moved = torch.func.functional_call(
            model, {"0.weight": model[0].weight + change[0], "0.bias": model[0].bias + change[1]}, x
        )
        flat = line.flatten({"0.weight": change[0], "0.bias": change[1]})
        size = float(np.linalg.norm(metric.coordinates(flat, rows)))
        true = float((moved - model(x)).detach().square().sum(1).mean().sqrt())
        assert size == pytest.approx(true, rel=5e-3)  # ridges of a thousandth


def test_outputs_move_less_in_the_fisher_norm() -> None:
    model, x = mlp(20, 30, 30, 30, 4), randn(10, 20, seed=1)
    kept, others = randn(300, 20, seed=2), randn(2000, 20, seed=3)
    with torch.no_grad():
        target = model(x) + 0.03 * randn(10, 4, seed=4)
    moved = {}
    for norm in ("drift", "fisher"):
        method = MinimalNorm("2", norm, locality="none")  # type: ignore[arg-type]
        result = nnrepair.fix(model, Edits(x, Near(target, 1e-3)), LocalitySet(kept), method=method)
        assert result.report.success_rate == 1.0
        with torch.no_grad():
            moved[norm] = float((result.model(others) - model(others)).square().sum(1).mean())
    assert "mean square change of the outputs on the locality set" in str(result)
    assert moved["fisher"] < 0.8 * moved["drift"]


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
    head = nn.Flatten(), nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 12)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.ReLU(), *head).eval()


@pytest.mark.parametrize("layer", ["0", "3", "6", "auto", ["0", "1", "3"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fisher_norm_of_convolutions_and_normalisation(layer: Any, dtype: torch.dtype) -> None:
    """More classes than rows of the Fisher information that are used; positions; parameters that are no map."""
    model = convolutions().to(dtype)
    x, kept = randn(2, 1, 8, 8, seed=1).to(dtype), randn(60, 1, 8, 8, seed=2).to(dtype)
    edits = Edits(x, labelled(model, x, 1))
    result = nnrepair.fix(model, edits, LocalitySet(kept), method=MinimalNorm(layer, "fisher"))
    assert result.report.success_rate == 1.0 and "nats by which decisions move" in str(result)
    assert result.certificate is None


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e12])
@pytest.mark.parametrize("seed", [6, 8])
def test_the_fisher_norm_of_a_network_that_is_sure_of_all_it_keeps(seed: int, scale: float) -> None:
    """Its information is far below what float32 can hold the inverse of."""
    model, x = mlp(5, 20, 15, 4), randn(4, 5, seed=seed)
    with torch.no_grad():
        model[4].weight *= scale
    edits, kept = Edits(x, labelled(model, x, 1)), LocalitySet(randn(60, 5, seed=seed + 50))
    assert nnrepair.fix(model, edits, kept, method=MinimalNorm("2", "fisher")).report.success_rate == 1.0


def test_keys_span_all_that_edits_can_ask_for() -> None:
    """The gradient at the edits has the same length in the span of their keys as among all changes."""
    model, x = mlp(30, 20, 5), randn(4, 30, seed=1)
    problem = pose(model, Edits(x, labelled(model, x, 1)), LocalitySet(randn(50, 30, seed=3)))
    demands = demands_of(problem, 0.1, "hard")
    line = lines(model, ["0.weight", "0.bias"], x)
    trial = Trial(line, Suffix(problem.model, None), demands)
    metric = line.metric(problem.locality.inputs)  # type: ignore[union-attr]
    whole = Coordinates.of(line.groups, metric, trial.like)
    span = whole.empty().spanning(line.keys(x))
    assert span.size == 20 * 4
    assert whole.size == 20 * 31
    slopes = []
    for coordinates in (whole, span):
        state = Lagrangian.of_edits(trial, demands, coordinates, np.zeros(coordinates.size), lambda: None)
        assert state is not None
        slopes.append(np.linalg.norm(state._at(state.x)[1]) / state.penalty)
    assert np.isclose(*slopes, rtol=1e-4)


def test_keys_of_many_positions_are_not_looked_at() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 36, 3))
    assert lines(model, ["0.weight", "0.bias"], randn(2, 1, 8, 8, seed=1)).keys(randn(2, 1, 8, 8, seed=1)) == [None]


@pytest.mark.parametrize("outputs", [100, 400, 3072])
def test_outputs_that_need_units_that_are_off(outputs: int) -> None:
    """Targets of the same network with another layer, where other units are on."""
    torch.manual_seed(0)
    model = mlp(20, 64, 64, outputs)
    x, other = randn(3, 20, seed=4), copy.deepcopy(model)
    with torch.no_grad():
        other[2].weight += 0.1 * torch.randn(64, 64)
        y = other(x)
    result = nnrepair.fix(model, Edits(x, Near(y, 0.1 * float(y.std()))), method=MinimalNorm("2", "l2"))
    assert result.outcome.status == "repaired"


@pytest.mark.parametrize("layer", ["2", "4"])
@pytest.mark.parametrize("norm", NAMES)
def test_units_do_not_matter(norm: Any, layer: str) -> None:
    """Where a layer's inputs, or the network's outputs, are larger by a power of two, the repair is the same.

    But for "fisher", to which the unit of outputs is that of log-probabilities.
    """
    sizes = []
    of_outputs = ((1.0, 2.0**-12), (1.0, 2.0**12)) if norm != "fisher" else ()
    for inputs, outputs in ((1.0, 1.0), (2.0**-12, 1.0), (2.0**12, 1.0), *of_outputs):
        torch.manual_seed(0)
        hidden = nn.Linear(20, 20, bias=False)
        model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), hidden, nn.ReLU(), nn.Linear(20, 4)).double()
        with torch.no_grad():
            model[0].weight *= inputs
            model[0].bias *= inputs
            model[2].weight /= inputs
            model[4].weight *= outputs
            model[4].bias *= outputs
        x, kept = randn(4, 10, seed=1).double(), randn(100, 10, seed=2).double()
        edits = Edits(x, labelled(model, x, 1))
        result = nnrepair.fix(model, edits, LocalitySet(kept), method=MinimalNorm(layer, norm))
        assert result.outcome.status == "repaired"
        size = float((result.model[int(layer)].weight - model[int(layer)].weight).detach().norm())
        sizes.append(size * inputs if layer == "2" else size / outputs)
    assert sizes == pytest.approx([sizes[0]] * len(sizes), rel=1e-6)


@pytest.mark.parametrize("norm", ["l1", "linf", "mean+max", "nuclear"])
def test_other_norms_are_smaller_than_in_the_euclidean_repair(norm: Any) -> None:
    model, x = mlp(20, 30, 30, 4), randn(5, 20, seed=1)
    kept = randn(300, 20, seed=2)
    edits, locality = Edits(x, labelled(model, x, 1)), LocalitySet(kept)
    sizes = []
    for chosen in ("l2", norm):
        result = nnrepair.fix(model, edits, locality, method=MinimalNorm("2", chosen))
        assert result.outcome.ok
        assert result.report.locality == 1.0
        before = dict(model.named_parameters())
        change = torch.cat(
            [(p - before[n]).detach().flatten() for n, p in result.model.named_parameters() if n[0] == "2"]
        )
        matrix = change[:900].reshape(30, 30)
        sizes.append(
            {
                "l1": float(change.abs().sum()),
                "linf": float(change.abs().max()),
                "mean+max": float(change.abs().mean() + change.abs().max()),
                "nuclear": float(torch.linalg.svdvals(matrix).sum()),
                "weights": int((change != 0).sum()),
            }
        )
    euclidean, other = sizes
    assert other[norm] < (0.6 if norm in ("linf", "mean+max") else 0.97) * euclidean[norm]
    if norm == "l1":
        assert other["weights"] < 0.25 * euclidean["weights"]


def test_a_soft_point_may_fail_for_its_price() -> None:
    """A kept point that lies on an edit cannot hold with it; hard locality fails, soft locality gives it up."""
    model, x = mlp(6, 12, 12, 3), randn(3, 6, seed=1)
    kept = torch.cat([x[:1] + 1e-6, randn(60, 6, seed=2)])
    edits = Edits(x, labelled(model, x, 1))
    hard = nnrepair.fix(model, edits, LocalitySet(kept), method=MinimalNorm("2", "l2"), throw=False)
    assert not (hard.outcome.ok and hard.report.locality == 1.0)
    soft = nnrepair.fix(model, edits, LocalitySet(kept), method=MinimalNorm("2", "l2", locality="soft"))
    assert soft.report.success_rate == 1.0
    assert soft.report.locality is not None
    assert soft.report.locality >= 0.9


def test_half_precision_is_repaired_as_it_runs() -> None:
    model, x = mlp(6, 12, 12, 3).to(torch.bfloat16), randn(3, 6, seed=1).to(torch.bfloat16)
    result = nnrepair.fix(model, Edits(x, labelled(model, x, 1)), method=MinimalNorm("2", "l2"))
    assert result.outcome.ok
    assert next(result.model.parameters()).dtype == torch.bfloat16


def test_time_that_ends_leaves_what_was_found() -> None:
    model, x = mlp(6, 12, 12, 3), randn(3, 6, seed=1)
    problem = pose(model, Edits(x, labelled(model, x, 1)))
    line = lines(model, ["2.weight", "2.bias"], x)
    cut = Suffix(problem.model, None)
    repair = HiddenRepair(line, cut, demands_of(problem, 0.1, "hard"), "l2", None, 40, Deadline(0.0))
    change = repair.run()
    assert not any(part.any() for part in change.values())
    assert "out of time" in " ".join(repair.notes)


@pytest.mark.parametrize("layer", ["auto", "2", "4"])
def test_a_time_limit_ends_every_repair_with_what_was_found(layer: str) -> None:
    model, x = mlp(6, 12, 12, 3), randn(3, 6, seed=1)
    edits, locality = Edits(x, labelled(model, x, 1)), LocalitySet(randn(80, 6, seed=2))
    result = nnrepair.fix(model, edits, locality, method=MinimalNorm(layer, time_limit=1e-6), throw=False)
    assert not result.outcome.ok
    assert "out of time" in str(result) + " ".join(result.report.notes)


def test_a_time_limit_must_be_a_time() -> None:
    with pytest.raises(nnrepair.InvalidInput, match="time_limit must be a positive number of seconds or None"):
        MinimalNorm(time_limit=0)


def test_the_shortest_mean_of_vectors() -> None:
    square = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert shortest(square) < 1e-9
    assert np.isclose(shortest(square[:2] * 5), 5.0)
    assert np.isclose(shortest(square[:1]), 2**0.5)
    assert np.isclose(shortest(1e-9 * np.array([[4.0, 3.0], [4.0, -1.0]])), 4e-9)


def test_descent_says_how_far_from_optimal_it_ended() -> None:
    """In a last layer that is not taken for one, the smallest change is known: the linear program's."""
    model, x = mlp(6, 12, 3), randn(4, 6, seed=1)
    problem = pose(model, Edits(x, labelled(model, x, 1)))
    demands = demands_of(problem, 0.1, "hard")
    line = lines(model, ["2.weight", "2.bias"], x)
    trial = Trial(line, Suffix(problem.model, None), demands)
    coordinates = Coordinates.of(line.groups, None, trial.like)
    state = Lagrangian.of_edits(trial, demands, coordinates, np.zeros(coordinates.size), lambda: None)
    assert state is not None
    found = []
    for _ in range(12):
        state.minimise()
        missed = state.missed()
        found.append(state.optimality(missed))
        state.charge(missed)
    exact = nnrepair.fix(model, Edits(x, labelled(model, x, 1)), method=MinimalNorm("2", "l2", margin=0.1))
    assert np.isclose(np.linalg.norm(state.x), exact.stats["objective"], rtol=1e-2)
    assert found[-1]["complementarity"] < 1e-2 < found[0]["complementarity"]
    assert found[-1]["stationarity"] < 2e-2


def test_what_moves_outputs_too_far_is_given_up() -> None:
    model, x = mlp(6, 12, 12, 3), randn(3, 6, seed=1)
    problem = pose(model, Edits(x, labelled(model, x, 1)), LocalitySet(randn(60, 6, seed=2)))
    names = ["2.weight", "2.bias"]
    found = []
    for bound in (0.0, np.inf):
        line = lines(model, names, x)
        demands = demands_of(problem, 0.1, "hard")
        repair = HiddenRepair(line, Suffix(problem.model, None), demands, "l2", None, 40, Deadline(), bound)
        repair.run()
        found.append(repair)
    given_up, whole = found
    assert len(given_up.steps) == 1 < len(whole.steps)
    assert GIVEN_UP in given_up.notes
    assert not given_up.optimality
    assert GIVEN_UP not in whole.notes
    assert whole.optimality
    moved = moved_by(model, names, whole.change, problem.locality.inputs)  # type: ignore[union-attr]
    assert np.isclose(whole.steps[-1]["moved"], moved, rtol=1e-4)


def moved_by(model: nn.Module, names: list[str], change: dict[str, Tensor], x: Tensor) -> float:
    """Return the mean change of outputs."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            dict(other.named_parameters())[name].add_(change[name])
        return float((other(x) - model(x)).norm(dim=1).mean())


def test_layers_are_compared_after_a_round_and_few_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = mlp(8, 16, 16, 16, 3), randn(3, 8, seed=1)
    edits, locality = Edits(x, labelled(model, x, 1)), LocalitySet(randn(80, 8, seed=2))
    tried: list[tuple[str, int]] = []
    attempted = search.attempted

    def counted(problem: Any, settings: Any, names: Any, *args: Any, **kwargs: Any) -> Any:
        tried.append((names[0], settings.max_steps))
        return attempted(problem, settings, names, *args, **kwargs)

    monkeypatch.setattr(search, "attempted", counted)
    result = nnrepair.fix(model, edits, locality, method=MinimalNorm())
    assert result.outcome.ok
    assert [name for name, rounds in tried if rounds == 1] == ["6.weight", "4.weight", "2.weight", "0.weight"]
    further = {name for name, rounds in tried if rounds > 1}
    told = next(note for note in result.report.notes if note.startswith("layer:"))
    for name in ("0", "2", "4"):
        assert (f"{name}: given up" in told) == (f"{name}.weight" not in further)
    best = min(result.stats["layers_tried"].items(), key=lambda item: item[1])[0]
    assert told.startswith(f"layer: {best} was chosen")


def test_a_part_is_proposed_where_there_is_no_time_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known when time ends: a repair of some edits, and one of all that was not begun."""
    model, x = mlp(8, 16, 16, 3), randn(40, 8, seed=1)
    edits = Edits(x, labelled(model, x, 1))
    monkeypatch.setattr(search, "EDITS", 4)
    attempted = search.attempted

    def late(problem: Any, settings: Any, names: Any, demands: Any, deadline: Any, *args: Any, **kwargs: Any) -> Any:
        whole = len(problem.edits) == 40
        return attempted(problem, settings, names, demands, Deadline(0.0) if whole else deadline, *args, **kwargs)

    monkeypatch.setattr(search, "attempted", late)
    result = nnrepair.fix(model, edits, method=MinimalNorm(), throw=False)
    assert 4 / 40 <= result.report.success_rate < 1.0


def test_a_search_without_a_limit_ends_by_its_own_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "TRYING", 0.0)
    model, x = mlp(8, 16, 16, 3), randn(3, 8, seed=1)
    result = nnrepair.fix(model, Edits(x, labelled(model, x, 1)), method=MinimalNorm())
    assert result.outcome.ok  # the last layer is always tried
    assert "2: no time left; 0: no time left" in result.report.notes[-1]


def test_what_follows_the_layer_does_not_run_for_its_keys() -> None:
    model, x = mlp(6, 12, 12, 3), randn(30, 6, seed=1)
    cut = Suffix.of(model, ["2.weight"], x)
    values, whole = cut.values(x), Linearization(model, ["2.weight"], x, [])
    line = Linearization(cut.module, ["2.weight"], values, [])
    runs: list[int] = []
    line.model.get_submodule("4").register_forward_hook(lambda *_: runs.append(1))
    metric, keys = line.metric(values), line.keys(values[torch.arange(5)])
    assert not runs
    line.outputs(values)
    assert runs
    assert np.allclose(metric.factors[0], whole.metric(x).factors[0])
    assert torch.allclose(keys[0], whole.keys(x[:5])[0])  # type: ignore[arg-type]
