"""VNN-LIB 1.0: properties as text, read and written without rounding.

A file asserts what a *violation* is: inputs `X_i` in boxes and outputs `Y_j` in polyhedra, joined by `and`, `or`, `not`
and `=>`. `load` returns the boxes and, for each, the ways to be unsafe. Whatever it does not understand is an error
that names the file, the line and the text: a misread property would be proved in good faith.

Words are those of SMT-LIB 2.6: white space is tab, line feed, carriage return and space, and a comment ends at a line
feed or a carriage return. Numbers may also have a sign and an exponent (`-0.5`, `1e-05`), and `and` and `or` one part,
as in the files of VNN-COMP. The limits below are stated in the errors that they lead to.
"""

from __future__ import annotations

import gc
import gzip
import io
import itertools
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

from nnrepair.deadline import NEVER, Deadline
from nnrepair.errors import InvalidInput
from nnrepair.verify.property import Box, Case, Conjunction, Halfspace, Property

#: Of a file: bytes once unpacked; words, parentheses and comments; how deeply parentheses nest.
MAX_BYTES, MAX_WORDS, MAX_DEPTH = 64 * 2**20, 4_000_000, 200
#: Of its disjunctive normal form: clauses; bounds of boxes, and coefficients of rows.
MAX_CLAUSES, MAX_NUMBERS = 100_000, 5_000_000
#: Digits of a constant (the longest sum of two floats has about 2100) and of its exponent.
MAX_DIGITS, MAX_EXPONENT_DIGITS = 4000, 3
_TOO_LONG = 10**MAX_DIGITS
_MOST_BITS = math.ceil(3 * MAX_DIGITS * math.log2(10))  # of what a term computes

#: After a comment comes a line feed or carriage return; whatever else may look like the end of a line is refused.
_TOKEN = re.compile(
    r"""[()] | ;[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]* | "[^"]*"? | \|[^|]*\|? | [!#-'*-:<-{}~]+ | [^\t\n\r ]""",
    re.VERBOSE,
)
_LINE_END = re.compile(r"\r\n?|\n")
_CONSTANT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?(?P<exponent>\d+))?", re.ASCII | re.IGNORECASE)
_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)
#: Side of the left-hand term (+1: it is bounded from above) and whether equality is excluded.
_COMPARISONS = {"<=": (1, False), "<": (1, True), ">=": (-1, False), ">": (-1, True)}
_MOST = f"at most {MAX_NUMBERS} bounds of boxes, and as many coefficients of rows, are read. Split the property."
#: How many terms an operator joins, at least.
_LEAST_TERMS = {"+": 2, "-": 1, "*": 2, "/": 2}
#: Commands of solvers that say nothing about the property.
_IGNORED = ("set-logic", "set-info", "set-option", "check-sat", "get-model")


