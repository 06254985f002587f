"""One table, all methods. A new method is a new row."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import clusters, mistakes, mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import Edits, InvalidInput, LocalitySet, RepairFailed
from nnrepair.fingerprint import fingerprint
from nnrepair.methods import (
    BIRDNN,
    EGNN,
    GRACE,
    MALMEN,
    MEND,
    REASSURE,
    REGISTRY,
    SERAC,
    CaliNet,
    Capabilities,
    CNPConditioning,
    EditableTraining,
    FineTune,
    KnowledgeEditor,
    LearnedSteps,
    LeastSquares,
    Method,
    MinimalNorm,
    RandomLabels,
    Rewriting,
    TPatcher,
    Trainable,
    named,
    table,
)
from nnrepair.methods.base import capabilities_of, kind_of
from nnrepair.methods.fine_tune.penalties import EWC, KL, L2, LInf, Rewired, TopShare
from nnrepair.provenance import digest
from nnrepair.spec.running import outputs

#: Under every registered name but "auto": hyper-parameters that suit the tiny tasks below.
METHODS: dict[str, Callable[[], Method | Trainable]] = {
    "minimal-norm": MinimalNorm,
    "ft": lambda: FineTune(lr=0.01, steps=200),
    "ft+l2": lambda: FineTune(lr=0.01, steps=200, penalties=(L2(0.1),)),
    "ft+linf": lambda: FineTune(lr=0.01, steps=200, penalties=(LInf(0.5),)),
    "ft+kl": lambda: FineTune(lr=0.01, steps=200, penalties=(KL(0.1),), interpolate="auto"),
    "ewc": lambda: FineTune(lr=0.01, steps=200, penalties=(EWC(0.1),), rehearsal=8),
    "gre": lambda: FineTune(lr=0.01, steps=200, penalties=(Rewired(),)),
    "gre+": lambda: FineTune(lr=0.01, steps=200, penalties=(Rewired(3),)),
    "ft+mask": lambda: FineTune(lr=0.01, steps=200, penalties=(TopShare(0.3),)),
    "lora": lambda: FineTune(lr=0.03, steps=300, rank=2),
    "birdnn": lambda: BIRDNN(lr=0.01),
    "egnn": lambda: EGNN(lr=0.01, steps=300),
    "seed-gnn": lambda: EGNN(lr=0.01, steps=300, near=0.25, kl=0.0, rehearsal=20),
    "grace": GRACE,
    "learned-steps": lambda: LearnedSteps(start=0.1, lr=0.2),
    "editable-training": lambda: EditableTraining(start=0.1),
    "cnp": CNPConditioning,
    "rome": LeastSquares,
    "memit": lambda: LeastSquares(constraint="ridge", ridge=0.1),
    "pmet": lambda: LeastSquares(constraint="ridge", ridge=0.1, share="root"),
    "alphaedit": lambda: LeastSquares(constraint="null-space", ridge=0.1, null=0.02),
    "rewriting": lambda: Rewriting(rank=4),
    "reassure": REASSURE,
    "t-patcher": TPatcher,
    "serac": SERAC,
    "mend": lambda: MEND(start=0.1),
    "malmen": lambda: MALMEN(start=1.0),
    "knowledge-editor": lambda: KnowledgeEditor(start=0.1),
    "calinet": lambda: CaliNet(units=16, lr=0.03, steps=200),
}
#: Further names of the same.
ALIASES = {"auto": "minimal-norm", "emmet": "rome"}
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())
PARTS = {kind.__name__: kind for kind in (EWC, KL, L2, LInf, Rewired, TopShare)}


class Net(nn.Module):
    """A small network with what a repair could disturb: buffers, dropout, a frozen layer, another mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.body = mlp(4, 12, 10, seed=1)
        self.drop = nn.Dropout(0.5)
        self.head = mlp(10, 3, seed=2)
        self.body[0].weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.body(self.norm(x)))))


class Twins:
    """Independent points; unlike with a tensor, nobody looks whether two of them are the same."""

    independent = True

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor) -> Twins:
        return Twins(self.x[index])

    def to(self, like: Tensor) -> Twins:
        return Twins(self.x.to(like))

    def call(self, model: nn.Module) -> Tensor:
        return model(self.x)

    def own(self) -> Tensor:
        return self.x


def task(dtype: torch.dtype = torch.float32) -> tuple[Net, Edits, LocalitySet]:
    model = Net().to(dtype)
    x = randn(4, 4, seed=5, dtype=dtype)
    model.eval()
    edits = Edits(x, mistakes(model, x))
    model.train()
    return model, edits, LocalitySet(clusters(60, 4, seed=6).to(dtype))


def impossible() -> tuple[nn.Module, Edits, LocalitySet]:
    """Return two pairs of equal points, the first with two labels."""
    edits = Edits(Twins(randn(2, 3).repeat_interleave(2, dim=0)), [0, 1, 2, 2])
    return mlp(3, 6, 3), edits, LocalitySet(clusters(20, 3, seed=6))


