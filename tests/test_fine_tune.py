from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from networks import Residual, Tied, clusters, mistakes, mlp, randn, seeded
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, Edits, InvalidInput, Linear, LocalitySet, Near, RepairFailed, Segments, UnsupportedModel
from nnrepair.domains import vision
from nnrepair.methods import FineTune, named
from nnrepair.methods.fine_tune import method as fine_tune
from nnrepair.methods.fine_tune.penalties import (
    EWC,
    KL,
    L2,
    L2Ball,
    LInf,
    Penalty,
    Regularizer,
)
from nnrepair.methods.fine_tune.points import Points
from nnrepair.spec.problem import pose

quick = FineTune(lr=0.01)


def task(n: int = 6, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, tuple[Tensor, Tensor], Tensor]:
    model = mlp(4, 16, 3, seed=1).to(dtype).eval()
    x = randn(n, 4, seed=5, dtype=dtype)
    return model, (x, mistakes(model, x)), clusters(60, 4, seed=6).to(dtype)


def weights(model: nn.Module) -> dict[str, bytes]:
    return {n: t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for n, t in model.state_dict().items()}


# Stopping ------------------------------------------------------------------------------------------------------------


def test_edits_that_hold_cost_no_step() -> None:
    model, (x, _), kept = task()
    with torch.no_grad():
        right = model(x).argmax(1)
    for method in (quick, FineTune(batch_size=2, penalties=[KL(1.0), LInf(1e-3)], interpolate="auto")):
        proposal = method.repair(pose(model, (x, right), kept))
        assert proposal.stats["steps"] == 0
        assert weights(proposal.model) == weights(model)


@pytest.mark.parametrize("batch_size", [2, 256])
def test_no_step_is_taken_that_is_not_needed(batch_size: int) -> None:
    model, edits, _ = task()
    method = FineTune(lr=0.01, batch_size=batch_size)
    found = nnrepair.fix(model, edits, method=method)
    steps = found.stats["steps"]
    assert 0 < steps < 200
    fewer = FineTune(lr=0.01, steps=steps - 1, batch_size=batch_size)
    assert not nnrepair.fix(model, edits, method=fewer, throw=False).outcome.ok
    enough = FineTune(lr=0.01, steps=steps, batch_size=batch_size)
    assert weights(nnrepair.fix(model, edits, method=enough).model) == weights(found.model)


def test_no_steps_at_all() -> None:
    model, edits, _ = task()
    result = nnrepair.fix(model, edits, method=FineTune(steps=0), throw=False)
    assert result.outcome.status == "partly repaired"
    assert weights(result.model) == weights(model)
    assert "most edits held: 0" in " ".join(result.report.notes)


def test_a_margin_is_kept() -> None:
    model, (x, labels), _ = task()
    result = nnrepair.fix(model, (x, labels), method=FineTune(lr=0.01, margin=2.0))
    with torch.no_grad():
        assert Argmax(labels, margin=2.0).holds(result.model(x).double()).all()
    assert result.stats["steps"] > nnrepair.fix(model, (x, labels), method=quick).stats["steps"]


@pytest.mark.parametrize("margin", [0.0, 0.05])
@pytest.mark.parametrize("batch_size", [2, 256])
def test_conditions_that_are_no_classes(margin: float, batch_size: int) -> None:
    model, (x, _), kept = task()
    method = FineTune(lr=0.01, margin=margin, batch_size=batch_size, penalties=[KL(0.1)])
    for criterion in (
        Near(torch.zeros(6, 3), tol=0.1),
        Linear([[1.0, -1.0, 0.0], [0.0, 1.0, 0.0]], [0.5, 0.2], points=6),
        Argmax([0] * 6) | Argmax([1] * 6),
        Argmax([0] * 6) & Near(torch.ones(6, 3), tol=3.0),
    ):
        result = nnrepair.fix(model, Edits(x, criterion), kept, method=method)
        with torch.no_grad():
            y = result.model(x).double()
        assert criterion.holds(y).all()
        assert (criterion.margin(y) >= margin).all()


# What comes back -----------------------------------------------------------------------------------------------------


