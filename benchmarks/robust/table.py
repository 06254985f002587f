"""The part of docs/results-readers.md about spoiled files and killed runs, from the committed result files alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.robust import fuzz
from nnrepair.results import markdown

RESULTS = Path(__file__).parent / "results"


def _file(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return loaded


def _measured(file: dict[str, Any], *packages: str) -> str:
    rows = file["rows"]
    versions = file["versions"] | rows[0].get("packages", {})
    about = ", ".join(f"{name} {versions[name]}" for name in packages)
    commits = ", ".join(dict.fromkeys(row["commit"][:7] for row in rows))
    seeds = ", ".join(dict.fromkeys(str(row["seed"]) for row in rows))
    return (
        f"Measured on {file['machine']}, Python {file['python']}, {about}, one thread, seed {seeds}, {file['date']}, "
        f"commit {commits}."
    )


def spoiled() -> str:
    """Return the section about spoiled files."""
    file = _file("fuzz")
    names = list(dict.fromkeys(row["reader"] for row in file["rows"]))
    table, inputs, wrong = [], 0, 0
    for name in names:
        rows = [row for row in file["rows"] if row["reader"] == name]
        counts = sum((Counter(row["outcomes"]) for row in rows), Counter[str]())
        bad = sum(counts[word] for word in counts if word not in ("read", "refused"))
        lost = sum(row.get("lost", 0) for row in rows)
        slowest = max(row["slowest_seconds"] for row in rows)
        inputs, wrong = inputs + counts.total(), wrong + bad + lost
        table.append([name, counts.total(), counts["read"], counts["refused"], bad + lost, f"{slowest:.2f} s"])
    hours = sum(row["cpu_seconds"] for row in file["rows"]) / 3600
    head = ["file", "spoiled", "read", "refused", "anything else", "slowest, CPU"]
    return f"""## Spoiled files

`python -m benchmarks.robust.fuzz`. {_measured(file, "onnx", "safetensors", "torch", "numpy")}

{inputs} files of the kinds below ({hours:.2f} CPU hours), and {wrong} that did not end in an answer or in the package's
own words, within {fuzz.LIMIT:.0f} s of one processor and {fuzz.MEMORY // 2**20} MiB of memory beside what the process
has. A file that is right, or one drawn at random, is spoiled: its bytes (flipped, overwritten, cut, repeated), or what
it says (a number, a text, a name, a type, a shape), packed again with a right checksum so that the damage lies deeper.
What is read goes on to where it would be used: a patch is put on a network, an editor restored, a sequence or a
training resumed. Random properties are read as they are, too. The independent checkers get certificates of which one
file is spoiled.

{markdown.table(head, table)}
"""


def killed() -> str:
    """Return the section about runs that were killed."""
    file = _file("kills")
    rows = file["rows"]
    found = [Counter(row["found"]) for row in rows]
    kills = sum(each["kills"] for each in found)
    wrong = sum(len(row["wrong"]) for row in rows)
    names = ("kills", "kills with something stored", "runs", "temporary files left")
    table = [
        [row["run"], *(each[name] for name in names), len(row["wrong"])] for row, each in zip(rows, found, strict=True)
    ]
    head = ["run", "kills", "when something was stored", "runs", "temporary files left", "wrong"]
    return f"""## Runs that are killed

`python -m benchmarks run --domain robust`. {_measured(file, "torch", "numpy")}

`kill -9` at {kills} random moments, of the run alone or of all processes that it started, after which it was started
again with what it had stored. After every kill all its files were read, and in the end they were compared with what a
run without a kill wrote, but for the seconds that it took: {wrong} times a file was not whole, a piece that was stored
before was missing, or the result was another. A kill in the middle of a write leaves that write's temporary file, whose
name begins with a dot.

{markdown.table(head, table)}
"""


def sections() -> str:
    """Return both sections."""
    return f"{spoiled()}\n{killed()}"
