from __future__ import annotations

import gc
import gzip
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnrepair import Argmax, InvalidInput, Near
from nnrepair.verify.property import Box, Case, Halfspace, Property
from nnrepair.verify.vnnlib import dumps, load, loads

DataDir = Callable[..., Path]
quick = settings(deadline=None, derandomize=True, max_examples=150)


def declare(inputs: int, outputs: int) -> str:
    names = [f"X_{i}" for i in range(inputs)] + [f"Y_{i}" for i in range(outputs)]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


#: Two inputs in [0, 1] and three outputs, in seven lines.
HEAD = declare(2, 3) + "(assert (and (>= X_0 0) (<= X_0 1)))\n(assert (and (>= X_1 0.0) (<= X_1 1.0)))\n"


def ways(*asserts: str) -> list[list[tuple[list[Fraction], Fraction, bool]]]:
    """Return the unsafe conjunctions of the only case, as coefficients, bound and strictness."""
    (case,) = loads(HEAD + "".join(f"(assert {each})\n" for each in asserts)).cases
    return [[(list(row.coefficients), row.bound, row.strict) for row in rows] for rows in case.unsafe]


# What is read


@pytest.mark.parametrize(
    ("constraint", "coefficients", "bound", "strict"),
    [
        ("(<= Y_0 Y_1)", [1, -1, 0], 0, False),
        ("(>= Y_0 Y_1)", [-1, 1, 0], 0, False),
        ("(< Y_0 0.1)", [1, 0, 0], Fraction(1, 10), True),
        ("(> Y_0 1e-3)", [-1, 0, 0], Fraction(-1, 1000), True),
        ("(<= 2.5E+1 Y_2)", [0, 0, -1], -25, False),
        ("(<= Y_0 (- 3.5))", [1, 0, 0], Fraction(-7, 2), False),
        ("(<= Y_0 -3.5)", [1, 0, 0], Fraction(-7, 2), False),
        ("(<= Y_0 (/ 1 3))", [1, 0, 0], Fraction(1, 3), False),
        ("(<= (/ Y_0 3) (* 2 (- 0.1)))", [Fraction(1, 3), 0, 0], Fraction(-1, 5), False),
        ("(<= (* 2.0 Y_0) (* Y_1 3 0.5))", [2, Fraction(-3, 2), 0], 0, False),
        ("(<= (+ Y_0 (* 2 Y_1) -1) (- Y_2 Y_0 4))", [2, 2, -1], -3, False),
        ("(<= (- (+ Y_0 1)) 0)", [-1, 0, 0], 1, False),
        ("(<= (* 2 (- Y_0 (/ 1 2))) 0)", [2, 0, 0], 1, False),
        ("(<= (+ Y_0 Y_0) Y_0)", [1, 0, 0], 0, False),
        ("(<= (- Y_0 Y_0) 1)", [0, 0, 0], 1, False),
        ("(not (<= Y_0 2))", [-1, 0, 0], -2, True),
        ("(not (> Y_0 2))", [1, 0, 0], 2, False),
        ("(not (not (>= Y_0 2)))", [-1, 0, 0], -2, False),
        ("(and (or (and (<= Y_0 2))))", [1, 0, 0], 2, False),
    ],
)
def test_one_row(constraint: str, coefficients: list[Any], bound: Any, strict: bool) -> None:
    assert ways(constraint) == [[(coefficients, bound, strict)]]


def test_connectives() -> None:
    a, b, c = ([([int(k == i) for k in range(3)], 0, False)] for i in range(3))
    A, B, C = (f"(<= Y_{i} 0)" for i in range(3))
    not_a = [([-1, 0, 0], 0, True)]
    assert ways(A, B) == ways(f"(and {A} {B})") == [a + b]
    assert ways(f"(or {A} {B})") == ways(f"(or {A} (or {B} {A}))") == [a, b]
    assert ways(f"(or {A} {B})", C) == ways(C, f"(or {A} {B})") == [c + a, c + b]
    assert ways(f"(or {A} {B})", f"(or {B} {C})") == [a + b, a + c, b + b, b + c]
    assert ways(f"(or {A} (and {B} (or {A} {C})))") == [a, b + a, b + c]
    assert ways(f"(=> {A} {B})") == [not_a, b]
    assert ways(f"(=> {B} {A} {C})") == ways(f"(=> {B} (=> {A} {C}))")
    assert ways(f"(not (and {A} (not {B})))") == [not_a, b]
    assert ways(f"(not (=> (not {A}) {B}))") == [[*not_a, ([0, -1, 0], 0, True)]]
    assert ways("(= Y_0 Y_1)") == [[([1, -1, 0], 0, False), ([-1, 1, 0], 0, False)]]
    assert ways("(not (= Y_0 Y_1))") == [[([-1, 1, 0], 0, True)], [([1, -1, 0], 0, True)]]