def load(path: str | Path, deadline: Deadline = NEVER) -> Property:
    """Read a VNN-LIB 1.0 file, or a gzipped one.

    Constants are taken exactly, as fractions. Clauses on the same box become one case. Nothing is guessed: strict
    bounds on inputs (`X_0 < 1`; boxes are closed), clauses whose box is empty, and clauses that say nothing about the
    outputs are refused.

    Raises:
        InvalidInput: the file cannot be read, is larger than the limits of this module, or is not a property as
            described; the message says where and why.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if data[:2] == b"\x1f\x8b" and len(data) <= MAX_BYTES:
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"{path} cannot be read: {reason}. Expected a .vnnlib or .vnnlib.gz file.") from None
    if len(data) > MAX_BYTES:
        raise InvalidInput(f"{path} holds more than {MAX_BYTES} bytes of text, which are read at most. Split it.")
    try:
        return loads(data.decode("utf-8-sig"), str(path), deadline)
    except UnicodeDecodeError as error:
        line = _line(data[: error.start].decode("latin-1"))
        found = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise InvalidInput(f"{path}, line {line}: {found} is not UTF-8 text. Expected a VNN-LIB file.") from None


def loads(text: str, name: str = "<string>", deadline: Deadline = NEVER) -> Property:
    """Read a property from text, as `load` does; errors call it `name`, and OutOfTime says that the deadline passed.

    >>> loads('''
    ... (declare-const X_0 Real)
    ... (declare-const Y_0 Real)
    ... (assert (and (>= X_0 -0.5) (<= X_0 0.1)))
    ... (assert (>= Y_0 3.0))
    ... ''')
    Property of 1 inputs and 1 outputs: 1 box, 1 ways to be unsafe
    """
    collecting = gc.isenabled()
    gc.disable()  # it would walk the growing tree again and again, for more than half of the time
    try:
        return _Reader(text, name, deadline).property()
    except (MemoryError, RecursionError) as error:
        raise InvalidInput(f"{name} needs more memory than there is ({type(error).__name__}). Split it.") from None
    finally:
        if collecting:
            gc.enable()


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


@dataclass(slots=True)
class _Part:
    """A word (`text`), or a parenthesis around `parts` (`text` is empty), and where it stands in the file."""

    text: str
    start: int
    end: int
    parts: list[_Part]


_NONE: list[_Part] = []  # shared by all words
#: The tightest bound on each (input, side: -1 below, +1 above), and the comparison that says it.
_Bounds = dict[tuple[int, int], tuple[Fraction, _Part]]
#: Bounds that hold together, shared between clauses, with the rows of one conjunction.
_Clause = tuple[tuple[_Bounds, ...], Conjunction]


def _line(before: str) -> int:
    """Return the number of the line that comes after a text."""
    return len(_LINE_END.findall(before)) + 1


def _tighten(bounds: _Bounds, key: tuple[int, int], value: Fraction, part: _Part) -> None:
    if key not in bounds or value * key[1] < bounds[key][0] * key[1]:
        bounds[key] = (value, part)


class _Reader:
    def __init__(self, text: str, name: str, deadline: Deadline) -> None:
        self.text, self.name, self.deadline = text, name, deadline
        self.declared: dict[str, _Part] = {}
        self.coefficients = 0  # of all rows so far

    def line(self, part: _Part) -> int:
        return _line(self.text[: part.start])

    def fail(self, part: _Part, why: str) -> NoReturn:
        shown = " ".join(self.text[part.start : min(part.end, part.start + 200)].split())
        shown = shown if shown.isprintable() else ascii(shown)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise InvalidInput(f"{self.name}, line {self.line(part)}: {why}" + (f" In: {shown}" if shown else ""))

    def property(self) -> Property:
        asserts, asked, commands = [], False, self.commands()
        for command in commands:
            head = command.parts[0].text if command.parts else ""
            if head in ("declare-const", "declare-fun"):
                self.declare(command)
            elif head == "assert" and asked:
                self.fail(
                    command, "an (assert ...) after (check-sat) is no part of what was asked. Remove one of them."
                )
            elif head == "assert" and len(command.parts) == 2:
                asserts.append(command.parts[1])
            elif head in ("vnnlib-version", "declare-network"):
                self.fail(command, "this is VNN-LIB 2.0; only version 1.0 (declare-const X_0 Real, ...) is read.")
            elif head not in _IGNORED:
                self.fail(command, "not a command of VNN-LIB 1.0; expected (declare-const X_0 Real) or (assert ...).")
            asked = asked or head == "check-sat"
        self.inputs, self.outputs = (self.count(kind, commands[-1]) for kind in "XY")
        ways: dict[Box, list[Conjunction]] = {}
        known: dict[tuple[int, ...], list[Conjunction]] = {}  # the same, by what bounds the box: quicker to find
        for bounds, rows in self.deadline.each(self.clauses([(part, True) for part in asserts])):
            key = tuple(map(id, bounds))
            if key not in known:
                self.deadline.check()
                if 2 * self.inputs * len(known) > MAX_NUMBERS:
                    self.fail(asserts[-1], f"there are more than {len(known)} boxes of {self.inputs} inputs; {_MOST}")
                known[key] = ways.setdefault(self.box(bounds), [])
            if not rows:
                _, where = next(reversed(bounds[-1].values()))
                self.fail(where, "no constraint on outputs Y_j goes with this bound; all of them would be unsafe.")
            known[key].append(rows)
        return Property([Case(box, tuple(rows)) for box, rows in ways.items()], self.outputs)

    def commands(self) -> list[_Part]:
        """Return the parentheses of the file."""
        top = _Part("", 0, len(self.text), [])
        open_ = [top]
        for count, match in enumerate(self.deadline.each(_TOKEN.finditer(self.text)), 1):
            word = match[0]
            if count > MAX_WORDS:
                self.fail(_Part(word, *match.span(), _NONE), f"more than {MAX_WORDS} words and parentheses. Split it.")
            if word[0] == ";":
                continue
            part = _Part("", match.start(), 0, []) if word == "(" else _Part(word, *match.span(), _NONE)
            if word == ")":
                if len(open_) == 1:
                    self.fail(part, "this parenthesis closes nothing.")
                open_.pop().end = part.end
                continue
            if not "!" <= word[0] <= "~":
                known = "tab, line feed, carriage return and space"
                self.fail(part, f"the character U+{ord(word):04X} is none of VNN-LIB, whose white space is {known}.")
            if len(open_) == 1 and word != "(":
                self.fail(part, "expected a command in parentheses, such as (assert ...).")
            open_[-1].parts.append(part)
            if word == "(":
                open_.append(part)
                if len(open_) > MAX_DEPTH:
                    self.fail(part, f"parentheses are nested more than {MAX_DEPTH} deep.")
        if len(open_) > 1:
            open_[1].end = len(self.text)
            self.fail(open_[1], "the file ends before this parenthesis is closed; is it truncated?")
        if not top.parts:
            self.fail(top, "there is no command; expected a property in VNN-LIB 1.0.")
        return top.parts

    def declare(self, command: _Part) -> None:
        head, *rest = command.parts
        if head.text == "declare-fun" and len(rest) == 3 and not (rest[1].text or rest[1].parts):
            del rest[1]
        match [part.text for part in rest]:
            case [name, "Real"] if name in self.declared:
                self.fail(command, f"{name} is declared twice, first in line {self.line(self.declared[name])}.")
            case [name, "Real"] if _VARIABLE.fullmatch(name):
                self.declared[name] = command
            case _:
                self.fail(command, "expected (declare-const X_0 Real), with names X_0, X_1, ... and Y_0, Y_1, ...")

    def count(self, kind: str, last: _Part) -> int:
        """Return how many inputs or outputs are declared; their numbers may have no gap."""
        names = [name for name in self.declared if name[0] == kind]
        for name in names:
            if int(name[2:]) >= len(names):
                gap = next(i for i in range(len(names)) if f"{kind}_{i}" not in self.declared)
                self.fail(self.declared[name], f"{name} is declared, but {kind}_{gap} is not.")
        if not names:
            self.fail(last, f"the file ends here, but no {kind}_0 is declared; expected (declare-const {kind}_0 Real).")
        return len(names)

    def clauses(self, parts: list[tuple[_Part, bool]]) -> list[_Clause]:
        """Return the disjunctive normal form of: all of `parts` are true, or false where their flag is False."""
        bounds: _Bounds = {}
        rows: list[Halfspace] = []
        factors: list[list[_Clause]] = []
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
                inner = [(_Part("", part.start, part.end, [_Part(op, 0, 0, []), *args]), wanted) for op in ("<=", ">=")]
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
                factors[-1] += (more := self.clauses([each]))
                held += self.size(more)
                if count * len(factors[-1]) > MAX_CLAUSES:
                    self.fail(
                        part, f"the disjunctions multiply to more than {MAX_CLAUSES} clauses. Split the property."
                    )
                if held > MAX_NUMBERS:
                    self.fail(part, f"{len(factors[-1])} clauses of these disjunctions are too long; {_MOST}")
            count *= len(factors[-1])
        if (
            sum((count // len(each) * self.size(each) for each in factors), count * self.outputs * len(rows))
            > MAX_NUMBERS
        ):
            self.fail(parts[0][0], f"the disjunctions multiply to {count} clauses; {_MOST}")
        own = (bounds,) if bounds else ()
        return [
            (sum((b for b, _ in chosen), own), sum((r for _, r in chosen), tuple(rows)))
            for chosen in self.deadline.each(itertools.product(*factors))
        ]

    def size(self, clauses: list[_Clause]) -> int:
        """Return how many numbers the rows of clauses have, with the sets of bounds."""
        return sum(len(bounds) + self.outputs * len(rows) for bounds, rows in clauses)

    def compare(self, part: _Part, wanted: bool, bounds: _Bounds, rows: list[Halfspace]) -> None:
        """Add what a comparison, or its negation, says."""
        op, left, right = part.parts
        sign, strict = _COMPARISONS[op.text]
        sign, strict = (sign, strict) if wanted else (-sign, not strict)
        terms = self.add(part, self.term(left), self.term(right), -1)
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
            _tighten(bounds, (int(name[2:]), sign), limit, part)
            return
        self.coefficients += self.outputs
        if self.coefficients > MAX_NUMBERS:
            self.fail(part, f"{self.coefficients // self.outputs} rows for {self.outputs} outputs; {_MOST}")
        coefficients = [Fraction(0)] * self.outputs
        for name, value in terms.items():
            coefficients[int(name[2:])] = sign * value
        rows.append(Halfspace(tuple(coefficients), sign * limit, strict))

    def term(self, part: _Part) -> dict[str, Fraction]:
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

    def add(self, part: _Part, a: dict[str, Fraction], b: dict[str, Fraction], sign: int) -> dict[str, Fraction]:
        """Add b, or -b, to a."""
        for name, value in b.items():
            value = value if sign > 0 else -value
            a[name] = self.fitting(part, a[name] + value) if name in a else value
        return a

    def fitting(self, part: _Part, value: Fraction) -> Fraction:
        """Return a number that a term came to, unless it is too long to compute with."""
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
            self.fail(part, f"a number that this term comes to has more than {3 * MAX_DIGITS} digits.")
        return value

    def constant(self, part: _Part) -> Fraction:
        word = part.text
        if word.lstrip("+-").lower() in ("nan", "inf", "infinity"):
            self.fail(part, "constants must be finite numbers.")
        match = _CONSTANT.fullmatch(word)
        if not match:
            known = f"X_0 to X_{self.inputs - 1} and Y_0 to Y_{self.outputs - 1}"
            self.fail(part, f"neither a number nor a declared name; declared are {known}.")
        if len(word) > MAX_DIGITS + 9 or len(match["exponent"] or "") > MAX_EXPONENT_DIGITS:
            self.fail(part, f"a constant may have at most {MAX_DIGITS} digits, and its exponent {MAX_EXPONENT_DIGITS}.")
        return Fraction(Decimal(word))

    def box(self, bounds: tuple[_Bounds, ...]) -> Box:
        """Return the intersection of bounds, which must all be there and not cross."""
        tightest: _Bounds = {}
        for key, (value, part) in itertools.chain.from_iterable(each.items() for each in bounds):
            _tighten(tightest, key, value, part)
        sides = ((-1, "lower"), (1, "upper"))
        gaps = [(i, which) for i in range(self.inputs) for side, which in sides if (i, side) not in tightest]
        if gaps:
            listed = ", ".join(f"X_{i} has no {which} bound" for i, which in gaps[:4]) + ", ..." * (len(gaps) > 4)
            given = sorted((part for _, part in tightest.values()), key=lambda part: part.start)
            lines = f" in lines {self.line(given[0])} to {self.line(given[-1])}" if given else ""
            self.fail(self.declared[f"X_{gaps[0][0]}"], f"{listed}{lines}; every input needs both.")
        for i in range(self.inputs):
            (low, below), (high, above) = tightest[i, -1], tightest[i, 1]
            if low > high:
                first, second = sorted((below, above), key=lambda part: part.start)
                crossed = f"{float(low)!r} <= X_{i} <= {float(high)!r}"
                self.fail(second, f"the box is empty: {crossed}, with the bound of line {self.line(first)}.")
        each = range(self.inputs)
        return Box([tightest[i, -1][0] for i in each], [tightest[i, 1][0] for i in each])
