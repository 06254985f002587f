"""VNN-LIB as the package, verification/reading.py and SMT-LIB read it: one meaning, or a refusal."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.checkers import vnnlib as harness
from nnrepair import InvalidInput
from nnrepair.cli import main
from nnrepair.verify import vnnlib
from nnrepair.verify.property import Box, Case, Halfspace, Property
from nnrepair.verify.vnnlib import limits, syntax

reading: Any = harness.reading
smtlib: Any = harness.smtlib

DECLARED = "(declare-const X_0 Real)(declare-const Y_0 Real)"
BOX = "(assert (>= X_0 0))(assert (<= X_0 1))"
HEAD = DECLARED + BOX
ROW = "(assert (<= Y_0 1))"


def refused(content: str, inputs: int = 1, outputs: int = 1) -> tuple[bool, bool]:
    """Tell whether the package and the checker refuse a text in their own words."""
    said = []
    for read in (vnnlib.loads, lambda text: reading.read_property(text, inputs, outputs)):
        try:
            read(content)
            said.append(False)
        except (InvalidInput, reading.Unreadable):
            said.append(True)
    return said[0], said[1]


def rows(content: str) -> list[tuple[list[Fraction], Fraction, bool]]:
    """Return the rows of the only pair of box and unsafe set, which both readers must find alike."""
    ((_, _, found),) = reading.read_property(content, 1, 1)
    ((case,),) = (vnnlib.loads(content).cases,)
    assert [(row.coefficients, -row.bound, row.strict) for row in case.unsafe[0]] == list(found)
    return [(list(a), b, strict) for a, b, strict in found]


# Words, white space and comments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "between",
    [
        "\n",
        "\r",
        "\r\n",
        "\t",
        "  ",
        ";\n",
        ";\r",
        '; é | " ( ) \u200b\x00\r',
        "; ;\n;\r",
        ";\r;(assert (<= Y_0 9))\n\r",
    ],
)
def test_what_separates_words(between: str) -> None:
    text = HEAD + "(assert (<= Y_0 2))" + between + f"(assert{between}(<={between}Y_0{between}1))" + between
    assert rows(text) == [([1], -2, False), ([1], -1, False)]
    assert smtlib.Text(text).says([Fraction(0)], [Fraction(1)])


def test_a_comment_ends_where_a_line_does() -> None:
    hidden = HEAD + "; (assert (<= Y_0 0)) ; (\n" + ROW + "; and\r(assert (or (<= Y_0 -5) (<= Y_0 5)))"
    tasks = reading.read_property(hidden, 1, 1)
    assert [row[1] for _, _, found in tasks for row in found] == [-1, 5, -1, -5]
    assert len(vnnlib.loads(hidden).cases[0].unsafe) == 2


STRANGE = [
    *"\v\f\x1c\x1d\x1e\x1f\x00\x08\x7f\x85\xa0\u1680\u2003\u2028\u2029\u200b\u202e\u3000\ufeff",
    "é",
    "\u0661",
    "٣",
]


@pytest.mark.parametrize("strange", STRANGE, ids=ascii)
def test_no_other_character_separates_or_makes_words(strange: str) -> None:
    for text in (
        HEAD + strange + ROW,
        HEAD + f"(assert (<= Y_0{strange}1))",
        HEAD + f"(assert (<= Y_0 1{strange}))",
        HEAD + f"(assert (<= Y_0{strange} 1))",
        strange + HEAD + ROW,
    ):
        assert refused(text) == (True, True)
    ends = strange in "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
    assert refused(HEAD + f"; a {strange}(assert (<= Y_0 0))\n" + ROW) == (ends, ends)


def test_only_the_beginning_of_a_file_may_mark_its_coding(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib"
    path.write_text("\ufeff" + HEAD + ROW)
    assert vnnlib.load(path) == vnnlib.loads(HEAD + ROW)
    path.write_text("\ufeff\ufeff" + HEAD + ROW)
    with pytest.raises(InvalidInput, match="line 1: the character U\\+FEFF is none of VNN-LIB"):
        vnnlib.load(path)


@pytest.mark.parametrize("before", ["\r", "\n", "\r\n", "; c\r"])
def test_lines_are_counted_as_they_end(before: str) -> None:
    with pytest.raises(InvalidInput, match=r"line 3: not a constraint"):
        vnnlib.loads(HEAD + before * 2 + "(assert true)")


@pytest.mark.parametrize(
    "number",
    [
        "1.",
        "1.0",
        "01",
        "+1",
        ".1e1",
        "1e0",
        "1E+0",
        "10e-01",
        "100.00e-2",
        "(/ 2 2)",
        "(* 0.5 2)",
        "(- -1)",
        "(- 3 2)",
    ],
)
def test_numbers(number: str) -> None:
    assert rows(HEAD + f"(assert (<= Y_0 {number}))") == [([1], -1, False)]
    assert smtlib.Text(HEAD + f"(assert (= Y_0 {number}))").says([Fraction(0)], [Fraction(1)])


@pytest.mark.parametrize(
    "term",
    [
        *(
            "(+)",
            "(-)",
            "(*)",
            "(/)",
            "(+ 1)",
            "(* 1)",
            "(/ 1)",
            "(+ Y_0)",
            "(* Y_0)",
            "(/ Y_0)",
            "()",
            "(1)",
            "((+) 1)",
        ),
        *(
            "(/ 1 0)",
            "(/ Y_0 0)",
            "(/ 1 Y_0)",
            "(* Y_0 Y_0)",
            "(/ 1 (- 2 2))",
            "(- 1 . 2)",
            "(^ 2 3)",
            "(e 1)",
            "(X_0 1)",
        ),
        *(
            "|1|",
            '"1"',
            "|Y_0|",
            "#x1",
            "#b1",
            "1/3",
            "1_0",
            "1,5",
            "--1",
            "+",
            "-",
            ".",
            "e1",
            "1e",
            "0x1",
            "1.0.0",
            "1f",
        ),
        *(
            "nan",
            "inf",
            "-Infinity",
            "1e1000",
            "1e-1000",
            "1e999999999",
            "1e" + "9" * 30,
            "9" * 5000,
            "0." + "1" * 5000,
        ),
        *(
            "X_00",
            "Y_00",
            "Y_0_0",
            "y_0",
            "Y_1",
            "Y_-0",
            "Y_",
            "Y",
            "true",
            "let",
            "1;|",
            ":k",
            "Y_;\n0",
            "Y_;\r0",
        ),
    ],
)
def test_what_is_no_term(term: str) -> None:
    if term == "1;|":  # the comment swallows the parenthesis
        assert refused(HEAD + f"(assert (<= Y_0 {term}))") == (True, True)
        return
    for text in (f"(<= Y_0 {term})", f"(>= {term} Y_0)", f"(<= (+ Y_0 {term}) 1)", f"(<= (- {term}) Y_0)"):
        assert refused(HEAD + f"(assert {text})") == (True, True)


@pytest.mark.parametrize(
    "formula",
    [
        *(
            "<12",
            ">1",
            "<=",
            "or",
            "Y_0",
            "true",
            "()",
            "(and)",
            "(or)",
            "(not)",
            "(=>)",
            "(<=)",
            "(<= Y_0)",
            "(xor a b)",
        ),
        *(
            "(<= 1 Y_0 2)",
            "((<= Y_0 1))",
            "(and <12)",
            "(or <12 >1)",
            "(|<=| Y_0 1)",
            '("<=" Y_0 1)',
            "(! (<= Y_0 1) :n a)",
        ),
        *("(ite true (<= Y_0 1) (<= Y_0 2))", "(distinct Y_0 1)", "(forall ((y Real)) (<= y 1))", "(<= X_0 Y_0)"),
    ],
)
def test_what_is_no_formula(formula: str) -> None:
    for text in (formula, f"(and (<= Y_0 1) {formula})", f"(or {formula} (<= Y_0 1))"):
        assert refused(HEAD + f"(assert {text})") == (True, True)


@pytest.mark.parametrize(
    "text",
    [
        *(HEAD + "(declare-const X_0 Real)" + ROW, HEAD + "(declare-const X_00 Real)" + ROW, HEAD + "()" + ROW),
        *(HEAD + "(declare-const X_1_0 Real)" + ROW, HEAD + "(declare-const |X_0| Real)" + ROW, HEAD + "X_0" + ROW),
        *(HEAD + "(declare-const X_1 Int)" + ROW, HEAD + "(declare-const (X_1) Real)" + ROW, HEAD + '"a"' + ROW),
        *(
            HEAD + "(define-fun Y_0 () Real 1.0)" + ROW,
            HEAD + "(push 1)" + ROW,
            HEAD + "(exit)" + ROW,
            "(" + HEAD + ROW,
        ),
        *(
            HEAD + "(assert)" + ROW,
            HEAD + "(assert (<= Y_0 1) (<= Y_0 2))",
            HEAD + ROW + ")",
            HEAD + ROW + "(",
            HEAD + "(",
        ),
        *(
            BOX + ROW,
            DECLARED + ROW,
            HEAD,
            "",
            "; nothing",
            "(declare-const X_0 Real)" + BOX,
            HEAD + "(check-sat)" + ROW,
        ),
        *(
            DECLARED + "(assert (<= X_0 1))" + ROW,
            HEAD + "(assert (>= X_0 2))" + ROW,
            HEAD + "(assert (or (<= Y_0 1)))(",
        ),
        *(
            HEAD + "(assert (or (<= Y_0 1) (<= X_0 0.5)))",
            HEAD + "(assert (<= (+ X_0 Y_0) 1))",
            HEAD + "(assert (<= X_0",
        ),
    ],
)
def test_what_is_no_property(text: str) -> None:
    assert refused(text) == (True, True)


def test_the_package_alone_reads_more() -> None:
    """The checker refuses what a proof that it checks need not hold."""
    for extra in ('(set-info :a "; ) ""(")', '(set-info :a |; " (|)', "(set-logic QF_LRA)", "(assert (not (> Y_0 2)))"):
        assert refused(HEAD + extra + ROW) == (False, True)
    for formula in ("(= Y_0 1)", "(=> (<= Y_0 1) (<= Y_0 0))", "(<= (/ Y_0 2 2) 1)", "(<= (* 1 Y_0 2) 1)"):
        assert refused(HEAD + f"(assert {formula})") == (False, True)
    assert refused(HEAD + ROW + "(check-sat)(get-model)") == (False, True)


def test_strict_bounds_on_inputs() -> None:
    """Refused by the package; for the checker the border belongs to the box, so that it proves more."""
    text = DECLARED + "(assert (> X_0 0))(assert (< X_0 1))" + ROW
    assert refused(text) == (True, False)
    assert reading.read_property(text, 1, 1) == reading.read_property(HEAD + ROW, 1, 1)
    one_point = DECLARED + "(assert (>= X_0 1))(assert (< X_0 1))" + ROW  # no point at all: more is proved again
    assert reading.read_property(one_point, 1, 1)[0][:2] == ((1,), (1,))


def test_equal_boxes_are_one_in_the_order_of_the_file() -> None:
    """Also where another clause bounds the same box by a condition more."""
    text = HEAD + "(assert (or (<= Y_0 1) (>= X_0 -1) (<= Y_0 2)))" + "(assert (<= Y_0 3))"
    tasks = [
        (case.box.lower, case.box.upper, tuple((row.coefficients, -row.bound, row.strict) for row in ways))
        for case in vnnlib.loads(text).cases
        for ways in case.unsafe
    ]
    assert tasks == reading.read_property(text, 1, 1)
    assert [len(found) for _, _, found in tasks] == [2, 1, 2]


# Random texts --------------------------------------------------------------------------------------------------------


def test_random_texts() -> None:
    """A sample of benchmarks/checkers/vnnlib.py."""
    row = harness.block(0, 500, seed=1)
    assert row["wrong"] == []
    assert row["counts"]["read by both"] > 100 and min(row["counts"].values()) > 100


def test_such_texts_find_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader is found out whose comments go on after a carriage return, or whose white space is Python's."""
    tokens = syntax.TOKEN.pattern.replace(r"[^\n\r\v\f", r"[^\n\v\f")
    assert tokens != syntax.TOKEN.pattern
    with monkeypatch.context() as patch:
        patch.setattr(syntax, "TOKEN", re.compile(tokens, re.VERBOSE))
        assert any("package" in each for each in harness.block(160, 130, seed=1)["wrong"])
    monkeypatch.setattr(reading, "parentheses", lambda text, read=reading.parentheses: read(" ".join(text.split())))
    assert any("checker" in each for each in harness.block(0, 300, seed=1)["wrong"])


