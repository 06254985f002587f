"""Models on a GPU: repaired there, returned there, and the same answers as on the CPU."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import devices_of, on_cpu, there
from graphs import Convolution, ring
from graphs import net as graph_net
from model_kinds import WORK
from networks import clusters, mistakes, mlp, randn, seeded
from sequences import LAST
from sequences import task as sequence_task
from test_methods import METHODS, needed, ready, task
from test_repair_property import scattered, violated
from torch import Tensor, nn

import nnrepair
from nnrepair import AnyOf, Argmax, Edits, EditScope, InvalidInput, Linear, LocalitySet, Near, Segments, Threshold
from nnrepair.domains.graphs.nodes import NodeEdits, NodeLocality, NodeScope
from nnrepair.domains.images.cifar import ResNet
from nnrepair.domains.vision import Images, train_classifier
from nnrepair.jacobian.fisher import fisher_diagonal
from nnrepair.methods import EGNN, FineTune, Method, MinimalNorm
from nnrepair.plot.page import html_report
from nnrepair.results.patch import Patch
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.inputs import to_like
from nnrepair.spec.kinds import Binary, Classes, Kind, Regression
from nnrepair.spec.network import copied
from nnrepair.verify import Box, Property, check
from nnrepair.verify.points import check_points

pytestmark = pytest.mark.cuda
every_method = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS.keys())
#: By how much weights in float64 may differ from those found on the CPU, relative to the largest of them.
ROUNDING = 1e-6
#: Kinds of models that make tensors of the CPU in their forward pass, or cast to types of the CPU.
OF_THE_CPU = ("casts with type()", "casts with type() in words", "makes float32 constants", "outputs of inference mode")
#: Kinds that torch runs on the CPU and on GPUs alone.
NOT_ELSEWHERE = ("LSTM", "GRU", "sparse gradients")


def moved(points: Any) -> Any:
    """Return edits, or a locality set, whose inputs and labels are on the device."""
    criterion = points.criterion
    if isinstance(criterion, Argmax):
        criterion = type(criterion)(criterion.labels.to(there()), criterion.margin_)
    return type(points)(points.inputs.to(there()), criterion)


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest difference of two states, relative to the largest number in them."""
    assert a.keys() == b.keys()
    largest = max(float(value.abs().max()) for value in a.values())
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a) / largest


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def holds(model: nn.Module, points: Edits) -> bool:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        return bool(points.criterion.holds(model(points.inputs.to(there())).double()).all())


def random_state() -> Tensor:
    """Return what the device's random numbers come from."""
    return torch.cuda.get_rng_state() if there().type == "cuda" else torch.get_rng_state()


def images(count: int = 6) -> tuple[nn.Module, Edits, LocalitySet]:
    """Return a small convolutional network in eval mode, and photographs that are noise."""
    model = seeded(lambda: ResNet(8)).eval()
    x = randn(count, 3, 16, 16, seed=1).sigmoid()
    return model, Edits(x, mistakes(model, x)), LocalitySet(randn(20, 3, 16, 16, seed=2).sigmoid())


# Methods -------------------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("where", ["points on the CPU", "points on the device"])
def test_the_repaired_model_is_where_the_user_has_it(make: Callable[[], Any], where: str) -> None:
    model, edits, locality = task()
    method = ready(make, model, locality)  # on the CPU, where it is one that is trained first
    model.to(there())
    given = (edits, locality)
    if where == "points on the device":
        given = (moved(edits), moved(locality))
        method = ready(make, model, given[1])
    before, flags = on_cpu(model), {n: p.requires_grad for n, p in model.named_parameters()}
    result = nnrepair.fix(model, *given, method=method)
    assert result.outcome.status == "repaired"
    assert result.report.success_rate == 1.0 and result.report.held_before == [False] * 4
    assert holds(result.model, edits)
    assert devices_of(model) == devices_of(result.model) == {there()}
    assert same(on_cpu(model), before)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert given[0].inputs.device == (there() if where == "points on the device" else torch.device("cpu"))


