"""Points and labels in every form that people have them in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from networks import mistakes, mlp, randn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import nnrepair
from nnrepair import Argmax, Edits, EditScope, InvalidInput, LocalitySet, Threshold
from nnrepair.methods import MinimalNorm

X = randn(3, 4, seed=1)
MODEL = mlp(4, 8, 3)
LABELS, LAST = mistakes(MODEL, X), MinimalNorm("2")


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index], int(LABELS[index])


class Frame:
    """What data frames and their columns are to others: an object with an array inside."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.values if dtype is None else self.values.astype(dtype)


def in_inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


def frame_of(x: Any) -> Any:
    return pytest.importorskip("pandas").DataFrame(x)


#: Forms of the points X, exact to float32.
POINTS: dict[str, Callable[[], Any]] = {
    "tensor": lambda: X,
    "float64 tensor": lambda: X.double(),
    "tensor with a history": lambda: X.clone().requires_grad_() * 1.0,
    "tensor that wants gradients": lambda: X.clone().requires_grad_(),
    "parameter": lambda: torch.nn.Parameter(X.clone()),
    "tensor of inference mode": lambda: in_inference_mode(X),
    "transposed tensor": lambda: X.T.contiguous().T,
    "expanded view": lambda: torch.stack([X, X])[0],
    "numpy": lambda: X.numpy(),
    "numpy float64": lambda: X.double().numpy(),
    "big-endian": lambda: X.numpy().astype(">f4"),
    "big-endian float64": lambda: X.numpy().astype(">f8"),
    "Fortran order": lambda: np.asfortranarray(X.numpy()),
    "negative strides": lambda: X.numpy()[::-1].copy()[::-1],
    "read-only": lambda: read_only(X.numpy().copy()),
    "long doubles": lambda: X.numpy().astype(np.longdouble),
    "list of lists": lambda: X.tolist(),
    "tuple of lists": lambda: tuple(X.tolist()),
    "list of tensors": lambda: list(X),
    "list of tensors with a history": lambda: [row * 1.0 for row in X.clone().requires_grad_()],
    "list of arrays": lambda: list(X.numpy()),
    "frame": lambda: Frame(X.numpy()),
    "pandas": lambda: frame_of(X.numpy()),
}
#: Forms of the labels.
CLASSES: dict[str, Callable[[], Any]] = {
    "tensor": lambda: LABELS,
    "int32": lambda: LABELS.int(),
    "bytes": lambda: LABELS.to(torch.uint8),
    "numpy": lambda: LABELS.numpy(),
    "numpy int16": lambda: LABELS.numpy().astype(np.int16),
    "numpy uint16": lambda: LABELS.numpy().astype(np.uint16),
    "big-endian": lambda: LABELS.numpy().astype(">i8"),
    "list": LABELS.tolist,
    "list of tensors": lambda: list(LABELS),
    "numpy scalars": lambda: list(LABELS.numpy()),
    "tuple": lambda: tuple(LABELS.tolist()),
    "frame": lambda: Frame(LABELS.numpy()),
    "range": lambda: range(3),
}


@pytest.mark.parametrize("form", POINTS)
def test_points_in_every_form_are_the_same_points(form: str) -> None:
    for kind in (Edits, LocalitySet, EditScope):
        found = kind(POINTS[form](), LABELS).inputs
        assert isinstance(found, Tensor)
        assert torch.equal(found.float(), X)
        assert not found.requires_grad


@pytest.mark.parametrize("form", CLASSES)
def test_labels_in_every_form_are_the_same_labels(form: str) -> None:
    expected = torch.arange(3) if form == "range" else LABELS
    criterion = Edits(X, CLASSES[form]()).criterion
    assert isinstance(criterion, Argmax)
    assert criterion.labels.dtype == torch.int64
    assert torch.equal(criterion.labels, expected)


