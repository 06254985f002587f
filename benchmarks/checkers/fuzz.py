"""Spoiled files: the checkers of `verification/` must end with one of their exit codes, whatever they are given.

    python -m benchmarks.checkers.fuzz [--count 20000] [--seed 0] [--path FILE]

Bytes of one file of a valid certificate are flipped, overwritten, cut, repeated, or exchanged between files: raw, in
one array of an archive, or in one field of a network. The memory of the process is limited. Whatever a checker raises
that is neither a verdict nor a refusal of its own is listed, and every accepted certificate of which onnxruntime shows
a claim to be false.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import resource
import sys
import tempfile
import time
import zipfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from benchmarks import measure
from benchmarks.checkers import forge, truth
from benchmarks.checkers.valid import Proof, Repair, check, minimality
from nnrepair.files import write_atomically

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
COUNT, SEED, EACH = 20_000, 20261129, 60
MEMORY = 2**30  # bytes that a checker may use beside what the process has


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    spoiled = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        spoiled[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(spoiled)


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    at, size = int(rng.integers(len(data))), int(rng.integers(1, 12))
    odd = [rng.bytes(size), b"\xff" * size, b"\0" * size, b"\x7f" * size, str(int(rng.integers(10**9))).encode()]
    return data[:at] + odd[int(rng.integers(len(odd)))] + data[at + size :]


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    a, b = sorted(int(v) for v in rng.integers(0, len(data) + 1, 2))
    return [data[:a], data[b:], data[:a] + data[b:]][int(rng.integers(3))]


def repeat(rng: np.random.Generator, data: bytes) -> bytes:
    a, b = sorted(int(v) for v in rng.integers(0, len(data) + 1, 2))
    to = int(rng.integers(len(data) + 1))
    return data[:to] + data[a:b] * int(rng.integers(1, 4)) + data[to:]


def numbers_of_the_network(rng: np.random.Generator, data: bytes) -> bytes:
    """Give a number or text somewhere in an ONNX file another value."""
    try:
        proto = ModelProto.FromString(data)
    except Exception:  # no ONNX file: other ways spoil it
        return flip(rng, data)
    part: Any = proto
    while True:
        fields = [(f, v) for f, v in part.ListFields() if f.name not in ("raw_data", "doc_string")]
        if not fields:
            return flip(rng, data)
        field, value = fields[int(rng.integers(len(fields)))]
        at = int(rng.integers(len(value))) if hasattr(value, "__len__") and field.message_type is not None else None
        if field.message_type is not None:
            part = value if at is None else value[at]
            continue
        break
    whole = [0, 1, -1, 2, 7, 2**31, 2**62, -(2**63), 2**63 - 1]
    kinds = {int: whole, float: [0.0, -1.0, float("nan"), float("inf"), 1e38], str: ["", "x", "\0", "é", "fc1.weight"]}
    kinds |= {bytes: [b"", b"\xff", b"VALID"]}
    repeated = not isinstance(value, (int, float, str, bytes))
    options = kinds.get(type(value[0] if repeated else value), whole)
    new = options[int(rng.integers(len(options)))]
    try:
        if not repeated:
            setattr(part, field.name, new)
        elif rng.random() < 0.5:
            value[int(rng.integers(len(value)))] = new
        else:
            value.append(new)
    except (TypeError, ValueError):  # the field does not take it
        return flip(rng, data)
    return bytes(proto.SerializeToString())


def array_of_the_archive(rng: np.random.Generator, data: bytes) -> bytes:
    """Spoil one array in an .npz file, header or numbers, and pack it properly again."""
    out, way = io.BytesIO(), (flip, overwrite, cut, repeat)[int(rng.integers(4))]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as packed:
            names = archive.namelist()
            chosen = names[int(rng.integers(len(names)))]
            for name in names:
                part = archive.read(name)
                if name == chosen:
                    size = 128 if rng.random() < 0.5 else len(part)  # the header, or all
                    part = way(rng, part[:size]) + part[size:]
                packed.writestr(name, part)
    except zipfile.BadZipFile:  # no archive: other ways spoil it
        return way(rng, data)
    return out.getvalue()


WAYS = (flip, overwrite, cut, repeat)
DEEPER = {".onnx": numbers_of_the_network, ".npz": array_of_the_archive}


def judged(made: forge.Made, arguments: list[str]) -> str:
    """Run a checker on files; give its verdict, and what it raised that is none."""
    paths = [a for a in arguments if a != "--repaired"]
    try:
        with np.errstate(all="ignore"):
            if isinstance(made, Proof):
                check.check(*paths)
            else:
                minimality.check(Path(paths[0]), Path(paths[1]), Path(paths[2]) if len(paths) > 2 else None)
    except (check.Rejected, minimality.Rejected, np.linalg.LinAlgError):
        return "rejected"
    except minimality.Unreadable:
        return "unreadable"
    except Exception as error:
        return f"unreadable, {type(error).__name__}: {str(error)[:80]}"
    return "accepted"


def still_true(made: forge.Made, arguments: list[str], rng: np.random.Generator) -> str:
    """Say what is false about an accepted certificate, as its files are now."""
    try:
        if isinstance(made, Repair):
            with np.load(arguments[0]) as file:
                made.arrays = {name: file[name] for name in file.files}
            made.meta = json.loads(made.arrays.pop("meta").tobytes())
        for proto, path in zip(made.networks, [a for a in arguments if a.endswith(".onnx")], strict=True):
            proto.CopyFrom(ModelProto.FromString(Path(path).read_bytes()))
        return truth.false(made, rng)
    except Exception:  # what onnxruntime does not run shows nothing
        return ""


def run(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Spoil so many files."""
    verdicts: dict[str, Counter[str]] = {}
    odd: list[str] = []
    done = 0
    for index in itertools.count():
        rng = np.random.default_rng([seed, index])
        made = forge.valid(rng, index)
        arguments = made.write(folder)
        files = {a: Path(a).read_bytes() for a in arguments if a != "--repaired"}
        for _ in range(EACH):
            path = sorted(files)[int(rng.integers(len(files)))]
            way = WAYS[int(rng.integers(len(WAYS)))] if rng.random() < 0.5 else DEEPER.get(Path(path).suffix, flip)
            source = path if rng.random() < 0.97 else sorted(files)[int(rng.integers(len(files)))]
            Path(path).write_bytes(way(rng, files[source]))
            said = judged(made, arguments)
            kind = f"{Path(path).suffix[1:]}: {way.__name__}"
            verdicts.setdefault(kind, Counter())[said.split(",")[0]] += 1
            if "," in said and not isinstance(made, Proof):
                odd.append(f"{index}, {kind}: {said}")
            if said == "accepted" and (reason := still_true(made.copy(), arguments, rng)):
                odd.append(f"{index}, {kind}: accepted, although {reason}")
            Path(path).write_bytes(files[path])
            done += 1
            if done == count:
                return {
                    "seed": seed,
                    "files": done,
                    "wrong": odd,
                    "verdicts": {k: dict(v) for k, v in verdicts.items()},
                }
    raise AssertionError("unreachable")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkers.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--path", type=Path, default=RESULTS)
    given = parser.parse_args()
    started, of = time.process_time(), measure.commit()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        found = run(given.count, given.seed, Path(folder))
    about = {"about": "spoiled files; all must be refused, or claim what is true", **measure.machine()}
    about["versions"] |= {name: version(name) for name in ("onnx", "onnxruntime")}
    about |= {"commit": of, "cpu_seconds": round(time.process_time() - started, 1)}
    write_atomically(given.path, (json.dumps(about | found, indent=1) + "\n").encode())
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