@every_method
def test_the_answer_is_that_of_the_cpu(make: Callable[[], Any]) -> None:
    model, edits, locality = task(torch.float64)
    there_ = copy.deepcopy(model).to(there())
    method = ready(make, model, locality)
    one, other = (nnrepair.fix(m, edits, locality, method=method, seed=3) for m in (model, there_))
    assert apart(on_cpu(one.model), on_cpu(other.model)) < ROUNDING
    assert one.report.held_after == other.report.held_after
    assert one.report.side_effects == other.report.side_effects


@every_method
def test_the_same_seed_gives_the_same_result(make: Callable[[], Any]) -> None:
    model, edits, locality = task()
    model.to(there())
    method = ready(make, model, moved(locality))
    one, other = (nnrepair.fix(model, edits, locality, method=method, seed=7) for _ in range(2))
    assert same(on_cpu(one.model), on_cpu(other.model))


@every_method
def test_failure_is_told(make: Callable[[], Any]) -> None:
    model = mlp(3, 6, 3)
    edits = Edits(Points(randn(2, 3).repeat_interleave(2, dim=0)), [0, 1, 2, 2])
    locality = LocalitySet(clusters(20, 3, seed=6))
    method, kept = ready(make, model, locality), needed(make(), locality)
    result = nnrepair.fix(model.to(there()), edits, kept, method=method, throw=False)
    assert result.outcome.status in ("infeasible", "partly repaired") and result.outcome.failing


class Points(nnrepair.Inputs):
    """Points, as a user's own object: moved by `to`."""

    independent = True

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor) -> Points:
        return Points(self.x[index])

    def to(self, like: Tensor) -> Points:
        return Points(self.x.to(like))

    def call(self, model: nn.Module) -> Tensor:
        return model(self.x)

    def own(self) -> Tensor:
        return self.x


@pytest.mark.parametrize("architecture", ["same", "decoupled"])
@pytest.mark.parametrize("layer", ["0", "2", "4", ["0", "2"]], ids=str)
@pytest.mark.parametrize("norm", ["l1", "l2", "linf", "drift"])
def test_every_layer_and_norm(layer: Any, norm: Any, architecture: Any) -> None:
    model = mlp(4, 8, 6, 3, seed=1).double()
    x, kept = randn(3, 4, seed=5, dtype=torch.float64), clusters(40, 4, seed=6).double()
    edits = Edits(x, mistakes(model, x))
    method = MinimalNorm(layer, norm, architecture=architecture)
    one, other = (
        nnrepair.fix(copy.deepcopy(model).to(device), edits, LocalitySet(kept), method=method, throw=False)
        for device in ("cpu", there())
    )
    assert one.outcome.status == other.outcome.status
    assert devices_of(other.model) == {there()}
    assert (one.certificate is None) == (other.certificate is None)
    if one.outcome.ok:
        assert holds(other.model, edits)
    exact = architecture == "decoupled" or layer == "4"
    if exact and norm in ("l2", "drift"):  # those have one minimum
        assert apart(on_cpu(one.model), on_cpu(other.model)) < ROUNDING
    if exact and "objective" in one.stats:
        assert other.stats["objective"] == pytest.approx(one.stats["objective"], rel=1e-5)


@pytest.mark.parametrize("locality", ["hard", "soft", "none"])
def test_layers_chosen_on_the_device(locality: Any) -> None:
    model, edits, kept = task()
    result = nnrepair.fix(model.to(there()), edits, kept, method=MinimalNorm(locality=locality))
    assert holds(result.model, edits)


