"""The disjunctive normal form of assertions: bounds of inputs and rows of outputs that hold together."""

from __future__ import annotations

import itertools
from fractions import Fraction

from nnrepair.verify.property import Conjunction, Halfspace
from nnrepair.verify.vnnlib import limits
from nnrepair.verify.vnnlib.syntax import Part, Source
from nnrepair.verify.vnnlib.terms import Terms

#: Side of the left-hand term (+1: it is bounded from above) and whether equality is excluded.
_COMPARISONS = {"<=": (1, False), "<": (1, True), ">=": (-1, False), ">": (-1, True)}

#: The tightest bound on each (input, side: -1 below, +1 above), and the comparison that says it.
Bounds = dict[tuple[int, int], tuple[Fraction, Part]]
#: Bounds that hold together, shared between clauses, with the rows of one conjunction.
Clause = tuple[tuple[Bounds, ...], Conjunction]


def tighten(bounds: Bounds, key: tuple[int, int], value: Fraction, part: Part) -> None:
    """Add a bound, unless there is a tighter one."""
    if key not in bounds or value * key[1] < bounds[key][0] * key[1]:
        bounds[key] = (value, part)


class Clauses:
    """The normal form of parts of a text.

    Args:
        source: the text.
        terms: its terms.
    """

    def __init__(self, source: Source, terms: Terms) -> None:
        self.fail, self.deadline = source.fail, source.deadline
        self.terms, self.outputs = terms, terms.outputs
        self.coefficients = 0  # of all rows so far

    def of(self, parts: list[tuple[Part, bool]]) -> list[Clause]:
        """Return the disjunctive normal form of: all of `parts` are true, or false where their flag is False."""
        bounds: Bounds = {}
        rows: list[Halfspace] = []
        factors: list[list[Clause]] = []
        todo, count, held = parts[::-1], 1, 0
        while todo:
            self.deadline.check()
            part, wanted = todo.pop()
            head, args = (part.parts[0].text, part.parts[1:]) if part.parts else ("", [])
            if head in _COMPARISONS and len(args) == 2:
                self.compare(part, wanted, bounds, rows)
                continue
            every, inner = wanted, [(arg, wanted) for arg in args]
            if head == "not" and len(args) == 1:
                every, inner = True, [(args[0], not wanted)]
            elif head == "=" and len(args) == 2:
                inner = [(Part("", part.start, part.end, [Part(op, 0, 0, []), *args]), wanted) for op in ("<=", ">=")]
            elif head == "=>" and len(args) >= 2:
                every, inner = not wanted, [*((arg, not wanted) for arg in args[:-1]), (args[-1], wanted)]
            elif head == "or" and args:
                every = not wanted
            elif head != "and" or not args:
                self.fail(part, "not a constraint; expected <= >= < > = of two terms, or and, or, not, => of those.")
            if every or len(inner) == 1:
                todo.extend(reversed(inner))
                continue
            factors.append([])
            for each in inner:
                factors[-1] += (more := self.of([each]))
                held += self.size(more)
                if count * len(factors[-1]) > limits.MAX_CLAUSES:
                    self.fail(
                        part,
                        f"the disjunctions multiply to more than {limits.MAX_CLAUSES} clauses. Split the property.",
                    )
                if held > limits.MAX_NUMBERS:
                    self.fail(part, f"{len(factors[-1])} clauses of these disjunctions are too long; {limits.most()}")
            count *= len(factors[-1])
        if (
            sum((count // len(each) * self.size(each) for each in factors), count * self.outputs * len(rows))
            > limits.MAX_NUMBERS
        ):
            self.fail(parts[0][0], f"the disjunctions multiply to {count} clauses; {limits.most()}")
        own = (bounds,) if bounds else ()
        return [
            (sum((b for b, _ in chosen), own), sum((r for _, r in chosen), tuple(rows)))
            for chosen in self.deadline.each(itertools.product(*factors))
        ]

    def size(self, clauses: list[Clause]) -> int:
        """Return how many numbers the rows of clauses have, with the sets of bounds."""
        return sum(len(bounds) + self.outputs * len(rows) for bounds, rows in clauses)

    def compare(self, part: Part, wanted: bool, bounds: Bounds, rows: list[Halfspace]) -> None:
        """Add what a comparison, or its negation, says."""
        op, left, right = part.parts
        sign, strict = _COMPARISONS[op.text]
        sign, strict = (sign, strict) if wanted else (-sign, not strict)
        terms = self.terms.add(part, self.terms.term(left), self.terms.term(right), -1)
        limit = -terms.pop("", Fraction(0))
        kinds = {name[0] for name in terms}
        if len(kinds) != 1:
            what = "inputs X_i with outputs Y_j" if kinds else "constants only"
            self.fail(part, f"this compares {what}; expected one input with a constant, or outputs.")
        if kinds == {"X"}:
            name, value = terms.popitem()
            if terms or not value:
                self.fail(part, "a constraint on inputs must bound exactly one X_i by a constant.")
            if strict:
                self.fail(part, f"{'a' if wanted else 'the negation is a'} strict bound on {name}; boxes are closed.")
            sign, limit = (sign if value > 0 else -sign), (limit if value == 1 else limit / value)
        try:
            list(map(float, (limit, *terms.values())))
        except OverflowError:
            self.fail(part, "a number is too large for float64.")
        if kinds == {"X"}:
            tighten(bounds, (int(name[2:]), sign), limit, part)
            return
        self.coefficients += self.outputs
        if self.coefficients > limits.MAX_NUMBERS:
            self.fail(part, f"{self.coefficients // self.outputs} rows for {self.outputs} outputs; {limits.most()}")
        coefficients = [Fraction(0)] * self.outputs
        for name, value in terms.items():
            coefficients[int(name[2:])] = sign * value
        rows.append(Halfspace(tuple(coefficients), sign * limit, strict))
