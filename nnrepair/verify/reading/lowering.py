"""From an ordinary module (anything torch.fx can trace, or a model from `nnrepair.onnx.load`) to a `Graph`.

What is piecewise linear becomes ReLUs: max(a, b) = a + relu(b - a). Everything that cannot be read is listed at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from nnrepair.deadline import NEVER, Deadline, OutOfTime
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.onnx import modules as ops
from nnrepair.verify.reading import symbols
from nnrepair.verify.reading.affine import Pick, Place, Shape
from nnrepair.verify.reading.builder import Builder, Unreadable, Value
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.reading.imported import IMPORTED
from nnrepair.verify.reading.operations import ACTIVATIONS, CHANGING, FUNCTIONS, HANDLERS, reshape

#: Layers that compute nothing.
MOVING = (ops.Concat, ops.Reshape, ops.Permute)
#: What is known before a model runs.
KNOWN = Tensor | int | torch.dtype | torch.device
#: What code raises that cannot run on what stands for a tensor; torch's layers assert, too.
READING = (
    *(Unreadable, ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError),
)
#: Hooks of torch's own that make a weight of other parameters.
MAKE_WEIGHTS = (prune.BasePruningMethod, WeightNorm, SpectralNorm)


def lower(
    model: nn.Module, shape: Shape, deadline: Deadline = NEVER, region: tuple[Tensor, Tensor] | None = None
) -> Graph:
    """Return the graph of a model for inputs (n, *shape).

    Args:
        model: what to read.
        shape: of one input.
        deadline: looked at now and then.
        region: lower and upper ends (inputs,) of the inputs that matter: products are written so that bounds are close
            there, and inputs for which there is no choice may be taken as constants. Elsewhere the graph may differ.

    Raises:
        OutOfTime: the deadline passed.
        UnsupportedModel: something in the model cannot be read; all such things at once.
            Or something runs beside the model's own code.
        InvalidInput: a weight is not finite, or the shape does not fit.
    """
    bad = [name for name, p in (*model.named_parameters(), *model.named_buffers()) if not bool(torch.isfinite(p).all())]
    if bad:
        raise InvalidInput(f"The model's weights must be finite; NaN or infinity in {', '.join(map(repr, bad))}.")
    _refuse_hooks(model)
    reader = _Reader(model, shape, deadline, region)
    output = reader.trace(model)
    if reader.problems or output is None:
        listed = ";\n  ".join(dict.fromkeys(reader.problems))
        raise UnsupportedModel(
            f"The checker cannot read this model:\n  {listed}.\nIt reads feed-forward networks of linear and "
            "convolution layers, normalisation, pooling, interpolation, sums, products, softmax, and what moves "
            f"numbers about, with {', '.join(ACTIVATIONS)}."
        )
    return reader.graph(output)


def _refuse_hooks(model: nn.Module) -> None:
    """Refuse what runs beside a model's own code: it is not seen when the model is read.

    Hooks that only make a weight of others (pruning, the older normalisations) are run, so that it is up to date.
    """
    for name, part in model.named_modules():
        made = [hook for hook in part._forward_pre_hooks.values() if isinstance(hook, MAKE_WEIGHTS)]
        if part._forward_hooks or len(part._forward_pre_hooks) > len(made) or "forward" in vars(part):
            raise UnsupportedModel(
                f"The module {name or 'itself'!r} has forward hooks or a forward of its own, so that the checker would "
                "read another function than it computes. Remove them (of torch.compile: give the module inside), or "
                "write the model to ONNX and check the file."
            )
        with torch.no_grad():
            for hook in made:
                hook(part, ())


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
    """Do not look inside what `HANDLERS` reads, nor inside models from ONNX files; look at the clock."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def create_node(self, *arguments: Any, **settings: Any) -> torch.fx.Node:
        self.deadline.check()
        return super().create_node(*arguments, **settings)

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = type(m) in HANDLERS or isinstance(m, ops.OnnxGraph)
        return known or bool(super().is_leaf_module(m, module_qualified_name))