def test_the_best_weights_come_back() -> None:
    """Two edits contradict each other; with a step size this large, edits come and go."""
    model, (x, labels), _ = task(12)
    edits = torch.cat([x, x[:1] + 1e-5]), torch.cat([labels, (labels[:1] + 1) % 3])
    counts: list[int] = []

    class Spy(Regularizer):
        def project(self, now: Any) -> None:
            y = torch.func.functional_call(model, dict(now), (edits[0],))
            counts.append(int(Argmax(edits[1]).holds(y.double()).sum()))

    @dataclass(frozen=True)
    class Watch(Penalty):
        def start(self, *given: Any) -> Regularizer:
            return Spy()

    result = nnrepair.fix(model, edits, method=FineTune(lr=1.0, steps=23, penalties=[Watch()]), throw=False)
    assert not result.outcome.ok
    assert counts[-1] < max(counts) == sum(result.report.held_after)
    assert f"most edits held: {max(counts)}" in " ".join(result.report.notes)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("lr", [1e30, 1e300])
def test_an_explosion_is_reported(optimizer: Any, lr: float) -> None:
    model, (x, labels), kept = task()
    with torch.no_grad():
        labels[:3] = model(x[:3]).argmax(1)
    method = FineTune(lr=lr, optimizer=optimizer, penalties=[KL(1.0), L2Ball(1e35), L2(1e-3)], interpolate="auto")
    result = nnrepair.fix(model, (x, labels), kept, method=method, throw=False)
    assert result.report.success_rate >= 0.5  # never worse than before
    assert all(bool(torch.isfinite(p).all()) for p in result.model.parameters())
    if not result.outcome.ok:
        assert "A smaller lr may help" in " ".join(result.report.notes)


def test_an_explosion_of_plain_descent() -> None:
    model, edits, _ = task()
    result = nnrepair.fix(model, edits, method=FineTune(lr=1e30, optimizer="sgd"), throw=False)
    assert weights(result.model) == weights(model) or result.report.success_rate > 0
    assert "the loss became" in " ".join(result.report.notes)
    assert "now 1e+30" in " ".join(result.report.notes)


def test_only_the_chosen_layers_change() -> None:
    model, edits, _ = task()
    result = nnrepair.fix(model, edits, method=FineTune(["2.weight", "0"], lr=0.01))
    changed = [n for n in weights(model) if weights(model)[n] != weights(result.model)[n]]
    assert changed == ["0.weight", "0.bias", "2.weight"]
    assert result.stats["layers"] == ["2.weight", "0.weight", "0.bias"]


def test_what_has_no_gradient_stays_bit_for_bit() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.other = mlp(4, 8, 3), nn.Linear(2, 2)
            self.count = nn.Parameter(torch.tensor(3), requires_grad=False)
            self.other.weight.data[0, 0] = -0.0

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    model = seeded(Unused)
    x = randn(3, 4)
    edits = x, mistakes(model, x)
    for optimizer in ("adam", "sgd", "rmsprop"):
        result = nnrepair.fix(model, edits, method=FineTune(lr=0.01, optimizer=optimizer))  # type: ignore[arg-type]
        assert weights(result.model.other) == weights(model.other)
    with pytest.raises(UnsupportedModel, match=r"no gradient .*other.weight"):
        nnrepair.fix(model, edits, method=FineTune("other"))


# Interpolation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("penalties", [(), (LInf(0.4),)])
def test_interpolation_holds_and_is_no_larger(dtype: torch.dtype, penalties: Any) -> None:
    model, edits, _ = task(dtype=dtype)
    whole = nnrepair.fix(model, edits, method=FineTune(lr=0.2, penalties=penalties))
    part = nnrepair.fix(model, edits, method=FineTune(lr=0.2, penalties=penalties, interpolate="auto"))
    assert part.outcome.ok
    assert 0 < part.stats["alpha"] <= 1
    assert "alpha" not in whole.stats
    old, new, tuned = (dict(m.named_parameters()) for m in (model, part.model, whole.model))
    for name in old:
        assert ((new[name] - old[name]).abs() <= (tuned[name] - old[name]).abs()).all()
    if dtype != torch.bfloat16:
        assert part.stats["alpha"] < 1
        assert part.report.weight_change.l2 < whole.report.weight_change.l2
        less = {n: old[n] + (part.stats["alpha"] - 1e-3) * (tuned[n] - old[n]) for n in old}
        y = torch.func.functional_call(model, less, (edits[0],))
        assert not Argmax(edits[1]).holds(y.double()).all()


