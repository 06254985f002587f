"""What a property file says, for check.py: written out, nothing computed, nothing rounded.

Properties are VNN-LIB 1.0: assertions of <=, <, >=, > between linear terms, joined by and and or; words, white space
and comments are those of SMT-LIB, without strings and quoted symbols. Whatever else a file holds, or more than the
limits below, is an error.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from bounded import Unreadable

Array = np.ndarray
MAX_BYTES, MAX_WORDS, MAX_DEPTH = 64 * 2**20, 4_000_000, 200  # of a property; as deeply parentheses may nest
MAX_PAIRS, MAX_NUMBERS, MAX_DIGITS = 100_000, 5_000_000, 4010  # of boxes and unsafe sets; in all of these; of a number


@dataclass
class Layer:
    weight: Array  # (units, units before)
    bias: Array
    relu: bool = False
    carried: int = 0  # so many units at the end have no ReLUs, if the others have

    @property
    def bent(self) -> int:
        """How many units have ReLUs, the first ones."""
        return len(self.bias) - self.carried if self.relu else 0


def limit(what: str, count: int, most: int) -> None:
    if count > most:
        raise Unreadable(f"there are {count} {what}, or more; at most {most} are read")


def fraction(word: str) -> Fraction:
    if len(word) > MAX_DIGITS or not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", word, re.ASCII):
        raise Unreadable(f"{word[:40]!r} is neither a number of at most {MAX_DIGITS} digits nor declared")
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
                raise Unreadable(f"({op} ...) of two terms with variables, or by zero, is not linear")
            form = {name: short(c * factor[""] if op == "*" else c / factor[""]) for name, c in form.items()}
        case _:
            raise Unreadable(f"{shown(term)} is no linear term")
    return form


def short(number: Fraction) -> Fraction:
    if max(number.numerator.bit_length(), number.denominator.bit_length()) > 12 * MAX_DIGITS:
        raise Unreadable("a term comes to a number that is too long")
    return number


def shown(part: Any) -> str:
    """Give the beginning of a part of the file, and how much it holds."""
    return f"({shown(part[0])} ...) with {len(part) - 1} parts" if isinstance(part, list) and part else repr(part[:40])


def alternatives(formulas: list[Any], names: set[str]) -> list[list[tuple[dict[str, Fraction], bool]]]:
    """Write the `and` of formulas as an `or` of `and`s of (linear form, strict), each meaning form <= 0, or < 0."""
    own, ways, todo, held = [], [], formulas[::-1], 0
    while todo:
        match todo.pop():
            case ["and", *parts] | ["or", *parts] as formula if parts and (formula[0] == "and" or len(parts) == 1):
                todo += parts[::-1]
            case ["or", *parts] if parts:
                ways.append([])
                for part in parts:
                    ways[-1] += (more := alternatives([part], names))
                    held += sum(map(len, more))
                    limit("pairs of box and unsafe set", math.prod(map(len, ways)), MAX_PAIRS)
                    limit("conditions", held, MAX_NUMBERS)
            case ["<=" | "<" | ">=" | ">" as op, left, right]:
                form = linear(["-", left, right] if op[0] == "<" else ["-", right, left], names)
                own.append(({name: c for name, c in form.items() if c}, len(op) == 1))
            case other:
                raise Unreadable(f"{shown(other)} is not supported")
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
            raise Unreadable(f"{other!r} is no character of a word, and no white space, in VNN-LIB")
        if word == ")":
            if len(stack) == 1:
                raise Unreadable("a parenthesis closes nothing")
            part = stack.pop()
            stack[-1].append(part)
        elif word == "(":
            limit("parentheses in each other", len(stack), MAX_DEPTH)
            stack.append([])
        elif word:
            stack[-1].append(word)
    if len(stack) > 1:
        raise Unreadable("a parenthesis is not closed")
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
                raise Unreadable(f"{shown(command)} is neither (assert ...) nor (declare-const ... Real)")
    if sorted(declared) != sorted(X + Y):
        raise Unreadable(f"{len(declared)} names are declared, not once each of {inputs} X_i and {outputs} Y_j")
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
                raise Unreadable(
                    f"a condition on {', '.join(free[:9])} is neither a bound of an input nor about outputs"
                )
        total += 2 * inputs + outputs * len(rows)
        limit("bounds of boxes and coefficients of rows", total, MAX_NUMBERS)
        if not all((*low.values(), *high.values())):
            raise Unreadable(f"{next(x for x in X if not low[x] or not high[x])} lacks a bound")
        box = tuple(max(low[x]) for x in X), tuple(min(high[x]) for x in X)
        if not rows or any(least > most for least, most in zip(*box, strict=True)):
            raise Unreadable("a box is empty, or no condition on outputs goes with it")
        dense = tuple((tuple(form.get(y, Fraction(0)) for y in Y), b, strict) for form, b, strict in rows)
        boxes.setdefault(box, {})[dense] = None
    return [(*box, rows) for box, ways in boxes.items() for rows in ways]
