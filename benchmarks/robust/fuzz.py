"""Spoiled files of many kinds: each is read, or refused in the package's own words.

    python -m benchmarks.robust.fuzz [--inputs 100000] [--seed 0] [--reader NAME] [--show NAME INDEX] [--path FILE]

A file that is right, or a text drawn at random, is spoiled: bytes of it, or what it says, with a right checksum.
Whatever a reader raises that is no error of the package, what takes more than LIMIT seconds of one processor, and what
ends the process is listed. The memory of the process is limited.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import nn

import nnrepair
from benchmarks import measure
from benchmarks.checkers import forge, fuzz, vnnlib
from benchmarks.checkers.valid import check, minimality
from benchmarks.readers import graphs
from benchmarks.robust import spoil
from nnrepair import Edits, onnx
from nnrepair.cli.options import read_points
from nnrepair.errors import DataUnavailable, NNRepairError, printable
from nnrepair.methods import Editor, Episode, LearnedSteps, MinimalNorm
from nnrepair.results import checkers
from nnrepair.results.certificate import Certificate
from nnrepair.results.patch import Patch
from nnrepair.results.result import RepairResult
from nnrepair.training import Checkpoint, Descent
from nnrepair.verify import vnnlib as properties
from nnrepair.verify.certificate import PropertyCertificate
from nnrepair.verify.suite import vnncomp
from nnrepair.verify.suite.stored import Row, store, stored
from nnrepair.verify.suite.suite import SuiteResult

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
SEED = 20261129
#: Bytes that a reader may use beside what the process has, and its seconds of one processor for one file.
MEMORY, LIMIT = 2**30, 10.0
#: Files of one example that follow each other; a reader's own examples are made this rarely.
EACH = 40
BYTES: tuple[spoil.Way, ...] = fuzz.WAYS


class TooLong(BaseException):
    """Nothing catches it: a file took too long."""


@dataclass(frozen=True)
class Example:
    """A right file, and others that are read with it."""

    content: bytes
    about: Any = None


@dataclass(frozen=True)
class Reader:
    """One kind of file.

    Attributes:
        example: makes the right one with a number.
        read: reads a spoiled one, with all that is done with it before anyone trusts it.
        ways: to spoil it, beside its bytes.
        examples: how many there are.
        share: how many files it gets of those that all readers share.
        deeper: how many of them are spoiled in these ways.
    """

    example: Callable[[int], Example]
    read: Callable[[Path, Any], object]
    ways: tuple[spoil.Way, ...]
    share: float
    examples: int = 1
    deeper: float = 0.8


# Examples ------------------------------------------------------------------------------------------------------------


@cache
def network() -> nn.Module:
    """Return the network of patches, editors and progress."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).eval()