#: Editors that were trained, by what they were trained for.
TRAINED: dict[tuple[str, str, str], Method] = {}


def ready(make: Callable[[], Method | Trainable], model: nn.Module, locality: LocalitySet) -> Method:
    """Return a method for this network: trained for it, where it is one that is trained first."""
    method = make()
    if not isinstance(method, Trainable):
        return method
    key = repr(method), fingerprint(model), digest(locality.inputs)
    if key not in TRAINED:
        labels = outputs(copy.deepcopy(model).eval(), locality.inputs).argmax(1)
        steps = 300 if isinstance(method, CNPConditioning) else 5  # the others edit without any training
        TRAINED[key] = method.prepare(model, RandomLabels(locality.inputs, labels, edits=2, locality=10), steps=steps)
    return TRAINED[key]


def needed(method: Method | Trainable, locality: LocalitySet) -> LocalitySet | None:
    """Return the locality set for methods that do not work without one."""
    return None if method.capabilities.only_edit_pair else locality


def everything_about(model: nn.Module) -> dict[str, Any]:
    """Return all that must survive, bit for bit."""
    return {
        "state": {n: t.detach().numpy().tobytes() for n, t in model.state_dict().items()},
        "dtypes": {n: t.dtype for n, t in model.state_dict().items()},
        "modes": {n: m.training for n, m in model.named_modules()},
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "gradients": {n: None if p.grad is None else p.grad.numpy().tobytes() for n, p in model.named_parameters()},
        "places": {n: (id(p), p.data_ptr()) for n, p in model.named_parameters()},
        "classes": [type(m) for m in model.modules()],
    }


@every_method
@pytest.mark.parametrize("with_locality", [True, False])
def test_repairs_its_edits(make: Callable[[], Method | Trainable], with_locality: bool) -> None:
    model, edits, locality = task()
    result = nnrepair.fix(
        model, edits, locality if with_locality else needed(make(), locality), method=ready(make, model, locality)
    )
    assert result.outcome.status == "repaired"
    assert result.report.success_rate == 1.0
    assert result.report.held_before == [False] * 4
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(result.model).eval()(edits.inputs).argmax(1), edits.criterion.labels)
    assert result.report.weight_change.nonzeros > 0


@every_method
def test_leaves_everything_else_as_it_was(make: Callable[[], Method | Trainable]) -> None:
    model, edits, locality = task()
    model.body[2].train(False)  # modes need not agree
    model.head(torch.ones(1, 10)).sum().backward()  # some gradients exist already
    given = edits.inputs.clone(), edits.criterion.labels.clone(), locality.inputs.clone()
    before = everything_about(model)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    grad_mode, default = torch.is_grad_enabled(), torch.get_default_dtype()
    nnrepair.fix(model, edits, locality, method=ready(make, model, locality))
    assert everything_about(model) == before
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert (torch.is_grad_enabled(), torch.get_default_dtype()) == (grad_mode, default)
    for after, then in zip((edits.inputs, edits.criterion.labels, locality.inputs), given, strict=True):
        assert torch.equal(after, then)


@every_method
def test_the_model_comes_back_in_its_own_mode_with_its_own_flags(make: Callable[[], Method | Trainable]) -> None:
    model, edits, locality = task()
    model.drop.eval()
    result = nnrepair.fix(model, edits, needed(make(), locality), method=ready(make, model, locality))
    if make().capabilities.keeps_architecture:
        assert type(result.model) is type(model)
        before, after = everything_about(model), everything_about(result.model)
        for what in ("modes", "flags", "dtypes", "classes"):
            assert after[what] == before[what]
    assert all(p.grad is None for p in result.model.parameters())
    mine, theirs = ({p.data_ptr() for p in m.parameters()} for m in (model, result.model))
    assert not mine & theirs


@every_method
def test_works_in_float64(make: Callable[[], Method | Trainable]) -> None:
    model, edits, locality = task(torch.float64)
    result = nnrepair.fix(model, edits, locality, method=ready(make, model, locality))
    assert result.outcome.ok
    assert {p.dtype for p in result.model.parameters()} == {torch.float64}


@every_method
def test_works_under_no_grad(make: Callable[[], Method | Trainable]) -> None:
    model, edits, locality = task()
    with torch.no_grad():
        assert nnrepair.fix(model, edits, needed(make(), locality), method=ready(make, model, locality)).outcome.ok


@every_method
def test_the_same_seed_gives_the_same_result(make: Callable[[], Method | Trainable]) -> None:
    found = []
    for state in (1, 2):
        with torch.random.fork_rng([]):
            torch.manual_seed(state)
            model, edits, locality = task()
            result = nnrepair.fix(model, edits, locality, method=ready(make, model, locality), seed=7)
        found.append(result)
    a, b = found
    assert everything_about(a.model)["state"] == everything_about(b.model)["state"]
    strip = {"seconds": 0.0}
    assert a.report.as_dict() | strip == b.report.as_dict() | strip


