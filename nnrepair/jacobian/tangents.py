"""A user's network as methods differentiate it: gradients, first-order changes, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from nnrepair.errors import UnsupportedModel
from nnrepair.spec.inputs import AnyInputs
from nnrepair.spec.running import call_with, named

with warnings.catch_warnings():  # torch's own forward-mode rules warn about torch.jit when they are first loaded
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp


CUT = (
    "the model does not use them, or cuts their gradients off: torch.no_grad(), torch.inference_mode(), detach(), "
    "reentrant checkpointing or integers in its forward"
)


def gradients(
    y: Tensor,
    inputs: Sequence[Tensor],
    seed: Tensor | None = None,
    *,
    create_graph: bool = False,
    again: bool = True,
) -> list[Tensor | None]:
    """Return the gradients of y (times seed) of a user's network, dense; None where y does not depend on an input.

    Args:
        y, inputs, seed, create_graph: as for `torch.autograd.grad`.
        again: whether there will be more gradients of the same run; what it needs for them stays in memory.
    """
    if not y.requires_grad:
        raise UnsupportedModel(f"The outputs carry no gradient with respect to the chosen parameters: {CUT}.")
    with named("The model cannot be differentiated", 'method="egnn" needs no gradients of it.'):
        found = torch.autograd.grad(
            y, list(inputs), seed, retain_graph=again, create_graph=create_graph, allow_unused=True
        )
    return [g.to_dense() if g is not None and g.layout != torch.strided else g for g in found]


def canonical(model: nn.Module) -> dict[str, str]:
    """Return, for every name of every parameter, the first name of the same tensor (tied weights have several)."""
    first: dict[int, str] = {}
    return {n: first.setdefault(id(p), n) for n, p in model.named_parameters(remove_duplicate=False)}


def moved_outputs(model: nn.Module, change: dict[str, Tensor], inputs: AnyInputs, channels: bool = True) -> Tensor:
    """Return f(x) + J(x) Delta for the change Delta of some parameters.

    Args:
        model: f.
        change: Delta, by parameter name.
        inputs: x.
        channels: try plain tensor operations first (exportable); False always uses forward-mode differentiation.
    """
    parameters, first = dict(model.named_parameters()), canonical(model)
    change = {first[n]: delta for n, delta in change.items()}
    if channels and isinstance(inputs, Tensor):
        with plain_attention():
            y = _two_channels(model, {id(parameters[n]): delta for n, delta in change.items()}, inputs)
        if y is not None:
            return y
    # Automatic differentiation knows more operations, but what it does cannot be exported.
    rest = {n: p for n, p in parameters.items() if n not in change} | dict(model.named_buffers())
    start = {n: parameters[n] for n in change}

    def run(chosen: dict[str, Tensor]) -> Tensor:
        return call_with(model, {**rest, **chosen}, inputs)

    try:
        with _forgotten(model):
            return _forward_mode(run, start, change)
    except (UnsupportedModel, NotImplementedError, RuntimeError):  # some operations know reverse mode only
        return _reverse_twice(run, start, change)


def _forward_mode(run: Any, start: Any, change: Any) -> Tensor:
    with plain_attention():
        moved: tuple[Tensor, Tensor] = torch.func.jvp(run, (start,), (change,))  # type: ignore[assignment]
    return moved[0] + moved[1]


@contextmanager
def _forgotten(model: nn.Module) -> Iterator[None]:
    """Take back what modules keep of a pass (masked weights, activations): dual numbers are invalid after it."""
    before = [(vars(m), dict(vars(m))) for m in model.modules()]
    inside = [(v, v.copy()) for _, kept in before for k, v in kept.items() if isinstance(v, dict) and k[0] != "_"]
    try:
        yield
    finally:
        for now, kept in before + inside:
            now.clear()
            now.update(kept)


def _reverse_twice(run: Any, start: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> Tensor:
    """Return the same from reverse mode alone: J^T u is linear in u, and its derivative along Delta is J Delta."""
    with torch.enable_grad(), plain_attention():
        leaves = {n: p.detach().requires_grad_(True) for n, p in start.items()}
        y: Tensor = run(leaves)
        u = torch.zeros_like(y, requires_grad=True)
        try:
            pulled = gradients(y, list(leaves.values()), u, create_graph=True)
            along = sum((g * d).sum() for g, d in zip(pulled, change.values(), strict=True) if g is not None)
            (moved,) = gradients(along, [u]) if isinstance(along, Tensor) and along.requires_grad else (None,)
        except UnsupportedModel as error:
            raise UnsupportedModel(
                f"First-order changes of this model cannot be computed. {error} Use architecture='same'."
            ) from error
    return (y if moved is None else y + moved).detach()


def _two_channels(model: nn.Module, change: dict[int, Tensor], x: Tensor) -> Tensor | None:
    """Run the activation channel as it is, and beside it the change of every value, in plain tensor operations.

    Returns None where an operation has no rule.
    """
    try:
        with _Tangents(change) as tangents:
            y: Tensor = model(x)
    except _NoRuleError:
        return None
    moved: Tensor = y + tangents.of(y)
    return moved


class _NoRuleError(Exception):
    """An operation without a rule in `_RULES` met a value that changes."""


class _Tangents(TorchFunctionMode):
    """Carry each value's change through the operations that produce it."""

    def __init__(self, change: dict[int, Tensor]) -> None:
        super().__init__()
        self._changes = dict(change)
        self._alive: list[Tensor] = []  # an id is only good while its tensor lives

    def of(self, value: Any) -> Any:
        """Return the change of a value; a plain zero where it does not change."""
        return self._changes.get(id(value), 0.0)

    def changes(self, value: Any) -> bool:
        """Whether a value changes."""
        return id(value) in self._changes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        listed = [*args, *kwargs.values()]
        flat = [v for value in listed for v in (value if isinstance(value, (list, tuple)) else (value,))]
        rule = _RULES.get(func)
        if not any(self.changes(v) for v in flat):
            return func(*args, **kwargs)
        if rule is None:
            y = func(*args, **kwargs)
            if isinstance(y, (torch.Size, torch.dtype, torch.device, int, bool, str)):
                return y
            raise _NoRuleError(str(func))
        if rule not in _READS_KEYWORDS and any(k != "inplace" for k in kwargs):
            raise _NoRuleError(f"{func} with {sorted(kwargs)}")
        y, change = rule(self, func, args, kwargs)
        self._changes[id(y)] = change
        self._alive.append(y)
        return y


