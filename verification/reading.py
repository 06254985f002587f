"""What a network file and a property file say, for check.py: written out, nothing computed, nothing rounded.

Networks are chains of Gemm (transB), MatMul, Add, Sub, Relu, Flatten, Reshape and Identity with stored constants, on
one vector at a time. Properties are VNN-LIB 1.0: assertions of <=, <, >=, > between linear terms, joined by and and or.
Whatever else a file holds is an error.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.shape_inference

Array = np.ndarray


@dataclass
class Layer:
    weight: Array  # (units, units before)
    bias: Array
    relu: bool = False


def numbers(tensor: onnx.TensorProto) -> Array:
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype.kind != "f" or tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError("only floating-point constants inside the ONNX file are supported")
    return array.astype(float)


def read_network(data: bytes) -> list[Layer]:
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    constants = {t.name: t for t in model.graph.initializer}
    (source,), (sink,) = (v for v in model.graph.input if v.name not in constants), model.graph.output
    batch = source.type.tensor_type.shape.dim[0]
    batch.dim_value = batch.dim_value or 1
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    values = (source, *graph.value_info, *graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}  # 0 where unknown
    name, size = source.name, math.prod(shapes[source.name])
    layers = [Layer(np.eye(size), np.zeros(size))]
    for node in graph.node:
        op, options = node.op_type, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if op == "Constant" and "value" in options:
            constants[node.output[0]] = options["value"]
            continue
        options = {k: v for k, v in options.items() if v != {"alpha": 1, "beta": 1}.get(k, 0)}
        first, others = node.input[0] == name, [constants.get(k) for k in node.input if k != name]
        if node.domain or model.functions or len(others) != len(node.input) - 1 or None in others:
            raise ValueError(f"{op}: only chains of standard operators, on one value and constants, are supported")
        if op in ("Gemm", "MatMul") and first and options.keys() <= {"transB"}:
            weight = numbers(others.pop(0))
            weight = weight if options else np.ascontiguousarray(weight.T)
            if weight.shape[1:] != layers[-1].bias.shape:
                raise ValueError(f"{op} does not fit the {len(layers[-1].bias)} numbers before it")
            layers.append(Layer(weight, np.zeros(len(weight))))
        elif op in ("Relu", "Identity", "Flatten", "Reshape") and first and options.keys() <= {"axis"}:
            layers[-1].relu |= op == "Relu"
            others = []
        elif options or not (op == "Add" or (op == "Sub" and first)):
            raise ValueError(f"{op} with {[*options] or 'these inputs'} is not supported")
        name, size = node.output[0], len(layers[-1].bias)
        if math.prod(shapes[name]) != size:
            raise ValueError(f"{op} does not give one vector of {size} numbers")
        for constant in others:
            if layers[-1].relu or layers[-1].bias.any():
                layers.append(Layer(np.eye(size), np.zeros(size)))
            bias = np.broadcast_to(numbers(constant), shapes[name]).ravel()
            layers[-1].bias = -bias if op == "Sub" else bias
    if name != sink.name:
        raise ValueError("the output is not the last value")
    return layers if layers[0].bias.any() or layers[0].relu or len(layers) == 1 else layers[1:]


def linear(term: Any, names: set[str]) -> dict[str, Fraction]:
    """Give the coefficients of variables, and a constant under ""."""
    if isinstance(term, str):
        if term not in names and not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", term, re.ASCII):
            raise ValueError(f"{term!r} is neither a number nor declared")
        return {term: Fraction(1)} if term in names else {"": Fraction(term)}
    op, *parts = term[0], *(linear(part, names) for part in term[1:])
    if op in ("+", "-"):
        signs = [-1 if op == "-" and (k > 0 or len(parts) == 1) else 1 for k in range(len(parts))]
        return {v: sum(s * p.get(v, 0) for s, p in zip(signs, parts, strict=True)) for v in set().union(*parts)}
    *factors, form = sorted(parts, key=lambda part: part.keys() != {""}) if op == "*" else parts[::-1]
    if op not in ("*", "/") or len(parts) != 2 or factors[0].keys() != {""}:
        raise ValueError(f"({op} ...) with {len(parts)} parts is not linear")
    return {v: c * factors[0][""] if op == "*" else c / factors[0][""] for v, c in form.items()}


def alternatives(formulas: list[Any], names: set[str]) -> list[list[tuple[dict[str, Fraction], bool]]]:
    """Write the `and` of formulas as an `or` of `and`s of (linear form, strict), each meaning form <= 0, or < 0."""
    own, ways, todo = [], [], formulas[::-1]
    while todo:
        op, *parts = todo.pop()
        if (op == "and" and parts) or (op == "or" and len(parts) == 1):
            todo += parts[::-1]
        elif op == "or" and parts:
            ways.append([way for part in parts for way in alternatives([part], names)])
        elif op in ("<=", "<", ">=", ">") and len(parts) == 2:
            own.append((linear(["-", *(parts if op[0] == "<" else parts[::-1])], names), len(op) == 1))
        else:
            raise ValueError(f"({op} ...) with {len(parts)} parts is not supported")
    return [[*own, *itertools.chain(*chosen)] for chosen in itertools.product(*ways)]


def read_property(text: str, inputs: int, outputs: int) -> list[Any]:
    """Give (lower, upper, rows): at no lower <= x <= upper may all rows (a, b, strict) have a.f(x) + b <= 0, or < 0.

    Equal boxes are one, where the first appears, and have each set of rows once.
    """
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text)):
        if token == ")":
            stack[-2].append(stack.pop())
        else:
            stack.append([]) if token == "(" else stack[-1].append(token)
    (commands,) = stack
    X, Y = ([f"{k}_{i}" for i in range(n)] for k, n in (("X", inputs), ("Y", outputs)))
    asserted = [c[1] for c in commands if c[0] == "assert" and len(c) == 2]
    declared = [c[1] for c in commands if c[0] == "declare-const" and c[2:] == ["Real"]]
    if sorted(declared) != sorted(X + Y) or len(commands) != len(declared) + len(asserted):
        raise ValueError(f"expected (assert ...) and (declare-const ... Real), for {inputs} X and {outputs} Y")
    boxes: dict[Any, dict[Any, None]] = {}
    for way in alternatives(asserted, {*X, *Y}):
        low, high, rows = {x: [] for x in X}, {x: [] for x in X}, []
        for form, strict in way:
            b, free = form.get("", Fraction(0)), [k for k, v in form.items() if k and v]
            if all(k in Y for k in free):
                rows.append((tuple(form.get(y, Fraction(0)) for y in Y), b, strict))
            elif len(free) == 1:  # a strict bound is read as one that is not
                (high if form[free[0]] > 0 else low)[free[0]].append(-b / form[free[0]])
            else:
                raise ValueError(f"a condition on {', '.join(free)} is neither a bound of an input nor about outputs")
        box = tuple(max(low[x]) for x in X), tuple(min(high[x]) for x in X)  # there needs to be one
        if not rows or any(least > most for least, most in zip(*box, strict=True)):
            raise ValueError("a box is empty, or no condition on outputs goes with it")
        boxes.setdefault(box, {})[tuple(rows)] = None
    return [(*box, rows) for box, ways in boxes.items() for rows in ways]