def test_interpolation_finds_the_first_place_where_all_edits_hold() -> None:
    """|w| in [0.3, 0.4] or [0.9, 1] will do: from 0 to 1 the edit holds twice, and bisection alone would find 0.9."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.w * x

    two = Near(torch.tensor([[0.35]]), tol=0.05) | Near(torch.tensor([[0.95]]), tol=0.05)
    edits = Edits(torch.ones(1, 1, dtype=torch.float64), two)
    run = fine_tune._Run(FineTune(), pose(One(), edits), ["w"])
    run.best = {"w": torch.ones(1, dtype=torch.float64)}
    alpha = run._interpolate()
    assert 0.3 <= alpha < 0.3001
    assert run.network.w.item() == alpha


def test_no_interpolation_of_a_failure() -> None:
    model, edits, _ = task()
    result = nnrepair.fix(model, edits, method=FineTune(steps=2, interpolate="auto"), throw=False)
    assert "alpha" not in result.stats
    assert any("no interpolation" in note for note in result.report.notes)


# Kinds of models and inputs ------------------------------------------------------------------------------------------


class Batched(nn.Module):
    """What could disturb: batch norm, an activation in place, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(-1, 1, 4, 4))


@pytest.mark.parametrize("make", [Residual, Tied, Batched])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kinds_of_models(make: Any, dtype: torch.dtype) -> None:
    model = seeded(make).to(dtype).eval()
    x = randn(5, 16 if make is Batched else 4, dtype=dtype)
    kept = randn(40, x.shape[1], seed=2, dtype=dtype)
    method = FineTune(lr=0.01, penalties=[KL(0.1), EWC(0.1), LInf(1.0)], rehearsal=3)
    result = nnrepair.fix(model, (x, mistakes(model, x)), kept, method=method)
    assert result.outcome.ok
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    if make is Tied:
        assert result.model.a.weight is result.model.b.weight
    for name, buffer in model.named_buffers():
        assert torch.equal(dict(result.model.named_buffers())[name], buffer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_add_up_in_half_precision(dtype: torch.dtype) -> None:
    """A single step of this size is less than half of the distance between neighbouring numbers."""
    model, edits, _ = task(dtype=dtype)
    result = nnrepair.fix(model, edits, method=FineTune(lr=1e-4, steps=3000))
    assert result.outcome.ok


@dataclass(frozen=True)
class Nodes:
    """Nodes of a path, whose outputs depend on all nodes; counts how often a model runs."""

    x: Tensor
    index: Tensor
    calls: list[int]
    joins: bool = True
    independent = False

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor) -> Nodes:
        return Nodes(self.x, self.index[index], self.calls, self.joins)

    def to(self, like: Tensor) -> Nodes:
        return Nodes(self.x.to(like), self.index, self.calls, self.joins)

    def call(self, model: nn.Module) -> Tensor:
        self.calls.append(len(self))
        return model(self.x + self.x.mean(0))[self.index]

    def joined(self, other: Nodes) -> Nodes | None:
        return Nodes(self.x, torch.cat([self.index, other.index]), self.calls) if self.joins else None


@pytest.mark.parametrize("joins", [True, False])
def test_points_that_depend_on_each_other_run_together(joins: bool) -> None:
    model, _, _ = task()
    x, calls = randn(40, 4, seed=3), []
    edits, kept = Nodes(x, torch.arange(5), calls, joins), Nodes(x, torch.arange(10, 40), calls, joins)
    with torch.no_grad():
        labels = edits.call(model).topk(2, dim=1).indices[:, 1]
    method = FineTune(lr=0.01, batch_size=2, rehearsal=4, penalties=[KL(1.0), EWC(1.0)])
    problem = pose(model, (edits, labels), kept)
    calls.clear()
    steps = method.repair(problem).stats["steps"]
    together = calls[-steps:]
    assert set(calls) <= {5, 30, 35}  # never a part of the edits, nor of the locality set
    if joins:
        assert calls.count(35) == steps + 1
        assert calls.count(5) < 5
    else:
        assert 35 not in together and calls.count(30) >= steps
    assert nnrepair.fix(model, (edits, labels), kept, method=method).outcome.ok


def test_points_on_a_graph_are_tuned_like_the_same_points_alone() -> None:
    model, _, _ = task(dtype=torch.float64)
    x = randn(40, 4, seed=3, dtype=torch.float64)
    nodes, kept = Nodes(x, torch.arange(5), []), Nodes(x, torch.arange(10, 40), [])
    alone = x + x.mean(0)
    labels = mistakes(model, alone[:5])
    method = FineTune(lr=0.01, rehearsal=30, penalties=[KL(1.0), EWC(1.0)])
    a = nnrepair.fix(model, (nodes, labels), kept, method=method)
    b = nnrepair.fix(model, (alone[:5], labels), alone[10:], method=method)
    for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_independent_inputs_that_are_no_tensor() -> None:
    class Pairs(Nodes):
        independent = True

        def __getitem__(self, index: Tensor) -> Pairs:
            return Pairs(self.x, self.index[index], self.calls)

        def to(self, like: Tensor) -> Pairs:
            return self

        def call(self, model: nn.Module) -> Tensor:
            return model(self.x[self.index])

        joined = None  # type: ignore[assignment]

    model, _, _ = task()
    x = randn(40, 4, seed=3)
    method = FineTune(lr=0.01, batch_size=3, rehearsal=2, penalties=[KL(1.0), EWC(1.0)])
    edits = Edits(Pairs(x, torch.arange(8), []), mistakes(model, x[:8]))
    assert nnrepair.fix(model, edits, Pairs(x, torch.arange(10, 40), []), method=method).outcome.ok