# Round trips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        *(5e-324, -5e-324, 2.0**-1022, 1.7976931348623157e308, 1e300, -0.0, 0.1, 2.0**-1074 + 0.0),
        *(Fraction(1, 3), Fraction(10**3999 + 7, 10**4000 - 1), Fraction(1, 10**4000), Fraction(2**1074 + 1, 2**1074)),
    ],
)
def test_extreme_numbers_survive(number: Any) -> None:
    row = Halfspace((number, Fraction(1)), number, strict=True)
    prop = Property([Case(Box([min(number, 0)], [max(number, 0)]), ((row,),))], 2)
    written = vnnlib.dumps(prop)
    assert vnnlib.loads(written) == prop
    ((lower, upper, ((a, b, strict),)),) = reading.read_property(written, 1, 2)
    exact = Fraction(number)
    assert (lower, upper, a, b, strict) == ((min(exact, 0),), (max(exact, 0),), (exact, 1), -exact, True)


# Limits --------------------------------------------------------------------------------------------------------------

PAIR = "(assert (or (<= Y_0 1) (<= Y_0 2)))"
LARGE = {
    "pairs": HEAD + PAIR * 19,
    "pairs in one": HEAD + f"(assert (and {'(or (<= Y_0 1) (<= Y_0 2)) ' * 19}))",
    "pairs in others": HEAD + "(assert (or (<= Y_0 9) (and " * 20 + "(or (<= Y_0 1) (<= Y_0 2)) " * 19 + ")" * 60,
    "rows": HEAD + f"(assert (or {'(<= Y_0 1) ' * 3_000}))(assert (and {'(<= Y_0 2) ' * 2_000}))",
    "depth": "(" * 1_000_000,
    "depth of formulas": HEAD + "(assert " + "(and " * 100_000,
    "depth of terms": HEAD + "(assert (<= " + "(- " * 100_000,
    "names": "(declare-const X_999999999 Real)" + HEAD + ROW,
    "sum": HEAD + f"(assert (<= (+ Y_0 {' '.join(f'(/ 1 {10**99 + k})' for k in range(1, 300))}) 1))",
    "product": HEAD + "(assert (<= (* " + "(* 1e900 " * 100 + "1" + ")" * 100 + " Y_0) 1))",
    "exponent": HEAD + "(assert (<= Y_0 1e-999999999))",
}


