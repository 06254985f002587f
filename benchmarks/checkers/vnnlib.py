"""Two readers of VNN-LIB against each other, and against what the text says at points.

`python -m benchmarks.checkers.vnnlib` writes random properties with every kind of number, white space and comment,
damages many of them, and has them read by `nnrepair.verify.vnnlib.load` and by `read_property` of
verification/reading.py. What both read must be the same boxes and unsafe sets in the same order; what one reads must be
true exactly where the assertions are, by tests/reference/smtlib.py; what none reads must be refused in its own words.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.verify.cases import module_at
from nnrepair.errors import InvalidInput
from nnrepair.verify import vnnlib

RESULTS = Path(__file__).parent / "results"
TEXTS, BLOCK, SEED, POINTS = 60_000, 5_000, 20261128, 12

reading: Any = module_at("reading", measure.ROOT / "verification" / "reading.py")
smtlib: Any = module_at("smtlib", measure.ROOT / "tests" / "reference" / "smtlib.py")

Tokens = list[str]
Tasks = list[tuple[tuple[Fraction, ...], tuple[Fraction, ...], tuple[tuple[tuple[Fraction, ...], Fraction, bool], ...]]]

NUMBERS = "0 1 -1 2 0.5 -0.25 1. +.5 .75 -3 2e0 1E-1 -1.5e+0 007 1e-05 -0.0 0.1 33.3333e-2 1e-320 123456789.123456789"
TERMS = (
    "( - 1 )|( / 1 3 )|( * 2 0.5 )|( - 1 3 )|( + 1 -2 0.5 )|( / -1 ( - 3 ) )|( / 6 2 2 )|( * 0.5 -1 3 )|( - ( - 0.5 ) )"
)
#: What only looks like a number or a term.
TRAPS = '( + )|( - )|( * )|( / 1 )|( + 1 )|( * 2 )|( / 1 0 )|#x1|#b1|nan|-inf|1/3|1_0|1e400|1e9999|0x1|\'1\'|"1"|"1 )"|'
TRAPS += (
    "|X_0|,|Y_0|,1e999999999|1e99999999999999999999999|<12|>1|<|=12|X_00|Y_1_0|X_-1|Y_9|X|1,5|--1|+|.|e1|1e|true|( )"
)
SPACES = [" "] * 12 + [
    "\n",
    "\t",
    "\r",
    "\r\n",
    "  ",
    " ;c\n",
    ";\r",
    "; (assert (<= Y_0 0))\r",
    ";|\n",
    ';"\r',
    "; é ;\r\n",
]
COMMENTS = ["", " ; a note", "; (assert (<= Y_0 0))", ";", ' ;;\t) | "']
#: Some take them for white space or for the end of a line, SMT-LIB does not.
STRANGE = [*"\v\f\x1c\x1d\x1e\x1f\x00\x7f\x85\xa0\u1680\u2003\u2028\u2029\u200b\u3000\ufeff\\`\u0663"]
STRANGE += [f";{c}" for c in "\v\f\x1c\x85\u2028\ufeff"]
WORDS = "( ) and or not => <= >= < > = + - * / assert declare-const Real X_0 X_1 Y_0 Y_1 ; | Int xor ite check-sat"


class Writer:
    """Random properties, as tokens."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.inputs, self.outputs = rng.randint(1, 3), rng.randint(1, 3)
        self.traps, self.plain = rng.random() < 0.1, rng.random() < 0.7  # plain: what both readers know

    def some(self, kind: str) -> str:
        return f"{kind}_{self.rng.randrange(self.inputs if kind == 'X' else self.outputs)}"

    def constant(self) -> str:
        if self.traps and self.rng.random() < 0.2:
            return self.rng.choice(TRAPS.split("|")).replace(",", "|")
        terms = TERMS.split("|")
        return self.rng.choice(NUMBERS.split() * 2 + terms[: 6 if self.plain else len(terms)])

    def term(self, depth: int) -> str:
        rng = self.rng
        if not depth or rng.random() < 0.4:
            return self.some("Y")
        if rng.random() < 0.4:
            term, factor = self.term(depth - 1), self.constant()
            return rng.choice((f"( * {term} {factor} )", f"( * {factor} {term} )", f"( / {term} {factor} )"))
        parts = [
            self.term(depth - 1),
            *(rng.choice((self.constant(), self.term(0))) for _ in range(rng.choice((0, 1, 2)))),
        ]
        rng.shuffle(parts)
        return f"( {'-' if len(parts) == 1 else rng.choice('+-')} {' '.join(parts)} )"

    def bound(self, name: str, side: str, value: str) -> str:
        """Write name <= value or name >= value in one of many ways."""
        rng, turned = self.rng, ">=" if side == "<=" else "<="
        plain = f"( {side} {name} {value} )"
        return rng.choices(
            (
                plain,
                f"( {turned} {value} {name} )",
                f"( {turned} ( * -2 {name} ) ( * -2 {value} ) )",
                f"( {side} ( - {name} 1 ) ( - {value} 1 ) )",
                f"( not ( {turned[0]} {name} {value} ) )",
                f"( and {plain} )",
                f"( {side[0]} {name} {value} )",
            ),
            (8, 2, 1, 1, 0 if self.plain else 1, 1, 0.05),
        )[0]

    def box(self) -> list[str]:
        written = []
        for i in range(self.inputs):
            low, high = self.rng.choice(
                (("0", "1"), ("-0.5", "0.50"), ("( / -1 3 )", "1e-1"), ("1", "1"), (".25", "+3."))
            )
            both = [self.bound(f"X_{i}", ">=", low), self.bound(f"X_{i}", "<=", high)]
            written += self.rng.choice((both, both[::-1], [f"( and {' '.join(both)} )"]))
        return written

    def row(self) -> str:
        op = self.rng.choice(("<=", "<=", ">=", ">=", "<", ">", "<" if self.plain else "="))
        sides = [self.term(2), self.rng.choice((self.constant(), self.term(1)))]
        return f"( {op} {' '.join(self.rng.sample(sides, 2))} )"

    def formula(self, depth: int) -> str:
        rng = self.rng
        if not depth or rng.random() < 0.3:
            return self.row() if rng.random() < 0.9 else self.bound(self.some("X"), rng.choice(("<=", ">=")), "0.3")
        parts = [self.formula(depth - 1) for _ in range(rng.randint(1, 3))]
        op = rng.choices(("and", "or", "not", "=>"), (4, 6, 0, 0) if self.plain else (4, 6, 1, 1))[0]
        if op == "not":
            parts = parts[:1]
        if op == "=>":
            parts.append(self.row())
        return f"( {op} {' '.join(parts)} )"

    def tokens(self) -> Tokens:
        rng = self.rng
        names = [f"{kind}_{i}" for kind, n in (("X", self.inputs), ("Y", self.outputs)) for i in range(n)]
        declare = [f"( declare-const {name} Real )" for name in names]
        if rng.random() < 0.05:
            declare = [f"( declare-fun {name} ( ) Real )" for name in names]
        if rng.random() < 0.1:
            rng.shuffle(declare)
        if rng.random() < 0.2:  # boxes in a disjunction
            boxes = [" ".join(self.box()) for _ in range(rng.randint(1, 3))]
            rows = [f" {self.formula(1)}" * rng.randint(0, 1) for _ in boxes]
            asserts = [f"( or {' '.join(f'( and {b}{r} )' for b, r in zip(boxes, rows, strict=True))} )"]
        else:
            asserts = self.box()
        rng.shuffle(asserts)
        asserts += [self.formula(rng.randint(0, 3)) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        if rng.random() < 0.3:
            rng.shuffle(asserts)
        commands = [*declare, *(f"( assert {each} )" for each in asserts)]
        if rng.random() < 0.05:
            commands.insert(rng.randrange(len(commands) + 1), rng.choice(("( set-logic QF_LRA )", "( check-sat )")))
        if rng.random() < 0.03:
            commands.insert(rng.randrange(len(commands) + 1), '( set-info :source "a ) ""; |" )')
        if rng.random() < 0.02:
            commands.insert(rng.randrange(len(commands) + 1), '( set-info :source |a " ; ( | )')
        return " ".join(commands).split(" ")


def damaged(tokens: Tokens, rng: random.Random) -> Tokens:
    """Leave out, repeat, swap or replace a token."""
    at, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
    match rng.randrange(5):
        case 0:
            return tokens[:at] + tokens[at + 1 :]
        case 1:
            return tokens[:at] + tokens[at : at + rng.randint(1, 6)] + tokens[at:]
        case 2:
            tokens[at], tokens[other] = tokens[other], tokens[at]
        case 3:
            tokens[at] = rng.choice(WORDS.split())
        case _:
            tokens[at] = rng.choice(TRAPS.split("|")).replace(",", "|")
    return tokens


def spaced(tokens: Tokens, rng: random.Random, plain: float) -> str:
    """Join tokens; where white space may be left out, mostly do. Lines and comments end mostly where commands do."""
    parts, depth = [], 0
    for before, token in itertools.pairwise(["(", *tokens]):
        needed = before not in "()" and token not in "()"
        if before == ")" and rng.random() < (0.3 if depth == 0 else 0.03):
            parts += [rng.choice(COMMENTS), rng.choice(("\n", "\n", "\r", "\r\n"))]
        elif rng.random() > plain:
            parts.append(rng.choice(SPACES))
        elif needed or rng.random() < 0.3:
            parts.append(" ")
        parts.append(token)
        depth += (token == "(") - (token == ")")
    return "".join(parts) + rng.choice(("", "\n", "; end"))


def text(index: int, seed: int) -> bytes:
    """Return the text with this number."""
    rng = random.Random(f"{seed} {index}")
    tokens = Writer(rng).tokens()
    for _ in range(rng.choices((0, 1, 3), (7, 2, 1))[0]):
        tokens = damaged(tokens, rng)
    written = spaced(tokens, rng, rng.choice((1.0, 0.95, 0.6)))
    if rng.random() < 0.08:
        at = rng.randrange(len(written) + 1)
        written = written[:at] + rng.choice(STRANGE) + written[at:]
    if rng.random() < 0.06:  # the same with other ends of lines
        written = written.replace("\n", rng.choice(("\r", "\r\n", "\n\r", "\v", "\u2028")))
    data = written.encode("utf-8-sig" if rng.random() < 0.03 else "utf-8")
    if rng.random() < 0.1:
        changed, at = bytearray(data), rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + rng.choice((1, 1, 2, 9))]
            case _:
                changed.insert(at, rng.choice((*b'()\r\n;|" \t.-', rng.randrange(256))))
        data = bytes(changed)
    return data


