"""Linear terms: a coefficient for each variable, and a constant, in exact fractions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

from nnrepair.verify.vnnlib import limits
from nnrepair.verify.vnnlib.syntax import Part, Source

_CONSTANT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?(?P<exponent>\d+))?", re.ASCII | re.IGNORECASE)
#: How many terms an operator joins, at least.
_LEAST_TERMS = {"+": 2, "-": 1, "*": 2, "/": 2}


class Terms:
    """The terms of a text.

    Args:
        source: the text.
        declared: the names that have been declared.
        inputs, outputs: how many these are.
    """

    def __init__(self, source: Source, declared: Mapping[str, Part], inputs: int, outputs: int) -> None:
        self.fail, self.deadline = source.fail, source.deadline
        self.declared, self.inputs, self.outputs = declared, inputs, outputs

    def term(self, part: Part) -> dict[str, Fraction]:
        """Return a linear term: the coefficient of each variable, and the constant under ""."""
        if part.text:
            return {part.text: Fraction(1)} if part.text in self.declared else {"": self.constant(part)}
        op = part.parts[0].text if part.parts else ""
        if len(part.parts) - 1 < _LEAST_TERMS.get(op, len(part.parts)):
            self.fail(
                part, "not a linear term; expected a constant, X_i, Y_j, (- term), or + - * / of two or more terms."
            )
        first, *rest = terms = [self.term(each) for each in part.parts[1:]]
        if op == "+" or op == "-":
            total = first if rest else self.add(part, {}, first, -1)
            for other in self.deadline.each(rest):
                self.add(part, total, other, 1 if op == "+" else -1)
            return total
        form, factor = {"": Fraction(1)}, Fraction(1)
        for each in terms:
            if each.keys() == {""}:
                if op == "/" and each is not first and not each[""]:
                    self.fail(part, "division by zero.")
                factor = self.fitting(part, factor / each[""] if op == "/" and each is not first else factor * each[""])
            elif form.keys() == {""} and (op == "*" or each is first):
                form = each
            else:
                self.fail(part, "this is not linear: only constants may multiply or divide a variable.")
        return {name: self.fitting(part, value * factor) for name, value in form.items()}

    def add(self, part: Part, a: dict[str, Fraction], b: dict[str, Fraction], sign: int) -> dict[str, Fraction]:
        """Add b, or -b, to a."""
        for name, value in b.items():
            value = value if sign > 0 else -value
            a[name] = self.fitting(part, a[name] + value) if name in a else value
        return a

    def fitting(self, part: Part, value: Fraction) -> Fraction:
        """Return a number that a term came to, unless it is too long to compute with."""
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > limits.MAX_BITS:
            self.fail(part, f"a number that this term comes to has more than {3 * limits.MAX_DIGITS} digits.")
        return value

    def constant(self, part: Part) -> Fraction:
        word = part.text
        if word.lstrip("+-").lower() in ("nan", "inf", "infinity"):
            self.fail(part, "constants must be finite numbers.")
        match = _CONSTANT.fullmatch(word)
        if not match:
            known = f"X_0 to X_{self.inputs - 1} and Y_0 to Y_{self.outputs - 1}"
            self.fail(part, f"neither a number nor a declared name; declared are {known}.")
        if len(word) > limits.MAX_DIGITS + 9 or len(match["exponent"] or "") > limits.MAX_EXPONENT_DIGITS:
            self.fail(
                part,
                f"a constant may have at most {limits.MAX_DIGITS} digits, "
                f"and its exponent {limits.MAX_EXPONENT_DIGITS}.",
            )
        return Fraction(Decimal(word))
