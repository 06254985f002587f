"""Real graphs: their counts, the files they are read from, and what is said when these are wrong or missing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nnrepair import DataUnavailable, InvalidInput
from nnrepair.domains.graphs.data import load

#: name -> nodes, edges in PyTorch Geometric's tables, self loops, features, classes, and the file.
COUNTS = {
    "Cora": (2708, 10556, 0, 1433, 7, "graphs/cora_safe.npz"),
    "CiteSeer": (3327, 9104, 0, 3703, 6, "graphs/citeseer_safe.npz"),
    "Photo": (7650, 238162, 0, 745, 8, "graphs/Photo/raw/amazon_electronics_photo.npz"),
    "Computers": (13752, 491722, 0, 767, 10, "graphs/Computers/raw/amazon_electronics_computers.npz"),
    "CS": (18333, 163788, 0, 6805, 15, "graphs/CS/raw/ms_academic_cs.npz"),
    "Physics": (34493, 495924, 0, 8415, 5, "graphs/Physics/raw/ms_academic_phy.npz"),
    "facebook": (22470, 342004, 2 * 179, 4714, 4, "graphs/facebook_pagepage.npz"),
    "tolokers": (11758, 1038000, 0, 10, 2, "graphs/tolokers.npz"),
}


@pytest.mark.data
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "Physics" else n for n in COUNTS])
def test_graphs_have_their_published_counts(name: str, data_dir: Callable[..., Path]) -> None:
    nodes, edges, loops, features, classes, file = COUNTS[name]
    folder = data_dir(file)
    before = sorted(folder.rglob("*"))
    graph = load(name)
    assert sorted(folder.rglob("*")) == before  # the folder is the user's
    assert (graph.num_nodes, graph.edge_index.shape[1]) == (nodes, edges)
    assert (graph.num_features, graph.num_classes) == (features, classes)
    assert int((graph.edge_index[0] == graph.edge_index[1]).sum()) == loops
    assert graph.undirected
    if name != "facebook":  # whose loops are listed twice, as in PyTorch Geometric
        assert len(torch.unique(graph.edge_index, dim=1).T) == edges
    if name != "tolokers":
        total = graph.x.sum(1)
        torch.testing.assert_close(total[total > 0], torch.ones(int((total > 0).sum())))
    if name in ("Cora", "CiteSeer"):
        assert graph.train_mask is not None and int(graph.train_mask.sum()) == 20 * graph.num_classes


@pytest.mark.data
@pytest.mark.slow
def test_what_is_read_is_what_pytorch_geometric_reads(data_dir: Callable[..., Path], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = pytest.importorskip("torch_geometric.datasets", reason="it comes with the extra [graph]")
    file = data_dir(COUNTS["Photo"][-1]) / COUNTS["Photo"][-1]
    (tmp_path / "Photo" / "raw").mkdir(parents=True)
    (tmp_path / "Photo" / "raw" / file.name).symlink_to(file)  # it writes beside the folder it reads
    theirs, ours = datasets.Amazon(str(tmp_path), "Photo")[0], load("Photo")
    assert torch.equal(ours.edge_index, theirs.edge_index) and torch.equal(ours.y, theirs.y)
    assert torch.equal(ours.x > 0, theirs.x > 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty data folder with a place for every graph."""
    monkeypatch.setenv("NNREPAIR_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for *_, file in COUNTS.values():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    return tmp_path


def ours() -> dict[str, Any]:
    """Return three papers of four words."""
    masks = {f"{part}_mask": np.array([True, False, False]) for part in ("train", "val", "test")}
    return {
        "edge_index": np.array([[0, 1], [1, 0]], np.int32),
        "x_row": np.array([0, 0, 1], np.int32),
        "x_col": np.array([0, 3, 2], np.int32),
        "x_shape": np.array([3, 4]),
        "y": np.array([0, 1, 1]),
        **masks,
    }


def shchur() -> dict[str, Any]:
    """Return three products with a self loop, an edge given once, and one given in both directions."""
    return {
        "adj_indices": np.array([1, 0, 1, 2], np.int32),
        "adj_indptr": np.array([0, 1, 4, 4], np.int32),
        "adj_shape": np.array([3, 3]),
        "attr_data": np.array([1.0, 2.0, 0.0], np.float32),
        "attr_indices": np.array([0, 1, 1], np.int32),
        "attr_indptr": np.array([0, 2, 2, 3], np.int32),
        "attr_shape": np.array([3, 2]),
        "labels": np.array([0, 1, 1]),
    }


def test_citations_are_read_from_plain_arrays(folder: Path) -> None:
    np.savez(folder / COUNTS["Cora"][-1], **ours())
    graph = load("Cora")
    assert graph.x.tolist() == [[0.5, 0, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert graph.edge_index.dtype == torch.int64 and graph.y.tolist() == [0, 1, 1]


def test_products_are_read_as_pytorch_geometric_reads_them(folder: Path) -> None:
    np.savez(folder / COUNTS["Photo"][-1], **shchur())
    graph = load("Photo")
    assert graph.edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]  # no loop, both directions, none twice
    assert graph.x.tolist() == [[0.5, 0.5], [0, 0], [0, 0]]  # present or not; a stored zero is none


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("CiteSeer", {"y": np.arange(3)}, "lacks edge_index, x_row"),
        ("Cora", ours() | {"y": np.array([0, 1])}, "per node .3., got 2 labels"),
        ("Cora", ours() | {"edge_index": np.array([[0], [1]])}, "1 of 1 edges lack their reverse"),
        ("Cora", ours() | {"edge_index": np.array([[0, 7], [7, 0]])}, "points to node 7"),
        ("Cora", ours() | {"x_col": np.array([0, 9, 2])}, "no graph in the expected form: index 9"),
        ("Cora", ours() | {"x_col": np.array([0, 1])}, "in 3 rows but 2 columns"),
        ("Cora", ours() | {"y": np.array([0.0, 1.0, 1.0])}, "y must be integers, got float64"),
        ("Cora", ours() | {"x_shape": np.array([3])}, "no graph in the expected form"),
        ("Photo", shchur() | {"adj_indptr": np.array([0, 4])}, "pointers of 3 compressed rows must be 4"),
        ("Photo", shchur() | {"adj_indptr": np.array([0, 3, 1, 4])}, "ascend from 0"),
        ("Photo", shchur() | {"adj_indices": np.array([0, 1])}, "no graph in the expected form"),
    ],
)
def test_broken_files_are_named(name: str, arrays: dict[str, Any], message: str, folder: Path) -> None:
    file = folder / COUNTS[name][-1]
    np.savez(file, **arrays)
    with pytest.raises(InvalidInput, match=f"(?s){file.name}.*{message}"):
        load(name)