def test_an_impossible_layer_names_others() -> None:
    model = mlp(3, 6, 3).to(there())
    x = torch.cat([torch.zeros(1, 3), randn(2, 3)])
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # the last layer sees zeros whatever the input is
    result = nnrepair.fix(model, Edits(x, [0, 1, 2]), method=MinimalNorm("2"), throw=False)
    assert result.outcome.status == "infeasible"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    model, edits, locality = task()
    model.to(there(), dtype)
    result = nnrepair.fix(model, edits, locality, method=MinimalNorm("head.0"), throw=False)
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    assert devices_of(result.model) == {there()}
    assert holds(result.model, Edits(edits.inputs.to(dtype), edits.criterion)) == result.outcome.ok


@pytest.mark.parametrize("kind", [kind for kind in WORK if kind not in OF_THE_CPU])
@pytest.mark.parametrize("method", [MinimalNorm(), FineTune(lr=0.01, steps=300)], ids=lambda m: type(m).__name__)
def test_everyday_kinds_of_models(kind: str, method: Method) -> None:
    if there().type == "elsewhere" and kind in NOT_ELSEWHERE:
        pytest.skip(f"torch has no {kind} for devices of other kinds")
    make, x = WORK[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
        model = model.to(there())
        if kind == "data parallel":
            assert isinstance(model, nn.DataParallel)
            model.module.to(there())
        plain = copied(model.module if isinstance(model, nn.DataParallel) else model).eval()
        before = on_cpu(model)
        result = nnrepair.fix(
            model, Edits(x[:3], mistakes(plain, to_like(x[:3], next(plain.parameters())))), method=method
        )
    assert result.report.success_rate == 1.0
    assert devices_of(result.model) == {there()}
    assert same(on_cpu(model), before)


# What is asked -------------------------------------------------------------------------------------------------------


def criteria(device: torch.device) -> dict[str, Criterion]:
    wrong = torch.tensor([0, 1, 2], device=device)
    return {
        "classes": Argmax(wrong, 0.1),
        "answers": Threshold(torch.tensor([[1, 0, -1], [0, -1, 1], [1, 1, 0]], device=device), [0.1, 0.0, -0.1]),
        "half-spaces": Linear(torch.tensor([[1.0, -1.0, 0.5]], device=device), torch.tensor([0.3], device=device), 3),
        "numbers": Near(torch.ones(3, 3, device=device), tol=0.25),
        "one of two": AnyOf(Argmax(wrong, 0.1), Argmax((wrong + 1) % 3, 0.1)),
        "both": Argmax(wrong)
        & Linear(torch.tensor([[1.0, 1.0, 1.0]], device=device), torch.tensor([0.5]).to(device), 3),
    }


@pytest.mark.parametrize("given", ["cpu", "device"])
@pytest.mark.parametrize("kind", criteria(torch.device("cpu")))
@pytest.mark.parametrize("method", [MinimalNorm("2"), FineTune(lr=0.03, steps=400)], ids=lambda m: type(m).__name__)
def test_every_criterion(kind: str, given: str, method: Method) -> None:
    model, x = mlp(6, 16, 3, seed=3).to(there()), randn(3, 6, seed=8)
    device = there() if given == "device" else torch.device("cpu")
    edits = Edits(x.to(device), criteria(device)[kind])
    scope = EditScope(x.to(device) + 1e-6, criteria(device)[kind], of=torch.arange(3, device=device))
    tests = {"others": LocalitySet(randn(5, 6, seed=9).to(device))}
    kept = LocalitySet(clusters(20, 6, seed=4))
    result = nnrepair.fix(model, edits, kept, method=method, edit_scope=scope, test_set=tests, throw=False)
    assert result.outcome.ok == holds(result.model, edits)
    assert isinstance(method, FineTune) or result.outcome.status == "repaired"
    assert result.report.generalization_rate is not None and "others" in result.report.tests
    if all(isinstance(m, nn.Linear | nn.ReLU) for m in result.model):
        assert result.verify().verdict in ("holds", "violated", "unknown")
        assert result.verify().verdict == "holds" or not result.outcome.ok or isinstance(method, FineTune)


def test_a_model_on_the_cpu_takes_points_from_the_device() -> None:
    model, edits, locality = task()
    result = nnrepair.fix(model, moved(edits), moved(locality))
    assert result.outcome.ok and devices_of(result.model) == {torch.device("cpu")}


def test_a_model_in_two_places_says_so() -> None:
    model = mlp(4, 8, 3)
    model[0].to(there())
    if there().type == "cpu":
        pytest.skip("one device alone")
    with pytest.raises(nnrepair.NNRepairError, match="device"):
        nnrepair.fix(model, (randn(2, 4), [0, 1]))


def test_regions() -> None:
    model = mlp(3, 12, 10, 4, seed=0).to(there())
    lines = Segments(randn(3, 3).to(there()), randn(3, 3, seed=1).to(there()))
    with torch.no_grad():
        wrong = [int(k) for k in (model(lines.corners[0][:1].float().to(there())).argmax(1) + 1) % 4] * 3
    for method in (MinimalNorm("4", margin=0.01), MinimalNorm("0", architecture="decoupled", margin=0.01)):
        result = nnrepair.fix(model, Edits(lines, wrong), LocalitySet(randn(6, 3, seed=7)), method=method, throw=False)
        assert result.outcome.ok
        assert devices_of(result.model) == {there()}


# Convolutions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["linear", "layer3.0.conv2"])
def test_convolutional_networks(layer: str) -> None:
    model, edits, locality = images()
    model.to(there())
    before = on_cpu(model)
    result = nnrepair.fix(model, edits, locality, method=MinimalNorm(layer), throw=False)
    assert result.outcome.ok and holds(result.model, edits)
    assert same(on_cpu(model), before)
    assert result.patch is not None and same(on_cpu(result.patch.apply(model)), on_cpu(result.model))


def test_convolutional_networks_by_fine_tuning() -> None:
    model, edits, locality = images()
    method = FineTune("layer3", lr=1e-3, steps=60, penalties=(nnrepair.penalties.EWC(1.0, points=8),), rehearsal=8)
    result = nnrepair.fix(model.to(there()), edits, locality, method=method, throw=False)
    assert result.outcome.ok == holds(result.model, edits)
    assert devices_of(result.model) == {there()}


# What is stored ------------------------------------------------------------------------------------------------------


def test_patches_go_from_one_device_to_the_other(tmp_path: Path) -> None:
    model, edits, locality = task()
    here, there_ = model, copy.deepcopy(model).to(there())
    of_there = nnrepair.fix(there_, edits, locality, method=MinimalNorm("head.0"))
    of_here = nnrepair.fix(here, edits, locality, method=MinimalNorm("head.0"))
    assert of_there.patch is not None and of_here.patch is not None
    stored = Patch.load(of_there.patch.save(tmp_path / "there.safetensors"))
    for patch in (stored, of_there.patch):
        for base in (here, there_):
            applied = patch.apply(base)
            assert devices_of(applied) == devices_of(base)
            assert same(on_cpu(applied), on_cpu(of_there.model))
            assert same(on_cpu(patch.revert(applied)), on_cpu(base))
        assert str(patch)
    back = Patch.load(of_here.patch.save(tmp_path / "here.safetensors")).apply(there_)
    assert same(on_cpu(back), on_cpu(of_here.model)) and devices_of(back) == {there()}


@pytest.mark.parametrize("mode", ["independent", "successive"])
def test_sequences(mode: Any, tmp_path: Path) -> None:
    model, edits, locality = sequence_task()
    there_, file = copy.deepcopy(model).to(there()), tmp_path / "sequence.safetensors"
    settings: dict[str, Any] = {"method": LAST, "mode": mode, "throw": False}
    scope = EditScope(edits.inputs, edits.criterion, of=torch.arange(5, device=there()))
    one = nnrepair.fix(model, edits, locality, edit_scope=scope, **settings)
    other = nnrepair.fix(there_, moved(edits), locality, edit_scope=scope, resume=file, **settings)
    assert other.held_after == one.held_after and other.held_finally == one.held_finally
    assert [step.side_effects for step in other.steps] == [step.side_effects for step in one.steps]
    again = nnrepair.fix(there_, moved(edits), locality, edit_scope=scope, resume=file, **settings)
    assert [step.held for step in again.steps] == [step.held for step in other.steps]
    if mode == "successive":
        assert devices_of(other.model) == {there()}
        assert same(on_cpu(again.model), on_cpu(other.model))
        assert apart(on_cpu(one.model), on_cpu(other.model)) < 1e-3
    if there().type != "cpu":
        with pytest.raises(InvalidInput, match="another sequence.*device"):
            nnrepair.fix(model, edits, locality, edit_scope=scope, resume=file, **settings)


def test_stitched_networks_are_repaired_again() -> None:
    model, edits, locality = task()
    first = nnrepair.fix(model.to(there()), edits, locality, method=EGNN())
    x = randn(2, 4, seed=9)
    more = Edits(x, mistakes(copy.deepcopy(first.model).eval(), x.to(there())))
    again = nnrepair.fix(first.model, more, locality, method=EGNN())
    assert again.outcome.ok and devices_of(again.model) == {there()}


def test_pages_and_onnx_files(tmp_path: Path) -> None:
    model, edits, locality = images(3)
    result = nnrepair.fix(model.to(there()), edits, locality, method=MinimalNorm("linear"))
    held_out = LocalitySet(randn(4, 3, 16, 16, seed=3).sigmoid(), torch.arange(4))
    assert "3 of 3" in html_report(model, result, edits, held_out=held_out)
    onnx = pytest.importorskip("nnrepair.onnx")
    pytest.importorskip("onnxscript")
    plain = mlp(4, 8, 3).to(there())
    onnx.save(plain, torch.zeros(1, 4, device=there()), tmp_path / "net.onnx")
    assert devices_of(plain) == {there()}
    loaded = onnx.load(tmp_path / "net.onnx").to(there())
    x = randn(3, 4).to(there())
    assert torch.allclose(loaded(x), plain(x), atol=1e-5)


def test_networks_are_trained_and_their_training_is_resumed(tmp_path: Path) -> None:
    data, file = Images(randn(40, 1, 8, 8), torch.arange(40) % 3), tmp_path / "training.safetensors"
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3))).to(there())
    before = random_state()
    trained = [train_classifier(model, data, epochs=2, seed=1, resume=resume) for resume in (None, file, file)]
    assert torch.equal(random_state(), before)
    assert all(same(on_cpu(trained[0]), on_cpu(other)) for other in trained[1:])
    assert devices_of(trained[0]) == {there()}