# ------------------------------------------------------------------------------------------------------------ reading


def by_package(data: bytes, path: Path) -> Tasks | None:
    """Return the boxes and unsafe sets as the package reads them, or nothing where it refuses."""
    path.write_bytes(data)
    try:
        prop = vnnlib.load(path)
    except InvalidInput:
        return None
    return [
        (case.box.lower, case.box.upper, tuple((row.coefficients, -row.bound, row.strict) for row in rows))
        for case in prop.cases
        for rows in case.unsafe
    ]


def by_checker(data: bytes, inputs: int, outputs: int) -> Tasks | None:
    """Return the boxes and unsafe sets as the checker reads them, or nothing where it refuses."""
    try:
        tasks: Tasks = reading.read_property(data.decode("utf-8-sig"), inputs, outputs)
    except ValueError:
        return None
    return tasks


def inside(tasks: Tasks, x: Sequence[Fraction], y: Sequence[Fraction]) -> bool:
    """Tell whether x is in a box in which y is unsafe."""
    for lower, upper, rows in tasks:
        if all(low <= v <= high for low, v, high in zip(lower, x, upper, strict=True)):
            values = [(sum((c * v for c, v in zip(a, y, strict=True)), b), strict) for a, b, strict in rows]
            if all(value < 0 if strict else value <= 0 for value, strict in values):
                return True
    return False


