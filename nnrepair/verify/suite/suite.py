"""Check a list of instances: each in a process that can be killed, one result file each, nothing lost when it ends."""

from __future__ import annotations

import csv
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
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnrepair.errors import InvalidInput, NNRepairError, printable
from nnrepair.files import destination, require_writable, write_atomically, write_or_rescue
from nnrepair.processes import Failure, in_processes
from nnrepair.provenance import source, versions
from nnrepair.rounding import counted
from nnrepair.verify.certificate import PropertyCertificate
from nnrepair.verify.check import check
from nnrepair.verify.result import CheckResult
from nnrepair.verify.suite import vnncomp
from nnrepair.verify.suite.page import page
from nnrepair.verify.suite.stored import (
    FORMAT,
    PACKAGES,
    STATUSES,
    Row,
    files_of,
    network_files,
    sha256_of,
    store,
    stored,
)
from nnrepair.verify.suite.vnncomp import Instance

#: What every check imports when it first needs it, or compiles; no instance's time is to be spent on that.
PRELOAD = ("nnrepair.onnx.reader", "onnxruntime", "nnrepair.verify.search.kernel")


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
            f"{counted(len(self.rows), 'instance')}: {n['holds']} hold, {n['violated']} violated, "
            f"{n['unknown']} unknown, {counted(n['error'], 'error')}",
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

    def failed(self, failure: Failure) -> Row:
        reason = str(failure)
        if failure.kind == "end":
            reason = f"The worker process ended ({failure.how}), perhaps for want of memory. Resume with fewer jobs."
        return self.row("error", reason, wall_seconds=failure.seconds)


