"""One table, all domains: what their tasks promise. A new domain is a new row."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from editing_task import task as plane
from torch import Tensor

from benchmarks.editing import DOMAINS
from nnrepair import Edits, EditScope, LocalitySet, Near
from nnrepair.domains.base import EpisodeSampler, Task
from nnrepair.domains.inpainting.recipes import Recipe
from nnrepair.errors import InvalidInput
from nnrepair.methods.episodes import Episode, EpisodeStream


@dataclass(frozen=True)
class Row:
    """A domain and one of its networks.

    Attributes:
        module: has `task(model, seed, edits)`.
        model: the network's name.
        package, files: what must be here: an optional package, and files of the data folder.
        cache: a file that takes long to make, which must be here too.
    """

    module: str
    model: str
    package: str | None = None
    files: tuple[str, ...] = ()
    cache: str | None = None

    def task(self, seed: int = 0, edits: int = 5) -> Task:
        made: Task = importlib.import_module(self.module).task(self.model, seed, edits)
        return made


MNIST = ("mnist/mnist.npz", "mnist/mnist_fog_test.npz", "mnist/mnist_relu_3x100.npz")
CIFAR = tuple(f"cifar10/{name}" for name in ("cifar10_jpeg_test.npz", "resnet20-12fca82f.th"))
IMAGENET = tuple(
    f"imagenet/{name}.npz" for name in ("imagenet_sample_1000", "vehicles_on_snow", "squeezenet1_1_caffe_torchvision")
)
DEEPER = "cifar10/resnet56-4bfd9763.th"
COPIES = (*CIFAR, "cifar10/cifar10_jpeg_train.npz", "cifar10/cifar10_lossless.npz")
TABLE = {
    "plane": Row("tests.editing_task", "tiny"),
    "digits": Row("nnrepair.domains.digits", "cnn", "sklearn"),
    "mnist": Row("benchmarks.mnist.task", "3x100", None, MNIST),
    "cifar": Row("benchmarks.cifar.task", "resnet20", None, CIFAR, "CACHE"),
    "cora": Row("benchmarks.cora.task", "gcn", "torch_geometric", ("graphs/cora_safe.npz",)),
    "inpainting": Row("nnrepair.domains.inpainting", "digits", "sklearn"),
    "language": Row("nnrepair.domains.language", "gpt2"),
    "language benchmark": Row("benchmarks.language.task", "gpt2"),
    "mnist inpainting": Row("benchmarks.inpainting.task", "mnist-attentive", None, MNIST[:1]),
    "snow": Row("benchmarks.vision.task", "squeezenet-snow", "torchvision", IMAGENET, "SAMPLES"),
    "copies": Row("benchmarks.vision.task", "resnet20", "torchvision", COPIES, "COPIES"),
    "deeper copies": Row("benchmarks.vision.task", "resnet56", "torchvision", (*COPIES, DEEPER), "DEEPER"),
    "compressed": Row("benchmarks.vision.task", "resnet20-jpeg", "torchvision", COPIES, "COMPRESSED"),
    "graph": Row("benchmarks.graph.task", "citeseer-gcn", "torch_geometric", ("graphs/citeseer_safe.npz",)),
}
NEEDING = {name: [pytest.mark.data] if row.files else [] for name, row in TABLE.items()}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    """Tasks of seed 0, each made once."""
    return {}


@pytest.fixture(params=[pytest.param(name, marks=NEEDING[name]) for name in TABLE])
def row(request: Any, data_dir: Callable[..., Path]) -> Row:
    found = TABLE[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch_geometric warns of its own use of torch.jit
        if found.package:
            pytest.importorskip(found.package)
    if found.files:
        data_dir(*found.files)
    if found.cache and not getattr(importlib.import_module(found.module), found.cache).exists():
        pytest.skip(f"{found.module} has not computed its {found.cache} yet; `python -m benchmarks run` does")
    return found


@pytest.fixture
def task(row: Row, tasks: dict[str, Task]) -> Task:
    return tasks.setdefault(f"{row.module} {row.model}", row.task())


def numbers(points: Any) -> Tensor:
    """Return inputs as numbers: what tells one point from another."""
    return points if isinstance(points, Tensor) else points.same()


def asked(points: Any) -> Tensor:
    """Return labels, or the targets of numbers."""
    criterion = points.criterion
    return criterion.target if isinstance(criterion, Near) else criterion.labels


def equal(a: Task | Episode, b: Task | Episode) -> bool:
    pairs = [(a.edits, b.edits), (a.edit_scope, b.edit_scope), (a.locality_set, b.locality_set)]
    return all(
        len(x) == len(y) and torch.equal(numbers(x.inputs), numbers(y.inputs)) and torch.equal(asked(x), asked(y))
        for x, y in pairs
    )


# Every domain --------------------------------------------------------------------------------------------------------


def test_a_task_is_what_it_promises(task: Task) -> None:
    """Edits are mistakes, points to keep are right, and nothing is in two sets, in tasks and in episodes."""
    assert len(task.edits) == 5 and len(task.locality_set) >= 20 and len(task.edit_scope) > 0
    assert task.training is not None and task.faults() == []
    assert all(len(inputs) == len(labels) > 0 for inputs, labels in task.test_set.values())


def test_a_seed_says_which(row: Row, task: Task) -> None:
    before = torch.get_rng_state()
    assert equal(row.task(), task) and not equal(row.task(seed=1), task)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_edits_than_mistakes_are_refused(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Recipe.images  # completing all 10 000 of a test set takes a minute
    monkeypatch.setattr(Recipe, "images", lambda recipe, split: images(recipe, split)[:500])
    with pytest.raises(InvalidInput, match="20000 edits were asked for, but there are only"):
        row.task(edits=20_000)
    with pytest.raises(InvalidInput, match="edits must be at least 1, given 0"):
        row.task(edits=0)


def test_episodes_are_small_different_and_repeatable(task: Task) -> None:
    before = torch.get_rng_state()
    episodes = task.episodes(3, edits=4, locality=9)
    first = list(islice(episodes, 6))
    assert all(equal(a, b) for a, b in zip(first, islice(episodes, 6), strict=True))
    assert equal(task.episodes(3, edits=4, locality=9)[5], first[5]) and not equal(task.episodes(4, 4, 9)[5], first[5])
    assert len({len(one.edits) for one in first}) > 1 and all(1 <= len(one.edits) <= 4 for one in first)
    for one in first:
        assert len(one.locality_set) == 9
        of = one.edit_scope.of.tolist()
        labels = asked(one.edits)
        assert all(torch.equal(labels[k], label) for k, label in zip(of, asked(one.edit_scope), strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_table_has_every_domain_of_the_benchmark() -> None:
    assert {domain.module for domain in DOMAINS.values()} <= {row.module for row in TABLE.values()}


# What is wrong with a task -------------------------------------------------------------------------------------------


def everything(task: Task) -> Episode:
    assert task.training is not None
    return task.training()


def test_what_is_wrong_is_said() -> None:
    task = plane("tiny", 0, 3)
    x, kept = task.edits.inputs, task.locality_set
    assert task.faults() == []

    def only(changed: Task) -> str:
        (fault,) = changed.faults()
        return fault

    right = LocalitySet(kept.inputs, 1 - kept.criterion.labels)
    assert only(replace(task, locality_set=LocalitySet(kept.inputs))) == "the locality set has no labels"
    assert only(replace(task, locality_set=right)) == "the network gets 20 of 20 points of the locality set wrong"
    unsaid = EditScope(x + 0.01, task.edits.criterion.labels)
    assert "whose neighbour" in only(replace(task, edit_scope=unsaid))
    beyond = EditScope(x, task.edits.criterion.labels, of=torch.tensor([0, 1, 3]))
    assert "whose neighbour" in only(replace(task, edit_scope=beyond))
    near = EditScope(torch.cat([x, kept.inputs[:1]]), torch.zeros(4, dtype=torch.int64), of=torch.tensor([0, 1, 2, 0]))
    assert only(replace(task, edit_scope=near)) == "1 neighbours are points of the locality set"
    tests = {"first": (torch.cat([x[:2], kept.inputs[:1]]), torch.zeros(3, dtype=torch.int64))}
    assert replace(task, test_set=tests).faults()[:2] == [
        "2 edits are points of the test set 'first'",
        "1 points of the locality set are points of the test set 'first'",
    ]
    mixed = Edits(torch.cat([x, kept.inputs[:1]]), torch.cat([task.edits.criterion.labels, kept.criterion.labels[:1]]))
    assert replace(task, edits=mixed).faults() == [
        "the network gets 1 of 4 edits right already",
        "1 edits are points of the locality set",
    ]


def test_an_edit_of_several_points_is_a_mistake_where_one_of_them_is() -> None:
    task = plane("tiny", 0, 3)
    x, labels, kept = task.edits.inputs, task.edits.criterion.labels, task.locality_set
    points, asked = torch.cat([x, x[:1] + 0.001]), torch.cat([labels, labels[:1]])
    one = replace(task, edits=Edits(points, asked, of=[0, 1, 2, 0]), test_set={}, training=None)
    assert one.faults() == []
    asked = torch.cat([labels, kept.criterion.labels[:1]])
    half = Edits(torch.cat([x, kept.inputs[:1] + 1e-4]), asked, of=[0, 1, 2, 0])
    assert replace(one, edits=half).faults() == []  # its other point is still wrong
    everyone = Episode(one.edits, kept, task.edit_scope)
    sizes = {
        len(episode.edits): len(episode.edits.inputs) for episode in islice(EpisodeSampler(lambda: everyone, 0), 40)
    }
    assert sizes[3] == 4


def test_what_is_wrong_with_episodes_is_said() -> None:
    task = plane("tiny", 0, 3)
    own = everything(task)
    leaked = replace(own, edits=task.edits, edit_scope=task.edit_scope)
    faults = replace(task, training=lambda: leaked).faults()
    assert faults and all("edits are points of the edits" in fault for fault in faults)
    swapped = replace(own, locality_set=LocalitySet(own.locality_set.inputs, 1 - own.locality_set.criterion.labels))
    assert (
        "episode 0: the network gets 10 of 10 points to keep wrong" in replace(task, training=lambda: swapped).faults()
    )
    with pytest.raises(InvalidInput, match="no episodes"):
        next(iter(replace(task, training=None).episodes(0)))


def test_training_data_are_read_when_they_are_needed_and_once() -> None:
    calls: list[int] = []
    task = plane("tiny", 0, 3)
    own = everything(task)
    task = replace(task, training=lambda: (calls.append(1), own)[1])
    episodes = task.episodes(0)
    assert calls == []
    assert episodes[0].edits and task.episodes(1)[2].edits and calls == [1]


@pytest.mark.parametrize("wrong", [{"edits": 0}, {"locality": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="at least"):
        plane("tiny", 0, 3).episodes(**({"seed": 0} | wrong))
    with pytest.raises(IndexError):
        plane("tiny", 0, 3).episodes(0)[-1]


def test_an_edit_without_neighbours_makes_an_episode() -> None:
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    scope = EditScope(x[2:3], [1], of=[1])
    all_there_is = Episode(Edits(x[:2], [1, 1]), LocalitySet(x[3:], [0, 0, 0]), scope)
    episodes = EpisodeSampler(lambda: all_there_is, 0)
    sizes = {(len(one.edits), len(one.edit_scope)) for one in islice(episodes, 30)}
    assert sizes == {(1, 0), (1, 1), (2, 1)}


def test_a_task_is_what_methods_are_trained_with() -> None:
    task = plane("tiny", 0, 3)
    stream, own = EpisodeStream(task, 5), task.episodes(5)
    for k in range(3):
        episode = stream.next()
        assert isinstance(episode, Episode) and equal(episode, own[k])


# Former names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("former", "home", "names"),
    [
        (
            "graph",
            "graphs.graph",
            "Graph Nodes NodeEdits NodeLocality NodeScope inductive_split network train",
        ),
        ("graph_data", "graphs.data", "load"),
        ("graph_plot", "graphs.plot", "neighbourhood"),
        ("cached_graph", "graphs.cached", "cached CachedNetwork"),
        ("vision", "images.data", "Images mnist mnist_fog digits"),
        ("vision", "images.fog", "fog"),
        ("vision", "images.networks", "relu_mlp digits_cnn"),
        ("vision", "images.training", "train_classifier"),
        ("cifar", "images.cifar", "cifar10 cifar10_jpeg cifar10_lossless lossless_rows ResNet resnet20"),
        ("acas_plot", "acas.plot", "encounter"),
    ],
)
def test_former_names_lead_to_the_same_things(former: str, home: str, names: str) -> None:
    old, new = (importlib.import_module(f"nnrepair.domains.{module}") for module in (former, home))
    assert all(getattr(old, name) is getattr(new, name) for name in names.split())
