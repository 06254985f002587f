"""Everyday kinds of models: each is repaired, and the user's own stays as it was, or it is refused by name."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from model_kinds import REFUSED, WITHOUT_GRADIENTS, WORK, Around, Recomputes, X, net, quietly
from networks import mlp, seeded
from patches import bits
from torch import Tensor, nn

import nnrepair
from nnrepair import Argmax, Edits, InvalidInput, LocalitySet, UnsupportedModel
from nnrepair.methods import EGNN, EditableTraining, Episode, FineTune, MinimalNorm
from nnrepair.methods.base import Method
from nnrepair.spec.network import copied, unwrapped
from nnrepair.verify import Box, Property, check

METHODS: dict[str, tuple[Method, str]] = {
    "l1": (MinimalNorm(norm="l1"), "batch"),
    "l2": (MinimalNorm(norm="l2"), "batch"),
    "linf": (MinimalNorm(norm="linf"), "batch"),
    "drift": (MinimalNorm(norm="drift"), "batch"),
    "decoupled": (MinimalNorm(architecture="decoupled"), "batch"),
    "ft": (FineTune(lr=0.01, steps=200), "batch"),
    "egnn": (EGNN(lr=0.01, steps=300, rehearsal=4), "batch"),
    "sequence": (MinimalNorm(), "successive"),
}
#: Every kind meets one of the minimal norms in turn, and one other method; the plain one meets all.
SOLVED, OTHERS = ("l1", "l2", "linf", "drift", "decoupled"), ("ft", "egnn", "sequence")
PAIRS = [("plain", method) for method in METHODS]
for k, kind in enumerate(list(WORK)[1:]):
    PAIRS += [(kind, method) for method in (SOLVED[k % 5], OTHERS[k % 3])]
#: Kinds of which methods that look at each point's own features know no features.
NUMBERS = ("tokens", "sparse gradients", "largest norm of tokens", "casts")
#: Kinds that the checker reads.
CHECKED = (
    "plain",
    "float64",
    "training mode",
    "torch.compile",
    "module.compile()",
    "data parallel",
    "traced symbolically",
    "pruned",
    "pruned, called",
    "pruned by rows",
    "weight norm",
    "weight norm, called",
    "old weight norm",
    "old weight norm, called",
    "spectral norm",
    "old spectral norm",
    "autograd.Function",
    "writes in place",
    "remembers",
    "a lazy layer that was called",
)


def decisions(model: nn.Module, x: Tensor) -> Tensor:
    """Return a model's classes, without changing its mode."""
    modes = [module.training for module in model.modules()]
    for module in model.modules():  # exported modules have no eval()
        module.training = False
    with torch.no_grad():
        y = model(x.clone()).argmax(1)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    return y


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_an_everyday_model_is_repaired_and_stays_as_it_was(kind: str, method: str) -> None:
    make, x = WORK[kind]
    model, (how, mode) = make(), METHODS[method]
    inputs = x[:2].to(next(model.parameters()).dtype) if x.is_floating_point() else x[:2]
    kept = x[4:].to(inputs.dtype)
    labels = (decisions(model, inputs) + 1) % 3
    before, copies, modes = bits(model), (inputs.clone(), kept.clone()), [m.training for m in model.modules()]
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    if method == "egnn" and kind.startswith(NUMBERS):
        with pytest.raises(InvalidInput, match="own features"):
            nnrepair.fix(model, (inputs, labels), kept, method=how)
        return
    result: Any = nnrepair.fix(model, (inputs, labels), kept, method=how, mode=mode)
    assert result.outcome.ok
    assert torch.equal(decisions(result.model, inputs), labels)
    assert {p.dtype for p in result.model.parameters()} == {p.dtype for p in model.parameters()}
    assert bits(model) == before
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(inputs, copies[0])
    assert torch.equal(kept, copies[1])
    assert torch.equal(state[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), random.getstate()) == state[1:]
    if (kind, method) == ("largest norm of tokens", "decoupled"):  # running it scales its table: the base changed too
        assert result.patch is None
        return
    patched = result.patch.apply(model)
    assert torch.equal(decisions(patched, inputs), labels)
    assert list(bits(patched).values()) == list(bits(result.model).values())


@pytest.mark.parametrize("kind", WORK)
def test_an_everyday_model_can_be_prepared_and_edited(kind: str) -> None:
    make, x = WORK[kind]
    model = make()
    inputs = x[:2].to(next(model.parameters()).dtype) if x.is_floating_point() else x[:2]
    kept = x[4:].to(inputs.dtype)
    labels = (decisions(model, inputs) + 1) % 3
    before, modes = bits(model), [m.training for m in model.modules()]
    exercise = Episode(Edits(inputs, labels), LocalitySet(kept))
    editor = EditableTraining(start=0.1).prepare(model, [exercise], steps=2)
    result = nnrepair.fix(model, (inputs, labels), kept, method=editor)
    assert torch.equal(decisions(result.model, inputs), labels)
    assert bits(model) == before and [m.training for m in model.modules()] == modes