def run_suite(
    instances: str | Path,
    out: str | Path,
    *,
    jobs: int | None = 2,
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
    columns: category, onnx, vnnlib, seconds of preparation, result, seconds), OUT/summary.json and OUT/page.html.

    Every instance has a process of its own (`nnrepair.processes`), so one that crashes is an error in its row. joblib
    says where: inside `joblib.parallel_config(backend="dask")` on the workers of a dask cluster, which must see the
    files under the same names.

    Args:
        instances: the list; see `vnncomp.read_instances` for where files are looked for.
        out: the folder for results.
        jobs: how many instances at a time, each with one thread; None: what `joblib.parallel_config` says.
        timeout: seconds for each instance, instead of the list's own.
        resume: keep the verdicts in `out` that the same program reached about the same bytes of network (with what it
            keeps in other files) and property, with the same options, within the time now given. Errors are tried
            again, and what stayed unknown within another time.
        certificates: a folder for proofs, NAME.npz each.
        expect: a CSV file with the columns network, property, verdict (sat or unsat) to compare with, and perhaps
            seconds: the fastest known time, for the page.
        progress: a bar on a terminal, a line per instance elsewhere.
        device, seed: as for `check`.
        check: what to run instead of `nnrepair.verify.check`.

    Raises:
        InvalidInput: the list, the expected verdicts or the folders cannot be used. What is wrong with one instance is
            an error in its row; results that a full disk has no room for are in `rows`, and where `unstored` says.
    """
    listed, out = vnncomp.read_instances(Path(instances)), Path(out)
    if (jobs is not None and jobs < 1) or (timeout is not None and not 0 < timeout < math.inf):
        raise InvalidInput(f"Expected jobs >= 1 and timeout > 0, got {jobs} and {timeout}.")
    published = _published(expect, listed, instances)
    expected = [each and each[0] for each in published]
    common = {"seed": seed, "device": device, "certificate": certificates is not None}
    proofs = [None if certificates is None else Path(certificates) / f"{each.name}.npz" for each in listed]
    options = [{"timeout": timeout or each.timeout, **common} for each in listed]
    tasks = [_Task(*each, _name(check)) for each in zip(listed, options, proofs, strict=True)]
    _make_folders(out, resume, tasks, [Path(each) for each in (instances, expect) if each is not None])
    rows, unstored = _solved(tasks, expected, out, jobs, resume, progress, check)
    result = SuiteResult(tuple(rows[task.name] for task in tasks), tuple(expected), out)

    def write(folder: Path) -> None:
        for task in tasks:
            if folder != out or task.name in unstored:
                store(rows[task.name], _file(task, folder))
        _write_summary(result, folder, Path(instances), common | {"timeout": timeout, "jobs": jobs})
        best = [each and each[1] for each in published]
        write_atomically(folder / "page.html", _page(result, Path(instances), best).encode())

    return replace(result, unstored=str(write_or_rescue(out, write) or ""))


def _published(
    expect: str | Path | None, listed: list[Instance], instances: str | Path
) -> list[tuple[str, float | None] | None]:
    """Return the verdict that each instance should have and the fastest known time, None where nobody knows."""
    if expect is None:
        return [None] * len(listed)
    known = vnncomp.read_expected(Path(expect))
    published = [known.get((Path(each.onnx).name, Path(each.vnnlib).name)) for each in listed]
    if not any(published):
        raise InvalidInput(f"{expect} has no verdict about any instance of {instances}; they must name the same files.")
    return published


def _solved(
    tasks: list[_Task],
    expected: list[str | None],
    out: Path,
    jobs: int | None,
    resume: bool,
    progress: bool,
    check: Callable[..., CheckResult],
) -> tuple[dict[str, Row], set[str]]:
    """Return the row of every task, by name, and the names of those that could not be stored when they were there."""
    files = partial(files_of, of_network=cache(network_files))  # many instances share a network
    rows = {task.name: row for task in tasks if (row := _kept(task, out, files)) is not None} if resume else {}
    todo = [task for task in tasks if task.name not in rows]
    verdicts = dict(zip((task.name for task in tasks), expected, strict=True))
    unstored = set[str]()
    solve = partial(_solve, check=check)
    with (
        _reporter(rows, len(tasks), progress) as report,
        closing(in_processes(solve, todo, jobs, preload=PRELOAD)) as answers,
    ):
        for task, answer in answers:
            row = rows[task.name] = task.failed(answer) if isinstance(answer, Failure) else answer
            try:
                store(row, _file(task, out))
            except (OSError, InvalidInput):  # there may be room at the end
                unstored.add(task.name)
            report(row, _is_wrong(row, verdicts[task.name]))
    return rows, unstored


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


def _make_folders(out: Path, resume: bool, tasks: list[_Task], read: list[Path]) -> None:
    """Make the folders; refuse to mix with other files, and what could not be written at the end."""
    own, ends = out / "instances", [out / "results.csv", out / "summary.json", out / "page.html"]
    proofs = [task.certificate for task in tasks if task.certificate is not None]
    for path in (ends[0], *proofs[:1]):
        require_writable(path)
    own_list = next((path for path in read if os.path.realpath(path) in map(os.path.realpath, ends)), None)
    if own_list is not None:
        raise InvalidInput(f"{own_list} is where a result would be written. Give another folder (--out).")
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


def _kept(task: _Task, out: Path, files: Callable[[Instance], dict[str, Any]]) -> Row | None:
    """Return the stored verdict about this very instance, if there is one that would come out again."""
    row = stored(_file(task, out))
    if row is None or row.status not in STATUSES[:3] or row.incomplete:
        return None
    about, limit = files(task.instance), task.options["timeout"]
    about |= {"checked_by": task.checked_by, "source_sha256": source(), "versions": versions(PACKAGES)}
    same = None not in about.values() and all(getattr(row, name) == value for name, value in about.items())
    if not same or row.options | {"timeout": limit} != task.options:
        return None
    in_time = row.options["timeout"] == limit if row.status == "unknown" else row.wall_seconds <= limit
    whole = row.certificate is None or sha256_of(task.certificate) == row.certificate_sha256
    return replace(row, onnx=task.instance.onnx, vnnlib=task.instance.vnnlib) if in_time and whole else None


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


def _page(result: SuiteResult, instances: Path, best: list[float | None]) -> str:
    about = (
        f"{time.strftime('%Y-%m-%d')}, {_processor()}, {os.cpu_count()} cores. Seconds are CPU time of each instance."
    )
    name = f"{instances.resolve().parent.name}/{instances.name}"
    return page(f"Checked: {name}", about, result.rows, result.expected, best)


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
    return printable(row.reason.strip().split("\n")[-1])  # names in a network may be anything


# One instance --------------------------------------------------------------------------------------------------------


def _solve(task: _Task, check: Callable[..., CheckResult]) -> Row:
    each, start = task.instance, time.perf_counter()
    about = files_of(each)
    proof: dict[str, Any] = {}
    try:
        result = check(each.network, each.property, **task.options)
        if files_of(each) != about:
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
        if found.is_rounded:
            point["exact_input"] = [_exact(v) for v in found.exact_input]
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
    return {"certificate": path.name, "certificate_sha256": sha256_of(path)}


def _exact(value: Fraction) -> str:
    """Return a fraction as text, in hexadecimal digits where it has more decimal ones than Python writes.

    >>> _exact(Fraction(1, 3)), _exact(Fraction(1, 2**20_000))[:12]
    ('1/3', '0x1/0x100000')
    """
    try:
        return str(value)
    except ValueError:
        return f"{value.numerator:#x}/{value.denominator:#x}"


def _finite(value: float | None) -> float | None:
    """Return what JSON can hold."""
    return value if value is not None and math.isfinite(value) else None