@pytest.fixture
def datasets() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch_geometric.datasets", reason="it comes with the extra [graph]")


def test_other_names_are_refused() -> None:
    with pytest.raises(
        InvalidInput, match=r"Did you mean 'Cora'\? Known: Cora, CiteSeer, PubMed, Photo, Computers, CS"
    ):
        load("cora")


@pytest.mark.parametrize(("name", "kind"), [("Cora", "Planetoid"), ("Photo", "Amazon"), ("CS", "Coauthor")])
def test_offline_it_says_what_to_do(
    name: str, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, datasets: Any
) -> None:
    def offline(*_: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, kind, offline)
    with pytest.raises(DataUnavailable, match=f"(?s)no route.*NNREPAIR_DATA=.*{COUNTS[name][-1]}"):
        load(name)


def test_what_is_not_downloaded_says_so(folder: Path) -> None:
    with pytest.raises(
        DataUnavailable, match=r"(?s)not downloaded.*NNREPAIR_DATA=.*facebook_pagepage.npz.*128 features"
    ):
        load("facebook")


def test_downloads_go_to_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch, datasets: Any) -> None:
    asked: list[tuple[str, str]] = []
    masks = torch.tensor([[True, False], [False, True]])
    found = SimpleNamespace(x=torch.tensor([[1.0, 3.0], [0.0, 0.0]]), y=torch.tensor([0, 1]), train_mask=masks)
    found.edge_index = torch.tensor([[0, 1], [1, 0]])

    def downloaded(root: str, name: str) -> list[Any]:
        asked.append((root, name))
        return [found]

    monkeypatch.setattr(datasets, "HeterophilousGraphDataset", downloaded)
    monkeypatch.setattr(datasets, "Amazon", downloaded)
    workers, products = load("tolokers"), load("Photo")
    assert workers.x.tolist() == [[1, 3], [0, 0]] and products.x.tolist() == [[0.25, 0.75], [0, 0]]
    assert workers.train_mask is not None and workers.train_mask.tolist() == [True, False]  # the first split
    cache = folder / "cache" / "nnrepair"
    assert asked == [(str(cache / "heterophilousgraphdataset"), "Tolokers"), (str(cache / "amazon"), "Photo")]
