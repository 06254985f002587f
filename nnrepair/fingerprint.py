"""What tells one network, or one state, from all others: a hash of its names, dtypes, shapes and bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import PatchError


def fingerprint(model: nn.Module) -> str:
    """Return the sha256 of a model's state: names, dtypes, shapes and bytes of all parameters and buffers.

    What modules keep beside these (`get_extra_state`, packed weights of quantised layers) counts where it consists of
    tensors and plain values; objects of other kinds do not.

    Raises:
        PatchError: a tensor has no numbers (the meta device, lazy modules) or cannot be read.
    """
    return digest_of_state(model.state_dict())


def digest_of_state(state: Mapping[str, Any]) -> str:
    """Return the sha256 of a state dictionary, see `fingerprint`; lists and dictionaries in it count too."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        for place, part in _parts(name, value):
            digest.update(_bytes(place, part) if isinstance(part, Tensor) else f"{place} {part!r}\n".encode())
    return digest.hexdigest()


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the tensors and plain values in one entry of a state, each with its place."""
    if isinstance(value, Tensor) and value.layout is not torch.strided:
        inner = value.detach()
        if value.layout is torch.sparse_coo:
            inner = inner.coalesce()
            yield from _parts(name, (tuple(value.shape), inner.indices(), inner.values()))
        else:
            rows = value.layout in (torch.sparse_csr, torch.sparse_bsr)
            index = (inner.crow_indices(), inner.col_indices()) if rows else (inner.ccol_indices(), inner.row_indices())
            yield from _parts(name, (tuple(value.shape), *index, inner.values()))
    elif isinstance(value, Tensor | bool | int | float | str | torch.dtype) or value is None:
        yield name, value
    elif isinstance(value, tuple | list):
        for k, part in enumerate(value):
            yield from _parts(f"{name}[{k}]", part)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield from _parts(f"{name}[{key!r}]", value[key])


def _bytes(name: str, tensor: Tensor) -> bytes:
    """Return all that tells a tensor from others: its numbers bit by bit, -0.0 from 0.0, and one NaN from another."""
    if tensor.is_meta:
        raise PatchError(f"{name} is on the meta device and has no numbers. Load the model's weights first.")
    try:
        head, scale = f"{name} {tensor.dtype} {tuple(tensor.shape)}\n", ""
        if tensor.is_quantized and tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            scale = f"{tensor.q_scale()} {tensor.q_zero_point()}"
        elif tensor.is_quantized:
            scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
            scale = f"{tensor.q_per_channel_axis()} {scales.tolist()} {zeros.tolist()}"
        return head.encode() + raw_bytes(tensor).numpy().tobytes() + scale.encode()
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise PatchError(
            f"{name} ({type(tensor).__name__}) cannot be read, so this model has no fingerprint: {reason}"
        ) from error


def raw_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor's numbers, in order."""
    tensor = tensor.detach().cpu()
    tensor = tensor.int_repr() if tensor.is_quantized else tensor
    return tensor.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)


def same(name: str, old: Tensor, new: Tensor) -> bool:
    """Tell whether two tensors of one kind are the same, bit for bit."""
    if old.layout is torch.strided and not old.is_quantized and not old.is_meta:
        return torch.equal(raw_bytes(old), raw_bytes(new))
    return digest_of_state({name: old}) == digest_of_state({name: new})