def test_inputs_of_other_shapes_run_apart() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool1d(4), nn.Flatten(), *mlp(4, 16, 3, seed=1)).eval()
    x, kept = randn(4, 1, 8, seed=5), randn(10, 1, 12, seed=6)
    method = FineTune(lr=0.01, penalties=[KL(1.0)])
    assert nnrepair.fix(model, (x, mistakes(model, x)), kept, method=method).outcome.ok


def test_edits_over_regions() -> None:
    model = mlp(2, 16, 3, seed=1).eval()
    start, end = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.3, 0.2], [1.2, 1.5]])
    result = nnrepair.fix(
        model, (Segments(start, end), [2, 0]), randn(20, 2), method=FineTune(lr=0.01, penalties=[KL(0.1)])
    )
    along = torch.linspace(0, 1, 50)[:, None]
    with torch.no_grad():
        for k, label in enumerate([2, 0]):
            points = start[k] * (1 - along) + end[k] * along
            assert (result.model(points).argmax(1) == label).all()


# Batches, rehearsal, randomness --------------------------------------------------------------------------------------


def test_many_edits_go_in_batches() -> None:
    model = mlp(4, 64, 3, seed=1).eval()
    x = clusters(60, 4, seed=5)
    labels = mistakes(model, x)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])) if given[0].ndim > 1 else None)
    problem = pose(model, (x, labels))
    seen.clear()  # the door has looked at a few
    proposal = FineTune(lr=0.01, batch_size=16).repair(problem)
    assert proposal.stats["steps"] > 0
    assert set(seen) == {16, 60}
    assert not torch.isnan(torch.tensor(proposal.stats["loss"]))
    with torch.no_grad():
        assert (proposal.model(x).argmax(1) == labels).all()


def test_rehearsal_keeps_the_locality_set() -> None:
    model, edits, kept = task()
    lost = []
    for rehearsal in (0, 60):
        method = FineTune(lr=0.01, rehearsal=rehearsal)
        lost.append(1 - (nnrepair.fix(model, edits, kept, method=method).report.locality or 0.0))
    assert lost[1] < lost[0]


def test_points_that_were_wrong_are_not_rehearsed() -> None:
    model, edits, kept = task()
    wrong = mistakes(model, kept)
    labels = wrong.clone()
    with torch.no_grad():
        labels[::2] = model(kept[::2]).argmax(1)
    problem = pose(model, edits, (kept, labels))
    points = Points(problem, 256, 20, torch.Generator(), False)
    drawn = points.run(model)
    assert (drawn.rehearsal % 2 == 0).all()
    assert len(set(drawn.rehearsal.tolist())) == 20
    assert torch.equal(drawn.rehearsed, model(torch.cat([edits[0], kept[drawn.rehearsal]]))[6:])
    everything = Points(problem, 256, 99, torch.Generator(), False).run(model)
    assert len(everything.rehearsal) == 30


def test_only_the_seed_decides() -> None:
    model, edits, kept = task()
    method = FineTune(lr=0.01, batch_size=4, rehearsal=5, penalties=[KL(0.5), EWC(0.5, "sampled", points=9)])
    a, b, c = (weights(nnrepair.fix(model, edits, kept, method=method, seed=s).model) for s in (1, 1, 2))
    assert a == b != c


def test_repair_leaves_the_random_state_and_the_model() -> None:
    model, edits, kept = task()
    state, before = torch.get_rng_state(), weights(model)
    problem = pose(model, edits, kept)
    with torch.no_grad():
        proposal = FineTune(lr=0.01, rehearsal=5, penalties=[EWC(1.0, "sampled")]).repair(problem)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights(model) == before
    assert all(p.grad is None for p in [*model.parameters(), *proposal.model.parameters()])
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in proposal.model.parameters()}


