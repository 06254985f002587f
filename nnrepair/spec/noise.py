"""How much of a model's outputs is rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from nnrepair.spec.network import copied

M = TypeVar("M", bound=nn.Module)
#: Weights are moved by so many units in their last place, so often.
UNITS, DRAWS = 64, 4


@torch.no_grad()
def noise(model: M, run: Callable[[M], Tensor]) -> Tensor:
    """Return how far each output moves, at most, where every weight moves by some units in its last place.

    A rounded sum of products is the sum of slightly other products (Higham 2002, chapter 3), so that another order of
    sums does to outputs about what this does: next to nothing, unless digits cancel. It is measured, and no bound. Of
    outputs that overflow meanwhile it is not known, and 0 is returned: nothing is put down to rounding there.

    Args:
        model: left as it is.
        run: returns the outputs of the model, or of a copy with other weights.
    """
    y, twin, source = run(model), copied(model), torch.Generator().manual_seed(0)
    weights = [t for t in (*twin.parameters(), *twin.buffers()) if t.is_floating_point() and t.layout == torch.strided]
    stored, far = [t.detach().clone() for t in weights], torch.zeros_like(y)
    for _ in range(DRAWS):
        for weight, value in zip(weights, stored, strict=True):
            sign = 2 * torch.randint(0, 2, value.shape, generator=source).to(value) - 1
            weight.copy_(value * (1 + sign * UNITS * torch.finfo(value.dtype).eps))
        far = torch.maximum(far, (run(twin) - y).abs())
    return torch.where(torch.isfinite(far), far, 0.0)
