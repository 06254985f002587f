"""A device that torch takes for another than the CPU, made of the CPU's memory: for finding where devices mix.

Built from elsewhere.cpp when it is first loaded, which takes a C++ compiler, ninja and a minute or more.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

NAME = "elsewhere"


def load() -> torch.device:
    """Make the device `elsewhere` known to torch."""
    from torch.utils.backend_registration import _DummyPrivateUse1Hook
    from torch.utils.cpp_extension import load as build

    if torch._C._get_privateuse1_backend_name() != NAME:
        torch.utils.rename_privateuse1_backend(NAME)
        torch._register_device_module(NAME, _module())
        torch.utils.generate_methods_for_privateuse1_backend()
        torch._C._acc.register_python_privateuseone_hook(_DummyPrivateUse1Hook())
        folder = Path(os.environ.get("NNREPAIR_BUILD") or Path(tempfile.gettempdir()) / NAME)
        folder.mkdir(parents=True, exist_ok=True)
        source = Path(__file__).with_suffix(".cpp")
        build(f"{NAME}_device", [str(source)], extra_cflags=["-O0", "-w"], build_directory=str(folder))
    return torch.device(NAME, 0)


def _module() -> ModuleType:
    """Return what torch asks about a device; it has no random numbers of its own."""
    found: Any = ModuleType(f"torch.{NAME}")
    found.is_available = lambda: True
    found.is_initialized = lambda: True
    found.device_count = lambda: 1
    found.current_device = lambda: 0
    found._is_in_bad_fork = lambda: False
    found.manual_seed_all = lambda seed: None
    found.get_rng_state = _no_state
    found.set_rng_state = lambda state, device=0: None
    found.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    return found


def _no_state(device: Any = 0) -> Tensor:
    return torch.zeros(0, dtype=torch.uint8)
