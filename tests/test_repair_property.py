"""Property repair as a whole: what it returns, what it refuses, what it leaves alone."""

from __future__ import annotations

import copy
import subprocess
import sys
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, InvalidInput, LocalitySet, RepairFailed, Threshold, UnsupportedModel, repair_property
from nnrepair.properties.task import read_tasks, refuse_contradictions
from nnrepair.spec.criteria import Linear
from nnrepair.verify import Box, Case, Halfspace, Property, check, vnnlib


def label_on(low: list[float], high: list[float], label: int, outputs: int = 3) -> Property:
    return Property.on(Box(low, high), Argmax([label]), outputs=outputs)


def violated(radius: float = 0.1) -> tuple[nn.Sequential, Property]:
    """Return a network and a box on part of which it prefers another class."""
    model = mlp(2, 12, 12, 3, seed=3)
    x = randn(1, 2, seed=1)[0] / 2
    with torch.no_grad():
        second = int(model(x[None])[0].argsort(descending=True)[1])
    return model, label_on((x - radius).tolist(), (x + radius).tolist(), second)


def scattered(count: int = 400) -> Tensor:
    return randn(count, 2, seed=9)


def constant() -> nn.Sequential:
    """A network that does not look at its input."""
    model = mlp(1, 4, 2)
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(1.0)
    return model


def test_violated_property_is_proved_afterwards() -> None:
    model, wanted = violated()
    assert check(model, wanted).verdict == "violated"
    result = repair_property(model, wanted, locality_set=scattered())
    assert result.outcome.status == "repaired"
    assert check(result.model, wanted).holds
    (proof,) = result.proofs
    assert (proof.role, proof.result.verdict) == ("repair", "holds")
    assert proof.result.certificate is not None
    assert result.report.success_rate == 1.0 and result.report.held_before == [False]
    assert "property 1 (repair): holds" in str(result)
    with pytest.raises(InvalidInput, match="has its proofs"):
        result.verify()


def test_what_takes_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("nnrepair.properties.repair.progress_bar", lambda *given, **how: nullcontext(said.append))
    model, wanted = violated()
    assert repair_property(model, wanted).outcome.ok
    checks = [place for place, text in enumerate(said) if text == "property 1: looking for counterexamples"]
    assert len(checks) > 1 and checks[0] < said.index("128 counterexamples") < checks[-1]


def test_random_points_of_the_region_hold_in_the_networks_own_arithmetic() -> None:
    model, wanted = violated()
    result = repair_property(model, wanted)
    lower, upper = (torch.from_numpy(end) for end in wanted.cases[0].box.inner)
    x = (lower + torch.rand(5000, 2, dtype=torch.float64) * (upper - lower)).float()
    label = next(k for k, c in enumerate(wanted.cases[0].unsafe[0][0].coefficients) if c > 0)
    with torch.no_grad():
        assert bool((result.model(x).argmax(1) == label).all())


