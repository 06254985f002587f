from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from networks import randn
from sequences import LAST, Says, net, state, task
from torch import Tensor, nn

import nnrepair
from nnrepair import (
    Edits,
    EditScope,
    History,
    InvalidInput,
    Near,
    RepairFailed,
    Segments,
)
from nnrepair.jacobian.linearize import Linearization
from nnrepair.methods import Capabilities, MinimalNorm, Proposal
from nnrepair.spec.problem import Problem


@dataclass(frozen=True)
class Forgets:
    """Shifts the last bias until the newest edit holds, whatever else breaks."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("test", False, "same", True, True, True)

    def repair(self, problem: Problem) -> Proposal:
        model = copy.deepcopy(problem.model)
        with torch.no_grad():
            model[2].bias[problem.edits.criterion.labels[-1]] += 100.0
        return Proposal(model)


def test_independent_edits_each_start_from_the_original() -> None:
    model, edits, locality = task()
    history = nnrepair.fix(model, edits, locality, method=LAST, mode="independent")
    assert [step.edits for step in history.steps] == [[k] for k in range(5)]
    assert history.success_rate == 1.0 and history.outcome.status == "repaired"
    for k, step in enumerate(history.steps):
        alone = nnrepair.fix(model, edits[[k]], locality, method=LAST)
        assert step.side_effects["locality set"].drawdown_points == alone.report.drawdown_points
        assert step.side_effects["locality set"].locality == alone.report.locality
    assert history.success_retain_rate is None and history.patch is None
    with pytest.raises(InvalidInput, match="one network each"):
        _ = history.model


def test_successive_edits_each_start_from_the_last() -> None:
    model, edits, locality = task()
    history = nnrepair.fix(model, edits, locality, method=LAST, mode="successive", rehearsal=False, throw=False)
    current: nn.Module = model
    for k, step in enumerate(history.steps):
        current = nnrepair.fix(current, edits[[k]], locality, method=LAST).model
        now = edits.criterion.holds(current(edits.inputs))
        assert step.held == [bool(now[k])]
        assert step.retained == float(now[: k + 1].double().mean())
    assert state(history.model) == state(current)
    assert history.held_finally == now.tolist()
    assert history.success_retain_rate == float(now.double().mean())


def test_rehearsal_keeps_past_edits() -> None:
    model, edits, locality = task()
    forgotten = nnrepair.fix(model, edits, method=Forgets(), mode="successive", rehearsal=False, throw=False)
    assert forgotten.success_rate == 1.0
    assert forgotten.success_retain_rate is not None and forgotten.success_retain_rate < 1.0
    assert "rehearsal=True" in forgotten.outcome.message
    kept = nnrepair.fix(model, edits, locality, method=LAST, mode="successive")
    assert kept.success_retain_rate == 1.0
    assert all(step.retained == 1.0 for step in kept.steps)


def test_a_number_rehearses_that_many_past_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = Says.repair

    def counted(self: Says, problem: Problem) -> Proposal:
        seen.append(len(problem.edits))
        return real(self, problem)

    monkeypatch.setattr(Says, "repair", counted)
    model, edits, _ = task()
    nnrepair.fix(model, edits, method=Says(), mode="successive", rehearsal=2, throw=False)
    assert seen == [1, 2, 3, 3, 3]


def test_successive_batches() -> None:
    model, edits, locality = task()
    history = nnrepair.fix(model, edits, locality, method=LAST, mode="successive", batch_size=2)
    assert [step.edits for step in history.steps] == [[0, 1], [2, 3], [4]]
    assert history.success_retain_rate == 1.0


def test_the_model_stays_as_it_was_and_the_patch_leads_to_the_last() -> None:
    model, edits, locality = task()
    model.train()
    before = state(model)
    random = torch.get_rng_state()
    history = nnrepair.fix(model, edits, locality, method=LAST, mode="successive")
    assert state(model) == before and model.training and history.model.training
    assert torch.equal(random, torch.get_rng_state())
    assert history.patch is not None
    assert state(history.patch.apply(model)) == state(history.model)


def test_the_scope_is_measured_edit_by_edit() -> None:
    model, edits, _ = task(3)
    near = edits.inputs.repeat_interleave(4, 0)
    near = near + 0.01 * randn(12, 6, seed=1)
    far = -10 * near  # these will not follow
    x, of = torch.cat([near[:4], far[4:8]]), torch.tensor([0] * 4 + [1] * 4)
    scope = EditScope(x, edits.criterion.labels[of], of)
    history = nnrepair.fix(model, edits, method=LAST, mode="independent", edit_scope=scope)
    rates = [step.generalization_rate for step in history.steps]
    assert rates[0] is not None and rates[1] is not None and rates[0] > rates[1]
    assert rates[2] is None  # edit 2 has no neighbours
    assert history.generalization_rate == (rates[0] + rates[1]) / 2
    assert history.edit_score == (1.0 + history.generalization_rate) / 2
    final = nnrepair.fix(model, edits, method=LAST, mode="successive", edit_scope=scope)
    held = scope.criterion.holds(final.model(scope.inputs))
    assert final.generalization_retain_rate == float(held.double().mean())
    assert final.edit_retain_score == (1.0 + final.generalization_retain_rate) / 2


def test_test_sets_are_measured_against_the_original() -> None:
    model, edits, locality = task()
    x = randn(200, 6, seed=12)
    labels = model(x).argmax(1)
    labels[:20] = (labels[:20] + 1) % 3  # the original is wrong on these
    tests = {"seen": (x, labels), "unlabelled": x}
    history = nnrepair.fix(model, edits, locality, method=LAST, mode="successive", test_set=tests)
    y = history.model(x).argmax(1)
    seen = history.side_effects["seen"]
    assert seen.accuracy_before == 0.9
    assert seen.accuracy_after == float((y == labels).double().mean())
    assert seen.drawdown_points == pytest.approx(100 * (0.9 - seen.accuracy_after))
    assert seen.locality == float((y == model(x).argmax(1)).double().mean())
    assert history.side_effects["unlabelled"].drawdown is None
    assert history.side_effects["unlabelled"].locality == seen.locality
    assert set(history.side_effects) == {"locality set", "seen", "unlabelled"}
    whole = nnrepair.fix(model, edits, locality, method=LAST, test_set=(x, labels))
    assert whole.report.tests["test set"].accuracy_before == 0.9
    assert "test set" in str(whole.report)
    assert whole.report.as_dict()["tests"]["test set"]["points"] == 200


def test_curves_have_one_number_per_step() -> None:
    model, edits, locality = task()
    history = nnrepair.fix(model, edits, locality, method=LAST, mode="successive")
    curves = history.curves()
    assert curves["edits"] == [1, 2, 3, 4, 5]
    assert {len(values) for values in curves.values()} == {5}
    assert curves["drawdown_points locality set"][-1] == history.side_effects["locality set"].drawdown_points
    assert "success retain rate" in str(history)
    assert "<table>" in history._repr_html_()


def test_an_edit_that_holds_costs_nothing() -> None:
    model, edits, _ = task()
    right = Edits(edits.inputs, model(edits.inputs).argmax(1))
    history = nnrepair.fix(model, right, method=LAST, mode="successive")
    assert history.outcome.status == "nothing to do"
    assert state(history.model) == state(model)


def test_failures_are_raised_with_the_whole_history() -> None:
    model, edits, _ = task()
    with pytest.raises(RepairFailed) as caught:
        nnrepair.fix(model, edits, method=Forgets(), mode="successive", rehearsal=False)
    assert isinstance(caught.value.result, History)
    assert caught.value.result.outcome.failing


def test_regions_one_after_another() -> None:
    model, x = net(), randn(3, 6, seed=8)
    segments = Segments(x, x + 0.05 * randn(3, 6, seed=9))
    labels = model(x).argmax(1)
    labels = (labels + 1) % 3
    history = nnrepair.fix(model, Edits(segments, labels), method=LAST, mode="successive")
    assert history.success_retain_rate == 1.0
    assert len(history.steps) == 3


def test_a_decoupled_network_can_be_repaired_alone_each_time() -> None:
    model, edits, _ = task(2)
    history = nnrepair.fix(model, edits, method=MinimalNorm("0", architecture="decoupled"), mode="independent")
    assert history.success_rate == 1.0


BAD: list[tuple[str, dict[str, Any]]] = [
    ("Unknown mode 'sequential'; choose batch, independent or successive", {"mode": "sequential"}),
    ("batch_size must be a whole number >= 1", {"mode": "successive", "batch_size": 0}),
    ("batch_size must be a whole number >= 1", {"mode": "successive", "batch_size": 1.5}),
    ("batch_size is for", {"batch_size": 2}),
    ("resume is for", {"resume": "x.safetensors"}),
    ("rehearsal must be True", {"mode": "successive", "rehearsal": -1}),
    ("rehearsal must be True", {"mode": "successive", "rehearsal": "all"}),
    ("Says cannot repair a network that it repaired before", {"mode": "successive", "method": Says(successive=False)}),
    ("Says repairs one edit at a time", {"mode": "batch", "method": Says(batch=False)}),
    ("Says repairs one edit at a time .* rehearsal=False", {"mode": "successive", "method": Says(batch=False)}),
    ("Says repairs one edit at a time", {"mode": "independent", "batch_size": 2, "method": Says(batch=False)}),
    ("A test set cannot be called 'locality set'", {"test_set": {"locality set": torch.zeros(1, 6)}}),
    ("test_set 'far' is empty", {"test_set": {"far": torch.zeros(0, 6)}}),
    ("does not accept test_set 'test set'", {"test_set": torch.zeros(3, 5)}),
    ("Labels must lie in 0..2", {"test_set": (torch.zeros(1, 6), [7])}),
    ("`of` must name edits 0..4, got 0..9", {"edit_scope": EditScope(torch.zeros(2, 6), [0, 0], of=[0, 9])}),
]


@pytest.mark.parametrize(("told", "arguments"), BAD, ids=[told for told, _ in BAD])
def test_refuses(told: str, arguments: dict[str, Any]) -> None:
    model, edits, locality = task()
    with pytest.raises(InvalidInput, match=told):
        nnrepair.fix(model, edits, locality, **({"method": LAST} | arguments))


def test_refuses_a_scope_that_names_no_edits() -> None:
    for of in ([0], [0.5, 0.5], [[0, 1]], [True, False]):
        with pytest.raises(InvalidInput, match="`of` must name one edit"):
            EditScope(torch.zeros(2, 4), [0, 1], of=of)


def test_a_decoupled_network_is_not_repaired_again() -> None:
    model, edits, _ = task()
    with pytest.raises(InvalidInput, match="MinimalNorm cannot repair a network that it repaired before"):
        nnrepair.fix(model, edits, method=MinimalNorm("2", architecture="decoupled"), mode="successive")


def test_every_edit_counts_once_in_generalization() -> None:
    """However many points its scope has, and however edits are put into steps."""
    model, edits, _ = task(3)
    of = torch.tensor([0] * 20 + [1, 2])
    near = edits.inputs[of] * torch.cat([torch.ones(20), -torch.ones(2)])[:, None]  # only those of edit 0 will follow
    scope = EditScope(near, edits.criterion.labels[of], of)
    found = [
        nnrepair.fix(model, edits, method=LAST, mode="successive", batch_size=k, edit_scope=scope) for k in (1, 2, 3)
    ]
    together = nnrepair.fix(model, edits, method=LAST, edit_scope=scope)
    holds = scope.criterion.holds(together.model(scope.inputs)).double()
    assert together.report.generalization_rate == pytest.approx(float(holds[:20].mean() + holds[20] + holds[21]) / 3)
    assert found[2].generalization_rate == pytest.approx(together.report.generalization_rate)
    for history in found:
        holds = scope.criterion.holds(history.model(scope.inputs)).double()
        retained = float(holds[:20].mean() + holds[20] + holds[21]) / 3
        assert history.generalization_retain_rate == pytest.approx(retained)


def test_what_stays_is_what_the_original_says_for_regions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = Says.repair

    def watched(self: Says, problem: Problem) -> Proposal:
        assert problem.locality is not None
        seen.append(problem.locality.criterion.labels)  # type: ignore[attr-defined]
        return real(self, problem)

    monkeypatch.setattr(Says, "repair", watched)
    model, x = net(), randn(3, 6, seed=8)
    edits = Edits(Segments(x, x + 0.05 * randn(3, 6, seed=9)), (model(x).argmax(1) + 1) % 3)
    kept = randn(50, 6, seed=4)
    nnrepair.fix(model, edits, kept, method=Says(), mode="successive", throw=False)
    assert len(seen) >= 2
    assert all(torch.equal(labels, model(kept).argmax(1)) for labels in seen)


def test_every_step_of_a_sequence_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    real = Says.repair
    monkeypatch.setattr(Says, "repair", lambda self, problem: (seeds.append(problem.seed), real(self, problem))[1])
    model, edits, _ = task()
    nnrepair.fix(model, edits, method=Says(), mode="successive", seed=5, throw=False)
    assert len(set(seeds)) == len(seeds) > 1
    seeds.clear()
    nnrepair.fix(model, edits, method=Says(), mode="independent", seed=5)
    assert set(seeds) == {5}


def test_edits_can_be_sliced() -> None:
    model, edits, _ = task()
    assert torch.equal(edits[1:3].inputs, edits.inputs[1:3])
    assert nnrepair.fix(model, edits[1:2], method=LAST).outcome.ok


def test_one_edit_at_a_time_is_enough_for_some_methods() -> None:
    model, edits, _ = task()
    assert nnrepair.fix(model, edits, method=Says(batch=False), mode="independent").success_rate == 1.0
    history = nnrepair.fix(model, edits, method=Says(batch=False), mode="successive", rehearsal=False, throw=False)
    assert history.success_rate == 1.0


def test_memory_does_not_grow_with_the_number_of_edits() -> None:
    """Of every step only its measures are kept: no network, no patch, no tensor."""
    model, edits, locality = task(8)
    history = nnrepair.fix(model, edits, locality, method=LAST, mode="successive")

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        if isinstance(value, dict):
            return [t for v in value.values() for t in tensors(v)]
        if isinstance(value, list | tuple):
            return [t for v in value for t in tensors(v)]
        return tensors(vars(value)) if hasattr(value, "__dict__") else []

    assert all(not tensors(step) for step in history.steps)


@pytest.mark.parametrize("layer", ["0", "2"])
def test_what_is_known_of_network_and_locality_set_is_worked_out_once(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent edits share their metric, and are repaired as they are alone; later networks have their own."""
    model = net()
    x = randn(40, model[0].in_features)
    edits, keep = Edits(x[:3], Near(model(x[:3]).detach() + 0.5, 0.1)), x[5:]
    method = MinimalNorm(layer, norm="fisher", locality="none")
    alone = [nnrepair.fix(model, edits[torch.tensor([k])], keep, method=method).model for k in range(3)]
    made, changes, metric = [], [], Linearization.metric
    monkeypatch.setattr(Linearization, "metric", lambda *args, **given: made.append(1) or metric(*args, **given))
    repair = MinimalNorm.repair

    def watched(self: MinimalNorm, problem: Problem) -> Proposal:
        changes.append(repair(self, problem).model)
        return repair(self, problem)

    monkeypatch.setattr(MinimalNorm, "repair", watched)
    nnrepair.fix(model, edits, keep, method=method, mode="independent")
    assert len(made) == 1 and len(changes) == 3
    for mine, other in zip(changes, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))
    made.clear()
    nnrepair.fix(model, edits, keep, method=method, mode="successive")
    assert len(made) == 3
