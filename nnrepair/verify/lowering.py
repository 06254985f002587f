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
    output = builder.trace_onnx(model) if isinstance(model, ops.OnnxGraph) else builder.trace_fx(model)
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


class _Builder:
    """Collect nodes while a model is read operation by operation."""

    def __init__(self, model: nn.Module, shape: Shape) -> None:
        self.model, self.problems = model, list[str]()
        self.nodes = [Node((), math.prod(shape))]
        self.input = _Value(0, tuple(shape))
        self.hidden = 0

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
        full = [None if v is None else torch.as_tensor(v).double().expand(x.shape).reshape(-1) for v in (factor, bias)]
        assert full[0] is not None
        return self.affine(x, Diagonal(full[0], full[1], inexact), x.shape)

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

    def matrix(self, x: _Value, call: Callable[[Tensor], Tensor], inexact: float) -> _Value:
        """Return an affine operation as the matrix that its values at the unit vectors spell out."""
        size = math.prod(x.shape)
        with torch.no_grad():
            origin = call(torch.zeros(1, *x.shape, dtype=torch.float64))
            if size * origin.numel() > MATRIX_LIMIT:
                raise _Unreadable(f"it would need a matrix of {origin.numel()} x {size} numbers")
            columns = call(torch.eye(size, dtype=torch.float64).reshape(size, *x.shape)) - origin
        shape = tuple(origin.shape[1:])
        return self.affine(x, Dense(columns.reshape(size, -1).T, origin.reshape(-1), inexact), shape)

    # Reading ---------------------------------------------------------------------------------------------------------

    def trace_onnx(self, model: ops.OnnxGraph) -> _Value | None:
        """Read a model from `nnrepair.onnx.load`."""
        values: dict[str, _Value | Tensor] = {model.input_name: self.input}
        for step in model.steps:
            module = model.get_submodule(step.module)
            if all(name in values for name in step.inputs):
                self._keep(values, step.output, step.module, module, [values[name] for name in step.inputs])
        output = values.get(model.output_name)
        return output if isinstance(output, _Value) else None

    def trace_fx(self, model: nn.Module) -> _Value | None:
        """Read any module that torch.fx can trace."""
        try:
            graph = torch.fx.Tracer().trace(model)
        except Exception as error:  # tracing raises what the user's forward raises
            self.problems.append(f"torch.fx cannot trace it: {str(error).splitlines()[0]}")
            return None
        values: dict[str, Any] = {}
        for node in graph.nodes:
            lost = [a for a in node.all_input_nodes if values.get(a.name) is None]
            arguments = torch.fx.node.map_arg(node.args, lambda a: values.get(a.name))
            if node.op == "placeholder":
                values[node.name] = self.input
            elif node.op == "get_attr":
                values[node.name] = operator.attrgetter(node.target)(model)
            elif node.op == "output":
                return arguments[0] if isinstance(arguments[0], _Value) else None
            elif lost:
                continue  # something before it could not be read
            elif node.op == "call_module":
                self._keep(values, node.name, str(node.target), model.get_submodule(str(node.target)), arguments)
            else:
                self._keep(values, node.name, node.name, node.target, arguments, node.kwargs)
        return None

    def _keep(
        self, values: dict[str, Any], output: str, name: str, what: Any, inputs: list[Any], settings: Any = None
    ) -> None:
        try:
            values[output] = self._read(what, inputs, dict(settings or {}))
        except _Unreadable as reason:
            kind = type(what).__name__ if isinstance(what, nn.Module) else getattr(what, "__name__", str(what))
            self.problems.append(f"{kind} {name!r}: {reason}")

    def _read(self, what: Any, inputs: list[Any], settings: dict[str, Any]) -> Any:
        if isinstance(what, nn.Module):
            if isinstance(what, ops.Constant):
                return what.value
            if isinstance(what, nn.Sequential):
                for part in what:
                    inputs = [self._read(part, inputs, {})]
                return inputs[0]
            handler = next((HANDLERS[t] for t in type(what).__mro__ if t in HANDLERS), None)
            if handler is None:
                raise _Unreadable("this kind of layer is not supported")
            return handler(self, what, *inputs)
        function = FUNCTIONS.get(what if not isinstance(what, str) else f".{what}")
        if function is None:
            raise _Unreadable("this function is not supported")
        settings.pop("inplace", None)
        return function(self, *inputs, **settings)


# What each operation becomes -----------------------------------------------------------------------------------------


def _linear(b: _Builder, layer: nn.Linear, x: _Value) -> _Value:
    if x.shape[-1] != layer.in_features:
        raise _Unreadable(f"it takes {layer.in_features} inputs, given {x.shape}")
    if len(x.shape) == 1:
        return b.affine(x, Dense(layer.weight, layer.bias), (layer.out_features,))
    lead = math.prod(x.shape[:-1])
    weight = torch.kron(torch.eye(lead, dtype=torch.float64), layer.weight.detach().double())
    bias = None if layer.bias is None else layer.bias.detach().repeat(lead)
    return b.affine(x, Dense(weight, bias), (*x.shape[:-1], layer.out_features))


def _conv(b: _Builder, layer: nn.Conv2d, x: _Value) -> _Value:
    if len(x.shape) != 3 or x.shape[0] != layer.in_channels or layer.padding_mode != "zeros":
        raise _Unreadable(f"it takes images of {layer.in_channels} channels padded with zeros, given {x.shape}")
    if isinstance(layer.padding, str):
        return b.matrix(x, _doubled(layer), 0.0)
    map = Convolution(layer, x.shape)
    return b.affine(x, map, map.out_shape)


