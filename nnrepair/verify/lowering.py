"""From an ordinary module (anything torch.fx can trace, or a model from `nnrepair.onnx.load`) to a `Graph`.

What is piecewise linear becomes ReLUs: max(a, b) = a + relu(b - a). Everything that cannot be read is listed at once.
`HANDLERS` and `FUNCTIONS`, at the end, say what reads which layer or function.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.onnx import modules as ops
from nnrepair.verify.affine import Affine, Convolution, Dense, Diagonal, Pick, Place, Shape
from nnrepair.verify.graph import Graph, Node

#: Sizes of the batch are not numbers.
BATCH = "batch"
# Maps without structure of their own are written as matrices up to this many entries.
MATRIX_LIMIT = 50_000_000


def lower(model: nn.Module, shape: Shape) -> Graph:
    """Return the graph of a model for inputs (n, *shape).

    Raises:
        UnsupportedModel: something in the model is not piecewise linear, or cannot be read; all such things at once.
        InvalidInput: a weight is not finite, or the shape does not fit.
    """
    bad = [name for name, p in (*model.named_parameters(), *model.named_buffers()) if not bool(torch.isfinite(p).all())]
    if bad:
        raise InvalidInput(f"The model's weights must be finite; NaN or infinity in {', '.join(map(repr, bad))}.")
    builder = _Builder(model, shape)
    output = builder.trace(model)
    if builder.problems or output is None:
        listed = "\n  ".join(dict.fromkeys(builder.problems))
        raise UnsupportedModel(
            f"The checker cannot read this model:\n  {listed}\nIt reads networks that are affine between ReLUs: "
            "linear and convolution layers, batch normalisation, pooling, sums, reshaping, ReLU, leaky ReLU, clipping."
        )
    return builder.graph(output)


@dataclass(frozen=True)
class _Value:
    node: int
    shape: Shape  # of one item, without the batch


class _Unreadable(Exception):
    """This one operation cannot be read, for the reason given."""


class _Call(nn.Module):
    """Call a model with one argument: single layers, and arguments with defaults, need no special care then."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Proxy(torch.fx.Proxy):
    """Record `x += y` as what it is: torch.fx makes x + y of it, and forgets that x has changed."""

    def _record(self, function: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> Any:
        return self._record(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._record(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._record(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._record(operator.itruediv, other)


class _Tracer(torch.fx.Tracer):
    """Do not look inside what `HANDLERS` reads, nor inside models from ONNX files."""

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = type(m) in HANDLERS or isinstance(m, ops.OnnxGraph)
        return known or bool(super().is_leaf_module(m, module_qualified_name))


class _Builder:
    """Collect nodes while a model is read operation by operation."""

    def __init__(self, model: nn.Module, shape: Shape) -> None:
        self.problems = list[str]()
        self.nodes = [Node((), math.prod(shape))]
        self.input = _Value(0, tuple(shape))
        self.dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
        self.memory: dict[int, int] = {}  # views: whose memory a node's value shares
        self.changed = set[int]()  # nodes whose values were overwritten in place

    def graph(self, output: _Value) -> Graph:
        """Return the graph up to `output`, without what it does not need."""
        needed, stack = set[int](), [output.node, 0]
        while stack:
            k = stack.pop()
            if k not in needed:
                needed.add(k)
                stack.extend(self.nodes[k].sources)
        place = {k: i for i, k in enumerate(sorted(needed))}
        start, nodes = 0, []
        for k in sorted(needed):
            node = self.nodes[k]
            relu = None if node.relu is None else slice(start, start + node.size)
            start += 0 if node.relu is None else node.size
            nodes.append(Node(tuple(place[s] for s in node.sources), node.size, node.affine, relu))
        if nodes[-1].relu is not None or len(nodes) == 1:  # so that the output is always an affine node or a sum
            same = Diagonal(torch.ones(nodes[-1].size, dtype=torch.float64))
            nodes.append(Node((len(nodes) - 1,), nodes[-1].size, same))
        return Graph(nodes)

    # Building blocks -------------------------------------------------------------------------------------------------

    def affine(self, x: _Value, map: Affine, shape: Shape) -> _Value:
        self.nodes.append(Node((x.node,), len(map.bias), map))
        return _Value(len(self.nodes) - 1, shape)

    def relu(self, x: _Value) -> _Value:
        self.nodes.append(Node((x.node,), math.prod(x.shape), relu=slice(0, 0)))
        return _Value(len(self.nodes) - 1, x.shape)

    def total(self, *parts: _Value) -> _Value:
        if len({part.shape for part in parts}) != 1:
            raise _Unreadable(f"it adds values of the shapes {', '.join(str(p.shape) for p in parts)}")
        self.nodes.append(Node(tuple(part.node for part in parts), math.prod(parts[0].shape)))
        return _Value(len(self.nodes) - 1, parts[0].shape)

    def scaled(
        self, x: _Value, factor: Tensor | float, bias: Tensor | float | None = None, inexact: float = 0
    ) -> _Value:
        """Return factor * x + bias; both broadcast to one item."""
        full = [None if v is None else self.constant(v).expand(x.shape).reshape(-1) for v in (factor, bias)]
        assert full[0] is not None
        return self.affine(x, Diagonal(full[0], full[1], inexact), x.shape)

    def constant(self, value: Any) -> Tensor:
        """Return a constant as the network computes with it: Python's numbers in the precision of its weights."""
        given = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype)
        return given.double()

    def maximum(self, x: _Value, windows: Tensor, shape: Shape) -> _Value:
        """Return the maximum over each row of `windows` (outputs, entries), pair by pair."""
        size, parts = math.prod(x.shape), [windows[:, k] for k in range(windows.shape[1])]
        values = [self.affine(x, Pick(part, size), shape) for part in parts]
        while len(values) > 1:
            pairs = [values[k : k + 2] for k in range(0, len(values), 2)]
            values = [
                pair[0] if len(pair) == 1 else self.total(pair[0], self.relu(self.difference(pair[1], pair[0])))
                for pair in pairs
            ]
        return values[0]

    def difference(self, a: _Value, b: _Value) -> _Value:
        return self.total(a, self.scaled(b, -1.0))

    def matrix(self, x: _Value, call: Callable[[Tensor], Tensor], inexact: float, bias: Tensor | None = None) -> _Value:
        """Return an affine operation as the matrix that its values at the unit vectors spell out.

        Args:
            x: what it reads.
            call: the operation, without the bias if it has one: adding and subtracting it again would round the matrix.
            inexact: relative error of the matrix.
            bias: (channels,), for every channel.
        """
        size = math.prod(x.shape)
        with torch.no_grad():
            origin = call(torch.zeros(1, *x.shape, dtype=torch.float64))
            if size * origin.numel() > MATRIX_LIMIT:
                raise _Unreadable(f"it would need a matrix of {origin.numel()} x {size} numbers")
            columns = call(torch.eye(size, dtype=torch.float64).reshape(size, *x.shape)) - origin
        shape = tuple(origin.shape[1:])
        if bias is not None:
            origin = bias.detach().double().reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        return self.affine(x, Dense(columns.reshape(size, -1).T, origin.reshape(-1), inexact), shape)

    # Reading ---------------------------------------------------------------------------------------------------------

    def trace(self, model: nn.Module) -> _Value | None:
        """Read a model; return what it returns, or None where that cannot be read."""
        output = self.trace_onnx(model, self.input) if isinstance(model, ops.OnnxGraph) else self.trace_fx(model)
        if output is None and not self.problems:
            self.problems.append("it does not return one tensor that depends on its input")
        return output

    def trace_onnx(self, model: ops.OnnxGraph, x: _Value) -> _Value | None:
        """Read a model from `nnrepair.onnx.load`."""
        shape = tuple(-1 if size is None else size for size in model.item_shape)
        values: dict[str, Any] = {model.input_name: x if len(x.shape) == len(shape) else _reshape(self, x, (0, *shape))}
        for step in model.steps:
            module = model.get_submodule(step.module)
            lost = any(values.get(name) is None for name in step.inputs)
            self._keep(values, step.output, step.module, module, [values.get(name) for name in step.inputs], lost=lost)
        output = values.get(model.output_name)
        return output if isinstance(output, _Value) else None

    def trace_fx(self, model: nn.Module) -> _Value | None:
        """Read any module that torch.fx can trace."""
        root = _Call(model)
        try:
            graph = _Tracer().trace(root)
        except Exception as error:  # tracing raises what the user's forward raises
            self.problems.append(f"torch.fx cannot trace it: {_first_line(error)}")
            return None
        values: dict[str, Any] = {}
        for node in graph.nodes:
            given = [values.get(a.name) for a in node.all_input_nodes]
            arguments = torch.fx.node.map_arg(node.args, lambda a: values.get(a.name))
            settings = torch.fx.node.map_arg(node.kwargs, lambda a: values.get(a.name))
            what, name = node.target, node.name
            if node.op == "call_module":
                what, name = root.get_submodule(str(node.target)), str(node.target).removeprefix("model.")
            stale = [v for v in given if isinstance(v, _Value) and self._memory(v) in self.changed]
            if stale:
                self.problems.append(f"{name!r} reads a value that an operation before it has changed in place")
            if node.op == "placeholder":
                values[name] = self.input
            elif node.op == "get_attr":
                values[name] = operator.attrgetter(node.target)(root)
            elif node.op == "output":
                return arguments[0] if isinstance(arguments[0], _Value) else None
            elif node.op != "call_module" and given and all(isinstance(v, Tensor | int) for v in given):
                owner = arguments[0] if node.op == "call_method" else None  # what depends on weights and sizes alone
                with torch.no_grad():
                    call = getattr(owner, what) if owner is not None else what
                    values[name] = call(*arguments[owner is not None :], **settings)
            else:
                lost = any(value is None for value in given)
                self._keep(values, node.name, name, what, arguments, settings, lost)
                if _in_place(what, arguments, settings) and isinstance(arguments[0], _Value):
                    self.changed.add(self._memory(arguments[0]))
        return None

    def _memory(self, value: _Value) -> int:
        """Return the node that owns the memory of a value."""
        return self.memory.get(value.node, value.node)

    def _keep(
        self,
        values: dict[str, Any],
        output: str,
        name: str,
        what: Any,
        inputs: Sequence[Any],
        settings: Any = None,
        lost: bool = False,
    ) -> None:
        """Read one operation; if something before it could not be read, tell only whether it could be."""
        try:
            handler = _handler(what)
            if not lost:
                settings = {key: value for key, value in (settings or {}).items() if key != "inplace"}
                values[output] = handler(self, *inputs, **settings)
        except (_Unreadable, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, _Unreadable) else f"not in this form: {_first_line(error)}"
            kind = type(what).__name__ if isinstance(what, nn.Module) else getattr(what, "__name__", str(what))
            self.problems.append(f"{kind} {name!r}: {reason}")


def _handler(what: Any) -> Callable[..., Any]:
    """Return what reads a layer, or a function."""
    if isinstance(what, ops.Constant):
        return lambda b: what.value
    if isinstance(what, ops.OnnxGraph):
        return lambda b, x: b.trace_onnx(what, x)
    if isinstance(what, nn.Module):
        found = next((HANDLERS[t] for t in type(what).__mro__ if t in HANDLERS), None)
        if found is None:
            raise _Unreadable("this kind of layer is not supported")
        return lambda b, *inputs, **settings: found(b, what, *inputs, **settings)
    function = FUNCTIONS.get(what if not isinstance(what, str) else f".{what}")
    if function is None:
        raise _Unreadable("this function is not supported")
    return function


def _in_place(what: Any, inputs: Sequence[Any], settings: dict[str, Any]) -> bool:
    """Tell whether an operation overwrites what it reads."""
    if isinstance(what, nn.Module):
        return bool(getattr(what, "inplace", False))
    return what in CHANGING or bool(settings.get("inplace")) or (what is F.relu and True in inputs[1:])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


# What each operation becomes -----------------------------------------------------------------------------------------


def _linear(b: _Builder, layer: nn.Linear, x: _Value) -> _Value:
    if x.shape[-1] != layer.in_features:
        raise _Unreadable(f"it takes {layer.in_features} inputs, given {x.shape}")
    if len(x.shape) == 1:
        return b.affine(x, Dense(layer.weight, layer.bias), (layer.out_features,))
    lead = math.prod(x.shape[:-1])
    if lead**2 * layer.weight.numel() > MATRIX_LIMIT:
        raise _Unreadable(f"it would need a matrix for {lead} rows of {layer.in_features} numbers at once")
    weight = torch.kron(torch.eye(lead, dtype=torch.float64), layer.weight.detach().double())
    bias = None if layer.bias is None else layer.bias.detach().repeat(lead)
    return b.affine(x, Dense(weight, bias), (*x.shape[:-1], layer.out_features))


def _layer(weight: Any, bias: Any) -> nn.Linear:
    """Return the layer that F.linear computes."""
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        raise _Unreadable("its weights depend on the input")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _conv(b: _Builder, layer: nn.Conv2d, x: _Value) -> _Value:
    if len(x.shape) != 3 or x.shape[0] != layer.in_channels or layer.padding_mode != "zeros":
        raise _Unreadable(f"it takes images of {layer.in_channels} channels padded with zeros, given {x.shape}")
    if isinstance(layer.padding, str):
        return _as_matrix(b, layer, x)
    map = Convolution(layer, x.shape)
    return b.affine(x, map, map.out_shape)


def _as_matrix(b: _Builder, layer: nn.Module, x: _Value) -> _Value:
    linear, bias = copy.deepcopy(layer).double(), getattr(layer, "bias", None)
    if bias is not None:
        setattr(linear, "bias", None)  # noqa: B010 - mypy
    exact = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConstantPad2d)
    return b.matrix(x, linear, 0.0 if exact else 1e-15, bias)


def _batch_norm(b: _Builder, layer: nn.BatchNorm2d, x: _Value) -> _Value:
    if layer.training or layer.running_mean is None or layer.running_var is None:
        raise _Unreadable("in training mode the points of a batch influence each other: call model.eval()")
    mean, var = layer.running_mean.double(), layer.running_var.double()
    one, zero = torch.ones_like(mean), torch.zeros_like(mean)
    weight = one if layer.weight is None else layer.weight.detach().double()
    shift = zero if layer.bias is None else layer.bias.detach().double()
    factor = weight / torch.sqrt(var + float(b.constant(layer.eps)))
    if not bool(torch.isfinite(factor).all()):
        raise _Unreadable("its running variance is negative")
    along = (-1, *[1] * (len(x.shape) - 1))
    centred = b.scaled(x, 1.0, -mean.reshape(along))
    # The factor is irrational; its float64 value is off by a few units in the last place.
    return b.scaled(centred, factor.reshape(along), shift.reshape(along), 1e-15)


def _flatten(b: _Builder, x: _Value, start_dim: int = 0, end_dim: int = -1) -> _Value:
    first, last = (d + len(x.shape) + 1 if d < 0 else d for d in (start_dim, end_dim))
    if first < 1:
        raise _Unreadable("it must keep the batch apart: start_dim=1")
    return _Value(x.node, (*x.shape[: first - 1], math.prod(x.shape[first - 1 : last]), *x.shape[last:]))


def _size(b: _Builder, x: _Value, dim: int | None = None) -> Any:
    sizes = (BATCH, *x.shape)
    return sizes if dim is None else sizes[dim]


def _attribute(b: _Builder, x: _Value, name: str) -> Any:
    if name != "shape":
        raise _Unreadable(f"the attribute {name} of a tensor is not supported")
    return _size(b, x)


def _entry(b: _Builder, x: Any, index: Any) -> Any:
    if not isinstance(x, _Value):
        return x[index]  # of a shape
    whole = index[0] if isinstance(index, tuple) else index
    if whole not in (slice(None), Ellipsis):
        raise _Unreadable("it takes a part of the batch")
    size = math.prod(x.shape)
    part = torch.arange(size).reshape(1, *x.shape)[index]
    if part.shape[:1] != (1,):
        raise _Unreadable("it takes a part of the batch")
    taken = b.affine(x, Pick(part[0], size), tuple(part.shape[1:]))
    b.memory[taken.node] = b._memory(x)
    return taken


def _pad(b: _Builder, x: _Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> _Value:
    if mode != "constant" or value not in (None, 0, 0.0) or len(pad) > 2 * len(x.shape):
        raise _Unreadable("only padding with zeros is supported, and not along the batch")
    size = math.prod(x.shape)
    index = F.pad(torch.arange(size).reshape(1, *x.shape), tuple(pad), value=size)[0]
    kept = index.reshape(-1) < size
    if min(pad, default=0) < 0:
        x = b.affine(x, Pick(index.reshape(-1)[kept], size), (int(kept.sum()),))
        return b.affine(x, Place(kept.nonzero()[:, 0], index.numel()), tuple(index.shape))
    return b.affine(x, Place(kept.nonzero()[:, 0], index.numel()), tuple(index.shape))


def _reshape(b: _Builder, x: _Value, *sizes: Any) -> _Value:
    first, *item = sizes[0] if isinstance(sizes[0], tuple | list) else sizes
    item = [x.shape[i] if s == 0 else s for i, s in enumerate(item)]
    if first not in (BATCH, -1, 0, 1) or any(not isinstance(s, int) for s in item):
        raise _Unreadable("it moves the batch")
    if -1 in item:
        item[item.index(-1)] = math.prod(x.shape) // max(-math.prod(item), 1)
    if math.prod(item) != math.prod(x.shape):
        raise _Unreadable(f"it makes {tuple(item)} of {x.shape}, which does not keep the batch first")
    return _Value(x.node, tuple(item))


def _permute(b: _Builder, x: _Value, *dims: Any) -> _Value:
    order = tuple(dims[0] if isinstance(dims[0], tuple | list) else dims)
    if order[0] % (len(x.shape) + 1) != 0:
        raise _Unreadable("it moves the batch")
    size = math.prod(x.shape)
    index = torch.arange(size).reshape(1, *x.shape).permute(order)[0]
    moved = b.affine(x, Pick(index, size), tuple(index.shape))
    b.memory[moved.node] = b._memory(x)
    return moved


def _max_pool(b: _Builder, layer: nn.MaxPool2d, x: _Value) -> _Value:
    if len(x.shape) != 3:
        raise _Unreadable(f"it needs images (channels, height, width), given {x.shape}")
    places = torch.arange(math.prod(x.shape)).reshape(1, *x.shape)
    kernel, padding, dilation, stride = (
        (v, v) if isinstance(v, int) else tuple(v)
        for v in (layer.kernel_size, layer.padding, layer.dilation, layer.stride)
    )
    if layer.ceil_mode or layer.return_indices:
        raise _Unreadable("ceil_mode and return_indices are not supported")
    padded = F.pad(places.double(), (padding[1], padding[1], padding[0], padding[0]), value=-1.0)
    windows = F.unfold(padded.transpose(0, 1), kernel, dilation, 0, stride)  # (channels, kernel, windows)
    windows = windows.permute(0, 2, 1).reshape(-1, math.prod(kernel)).long()
    windows = torch.where(windows < 0, windows.amax(1, keepdim=True), windows)  # padding repeats an entry of the window
    if bool((windows < 0).any()):
        raise _Unreadable("a window lies in the padding alone")
    sizes = [(padded.shape[2 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    return b.maximum(x, windows, (x.shape[0], *sizes))


def _leaky(b: _Builder, x: _Value, slope: float) -> _Value:
    return b.total(b.relu(x), b.scaled(b.relu(b.scaled(x, -1.0)), -slope))


def _clipped(b: _Builder, x: _Value, low: float, high: float) -> _Value:
    y = x
    if low > -math.inf:
        y = b.scaled(b.relu(b.scaled(y, 1.0, -low)), 1.0, low)
    if high < math.inf:
        y = b.scaled(b.relu(b.scaled(y, -1.0, high)), -1.0, high)
    return y


def _concat(b: _Builder, parts: Sequence[_Value], dim: int) -> _Value:
    if dim == 0 or any(not isinstance(part, _Value) for part in parts):
        raise _Unreadable("it joins along the batch, or with constants")
    dim = dim if dim < 0 else dim - 1
    sizes = [math.prod(part.shape) for part in parts]
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    each = [torch.arange(n).reshape(p.shape) + s for n, p, s in zip(sizes, parts, starts, strict=True)]
    order = torch.cat(each, dim)
    place = torch.empty(order.numel(), dtype=torch.long)
    place[order.reshape(-1)] = torch.arange(order.numel())
    total = order.numel()
    pieces = [
        b.affine(part, Place(place[s : s + n], total), tuple(order.shape))
        for part, s, n in zip(parts, starts, sizes, strict=True)
    ]
    return b.total(*pieces)


def _add(b: _Builder, x: Any, y: Any) -> Any:
    return _plus(b, x, y, 1.0)


def _plus(b: _Builder, x: Any, y: Any, sign: float) -> Any:
    if isinstance(x, _Value) and isinstance(y, _Value):
        return b.total(x, y) if sign > 0 else b.difference(x, y)
    if isinstance(x, _Value):
        return b.scaled(x, 1.0, sign * _item(b, y, x))
    if isinstance(y, _Value):
        return b.scaled(y, sign, _item(b, x, y))
    raise _Unreadable("neither side depends on the input")


def _subtract(b: _Builder, x: Any, y: Any) -> Any:
    return _plus(b, x, y, -1.0)


def _item(b: _Builder, constant: Any, x: _Value) -> Tensor:
    """Return a constant without its batch axis of size 1."""
    value = b.constant(constant)
    if value.ndim == len(x.shape) + 1 and value.shape[0] == 1:
        value = value[0]
    try:
        return value.expand(x.shape)
    except RuntimeError:
        raise _Unreadable(f"a constant of shape {tuple(value.shape)} does not fit values of shape {x.shape}") from None


def _multiply(b: _Builder, x: Any, y: Any) -> Any:
    if isinstance(x, _Value) and isinstance(y, _Value):
        raise _Unreadable("the product of two values is not piecewise linear")
    value, constant = (x, y) if isinstance(x, _Value) else (y, x)
    if not isinstance(value, _Value):
        raise _Unreadable("neither side depends on the input")
    return b.scaled(value, _item(b, constant, value))


def _divide(b: _Builder, x: Any, y: Any) -> Any:
    if not isinstance(x, _Value) or isinstance(y, _Value):
        raise _Unreadable("division by something that is not constant")
    inverse = 1 / _item(b, y, x)
    if not bool(torch.isfinite(inverse).all()):
        raise _Unreadable("division by zero")
    return b.scaled(x, inverse, inexact=1e-15)


def _relu(b: _Builder, x: _Value, *rest: Any) -> _Value:
    return b.relu(x)


def _dropout(b: _Builder, x: _Value, p: float = 0.5, training: bool = True) -> _Value:
    if training:
        raise _Unreadable("it is random in training mode: call model.eval(), and pass training=self.training")
    return x


def _mean(b: _Builder, layer: ops.Mean, x: _Value) -> _Value:
    return b.matrix(x, layer, 1e-15)


HANDLERS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.Conv1d: _as_matrix,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: lambda b, layer, x: b.relu(x),
    nn.ReLU6: lambda b, layer, x: _clipped(b, x, 0.0, 6.0),
    nn.Hardtanh: lambda b, layer, x: _clipped(b, x, layer.min_val, layer.max_val),
    nn.LeakyReLU: lambda b, layer, x: _leaky(b, x, layer.negative_slope),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool1d: _as_matrix,
    nn.AvgPool2d: _as_matrix,
    nn.AdaptiveAvgPool1d: _as_matrix,
    nn.AdaptiveAvgPool2d: _as_matrix,
    nn.ConstantPad2d: _as_matrix,
    nn.Flatten: lambda b, layer, x: _flatten(b, x, layer.start_dim, layer.end_dim),
    nn.Identity: lambda b, layer, x: x,
    nn.Dropout: lambda b, layer, x: _dropout(b, x, layer.p, layer.training),
    ops.Add: lambda b, layer, x, y: _add(b, x, y),
    ops.Sub: lambda b, layer, x, y: _subtract(b, x, y),
    ops.Mul: lambda b, layer, x, y: _multiply(b, x, y),
    ops.Div: lambda b, layer, x, y: _divide(b, x, y),
    ops.Concat: lambda b, layer, *parts: _concat(b, parts, layer.dim),
    ops.Reshape: lambda b, layer, x: _reshape(b, x, layer.sizes),
    ops.Permute: lambda b, layer, x: _permute(b, x, layer.dims),
    ops.Mean: _mean,
}

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.relu: _relu,
    F.relu: _relu,
    ".relu": _relu,
    F.leaky_relu: lambda b, x, negative_slope=0.01: _leaky(b, x, negative_slope),
    F.linear: lambda b, x, weight, bias=None: _linear(b, _layer(weight, bias), x),
    F.max_pool2d: lambda b, x, *how, **more: _max_pool(b, nn.MaxPool2d(*how, **more), x),
    F.avg_pool2d: lambda b, x, *how, **more: _as_matrix(b, nn.AvgPool2d(*how, **more), x),
    F.adaptive_avg_pool2d: lambda b, x, output_size: _as_matrix(b, nn.AdaptiveAvgPool2d(output_size), x),
    F.dropout: _dropout,
    F.pad: _pad,
    torch.flatten: _flatten,
    ".flatten": _flatten,
    ".view": _reshape,
    ".reshape": _reshape,
    torch.reshape: _reshape,
    ".permute": _permute,
    torch.permute: _permute,
    ".size": _size,
    getattr: _attribute,
    operator.getitem: _entry,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    ".add": _add,
    operator.sub: _subtract,
    operator.isub: _subtract,
    torch.sub: _subtract,
    ".sub": _subtract,
    operator.mul: _multiply,
    operator.imul: _multiply,
    torch.mul: _multiply,
    ".mul": _multiply,
    operator.truediv: _divide,
    operator.itruediv: _divide,
    torch.div: _divide,
    ".div": _divide,
    torch.cat: lambda b, parts, dim=0: _concat(b, parts, dim),
}

#: Functions that overwrite what they read.
CHANGING = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
