"""Activations, one file each.

What each is, and which layers and functions it reads.

A file has two tables, either of which may be left out: `LAYERS`, from classes of torch to functions of (builder, layer,
value), and `FUNCTIONS`, from functions, or ".name" for methods of tensors, to functions of (builder, value, ...). They
are found by being here. What is piecewise linear is made of ReLUs, exactly; what is not is an `Activation` of its own.
See docs/add-an-activation.md.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from torch import nn

#: What turns a layer, or a function, into nodes of a graph; the first argument is the `Builder`.
Layers = dict[type[nn.Module], Callable[..., Any]]
Functions = dict[Any, Callable[..., Any]]


def known() -> tuple[Layers, Functions]:
    """Return the tables of all files here."""
    layers, functions = Layers(), Functions()
    for each in pkgutil.iter_modules(__path__, f"{__name__}."):
        module = importlib.import_module(each.name)
        layers |= getattr(module, "LAYERS", {})
        functions |= getattr(module, "FUNCTIONS", {})
    return layers, functions
