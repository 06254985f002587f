"""What makes a graph: features, edges, labels, masks and node numbers, refused in words where they are none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnrepair.domains.graphs.known import known
from nnrepair.errors import InvalidInput
from nnrepair.rounding import first

#: Nodes that are looked at together.
NODES = 1 << 14


class LabelledNodes:
    """What graphs with labelled nodes have in common: features (n, features), classes (n,), masks (n,) bool or None."""

    x: Tensor
    y: Tensor
    train_mask: Tensor | None
    val_mask: Tensor | None
    test_mask: Tensor | None

    @property
    def num_nodes(self) -> int:
        """How many nodes there are."""
        return len(self.x)

    @property
    def num_features(self) -> int:
        """Features per node."""
        return int(self.x.shape[1])

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.y.max()) + 1

    @property
    def masks(self) -> dict[str, Tensor | None]:
        """All masks by name."""
        return {name: getattr(self, name) for name in ("train_mask", "val_mask", "test_mask")}


def check_nodes(count: int, y: Any, **masks: Any) -> None:
    """Refuse labels and masks that are not one per node.

    Args:
        count: of the nodes.
        y: (count,) or (count, 1) integers, or None.
        masks: (count,) booleans, or None.
    """
    if y is not None:
        whole = isinstance(y, Tensor) and not (y.dtype.is_floating_point or y.dtype == torch.bool)
        if not whole or tuple(y.shape) not in ((count,), (count, 1)):
            raise InvalidInput(f"Labels y must be integers, one per node ({count},), got {_told(y)}.")
    for name, mask in masks.items():
        fits = isinstance(mask, Tensor) and mask.dtype == torch.bool and tuple(mask.shape) == (count,)
        if mask is not None and not fits:
            raise InvalidInput(f"{name} must be booleans, one per node ({count},), got {_told(mask)}.")


def _told(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def refuse_weights(data: Any) -> None:
    """Refuse a graph whose edges have weights: a model called as `model(x, edge_index)` would not see them."""
    if getattr(data, "edge_weight", None) is not None:
        raise InvalidInput(
            "The graph has edge_weight, which a model called as model(x, edge_index) does not see. If yours needs it, "
            "give an adjacency (n, n) with the weights in place of edge_index; otherwise set data.edge_weight = None."
        )


def check_graph(x: Any, edge_index: Any) -> None:
    """Refuse features and edges that make no graph; what was checked before is not looked through again."""
    for name, value in (("x", x), ("edge_index", edge_index)):
        if not isinstance(value, Tensor):
            hint = " Give a sparse adjacency (such as adj_t) in its place." if name == "edge_index" else ""
            raise InvalidInput(f"A graph's {name} must be a tensor, got {type(value).__name__}.{hint}")
    if x.ndim < 2 or not x.dtype.is_floating_point:
        raise InvalidInput(f"Node features must be floating and (n, ...), got {tuple(x.shape)} of {x.dtype}.")
    if x.layout != torch.strided:
        raise InvalidInput(f"Node features must be a plain tensor, got {x.layout}: give x.to_dense().")
    checked = known(x).checked
    if 0 not in checked:
        refuse_not_finite(x)
        checked.add(0)
    if edge_index.layout != torch.strided or edge_index.dtype.is_floating_point:  # an adjacency
        if tuple(edge_index.shape) != (len(x), len(x)):
            raise InvalidInput(
                f"An adjacency must be ({len(x)}, {len(x)}) for {len(x)} nodes, got {tuple(edge_index.shape)}. A list "
                "of edges is (2, edges) of int64."
            )
        return
    if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.dtype not in (torch.int64, torch.int32):
        raise InvalidInput(
            f"edge_index must be (2, edges) of int64, got {tuple(edge_index.shape)} of {edge_index.dtype}."
            + (" Transpose it: edge_index.t()." if edge_index.ndim == 2 and edge_index.shape[1] == 2 else "")
        )
    checked = known(edge_index).checked
    if edge_index.numel() and len(x) not in checked:
        refuse_outside(edge_index, len(x))
        checked.add(len(x))


def refuse_not_finite(x: Tensor) -> None:
    """Refuse features (n, ...) that are NaN or infinite; looked at in parts, so that no copy of them is made."""
    finite = torch.cat([torch.isfinite(part.flatten(1)).all(1) for part in torch.split(x, NODES)])
    if not finite.all():
        bad = torch.nonzero(~finite).flatten().tolist()
        raise InvalidInput(f"Node features contain NaN or infinity, at nodes {first(bad)}.")


def refuse_outside(ends: Tensor, nodes: int) -> None:
    """Refuse ends of edges, of any shape, that are no nodes."""
    if ends.numel():
        low, high = (int(v) for v in torch.aminmax(ends))
        if low < 0 or high >= nodes:
            raise InvalidInput(
                f"edge_index points to node {low if low < 0 else high}, but the graph has nodes 0..{nodes - 1}."
            )


def as_index(given: Any, nodes: int) -> Tensor:
    """Return (k,) int64 node numbers from numbers or a mask."""
    try:
        index: Tensor = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"Nodes must be given as numbers or as a mask: {error}") from None
    if index.dtype == torch.bool:
        if tuple(index.shape) != (nodes,):
            raise InvalidInput(f"A mask of nodes must be ({nodes},), got {tuple(index.shape)}.")
        return torch.nonzero(index).flatten()
    if index.dtype == torch.uint8:
        raise InvalidInput("Nodes are given as uint8, a mask or numbers: give mask.bool() or numbers.long().")
    if index.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=index.device)
    if index.ndim != 1 or index.dtype.is_floating_point or index.dtype.is_complex:
        raise InvalidInput(f"Node numbers must be integers (k,), got {tuple(index.shape)} of {index.dtype}.")
    if len(index) == nodes > 2 and bool(((index == 0) | (index == 1)).all()):
        raise InvalidInput(f"These {nodes} zeros and ones are a mask as numbers: give mask.bool().")
    bad = index[(index < 0) | (index >= nodes)].tolist()
    if bad:
        raise InvalidInput(f"Nodes {first(bad)} are outside the graph, which has nodes 0..{nodes - 1}.")
    return index.long()