@cache
def asked(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points and labels that the network gets wrong."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, network()(x).argsort(1)[:, 1]


def made(write: Callable[[Path], object]) -> Example:
    """Return what `write(path)` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example"
        write(path)
        return Example(path.with_name(os.listdir(folder)[0]).read_bytes())


@cache
def repaired() -> RepairResult:
    return nnrepair.fix(network(), asked(), method=MinimalNorm("2", norm="l2"))


@cache
def trained() -> Editor:
    return LearnedSteps(layers="2", steps=3).prepare(network(), lambda seed: [Episode(Edits(*asked()))], steps=2)


def drawn_text(index: int) -> Example:
    return Example(vnnlib.text(index, SEED))


@lru_cache(1)
def drawn_graph(index: int) -> Example:
    return Example(graphs.case(list(graphs.STYLES)[index % 4], index, SEED).data)


@cache
def patch(turn: int) -> Example:
    return made(repaired().patch.save)


@cache
def progress(turn: int) -> Example:
    return made(lambda path: sequence(path, None))


@cache
def editor(turn: int) -> Example:
    return made(trained().save)


@cache
def training(turn: int) -> Example:
    return made(lambda path: checkpoint(path).save(state()))


@cache
def claim(turn: int) -> Example:
    if turn:
        return made(repaired().certificate.save)
    tree = np.array([0, -1, -1], np.int16)
    return made(PropertyCertificate(1, tree, np.zeros(1), "0" * 64, "1" * 64, {"torch": "2"}).save)


@cache
def points(turn: int) -> Example:
    return made(lambda path: np.savez(path, inputs=asked()[0], labels=asked()[1]))


@cache
def result(turn: int) -> Example:
    point = {"input": [0.5], "output": [1.0], "margin": 0.1, "replayed": ["network"]}
    row = Row("n.onnx", "p.vnnlib", "violated", "", {"timeout": 9.0, "seed": 0}, point, network_sha256="0" * 64)
    return made(lambda path: store(row, path))


@cache
def listed(turn: int) -> Example:
    if turn:
        return Example(b"network,property,verdict\nn.onnx,p.vnnlib,sat\nn.onnx,q.vnnlib,unsat\n")
    return Example(b"onnx,vnnlib,timeout\nonnx/n.onnx,vnnlib/p.vnnlib,116\nonnx/n.onnx,vnnlib/q.vnnlib.gz,9.5\n")


@cache
def certificate(proof: int, index: int) -> Example:
    """Return a certificate that a checker accepts, as the files that it is given, by name."""
    draw = np.random.default_rng([SEED, proof, index])
    with tempfile.TemporaryDirectory() as folder:
        valid = forge.valid(draw, 2 * index + proof)
        paths = [Path(a) for a in valid.write(Path(folder)) if a != "--repaired"]
        return Example(b"", {path.name: path.read_bytes() for path in paths})


# Readers -------------------------------------------------------------------------------------------------------------


def sequence(path: Path, _: object) -> object:
    return nnrepair.fix(network(), asked(), method=MinimalNorm("2"), mode="successive", resume=path, throw=False)


def state() -> dict[str, Any]:
    """Return what a small training would store."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(0.5)
    descent = Descent(torch.optim.Adam(layer.parameters()), clip=1.0)
    layer(torch.ones(1, 2)).sum().backward()
    descent.optimizer.step()
    return {"model": layer, **descent.state, "random numbers": torch.Generator().manual_seed(0)}


def checkpoint(path: Path) -> Checkpoint:
    return Checkpoint(path, {"seed": "0"})


@cache
def _checkpoint(path: Path) -> Checkpoint:
    return checkpoint(path)


def read_patch(path: Path, _: object) -> None:
    found = Patch.load(path)
    assert printable(str(found).replace("\n", "")) == str(found).replace("\n", ""), "it changes the terminal"
    found.apply(network())
    found.revert(repaired().model)


def read_editor(path: Path, _: object) -> None:
    found = Editor.load(path)
    repr(found)
    found.restored(network())


def read_claim(path: Path, _: object) -> None:
    if checkers.kind_of(path) == "property":
        PropertyCertificate.load(path).leaves  # noqa: B018 (it is computed)
    else:
        Certificate.load(path).claim  # noqa: B018


def read_result(path: Path, _: object) -> None:
    row = stored(path)
    if row is None:
        raise NNRepairError("it is none, and is made again")
    found = SuiteResult((row,), ("holds",), path)
    printable(f"{found} {found.status} {row.word}")


def read_list(path: Path, _: object) -> None:
    read = vnncomp.read_expected if path.read_bytes().startswith(b"n") else vnncomp.read_instances
    read(path)


def by_checker(path: Path, files: dict[str, bytes]) -> None:
    paths = [path.parent / name for name in files]
    try:
        with np.errstate(all="ignore"):
            if paths[-1].suffix == ".vnnlib":
                check.check(*map(str, paths))
            else:
                minimality.check(paths[0], paths[1], paths[2] if paths[2:] else None)
    except (check.Rejected, minimality.Rejected, minimality.Unreadable, np.linalg.LinAlgError) as error:
        raise NNRepairError("refused") from error
    except Exception as error:
        if paths[-1].suffix != ".vnnlib":  # all that this one raises is its refusal: the program says "cannot be read"
            raise
        raise NNRepairError("refused") from error


SAFETENSORS = (spoil.tensors_of_the_file, spoil.tensors_of_the_file, spoil.header_of_the_file)
ARCHIVE = (spoil.arrays_of_the_archive, spoil.meta_of_the_archive, fuzz.array_of_the_archive)
TEXT = (lambda rng, data: data, spoil.zipped)
NETWORK, RESULT, LIST = (fuzz.numbers_of_the_network,), (spoil.result_of_the_suite,), (spoil.cells_of_the_list,)
READERS = {
    "property": Reader(drawn_text, lambda path, _: properties.load(path), TEXT, 40, deeper=0.6),
    "network": Reader(drawn_graph, lambda path, _: onnx.load(path), NETWORK, 10, examples=10**6),
    "patch": Reader(patch, read_patch, SAFETENSORS, 8),
    "progress of a sequence": Reader(progress, sequence, SAFETENSORS, 0.3, deeper=0.95),
    "progress of a training": Reader(training, lambda path, _: _checkpoint(path).load(state()), SAFETENSORS, 2),
    "editor": Reader(editor, read_editor, SAFETENSORS, 4),
    "certificate": Reader(claim, read_claim, ARCHIVE, 10, examples=2),
    "certificate of a repair, by its checker": Reader(partial(certificate, 0), by_checker, (), 3, examples=60),
    "certificate of a property, by its checker": Reader(partial(certificate, 1), by_checker, (), 3, examples=60),
    "points": Reader(points, lambda path, _: read_points(path, "--edits", labelled=True), ARCHIVE, 7),
    "result of a suite": Reader(result, read_result, RESULT, 8),
    "list of a suite": Reader(listed, read_list, LIST, 5, examples=2),
}


# The campaign --------------------------------------------------------------------------------------------------------


def spoiled(reader: Reader, rng: np.random.Generator, content: bytes) -> bytes:
    """Spoil a file, once or twice."""
    for _ in range(1 + (rng.random() < 0.15)):
        way = spoil.chosen(rng, reader.ways if reader.ways and rng.random() < reader.deeper else BYTES)
        with contextlib.suppress(Exception):  # what is spoiled already may be nothing that this way can read
            content = way(rng, content) if content else content
    return content


def in_its_files(rng: np.random.Generator, files: dict[str, bytes], folder: Path) -> None:
    """Write the files of a checker, one of them spoiled."""
    name = spoil.chosen(rng, sorted(files))
    deeper: dict[str, tuple[spoil.Way, ...]] = {".onnx": (fuzz.numbers_of_the_network,), ".npz": ARCHIVE}
    ways = deeper.get(Path(name).suffix, BYTES) if rng.random() < 0.6 else BYTES
    for each, content in files.items():
        (folder / each).write_bytes(spoil.chosen(rng, ways)(rng, content) if each == name else content)


def prepared(name: str, index: int, seed: int, folder: Path) -> tuple[Path, Any]:
    """Write the file with this number; return where it is, and what else its reader needs."""
    reader = READERS[name]
    rng = np.random.default_rng([seed, list(READERS).index(name), index])
    example = reader.example(index if name == "property" else index // EACH % reader.examples)
    path = folder / "file"
    if example.about is not None:
        in_its_files(rng, example.about, folder)
    else:
        path.write_bytes(spoiled(reader, rng, example.content))
    return path, example.about


def judged(name: str, path: Path, about: Any) -> tuple[str, str]:
    """Read a file; return "read", "refused" or what is wrong, and what was said."""
    try:
        with limited():
            READERS[name].read(path, about)
    except NNRepairError as error:
        return "refused", str(error)
    except FileNotFoundError as error:
        return ("refused" if isinstance(error, DataUnavailable) else "foreign"), repr(error)
    except TooLong:
        return "too long", f"more than {LIMIT:.0f} s of one processor"
    except Exception as error:  # what is looked for
        at = next(
            (f for f in reversed(traceback.extract_tb(error.__traceback__)) if "/benchmarks/" not in f.filename), None
        )
        where = "" if at is None else f" ({Path(at.filename).name}:{at.lineno})"
        return "foreign", f"{type(error).__name__}: {str(error)[:200]}{where}"
    return "read", ""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise `TooLong` after LIMIT seconds of one processor."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def block(name: str, first: int, count: int, seed: int) -> dict[str, Any]:
    """Have so many files read, and count what became of them."""
    torch.set_num_threads(1)
    outcomes, wrong, slowest = Counter[str](), list[str](), 0.0
    shared = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        prepared(name, first, seed, Path(folder))  # what it imports is not its own
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        for index in range(first, first + count):
            path, about = prepared(name, index, seed, Path(folder))
            start = time.process_time()
            outcome, said = judged(name, path, about)
            slowest = max(slowest, time.process_time() - start)
            outcomes[outcome] += 1
            if outcome not in ("read", "refused"):
                wrong.append(f"{index}: {said}")
    return {"outcomes": dict(sorted(outcomes.items())), "wrong": wrong[:50], "slowest_seconds": slowest}


def run(path: Path, seed: int, inputs: int, names: list[str], limit: float) -> list[dict[str, Any]]:
    """Read so many files in all, those of the result file among them, and store them block by block."""
    rows, whole = measure.load(path), sum(reader.share for reader in READERS.values())
    commit, versions = measure.commit(), {name: version(name) for name in ("onnx", "safetensors")}
    for name in names:
        done = sum(row["inputs"] for row in rows if (row["reader"], row["seed"]) == (name, seed))
        wanted = round(inputs * READERS[name].share / whole) - done
        if wanted <= 0:
            continue
        case = {"name": name, "first": done, "count": wanted, "seed": seed}
        found = measure.in_fresh_process("benchmarks.robust.fuzz", case, limit)
        about = {"reader": name, "seed": seed, "first": done, "inputs": wanted, "commit": commit, "packages": versions}
        if "status" in found:  # the process ended, and with it what it had counted
            about |= {"inputs": 0, "lost": wanted}
        rows.append(about | found)
        measure.save(path, rows, "spoiled files: each must be read, or refused in the package's own words")
        speed = wanted / found.get("cpu_seconds", float("nan"))
        print(f"{name}: {wanted}, {speed:.0f} in a CPU second, {found.get('outcomes', found)}", flush=True)
        print(*found.get("wrong", ()), sep="\n", flush=True)
    return rows


def show(name: str, index: int, seed: int) -> None:
    """Print what becomes of one file, with the traceback of what is foreign."""
    with tempfile.TemporaryDirectory() as folder:
        path, about = prepared(name, index, seed, Path(folder))
        print(path.read_bytes()[:3000] if about is None else sorted(about))
        print(*judged(name, path, about))
        if path.exists():
            path, about = prepared(name, index, seed, Path(folder))
        READERS[name].read(path, about)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robust.fuzz", description=__doc__)
    parser.add_argument("block", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--reader", action="append", choices=list(READERS))
    parser.add_argument("--show", nargs=2, metavar=("READER", "INDEX"), help="one file")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for the files of one reader")
    parser.add_argument("--path", type=Path, default=RESULTS)
    given = parser.parse_args()
    if given.block is not None:
        print(json.dumps(measure.measured(partial(block, **json.loads(given.block)))))
        return
    if given.show is not None:
        show(given.show[0], int(given.show[1]), given.seed)
        return
    rows = run(given.path, given.seed, given.inputs, given.reader or list(READERS), given.limit)
    sys.exit(any(row.get("wrong") or row.get("lost") for row in rows))


if __name__ == "__main__":
    main()
