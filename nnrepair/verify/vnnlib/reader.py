"""From a text to a property: declarations, assertions, and the boxes and unsafe sets that they speak of."""

from __future__ import annotations

import itertools
import re

from nnrepair.verify.property import Box, Case, Conjunction, Property
from nnrepair.verify.vnnlib import limits
from nnrepair.verify.vnnlib.clauses import Bounds, Clauses, tighten
from nnrepair.verify.vnnlib.syntax import Part, Source
from nnrepair.verify.vnnlib.terms import Terms

_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d{0,8})", re.ASCII)
#: Commands of solvers that say nothing about the property.
_IGNORED = ("set-logic", "set-info", "set-option", "check-sat", "get-model")


class Reader:
    """Reads one text."""

    def __init__(self, source: Source) -> None:
        self.source, self.fail, self.deadline = source, source.fail, source.deadline
        self.declared: dict[str, Part] = {}

    def property(self) -> Property:
        asserts, asked, commands = [], False, self.source.commands()
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
        clauses = Clauses(self.source, Terms(self.source, self.declared, self.inputs, self.outputs))
        ways: dict[Box, list[Conjunction]] = {}
        known: dict[tuple[int, ...], list[Conjunction]] = {}  # the same, by what bounds the box: quicker to find
        for bounds, rows in self.deadline.each(clauses.of([(part, True) for part in asserts])):
            key = tuple(map(id, bounds))
            if key not in known:
                self.deadline.check()
                if 2 * self.inputs * len(known) > limits.MAX_NUMBERS:
                    self.fail(
                        asserts[-1], f"there are more than {len(known)} boxes of {self.inputs} inputs; {limits.most()}"
                    )
                known[key] = ways.setdefault(self.box(bounds), [])
            if not rows:
                _, where = next(reversed(bounds[-1].values()))
                self.fail(where, "no constraint on outputs Y_j goes with this bound; all of them would be unsafe.")
            known[key].append(rows)
        return Property([Case(box, tuple(rows)) for box, rows in ways.items()], self.outputs)

    def declare(self, command: Part) -> None:
        head, *rest = command.parts
        if head.text == "declare-fun" and len(rest) == 3 and not (rest[1].text or rest[1].parts):
            del rest[1]
        match [part.text for part in rest]:
            case [name, "Real"] if name in self.declared:
                self.fail(command, f"{name} is declared twice, first in line {self.source.line(self.declared[name])}.")
            case [name, "Real"] if _VARIABLE.fullmatch(name):
                self.declared[name] = command
            case _:
                self.fail(command, "expected (declare-const X_0 Real), with names X_0, X_1, ... and Y_0, Y_1, ...")

    def count(self, kind: str, last: Part) -> int:
        """Return how many inputs or outputs are declared; their numbers may have no gap."""
        names = [name for name in self.declared if name[0] == kind]
        for name in names:
            if int(name[2:]) >= len(names):
                gap = next(i for i in range(len(names)) if f"{kind}_{i}" not in self.declared)
                self.fail(self.declared[name], f"{name} is declared, but {kind}_{gap} is not.")
        if not names:
            self.fail(last, f"the file ends here, but no {kind}_0 is declared; expected (declare-const {kind}_0 Real).")
        return len(names)

    def box(self, bounds: tuple[Bounds, ...]) -> Box:
        """Return the intersection of bounds, which must all be there and not cross."""
        tightest: Bounds = {}
        for key, (value, part) in itertools.chain.from_iterable(each.items() for each in bounds):
            tighten(tightest, key, value, part)
        sides = ((-1, "lower"), (1, "upper"))
        gaps = [(i, which) for i in range(self.inputs) for side, which in sides if (i, side) not in tightest]
        if gaps:
            listed = ", ".join(f"X_{i} has no {which} bound" for i, which in gaps[:4]) + ", ..." * (len(gaps) > 4)
            given = sorted((part for _, part in tightest.values()), key=lambda part: part.start)
            lines = f" in lines {self.source.line(given[0])} to {self.source.line(given[-1])}" if given else ""
            self.fail(self.declared[f"X_{gaps[0][0]}"], f"{listed}{lines}; every input needs both.")
        for i in range(self.inputs):
            (low, below), (high, above) = tightest[i, -1], tightest[i, 1]
            if low > high:
                first, second = sorted((below, above), key=lambda part: part.start)
                crossed = f"{float(low)!r} <= X_{i} <= {float(high)!r}"
                self.fail(second, f"the box is empty: {crossed}, with the bound of line {self.source.line(first)}.")
        each = range(self.inputs)
        return Box([tightest[i, -1][0] for i in each], [tightest[i, 1][0] for i in each])
