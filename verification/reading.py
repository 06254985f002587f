"""What a network file and a property file say, for check.py: written out, nothing computed, nothing rounded.

Networks are chains of Gemm (transB), MatMul, Add, Sub, Relu, Flatten, Reshape and Identity with stored constants, on
one vector at a time. Properties are VNN-LIB 1.0: assertions of <=, <, >=, > between linear terms, joined by and and or;
words, white space and comments are those of SMT-LIB, without strings and quoted symbols. Whatever else a file holds, or
more than the limits below, is an error.
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
MAX_WEIGHTS = 2**26  # of a network
MAX_BYTES, MAX_WORDS, MAX_DEPTH = 64 * 2**20, 4_000_000, 200  # of a property; as deeply parentheses may nest
MAX_PAIRS, MAX_NUMBERS, MAX_DIGITS = 100_000, 5_000_000, 4010  # of boxes and unsafe sets; in all of these; of a number


@dataclass
class Layer:
    weight: Array  # (units, units before)
    bias: Array
    relu: bool = False


def limit(what: str, count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"there are {count} {what}, or more; at most {most} are read")


def numbers(tensor: onnx.TensorProto) -> Array:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:  # no hash covers it
        raise ValueError("only constants inside the ONNX file are supported")
    array = onnx.numpy_helper.to_array(tensor)
    if array.dtype.kind != "f":
        raise ValueError("only floating-point constants are supported")
    return array.astype(float)


def identity(size: int) -> Layer:
    limit("weights in one layer", size**2, MAX_WEIGHTS)
    return Layer(np.eye(size), np.zeros(size))


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
    layers, counted, weights = [identity(size)], 0, 0
    for node in graph.node:
        weights, counted = weights + sum(layer.weight.size for layer in layers[counted:]), len(layers)
        limit("weights, with those of a layer for each addition after a ReLU", weights, MAX_WEIGHTS)
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
                layers.append(identity(size))
            bias = np.broadcast_to(numbers(constant), shapes[name]).ravel()
            layers[-1].bias = -bias if op == "Sub" else bias
    if name != sink.name:
        raise ValueError("the output is not the last value")
    return layers if layers[0].bias.any() or layers[0].relu or len(layers) == 1 else layers[1:]


def fraction(word: str) -> Fraction:
    if len(word) > MAX_DIGITS or not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", word, re.ASCII):
        raise ValueError(f"{word[:40]!r} is neither a number of at most {MAX_DIGITS} digits nor declared")
    return Fraction(word)


def linear(term: Any, names: set[str]) -> dict[str, Fraction]:
    """Give the coefficients of variables, and a constant under ""."""
    match term:
        case str():
            form = {term: Fraction(1)} if term in names else {"": fraction(term)}
        case ["+", _, _, *_] | ["-", _, *_]:
            form = {}
            for k, part in enumerate(term[1:]):
                sign = -1 if term[0] == "-" and (k > 0 or len(term) == 2) else 1
                for name, c in linear(part, names).items():
                    form[name] = short(form.get(name, 0) + sign * c)
        case ["*" | "/" as op, left, right]:
            form, factor = linear(left, names), linear(right, names)
            if op == "*" and form.keys() == {""}:
                form, factor = factor, form
            if factor.keys() != {""} or (op == "/" and not factor[""]):
                raise ValueError(f"({op} ...) of two terms with variables, or by zero, is not linear")
            form = {name: short(c * factor[""] if op == "*" else c / factor[""]) for name, c in form.items()}
        case _:
            raise ValueError(f"{shown(term)} is no linear term")
    return form


def short(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > 12 * MAX_DIGITS:
        raise ValueError("a term comes to a number that is too long")
    return number


def shown(part: Any) -> str:
    """Give the beginning of a part of the file, and how much it holds."""
    return repr(part) if isinstance(part, str) or not part else f"({shown(part[0])} ...) with {len(part) - 1} parts"


def alternatives(formulas: list[Any], names: set[str]) -> list[list[tuple[dict[str, Fraction], bool]]]:
    """Write the `and` of formulas as an `or` of `and`s of (linear form, strict), each meaning form <= 0, or < 0."""
    own, ways, todo = [], [], formulas[::-1]
    while todo:
        match todo.pop():
            case ["and", *parts] | ["or", *parts] as formula if parts and (formula[0] == "and" or len(parts) == 1):
                todo += parts[::-1]
            case ["or", *parts] if parts:
                ways.append([])
                for part in parts:
                    ways[-1] += alternatives([part], names)
                    limit("pairs of box and unsafe set", math.prod(map(len, ways)), MAX_PAIRS)
            case ["<=" | "<" | ">=" | ">" as op, left, right]:
                form = linear(["-", left, right] if op[0] == "<" else ["-", right, left], names)
                own.append(({name: c for name, c in form.items() if c}, len(op) == 1))
            case other:
                raise ValueError(f"{shown(other)} is not supported")
    count = math.prod(map(len, ways))
    limit("conditions", sum((count // len(w) * sum(map(len, w)) for w in ways), count * len(own)), MAX_NUMBERS)
    return [[*own, *itertools.chain(*chosen)] for chosen in itertools.product(*ways)]


def parentheses(text: str) -> list[Any]:
    """Give the commands of a file as lists of words and lists; a comment ends where SMT-LIB says that a line does."""
    stack: list[list[Any]] = [[]]
    tokens = r"([()]|[!#-'*-:<-{}~]+)|;[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]*|[\t\n\r ]+|(.)"
    for count, match in enumerate(re.finditer(tokens, text, re.DOTALL)):
        word, other = match.groups()
        limit("words and parentheses", count, 2 * MAX_WORDS)  # with what is between them
        if other:
            raise ValueError(f"{other!r} is no character of a word, and no white space, in VNN-LIB")
        if word == ")":
            if len(stack) == 1:
                raise ValueError("a parenthesis closes nothing")
            part = stack.pop()
            stack[-1].append(part)
        elif word == "(":
            limit("parentheses in each other", len(stack), MAX_DEPTH)
            stack.append([])
        elif word:
            stack[-1].append(word)
    if len(stack) > 1:
        raise ValueError("a parenthesis is not closed")
    return stack[0]


def read_property(text: str, inputs: int, outputs: int) -> list[Any]:
    """Give (lower, upper, rows): at no lower <= x <= upper may all rows (a, b, strict) have a.f(x) + b <= 0, or < 0.

    Equal boxes are one, where the first appears, and have each set of rows once.
    """
    limit("characters", len(text), MAX_BYTES)
    X, Y = ([f"{k}_{i}" for i in range(n)] for k, n in (("X", inputs), ("Y", outputs)))
    asserted, declared = list[Any](), list[str]()
    for command in parentheses(text):
        match command:
            case ["assert", formula]:
                asserted.append(formula)
            case ["declare-const", str(name), "Real"]:
                declared.append(name)
            case _:
                raise ValueError(f"{shown(command)} is neither (assert ...) nor (declare-const ... Real)")
    if sorted(declared) != sorted(X + Y):
        raise ValueError(f"{len(declared)} names are declared, not once each of {inputs} X_i and {outputs} Y_j")
    boxes: dict[Any, dict[Any, None]] = {}
    total = 0
    for way in alternatives(asserted, {*X, *Y}):
        low, high, rows = {x: [] for x in X}, {x: [] for x in X}, []
        for form, strict in way:
            b, free = form.get("", Fraction(0)), [name for name in form if name]
            if all(name[0] == "Y" for name in free):
                rows.append((form, b, strict))
            elif len(free) == 1:  # a strict bound is read as one that is not: more is proved then
                (high if form[free[0]] > 0 else low)[free[0]].append(-b / form[free[0]])
            else:
                raise ValueError(
                    f"a condition on {', '.join(free[:9])} is neither a bound of an input nor about outputs"
                )
        total += 2 * inputs + outputs * len(rows)
        limit("bounds of boxes and coefficients of rows", total, MAX_NUMBERS)
        if not all((*low.values(), *high.values())):
            raise ValueError(f"{next(x for x in X if not low[x] or not high[x])} lacks a bound")
        box = tuple(max(low[x]) for x in X), tuple(min(high[x]) for x in X)
        if not rows or any(least > most for least, most in zip(*box, strict=True)):
            raise ValueError("a box is empty, or no condition on outputs goes with it")
        dense = tuple((tuple(form.get(y, Fraction(0)) for y in Y), b, strict) for form, b, strict in rows)
        boxes.setdefault(box, {})[dense] = None
    return [(*box, rows) for box, ways in boxes.items() for rows in ways]