def points(tasks: Tasks, inputs: int, outputs: int, rng: random.Random) -> Any:
    """Yield inputs and outputs on, near and off the borders of boxes and unsafe sets."""
    some = [Fraction(v) for v in ("0", "1", "-1", "1/2", "-1/3", "3", "-7/5", "40")]
    for _ in range(POINTS):
        lower, upper, rows = rng.choice(tasks)
        x = [rng.choice((low, high, (low + high) / 2)) for low, high in zip(lower, upper, strict=True)]
        if rng.random() < 0.2:
            x[rng.randrange(inputs)] += rng.choice(some)
        y = [rng.choice(some) for _ in range(outputs)]
        a, b, _ = rng.choice(rows)
        chosen = [k for k in range(outputs) if a[k]]
        if chosen:  # put y on the border of the row, or a little beside it
            k = rng.choice(chosen)
            y[k] -= (sum((c * v for c, v in zip(a, y, strict=True)), b)) / a[k]
            y[k] += rng.choice((0, 0, Fraction(1, 10**9), Fraction(-1, 10**9), 1, -1))
        yield x, y


def judged(data: bytes, path: Path, rng: random.Random, counts: Counter[str]) -> str:
    """Have one text read by all; return what is wrong, or nothing."""
    try:
        meaning = smtlib.Text(data.decode("utf-8-sig"))
    except (smtlib.Meaningless, ValueError):
        meaning = None
    shapes = [(meaning.inputs, meaning.outputs)] if meaning else itertools.product(range(1, 4), repeat=2)
    read = {"package": by_package(data, path)}
    read["checker"] = next((tasks for shape in shapes if (tasks := by_checker(data, *shape)) is not None), None)
    for who, tasks in read.items():
        counts[f"{who}: {'refused' if tasks is None else 'read'}"] += 1
        if tasks is not None and meaning is None:
            return f"{who} reads what has no meaning"
        for x, y in points(tasks, meaning.inputs, meaning.outputs, rng) if tasks else ():
            try:
                said = meaning.says(x, y, closed=who == "checker")
            except smtlib.Meaningless as reason:
                return f"{who} reads what has no meaning: {reason}"
            counts[f"points: {'unsafe' if said else 'safe'}"] += 1
            if said != inside(tasks, x, y):
                return f"{who} says the contrary at {[*map(str, x)]}, {[*map(str, y)]}"
    if None not in read.values():
        counts["read by both"] += 1
        if read["package"] != read["checker"]:
            return "two meanings"
    return ""


