"""Networks that differ in some numbers, bit by bit."""

from __future__ import annotations

import copy

import torch
from torch import nn


def changed(model: nn.Module, *names: str) -> nn.Module:
    """Return a copy with other numbers in the named tensors."""
    state = {n: t.clone() for n, t in model.state_dict().items()}
    for name in names:
        state[name].flatten()[0] += 1
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    return twin


def bits(model: nn.Module) -> dict[str, bytes]:
    raw = {n: t.contiguous().flatten().view(torch.uint8) for n, t in model.state_dict().items()}
    return {n: t.numpy().tobytes() for n, t in raw.items()}