@pytest.mark.parametrize("method", ["auto", "ft", "egnn"])
@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_by_name(kind: str, method: str) -> None:
    make, x, message = REFUSED[kind]
    model = make()
    with pytest.raises((UnsupportedModel, InvalidInput), match=message):
        nnrepair.fix(model, (x[:2], [0, 1]), x[4:], method=method)


def test_a_fixed_size_of_batches_is_named() -> None:
    model = Around(net(), lambda x: x.reshape(12, 6))
    with pytest.raises(UnsupportedModel, match="12 points at once, but not 4 of them.*call\\(\\) fills a batch up"):
        nnrepair.fix(model, (X, [0] * 12))


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if "(" not in kind][:10])
def test_the_checker_and_property_repair_refuse_the_same_kinds(kind: str) -> None:
    make, x, message = REFUSED[kind]
    model = make()
    region = Property.on(Box(x[0] - 0.1, x[0] + 0.1), Argmax([0]), outputs=3)
    for call in (check, nnrepair.repair_property):
        with pytest.raises((UnsupportedModel, InvalidInput), match=message):
            call(model, region)


@pytest.mark.parametrize("method", ["auto", "ft", "ewc"])
@pytest.mark.parametrize("kind", WITHOUT_GRADIENTS)
def test_without_gradients_only_methods_that_need_none_work(kind: str, method: str) -> None:
    make, x, message = WITHOUT_GRADIENTS[kind]
    model = make()
    labels = (decisions(model, x[:2]) + 1) % 3
    if method == "auto":  # the part behind a layer runs without the context around it, and without what detaches it
        result = nnrepair.fix(model, (x[:2], labels), x[4:], method=method)
        assert torch.equal(decisions(result.model, x[:2]), labels)
        return
    with pytest.raises((UnsupportedModel, InvalidInput), match=message):
        nnrepair.fix(model, (x[:2], labels), x[4:], method=method)
    result = nnrepair.fix(model, (x[:2], labels), x[4:], method=METHODS["egnn"][0])
    assert torch.equal(decisions(result.model, x[:2]), labels)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpoints_cut_gradients_off() -> None:
    model = seeded(lambda: Recomputes(True))
    labels = (decisions(model, X[:2]) + 1) % 3
    assert nnrepair.fix(model, (X[:2], labels), X[4:]).stats["layer"] == ["b.weight", "b.bias"]
    with pytest.raises(InvalidInput, match=r"does not depend on \['a.weight', 'a.bias'\].*reentrant checkpointing"):
        nnrepair.fix(model, (X[:2], labels), method=MinimalNorm("a"))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_checkpoints_raise_on_the_way_back_is_named() -> None:
    class Before(nn.Module):
        """A layer before a reentrant checkpoint."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.body = nn.Linear(6, 6), seeded(lambda: Recomputes(True))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.first(x))

    model = seeded(Before)
    labels = (decisions(model, X[:2]) + 1) % 3
    with pytest.raises(UnsupportedModel, match=r"use_reentrant=False"):
        nnrepair.fix(model, (X[:2], labels), method=MinimalNorm("first"))


def test_an_error_of_the_users_own_is_the_cause() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("no such sensor")

    with pytest.raises(InvalidInput, match="no such sensor") as caught:
        nnrepair.fix(Fails(), (X, [0] * 12))
    assert isinstance(caught.value.__cause__, KeyError)


def test_layers_are_named_without_the_wrappers_of_torch_compile() -> None:
    model = Around(torch.compile(net(), backend="eager"))
    labels = (decisions(model, X[:2]) + 1) % 3
    result = nnrepair.fix(model, (X[:2], labels), method=MinimalNorm("net.2"))
    assert result.outcome.ok
    note = next(note for note in nnrepair.fix(model, (X[:2], labels)).report.notes if note.startswith("layer:"))
    assert "_orig_mod" not in note
    with pytest.raises(InvalidInput, match=r"Layers: net\.0, net\.2\."):
        nnrepair.fix(model, (X[:2], labels), method=MinimalNorm("nett.2"))


def test_nothing_is_compiled_during_a_repair() -> None:
    compiled = []
    torch.compiler.reset()  # code that was compiled too often is compiled no more

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model = Around(torch.compile(net(), backend=backend))
    labels = (decisions(model, X[:2]) + 1) % 3
    count = len(compiled)
    assert count > 0
    assert nnrepair.fix(model, (X[:2], labels), X[4:]).outcome.ok
    assert len(compiled) == count
    torch.compiler.reset()
    model(X[:7])  # outside, all is as before
    assert len(compiled) > count


def test_half_precision_may_round_otherwise_in_other_batches() -> None:
    """A last digit of bfloat16 is 0.8 %: more than what would show that points influence each other."""

    class Rounds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net().bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            y = self.net(x)
            return y if len(x) > 1 else (y.float() * (1 + 2**-7)).bfloat16()

    x = X.bfloat16()
    labels = (decisions(Rounds(), x[:2]) + 1) % 3
    assert nnrepair.fix(Rounds(), (x[:2], labels), x[4:], method="ft", throw=False).report.success_rate == 1


@pytest.mark.parametrize("kind", CHECKED)
def test_the_checker_reads_what_the_model_computes(kind: str) -> None:
    make, x = WORK[kind]
    model = make()
    before = bits(model)
    centre = x[0].to(next(model.parameters()).dtype)
    label = int(decisions(model, centre[None]))
    for wanted, verdict in ((label, "holds"), ((label + 1) % 3, "violated")):
        region = Property.on(Box(centre - 1e-6, centre + 1e-6), Argmax([wanted]), outputs=3)
        assert check(model, region).verdict == verdict
    assert bits(model) == before


@pytest.mark.parametrize("kind", ["plain", "torch.compile", "data parallel", "old weight norm", "remembers"])
def test_property_repair_takes_the_same_kinds(kind: str) -> None:
    make, x = WORK[kind]
    model = make()
    before, wanted = bits(model), (int(decisions(model, x[:1])) + 1) % 3
    region = Property.on(Box(x[0] - 1e-3, x[0] + 1e-3), Argmax([wanted]), outputs=3)
    result = nnrepair.repair_property(model, region)
    assert result.proofs[0].result.verdict == "holds"
    assert check(result.model, region).verdict == "holds"
    assert int(decisions(result.model, x[:1])) == wanted
    assert bits(model) == before
    assert result.patch is not None
    assert list(bits(result.patch.apply(model)).values()) == list(bits(result.model).values())


@pytest.mark.parametrize("kind", ["hooks", "torch.compile inside"])
def test_what_runs_beside_a_models_code_is_not_confirmed(kind: str) -> None:
    """A hook may turn outputs around, which a reader of the model's code does not see."""
    make, x = WORK[kind]
    model = make()
    labels = (decisions(model, x[:2]) + 1) % 3
    result = nnrepair.fix(model, (x[:2], labels), method=MinimalNorm(norm="l2"))
    with pytest.raises(UnsupportedModel, match="forward hooks"):
        result.verify()
    with pytest.raises(UnsupportedModel, match="forward hooks"):
        nnrepair.fix(model, (nnrepair.Segments(x[:1], x[1:2]), [int(labels[0])]))