def test_bounds_on_inputs() -> None:
    def box(*asserts: str) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
        text = declare(2, 1) + "".join(f"(assert {each})" for each in (*asserts, "(<= Y_0 0)"))
        (case,) = loads(text).cases
        return case.box.lower, case.box.upper

    third = Fraction(1, 3)
    assert box("(<= 0.1 X_0)", "(<= X_0 (/ 1 3))", "(= X_1 2)") == ((Fraction(1, 10), 2), (third, 2))
    assert box("(<= (* -2 X_0) 1)", "(>= 1 X_0)", "(<= (+ X_1 1) 3)", "(not (< X_1 0))") == (
        (Fraction(-1, 2), 0),
        (1, 2),
    )
    tightest = box("(<= X_0 3)", "(<= X_0 1)", "(<= X_0 2)", "(>= X_0 -3)", "(>= X_0 -1)", "(= X_1 0)")
    assert tightest == ((-1, 0), (1, 0))


def test_inputs_in_disjunctions() -> None:
    left, right = "(and (<= X_0 0.4) (<= Y_0 0))", "(and (>= X_0 0.6) (<= Y_1 0))"
    prop = loads(HEAD + f"(assert (or {left} {right} (<= Y_2 0) (and (<= X_0 0.4) (<= Y_2 0)) {left}))")
    y = [(Halfspace(tuple(Fraction(k == i) for k in range(3)), Fraction(0)),) for i in range(3)]
    assert prop.cases == (
        Case(Box([0, 0], [Fraction(2, 5), 1]), (y[0], y[2])),  # equal boxes joined, the repeated clause dropped
        Case(Box([Fraction(3, 5), 0], [1, 1]), (y[1],)),
        Case(Box([0, 0], [1, 1]), (y[2],)),
    )


def test_what_else_a_file_may_hold(tmp_path: Path) -> None:
    text = (
        '\ufeff; a (comment\r\n(set-logic QF_LRA)(set-info :source "a ) and "" b ; c")\r\n(declare-fun Y_0 () Real)'
        "(declare-const X_0 Real);\t(assert\n(assert (and (>=\nX_0\t.5) (<= X_0 1.)))(assert (<= Y_0 0))(check-sat)"
    )
    expected = Property([Case(Box([0.5], [1]), ((Halfspace((Fraction(1),), Fraction(0)),),))], 1)
    (tmp_path / "p.vnnlib").write_text(text, newline="")
    (tmp_path / "p.vnnlib.gz").write_bytes(gzip.compress(text.encode()))
    assert load(tmp_path / "p.vnnlib") == load(str(tmp_path / "p.vnnlib.gz")) == expected


Formula = tuple[Any, ...]  # (connective, part, ...), or (comparison, left text, right text)