class _Reader(Builder):
    """Read a model operation by operation."""

    def trace(self, model: nn.Module) -> Value | None:
        """Read a model; return what it returns, or None where that cannot be read."""
        if isinstance(model, ops.OnnxGraph):
            values = dict[str, Any]()
            self._keep(values, "output", model.output_name, model, [self.input])
            output = values.get("output")
        else:
            output = self.trace_fx(model)
        if output is None and not self.problems:
            self.problems.append("it does not return one tensor that depends on its input")
        return output

    def trace_onnx(self, model: ops.OnnxGraph, *given: Value) -> Value | None:
        """Read a model from `nnrepair.onnx.load`."""
        values: dict[str, Any] = {}
        for each, x in zip(model.inputs, given, strict=True):
            wanted = each.shape
            if None not in wanted:
                x = reshape(self, x, (0, *wanted))
            elif len(wanted) != len(x.shape) or any(w not in (None, k) for w, k in zip(wanted, x.shape, strict=True)):
                raise Unreadable(f"it takes points of shape {wanted}, given {x.shape}")
            values[each.name] = x if each.dtype.is_floating_point else replace(x, dtype=each.dtype)
        for step in model.steps:
            module, inputs = model.get_submodule(step.module), [values.get(name) for name in step.inputs]
            lost = any(value is None for value in inputs)
            self._keep(values, step.output, step.module, module, inputs, lost=lost)
        output = values.get(model.output_name)
        if isinstance(output, symbols.Symbol):  # of one point, without a batch
            return output.flat
        return output if isinstance(output, Value) else None

    def trace_fx(self, model: nn.Module) -> Value | None:
        """Read any module that torch.fx can trace."""
        root, stored = _Call(model), _Stored(model)
        try:
            graph = _Tracer(self.deadline).trace(root)
        except OutOfTime:
            raise
        except Exception as error:  # tracing raises what the user's forward raises
            return self._run(model, f"torch.fx cannot trace it: {_first_line(error)}")
        finally:
            self.problems += [f"it changes {name!r} when it runs" for name in stored.restore()]
        values: dict[str, Any] = {}
        for node in graph.nodes:
            given = [values.get(a.name) for a in node.all_input_nodes]
            arguments = torch.fx.node.map_arg(node.args, lambda a: values.get(a.name))
            settings = torch.fx.node.map_arg(node.kwargs, lambda a: values.get(a.name))
            what, name = node.target, node.name
            if node.op == "call_module":
                what, name = root.get_submodule(str(node.target)), str(node.target).removeprefix("model.")
            stale = [v for v in given if isinstance(v, Value) and self.owner(v) in self.changed]
            if stale:
                self.problems.append(f"{name!r} reads a value that an operation before it has changed in place")
            if node.op == "placeholder":
                values[name] = self.input
            elif node.op == "get_attr":
                values[name] = operator.attrgetter(node.target)(root)
            elif node.op == "output":
                return arguments[0] if isinstance(arguments[0], Value) else None
            elif node.op != "call_module" and given and all(isinstance(v, KNOWN) for v in given):
                self._keep(values, name, name, _Known(what, node.op == "call_method"), arguments, settings)
            else:
                lost = any(value is None for value in given)
                self._keep(values, node.name, name, what, arguments, settings, lost)
                made = values.get(node.name)
                same = (
                    isinstance(made, Value) and isinstance(arguments[0], Value) and made == arguments[0]
                )  # dropout in eval mode does nothing
                if _in_place(what, arguments, settings) and isinstance(arguments[0], Value) and not same:
                    self.changed.add(self.owner(arguments[0]))
        return None

    def _run(self, model: nn.Module, problem: str) -> Value | None:
        """Read a model by running it, where it cannot be traced: it may look at sizes, or take tensors apart."""
        try:
            with torch.no_grad():
                made = symbols.lowered(model(symbols.Symbol.of(self, self.input)))
        except OutOfTime:
            raise
        except Exception:  # tracing has said more about it
            made = None
        if isinstance(made, Value):
            return made
        self.problems.append(problem)
        return None

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
        self.deadline.check()
        try:
            handler = _handler(what)
            if isinstance(what, nn.Module) and inputs and all(isinstance(value, Tensor) for value in inputs):
                values[output] = _constant(what, inputs)
            elif not lost:
                settings = {key: value for key, value in (settings or {}).items() if key != "inplace"}
                values[output] = handler(self, *inputs, **settings)
        except READING as error:
            reason = str(error) if isinstance(error, Unreadable) else f"not in this form: {_first_line(error)}"
            kind = type(what).__name__ if isinstance(what, nn.Module) else getattr(what, "__name__", str(what))
            self.problems.append(f"{kind} {name!r}: {reason}")
            values[output] = None if lost else self._stand_in(what, inputs, settings or {})

    def _stand_in(self, what: Any, inputs: Sequence[Any], settings: Any) -> Any:
        """Return a value of the shape that an operation gives, so that what reads it can be read as well; or None."""

        def zeros(given: Any) -> Any:
            return torch.zeros(given.shape, dtype=given.dtype) if isinstance(given, symbols.Symbol) else given

        given = torch.fx.node.map_aggregate((tuple(inputs), dict(settings)), lambda a: zeros(symbols.lifted(self, a)))
        try:
            with torch.no_grad():
                call = getattr(given[0][0], what) if isinstance(what, str) else what
                made = call(*(given[0][1:] if isinstance(what, str) else given[0]), **given[1])
        except Exception:  # what it raises has been told already, in other words
            return None
        if not isinstance(made, Tensor):
            return None
        nothing = Place(torch.zeros(0, dtype=torch.long), made.numel())
        node = self.affine(self.affine(self.input, Pick(nothing.index, self.nodes[0].size), (0,)), nothing, ())
        return symbols.lowered(symbols.Symbol.of(self, node, made.shape, made.dtype))