# Fisher information --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["exact", "sampled", "empirical"])
@pytest.mark.parametrize("kind", [Classes(), Binary(), Regression()], ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("given", ["tensor", "object"])
def test_fisher_information(labels: Any, kind: Kind, given: str) -> None:
    model, x = mlp(4, 8, 3).double(), randn(9, 4, dtype=torch.float64)
    targets = torch.arange(9) % 3 if isinstance(kind, Classes) else (randn(9, 3, seed=2) > 0).long()
    found = []
    for device in (torch.device("cpu"), there()):
        points: Any = x.to(device) if given == "tensor" else Points(x.to(device))
        settings: dict[str, Any] = {"kind": kind, "labels": labels, "points": 7}
        twin = copy.deepcopy(model).to(device)
        found.append(fisher_diagonal(twin, ["0", "2"], points, targets=targets, **settings))
        assert {f.device for f in found[-1].values()} == {device}
    assert apart({n: f.cpu() for n, f in found[0].items()}, {n: f.cpu() for n, f in found[1].items()}) < 1e-9


# Graphs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["last", "first"])
@pytest.mark.parametrize("where", ["graph on the CPU", "graph on the device", "features on the device"])
def test_graphs(layer: str, where: str) -> None:
    model, graph = graph_net(Convolution), ring()
    with torch.no_grad():
        decided = model(graph.x, graph.edge_index)
    graph = replace(graph, y=decided.argmax(1))
    wrong, model = decided.topk(2, 1).indices[:2, 1], model.to(there())
    if where != "graph on the CPU":
        graph = replace(graph, x=graph.x.to(there()))
    if where == "graph on the device":
        graph = replace(graph, edge_index=graph.edge_index.to(there()), y=graph.y.to(there()))
    edits, locality = NodeEdits(graph, [0, 1], wrong), NodeLocality(graph, torch.arange(2, 12))
    scope = NodeScope(graph, [0, 1], same_class=True)
    result = nnrepair.fix(model, edits, locality, edit_scope=scope, method=MinimalNorm(layer), throw=False)
    assert devices_of(result.model) == {there()}
    assert result.outcome.ok or layer == "first"
    assert NodeEdits(graph, [0, 1]).criterion.labels.tolist() == graph.y[:2].tolist()
    ft = nnrepair.fix(model, edits, locality, method=FineTune(lr=0.01, steps=300), throw=False)
    assert devices_of(ft.model) == {there()}


# Properties ----------------------------------------------------------------------------------------------------------


def boxes() -> list[tuple[nn.Module, Property]]:
    model, property = violated()
    centre, images = randn(1, 2, seed=11)[0], seeded(convolutional)
    with torch.no_grad():
        label, other = int(model(centre[None]).argmax()), int(images(torch.full((1, 1, 6, 6), 0.5)).argmax())
    held = Property.on(Box((centre - 0.01).tolist(), (centre + 0.01).tolist()), Argmax([label]), outputs=3)
    low = torch.full((1, 6, 6), 0.495)
    wide = Property.on(Box(low, low + 0.01), Argmax([other]), outputs=3)
    return [(model, property), (model, held), (images, wide)]


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("computed", ["cpu", "device"])
def test_properties_are_checked(number: int, computed: str) -> None:
    model, property = boxes()[number]
    expected = check(model, property)
    found = check(model.to(there()), property, device=there() if computed == "device" else None, timeout=60)
    assert found.verdict == expected.verdict == ("violated" if number == 0 else "holds")
    assert (found.certificate is None) == (expected.certificate is None)
    assert devices_of(model) == {there()}


def test_points_are_checked() -> None:
    model, edits, locality = task()
    plain = nn.Sequential(*model.body, nn.ReLU(), *model.head).eval().to(there())
    edits = Edits(edits.inputs, mistakes(plain, edits.inputs.to(there())).cpu())
    assert check_points(plain, edits.inputs.to(there()), moved(edits).criterion).tolist() == [False] * 4
    result = nnrepair.fix(plain, edits, locality)
    assert result.verify(device=there()).verdict == "holds"


def test_properties_are_repaired() -> None:
    model, wanted = violated()
    model.to(there())
    before = on_cpu(model)
    result = nnrepair.repair_property(model, wanted, locality_set=scattered(100).to(there()))
    assert result.outcome.status == "repaired" and same(on_cpu(model), before)
    assert devices_of(result.model) == devices_of(model) == {there()}
    assert result.patch is not None and same(on_cpu(result.patch.apply(model)), on_cpu(result.model))
    assert check(result.model, wanted).holds


# What else a GPU has -------------------------------------------------------------------------------------------------


@every_method
def test_nothing_else_changes(make: Callable[[], Any]) -> None:
    if there().type != "cuda":
        pytest.skip("random numbers and memory of a GPU")
    model, edits, locality = task()
    model.to(there())
    method = ready(make, model, moved(locality))
    nnrepair.fix(model, edits, locality, method=method)  # libraries take their workspace
    gc.collect()
    state, memory = random_state(), torch.cuda.memory_allocated()
    result = nnrepair.fix(model, edits, locality, method=method)
    assert torch.equal(random_state(), state)
    del result
    gc.collect()
    assert torch.cuda.memory_allocated() <= memory