@st.composite
def formulas(draw: Any, wanted: bool = True, depth: int = 3) -> Formula:
    """Draw constraints; on inputs only such that stay closed, and never cross, once `not` and `=>` are resolved."""
    kinds = ["y", "y", "x", *(["and", "or", "not", "=>"] if depth else [])]
    kind = draw(st.sampled_from(kinds))
    inner = st.deferred(lambda: formulas(wanted, depth - 1))
    if kind == "x":
        upper, i, c = draw(st.booleans()), draw(st.integers(0, 1)), draw(st.integers(1, 3))
        op = {(True, True): "<=", (False, True): ">=", (True, False): ">", (False, False): "<"}[upper, wanted]
        sides = (f"X_{i}", str(c if upper else -c))
        return (op, *sides) if draw(st.booleans()) else (op.translate(str.maketrans("<>", "><")), *sides[::-1])
    if kind == "y":
        terms = ["Y_0", "Y_1", "2", "(- 1.0)", "(+ Y_0 (* 2 Y_1))", "(- Y_1 Y_0 0.5)", "(* (/ 1 3) (- Y_0))"]
        left = draw(st.sampled_from([t for t in terms if "Y" in t]))
        op = draw(st.sampled_from(["<=", ">=", "<", ">", "="]))
        sides = (left, draw(st.sampled_from(terms)))
        return (op, *draw(st.permutations(sides)))
    if kind == "not":
        return ("not", draw(formulas(not wanted, depth - 1)))
    if kind == "=>":
        return ("=>", draw(formulas(not wanted, depth - 1)), draw(inner))
    return (kind, *draw(st.lists(inner, min_size=1, max_size=3)))


def write(formula: Any) -> str:
    return formula if isinstance(formula, str) else f"({' '.join(map(write, formula))})"


def value(term: str, at: dict[str, Fraction]) -> Fraction:
    """Evaluate one of the terms above by Python's own grammar."""
    python = {
        "(- 1.0)": "-1",
        "(+ Y_0 (* 2 Y_1))": "Y_0 + 2 * Y_1",
        "(- Y_1 Y_0 0.5)": "Y_1 - Y_0 - one / 2",
        "(* (/ 1 3) (- Y_0))": "one / 3 * -Y_0",
    }
    return Fraction(eval(python.get(term, term), {"one": Fraction(1), **at}))


def true(formula: Formula, at: dict[str, Fraction]) -> bool:
    op, *parts = formula
    match op:
        case "and":
            return all(true(part, at) for part in parts)
        case "or":
            return any(true(part, at) for part in parts)
        case "not":
            return not true(parts[0], at)
        case "=>":
            return not true(parts[0], at) or true(parts[1], at)
    left, right = (value(part, at) for part in parts)
    return {"<=": left <= right, ">=": left >= right, "<": left < right, ">": left > right, "=": left == right}[op]


@given(formulas(), st.lists(st.integers(-4, 4), min_size=2, max_size=2), st.lists(st.integers(-3, 3), min_size=2))
@quick
def test_a_property_is_violated_where_all_asserts_are_true(formula: Formula, x: list[int], y: list[int]) -> None:
    bounds = "".join(f"(assert (and (>= X_{i} -4) (<= X_{i} 4)))" for i in range(2))
    prop = loads(declare(2, 2) + bounds + f"(assert (<= Y_0 2))\n(assert {write(formula)})")
    at = {f"X_{i}": Fraction(x[i]) for i in range(2)} | {f"Y_{i}": Fraction(y[i]) for i in range(2)}
    assert prop.violated_at(x, [at["Y_0"], at["Y_1"]]) == (y[0] <= 2 and true(formula, at))
    assert loads(dumps(prop)) == prop


# What is written

numbers = st.one_of(
    st.fractions(-5, 5, max_denominator=50),
    st.floats(allow_nan=False, allow_infinity=False).map(Fraction),
    st.integers(-3, 3).map(Fraction),
)


