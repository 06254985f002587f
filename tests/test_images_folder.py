"""Folders of images: which output a folder stands for, what cannot be read, what a model makes of them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import encoded, folder, pixels
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, SubsetRandomSampler

import nnrepair
from nnrepair import Edits, EditScope, InvalidInput, LocalitySet, UnsupportedModel
from nnrepair.domains.images.classes import Classes, as_classes, wnids
from nnrepair.domains.images.classified import classified
from nnrepair.methods import FineTune, MinimalNorm
from nnrepair.spec.streams import Stream

pytest.importorskip("torchvision", reason="torchvision comes with the extra [vision]")

from torchvision import transforms
from torchvision.datasets import ImageFolder

from nnrepair.domains.images.classes import imagenet_classes
from nnrepair.domains.images.folder import Folder, sifted

TO_TENSOR = transforms.ToTensor()


def network(classes: int = 4, side: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * side**2, classes)
    ).eval()


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    return folder(tmp_path / "animals", {"cat": 6, "dog": 6, "emu": 6})


# Classes -------------------------------------------------------------------------------------------------------------


def test_labels_are_the_outputs_of_the_model(animals: Path) -> None:
    names = ["ant", "dog", "cat", "bee", "Emu"]
    found = Folder(animals, TO_TENSOR, names)
    assert [found[k][1] for k in range(18)] == [2] * 6 + [1] * 6 + [4] * 6
    assert ImageFolder(str(animals))[0][1] == 0  # what it would have been
    assert Folder(animals).class_to_idx == {"cat": 0, "dog": 1, "emu": 2}
    torch.testing.assert_close(found[0][0], ImageFolder(str(animals), TO_TENSOR)[0][0])


def test_imagenets_classes_by_number_and_name(tmp_path: Path) -> None:
    classes = imagenet_classes()
    assert len(classes) == 1000 and list(classes.ids) == sorted(classes.ids)
    known = {"n01440764": 0, "tench": 0, "School bus": 779, "great_white_shark": 2, "toilet tissue": 999}
    assert {name: classes.index(name) for name in known} == known
    root = folder(tmp_path / "some", {"n04146614": 1, "tench": 1})
    assert sorted(label for _, label in Folder(root, None, classes).samples) == [0, 779]
    with pytest.raises(InvalidInput, match="'shool bus' is none of the 1000 classes. Did you mean 'school bus'"):
        classes.index("shool bus")


def test_folders_that_are_no_classes_are_all_named(animals: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'dog' is none of the 2 classes.*'emu' is none of the 2.*Rename or move"):
        Folder(animals, TO_TENSOR, ["cat", "dock"])


def test_what_is_hidden_is_no_class(animals: Path) -> None:
    (animals / ".ipynb_checkpoints").mkdir()
    assert Folder(animals).classes == Folder(animals, None, ["cat", "dog", "emu"]).classes == ["cat", "dog", "emu"]


def test_newer_transforms_and_worker_processes(animals: Path) -> None:
    from torchvision.transforms import v2

    newer = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    given, same = Folder(animals, newer), Folder(animals, TO_TENSOR)
    twin = pickle.loads(pickle.dumps(given))
    assert torch.allclose(twin[3][0], same[3][0])
    assert torch.equal(classified(network(3), given).predicted, classified(network(3), same).predicted)
    batch = torch.stack([x for x, _ in given])
    edits = (batch[:1], [(int(network(3)(batch[:1]).argmax()) + 1) % 3])
    assert nnrepair.fix(network(3), edits, batch[1:], method=MinimalNorm(layer="4")).outcome.ok


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="There is no folder .*nowhere"):
        Folder(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match="has no folders"):
        Folder(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("none yet")
    with pytest.raises(InvalidInput, match="hold no images: cat"):
        Folder(tmp_path)


KERAS = {str(k): [name, f"class {k}"] for k, name in enumerate(wnids())}
FILES: dict[str, tuple[str, int]] = {
    "names": ('["ant", "bee"]', 2),
    "numbers": ('{"1": "bee", "0": "ant"}', 2),
    "keras": (json.dumps(KERAS), 1000),
    "lines": ("ant\nbee\n\n", 2),
    "synsets": ("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n", 2),
}


@pytest.mark.parametrize("kind", FILES)
def test_class_index_files(kind: str, tmp_path: Path) -> None:
    text, count = FILES[kind]
    path = tmp_path / "classes"
    path.write_text(text)
    classes = as_classes(path, outputs=count)
    assert len(classes) == count
    assert classes.index({"keras": "class 7", "synsets": "goldfish"}.get(kind, "bee")) == {"keras": 7}.get(kind, 1)


SWAPPED = KERAS | {"3": KERAS["4"], "4": KERAS["3"]}
WRONG: dict[str, tuple[bytes, str]] = {
    "gap": (b'{"0": "ant", "2": "bee"}', "must number the outputs 0 to 1 without gaps, got '0', '2'"),
    "from one": (b'{"1": "ant", "2": "bee"}', "without gaps"),
    "turned around": (b'{"ant": 0, "bee": 1}', "must be turned around"),
    "a number twice": (b'{"0": "ant", "0": "bee"}', "without gaps"),
    "a class twice": (b'["ant", "bee", "ant"]', "listed twice: 'ant'"),
    "another order": (json.dumps(SWAPPED).encode(), "another order .* output 3 should be n01491361, given n01494475"),
    "no names": (b"[[1, 2], [3, 4]]", r"a class is a name or .identifier, name."),
    "three parts": (b'{"0": ["n1", "ant", "insect"]}', "a class is a name"),
    "empty": (b"", "there is no class"),
    "damaged": (b'["ant", "be', "damaged JSON"),
    "nested": (b"[" * 100_000, "damaged JSON"),
    "no text": (b"\xff\xfe\x00\x01\x80", "cannot be read as a class-index file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_class_index_files_are_refused(kind: str, tmp_path: Path) -> None:
    content, message = WRONG[kind]
    path = tmp_path / "classes.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        as_classes(path)


def test_as_many_classes_as_outputs(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has 1000 outputs, but 2 classes are given"):
        as_classes(["ant", "bee"], outputs=1000)
    with pytest.raises(InvalidInput, match="cannot be read as a class-index file: .*nowhere"):
        as_classes(tmp_path / "nowhere.json")
    twice = Classes(("crane", "crane"), ("n1", "n2"))
    with pytest.raises(InvalidInput, match=r"\['n1', 'n2'\] are all called 'Crane'"):
        twice.index("Crane")
    assert twice.index("n2") == 1


def test_labels_that_number_other_classes_are_refused(animals: Path) -> None:
    model, given = network(9), ImageFolder(str(animals), TO_TENSOR)
    x, labels = torch.zeros(1, 3, 16, 16), [1]
    message = r"labels number 3 folders of images, but the model has 9 outputs.*Folder\(root"
    with pytest.raises(InvalidInput, match=message):
        classified(model, Subset(given, [1, 2]))
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(model, (x, labels), given)
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(model, DataLoader(Subset(given, [3]), batch_size=2))
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(model, (x, labels), edit_scope=given)
    with pytest.raises(InvalidInput, match=message):
        nnrepair.fix(model, (x, labels), test_set={"animals": given})
    three = Folder(animals, TO_TENSOR, ["cat", "dog", "emu"])
    with pytest.raises(InvalidInput, match="number 3 folders"):
        classified(model, three)
    moved = ImageFolder(str(animals), TO_TENSOR, target_transform=lambda k: k + 4)
    nine = Folder(animals, TO_TENSOR, [*"abcdef", "cat", "dog", "emu"])
    for fine in (moved, nine, LocalitySet(given, labels=False), LocalitySet(given, [0] * 18), list(given)):
        nnrepair.fix(model, (x, labels), fine, method=MinimalNorm(layer="4"), throw=False)
    assert set(classified(model, nine).labels.tolist()) == {6, 7, 8}
    yes_or_no = ImageFolder(str(two(animals)), TO_TENSOR)
    assert nnrepair.fix(network(1), (x, labels), yes_or_no, throw=False).report.edits == 1


def two(animals: Path) -> Path:
    """Return a folder with two classes, of which a model with one output says yes or no."""
    return folder(animals.parent / "two", {"no": 3, "yes": 3})


# Images that cannot be read ------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(animals: Path) -> Path:
    (animals / "cat" / "2.png").write_bytes(b"")
    (animals / "dog" / "3.png").write_bytes(encoded(pixels(0, 64))[:-300])
    return animals


def test_damaged_images_are_refused_by_name(damaged: Path) -> None:
    model, given = network(3), Folder(damaged, TO_TENSOR)
    edits = (torch.zeros(1, 3, 16, 16), [1])
    with pytest.raises(InvalidInput, match=r"Item 2 of the data set cannot be read: .*cat/2.png.*empty"):
        nnrepair.fix(model, edits, LocalitySet(given))
    with pytest.raises(InvalidInput, match=r"Item 2 of .*cat/2.png"):
        classified(model, given)


def test_damaged_images_are_skipped_with_a_list(damaged: Path) -> None:
    given = Folder(damaged, TO_TENSOR)
    found = sifted(given)
    assert found.readable.indices == [k for k in range(18) if k not in (2, 9)]
    assert [(one.item, Path(str(one.path)).name) for one in found.damaged] == [(2, "2.png"), (9, "3.png")]
    assert "empty (0 bytes)" in found.damaged[0].reason
    assert len(classified(network(3), found.readable).labels) == 16
    part = sifted(Subset(ImageFolder(str(damaged), TO_TENSOR), [2, 3]))  # torchvision's own, and a part of it
    assert part.readable.indices == [1] and str(part.damaged[0].path).endswith("cat/2.png")
    assert sifted(DataLoader(given)).readable.indices == found.readable.indices
    both = sifted(ConcatDataset([Subset(given, [0, 1]), given]))
    assert [(one.item, Path(str(one.path)).name) for one in both.damaged] == [(4, "2.png"), (11, "3.png")]
    with pytest.raises(InvalidInput, match="No item of Subset can be read. The first: .*2.png"):
        sifted(Subset(given, [2]))


def test_pictures_without_a_transform_are_named(animals: Path) -> None:
    with pytest.raises(InvalidInput, match=r"Item 0 of the data set is a picture.*transform=weights.transforms"):
        LocalitySet(ImageFolder(str(animals)))


# What a model makes of them ------------------------------------------------------------------------------------------


def test_what_is_read_right_and_wrong(animals: Path) -> None:
    model, given = network(3), Folder(animals, TO_TENSOR)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = classified(model, DataLoader(given, batch_size=5))
    with torch.no_grad():
        direct = model.eval()(torch.stack([x for x, _ in given])).argmax(1)
    assert torch.equal(found.predicted, direct) and found.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert found.accuracy == float((direct == found.labels).double().mean())
    assert {*found.wrong.indices} | {*found.right.indices} == set(range(18))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    pair = torch.stack([x for x, _ in given]), found.labels
    assert torch.equal(classified(model, pair).predicted, direct)
    some = classified(model, DataLoader(given, sampler=SubsetRandomSampler([17, 0, 3])))
    assert torch.equal(some.predicted, direct[[17, 0, 3]])
    items = [some.wrong[k][1] for k in range(len(some.wrong))] + [some.right[k][1] for k in range(len(some.right))]
    assert sorted(items) == [0, 0, 2]


def test_a_folder_is_repaired_in_a_few_lines(animals: Path, tmp_path: Path) -> None:
    model, given = network(3), Folder(animals, TO_TENSOR)
    found = classified(model, given)
    assert len(found.wrong) > 2 and len(found.right) > 2
    result = nnrepair.fix(model, Edits(found.wrong), LocalitySet(found.right), method=MinimalNorm(layer="4"))
    after = classified(result.model, given)
    assert after.accuracy == 1.0
    assert result.patch is not None
    result.patch.save(tmp_path / "animals.safetensors")
    assert classified(result.patch.apply(network(3)), given).accuracy == 1.0


class Unlabelled(Dataset[Tensor]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, k: int) -> Tensor:
        return torch.zeros(3, 16, 16)


class Regression(Unlabelled):
    def __getitem__(self, k: int) -> Any:
        return torch.zeros(3, 16, 16), 0.5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda root: (network(3), Unlabelled()), InvalidInput, r"must be \(image, label\).*Unlabelled"),
        (lambda root: (network(3), torch.zeros(2, 3, 16, 16)), InvalidInput, r"must be \(image, label\)"),
        (lambda root: (network(3), Regression()), InvalidInput, "labels must be numbers of outputs"),
        (lambda root: (network(2), list(Folder(root, TO_TENSOR))), InvalidInput, "0 to 1, got .*0 to 2.*classes=..."),
        (lambda root: (network(1), Folder(root, TO_TENSOR)), InvalidInput, "a score for each of several classes"),
        (lambda root: (network(3, 8), Folder(root, TO_TENSOR)), UnsupportedModel, "failed on some of the points"),
    ],
)
def test_what_cannot_be_classified(make: Callable[[Path], Any], error: Any, message: str, animals: Path) -> None:
    with pytest.raises(error, match=message):
        classified(*make(animals))


# Ways to give images -------------------------------------------------------------------------------------------------


def test_every_way_to_give_images_is_the_same(animals: Path) -> None:
    model, given = network(3), ImageFolder(str(animals), TO_TENSOR)
    edits = [(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(k)), k % 3) for k in range(2)]
    stacked = torch.stack([x for x, _ in given]), torch.tensor(given.targets)
    wanted = [(x, (int(model(x[None]).argmax()) + 1) % 3) for x, _ in edits]
    ways: list[Any] = [
        stacked,
        given,
        DataLoader(given, batch_size=4),
        DataLoader(given, batch_size=4, shuffle=True),
        Subset(given, range(18)),
        list(given),
        [(x.numpy(), y) for x, y in given],
    ]
    method = MinimalNorm(layer="4")
    changes = [nnrepair.fix(model, wanted, way, method=method).report.weight_change.l2 for way in ways]
    assert changes == pytest.approx([changes[0]] * len(ways), rel=1e-4)
    few = [wanted[:1], (wanted[0][0][None], [wanted[0][1]]), Edits(wanted[:1])]
    single = [nnrepair.fix(model, way, given, method=method).report.weight_change.l2 for way in few]
    assert single == pytest.approx([single[0]] * 3, rel=1e-4)
    scope = EditScope([(x + 0.01, y) for x, y in wanted], of=[0, 1])
    assert isinstance(scope.inputs, Stream)
    report = nnrepair.fix(model, wanted, given, method=FineTune(lr=0.01), edit_scope=scope, throw=False).report
    assert report.generalization_rate is not None


def test_large_items_are_read_fewer_at_a_time() -> None:
    large = LocalitySet([(torch.zeros(3, 224, 224), 0)] * 100).inputs
    small = LocalitySet([(torch.zeros(3, 32, 32), 0)] * 1000).inputs
    assert isinstance(large, Stream) and isinstance(small, Stream)
    assert large.batch == 26 and small.batch == 256
    loaded = LocalitySet(DataLoader([(torch.zeros(3, 224, 224), 0)] * 9, batch_size=7)).inputs  # type: ignore[arg-type]
    assert isinstance(loaded, Stream) and loaded.batch == 7
