"""A model in float64 whose uses of chosen parameters are recorded while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnrepair.errors import UnsupportedModel
from nnrepair.jacobian.tangents import InFloat64
from nnrepair.solver.rows import Array
from nnrepair.spec.inputs import AnyInputs, independent, to_like
from nnrepair.spec.network import copied
from nnrepair.spec.running import call

_LINEAR = {F.linear, torch.ops.aten.linear.default}
_CONV2D = {F.conv2d, torch.ops.aten.conv2d.default}
#: Maps with a weight (inp, out) on all positions of all points in one list of rows, as GPT-2 has them.
_ADDMM = {torch.addmm, torch.ops.aten.addmm.default}


@dataclass
class Use:
    """One use of a chosen weight: its input by position (points, P, inp), and its output.

    Attributes:
        inputs, output: see there.
        returned: what the model went on with.
        is_image: whether positions are the output's last two axes.
        transposed: whether the weight is (inp, out).
    """

    inputs: Callable[[], Tensor]
    output: Tensor
    returned: Tensor
    is_image: bool
    transposed: bool = False

    def is_returned(self, y: Tensor) -> bool:
        """Whether y is what the map returned, perhaps as (points, ..., out) where it works on one list of rows."""
        same = y.shape[-1:] == self.output.shape[-1:] and len(y) == len(self.output)
        reshaped = self.transposed and same and y._base is self.returned and y.numel() == self.returned.numel()
        return y is self.returned or (reshaped and y.is_contiguous() and self.returned.is_contiguous())

    def by_position(self, delta: Tensor | None, rows: int) -> Tensor:
        """Return gradients at the output as (rows, P, out); None where there is no effect."""
        if delta is None:
            delta = self.output.new_zeros(()).expand(rows, *self.output.shape[1:])
        return delta.flatten(2).transpose(1, 2) if self.is_image else delta.reshape(rows, -1, delta.shape[-1])


class _Enough(BaseException):
    """All uses of the chosen weights were seen; no error, and no business of whoever catches errors."""


class Tap(TorchFunctionMode):
    """Record every use of the chosen weights while the model runs.

    Args:
        weights: the name of each, by its id.
        enough: after so many uses in all `_Enough` is raised; 0 for never.
        points: how many there are, where they do not influence each other; 0 otherwise.
    """

    def __init__(self, weights: dict[int, str], enough: int = 0, points: int = 0) -> None:
        super().__init__()
        self.weights, self._left, self._points = weights, enough, points
        self.uses: dict[str, list[Use]] = {name: [] for name in weights.values()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        if func in _ADDMM:
            return self._of_rows(y, args, kwargs)
        if func not in _LINEAR and func not in _CONV2D:
            return y
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        name = self.weights.get(id(weight)) or self.weights.get(id(bias))
        if name is None or weight is None or not y.requires_grad:
            return y
        x = kwargs.get("input", args[0] if args else None)
        if func in _LINEAR:
            inputs = lambda: x.detach()  # noqa: E731
        else:
            options = dict(zip(("bias", "stride", "padding", "dilation", "groups"), args[2:], strict=False)) | kwargs
            if options.get("groups", 1) != 1 or isinstance(options.get("padding"), str):
                return y
            inputs = lambda: _patches(x.detach(), weight, options)  # noqa: E731
        returned = y.clone()  # an in-place activation after the map must not overwrite what was recorded
        return self._noted(name, Use(inputs, y, returned, func in _CONV2D))

    def _of_rows(self, y: Tensor, args: Any, kwargs: Any) -> Tensor:
        """Record addmm(bias, rows, weight), a map of rows (points * positions, inp), where the rows can be told apart.

        That rows are in the order of their points is not known, but seen when factors are checked.
        """
        if kwargs or len(args) != 3 or not y.requires_grad or not self._points or len(y) % self._points:
            return y
        name = self.weights.get(id(args[2])) or self.weights.get(id(args[0]))
        if name is None:
            return y
        rows, out = args[1], y.reshape(self._points, -1, y.shape[1])
        inputs = lambda: rows.detach().reshape(*out.shape[:2], -1)  # noqa: E731
        return self._noted(name, Use(inputs, out, out.reshape(y.shape).clone(), False, transposed=True))

    def _noted(self, name: str, use: Use) -> Tensor:
        """Record a use and return what the model goes on with."""
        self.uses[name].append(use)
        self._left -= 1
        if self._left == 0:
            raise _Enough
        return use.returned


def _patches(x: Tensor, weight: Tensor, options: dict[str, Any]) -> Tensor:
    unfolded = F.unfold(
        x,
        weight.shape[2:],
        dilation=options.get("dilation", 1),
        padding=options.get("padding", 0),
        stride=options.get("stride", 1),
    )
    return unfolded.transpose(1, 2)


class TappedModel:
    """A float64 copy of a model, whose chosen parameters can move and alone have gradients.

    Of a model that does not run in float64 it is one in the model's own dtype.

    Args:
        model, names: left alone; and parameters of it.

    Attributes:
        model, names, parameters: the copy, and what was chosen of it.
        start: the chosen parameters at the beginning.
        like: a tensor of the copy's dtype and device.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.names, self._given = list(names), model
        self._take(copied(model).double())
        self._casts, self._uses = False, 0

    def _take(self, model: nn.Module) -> None:
        """Let chosen parameters of a copy move."""
        self.model = model
        known = dict(self.model.named_parameters(remove_duplicate=False))
        self.parameters = {n: known[n] for n in self.names}
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.start = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.like = next(iter(self.parameters.values())).detach()

    def prepare(self, inputs: AnyInputs) -> AnyInputs:
        """Return the inputs in float64 on the model's device."""
        return to_like(inputs, self.like)

    def move(self, change: Mapping[str, Tensor]) -> None:
        """Set the chosen parameters to their start plus a change."""
        with torch.no_grad():
            for name, part in change.items():
                self.parameters[name].copy_(self.start[name] + part)

    @property
    def fine(self) -> bool:
        """Whether it is in float64."""
        return self.like.dtype == torch.float64

    @property
    def rounding(self) -> float:
        """What two ways to compute one gradient may differ by, relative to it."""
        return 1e-8 if self.fine else 1e-4

    def run(self, inputs: AnyInputs) -> tuple[Tensor, Tap]:
        """Return the outputs of prepared inputs, with their history, and the uses of the chosen parameters."""
        weights = {id(p): n for n, p in self.parameters.items()}
        with torch.enable_grad(), self.in_float64(), Tap(weights, points=_alone(inputs)) as tap:
            y = call(self.model, inputs)
        return y, tap

    def used(self, inputs: AnyInputs) -> Tap:
        """Return the uses of the chosen parameters on prepared inputs alone.

        What follows the last one does not run, where operations are known not to depend on inputs.
        """
        tap = Tap({id(p): n for n, p in self.parameters.items()}, self._uses, _alone(inputs))
        with torch.enable_grad(), self.in_float64(), suppress(_Enough), tap:
            call(self.model, inputs)
        return tap

    def in_float64(self) -> AbstractContextManager[object]:
        """Run a model that casts to smaller dtypes in float64 all the same."""
        return InFloat64() if self._casts else nullcontext()

    def first_run(self, inputs: AnyInputs) -> tuple[Tensor, Tap]:
        """Run the model, and learn whether it casts."""
        y, tap = self._first_run(inputs)
        fixed = isinstance(self.model, torch.fx.GraphModule)  # others may use them more often on other inputs
        self._uses = sum(map(len, tap.uses.values())) if fixed else 0
        return y, tap

    def _first_run(self, inputs: AnyInputs) -> tuple[Tensor, Tap]:
        try:
            y, tap = self.run(inputs)
            if y.dtype == torch.float64:
                return y, tap
        except UnsupportedModel:
            pass  # what it says is said below, where casts were not all that failed
        self._casts = True
        try:
            return self.run(inputs)
        except UnsupportedModel as error:
            if torch.finfo(next(self._given.parameters()).dtype).bits == 32:
                with suppress(UnsupportedModel):
                    self._casts = False
                    self._take(copied(self._given))
                    return self.run(self.prepare(inputs))
            raise UnsupportedModel(
                f"The model cannot run in float64, in which this method computes: {error} Remove casts such as "
                'x.float() from its forward, or use method="ft", which works in the model\'s own dtype.'
            ) from error


def _alone(inputs: AnyInputs) -> int:
    """Return the number of points, 0 where they influence each other."""
    return len(inputs) if independent(inputs) else 0


def numpy(x: Tensor) -> Array:
    """Return a tensor as a float64 array."""
    return x.detach().to("cpu", torch.float64).numpy()
