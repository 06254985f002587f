"""Real graphs with labelled nodes, by name: citations, products bought together, co-authors, pages, crowd workers.

They are read without pickles from NNREPAIR_DATA, which is never written to; otherwise PyTorch Geometric downloads its
own copies into the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nnrepair.domains import files as data_folder
from nnrepair.domains.files import cache_folder
from nnrepair.domains.graphs.graph import Graph, _pyg, undirected
from nnrepair.domains.graphs.large import LargeGraph
from nnrepair.errors import DataUnavailable, InvalidInput, near_matches

Arrays = Mapping[str, Any]


def load(name: str) -> Graph:
    """Load a graph: "Cora", "CiteSeer", "PubMed", "Photo", "Computers", "CS", "Physics", "facebook" or "tolokers".

    All are undirected, every edge listed in both directions, and have the nodes, edges and labels that PyTorch
    Geometric's have. Features are words that a node has or not, divided by their number at the node; those of
    tolokers are ten numbers from 0 to 1 and stay as they are. They are dense: 1.2 GB for Physics, 0.5 GB for CS,
    0.4 GB for facebook.

    * Cora, CiteSeer, PubMed (`graphs/cora_safe.npz`, ...): papers that cite each other, with the public split's masks.
    * Photo, Computers (`graphs/Photo/raw/amazon_electronics_photo.npz`, ...): products bought together.
    * CS, Physics (`graphs/CS/raw/ms_academic_cs.npz`, ...): authors who wrote together.
    * facebook (`graphs/facebook_pagepage.npz`): pages that like each other, with all 4714 features. PyTorch Geometric
      offers a version with 128, so this one is not downloaded. Self loops are listed twice, as there.
    * tolokers (`graphs/tolokers.npz`): workers of a crowd, banned or not; the masks are the first of ten splits.

    Downloads by PyTorch Geometric: the citation networks are pickles, and it checks no hash of any file, so
    trust them only as far as their server.

    >>> load("Cora").x.shape  # doctest: +SKIP
    torch.Size([2708, 1433])

    Raises:
        InvalidInput: another name, or a file that cannot be read.
        DataUnavailable: the files are neither here nor to be had.
    """
    source = _SOURCES.get(name)
    if source is None:
        raise InvalidInput(f"Unknown graph {name!r}.{near_matches(name, _SOURCES)} Known: {', '.join(_SOURCES)}.")
    path = data_folder.find(source.file)
    if path is None:
        return _downloaded(name, source)
    with data_folder.open_npz(path) as file:
        missing = [key for key in source.arrays if key not in file]
        if missing:
            raise InvalidInput(f"{path} lacks {', '.join(missing)}; it has {', '.join(file.files)}.")
        arrays = {key: file[key] for key in source.arrays}
    with _about(path):
        return source.read(arrays)


def reddit(name: Literal["Reddit", "Reddit2"] = "Reddit") -> LargeGraph:
    """Load Reddit, or Reddit2 (a sparser version), through PyTorch Geometric, which downloads it into the user's cache.

    Hamilton et al., "Inductive representation learning on large graphs", NeurIPS 2017: 232 965 posts, joined where one
    user comments on both; 114 615 892 edges, 602 features, 41 classes. No hash of the files is checked, so trust them
    only as far as their server.

    Raises:
        InvalidInput: another name.
        DataUnavailable: PyTorch Geometric is missing, or the files are neither here nor to be had.
    """
    if name not in ("Reddit", "Reddit2"):
        raise InvalidInput(
            f"Unknown graph {name!r}.{near_matches(name, ['Reddit', 'Reddit2'])} Known: Reddit, Reddit2."
        )
    with _pyg(f"Only PyTorch Geometric can load {name}"):
        from torch_geometric import datasets
    folder = cache_folder() / name.lower()
    try:
        found = getattr(datasets, name)(str(folder))[0]
    except Exception as error:  # whatever its downloader and readers raise
        raise DataUnavailable(
            f"PyTorch Geometric could not load {name} into {folder} ({str(error).strip() or type(error).__name__}). "
            "Run this where the network works and copy that folder here; delete it if it holds a broken download."
        ) from error
    return LargeGraph.of(found)


@dataclass(frozen=True)
class _Source:
    """Where a graph comes from.

    Attributes:
        file: its place in a data folder.
        arrays: what is read of it.
        read: what makes a graph of these.
        pyg: the class in torch_geometric.datasets that downloads it, and the name that this one knows it by.
    """

    file: str
    arrays: tuple[str, ...]
    read: Callable[[Arrays], Graph]
    pyg: tuple[str, str] | None = None


# Reading -------------------------------------------------------------------------------------------------------------


def _citations(arrays: Arrays) -> Graph:
    shape = _shape(arrays, "x_shape")
    x = _ones(_integers(arrays, "x_row"), _integers(arrays, "x_col"), shape)
    masks = {key: _mask(arrays[key]) for key in ("train_mask", "val_mask", "test_mask")}
    return _graph(_shared_out(x), _integers(arrays, "edge_index"), _integers(arrays, "y"), **masks)


def _npz(arrays: Arrays) -> Graph:
    """Read the layout of "Pitfalls of graph neural network evaluation" (Shchur et al., 2018)."""
    shape = _shape(arrays, "attr_shape")
    words, owner = _integers(arrays, "attr_indices"), _rows(_integers(arrays, "attr_indptr"), shape[0])
    has = torch.from_numpy(arrays["attr_data"] > 0)
    x = _ones(owner[has], words[has], shape)
    count = _shape(arrays, "adj_shape")[0]
    edges = torch.stack([_rows(_integers(arrays, "adj_indptr"), count), _integers(arrays, "adj_indices")])
    edges = edges[:, edges[0] != edges[1]]
    return _graph(_shared_out(x), undirected(edges, count), _integers(arrays, "labels"))


def _facebook(arrays: Arrays) -> Graph:
    pointer, edges = _integers(arrays, "attr_indptr"), _integers(arrays, "edge_index")
    shape = (len(pointer) - 1, int(arrays["num_features"]))
    x = _ones(_rows(pointer, shape[0]), _integers(arrays, "attr_indices"), shape)
    return _graph(_shared_out(x), torch.cat([edges, edges.flip(0)], 1), _integers(arrays, "labels"))


def _tolokers(arrays: Arrays) -> Graph:
    x = torch.from_numpy(arrays["node_features"].astype(np.float32))
    masks = {f"{part}_mask": _mask(arrays[f"{part}_masks"][0]) for part in ("train", "val", "test")}
    return _graph(x, undirected(_integers(arrays, "edges").t(), len(x)), _integers(arrays, "node_labels"), **masks)


_CITATIONS = ("edge_index", "x_row", "x_col", "x_shape", "y", "train_mask", "val_mask", "test_mask")
_SHCHUR = ("adj_indices", "adj_indptr", "adj_shape", "attr_data", "attr_indices", "attr_indptr", "attr_shape", "labels")
_SOURCES = {
    **{
        name: _Source(f"graphs/{name.lower()}_safe.npz", _CITATIONS, _citations, ("Planetoid", name))
        for name in ("Cora", "CiteSeer", "PubMed")
    },
    **{
        name: _Source(f"graphs/{name}/raw/amazon_electronics_{name.lower()}.npz", _SHCHUR, _npz, ("Amazon", name))
        for name in ("Photo", "Computers")
    },
    **{
        name: _Source(f"graphs/{name}/raw/ms_academic_{short}.npz", _SHCHUR, _npz, ("Coauthor", name))
        for name, short in (("CS", "cs"), ("Physics", "phy"))
    },
    "facebook": _Source(
        "graphs/facebook_pagepage.npz",
        ("edge_index", "attr_indices", "attr_indptr", "num_features", "labels"),
        _facebook,
    ),
    "tolokers": _Source(
        "graphs/tolokers.npz",
        ("node_features", "node_labels", "edges", "train_masks", "val_masks", "test_masks"),
        _tolokers,
        ("HeterophilousGraphDataset", "Tolokers"),
    ),
}


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None
    except (IndexError, ValueError, TypeError, RuntimeError) as error:
        raise InvalidInput(f"{path} is no graph in the expected form: {error}") from error


def _graph(x: Tensor, edge_index: Tensor, y: Tensor, **masks: Tensor) -> Graph:
    if any(len(given) != len(x) for given in (y, *masks.values())):
        raise InvalidInput(f"labels and masks must be one per node ({len(x)}), got {len(y)} labels.")
    return Graph(x, edge_index, y, **masks, undirected=True)


def _integers(arrays: Arrays, key: str) -> Tensor:
    if arrays[key].dtype.kind not in "iu":
        raise InvalidInput(f"{key} must be integers, got {arrays[key].dtype}.")
    return torch.from_numpy(arrays[key].astype(np.int64))


def _mask(array: Any) -> Tensor:
    return torch.from_numpy(array.astype(bool))


def _shape(arrays: Arrays, key: str) -> tuple[int, int]:
    rows, columns = arrays[key].tolist()
    return int(rows), int(columns)


def _rows(pointer: Tensor, count: int) -> Tensor:
    """Return the row of every entry of compressed sparse rows."""
    if len(pointer) != count + 1 or pointer[0] != 0 or bool((pointer.diff() < 0).any()):
        raise InvalidInput(f"the pointers of {count} compressed rows must be {count + 1} numbers that ascend from 0.")
    return torch.repeat_interleave(torch.arange(count), pointer.diff())


def _ones(row: Tensor, column: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return zeros of a shape, and ones in some places."""
    if len(row) != len(column):
        raise InvalidInput(f"features lie in {len(row)} rows but {len(column)} columns.")
    x = torch.zeros(shape)
    x[row, column] = 1.0
    return x


