"""A network as a module, wrapped or not. Kinds that no method can change are refused by name."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.errors import InvalidInput, UnsupportedModel, first_line

M = TypeVar("M", bound=nn.Module)
#: Floating dtypes that parameters may have.
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def refuse_kinds(model: nn.Module) -> None:
    """Refuse models with parts that no method can change or run; all such parts are named.

    Raises:
        UnsupportedModel: TorchScript, quantised layers, or parameters that are sparse or of eight bits.
        InvalidInput: parameters without numbers.
    """
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    tensors = parameters | dict(model.named_buffers())
    unsupported = {
        "The model is compiled to TorchScript, whose layers can be neither read nor repaired. Give the Python module "
        "that was scripted or traced, and script or trace what comes of it (result.model)": [
            n for n, m in modules.items() if isinstance(m, torch.jit.ScriptModule)
        ],
        "The model has quantised layers, whose weights are integers. Give the model as it was before it was prepared "
        "for that, and quantise what comes of it (result.model)": [n for n, m in modules.items() if _is_quantised(m)],
        "The model has sparse parameters. Make them dense: parameter.to_dense()": [
            n for n, p in parameters.items() if p.layout != torch.strided
        ],
        "The model has floating-point parameters of eight bits or fewer. Cast it to torch.bfloat16 or more": [
            n for n, p in parameters.items() if p.dtype.is_floating_point and p.dtype not in DTYPES
        ],
    }
    without_numbers = {
        "The model has lazy layers without weights. Run it once on some inputs first: model(inputs)": [
            n for n, t in tensors.items() if is_lazy(t)
        ],
        'The model is on the "meta" device and has no weights. Load them first (model.to_empty, ...)': [
            n for n, t in tensors.items() if t.is_meta
        ],
    }
    for kind, table in ((UnsupportedModel, unsupported), (InvalidInput, without_numbers)):
        for said, names in table.items():
            if names:
                shown = ", ".join(name or "the model itself" for name in names[:5])
                raise kind(f"{said}. Found in: {shown}{', ...' if len(names) > 5 else ''}.")


def _is_quantised(module: nn.Module) -> bool:
    """Whether a layer computes with integers, or imitates it while it is trained to."""
    home = type(module).__module__
    return home.startswith("torch.") and ("quantized" in home or "fake_quantize" in home)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network that torch.compile or a data-parallel wrapper runs; any other module as it is.

    >>> layer = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(layer)) is layer
    True
    """
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif is_compiled(model):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether a module is what torch.compile returned."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)


def stated_shape(model: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of one input that a model states, `item_shape`; None where it states none or leaves a size open.

    >>> stated_shape(nn.Linear(2, 2)) is None
    True
    """
    stated = getattr(model, "item_shape", None)
    return None if stated is None or None in stated else tuple(stated)


def shape_of_one(model: nn.Module, inputs: Tensor) -> tuple[int, ...]:
    """Return the shape of one of the inputs (n, ...) as the model takes it: as it states it, where the sizes agree."""
    stated = stated_shape(model)
    return stated if stated is not None and math.prod(stated) == inputs[:1].numel() else tuple(inputs.shape[1:])


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run parts that torch.compile wrapped as they were before: every change of a weight would be compiled anew."""
    if "torch._dynamo" not in sys.modules:  # where nothing was compiled, it need not be imported
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def plain(name: str) -> str:
    """Return the name of a layer or parameter as it is without torch.compile.

    >>> plain("body._orig_mod.0.weight")
    'body.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def copied(model: M, deadline: Deadline = NEVER) -> M:
    """Return a deep copy that shares nothing with the model.

    Tensors that modules keep from a forward pass (masked or normalised weights, activations) are copied as plain
    numbers: what computes them does so again.

    Raises:
        InvalidInput: some attribute cannot be copied, or the copy shares weights with the model.
        OutOfTime: it is too late.
    """
    try:
        known = {id(t): t.detach().clone() for t in _computed(model)}
        twin = copy.deepcopy(model, _Watched(known, deadline))
    except OutOfTime:
        raise
    except Exception as error:  # __deepcopy__ and __reduce__ of a user's objects may raise anything
        where = _uncopied(model)
        raise InvalidInput(
            f"The model cannot be copied{where}: {first_line(error).rstrip('.')}. Take that object out of the module, "
            "or give the module a __deepcopy__ that shares it and copies the rest."
        ) from error
    if not isinstance(twin, nn.Module) or _storages(twin) & _storages(model):
        raise InvalidInput(
            f"A copy of the model shares its weights (see __deepcopy__ of {type(model).__name__}), so a repair would "
            "change yours. Let __deepcopy__ copy the parameters."
        )
    return twin


class _Watched(dict[int, Any]):
    """What was copied already. `deepcopy` asks it about every object; each time the deadline is checked."""

    def __init__(self, known: dict[int, Any], deadline: Deadline) -> None:
        super().__init__(known)
        self.deadline = deadline

    def get(self, key: int, default: Any = None) -> Any:
        self.deadline.check()
        return super().get(key, default)


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors with a history that modules keep as attributes, or in lists and dictionaries there."""
    left: list[Any] = [vars(module) for module in model.modules()]
    seen: set[int] = set()
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value
        elif isinstance(value, nn.Module):  # one that is no submodule
            left.append(vars(value))


def _uncopied(model: nn.Module) -> str:
    """Say which attribute of which module cannot be copied."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, {id(m): m for m in model.modules()} | {id(t): t for t in _computed(model)})
            except Exception:
                return f": attribute {path + '.' if path else ''}{name} ({type(value).__name__})"
    return ""


def _storages(model: nn.Module) -> set[int]:
    """Return where the parameters' numbers lie."""
    return {p.data_ptr() for p in model.parameters() if p.layout == torch.strided and p.numel() and p.data_ptr()}
