"""Check a list of instances: several worker processes, one result file each, and nothing lost when it is killed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.files import destination, require_writable, write_atomically, write_or_rescue
from nnrepair.provenance import source, versions
from nnrepair.verify import vnncomp
from nnrepair.verify.certificate import PropertyCertificate
from nnrepair.verify.check import check
from nnrepair.verify.result import CheckResult
from nnrepair.verify.vnncomp import Instance
from nnrepair.verify.workers import Death, in_processes

FORMAT = "nnrepair-suite-2"
#: Packages whose versions decide a verdict.
PACKAGES = ("nnrepair", "torch", "numpy", "onnx", "onnxruntime")
#: No result file has more bytes.
LARGEST = 2**28
#: From best to worst.
STATUSES = ("holds", "violated", "unknown", "error")


@dataclass(frozen=True)
class Row:
    """What came out for one instance; also what its JSON file holds.

    Attributes:
        onnx, vnnlib: the files as the list names them.
        status: "holds", "violated", "unknown" or "error".
        reason: how it was decided, why it was not, or what is wrong.
        counterexample: input, output, margin and who replayed it, where there is one.
        certificate: name of the file in the folder of certificates, and `certificate_sha256`: of its bytes.
        network_sha256, property_sha256: of the files' bytes, None where a file could not be read.
        data_sha256: of the files beside the network in which it keeps weights, by name.
        options: what the check was asked to do.
        checked_by: the function that decided, `source_sha256` of this package, and the versions of what it uses.
        incomplete: what was asked for and could not be written.
    """

    onnx: str
    vnnlib: str
    status: str
    reason: str
    options: dict[str, Any]
    counterexample: dict[str, Any] | None = None
    boxes: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    proved: float = 0.0
    worst_bound: float | None = None
    certificate: str | None = None
    certificate_sha256: str | None = None
    network_sha256: str | None = None
    data_sha256: dict[str, str] | None = None
    property_sha256: str | None = None
    checked_by: str = ""
    source_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    incomplete: str = ""

    @property
    def word(self) -> str:
        """The status in VNN-COMP's words."""
        return vnncomp.word(self.status, timed_out=self.wall_seconds >= (self.options["timeout"] or math.inf))


