"""What a network file and a property file say, for check.py: written out, nothing computed, nothing rounded.

Networks are those that onnx_graph.py reads, if they are a chain of Gemm, MatMul, Add, Sub, Relu, Flatten, Reshape and
Identity on one vector at a time. Properties are VNN-LIB 1.0: assertions of <=, <, >=, > between linear terms, joined by
and and or. Whatever else a file holds is an error.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_graph
from bounded import Unreadable

Array = np.ndarray
CHAIN = ("Gemm", "MatMul", "Add", "Sub", "Relu", "Flatten", "Reshape", "Identity")


@dataclass
class Layer:
    weight: Array  # (units, units before)
    bias: Array
    relu: bool = False


def read_network(data: bytes) -> list[Layer]:
    graph = onnx_graph.read(data)
    name, layers = graph.input, list[Layer]()

    def last(fresh: bool = False) -> Layer:
        """Give the last layer, or an identity after it."""
        if fresh or not layers:
            size = math.prod(graph.shapes[name])
            if size**2 + sum(layer.weight.size for layer in layers) > 2 * onnx_graph.CONSTANTS:
                raise Unreadable(f"with the identities between sums, it has over {2 * onnx_graph.CONSTANTS} weights")
            layers.append(Layer(np.eye(size), np.zeros(size)))
        return layers[-1]

    for node in graph.nodes:
        constants = [graph.constants[k].astype(float) for k in node.inputs if k in graph.constants]
        if node.inputs.count(name) != 1 or len(constants) != len(node.inputs) - 1 or node.op not in CHAIN:
            raise Unreadable(f"{node.op} {node.output[:80]!a}: only chains of {', '.join(CHAIN)} are supported")
        if node.op in ("Gemm", "MatMul"):
            weight = constants.pop(0)
            weight = weight if node.options.get("transB") else np.ascontiguousarray(weight.T)
            if weight.shape != (math.prod(node.shape), math.prod(graph.shapes[name])):
                raise Unreadable(f"{node.op} {node.output[:80]!a} multiplies more than one vector")
            layers.append(Layer(weight, np.zeros(len(weight))))
        elif node.op == "Relu":
            last().relu = True
        elif node.op == "Reshape":
            constants = []
        if node.op == "Sub" and node.inputs[0] != name:
            raise Unreadable(f"Sub {node.output[:80]!a} subtracts from a constant; only the opposite is supported")
        for constant in constants:
            bias = np.broadcast_to(constant, (1, *node.shape)).ravel()
            if bias.any():
                layer = last(fresh=bool(layers) and (layers[-1].relu or layers[-1].bias.any()))
                layer.bias = -bias if node.op == "Sub" else bias
        name = node.output
    if name != graph.output:
        raise Unreadable("the output is not the last value")
    last()
    return layers


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