def test_progress_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    model, edits, _ = task()
    nnrepair.fix(model, edits, method=quick, progress=True)
    assert "fine-tune" in capsys.readouterr().err
    nnrepair.fix(model, edits, method=quick)
    assert capsys.readouterr().err == ""


@pytest.mark.data
def test_foggy_digits(data_dir: Any) -> None:
    """All fifty hold under every registered method, and each penalty loses less than plain fine-tuning."""
    data_dir("mnist/mnist.npz", "mnist/mnist_fog_test.npz", "mnist/mnist_relu_3x100.npz")
    model = vision.relu_mlp("3x100")
    fog, train = vision.mnist_fog(), vision.mnist("train")
    with torch.no_grad():
        wrong = torch.nonzero(model(fog.inputs).argmax(1) != fog.labels).flatten()[:50]
    edits, kept = (fog.inputs[wrong], fog.labels[wrong]), (train.inputs[:2000], train.labels[:2000])
    lost = {}
    for name in ("ft", "ft+l2", "ft+linf", "ft+kl", "ewc"):
        result = nnrepair.fix(model, edits, kept, method=name)
        lost[name] = result.report.drawdown_points
    assert max(lost, key=lambda name: lost[name] or 0.0) == "ft"
    assert (lost["ft+kl"] or 0.0) < 1.0


# The dataclass -------------------------------------------------------------------------------------------------------


def test_equality_and_names() -> None:
    assert FineTune(["a"], penalties=[L2(1.0)]) == FineTune(("a",), penalties=(L2(1.0),))
    assert len({FineTune(), FineTune(), FineTune(lr=1.0)}) == 2
    assert FineTune(penalties=L2(1.0)).penalties == (L2(1.0),)  # type: ignore[arg-type]
    assert named("ft") == FineTune()
    for name in ("ft+l2", "ft+linf", "ft+kl", "ewc"):
        assert len(named(name).penalties) == 1  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match=r"Unknown method 'ft\+k'. Did you mean .*'ft\+kl'"):
        named("ft+k")
    with pytest.raises(InvalidInput, match="Unknown method 'fine-tune'.*Methods: .*ft"):
        named("fine-tune")


def test_capabilities_are_honest() -> None:
    assert named("ft").capabilities.only_edit_pair
    assert named("ft+linf").capabilities.only_edit_pair
    for method in (FineTune(rehearsal=1), named("ft+kl"), named("ewc")):
        assert not method.capabilities.only_edit_pair
    assert {named(name).capabilities.family for name in ("ft", "ewc")} == {"regularisation"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adma"}, "Unknown optimizer 'adma'. Did you mean 'adam'.* Choose one of adam, sgd, rmsprop"),
        ({"interpolate": True}, "Unknown interpolate True.* auto, none"),
        ({"steps": -1}, "steps must be an integer >= 0, got -1"),
        ({"steps": 1.5}, "steps must be an integer >= 0, got 1.5"),
        ({"steps": True}, "steps must be an integer"),
        ({"rehearsal": -2}, "rehearsal must be an integer >= 0, got -2"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"lr": 0.0}, "lr must be a finite number > 0, got 0"),
        ({"lr": math.nan}, "lr must be a finite number > 0, got nan"),
        ({"margin": -1.0}, "margin must be a finite number >= 0"),
        ({"margin": math.inf}, "margin must be a finite number >= 0"),
        ({"penalties": [0.1]}, r"such as L2\(0.1\).*got 0.1"),
        ({"penalties": [L2]}, "must be Penalty objects"),
        ({"penalties": "l2"}, "must be a list of Penalty objects, got 'l2'"),
        ({"layers": [1]}, "layers must be a name or several names"),
        ({"layers": 3}, "layers must be a name or several names, got 3"),
    ],
)
def test_messages(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        FineTune(**given)


def test_messages_about_the_task() -> None:
    model, edits, kept = task()
    with pytest.raises(InvalidInput, match="rehearsal=3 takes points of the locality set, and there is none"):
        nnrepair.fix(model, edits, method=FineTune(rehearsal=3))
    with pytest.raises(InvalidInput, match="Layer 'fc' not found"):
        nnrepair.fix(model, edits, method=FineTune("fc"))
    frozen = copy.deepcopy(model).requires_grad_(False)
    with pytest.raises(InvalidInput, match="Every parameter is frozen"):
        nnrepair.fix(frozen, edits, method=FineTune())
    with pytest.raises(InvalidInput, match="frozen"):
        nnrepair.fix(frozen, edits, method=FineTune("0"))
    with pytest.raises(RepairFailed):
        nnrepair.fix(model, edits, LocalitySet(kept), method=FineTune(steps=1))