_Rule = Callable[[_Tangents, Any, Any, Any], tuple[Tensor, Tensor]]


def _homogeneous(t: _Tangents, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    return func(*args, **kwargs), func(t.of(args[0]), *args[1:], **kwargs)


def _affine(t: _Tangents, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """Linear maps and convolutions: linear in the input, and in weight and bias together."""
    y = func(*args, **kwargs)
    names = ("input", "weight", "bias")
    given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
    rest, more = args[3:], {k: v for k, v in kwargs.items() if k not in names}
    change = torch.zeros_like(y)
    if t.changes(given["input"]):
        change = change + func(t.of(given["input"]), given["weight"], None, *rest, **more)
    weight, bias = given["weight"], given.get("bias")
    if t.changes(weight) or t.changes(bias):
        dw = t.of(weight) if t.changes(weight) else torch.zeros_like(weight)
        change = change + func(given["input"], dw, t.of(bias) if t.changes(bias) else None, *rest, **more)
    return y, change


def _sum(sign: float) -> _Rule:
    def rule(t: _Tangents, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        y = func(*args, **kwargs)
        return y, torch.zeros_like(y) + t.of(args[0]) + sign * t.of(args[1])

    return rule


def _product(t: _Tangents, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    a, b = args
    y = func(a, b)
    change = torch.zeros_like(y)
    if t.changes(a):
        change = change + func(t.of(a), b)
    if t.changes(b):
        change = change + func(a, t.of(b))
    return y, change


def _joined(t: _Tangents, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    parts = [t.of(v) if t.changes(v) else torch.zeros_like(v) for v in args[0]]
    return func(*args, **kwargs), func(parts, *args[1:], **kwargs)


def _relu(t: _Tangents, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    change = t.of(args[0]) * (args[0] > 0).to(args[0])
    return func(*args, **kwargs), change  # in place or not, the change belongs to what is returned


def _elementwise(slope: Callable[[Tensor, Tensor], Tensor], compute: Callable[[Tensor], Tensor]) -> _Rule:
    def rule(t: _Tangents, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
        y = compute(args[0])  # never in place: the slope still needs the input
        return y, t.of(args[0]) * slope(args[0], y)

    return rule


def _max_pool(t: _Tangents, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    kwargs = {k: v for k, v in kwargs.items() if k != "return_indices"}
    y, winner = F.max_pool2d_with_indices(*args, **kwargs)
    return y, t.of(args[0]).flatten(2).gather(2, winner.flatten(2)).view_as(y)


def _batch_norm(t: _Tangents, func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, args, strict=False)) | kwargs
    parts = (given.get("weight"), given.get("bias"), given.get("running_mean"))
    if given.get("training") or any(t.changes(p) for p in parts):
        raise _NoRuleError("batch_norm")
    scale = {**given, "input": t.of(given["input"]), "bias": None}
    scale["running_mean"] = torch.zeros_like(given["running_mean"])
    return func(**given), func(**scale)


def _rules() -> dict[Any, _Rule]:
    T = torch.Tensor
    same = (
        torch.flatten, T.flatten, T.view, T.reshape, torch.reshape, T.permute, torch.permute, T.transpose, T.mean,
        torch.transpose, T.contiguous, T.clone, torch.mean, T.sum, torch.sum, T.squeeze, T.unsqueeze, T.__getitem__,
        torch.squeeze, torch.unsqueeze, torch.unflatten, T.unflatten, F.avg_pool2d, F.adaptive_avg_pool2d, T.t, T.to,
        T.double, T.float, T.neg, T.__neg__,
    )  # fmt: skip
    found: dict[Any, _Rule] = dict.fromkeys(same, _homogeneous)
    found |= dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d), _affine)
    found |= dict.fromkeys((torch.add, T.add, T.__add__, T.__radd__), _sum(1.0))
    found |= dict.fromkeys((torch.sub, T.sub, T.__sub__), _sum(-1.0))
    found |= dict.fromkeys((torch.mul, T.mul, T.__mul__, T.__rmul__, torch.matmul, T.matmul, T.__matmul__), _product)
    found |= dict.fromkeys((torch.cat, torch.concat), _joined)
    found |= dict.fromkeys((F.relu, torch.relu, T.relu, torch.relu_, T.relu_), _relu)
    sigmoid = _elementwise(lambda x, y: y * (1 - y), torch.sigmoid)
    found |= dict.fromkeys((torch.sigmoid, T.sigmoid, F.sigmoid), sigmoid)
    tanh = _elementwise(lambda x, y: 1 - y * y, torch.tanh)
    found |= {torch.tanh: tanh, T.tanh: tanh, F.tanh: tanh}
    found |= dict.fromkeys((torch.max_pool2d, F.max_pool2d), _max_pool)
    return found | {F.batch_norm: _batch_norm}


_RULES = _rules()
_READS_KEYWORDS = (_homogeneous, _affine, _max_pool, _batch_norm)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Run attention as plain products: its fused kernels have no forward mode, and no second derivatives."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class InFloat64(TorchFunctionMode):
    """Read every smaller floating dtype as float64 while a float64 copy of a model runs.

    For models that cast (`x.float()` of an image in bytes), or that make float32 constants on the way.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            return args[0].double()
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        keep = 1 if in_place or name in ("__setitem__", "__set__") else 0
        raised = [*args[:keep], *(_raised(a) for a in args[keep:])]
        y = func(*raised, **{k: _raised(v) for k, v in (kwargs or {}).items()})
        return y if in_place else _raised(y)


_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)
_SMALL = (torch.float32, torch.float16, torch.bfloat16)
#: What `Tensor.type` takes.
_SMALL_TYPES = {
    f"torch.{where}{kind}Tensor": f"torch.{where}DoubleTensor"
    for where in ("", "cuda.")
    for kind in ("Float", "Half", "BFloat16")
}


def _raised(value: Any) -> Any:
    """Return a dtype, tensor, or list of them, with float64 in place of smaller floating dtypes."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in _SMALL else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _SMALL else value
    if type(value) in (list, tuple):
        return type(value)(_raised(v) for v in value)
    name = value if isinstance(value, str) else _type_name(value)
    return _SMALL_TYPES.get(name, value)


def _type_name(value: Any) -> str:
    """Return the name of a type such as torch.FloatTensor."""
    return f"{value.__module__}.{value.__name__}" if isinstance(value, type(torch.FloatTensor)) else ""