def _shared_out(x: Tensor) -> Tensor:
    """Divide features (n, f), in place, by their sum at each node."""
    return x.div_(x.sum(1, keepdim=True).clamp(min=1.0))


# Downloading ---------------------------------------------------------------------------------------------------------


def _downloaded(name: str, source: _Source) -> Graph:
    folder = f"export NNREPAIR_DATA=/path/to/data   # then the file is $NNREPAIR_DATA/{source.file}"
    if source.pyg is None:
        raise DataUnavailable(
            f"{name} was not found on this machine and is not downloaded. Name a folder that holds it:\n  {folder}\n"
            f"with the arrays {', '.join(source.arrays)}; its source is github.com/benedekrozemberczki/MUSAE. PyTorch "
            "Geometric's FacebookPagePage is another version, with 128 features, and can be used in this one's place."
        )
    with _pyg(f"{source.file!r} is not on this machine, and only PyTorch Geometric can download {name}"):
        from torch_geometric import datasets
    kind, known = source.pyg
    cache = cache_folder() / kind.lower()
    try:
        found = getattr(datasets, kind)(str(cache), known)[0]
    except Exception as error:  # whatever its downloader and readers raise
        raise DataUnavailable(
            f"{name} was not found on this machine, and PyTorch Geometric could not load it into {cache} "
            f"({str(error).strip() or type(error).__name__}). Either name a folder that holds it:\n  {folder}\n"
            "or run this once where the network works; delete that folder if it holds a broken download."
        ) from error
    masks = {key: getattr(found, key, None) for key in ("train_mask", "val_mask", "test_mask")}
    masks = {key: mask[:, 0] if mask is not None and mask.ndim == 2 else mask for key, mask in masks.items()}
    x = found.x.float()
    return Graph(
        x if name == "tolokers" else _shared_out(x.clone()), found.edge_index, found.y, **masks, undirected=True
    )