@pytest.mark.parametrize("what", LARGE)
def test_what_is_too_large_is_refused_at_once(what: str) -> None:
    start = time.process_time()
    assert refused(LARGE[what]) == (True, True)
    assert time.process_time() - start < 60  # a few seconds; each would take hours, or all memory


def test_rows_of_many_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (limits, reading):
        monkeypatch.setattr(module, "MAX_NUMBERS", 1000)
    text = HEAD + "".join(f"(declare-const Y_{k} Real)" for k in range(1, 100))
    text += "".join(f"(assert (<= Y_{k} 1))" for k in range(11))
    with pytest.raises(InvalidInput, match="11 rows for 100 outputs; at most 1000 bounds of boxes, and as many coeff"):
        vnnlib.loads(text)
    with pytest.raises(
        reading.Unreadable, match="1102 bounds of boxes and coefficients of rows, or more; at most 1000"
    ):
        reading.read_property(text, 1, 100)


def test_long_clauses_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is within the limits, together they are not."""
    for module in (limits, reading):
        monkeypatch.setattr(module, "MAX_NUMBERS", 1000)
    pair = "(or (<= Y_0 1) (<= Y_0 2))"
    long = f"(and {'(<= Y_0 3) ' * 50} {pair * 3})"
    assert refused(HEAD + f"(assert (or (<= Y_0 9) {long}))") == (False, False)
    assert refused(HEAD + f"(assert (or (<= Y_0 9) {long * 3}))") == (True, True)


def test_limits_are_stated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(limits, "MAX_WORDS", 50)
    with pytest.raises(InvalidInput, match=r"line 2: more than 50 words and parentheses. Split it"):
        vnnlib.loads(HEAD + "\n" + ROW * 20)
    monkeypatch.setattr(reading, "MAX_WORDS", 50)
    with pytest.raises(reading.Unreadable, match="101 words and parentheses, or more; at most 100 are read"):
        reading.read_property(HEAD + ROW * 20, 1, 1)
    monkeypatch.setattr(limits, "MAX_NUMBERS", 20)
    monkeypatch.setattr(limits, "MAX_WORDS", 1000)
    wide = "".join(f"(declare-const X_{k} Real)(assert (>= X_{k} 0))(assert (<= X_{k} 1))" for k in range(1, 5))
    parts = " ".join(f"(and (<= X_0 0.{k}) (<= Y_0 {k}))" for k in range(1, 4))
    with pytest.raises(InvalidInput, match="there are more than 3 boxes of 5 inputs; at most 20 bounds of boxes"):
        vnnlib.loads(HEAD + wide + f"(assert (or {parts} (<= Y_0 9)))")
    monkeypatch.setattr(limits, "MAX_BYTES", 1000)
    path = tmp_path / "p.vnnlib.gz"
    for content in (gzip.compress((HEAD + ROW + " " * 1000).encode()), (HEAD + ROW).encode() + b"\n" * 1000):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match="holds more than 1000 bytes of text, which are read at most. Split it"):
            vnnlib.load(path)
    path.write_bytes(gzip.compress((HEAD + ROW).encode().ljust(1000)))
    assert vnnlib.load(path) == vnnlib.loads(HEAD + ROW)


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.vnnlib.gz"
    for content, message in (
        (gzip.compress(b" " * 2**20) * 65, "holds more than 67108864 bytes of text, which are read at most. Split it."),
        (LARGE["pairs"].encode(), "line 1: the disjunctions multiply to more than 100000 clauses. Split the property."),
        (b"(" * 10**6, "line 1: parentheses are nested more than 200 deep."),
    ):
        path.write_bytes(content)
        assert main(["check", str(tmp_path / "net.onnx"), str(path)]) == 3
        said = capsys.readouterr().err
        assert said.startswith(f"nnrepair: error: {path}") and message in said and said.count("\n") == 1


MEMORY = """
import gzip, resource, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import reading
from nnrepair import InvalidInput
from nnrepair.verify import vnnlib
head = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))"
path = Path(sys.argv[3])
path.write_bytes(gzip.compress(b" " * 2**20, 9) * 4000)  # 4 GiB in 4 MB
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 2**30 + path.stat().st_size
resource.setrlimit(resource.RLIMIT_AS, (most, most))
texts = [head + "(assert (or (<= Y_0 1) (<= Y_0 2)))" * 19, "(" * 10_000_000, "(declare-const X_0 Real)" * 900_000]
for read in (*[lambda text=text: vnnlib.loads(text) for text in texts], lambda: vnnlib.load(path)):
    try:
        read()
        print("read")
    except InvalidInput as error:
        print("memory" if "more memory" in str(error) else "refused")
for text in texts[:2]:
    try:
        reading.read_property(text, 1, 1)
        print("read")
    except reading.Unreadable:
        print("refused")
"""


def test_memory(tmp_path: Path) -> None:
    """A file takes at most a GiB more than its own size."""
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-c", MEMORY, str(folder), str(folder / "verification"), str(tmp_path / "bomb.gz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr[-500:]) == (["refused"] * 6, "")