@pytest.mark.parametrize("form", [form for form in POINTS if form != "pandas"])
def test_a_repair_takes_every_form(form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = nnrepair.fix(MODEL, (POINTS[form](), LABELS.numpy()), POINTS[form](), method=LAST, throw=False)
    with torch.no_grad():
        assert result.report.held_after == (result.model(X).argmax(1) == LABELS).tolist()


@pytest.mark.parametrize("form", POINTS)
def test_what_the_user_gave_is_not_shared_nor_changed(form: str) -> None:
    given = POINTS[form]()
    before = np.array([np.asarray(row.detach() if isinstance(row, Tensor) else row) for row in _rows(given)])
    nnrepair.fix(MODEL, (given, LABELS), method=LAST, throw=False)
    after = np.array([np.asarray(row.detach() if isinstance(row, Tensor) else row) for row in _rows(given)])
    np.testing.assert_array_equal(before, after)


def _rows(given: Any) -> Iterator[Any]:
    return iter(given if isinstance(given, Tensor | np.ndarray | list | tuple) else np.asarray(given))


def test_bfloat16_points_keep_their_numbers() -> None:
    x = X.bfloat16()
    assert torch.equal(Edits(x, LABELS).inputs, x)
    assert torch.equal(Edits(list(x), LABELS).inputs, x)
    model = mlp(4, 8, 3).bfloat16()
    result = nnrepair.fix(model, (x, mistakes(model, x)), method=LAST, throw=False)
    with torch.no_grad():
        assert result.report.held_after == (result.model(x).argmax(1) == mistakes(model, x)).tolist()


def test_answers_in_every_form() -> None:
    answers = [[True, False, True], [False, False, True], [True, True, True]]
    for given in (answers, np.array(answers), torch.tensor(answers), np.array(answers).astype(np.int8)):
        criterion = Edits(X, given).criterion
        assert isinstance(criterion, Threshold)
        assert criterion.labels.tolist() == np.array(answers).astype(int).tolist()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "iterator": (lambda: iter(X), r"torch\.stack"),
    "dictionary of no arguments": (dict, "got the keys"),
    "dictionary of numbers": (lambda: {"x": 3.0}, "must have one point per row, got a single number"),
    "dictionary of words": (
        lambda: {"x": X, "names": ["a", "b"]},
        r"\['names'\] must be a tensor, got list",
    ),
    "arguments of unequal lengths": (lambda: (X, X[:2]), r"got as many as 0: 3, 1: 2.*A list of points"),
    "words": (lambda: ["a", "b", "c"], "got list"),
    "array of objects": (lambda: np.array([X, None, 3], object), "ndarray of object"),
    "array of words": (lambda: np.array(["a", "b", "c"]), "ndarray of <U1"),
    "dates": (lambda: np.array(["2026-01-01"] * 3, "datetime64[D]"), "ndarray of datetime64"),
    "ragged list": (lambda: [[1.0], [1.0, 2.0], [3.0]], "got list"),
    "ragged tensors": (lambda: [X[0], X[1, :2], X[2]], r"got list.*size"),
    "sparse": (lambda: X.to_sparse(), r"sparse; give a dense tensor \(to_dense\(\)\)"),
    "sparse rows": (lambda: quietly_compressed(X), r"sparse; give a dense tensor"),
    "nested": (lambda: torch.nested.nested_tensor(list(X), layout=torch.jagged), "nested|sparse"),
    "meta": (lambda: X.to("meta"), "meta device, without numbers"),
    "quantised": (lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "torch.qint8; give a tensor of plain"),
    "eight bits": (lambda: X.to(torch.float8_e4m3fn), "float8_e4m3fn; give a tensor of plain numbers"),
    "no object at all": (object, "got object"),
}


def quietly_compressed(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return x.to_sparse_csr()


@pytest.mark.filterwarnings("ignore")  # torch warns of some of these kinds
@pytest.mark.parametrize("form", BAD)
def test_what_holds_no_plain_numbers_is_refused(form: str) -> None:
    make, message = BAD[form]
    for kind in (Edits, LocalitySet, EditScope):
        with pytest.raises(InvalidInput, match=f"{kind.__name__}: inputs.*({message})"):
            kind(make(), LABELS)


@pytest.mark.parametrize("form", ["loader", "words", "array of objects", "ragged list", "sparse", "meta"])
def test_labels_without_numbers_are_refused(form: str) -> None:
    labels = DataLoader(Pairs()) if form == "loader" else BAD[form][0]()
    with pytest.raises(InvalidInput, match="Edits: labels (must be|are)"):
        Edits(X, labels)


def test_one_graph_is_refused_with_the_way_to_name_its_nodes() -> None:
    data = pytest.importorskip("torch_geometric.data").HeteroData()
    data["author"].x = X
    with pytest.raises(InvalidInput, match="one graph is many points.*NodeEdits"):
        Edits(data, LABELS)