@every_method
def test_says_so_when_it_fails(make: Callable[[], Method | Trainable]) -> None:
    model, edits, locality = impossible()
    kept = needed(make(), locality)
    method = ready(make, model, locality)
    with pytest.raises(RepairFailed, match=r"throw=False") as caught:
        nnrepair.fix(model, edits, kept, method=method)
    result = caught.value.result
    assert not result.outcome.ok
    assert result.outcome.status in ("infeasible", "partly repaired")
    assert result.outcome.failing
    assert result.report.success_rate < 1
    assert [not h for h in result.report.held_after] == [i in result.outcome.failing for i in range(4)]
    assert str(result.outcome.failing[0]) in str(result)


def test_a_failure_is_returned_where_that_is_asked_for() -> None:
    model, edits, locality = impossible()
    method = METHODS["ft"]()
    with pytest.raises(RepairFailed) as caught:
        nnrepair.fix(model, edits, locality, method=method)
    result = nnrepair.fix(model, edits, locality, method=method, throw=False)
    strip = {"seconds": 0.0}
    assert result.outcome == caught.value.result.outcome and not result.outcome.ok
    assert result.report.as_dict() | strip == caught.value.result.report.as_dict() | strip


@every_method
def test_nothing_to_do(make: Callable[[], Method | Trainable]) -> None:
    model, edits, locality = task()
    with torch.no_grad():
        right = copy.deepcopy(model).eval()(edits.inputs).argmax(1)
    result = nnrepair.fix(model, (edits.inputs, right), locality, method=ready(make, model, locality))
    assert result.outcome.status == "nothing to do"
    assert result.outcome.ok
    assert result.report.weight_change.l1 == 0.0
    assert result.report.weight_change.nonzeros == 0
    assert everything_about(result.model)["state"] == everything_about(model)["state"]
    assert everything_about(result.model)["modes"] == everything_about(model)["modes"]


@every_method
def test_the_patch_applies_and_reverts_bit_for_bit(make: Callable[[], Method | Trainable]) -> None:
    model, edits, locality = task()
    result = nnrepair.fix(model, edits, needed(make(), locality), method=ready(make, model, locality))
    assert result.patch is not None
    applied = result.patch.apply(model)
    assert everything_about(applied)["state"] == everything_about(result.model)["state"]
    assert everything_about(result.patch.revert(applied))["state"] == everything_about(model)["state"]


@every_method
def test_a_repaired_model_can_be_repaired_again(make: Callable[[], Method | Trainable]) -> None:
    model, edits, locality = task()
    first = nnrepair.fix(model, edits, needed(make(), locality), method=ready(make, model, locality))
    x = randn(2, 4, seed=9)
    more = Edits(x, mistakes(copy.deepcopy(first.model).eval(), x))
    kept = LocalitySet(edits.inputs, edits.criterion.labels)
    again = nnrepair.fix(first.model, more, kept, method=ready(make, first.model, locality))
    assert again.outcome.ok


@every_method
def test_edits_one_after_another(make: Callable[[], Method | Trainable]) -> None:
    model, edits, locality = task()
    method = ready(make, model, locality)
    some, sequence = edits[torch.arange(3)], {"mode": "successive", "rehearsal": False, "throw": False}
    history = nnrepair.fix(model, some, locality, method=method, **sequence)  # which may forget
    assert history.success_rate == 1.0 and len(history.steps) == 3


@every_method
def test_is_a_method(make: Callable[[], Method | Trainable]) -> None:
    method = make()
    assert isinstance(method, Method | Trainable)
    assert isinstance(method.capabilities, Capabilities)
    assert make() == method
    assert eval(repr(method), PARTS | {type(method).__name__: type(method)}) == method


def test_every_registered_method_has_a_row() -> None:
    assert set(REGISTRY) == {*ALIASES, *METHODS}
    assert all(REGISTRY[alias] is REGISTRY[name] for alias, name in ALIASES.items())
    for name, make in METHODS.items():
        assert kind_of(REGISTRY[name]) is type(make())


def test_the_table_says_what_every_method_declares() -> None:
    rows = {name: row[2] for row in table()[1:] for name in row[0].split(", ")}
    assert rows.keys() == {*ALIASES, *METHODS}
    for name in METHODS:
        trained = issubclass(kind_of(REGISTRY[name]), Trainable)
        assert capabilities_of(REGISTRY[name]).extra_training == trained
        assert rows.get(name, "no") == ("yes" if trained else "no")


def test_named() -> None:
    assert named("minimal-norm") == MinimalNorm()
    method = MinimalNorm(layer="0")
    assert named(method) is method
    with pytest.raises(InvalidInput, match=r"Unknown method 'minimal-nrom'. Did you mean 'minimal-norm'\?"):
        named("minimal-nrom")
    with pytest.raises(InvalidInput, match="must be a name or a Method, got int"):
        named(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="Method"):
        named(MinimalNorm)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=r"LearnedSteps is trained first: editor = LearnedSteps\(...\).prepare"):
        named("learned-steps")
