"""Which part of what a network returns are its scores, where it returns more than one tensor."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel, first_line, near_matches
from nnrepair.spec.inputs import AnyInputs, independent, to_like
from nnrepair.spec.network import unwrapped
from nnrepair.spec.regions import Regions

#: The name of a part, its place, or a function of all that the network returns.
Output = str | int | Callable[[Any], Tensor]
#: What models call their scores; such a part is taken whatever else there is.
LOGITS = "logits"
#: Points on which a network is tried.
FEW = 3


class Scores(nn.Module):
    """A network, of whose outputs one part counts: the same layers, parameters and names, and one tensor returned.

    `fix(model, ..., output=...)` makes one of itself; give one where there is no `output`, as to `nnrepair.verify`.

    >>> class Two(nn.Linear):
    ...     def forward(self, x):
    ...         return {"scores": super().forward(x), "half": x / 2}
    >>> Scores(Two(2, 3), "scores")(torch.zeros(4, 2)).shape
    torch.Size([4, 3])

    Args:
        model: any module. It is shared, not copied: what changes here changes there.
        output: the name of a part, its place in a tuple, or a function of what the model returns.

    Raises:
        InvalidInput: a model or an output of another kind; once it runs, one that the model does not return.
    """

    def __init__(self, model: nn.Module, output: Output) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidInput(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        if isinstance(output, bool) or not (isinstance(output, str | int) or callable(output)):
            raise InvalidInput(
                "output must be the name of what the model returns, its place in a tuple, or a function of all that "
                f"it returns; got {output!r}."
            )
        super().__init__()
        model = unwrapped(model)
        shared = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
        vars(self).update({name: vars(model)[name] for name in shared})
        vars(self)["model"], vars(self)["output"] = model, output  # not registered: names stay the model's own

        object.__setattr__(self, "__class__", _with_arguments_of(type(model)))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(vars(self)["model"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["model"], name, value)
        if name == "training":
            vars(self)[name] = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Scores:
        return Scores(copy.deepcopy(vars(self)["model"], memo), vars(self)["output"])

    def __reduce__(self) -> Any:
        return Scores, (vars(self)["model"], vars(self)["output"])

    def of(self, model: nn.Module) -> Scores:
        """Return the same part of another network."""
        return Scores(model, vars(self)["output"])

    def train(self, mode: bool = True) -> Scores:
        """Set the model's mode."""
        vars(self)["training"] = vars(self)["model"].train(mode).training
        return self

    def state_dict(self, *args: Any, **keywords: Any) -> Any:
        """Return the model's state."""
        return vars(self)["model"].state_dict(*args, **keywords)

    def extra_repr(self) -> str:
        return f"output={vars(self)['output']!r}"


_KINDS: weakref.WeakKeyDictionary[type, type[Scores]] = weakref.WeakKeyDictionary()


def _with_arguments_of(kind: type[nn.Module]) -> type[Scores]:
    """Return the class for a network's class: its forward names the same arguments, which tracing asks for."""
    if kind not in _KINDS:

        @functools.wraps(kind.forward)
        def forward(self: Scores, *args: Any, **keywords: Any) -> Any:
            model = vars(self)["model"]
            hooked = model._forward_hooks or model._forward_pre_hooks
            return part((model if hooked else model.forward)(*args, **keywords), vars(self)["output"])

        _KINDS[kind] = type("Scores", (Scores,), {"forward": forward, "__module__": __name__})
    return _KINDS[kind]


def bare(model: nn.Module) -> nn.Module:
    """Return the network whose part was taken; any other as it is."""
    inner: nn.Module = vars(model)["model"] if isinstance(model, Scores) else model
    return inner


def output_of(model: nn.Module) -> Output | None:
    """Return which part of a network's outputs was taken; None where it is all of them."""
    return vars(model)["output"] if isinstance(model, Scores) else None