def _doubled(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return copy.deepcopy(layer).double()


def _as_matrix(b: _Builder, layer: nn.Module, x: _Value) -> _Value:
    return b.matrix(x, _doubled(layer), 1e-15)


def _batch_norm(b: _Builder, layer: nn.BatchNorm2d, x: _Value) -> _Value:
    if layer.training or layer.running_mean is None or layer.running_var is None:
        raise _Unreadable("in training mode the points of a batch influence each other: call model.eval()")
    mean, var = layer.running_mean.double(), layer.running_var.double()
    one, zero = torch.ones_like(mean), torch.zeros_like(mean)
    weight = one if layer.weight is None else layer.weight.detach().double()
    shift = zero if layer.bias is None else layer.bias.detach().double()
    factor = weight / torch.sqrt(var + layer.eps)
    along = (-1, *[1] * (len(x.shape) - 1))
    centred = b.scaled(x, 1.0, -mean.reshape(along))
    # The factor is irrational; its float64 value is off by a few units in the last place.
    return b.scaled(centred, factor.reshape(along), shift.reshape(along), 1e-15)


def _flatten(b: _Builder, layer: Any, x: _Value) -> _Value:
    return _Value(x.node, (math.prod(x.shape),))


def _reshape(b: _Builder, x: _Value, sizes: Sequence[Any]) -> _Value:
    given = [s for s in sizes if isinstance(s, int)]
    if len(given) < len(sizes) or not sizes:
        given = [-1, *given[-(len(sizes) - 1) :]] if len(sizes) > 1 else [-1]
    item = [x.shape[i] if s == 0 else s for i, s in enumerate(given[1:])]
    if -1 in item:
        item[item.index(-1)] = math.prod(x.shape) // max(-math.prod(item), 1)
    if math.prod(item) != math.prod(x.shape):
        raise _Unreadable(f"it makes {tuple(item)} of {x.shape}, which does not keep the batch first")
    return _Value(x.node, tuple(item))


def _permute(b: _Builder, x: _Value, dims: Sequence[int]) -> _Value:
    size = math.prod(x.shape)
    index = torch.arange(size).reshape(1, *x.shape).permute(tuple(dims))[0]
    return b.affine(x, Pick(index, size), tuple(index.shape))


def _max_pool(b: _Builder, layer: nn.MaxPool2d, x: _Value) -> _Value:
    if len(x.shape) != 3:
        raise _Unreadable(f"it needs images (channels, height, width), given {x.shape}")
    places = torch.arange(math.prod(x.shape)).reshape(1, *x.shape)
    kernel, padding, dilation, stride = (
        (v, v) if isinstance(v, int) else tuple(v)
        for v in (layer.kernel_size, layer.padding, layer.dilation, layer.stride)
    )
    if layer.ceil_mode:
        raise _Unreadable("ceil_mode is not supported")
    padded = F.pad(places.double(), (padding[1], padding[1], padding[0], padding[0]), value=-1.0)
    windows = F.unfold(padded.transpose(0, 1), kernel, dilation, 0, stride)  # (channels, kernel, windows)
    windows = windows.permute(0, 2, 1).reshape(-1, math.prod(kernel)).long()
    windows = torch.where(windows < 0, windows.amax(1, keepdim=True), windows)  # padding repeats an entry of the window
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


def _add(b: _Builder, x: Any, y: Any, sign: float = 1.0) -> Any:
    if isinstance(x, _Value) and isinstance(y, _Value):
        return b.total(x, y) if sign > 0 else b.difference(x, y)
    if isinstance(x, _Value):
        return b.scaled(x, 1.0, sign * _item(y, x))
    if isinstance(y, _Value):
        return b.scaled(y, sign, _item(x, y))
    raise _Unreadable("neither side depends on the input")


def _item(constant: Any, x: _Value) -> Tensor:
    """Return a constant without its batch axis of size 1."""
    value = torch.as_tensor(constant).detach().double()
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
    return b.scaled(value, _item(constant, value))


def _divide(b: _Builder, x: Any, y: Any) -> Any:
    if not isinstance(x, _Value) or isinstance(y, _Value):
        raise _Unreadable("division by something that is not constant")
    return b.scaled(x, 1 / _item(y, x), inexact=1e-15)


def _relu(b: _Builder, x: _Value, *rest: Any) -> _Value:
    return b.relu(x)


def _flattened(b: _Builder, x: _Value, start_dim: int = 0, end_dim: int = -1) -> _Value:
    if start_dim != 1 or end_dim != -1:
        raise _Unreadable("it must keep the batch apart: start_dim=1")
    return _flatten(b, None, x)


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
    nn.Flatten: _flatten,
    nn.Identity: lambda b, layer, x: x,
    nn.Dropout: lambda b, layer, x: x,
    ops.Add: lambda b, layer, x, y: _add(b, x, y),
    ops.Sub: lambda b, layer, x, y: _add(b, x, y, -1.0),
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
    torch.flatten: _flattened,
    ".flatten": _flattened,
    ".view": lambda b, x, *sizes: _reshape(b, x, sizes[0] if isinstance(sizes[0], tuple) else sizes),
    ".reshape": lambda b, x, *sizes: _reshape(b, x, sizes[0] if isinstance(sizes[0], tuple) else sizes),
    torch.reshape: lambda b, x, sizes: _reshape(b, x, sizes),
    ".size": lambda b, x, *i: "batch" if i == (0,) else x.shape[i[0] - 1],
    operator.add: _add,
    torch.add: _add,
    operator.sub: lambda b, x, y: _add(b, x, y, -1.0),
    torch.sub: lambda b, x, y: _add(b, x, y, -1.0),
    operator.mul: _multiply,
    torch.mul: _multiply,
    operator.truediv: _divide,
    torch.div: _divide,
    torch.cat: lambda b, parts, dim=0: _concat(b, parts, dim),
}