def test_a_pruned_weight_is_read_as_its_mask_leaves_it() -> None:
    """The module keeps the masked weight of its last pass, which may be that of other numbers."""
    model = WORK["pruned"][0]()
    x = X[:1]
    with torch.no_grad():
        model[2].weight_orig.neg_()
        model[2].bias.neg_()
    label = int(model(x).argmax())
    with torch.no_grad():
        model[2].weight_orig.neg_()
        model[2].bias.neg_()
    now = int(decisions(WORK["pruned"][0](), x))
    assert now != label
    region = Property.on(Box(x[0] - 1e-6, x[0] + 1e-6), Argmax([now]), outputs=3)
    assert check(model, region).verdict == "holds"


@pytest.mark.parametrize("kind", ["pruned", "old weight norm", "remembers"])
def test_a_decoupled_network_keeps_nothing_of_its_passes(kind: str) -> None:
    """Its passes run on dual numbers, which nothing can copy once the pass is over."""
    make, x = WORK[kind]
    model = make()
    labels = (decisions(model, x[:2]) + 1) % 3
    result = nnrepair.fix(
        model, (x[:2], labels), method=MinimalNorm("0" if kind != "remembers" else "a", architecture="decoupled")
    )
    twin = copied(result.model)
    assert torch.equal(decisions(twin, x[:2]), labels)
    assert torch.equal(decisions(copied(twin), x), decisions(result.model, x))


def test_several_faults_of_one_kind_are_all_named() -> None:
    model = nn.Sequential(*(nn.LazyLinear(3) for _ in range(4)))
    with pytest.raises(InvalidInput, match=r"0\.weight, 0\.bias, 1\.weight, 1\.bias, 2\.weight, \.\.\."):
        nnrepair.fix(model, (X[:2], [0, 1]))


def test_what_a_wrapper_asked_for_gives_fits_the_model_inside() -> None:
    """The refusal of a model that returns no tensor says how to wrap it, and that the patch fits both."""

    class Shipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 16, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.net(x)}

    class Wrapped(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.model(x)["logits"]
            return logits

    shipped = Shipped()
    labels = (decisions(Wrapped(shipped), X[:2]) + 1) % 3
    result = nnrepair.fix(Wrapped(shipped), (X[:2], labels), X[4:])
    assert result.patch is not None
    patched = result.patch.apply(shipped)
    assert torch.equal(patched(X[:2])["logits"].argmax(1), labels)
    assert bits(patched) == bits(result.model.model)


def test_a_quantised_copy_can_be_made_of_a_repaired_network() -> None:
    """The remedy that the refusal names."""
    model = net()
    labels = (decisions(model, X[:2]) + 1) % 3
    repaired = nnrepair.fix(model, (X[:2], labels), X[4:], method="ft").model
    small = quietly(lambda: torch.ao.quantization.quantize_dynamic(repaired, {nn.Linear}, dtype=torch.qint8))
    assert small(X[:2]).shape == (2, 3)
    assert unwrapped(torch.compile(repaired, backend="eager")) is repaired
