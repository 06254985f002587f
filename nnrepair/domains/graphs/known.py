"""What is known of tensors that many objects share: graphs are checked once and converted once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass
class _Known:
    """What is known of one shared tensor: for what it was checked, and its copies in other dtypes and on devices."""

    version: tuple[float, ...]
    checked: set[int] = field(default_factory=set)
    copies: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict)


# Graphs are large and shared by many Nodes: each is checked once and converted once, and forgotten with its tensor.
_KNOWN: Any = WeakTensorKeyDictionary()
#: Entries of a tensor that are looked at to see whether it was changed behind PyTorch's back.
_LOOKED_AT = 4_000_000


def known(tensor: Tensor) -> _Known:
    """Return what is known of a tensor, which is nothing new once it has changed."""
    version = _version(tensor)
    if version is None:
        return _Known(())
    found: _Known | None = _KNOWN.get(tensor)
    if found is None or found.version != version:
        found = _KNOWN[tensor] = _Known(version)
    return found


@torch.no_grad()
def _version(tensor: Tensor) -> tuple[float, ...] | None:
    """Return what changes with the tensor's contents, or None where nothing does (tensors made in inference mode).

    PyTorch counts changes in place, but not those through `.data` or a numpy array that shares the memory. These show
    in sums, except where they cancel in all of them: two entries exchanged within a node's features, or a change of
    some 1e-16 of the sum of all. Of tensors larger than _LOOKED_AT only evenly spaced entries are summed.
    """
    if tensor.is_inference():
        return None
    if tensor.layout == torch.strided:
        values = tensor.detach()
    else:
        values = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
    if values.numel() > _LOOKED_AT:
        values = values.reshape(-1)[:: -(-values.numel() // _LOOKED_AT)]
    if values.ndim > 1 and values.numel():
        flat = values.flatten(1)
        rows = flat.sum(int(len(flat) >= flat.shape[1]), dtype=torch.float64)  # one sum per node, or per edge
    else:
        rows = values.reshape(-1).double()
    place = torch.arange(len(rows), dtype=torch.float64, device=rows.device)
    sums = torch.stack([rows.sum(), (rows * place).sum(), values.abs().sum(dtype=torch.float64)])
    return (float(tensor._version), *sums.tolist())


def converted(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor on `like`'s device, in its dtype if it is floating: itself, or one copy for all who ask."""
    dtype = like.dtype if tensor.dtype.is_floating_point else tensor.dtype
    if (tensor.dtype, tensor.device) == (dtype, like.device):
        return tensor
    copies = known(tensor).copies
    if (dtype, like.device) not in copies:
        with torch.inference_mode(False):  # the copy may be differentiated later
            copies[dtype, like.device] = tensor.to(like.device, dtype)
    return copies[dtype, like.device]