def test_model_and_random_state_are_left_alone() -> None:
    model, wanted = violated()
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    result = repair_property(model, wanted, locality_set=scattered(), layer="all")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training and result.model.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_same_seed_gives_the_same_network() -> None:
    model, wanted = violated()
    one, other = (repair_property(model, wanted, locality_set=scattered(), seed=5).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_only_the_last_layer_changes_and_the_patch_says_so() -> None:
    model, wanted = violated()
    result = repair_property(model, wanted, layer="last")
    assert result.patch is not None and set(result.patch.new) <= {"4.weight", "4.bias"}
    applied = result.patch.apply(model)
    assert all(torch.equal(a, b) for a, b in zip(applied.parameters(), result.model.parameters(), strict=True))


def test_all_layers_change_when_asked() -> None:
    model, wanted = violated()
    result = repair_property(model, wanted, locality_set=scattered(), layer="all")
    assert result.outcome.status == "repaired" and check(result.model, wanted).holds
    assert result.patch is not None and "0.weight" in result.patch.new


def test_decisions_of_the_locality_set_are_kept() -> None:
    model, wanted = violated()
    x = scattered()
    careless = repair_property(model, wanted).model
    careful = repair_property(model, wanted, locality_set=x, layer="last")
    with torch.no_grad():
        was = model(x).argmax(1)
        kept = [float((m(x).argmax(1) == was).double().mean()) for m in (careless, careful.model)]
    assert kept[0] < kept[1]
    assert careful.report.locality is not None and careful.report.locality > 0.97


def test_outputs_of_the_locality_set_stay_bit_for_bit() -> None:
    """Where units that are off at most points can do it, they are changed, and neither a bias nor the others."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    values = [
        [[1.0], [1]],
        [3.0, -0.9],
        [[0.0, 0], [0, 0]],
        [1.0, 0],
    ]  # one unit is on, one off below 0.9
    with torch.no_grad():
        for p, value in zip(model.parameters(), values, strict=True):
            p.copy_(torch.tensor(value))
    wanted, points = label_on([1.0], [1.1], 1, outputs=2), torch.linspace(-2, 0, 200)[:, None]
    small, exact = (
        repair_property(model, wanted, locality_set=points, layer="last", locality=what)  # type: ignore[arg-type]
        for what in ("decisions", "outputs")
    )
    assert exact.outcome.ok
    assert "locality='outputs'" in exact.report.method
    with torch.no_grad():
        same = [(model(points) == each.model(points)).all(1).double().mean() for each in (small, exact)]
    assert same[0] < 0.5 < same[1]
    assert exact.report.weight_change.l1 >= small.report.weight_change.l1  # what it costs
    with pytest.raises(InvalidInput, match="give one"):
        repair_property(model, wanted, locality="outputs")
    with pytest.raises(InvalidInput, match="'decisions' or 'outputs'"):
        repair_property(model, wanted, locality="weights")  # type: ignore[arg-type]


def test_a_ball_of_many_inputs_is_repaired_and_other_balls_are_proved_again_or_named() -> None:
    """Inputs too many to split: proofs split ReLUs. What cannot be kept is listed, and the outcome says so."""
    model, x = mlp(30, 10, 3, seed=5), randn(7, 30, seed=2)
    with torch.no_grad():
        order = model(x).argsort(1, descending=True)
    around = [Box.around(each, 0.02) for each in x]
    wanted = Property.on(around[0], Argmax([int(order[0, 1])]), outputs=3)
    balls = [Property.on(box, Argmax([int(label)]), outputs=3) for box, label in zip(around, order[:, 0], strict=True)]
    keep = [each for each in balls[1:] if check(model, each, timeout=10).holds]
    assert len(keep) >= 3
    result = repair_property(model, wanted, keep=keep, locality_set=x[1:], throw=False)
    assert result.outcome.status == "repaired"
    roles = [proof.role for proof in result.proofs]
    assert roles == ["repair", *["keep"] * len(keep)]
    assert all(proof.result.holds for proof in result.proofs)
    assert all(check(result.model, each).holds for each in (wanted, *keep))


def test_a_report_counts_properties_and_says_which_points_were_left_out() -> None:
    model, wanted = violated()
    lower, upper = (torch.from_numpy(end) for end in wanted.cases[0].box.outer)
    inside = (lower + torch.rand(50, 2, generator=torch.Generator().manual_seed(1)) * (upper - lower)).float()
    x = torch.cat([scattered(100), inside])
    wrong = next(k for k, c in enumerate(wanted.cases[0].unsafe[0][0].coefficients) if c > 0)
    with torch.no_grad():
        labels = model(x).argmax(1)
        violates = (x.double() >= lower).all(1) & (x.double() <= upper).all(1) & (labels != wrong)
    labels[:3] = (labels[:3] + 1) % 3  # points that the network gets wrong
    right = labels == model(x).argmax(1)
    result = repair_property(model, wanted, locality_set=(x, labels), layer="last")
    report, kept = result.report, right & ~violates
    assert report.asked == "properties" and "properties" in report.as_dict() and "edits" not in report.as_dict()
    assert report.locality_points == int(kept.sum())
    assert report.side_effects is not None
    assert report.side_effects.left_out == {
        "violate a property": int((right & violates).sum()),
        "did not hold before": int((~right).sum()),
    }
    with torch.no_grad():
        same = float((result.model(x[kept]).argmax(1) == labels[kept]).double().mean())
    assert report.locality == same and report.drawdown_points == pytest.approx(100 * (1 - same))
    text = str(result)
    assert "the property holds" in text and " edits" not in text
    assert f"{int((right & violates).sum())} more left out: they violate a property" in text
    assert "3 more left out: they did not hold before" in text
    assert f"measured on {int(kept.sum())} locality points" in text


def test_a_failed_repair_says_what_its_network_does() -> None:
    """The network is returned as it was, so that all of its decisions are unchanged."""
    model = constant()
    both = [label_on([0.0], [0.4], 0, 2), label_on([0.6], [1.0], 1, 2)]
    x = torch.linspace(2, 3, 7)[:, None]
    result = repair_property(model, both, locality_set=x, layer="last", throw=False)
    assert result.outcome.status == "infeasible"
    assert result.report.locality == 1.0 and result.report.weight_change.nonzeros == 0


def test_one_output_is_kept_by_its_sign() -> None:
    model = mlp(2, 12, 12, 1, seed=3)
    box = Box([0.0, 0.0], [0.2, 0.2])
    with torch.no_grad():
        sign = int(model(torch.full((1, 2), 0.1)) > 0)
        answers = model(scattered())[:, 0] > 0
    wanted = Property.on(box, Threshold([1 - sign]))
    for given in (LocalitySet(scattered()), scattered()):
        with pytest.raises(InvalidInput, match=r"single output.*labels 0 or 1"):
            repair_property(model, wanted, locality_set=given)
    with pytest.raises(InvalidInput, match="use Threshold"):
        repair_property(model, wanted, locality_set=LocalitySet(scattered(), Argmax([0] * 400)))
    for labels in (answers, answers.long(), Threshold(answers)):
        result = repair_property(model, wanted, locality_set=(scattered(), labels), layer="last", throw=False)
        inside = ((scattered() >= 0) & (scattered() <= 0.2)).all(1) & (answers == bool(sign))
        with torch.no_grad():
            same = float(((result.model(scattered())[:, 0] > 0) == answers)[~inside].double().mean())
        assert result.report.locality == same and result.report.side_effects is not None
        assert check(result.model, wanted).holds == (result.outcome.status == "repaired")


def crowded() -> tuple[nn.Sequential, Property, Tensor]:
    """Return a network whose last layer can only keep most of 2000 states by changing beyond all measure."""
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.7 if p.ndim > 1 else 0.4))
    wanted = label_on([-0.3743, -0.5722], [0.0257, -0.1722], 0)
    return model, wanted, torch.rand(2000, 2, generator=torch.Generator().manual_seed(7)) * 2 - 1


def test_kept_states_are_weighed_against_the_size_of_the_change() -> None:
    model, wanted, states = crowded()
    largest = max(float(p.detach().abs().max()) for p in model.parameters())
    result = repair_property(model, wanted, locality_set=states, layer="last")
    assert result.outcome.status == "repaired" and check(result.model, wanted).holds
    assert result.report.weight_change.linf < 3 * largest
    assert result.report.locality is not None and result.report.locality > 0.9
    assert any("weighed" in note for note in result.report.notes)


def test_a_large_change_says_so() -> None:
    model, wanted = violated()
    largest = float(torch.cat([p.detach().flatten() for p in model[-1].parameters()]).abs().max())
    small, large = (repair_property(model, wanted, margin=margin).report for margin in (0.01, 100.0))
    assert small.weight_change.linf < 3 * largest and not any("LARGE CHANGE" in note for note in small.notes)
    assert large.weight_change.linf > 3 * largest
    (note,) = (note for note in large.notes if "LARGE CHANGE" in note)
    assert float(note.split()[2]) >= large.weight_change.linf / largest * 0.99


def test_property_that_holds_is_proved_and_nothing_changes() -> None:
    model, _ = violated()
    easy = Property.on(Box([0, 0], [0.1, 0.1]), Linear([[[1.0, 0, 0]]], [[-100.0]]))
    result = repair_property(model, easy)
    assert result.outcome.status == "nothing to do"
    assert result.proofs[0].result.holds and result.report.weight_change.nonzeros == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), result.model.parameters(), strict=True))


def test_several_properties_hold_jointly_and_kept_ones_are_proved_again() -> None:
    model, wanted = violated()
    low = [float(v) for v in wanted.cases[0].box.lower]
    other = label_on([low[0] + 1.0, low[1]], [low[0] + 1.05, low[1] + 0.05], 0)
    bound = Property.on(Box([-1, -1], [1, 1]), Linear([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]], [[-9.0, -9, -9]]))
    result = repair_property(model, [wanted, other], keep=[bound], throw=False)
    assert [proof.role for proof in result.proofs] == ["repair", "repair", "keep"]
    assert all(check(result.model, prop).holds for prop in (wanted, other, bound))


def test_kept_property_becomes_a_condition_where_the_repair_would_break_it() -> None:
    model, wanted = violated()
    low, high = ([float(v) for v in end] for end in (wanted.cases[0].box.lower, wanted.cases[0].box.upper))
    alone = repair_property(model, wanted).model
    box = Box([high[0] + 0.3, low[1]], [high[0] + 0.32, low[1] + 0.02])
    with torch.no_grad():
        middle = torch.tensor([[high[0] + 0.31, low[1] + 0.01]])
        was, now = model(middle)[0], alone(middle)[0]
    k = int((now - was).abs().argmax())  # what the repair alone moves most may not move by half of that
    sign = float((now - was)[k].sign())
    row = torch.zeros(1, 1, 3)
    row[0, 0, k] = -sign
    fence = Property.on(box, Linear(row, (-sign * was[k] - (now - was)[k].abs() / 2).reshape(1, 1)))
    if not check(model, fence).holds or check(alone, fence).holds:
        pytest.fail("the test's own network no longer shows what it is for")
    assert check(repair_property(model, wanted, keep=[fence]).model, fence).holds


def test_proof_by_construction_on_parts() -> None:
    model, wanted = violated(2.0)
    result = repair_property(model, wanted, most_boxes=2)
    assert result.outcome.status == "repaired"
    assert any("parts of the region" in note for note in result.report.notes)
    assert check(result.model, wanted).holds


def test_no_change_of_the_last_layer_can_do_it() -> None:
    one, other = label_on([0.0], [0.4], 0, 2), label_on([0.6], [1.0], 1, 2)
    result = repair_property(constant(), [one, other], throw=False)
    assert result.outcome.status == "infeasible"
    assert "property 1" in result.outcome.message and "property 2" in result.outcome.message
    assert result.outcome.conflict == [0, 1]
    with pytest.raises(RepairFailed):
        repair_property(constant(), [one, other])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"property": [label_on([0.0, 0], [1, 1], 0), label_on([0.5, 0.5], [2, 2], 1)]}, "No output at all"),
        ({"property": label_on([0.0], [1.0], 0)}, "cannot be called with one input of shape"),
        ({"property": label_on([0.0, 0], [1, 1], 0, outputs=4)}, "2 inputs and 4 outputs"),
        ({"property": []}, "no property to repair"),
        ({"property": 3}, "must be a Property"),
        ({"layer": "fc3"}, "Unknown layer"),
        ({"margin": -1.0}, "margin must be"),
        ({"margin": float("nan")}, "margin must be"),
        ({"most_boxes": 0}, "most_boxes"),
        ({"most_boxes": True}, "most_boxes"),
        ({"margin": True}, "margin must be a finite number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"locality_set": torch.zeros(5, 3)}, "2 numbers per point"),
        ({"locality_set": torch.full((5, 2), float("nan"))}, "NaN"),
        ({"layer": "all"}, "locality set"),
        ({"property": [label_on([0.0, 0], [1, 1], 0), label_on([0.0], [1.0], 0)]}, "need one size"),
        ({"keep": 3}, "keep must be a list"),
        ({"seed": None}, "seed must be"),
        ({"margin": "a"}, "margin must be"),
        ({"locality_set": torch.zeros(0, 2)}, "empty"),
    ],
)
def test_bad_input_is_told_at_the_door(change: dict[str, Any], said: str) -> None:
    model, wanted = violated()
    options: dict[str, Any] = {"property": wanted} | change
    with pytest.raises(InvalidInput, match=said):
        repair_property(model, options.pop("property"), **options)


def test_property_to_keep_that_is_violated_is_refused() -> None:
    model, wanted = violated()
    easy = Property.on(Box([0, 0], [0.1, 0.1]), Linear([[[1.0, 0, 0]]], [[-100.0]]))
    with pytest.raises(InvalidInput, match="to be kept, but violated"):
        repair_property(model, easy, keep=[wanted])


def test_networks_without_linear_bounds_or_last_linear_layer_are_refused() -> None:
    _, wanted = violated()
    with pytest.raises(UnsupportedModel, match=r"nnrepair\.fix repairs points"):
        repair_property(nn.Sequential(nn.Linear(2, 4), nn.Softmin(-1), nn.Linear(4, 3)), wanted)
    with pytest.raises(UnsupportedModel, match="last operation"):
        repair_property(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), label_on([0.0, 0], [1, 1], 1))


def test_acas_xu_from_file_to_accepted_certificate(tmp_path: Path) -> None:
    from nnrepair import onnx
    from nnrepair.cli.model_file import ModelFile
    from nnrepair.domains import acas
    from nnrepair.errors import DataUnavailable

    try:
        path, wanted = acas.network(5, 3), acas.property_file(2)
    except DataUnavailable as error:
        pytest.skip(f"ACAS Xu networks: {error}")
    states = acas.locality_set(onnx.load(path), 5000)
    result = repair_property(path, wanted, keep=[acas.property_file(3)], locality_set=states)
    assert result.outcome.status == "repaired" and result.report.locality == 1.0
    out = tmp_path / "repaired.onnx"
    assert ModelFile.load(path).write(result.model, out)
    assert [proof.name for proof in result.proofs] == ["prop_2", "prop_3"]
    for proof, source in zip(result.proofs, (wanted, acas.property_file(3)), strict=True):
        assert proof.result.certificate is not None
        saved = proof.result.certificate.for_network(out).save(tmp_path / f"{proof.name}.npz")
        program = Path(__file__).parents[1] / "verification" / "check.py"
        said = subprocess.run(
            [sys.executable, program, saved, out, source], capture_output=True, text=True, check=False
        )
        assert said.returncode == 0 and said.stdout.startswith("Accepted"), said.stdout + said.stderr
    x = np.asarray(states.inputs)[:100]
    with torch.no_grad():
        assert result.model(torch.from_numpy(x).reshape(-1, 1, 1, 5)).shape == (100, 5)


def test_repair_property_is_public() -> None:
    assert "repair_property" in nnrepair.__all__
    assert isinstance(LocalitySet(scattered(3)), LocalitySet)


def test_properties_of_one_name_stay_apart(tmp_path: Path) -> None:
    model, wanted = violated()
    easy = [Property.on(Box([0, 0], [k, 0.1]), Linear([[[1.0, 0, 0]]], [[-100.0]])) for k in (0.1, 0.2)]
    places = [tmp_path / "prop (2).vnnlib", tmp_path / "prop.vnnlib", tmp_path / "b" / "prop.vnnlib"]
    places[2].parent.mkdir()
    for place, prop in zip(places, [wanted, *easy], strict=True):
        place.write_text(vnnlib.dumps(prop))
    result = repair_property(model, places)
    assert [proof.source for proof in result.proofs] == places
    assert len({proof.name for proof in result.proofs}) == 3
    assert all(check(result.model, place).holds for place in places)


def test_head_that_starts_at_zero_is_repaired() -> None:
    model, _ = violated()
    with torch.no_grad():
        model[4].weight.zero_()
        model[4].bias.zero_()
    wanted = label_on([0.0, 0.0], [1.0, 1.0], 0)
    assert check(repair_property(model, wanted).model, wanted).holds


def test_shared_and_partly_frozen_last_layers_are_refused() -> None:
    _, wanted = violated()
    tied = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(2)))
    tied[1].weight = tied[0].weight
    box = label_on([0.0, 0, 0], [1, 1, 1], 1)
    with pytest.raises(UnsupportedModel, match="shares its weights with no other"):
        repair_property(nn.Sequential(tied[0], nn.ReLU(), tied[1]), box)
    frozen = mlp(2, 6, 3)
    frozen[2].bias.requires_grad_(False)
    with pytest.raises(UnsupportedModel, match="trainable as a whole"):
        repair_property(frozen, wanted)


def test_the_last_of_two_equal_layers_is_the_one_that_changes() -> None:
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = mlp(2, 3), mlp(3, 3)
            self.mid = copy.deepcopy(self.out)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.mid(torch.relu(self.first(x)))))

    model, wanted = Swapped(), label_on([0.0, 0.0], [0.3, 0.3], 2)
    result = repair_property(model, wanted, throw=False)
    assert result.patch is not None and all(name.startswith("out.") for name in result.patch.new)


def test_properties_that_only_touch_are_not_taken_for_contradictory() -> None:
    tasks = read_tasks(
        [
            Property([Case(Box([0, 0], [1, 1]), ((Halfspace((1, 0, 0), bound, strict),),))], 3)
            for bound, strict in ((1, True), (0, False))
        ],
        [],
    )
    refuse_contradictions(tasks)
    thirds = [Box([0], [Fraction(1, 3)]), Box([Fraction(1, 3) + Fraction(1, 10**25)], [1])]
    apart = [Property.on(box, Argmax([label]), outputs=2) for label, box in enumerate(thirds)]
    refuse_contradictions(read_tasks(apart, []))
    equal = [Case(Box([0], [1]), ((Halfspace((s,), s, True),),)) for s in (1, -1)]  # y >= 1 and y <= 1
    refuse_contradictions(read_tasks([Property([case], 1) for case in equal], []))
    crossed = [Case(Box([0], [1]), ((Halfspace((s,), s, s > 0),),)) for s in (1, -1)]  # y >= 1 and y < 1
    with pytest.raises(InvalidInput, match="No output at all satisfies property 1 and property 2"):
        refuse_contradictions(read_tasks([Property([case], 1) for case in crossed], []))
