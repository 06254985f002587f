"""The file formats of VNN-COMP: lists of instances and expected verdicts in, results out."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, localcontext
from fractions import Fraction
from pathlib import Path

from nnrepair.errors import InvalidInput

#: What the competition calls a verdict.
WORDS = {"holds": "unsat", "violated": "sat", "unknown": "unknown", "error": "error"}
_VERDICTS = {"unsat": "holds", "sat": "violated", "holds": "holds", "violated": "violated"}


@dataclass(frozen=True)
class Instance:
    """One row of an instances.csv.

    Attributes:
        onnx, vnnlib: the files as the row names them.
        network, property: where they are, or would be.
        timeout: seconds.
        name: `<onnx stem>__<vnnlib stem>`, for files about this instance; no two of a list have the same.
    """

    onnx: str
    vnnlib: str
    network: Path
    property: Path
    timeout: float
    name: str


def read_instances(path: Path) -> list[Instance]:
    """Read an instances.csv: rows `onnx,vnnlib,timeout`, relative to its folder or to onnx/ and vnnlib/ in it.

    Raises:
        InvalidInput: the file cannot be read, has no rows or a row that is no instance, or names an instance twice.
    """
    found: dict[tuple[str, str], float] = {}
    for number, row in _rows(path):
        if len(row) != 3:
            raise InvalidInput(f"{path}, line {number}: expected onnx,vnnlib,timeout, got {len(row)} columns: {row}.")
        if not found and row == ["onnx", "vnnlib", "timeout"]:
            continue
        try:
            seconds = float(row[2])
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf or not row[0] or not row[1]:
            raise InvalidInput(f"{path}, line {number}: expected two files and a timeout in seconds, got {row}.")
        if (row[0], row[1]) in found:
            raise InvalidInput(f"{path}, line {number}: {row[0]} with {row[1]} is listed twice; remove one.")
        found[row[0], row[1]] = seconds
    if not found:
        raise InvalidInput(f"{path} names no instance. Expected rows onnx,vnnlib,timeout.")
    short = [f"{_stem(Path(onnx).name)}__{_stem(Path(vnnlib).name)}" for onnx, vnnlib in found]
    uses = Counter(short)
    names = [n if uses[n] == 1 else f"{_stem(a)}__{_stem(b)}" for n, (a, b) in zip(short, found, strict=True)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InvalidInput(f"{path}: several rows would write files called {twice[0]}. Rename networks or properties.")
    folder = path.parent
    return [
        Instance(onnx, vnnlib, _located(folder, "onnx", onnx), _located(folder, "vnnlib", vnnlib), seconds, name)
        for ((onnx, vnnlib), seconds), name in zip(found.items(), names, strict=True)
    ]


def read_expected(path: Path) -> dict[tuple[str, str], tuple[str, float | None]]:
    """Read what is published: by file names the verdict, in our words, and the fastest time, None where none is said.

    The columns are network, property, verdict (sat or unsat) and perhaps seconds.

    Raises:
        InvalidInput: the file cannot be read, lacks a column, or has another verdict or two for one instance.
    """
    rows = _rows(path)
    header = rows[0][1] if rows else []
    missing = [name for name in ("network", "property", "verdict") if name not in header]
    if missing:
        raise InvalidInput(f"{path} lacks the columns {', '.join(missing)}; its first line is {','.join(header)!r}.")
    network, property_, verdict = (header.index(name) for name in ("network", "property", "verdict"))
    expected: dict[tuple[str, str], tuple[str, float | None]] = {}
    for number, row in rows[1:]:
        if len(row) != len(header) or row[verdict] not in _VERDICTS:
            raise InvalidInput(f"{path}, line {number}: expected {len(header)} columns and a verdict sat or unsat.")
        key, said = (Path(row[network]).name, Path(row[property_]).name), _VERDICTS[row[verdict]]
        seconds = _seconds(row[header.index("seconds")], path, number) if "seconds" in header else None
        if expected.setdefault(key, (said, seconds))[0] != said:
            raise InvalidInput(f"{path}, line {number}: {key[0]} with {key[1]} has another verdict in an earlier line.")
    return expected


def _seconds(text: str, path: Path, line: int) -> float | None:
    """Return a time, None for an empty cell."""
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InvalidInput(f"{path}, line {line}: expected seconds, the fastest known time, or nothing; got {text!r}.")
    return seconds


def word(verdict: str, *, timed_out: bool = False) -> str:
    """Return the competition's word for a verdict.

    >>> word("holds"), word("unknown", timed_out=True)
    ('unsat', 'timeout')
    """
    return "timeout" if verdict == "unknown" and timed_out else WORDS[verdict]


def result_text(word: str, point: tuple[Iterable[float | Fraction], Iterable[float]] | None = None) -> str:
    """Return the text of a result file; floats read back exactly, and so do other numbers that are decimals.

    >>> print(result_text("sat", ([0.1, 1.0], [-2.5])), end="")
    sat
    ((X_0 0.1)
     (X_1 1.0)
     (Y_0 -2.5))

    Args:
        word: sat, unsat, timeout or unknown.
        point: input and output of a counterexample; of the input its exact numbers, so that it lies inside its box.
    """
    if point is None:
        return f"{word}\n"
    named = [(f"{name}_{i}", v) for name, values in zip("XY", point, strict=True) for i, v in enumerate(values)]
    return f"{word}\n(" + "\n ".join(f"({name} {_number(value)})" for name, value in named) + ")\n"


def _number(value: float | Fraction) -> str:
    """Return a float in the fewest digits, or a decimal that is none in all of its digits, if these are at most 10 000.

    >>> _number(0.1), _number(Fraction(1, 10)), _number(Fraction(10**20 + 1, 10**21)), _number(Fraction(1, 3))
    ('0.1', '0.1', '0.100000000000000000001', '0.3333333333333333')
    >>> len(_number(1 + Fraction(1, 2**9_000))), _number(1 + Fraction(1, 2**11_000))
    (9002, '1.0')
    """
    near, exact = repr(float(value)), Fraction(value)
    rest = exact.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    if rest > 1 or Fraction(float(value)) == exact or Fraction(near) == exact:
        return near
    with localcontext(Context(prec=10_000, traps=[Inexact])), suppress(Inexact):
        return format(Decimal(exact.numerator) / Decimal(exact.denominator), "f")
    return near


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows that are not blank, each with its line number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}. Expected a CSV file.") from error
    except (ValueError, csv.Error) as error:
        raise InvalidInput(f"{path} is no CSV file: {error}.") from error
    return [(number, row) for number, row in rows if any(row)]


def _stem(name: str) -> str:
    """Return a name without its ending, and without what no file name should have.

    >>> _stem("onnx/net 1.onnx"), _stem("prop_1.vnnlib.gz")
    ('onnx_net_1', 'prop_1')
    """
    return re.sub(r"[^\w.+-]+", "_", re.sub(r"\.(onnx|vnnlib|pt2)(\.gz)?$", "", name))


def _located(folder: Path, kind: str, name: str) -> Path:
    """Return where a file is; where it is not, the first place looked in."""
    places = [place / f"{name}{end}" for end in ("", ".gz") for place in (folder, folder / kind)]
    return next((place for place in places if _is_file(place)), places[0])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long
        return False