def part(y: Any, output: Output) -> Any:
    """Return a part of what a network returns.

    Raises:
        InvalidInput: there is none of this name or in this place; those that there are are named.
    """
    if not isinstance(output, str | int):
        try:
            return output(y)
        except Exception as error:  # a user's function may raise anything
            raise InvalidInput(
                f"output: your function of what the model returns, {type(y).__name__}, raised {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
    there = parts(y)
    if isinstance(output, int) and isinstance(y, tuple | list) and -len(y) <= output < len(y):
        return y[output]
    if output in there:
        return there[output]
    if isinstance(y, Tensor):
        raise InvalidInput(f"output={output!r}: the model returns a tensor and nothing else; leave output out.")
    if there or isinstance(y, tuple | list | Mapping):
        names = [name for name in there if isinstance(name, str)]
        hint = near_matches(output, names) if isinstance(output, str) else ""
        raise InvalidInput(f"output={output!r}: the model returns no such part.{hint} {_listed(y, there)}")
    found = getattr(y, output, None) if isinstance(output, str) else y[output]  # a stand-in, while a graph is traced
    if found is None:
        raise InvalidInput(f"output={output!r}: what the model returns, {type(y).__name__}, has no such part.")
    return found


def parts(y: Any) -> dict[Any, Any]:
    """Return the parts of what a network returns, by name or by place; None is no part."""
    if isinstance(y, Mapping):
        found = dict(y)
    elif isinstance(y, tuple) and hasattr(y, "_fields"):
        found = dict(zip(y._fields, y, strict=True))
    elif isinstance(y, tuple | list):
        found = dict(enumerate(y))
    else:
        found = {} if isinstance(y, Tensor | torch.fx.Proxy) else dict(getattr(y, "__dict__", {}))
    return {name: value for name, value in found.items() if value is not None}


@torch.no_grad()
def scored(model: nn.Module, inputs: AnyInputs, output: Output | None = None) -> nn.Module:
    """Return a network that returns its scores alone: itself where it does.

    Args:
        model: in eval mode.
        inputs: points that it is about to run on.
        output: which part they are; None looks at what it returns.

    Raises:
        UnsupportedModel: several parts could be the scores, or none; they are named.
    """
    if output is not None:
        return Scores(model, output)
    try:
        y = _returned(model, inputs, FEW)
        if isinstance(y, Tensor):
            return model
        names = _candidates(y, inputs, FEW)
        if len(names) > 1 and len(inputs) > 1:  # what has as many rows by chance has others for fewer points
            names = [name for name in _candidates(_returned(model, inputs, 1), inputs, 1) if name in names]
    except Exception:  # a user's forward may raise anything; where points are checked, that is told
        return model
    if len(names) != 1:
        raise UnsupportedModel(
            f"The model returns {type(y).__name__}, in which "
            f"{'several parts could be' if names else 'no part is surely'} the scores. {_listed(y, parts(y))} Say "
            "which: output=NAME or PLACE, or a function that makes one tensor (points, ...) of what the model returns."
        )
    return Scores(model, names[0])


def _returned(model: nn.Module, inputs: AnyInputs, points: int) -> Any:
    if isinstance(inputs, Regions):
        inputs = inputs.corners[0]
    some = inputs[torch.arange(min(points, len(inputs)))]
    like = next((p for p in model.parameters() if p.dtype.is_floating_point), None)
    some = some.clone() if isinstance(some, Tensor) else some.copied()
    some = some if like is None else to_like(some, like)
    return model(some) if isinstance(some, Tensor) else some.call(model)


def _candidates(y: Any, inputs: AnyInputs, points: int) -> list[Any]:
    """Return the names of what could be the scores: "logits", else every tensor of numbers with a row per point."""
    rows = min(points, len(inputs)) if independent(inputs) else None
    found = [
        name
        for name, value in parts(y).items()
        if isinstance(value, Tensor)
        and value.dtype.is_floating_point
        and value.ndim > 0
        and (rows is None or len(value) == rows)
    ]
    return [LOGITS] if LOGITS in found else found


def _listed(y: Any, there: dict[Any, Any]) -> str:
    """Say which parts there are."""
    said = [
        f"{name!r} ({'x'.join(map(str, value.shape)) or 'one number'}, {str(value.dtype).removeprefix('torch.')})"
        if isinstance(value, Tensor)
        else f"{name!r} ({type(value).__name__})"
        for name, value in there.items()
    ]
    return f"There are: {', '.join(said)}." if said else f"{type(y).__name__} has no parts."