@st.composite
def properties(draw: Any) -> Property:
    inputs, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def box() -> Box:
        pairs = [sorted(draw(st.tuples(numbers, numbers))) for _ in range(inputs)]
        return Box([low for low, _ in pairs], [high for _, high in pairs])

    row = st.builds(Halfspace, st.tuples(*[numbers] * outputs), numbers, st.booleans())
    conjunctions = st.lists(st.lists(row, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)
    boxes = [box() for _ in range(draw(st.integers(1, 3)))]
    shared = draw(conjunctions)
    same = draw(st.booleans())
    return Property([Case(each, tuple(shared if same else draw(conjunctions))) for each in boxes], outputs)


@given(properties())
@example(Property.on(Box([Fraction(1, 10**400)], [1e308]), Near(torch.tensor([[1e-42]]), 1e-42)))
@settings(quick, max_examples=80)
def test_what_is_written_is_read_back(prop: Property) -> None:
    assert loads(dumps(prop)) == prop


def test_how_it_is_written() -> None:
    prop = Property.on(Box([-0.5, Fraction(1, 3)], [Fraction(-1, 10), 2]), Argmax([1]), outputs=3)
    assert dumps(prop).splitlines()[1:] == [
        *declare(2, 3).splitlines(),
        "(assert (>= X_0 -0.5))",
        "(assert (<= X_0 -0.1))",
        "(assert (>= X_1 (/ 1.0 3.0)))",
        "(assert (<= X_1 2.0))",
        "(assert (or",
        "    (and (<= Y_1 Y_0))",
        "    (and (<= Y_1 Y_2))",
        "))",
    ]
    assert (
        "(assert (or\n    (and (>= X_0 0.0) (<= X_0 1.0))\n    (and (>= X_0 2.0) (<= X_0 3.0))\n))\n(assert (<"
        in dumps(Property.on([Box([0], [1]), Box([2], [3])], Argmax([0], margin=1.0), outputs=2))
    )
    assert "\n    (and (>= X_0 2.0) (<= X_0 3.0) (<= Y_1 Y_0))\n" in dumps(
        Property.on([Box([0], [1]), Box([2], [3])], Argmax([0, 1]), outputs=2)
    )


def test_what_cannot_be_written() -> None:
    box, row = Box([0], [1]), Halfspace((Fraction(1),), Fraction(0))
    for unsafe in ((), ((),), ((row,), ())):
        with pytest.raises(InvalidInput, match="Leave out what is always true"):
            dumps(Property([Case(box, unsafe)], 1))
    for long in (Fraction(1, 3**9000), Fraction(10**4000 + 1, 10**4000), Fraction(1, 2**14000)):
        with pytest.raises(InvalidInput, match="more than 4000 digits"):
            dumps(Property([Case(Box([long], [2]), ((row,),))], 1))
    short = Property([Case(Box([Fraction(1, 10**4000)], [Fraction(10**3999 + 7, 10**4000 - 1)]), ((row,),))], 1)
    assert loads(dumps(short)) == short


# What is refused

ROW = "(assert (<= Y_0 0))\n"
DEEP = "(assert " + "(not " * 300 + "(<= Y_0 0)" + ")" * 301


@pytest.mark.parametrize(
    ("message", "text"),
    [
        # commands
        ("line 1: there is no command; expected a property in VNN-LIB 1.0.", ""),
        ("line 1: there is no command", "; nothing\n"),
        ("line 8: expected a command in parentheses, such as (assert ...). In: hello", HEAD + "hello"),
        ("line 1: the character U+0000 is none of VNN-LIB, whose white space is tab, line feed,", "\x00\x01\x7f"),
        ("line 8: this parenthesis closes nothing. In: )", HEAD + ")"),
        (
            "line 8: the file ends before this parenthesis is closed; is it truncated? In: (assert",
            HEAD + "(assert (<= ",
        ),
        ("line 3: the file ends before this parenthesis is closed", "\n\n(declare-const X_0 Real\n(assert"),
        ("line 9: not a command of VNN-LIB 1.0", HEAD + ROW + "(push 1)"),
        (
            "line 8: not a command of VNN-LIB 1.0; expected (declare-const X_0 Real) or (assert ...). In: ()",
            HEAD + "()",
        ),
        ("line 8: not a command of VNN-LIB 1.0", HEAD + "((assert) (<= Y_0 0))"),
        ("line 8: not a command of VNN-LIB 1.0", HEAD + "(assert)"),
        ("line 8: not a command of VNN-LIB 1.0", HEAD + "(assert (<= Y_0 0) (<= Y_1 0))"),
        ("line 8: not a command of VNN-LIB 1.0", HEAD + "(define-fun f () Real 1.0)"),
        ("line 1: this is VNN-LIB 2.0; only version 1.0 (declare-const", "(vnnlib-version <2.0>)"),
        (
            "line 2: this is VNN-LIB 2.0",
            "\n(declare-network N (declare-input X Real [1]) (declare-output Y Real [1]))\n(assert (<= Y [0] 0.0))",
        ),
        # declarations
        ("line 8: X_0 is declared twice, first in line 1. In: (declare-const X_0 Real)", HEAD + declare(1, 0)),
        ("line 8: Y_2 is declared twice, first in line 5.", HEAD + "(declare-fun Y_2 () Real)"),
        ("line 1: X_2 is declared, but X_0 is not.", "(declare-const X_2 Real)(declare-const X_1 Real)"),
        ("line 8: Y_4 is declared, but Y_3 is not. In: (declare-const Y_4 Real)", HEAD + "(declare-const Y_4 Real)"),
        ("line 8: expected (declare-const X_0 Real), with names", HEAD + "(declare-const Z Real)"),
        ("line 8: expected (declare-const X_0 Real), with names", HEAD + "(declare-const X_01 Real)"),
        ("line 8: expected (declare-const X_0 Real), with names", HEAD + "(declare-const X_2 Int)"),
        ("line 8: expected (declare-const X_0 Real), with names", HEAD + "(declare-fun X_2 (Real) Real)"),
        ("line 8: expected (declare-const X_0 Real), with names", HEAD + "(declare-const X_2)"),
        ("line 2: the file ends here, but no Y_0 is declared", "(declare-const X_0 Real)\n(assert (<= X_0 0))"),
        ("line 1: the file ends here, but no X_0 is declared", "(declare-const Y_0 Real)"),
        # constraints
        ("line 8: not a constraint; expected <= >= < > = of two terms, or and, or, not, =>", HEAD + "(assert true)"),
        ("line 9: not a constraint", HEAD + "(assert (or (<= Y_0 0)\n(xor (<= Y_0 0) (<= Y_0 1))))"),
        ("line 8: not a constraint", HEAD + "(assert (ite (<= Y_0 0) (<= Y_1 0) (<= Y_2 0)))"),
        ("line 8: not a constraint", HEAD + "(assert (<= Y_0 Y_1 Y_2))"),
        ("line 8: not a constraint", HEAD + "(assert (<= Y_0))"),
        ("line 8: not a constraint", HEAD + "(assert (not (<= Y_0 0) (<= Y_1 0)))"),
        ("line 8: not a constraint", HEAD + "(assert (=> (<= Y_0 0)))"),
        ("line 8: not a constraint", HEAD + "(assert (and))"),
        ("line 8: not a constraint", HEAD + "(assert (or))"),
        ("line 8: not a constraint", HEAD + "(assert (let ((a 1)) (<= Y_0 a)))"),
        ("line 8: not a constraint", HEAD + "(assert ())"),
        ("line 8: parentheses are nested more than 200 deep.", HEAD + DEEP),
        ("line 1: parentheses are nested more than 200 deep.", "(" * 1_000_000),
        # terms
        (
            "line 8: neither a number nor a declared name; declared are X_0 to X_1 and Y_0 to Y_2. In: Y_3",
            HEAD + "(assert (<= Y_3 0))",
        ),
        ("line 8: neither a number nor a declared name", HEAD + "(assert (<= X_2 0))"),
        ("line 8: neither a number nor a declared name", HEAD + "(assert (<= Y_0 1_000))"),
        ("line 8: neither a number nor a declared name", HEAD + "(assert (<= Y_0 1/3))"),
        ("line 8: neither a number nor a declared name", HEAD + "(assert (<= Y_0 #x10))"),
        ("line 8: the character U+0663 is none of VNN-LIB", HEAD + "(assert (<= Y_0 ٣))"),
        ("line 8: neither a number nor a declared name", HEAD + '(assert (<= Y_0 "1"))'),
        ("line 8: constants must be finite numbers. In: NaN", HEAD + "(assert (<= Y_0 NaN))"),
        ("line 8: constants must be finite numbers. In: -inf", HEAD + "(assert (>= X_0 -inf))"),
        (
            "line 8: a constant may have at most 4000 digits, and its exponent 3. In: 1e999999999",
            HEAD + "(assert (<= Y_0 1e999999999))",
        ),
        (
            "line 8: a constant may have at most 4000 digits, and its exponent 3. In: 1e-5000",
            HEAD + "(assert (<= Y_0 1e-5000))",
        ),
        (
            "line 8: a constant may have at most 4000 digits, and its exponent 3. In: 1111",
            HEAD + f"(assert (<= Y_0 {'1' * 5000}))",
        ),
        ("line 8: a number is too large for float64. In: (<= Y_0 1e309)", HEAD + "(assert (<= Y_0 1e309))"),
        ("line 8: a number is too large for float64.", HEAD + "(assert (<= (* 1e200 1e200 Y_0) 1.0))"),
        ("line 8: a number is too large for float64.", HEAD + "(assert (<= (* 1e-200 X_0) 1e200))"),
        ("line 8: this is not linear: only constants may multiply or", HEAD + "(assert (<= (* Y_0 Y_1) 1))"),
        ("line 8: this is not linear", HEAD + "(assert (<= (* X_0 Y_1) 1))"),
        ("line 8: this is not linear", HEAD + "(assert (<= (/ 1 Y_1) 1))"),
        ("line 8: this is not linear", HEAD + "(assert (<= (* (+ Y_0 1) (+ Y_1 1)) 1))"),
        ("line 8: division by zero. In: (/ 1 0)", HEAD + "(assert (<= Y_0 (/ 1 0)))"),
        ("line 8: division by zero.", HEAD + "(assert (<= Y_0 (/ 1 (- 2 2))))"),
        ("line 8: not a linear term; expected a constant", HEAD + "(assert (<= (abs Y_0) 1))"),
        ("line 8: not a linear term", HEAD + "(assert (<= (max Y_0 Y_1) 1))"),
        ("line 8: not a linear term", HEAD + "(assert (<= (+) 1))"),
        ("line 8: not a linear term", HEAD + "(assert (<= ((+) 1) 1))"),
        ("line 8: not a linear term", HEAD + "(assert (<= () 1))"),
        # what a comparison is about
        (
            "line 8: this compares inputs X_i with outputs Y_j; expected one input with a constant, or outputs. "
            "In: (<= X_0 Y_0)",
            HEAD + "(assert (<= X_0 Y_0))",
        ),
        ("line 8: this compares constants only", HEAD + "(assert (<= 1 2))"),
        ("line 8: a constraint on inputs must bound exactly one X_i", HEAD + "(assert (<= X_0 X_1))"),
        ("line 8: a constraint on inputs must bound exactly one X_i", HEAD + "(assert (<= (- X_0 X_0) 1))"),
        ("line 8: a strict bound on X_0; boxes are closed. In: (< X_0 0.5)", HEAD + "(assert (< X_0 0.5))"),
        ("line 8: the negation is a strict bound on X_1", HEAD + "(assert (=> (<= X_1 0.5) (<= Y_0 0)))"),
        ("line 8: the negation is a strict bound on X_0", HEAD + "(assert (not (= X_0 0.5)))"),
        # boxes
        (
            "line 2: X_1 has no lower bound, X_1 has no upper bound, X_2 has no lower bound in lines 5 to 7; every "
            "input needs both. In: (declare-const X_1 Real)",
            declare(3, 1) + "(assert (>= X_0 0))\n(assert (<= X_0 1))\n(assert (<= X_2 1))\n" + ROW,
        ),
        ("line 1: X_0 has no lower bound, X_0 has no upper bound; every input needs both.", declare(1, 1) + ROW),
        ("X_0 has no upper bound, X_1 has no lower bound, X_1 has no upper bound, ...", declare(9, 1) + ROW),
        (
            "line 1: X_0 has no upper bound in lines 4 to 4; every input needs both.",
            declare(1, 1) + "(assert (or\n(and (>= X_0 0) (<= Y_0 0))\n(and (>= X_0 0) (<= X_0 1) (<= Y_0 0))))",
        ),
        (
            "line 8: the box is empty: 2.0 <= X_0 <= 1.0, with the bound of line 6. In: (>= X_0 2)",
            HEAD + "(assert (>= X_0 2))" + ROW,
        ),
        (
            "line 10: the box is empty: 0.0 <= X_1 <= -3.0, with the bound of line 7. In: (<= X_1 -3.0)",
            HEAD + "(assert (or (<= Y_0 0)\n(and (<= Y_1 0)\n(<= X_1 -3.0))))",
        ),
        # outputs
        ("line 7: no constraint on outputs Y_j goes with this bound; all of them would be unsafe.", HEAD),
        (
            "line 9: no constraint on outputs Y_j goes with this bound; all of them would be unsafe. In: (<= X_0 0.5)",
            HEAD + "(assert (or (<= Y_0 0)\n(<= X_0 0.5)))",
        ),
    ],
)
def test_what_is_refused(message: str, text: str) -> None:
    with pytest.raises(InvalidInput) as error:
        loads(text, "my.vnnlib")
    assert str(error.value).startswith("my.vnnlib, line ")
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    good = (HEAD + ROW).encode()
    packed = gzip.compress(good)
    path = tmp_path / "p.vnnlib"
    for message, content in [
        ("line 9: byte 0xff at offset", good + b"\xff\xfe"),
        ("line 1: byte 0x80 at offset 0 is not UTF-8 text. Expected a VNN-LIB file.", bytes(range(128, 256))),
        ("cannot be read: Compressed file ended before the end-of-stream marker", packed[:-20]),
        ("cannot be read: ", packed[:30] + b"\xff" * 10 + packed[40:]),
        ("cannot be read: ", packed[:-6] + bytes(6)),
        ("line 1: there is no command", b""),
    ]:
        path.write_bytes(content)
        with pytest.raises(InvalidInput) as error:
            load(path)
        assert str(path) in str(error.value) and message in str(error.value)
    for missing in (tmp_path / "none.vnnlib", tmp_path):
        with pytest.raises(InvalidInput, match=r"cannot be read: (No such file|Is a directory).*Expected a .vnnlib"):
            load(missing)


@pytest.mark.parametrize("cut", range(3, 40))
def test_a_truncated_file_is_never_a_property(cut: int) -> None:
    text = dumps(Property.on(Box([0, 0], [1, 1]), Argmax([2]), outputs=3))
    with pytest.raises(InvalidInput):
        loads(text[:-cut] if cut < 39 else text[: text.index("(assert (or")])


def test_disjunctions_may_not_explode() -> None:
    pair = "(assert (or (<= Y_0 0) (<= Y_1 0)))"
    with pytest.raises(InvalidInput, match="line 8: the disjunctions multiply to more than 100000 clauses"):
        loads(HEAD + pair * 3000)
    with pytest.raises(InvalidInput, match="the disjunctions multiply to more than 100000 clauses"):
        loads(HEAD + f"(assert (or (<= Y_2 0) (and {'(not (= Y_0 Y_1)) ' * 20})))")
    assert len(loads(HEAD + pair * 8).cases[0].unsafe) == 2**8


def test_nesting_within_the_limit() -> None:
    assert len(ways("(or (<= Y_0 0) " * 190 + "(<= Y_1 0)" + ")" * 190)[0]) == 1
    assert len(ways("(or (<= Y_0 0) (not (and (<= Y_1 0) " * 60 + "(<= Y_1 0)" + ")))" * 60)) > 1
    assert ways("(<= " + "(+ Y_0 " * 190 + "0" + ")" * 190 + " 1)") == [[([190, 0, 0], 1, False)]]


words = (
    '( ) ( ) ( ) assert and or not => <= >= < > = + - * / X_0 X_1 Y_0 Y_2 Y_7 1.5 -2 1e5 nan declare-const Real ; | "'
)


@given(st.lists(st.sampled_from(words.split())).map(" ".join), st.booleans())
@settings(deadline=None, derandomize=True, max_examples=400)
def test_nonsense_is_refused_by_name(text: str, asserted: bool) -> None:
    try:
        loads(HEAD + ROW + (f"(assert ({text}))" if asserted else text), "my.vnnlib")
    except InvalidInput as error:
        assert str(error).startswith("my.vnnlib, line ")


def test_an_error_leaves_the_collector_on() -> None:
    with pytest.raises(InvalidInput):
        loads("(")
    assert gc.isenabled()


# Against the published reader

Ways = Counter[tuple[Any, ...]]


def published(path: Path, prop: Property) -> Ways:
    """Return boxes and polyhedra as the package `vnnlib` reads them, in floats."""
    compat = pytest.importorskip("vnnlib.compat")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about -0.5
        read = compat.read_vnnlib_simple(path, prop.inputs, prop.outputs)
    return Counter(
        (
            tuple(map(tuple, box)),
            tuple(sorted((*map(float, row), float(bound[0])) for row, bound in zip(A, b, strict=True))),
        )
        for box, polyhedra in read
        for A, b in polyhedra
    )


def ours(prop: Property) -> Ways:
    def floats(numbers: Sequence[Fraction]) -> list[float]:
        return [float(v) for v in numbers]

    return Counter(
        (
            tuple(zip(floats(case.box.lower), floats(case.box.upper), strict=True)),
            tuple(sorted((*floats(row.coefficients), float(row.bound)) for row in rows)),
        )
        for case in prop.cases
        for rows in case.unsafe
    )


@pytest.mark.data
@pytest.mark.parametrize(
    ("number", "cases", "conjunctions", "rows"),
    [
        *((1, 1, 1, 1), (2, 1, 1, 4), (3, 1, 1, 4), (4, 1, 1, 4), (5, 1, 4, 1)),
        *((6, 2, 4, 1), (7, 1, 2, 3), (8, 1, 3, 2), (9, 1, 4, 1), (10, 1, 4, 1)),
    ],
)
def test_acas(data_dir: DataDir, tmp_path: Path, number: int, cases: int, conjunctions: int, rows: int) -> None:
    file = f"acasxu/vnnlib/prop_{number}.vnnlib"
    path = data_dir(file) / file
    prop = load(path)
    assert (prop.inputs, prop.outputs, len(prop.cases)) == (5, 5, cases)
    assert {(len(case.unsafe), *map(len, case.unsafe)) for case in prop.cases} == {
        (conjunctions, *[rows] * conjunctions)
    }
    assert ours(prop) == published(path, prop)
    written = tmp_path / "again.vnnlib"
    written.write_text(dumps(prop))
    assert load(written) == prop and published(written, prop) == ours(prop)


def robustness(inputs: int, outputs: int, nested: int | None = None) -> str:
    """Write a file as image benchmarks do: one assert per bound, or all bounds once in each of `nested` clauses."""
    numbers = random.Random(inputs)
    centres = [numbers.random() for _ in range(inputs)]
    bounds = [
        bound for i, c in enumerate(centres) for bound in (f"(<= X_{i} {c + 0.03:.9f})", f"(>= X_{i} {c - 0.03:.8e})")
    ]
    rows = [f"(>= Y_{k} Y_0)" for k in range(1, outputs)]
    if nested is None:
        asserts = [*bounds, "(or\n" + "\n".join(f"    (and {row})" for row in rows) + "\n)"]
    else:
        asserts = ["(or\n" + "\n".join(f"    (and {' '.join(bounds)} {row})" for row in rows[:nested]) + "\n)"]
    return declare(inputs, outputs) + "".join(f"(assert {each})\n" for each in asserts)


@pytest.mark.parametrize(
    ("inputs", "outputs", "nested"), [(784, 10, None), (3072, 10, None), (3072, 10, 1), (3072, 1000, 3)]
)
def test_large_files(tmp_path: Path, inputs: int, outputs: int, nested: int | None) -> None:
    path = tmp_path / "large.vnnlib"
    path.write_text(robustness(inputs, outputs, nested))
    start = time.process_time()
    prop = load(path)
    assert time.process_time() - start < 10  # about half a second; never quadratic
    assert len(prop.cases) == 1 and len(prop.cases[0].unsafe) == (outputs - 1 if nested is None else nested)
    assert loads(dumps(prop)) == prop
    assert ours(prop) == published(path, prop)


def test_many_boxes_with_shared_rows() -> None:
    count, inputs = 30, 784
    each = [f"(and {' '.join(f'(>= X_{i} {k}) (<= X_{i} {k}.5)' for i in range(inputs))})" for k in range(count)]
    text = declare(inputs, 10) + f"(assert (or {' '.join(each)}))\n"
    text += f"(assert (or {' '.join(f'(<= Y_0 Y_{k})' for k in range(1, 10))}))"
    start = time.process_time()
    prop = loads(text)
    assert time.process_time() - start < 20
    assert len(prop.cases) == count and all(len(case.unsafe) == 9 for case in prop.cases)
    assert prop.cases[7].box == Box([7] * inputs, [7.5] * inputs)
