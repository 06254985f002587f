"""What the modules of a loaded model are called: after the file's weights and nodes, as far as torch allows."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn

from nnrepair.onnx.modules import OnnxGraph
from nnrepair.onnx.node import Node

# Most levels of submodules: Python walks through them recursively.
DEPTH = 30
_EMPTY = OnnxGraph((), "", "", ())


class Names:
    """Paths of modules that are taken."""

    def __init__(self) -> None:
        self.modules = set[str]()
        self.taken = set[str]()  # paths that modules have, or that lead to them
        self.numbers = Counter[str]()  # how often a path was wanted again

    def add(self, name: str) -> None:
        """Take a path."""
        self.modules.add(name)
        self.taken.update(_paths(name))

    def free(self, wanted: str) -> str:
        """Return the wanted name; a number follows where it is taken, and no other module holds it."""
        *outer, _ = _paths(wanted)
        wanted = name = wanted.replace(".", "_") if any(part in self.modules for part in outer) else wanted
        while name in self.taken:
            self.numbers[wanted] += 1
            name = f"{wanted}_{self.numbers[wanted] + 1}"
        return name


def _paths(name: str) -> Iterator[str]:
    """Give 'a', 'a.b' and 'a.b.c' for 'a.b.c'."""
    return itertools.accumulate(name.split("."), "{}.{}".format)


def attach(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at its path in a model."""
    *parents, last = path.split(".")
    for parent in parents:
        if parent not in model._modules:
            model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
    model.add_module(last, module)


def clean(name: str) -> str:
    """Make one part of a module path: a word that is no attribute of a module."""
    word = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
    return f"{word}_" if hasattr(_EMPTY, word) else word


def _path(parts: Sequence[str]) -> str:
    return ".".join(clean(part) for part in parts[-DEPTH:])


def layer_of(weight: str) -> str:
    """Return the module path that a weight's name tells: 'block.fc1.weight' -> 'block.fc1', otherwise ''."""
    path, _, last = weight.rpartition(".")
    return _path(path.split(".")) if path and last == "weight" else ""


def readable(node: Node) -> str:
    """Make a module path of a node's name: '/block/fc1/Gemm' -> 'block.fc1', 'Operation_1_MatMul' -> 'Operation_1'."""
    short = re.sub(rf"[/_.]{re.escape(node.op)}(_\d+)?$", "", node.name)
    return _path([part for part in short.split("/") if part]) or clean(node.op.lower())