class _Stored:
    """The tensors of a model as they were before its code ran."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = dict((*model.named_parameters(), *model.named_buffers()))
        self.before = {name: (t._version, t.detach().clone()) for name, t in self.tensors.items()}

    def restore(self) -> list[str]:
        """Put back what has changed, and return its names."""
        changed = [name for name, (version, _) in self.before.items() if self.tensors[name]._version != version]
        with torch.no_grad():
            for name in changed:
                self.tensors[name].copy_(self.before[name][1])
        return changed


class _Known:
    """Compute a function, or a method, of weights and sizes alone."""

    def __init__(self, what: Any, method: bool) -> None:
        self.what, self.method, self.__name__ = what, method, getattr(what, "__name__", str(what))

    def __call__(self, b: Builder, *inputs: Any, **settings: Any) -> Any:
        if _in_place(self.what, inputs, settings) or self.__name__.endswith("_"):
            raise Unreadable("it changes a weight in place")
        with torch.no_grad():
            return (
                getattr(inputs[0], self.what)(*inputs[1:], **settings)
                if self.method
                else self.what(*inputs, **settings)
            )


def _handler(what: Any) -> Callable[..., Any]:
    """Return what reads a layer, or a function."""
    if isinstance(what, _Known):
        return what
    if isinstance(what, ops.Constant):
        return lambda b: what.value
    if isinstance(what, ops.OnnxGraph):
        return lambda b, *given: b.trace_onnx(what, *given)
    if isinstance(what, nn.Module):
        return _module(what)
    name = what if isinstance(what, str) else what.__name__
    name = name.rstrip("_") if what in (operator.and_, operator.or_) else name
    function = FUNCTIONS.get(what if not isinstance(what, str) else f".{what}")
    if function is None and not symbols.known(name):
        raise Unreadable("this function is not supported")

    def read(b: Builder, *inputs: Any, **settings: Any) -> Any:
        if function is not None and not any(isinstance(value, symbols.Symbol) for value in inputs):
            return function(b, *inputs, **settings)
        given, more = symbols.lifted(b, inputs), symbols.lifted(b, settings)
        if not symbols.any_of(given, more):
            return _Known(what, isinstance(what, str))(b, *given, **more)
        return symbols.lowered(symbols.apply(name, given, more))

    return read


def _module(layer: nn.Module) -> Callable[..., Any]:
    """Return what reads a layer: its own reader, or else its own code, run on symbols."""
    found = next((HANDLERS[t] for t in type(layer).__mro__ if t in HANDLERS), None)
    imported = IMPORTED.get(type(layer))

    def read(b: Builder, *inputs: Any, **settings: Any) -> Any:
        if found is not None and not any(isinstance(value, symbols.Symbol) for value in inputs):
            return found(b, layer, *inputs, **settings)
        if imported is not None:
            return symbols.lowered(imported(b, layer, *symbols.lifted(b, inputs)))
        return symbols.lowered(layer(*symbols.lifted(b, inputs), **symbols.lifted(b, settings)))

    return read


def _constant(layer: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """Return what a layer makes of constants, if that takes no rounding."""
    if isinstance(layer, ops.Add):
        a, b = (each.double() for each in inputs)
        made: Tensor = layer(a, b)
        part = made - a  # two sums: what rounding took away
        if bool(((a - (made - part)) + (b - part) == 0).all()):
            return made
    if not isinstance(layer, MOVING) and any(each.is_floating_point() for each in inputs):
        raise Unreadable("it works on constants alone")
    with torch.no_grad():
        made = layer(*inputs)
    if not isinstance(made, Tensor):
        raise Unreadable("it does not make one tensor of constants")
    return made


def _in_place(what: Any, inputs: Sequence[Any], settings: dict[str, Any]) -> bool:
    """Tell whether an operation overwrites what it reads."""
    if isinstance(what, nn.Module):
        return bool(getattr(what, "inplace", False))
    return what in CHANGING or bool(settings.get("inplace")) or (what is F.relu and True in inputs[1:])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
