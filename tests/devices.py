"""The device that tests of GPUs run on: a GPU where there is one, or what NNREPAIR_DEVICE names.

`NNREPAIR_DEVICE=elsewhere` is a device made of the CPU's memory which torch takes for another, see
benchmarks/device/elsewhere.py: what mixes tensors of two devices fails there as it would on a GPU.
"""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor, nn


@cache
def tested() -> torch.device | None:
    """Return the device to test, None where there is none."""
    name = os.environ.get("NNREPAIR_DEVICE") or ("cuda" if torch.cuda.is_available() else "")
    if name == "elsewhere":
        from benchmarks.device import elsewhere

        elsewhere.load()
    return torch.device(name, None if name == "cpu" else 0) if name else None


def there() -> torch.device:
    """Return the device to test; where there is none, tests that ask are skipped before."""
    device = tested()
    assert device is not None
    return device


def devices_of(model: nn.Module) -> set[torch.device]:
    return {t.device for t in [*model.parameters(), *model.buffers()]}


def on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in model.state_dict().items()}
