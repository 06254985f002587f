"""A property as VNN-LIB 1.0 text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from nnrepair.deadline import NEVER, Deadline
from nnrepair.errors import InvalidInput
from nnrepair.verify.property import Box, Halfspace, Property
from nnrepair.verify.vnnlib.limits import MAX_DIGITS

_TOO_LONG = 10**MAX_DIGITS


def dumps(prop: Property, deadline: Deadline = NEVER) -> str:
    """Write a property as VNN-LIB 1.0, so that `loads` returns an equal one.

    Every disjunction is a flat `(or (and ...) ...)`, which other tools read too. Fractions without a finite decimal
    form become `(/ a b)`.

    Raises:
        InvalidInput: a case has no way to be unsafe, or one without any row; VNN-LIB files say something about both.
        OutOfTime: the deadline passed.
    """
    if not all(case.unsafe and all(case.unsafe) for case in prop.cases):
        raise InvalidInput(
            "The property has a box without unsafe outputs, or with all outputs unsafe; such cases cannot be written. "
            "Leave out what is always true."
        )
    boxes = [list(_bounds(case.box, deadline)) for case in prop.cases]
    unsafe = [[[_row(row, deadline) for row in rows] for rows in case.unsafe] for case in prop.cases]
    if all(ways == unsafe[0] for ways in unsafe):
        asserts = [*_any(boxes), *_any(unsafe[0])]
    else:
        asserts = _any([box + way for box, ways in zip(boxes, unsafe, strict=True) for way in ways])
    lines = [
        "; VNN-LIB 1.0: an input and its output that satisfy every assert violate the property.",
        *(f"(declare-const {k}_{i} Real)" for k, n in (("X", prop.inputs), ("Y", prop.outputs)) for i in range(n)),
        *(f"(assert {each})" for each in asserts),
    ]
    return "\n".join(lines) + "\n"


def _any(clauses: Sequence[list[str]]) -> list[str]:
    """Return what to assert so that at least one clause holds."""
    if len(clauses) == 1:
        return clauses[0]
    return ["(or\n" + "\n".join(f"    (and {' '.join(clause)})" for clause in clauses) + "\n)"]


def _bounds(box: Box, deadline: Deadline) -> Iterable[str]:
    for i, (low, high) in enumerate(zip(box.lower, box.upper, strict=True)):
        deadline.check()
        yield f"(>= X_{i} {_number(low)})"
        yield f"(<= X_{i} {_number(high)})"


def _row(row: Halfspace, deadline: Deadline) -> str:
    """Return a halfspace, in the words that files usually have for it."""
    deadline.check()
    less, more = ("<", ">") if row.strict else ("<=", ">=")
    terms = [(f"Y_{k}", c) for k, c in enumerate(row.coefficients) if c] or [("Y_0", Fraction(0))]
    if len(terms) == 1 and abs(terms[0][1]) == 1:
        ((name, sign),) = terms
        return f"({less if sign > 0 else more} {name} {_number(sign * row.bound)})"
    names = {c: name for name, c in terms}
    if len(terms) == 2 and names.keys() == {1, -1} and not row.bound:
        return f"({less} {names[Fraction(1)]} {names[Fraction(-1)]})"
    products = " ".join(f"(* {_number(c)} {name})" for name, c in terms)
    return f"({less} {f'(+ {products})' if len(terms) > 1 else products} {_number(row.bound)})"


def _number(value: Fraction) -> str:
    """Return a fraction as a decimal where that is exact, else as a quotient."""
    over, under = value.numerator, value.denominator
    rest, fives = under, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    twos = rest.bit_length() - 1
    places = max(twos, fives)
    decimal = rest == 1 << twos and places <= MAX_DIGITS
    if decimal:
        over, under = over * 10**places // under, 1
    if max(abs(over), under) >= _TOO_LONG:
        raise InvalidInput(f"A number of the property has more than {MAX_DIGITS} digits; it cannot be written.")
    if not decimal:
        return f"(/ {over}.0 {under}.0)"
    digits = str(abs(over)).rjust(places + 1, "0")
    cut = len(digits) - places
    return f"{'-' * (over < 0)}{digits[:cut]}.{digits[cut:] or '0'}"
