"""What a VNN-LIB 1.0 text says, character by character and point by point: slow, obvious, shares nothing with a reader.

Lexicon and arities are those of SMT-LIB 2.6, with what the files of VNN-COMP add: signs and exponents in numbers, and
`and` and `or` of one formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

DIGITS = set("0123456789")
COMPARISONS: dict[str, Callable[[Fraction, Fraction], bool]] = {
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "=": lambda a, b: a == b,
}
SILENT = ("set-logic", "set-info", "set-option", "check-sat", "get-model")


class Meaningless(Exception):
    """The text is no property."""


def tokens(text: str) -> list[str]:
    """Return parentheses, words, strings (with their quotes) and quoted symbols (with their bars)."""
    found, i = list[str](), 0
    while i < len(text):
        start, c = i, text[i]
        i += 1
        if c == ";":
            while i < len(text) and text[i] not in "\n\r":
                i += 1
        elif c in '"|':
            while i < len(text) and text[i] != c:
                i += 1
            if i == len(text):
                raise Meaningless("not closed")
            i += 1
            found.append(text[start:i])
        elif c in "()":
            found.append(c)
        elif "!" <= c <= "~":
            while i < len(text) and "!" <= text[i] <= "~" and text[i] not in '();"|':
                i += 1
            found.append(text[start:i])
        elif c not in "\t\n\r ":
            raise Meaningless(f"character {c!r}")
    return found


def nested(words: list[str]) -> list[Any]:
    """Return what parentheses hold, as lists."""
    stack: list[list[Any]] = [[]]
    for word in words:
        if word == "(":
            stack.append([])
        elif word == ")":
            last = stack.pop()
            if not stack:
                raise Meaningless("too many )")
            stack[-1].append(last)
        else:
            stack[-1].append(word)
    if len(stack) != 1:
        raise Meaningless("too few )")
    return stack[0]


def number(word: str) -> Fraction:
    """Return what a word such as -1.5e-05 stands for."""
    sign, rest = (-1 if word[0] == "-" else 1), word[1:] if word[0] in "+-" else word
    mantissa, e, exponent = rest.lower().partition("e")
    whole, _, part = mantissa.partition(".")
    power = exponent[1:] if exponent[:1] in ("+", "-") else exponent
    if (
        not (whole + part)
        or not DIGITS.issuperset(whole + part)
        or not DIGITS.issuperset(power)
        or bool(e) != bool(power)
    ):
        raise Meaningless(f"{word} is no number")
    if len(power) > 5:
        raise Meaningless("too large to compute with")
    shift = Fraction(10) ** (-int(power) if exponent[:1] == "-" else int(power or 0))
    return sign * Fraction(int(whole + part), 10 ** len(part)) * shift


class Text:
    """The declarations and assertions of a text."""

    def __init__(self, text: str) -> None:
        self.names: list[str] = []
        self.asserted: list[Any] = []
        asked = False
        for command in nested(tokens(text)):
            match command:
                case ["declare-const", str(name), "Real"] | ["declare-fun", str(name), [], "Real"]:
                    self.names.append(name)
                case ["assert", formula] if not asked:
                    self.asserted.append(formula)
                case [str(head), *_] if head in SILENT:
                    asked = asked or head == "check-sat"
                case _:
                    raise Meaningless(f"command {command}")
        counts = [sum(name[0] == kind for name in self.names) for kind in "XY"]
        if sorted(self.names) != sorted(f"{kind}_{i}" for kind, n in zip("XY", counts, strict=True) for i in range(n)):
            raise Meaningless("declarations")
        self.inputs, self.outputs = counts

    def says(self, x: Sequence[Fraction], y: Sequence[Fraction], closed: bool = False) -> bool:
        """Tell whether all assertions are true; if `closed`, with < and > taken as <= and >= for inputs alone."""
        at = {f"{kind}_{i}": v for kind, values in (("X", x), ("Y", y)) for i, v in enumerate(values)}
        said = [self._true(formula, at, closed) for formula in self.asserted]  # all, whatever the first one says
        return all(said)

    def _true(self, formula: Any, at: dict[str, Fraction], closed: bool) -> bool:
        match formula:
            case ["and" | "or" | "not" | "=>" as op, *parts] if parts:
                said = [self._true(part, at, closed) for part in parts]
                if op in ("and", "or"):
                    return all(said) if op == "and" else any(said)
                if op == "not" and len(said) == 1:
                    return not said[0]
                if op == "=>" and len(said) > 1:
                    return said[-1] or not all(said[:-1])
            case [str(op), left, right] if op in COMPARISONS:
                if closed and op in "<>" and "Y" not in str(formula):
                    op += "="
                return COMPARISONS[op](self._value(left, at), self._value(right, at))
        raise Meaningless(f"formula {formula}")

    def _value(self, term: Any, at: dict[str, Fraction]) -> Fraction:
        if isinstance(term, str):
            return at[term] if term in at else number(term)
        op, *rest = term or [""]
        values = [self._value(part, at) for part in rest]
        match op, values:
            case "-", [one]:
                return -one
            case "+", [_, _, *_]:
                return sum(values, Fraction(0))
            case "-", [first, _, *_]:
                return first - sum(values[1:])
            case "*", [_, _, *_]:
                return math.prod(values)
            case "/", [first, _, *_] if math.prod(values[1:]):
                return first / math.prod(values[1:])
        raise Meaningless(f"term {term}")
