"""The exporter of torch, which parses all of its operators' sources at every call, and here at the first one alone."""

from __future__ import annotations

import copy
import functools
import sys
from typing import Any

import torch


@functools.cache
def read_operators_once() -> None:
    """Let all further calls in this process take what the first one read: more than half of a small export's time."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = ONNXRegistry.from_torchlib.__func__
    except (ImportError, AttributeError):  # another torch keeps it elsewhere, and the tests take longer
        return

    @functools.cache
    def registry(packages: frozenset[str], *args: Any, **options: Any) -> Any:
        return read(ONNXRegistry, *args, **options)

    def own(cls: type, *args: Any, **options: Any) -> Any:
        with_operators = frozenset({"torchvision", "torch_geometric"} & sys.modules.keys())
        mine = copy.copy(registry(with_operators, *args, **options))
        mine.functions = {target: list(found) for target, found in mine.functions.items()}
        return mine

    ONNXRegistry.from_torchlib = classmethod(own)


def install() -> None:
    """Have the first export in this process do that; nothing is imported before."""
    export = torch.onnx.export

    @functools.wraps(export)
    def exported(*args: Any, **options: Any) -> Any:
        read_operators_once()
        return export(*args, **options)

    torch.onnx.export = exported