@dataclass(frozen=True)
class SuiteResult:
    """What came out for all instances.

    Attributes:
        rows: one per instance, in the order of the list.
        expected: the verdict that each should have, None where nobody knows.
        out: the folder with the result files.
        unstored: what could not be written there, and where it is instead; empty when all was.
    """

    rows: tuple[Row, ...]
    expected: tuple[str | None, ...]
    out: Path
    unstored: str = ""

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many instances have each status."""
        found = Counter(row.status for row in self.rows)
        return {status: found[status] for status in STATUSES}

    @cached_property
    def wrong(self) -> tuple[Row, ...]:
        """The rows whose verdict is not the expected one."""
        return tuple(row for row, expected in zip(self.rows, self.expected, strict=True) if _is_wrong(row, expected))

    @property
    def status(self) -> str:
        """The worst status of all; a wrong verdict is an error, and so are results that could not be written."""
        wrong = self.wrong or self.unstored or any(row.incomplete for row in self.rows)
        return "error" if wrong else max((row.status for row in self.rows), key=STATUSES.index)

    def __str__(self) -> str:
        n, cpu = self.counts, [row.cpu_seconds for row in self.rows]
        lines = [f"{row.onnx} with {row.vnnlib}: {_last_line(row)}" for row in self.rows if row.status == "error"]
        lines += [f"{row.onnx} with {row.vnnlib}: {row.incomplete}" for row in self.rows if row.incomplete]
        lines += [f"WRONG: {row.onnx} with {row.vnnlib} is said to be {row.word}" for row in self.wrong]
        lines += [
            f"{len(self.rows)} instances: {n['holds']} hold, {n['violated']} violated, {n['unknown']} unknown, "
            f"{n['error']} errors",
            f"CPU seconds: {sum(cpu):.1f} in all, median {statistics.median(cpu):.2f}, at most {max(cpu):.1f}",
        ]
        compared = len(self.expected) - self.expected.count(None)
        if compared:
            lines.append(f"compared with the expected verdicts: {compared}, of which {len(self.wrong)} are wrong")
        lines += [self.unstored] if self.unstored else []
        return "\n".join(lines)


@dataclass(frozen=True)
class _Task:
    instance: Instance
    options: dict[str, Any]
    certificate: Path | None
    checked_by: str

    @property
    def name(self) -> str:
        return self.instance.name

    def row(self, status: str, reason: str, **rest: Any) -> Row:
        return Row(
            self.instance.onnx,
            self.instance.vnnlib,
            status,
            reason,
            self.options,
            checked_by=self.checked_by,
            source_sha256=source(),
            versions=versions(PACKAGES),
            **rest,
        )

    def died(self, death: Death) -> Row:
        reason = f"The worker process ended ({death.how}), perhaps for want of memory. Resume with fewer jobs."
        return self.row("error", reason, wall_seconds=death.seconds)


def run_suite(
    instances: str | Path,
    out: str | Path,
    *,
    jobs: int = 2,
    timeout: float | None = None,
    resume: bool = False,
    certificates: str | Path | None = None,
    expect: str | Path | None = None,
    progress: bool = False,
    device: str | None = None,
    seed: int = 0,
    check: Callable[..., CheckResult] = check,
) -> SuiteResult:
    """Check every instance of a VNN-COMP instances.csv.

    Each result is written when it is there: OUT/instances/NAME.json, and at the end OUT/results.csv (VNN-COMP's
    columns: category, onnx, vnnlib, seconds of preparation, result, seconds) and OUT/summary.json. A script that calls
    this needs `if __name__ == "__main__":`, since workers import it.

    Args:
        instances: the list; see `vnncomp.read_instances` for where files are looked for.
        out: the folder for results.
        jobs: worker processes, each with one thread.
        timeout: seconds for each instance, instead of the list's own.
        resume: keep the verdicts in `out` that the same program reached about the same bytes of network (with what it
            keeps in other files) and property, with the same options, within the time now given. Errors are tried
            again, and what stayed unknown within another time.
        certificates: a folder for proofs, NAME.npz each.
        expect: a CSV file with the columns network, property, verdict (sat or unsat) to compare with.
        progress: a bar on a terminal, a line per instance elsewhere.
        device, seed: as for `check`.
        check: what to run instead of `nnrepair.verify.check`; a function of a module.

    Raises:
        InvalidInput: the list, the expected verdicts or the folders cannot be used. What is wrong with one instance is
            an error in its row; where a disk fills up, results that it has no room for are in `rows` all the same, and
            in a temporary folder, which `unstored` names.
    """
    listed, out = vnncomp.read_instances(Path(instances)), Path(out)
    if jobs < 1 or (timeout is not None and not 0 < timeout < math.inf):
        raise InvalidInput(f"Expected jobs >= 1 and timeout > 0, got {jobs} and {timeout}.")
    known = {} if expect is None else vnncomp.read_expected(Path(expect))
    expected = [known.get((Path(each.onnx).name, Path(each.vnnlib).name)) for each in listed]
    if expect is not None and not any(expected):
        raise InvalidInput(f"{expect} has no verdict about any instance of {instances}; they must name the same files.")
    common = {"seed": seed, "device": device, "certificate": certificates is not None}
    tasks = []
    for each in listed:
        proof = None if certificates is None else Path(certificates) / f"{each.name}.npz"
        tasks.append(_Task(each, {"timeout": timeout or each.timeout, **common}, proof, _name(check)))
    _make_folders(out, resume, tasks)

    files = partial(_files, of_network=cache(_network_files))  # many instances share a network
    rows = {task.name: row for task in tasks if (row := _kept(task, out, files)) is not None} if resume else {}
    todo = [task for task in tasks if task.name not in rows]
    verdicts = dict(zip((task.name for task in tasks), expected, strict=True))
    unstored = set[str]()
    solve = partial(_solve, check=check)
    with _reporter(rows, len(tasks), progress) as report, closing(in_processes(solve, todo, jobs)) as solved:
        for task, answer in solved:
            row = rows[task.name] = task.died(answer) if isinstance(answer, Death) else answer
            try:
                _store(row, _file(task, out))
            except OSError:  # there may be room at the end
                unstored.add(task.name)
            report(row, _is_wrong(row, verdicts[task.name]))
    result = SuiteResult(tuple(rows[task.name] for task in tasks), tuple(expected), out)

    def write(folder: Path) -> None:
        for task in tasks:
            if folder != out or task.name in unstored:
                _store(rows[task.name], _file(task, folder))
        _write_summary(result, folder, Path(instances), common | {"timeout": timeout, "jobs": jobs})

    return replace(result, unstored=str(write_or_rescue(out, write) or ""))


def _name(check: Callable[..., Any]) -> str:
    """Return what a function is called, and what it was given beforehand."""
    if isinstance(check, partial):
        return f"{_name(check.func)} with {check.args!r} and {sorted(check.keywords.items())!r}"
    return f"{getattr(check, '__module__', '')}.{getattr(check, '__qualname__', type(check).__qualname__)}"


def _is_wrong(row: Row, expected: str | None) -> bool:
    return row.status in ("holds", "violated") and expected not in (None, row.status)


# Files ---------------------------------------------------------------------------------------------------------------


def _file(task: _Task, out: Path) -> Path:
    return out / "instances" / f"{task.name}.json"


def _make_folders(out: Path, resume: bool, tasks: list[_Task]) -> None:
    """Make the folders; refuse to mix with results that are there, and what could not be written at the end."""
    own, ends = out / "instances", [out / "results.csv", out / "summary.json"]
    proofs = [task.certificate for task in tasks if task.certificate is not None]
    for path in (ends[0], *proofs[:1]):
        require_writable(path)
    taken = [path for path in (*own.glob("*.json"), *ends) if path.exists()]
    if taken and not resume:
        raise InvalidInput(f"{out} holds results already. Continue them with --resume, or give another folder (--out).")
    if taken and not own.is_dir():
        raise InvalidInput(f"{out} holds {taken[0].name}, but no results to resume. Give another folder (--out).")
    for folder in (own, *(path.parent for path in proofs[:1])):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"The folder {folder} cannot be made: {error.strerror}.") from error
    for path in (*ends, *(_file(task, out) for task in tasks), *proofs):
        with suppress(OSError):
            path.rmdir()  # an empty folder in the place of a file
        destination(path)


def _store(row: Row, path: Path) -> None:
    content = asdict(row)
    content |= {"format": FORMAT, "sha256": _checksum(content)}
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _stored(path: Path) -> Row | None:
    """Return what a result file holds; None when it is damaged, or none of ours."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        content = json.loads(path.read_bytes())
        if content.pop("format") != FORMAT or content.pop("sha256") != _checksum(content):
            return None
        row = Row(**content)
        numbers = (row.boxes, row.cpu_seconds, row.wall_seconds, row.proved, row.options["timeout"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    fine = all(isinstance(number, int | float) for number in numbers) and isinstance(row.versions, dict)
    return row if fine and all(isinstance(text, str) for text in (row.status, row.reason, row.incomplete)) else None


def _kept(task: _Task, out: Path, files: Callable[[Instance], dict[str, Any]]) -> Row | None:
    """Return the stored verdict about this very instance, if there is one that would come out again."""
    row = _stored(_file(task, out))
    if row is None or row.status not in STATUSES[:3] or row.incomplete:
        return None
    now, limit = files(task.instance), task.options["timeout"]
    own = asdict(task.row(row.status, row.reason, **now))
    stored = asdict(row)
    if None in now.values() or any(stored[n] != own[n] for n in (*now, "checked_by", "source_sha256", "versions")):
        return None
    if stored["options"] | {"timeout": limit} != task.options:
        return None
    in_time = row.options["timeout"] == limit if row.status == "unknown" else row.wall_seconds <= limit
    if not in_time or (row.certificate is not None and _sha256(task.certificate) != row.certificate_sha256):
        return None
    return replace(row, onnx=task.instance.onnx, vnnlib=task.instance.vnnlib)


def _files(instance: Instance, of_network: Callable[[Path], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return the hashes of all bytes that a verdict is about, None where a file cannot be read."""
    return (of_network or _network_files)(instance.network) | {"property_sha256": _sha256(instance.property)}


def _network_files(network: Path) -> dict[str, Any]:
    data: dict[str, str | None] | None = None
    with suppress(Exception):  # what onnx and protobuf raise is many kinds; then the check fails as well
        data = {name: _sha256(network.parent / name) for name in _external(network)}
    readable = data is not None and None not in data.values()
    return {"network_sha256": _sha256(network), "data_sha256": data if readable else None}


def _external(network: Path) -> list[str]:
    """Return the names of the files in which an ONNX file keeps weights."""
    content = network.read_bytes() if network.is_file() else b""
    if b"location" not in content:  # which their names are stored under
        return []
    import onnx

    tensors, messages = list[Any](), [onnx.ModelProto.FromString(content)]
    while messages:
        for _, value in messages.pop().ListFields():
            for part in value if hasattr(value, "add") else [value]:  # a repeated field, or one message or plain value
                if isinstance(part, onnx.TensorProto):
                    tensors.append(part)
                elif hasattr(part, "ListFields"):
                    messages.append(part)
    return sorted({entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"})


def _sha256(path: Path | None) -> str | None:
    if path is None or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _write_summary(result: SuiteResult, folder: Path, instances: Path, options: dict[str, Any]) -> None:
    category = instances.resolve().parent.name
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in result.rows:
        writer.writerow([category, row.onnx, row.vnnlib, 0, row.word, f"{row.wall_seconds:.6g}"])
    write_atomically(folder / "results.csv", buffer.getvalue().encode())

    cpu = [row.cpu_seconds for row in result.rows]
    made_with = {json.dumps(row.versions, sort_keys=True) for row in result.rows}
    about = {
        "format": FORMAT,
        "instances": instances.name,
        "counts": result.counts,
        "cpu_seconds": {"total": sum(cpu), "median": statistics.median(cpu), "max": max(cpu)},
        "boxes": sum(row.boxes for row in result.rows),
        "expected": len(result.expected) - result.expected.count(None),
        "wrong": [[row.onnx, row.vnnlib] for row in result.wrong],
        "options": options,
        "versions": [json.loads(each) for each in sorted(made_with)],
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "date": time.strftime("%Y-%m-%d"),
    }
    write_atomically(folder / "summary.json", (json.dumps(about, indent=1, allow_nan=False) + "\n").encode())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# Progress ------------------------------------------------------------------------------------------------------------


@contextmanager
def _reporter(rows: dict[str, Row], total: int, show: bool) -> Iterator[Callable[[Row, bool], None]]:
    """Yield a function to call with each new row."""
    if not show:
        yield lambda row, wrong: None
        return
    counts = Counter(row.status for row in rows.values())
    if rows:
        print(f"{len(rows)} of {total} are there already", flush=True)
    with tqdm(desc="check", total=total, initial=len(rows), unit="", disable=not sys.stderr.isatty()) as bar:

        def report(row: Row, wrong: bool) -> None:
            counts[row.status] += 1
            done, note = counts.total(), "  WRONG: another verdict was expected" * wrong
            line = f"{done:>{len(str(total))}}/{total}  {row.status:<8} {row.cpu_seconds:8.2f} CPU s"
            line += f"  {row.onnx}  {row.vnnlib}{note}"
            if row.status == "error":
                line += f"  {_last_line(row)}"
            if bar.disable:
                print(line, flush=True)
                return
            bar.set_postfix_str(", ".join(f"{counts[s]} {s}" for s in STATUSES if counts[s]), refresh=False)
            bar.update()
            if wrong or row.status == "error":
                bar.write(line, file=sys.stderr)

        yield report


def _last_line(row: Row) -> str:
    return row.reason.strip().split("\n")[-1]


# One instance --------------------------------------------------------------------------------------------------------


def _solve(task: _Task, check: Callable[..., CheckResult]) -> Row:
    each, start = task.instance, time.perf_counter()
    about = _files(each)
    proof: dict[str, Any] = {}
    try:
        if each.network.suffix == ".gz":
            raise InvalidInput(f"{each.network} is compressed. Networks are read as they are: gunzip it first.")
        result = check(each.network, each.property, **task.options)
        if _files(each) != about:
            raise InvalidInput(f"{each.network} or {each.property} was changed while it was read; check it again.")
        if task.certificate is not None and result.certificate is not None:
            proof = _certified(task.certificate, result.certificate)
    except (NNRepairError, OSError, ModuleNotFoundError) as error:
        seconds = time.perf_counter() - start
        return task.row("error", " ".join(str(error).split()), wall_seconds=seconds, **about)
    except Exception:  # ours to mend, and no reason to lose the other instances
        return task.row("error", traceback.format_exc(), wall_seconds=time.perf_counter() - start, **about)
    found = result.counterexample
    point = None
    if found is not None:
        point = {"input": found.input.tolist(), "output": found.output.tolist(), "margin": _finite(found.margin)}
        point["replayed"] = list(found.replayed)
    return task.row(
        result.verdict,
        result.reason,
        counterexample=point,
        boxes=result.boxes,
        cpu_seconds=result.cpu_seconds,
        wall_seconds=result.wall_seconds,
        proved=result.proved,
        worst_bound=_finite(result.worst_bound),
        **proof,
        **about,
    )


def _certified(path: Path, certificate: PropertyCertificate) -> dict[str, Any]:
    """Write a certificate; return what the row says of it."""
    problem = write_or_rescue(path, certificate.save)
    if problem is not None:
        return {"incomplete": str(problem)}
    return {"certificate": path.name, "certificate_sha256": _sha256(path)}


def _finite(value: float | None) -> float | None:
    """Return what JSON can hold."""
    return value if value is not None and math.isfinite(value) else None