def block(first: int, count: int, seed: int) -> dict[str, Any]:
    """Judge a block of texts; return counts, and everything that is wrong."""
    counts: Counter[str] = Counter()
    wrong, slowest = list[str](), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for index in range(first, first + count):
            data, start = text(index, seed), time.process_time()
            try:
                problem = judged(data, Path(folder) / "p.vnnlib", random.Random(index), counts)
            except Exception as error:  # not in the reader's own words
                problem = f"{type(error).__name__}: {error}"
            slowest = max(slowest, time.process_time() - start)
            if problem:
                wrong.append(f"{index}: {problem}")
    return {
        "seed": seed,
        "first": first,
        "texts": count,
        "counts": dict(sorted(counts.items())),
        "wrong": wrong,
        "slowest_seconds": slowest,
    }


def run(texts: int, seed: int, path: Path) -> list[dict[str, Any]]:
    """Run the blocks that the result file lacks."""
    rows = measure.load(path)
    done = {(row["seed"], row["first"]) for row in rows}
    commit = measure.commit()
    for first in range(0, texts, BLOCK):
        if (seed, first) not in done:
            row = measure.measured(functools.partial(block, first, min(BLOCK, texts - first), seed))
            rows.append(row | {"commit": commit})
            measure.save(path, rows, "random VNN-LIB texts: two readers, and what the text says at points")
            print(first, f"{row['cpu_seconds']:.0f} CPU s", len(row["wrong"]), "wrong", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkers.vnnlib", description=__doc__)
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--text", type=int, help="show and judge this one text, writing no result")
    parser.add_argument("--path", type=Path, default=RESULTS / "vnnlib.json")
    arguments = parser.parse_args()
    if arguments.text is not None:
        print(text(arguments.text, arguments.seed))
        print(block(arguments.text, 1, arguments.seed))
        return
    rows = run(arguments.texts, arguments.seed, arguments.path)
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row["counts"])
    print(dict(counts), *(each for row in rows for each in row["wrong"]), sep="\n")


if __name__ == "__main__":
    main()
