"""Suites of instances: formats, what is kept when a run is killed, and which errors stop what."""

from __future__ import annotations

import csv
import errno
import functools
import gzip
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disks import elsewhere, fills_up

import nnrepair
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.verify import CheckResult, Counterexample, PropertyCertificate, suite, vnncomp, workers
from nnrepair.verify.suite import run_suite

PROOF = PropertyCertificate(1, np.array([-1], np.int16), np.zeros(0), "", "", {})


def scripted(network: Path, property: Path, **options: Any) -> CheckResult:
    """Stand in for `check`: the property file says what happens."""
    if not property.is_file():
        raise InvalidInput(f"There is no file {property.name!r}.")
    words = property.read_text().split()
    if words[0] == "unreadable":
        raise InvalidInput("line 1:\nexpected (, got )")
    if words[0] == "bug":
        raise ZeroDivisionError("ours")
    if words[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if words[0] == "slow":
        with Path(words[1]).open("a") as log:
            log.write(f"{property.stem}\n")
        time.sleep(float(words[2]))
    verdict = words[0] if words[0] in ("violated", "unknown") else "holds"
    return CheckResult(
        verdict=verdict,
        counterexample=Counterexample(np.array([0.1, 1e-30]), np.array([1 / 3]), float("inf"), ("network",))
        if verdict == "violated"
        else None,
        boxes=7,
        cpu_seconds=0.5,
        wall_seconds=options["timeout"] if words[-1] == "late" else 0.25,
        certificate=PROOF if options["certificate"] and verdict == "holds" else None,
        worst_bound=float("inf"),
    )


def one_by_one(work: Any, tasks: Sequence[Any], jobs: int) -> Iterator[tuple[Any, suite.Row]]:
    for task in tasks:
        yield task, work(task)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without worker processes, which take seconds to start."""
    monkeypatch.setattr(suite, "in_processes", one_by_one)


def listed(folder: Path, **properties: str) -> Path:
    """Write a network and properties, and a list of them."""
    (folder / "onnx").mkdir(exist_ok=True)
    (folder / "vnnlib").mkdir(exist_ok=True)
    (folder / "onnx" / "net.onnx").write_text("network")
    for name, text in properties.items():
        (folder / "vnnlib" / f"{name}.vnnlib").write_text(text)
    path = folder / "instances.csv"
    path.write_text("".join(f"onnx/net.onnx,{name}.vnnlib,9\n" for name in properties))
    return path


def statuses(result: suite.SuiteResult) -> list[str]:
    return [row.status for row in result.rows]


def test_a_list_with_every_kind_of_outcome_survives_a_worker_that_dies(tmp_path: Path, capfd) -> None:
    path = listed(
        tmp_path,
        a="holds",
        b="die",
        c="violated",
        d="unknown",
        e="unreadable",
        f="bug",
        g="unknown late",
        h="holds",
    )
    path.write_text(path.read_text() + "onnx/net.onnx,none.vnnlib,9\n")
    out, proofs = tmp_path / "out", tmp_path / "proofs"
    result = run_suite(path, out, jobs=2, certificates=proofs, progress=True, seed=5, check=scripted)
    assert statuses(result) == ["holds", "error", "violated", "unknown", "error", "error", "unknown", "holds", "error"]
    assert result.status == "error" and result.counts == {"holds": 2, "violated": 1, "unknown": 2, "error": 4}

    stored = json.loads((out / "instances" / "net__c.json").read_text())
    point = {"input": [0.1, 1e-30], "output": [1 / 3], "margin": None, "replayed": ["network"]}
    assert stored["counterexample"] == point
    assert stored["worst_bound"] is None and stored["options"]["timeout"] == 9 and stored["options"]["seed"] == 5
    reasons = [row.reason for row in result.rows]
    assert "signal 9" in reasons[1] and "memory" in reasons[1]
    assert reasons[4] == "line 1: expected (, got )" and "ZeroDivisionError: ours" in reasons[5]
    assert "none.vnnlib" in reasons[8]
    assert sorted(p.name for p in proofs.iterdir()) == ["net__a.npz", "net__h.npz"]

    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert " ".join(row[4] for row in rows) == "unsat error sat unknown error error timeout unsat error"
    assert rows[0] == [tmp_path.name, "onnx/net.onnx", "a.vnnlib", "0", "unsat", "0.25"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["counts"] == result.counts and summary["cpu_seconds"]["total"] == 2.5
    assert summary["options"]["seed"] == 5 and summary["versions"][0]["torch"] and summary["machine"]["cores"]

    said = capfd.readouterr()
    assert said.err == "" and len(said.out.splitlines()) == 9 and "9/9" in said.out
    told = str(result)
    assert "2 hold, 1 violated, 2 unknown, 4 errors" in told and "Traceback" not in told


DRIVER = """
import signal, sys
sys.path.insert(0, {tests!r})
from test_suite import scripted
from nnrepair.cli import check, main
from nnrepair.verify.suite import run_suite

check.run_suite = lambda *a, **k: run_suite(*a, **k, check=scripted)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    sys.exit(main(sys.argv[1:]))
"""


def started(folder: Path) -> subprocess.Popen[bytes]:
    """Start the command on a list whose third instance takes a minute."""
    folder.mkdir()
    path = listed(folder, **dict.fromkeys("abd", f"slow {folder / 'log'} 0"))
    (folder / "vnnlib" / "c.vnnlib").write_text(f"slow {folder / 'log'} 60")
    path.write_text("".join(f"onnx/net.onnx,{name}.vnnlib,9\n" for name in "abcd"))
    (folder / "driver.py").write_text(DRIVER.format(tests=str(Path(__file__).parent)))
    paths = [str(Path(nnrepair.__file__).parents[1]), *sys.path]
    return subprocess.Popen(
        [sys.executable, "driver.py", "check", "--suite", path, "--out", "out", "--jobs", "1"],
        start_new_session=True,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    runs = {how: started(tmp_path / how.name) for how in (signal.SIGKILL, signal.SIGINT)}
    for how, process in runs.items():
        log, out = tmp_path / how.name / "log", tmp_path / how.name / "out"
        deadline = time.monotonic() + 60
        stored = out / "instances" / "net__b.json"
        while not (stored.exists() and log.read_text() == "a\nb\nc\n") and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does: to the workers too
        else:
            process.kill()
        said = process.communicate(timeout=20)[1].decode()  # ends only when the workers have ended, too
        assert sorted(p.name for p in (out / "instances").iterdir()) == ["net__a.json", "net__b.json"]
        if how is signal.SIGINT:
            assert process.returncode == 3 and "--resume" in said and "Traceback" not in said
        else:
            assert process.returncode == -how

        (tmp_path / how.name / "vnnlib" / "c.vnnlib").write_text(f"slow {log} 0")
        monkeypatch.setattr(suite, "in_processes", one_by_one)
        path = tmp_path / how.name / "instances.csv"
        with pytest.raises(InvalidInput, match="--resume"):
            run_suite(path, out, check=scripted)
        result = run_suite(path, out, resume=True, progress=True, device="cpu", check=scripted)
        assert statuses(result) == ["holds"] * 4 and log.read_text() == "a\nb\nc\nc\nd\n"
        assert "2 of 4" in capfd.readouterr().out


def test_workers_that_cannot_start_are_not_started_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        task, since = None, 0.0

        def __init__(self, work: Any) -> None:
            self.pipe, theirs = multiprocessing.Pipe()
            theirs.close()

        def stop(self, patience: float = 0.0) -> str:
            self.pipe.close()
            return "exit code 1"

    monkeypatch.setattr(workers, "_Worker", Dead)
    with pytest.raises(NNRepairError, match="__main__"):
        run_suite(listed(tmp_path, a="holds", b="holds"), tmp_path / "out", check=scripted)


def test_resuming_redoes_what_has_changed_and_errors_only(tmp_path: Path, quick: None) -> None:
    path, out, log = listed(tmp_path, a="holds", b="violated", c="unknown", d="unreadable"), tmp_path / "out", []

    def logged(network: Path, property: Path, **options: Any) -> CheckResult:
        log.append(property.stem)
        return scripted(network, property, **options)

    def redone(**options: Any) -> str:
        log.clear()
        run_suite(path, out, resume=True, check=logged, **options)
        return "".join(log)

    assert redone() == "abcd" and redone() == "d"
    (tmp_path / "vnnlib" / "b.vnnlib").write_text("violated again")
    assert redone() == "bd"
    (out / "instances" / "net__c.json").write_text((out / "instances" / "net__c.json").read_text()[:-9])
    assert redone() == "cd"
    for content in ("[]", "{}", '{"format": "another"}', '{"format": "nnrepair-suite-1"}'):
        (out / "instances" / "net__a.json").write_text(content)
        assert redone() == "ad"
    assert redone(timeout=3.0) == "cd"  # what is decided in time stays, whatever the time was
    assert redone(timeout=30.0) == "cd" and redone(timeout=30.0) == "d"
    assert redone(timeout=0.1) == "abcd"  # a quarter of a second is too late now
    assert redone(timeout=0.1, seed=1) == "abcd"
    proofs = tmp_path / "proofs"
    assert redone(certificates=proofs) == "abcd" and redone(certificates=proofs) == "d"
    (proofs / "net__a.npz").unlink()
    assert redone(certificates=proofs) == "ad"
    (tmp_path / "onnx" / "net.onnx").write_text("another")
    assert redone(certificates=proofs) == "abcd"


class Stored:
    """Results of a small suite, and what a run with --resume checks again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.proofs, self.asked = folder, folder / "out", folder / "proofs", ""
        self.list = listed(folder, a="holds", b="violated", c="unknown")
        with gzip.open(folder / "vnnlib" / "z.vnnlib.gz", "wt") as file:
            file.write("holds")
        self.list.write_text(self.list.read_text() + "onnx/net.onnx,z.vnnlib,9\n")
        onnx = pytest.importorskip("onnx")
        pytest.importorskip("onnx.external_data_helper")
        weights = np.arange(1000, dtype=np.float32)
        tensor = onnx.numpy_helper.from_array(weights, "w")
        hidden = onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(weights + 1, "c"))
        branch = onnx.helper.make_graph([hidden], "branch", [], [])
        node = onnx.helper.make_node("If", ["x"], ["y"], then_branch=branch)
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], [tensor]))
        onnx.external_data_helper.convert_model_to_external_data(model, False, size_threshold=0)
        onnx.external_data_helper.set_external_data(hidden.attribute[0].t, "hidden.bin")
        node.attribute[0].g.node[0].attribute[0].t.CopyFrom(hidden.attribute[0].t)
        model.graph.node[0].CopyFrom(node)
        onnx.save(model, folder / "onnx" / "net.onnx")
        (self.weights,) = (p for p in (folder / "onnx").iterdir() if p.name not in ("net.onnx", "hidden.bin"))
        self.hidden = folder / "onnx" / "hidden.bin"
        self.hidden.write_bytes((weights + 1).tobytes())

    def check(self, network: Path, property: Path, **options: Any) -> CheckResult:
        self.asked += property.name[0]
        if property.suffix == ".gz":
            return scripted(network, self.folder / "vnnlib" / "a.vnnlib", **options)
        return scripted(network, property, **options)

    def redone(self, **options: Any) -> str:
        """Resume, and return the instances that were checked again."""
        self.asked = ""
        given: dict[str, Any] = {"certificates": self.proofs, "check": self.check} | options
        result = run_suite(self.list, self.out, resume=True, **given)
        assert statuses(result) == ["holds", "violated", "unknown", "holds"] and result.unstored == ""
        return self.asked

    def row(self, name: str) -> Path:
        return self.out / "instances" / f"net__{name}.json"


@pytest.fixture
def results(tmp_path: Path, quick: None) -> Stored:
    made = Stored(tmp_path)
    assert made.redone() == "abcz" and made.redone() == ""
    return made


def flipped(path: Path, place: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place // 8 % len(content)] ^= 1 << place % 8
    path.write_bytes(content)


def test_every_byte_that_decides_is_compared(results: Stored) -> None:
    draw = random.Random(0)
    deciding = {
        results.weights: "abcz",
        results.hidden: "abcz",
        results.proofs / "net__a.npz": "a",
        results.proofs / "net__z.npz": "z",
        results.folder / "vnnlib" / "z.vnnlib.gz": "z",
    }
    for path, expected in deciding.items():
        for _ in range(3):
            flipped(path, draw.randrange(8 * path.stat().st_size))
            assert results.redone() == expected and results.redone() == "", path
    network = results.folder / "onnx" / "net.onnx"
    network.write_bytes(network.read_bytes().replace(b"branch", b"twig.."))
    assert results.redone() == "abcz" and results.redone() == ""
    (results.folder / "vnnlib" / "b.vnnlib").write_text("violated ")
    assert results.redone() == "b" and results.redone() == ""


def test_what_is_missing_is_no_reason_to_believe_what_is_stored(results: Stored) -> None:
    content = results.weights.read_bytes()
    results.weights.unlink()
    assert results.redone() == "abcz" and results.redone() == "abcz"
    results.weights.write_bytes(content)
    assert results.redone() == "abcz" and results.redone() == ""


def test_another_program_and_other_options_decide_anew(results: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"seed": 1}, {"device": "cpu"}, {"certificates": None}):
        assert results.redone(**options) == "abcz" and results.redone(**options) == ""
    assert results.redone() == "abcz"
    for split in ("relus", "inputs"):
        given = functools.partial(results.check, extra=split)
        assert results.redone(check=given) == "abcz" and results.redone(check=given) == ""
    assert results.redone() == "abcz"
    monkeypatch.setattr(suite, "source", lambda: "0" * 64)
    assert results.redone() == "abcz" and results.redone() == ""
    monkeypatch.setattr(suite, "versions", lambda packages: {"torch": "1.0"})
    assert results.redone() == "abcz" and results.redone() == ""


def test_what_decides_nothing_is_not_compared(results: Stored) -> None:
    for path in results.folder.rglob("*"):
        os.utime(path, (1, 1))
    assert results.redone(jobs=7) == ""
    lines = results.list.read_text().splitlines()
    results.list.write_text("onnx,vnnlib,timeout\n\n" + "\n".join(lines) + "\n")
    assert results.redone() == ""
    results.list.write_text("\n".join(reversed(lines)) + "\n")
    results.asked = ""
    result = run_suite(results.list, results.out, resume=True, certificates=results.proofs, check=results.check)
    assert results.asked == "" and [row.vnnlib[0] for row in result.rows] == ["z", "c", "b", "a"]
    moved = results.folder / "moved"
    moved.mkdir()
    for name in ("onnx", "vnnlib", "instances.csv"):
        (results.folder / name).rename(moved / name)
    result = run_suite(
        moved / "instances.csv", results.out, resume=True, certificates=results.proofs, check=results.check
    )
    assert results.asked == "" and result.status == "unknown"


def test_a_flipped_bit_in_a_stored_result_is_never_believed(results: Stored) -> None:
    row, draw, refused = results.row("b"), random.Random(0), []
    content, right = row.read_bytes(), suite._stored(row)
    assert right is not None and right.status == "violated" and right.cpu_seconds == 0.5
    for place in draw.sample(range(8 * len(content)), 500):
        row.write_bytes(content)
        flipped(row, place)
        found = suite._stored(row)
        assert found in (None, right)
        refused += [place] if found is None else []
    assert len(refused) > 400  # the others were in spaces
    for place in refused[:5]:
        row.write_bytes(content)
        flipped(row, place)
        assert results.redone() == "b"
        assert suite._stored(row) == right


NONSENSE = {
    "nothing": b"",
    "binary": bytes(range(256)) * 10,
    "no text": b"\xff\xfe{}",
    "a number": b"5",
    "a list": b"[]",
    "a list of rows": b'[{"format": "nnrepair-suite-2"}]',
    "null": b"null",
    "text": b'"holds"',
    "not a number": b"NaN",
    "another format": b'{"format": "another"}',
    "nothing else": b'{"format": "nnrepair-suite-2"}',
    "deep lists": b"[" * 10**5 + b"]" * 10**5,
    "deep dictionaries": b'{"a":' * 10**5 + b"1" + b"}" * 10**5,
    "a long number": b'{"format": ' + b"9" * 10**5 + b"}",
}


@pytest.mark.parametrize("kind", [*NONSENSE, "cut short", "twice", "huge", "an empty folder", "a link to nothing"])
def test_nonsense_in_a_result_file_is_checked_again(results: Stored, kind: str) -> None:
    row = results.row("a")
    content = row.read_bytes()
    if kind in NONSENSE:
        row.write_bytes(NONSENSE[kind])
    elif kind in ("cut short", "twice"):
        row.write_bytes(content[: len(content) // 2] if kind == "cut short" else content * 2)
    elif kind == "huge":
        with row.open("wb") as file:
            file.truncate(suite.LARGEST + 1)
    else:
        row.unlink()
        row.mkdir() if kind == "an empty folder" else row.symlink_to(results.folder / "nowhere.json")
    assert results.redone() == "a" and results.redone() == ""


@pytest.mark.parametrize(
    "change",
    [
        {"status": 5},
        {"status": "fine"},
        {"status": ["holds"]},
        {"reason": None},
        {"boxes": "many"},
        {"cpu_seconds": None},
        {"wall_seconds": "0.1"},
        {"proved": []},
        {"options": {}},
        {"options": None},
        {"versions": None},
        {"versions": []},
        {"counterexample": {"input": 5}},
        {"data_sha256": []},
        {"certificate_sha256": None},
        {"certificate": "../../etc/passwd"},
        {"incomplete": 5},
        {"more": 1},
        {"onnx": None},
    ],
)
def test_forged_results_do_no_harm(results: Stored, change: dict[str, Any]) -> None:
    """Even with a checksum of their own."""
    row = results.row("a")
    content = json.loads(row.read_text()) | change
    del content["sha256"], content["format"]
    row.write_text(json.dumps(content | {"format": suite.FORMAT, "sha256": suite._checksum(content)}))
    results.redone()
    assert json.loads((results.out / "summary.json").read_text())["counts"]["holds"] == 2


@pytest.mark.parametrize("kind", ["a full folder", "a pipe", "a circle"])
def test_what_cannot_be_replaced_is_told_before_the_work(results: Stored, kind: str) -> None:
    row = results.row("a")
    row.unlink()
    if kind == "a full folder":
        row.mkdir()
        (row / "mine").touch()
    elif kind == "a pipe":
        os.mkfifo(row)
    else:
        row.symlink_to(row)
    with pytest.raises(InvalidInput, match=r"net__a\.json"):
        results.redone()
    assert results.asked == ""


@pytest.mark.parametrize("kind", ["below a file", "a device", "a name too long"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, quick: None, kind: str) -> None:
    path, log = listed(tmp_path, a="holds"), []
    places = {"below a file": path / "out", "a device": Path("/dev/full"), "a name too long": tmp_path / ("x" * 300)}
    for options in ({"out": places[kind]}, {"out": tmp_path / "out", "certificates": places[kind]}):
        with pytest.raises(InvalidInput):
            run_suite(path, check=lambda *a, **k: log.append(1), **options)  # type: ignore[arg-type]
    assert log == []
    long = tmp_path / "onnx" / f"{'x' * 150}.onnx"
    long.touch()
    (tmp_path / "vnnlib" / f"{'y' * 150}.vnnlib").touch()
    path.write_text(f"{long.name},{'y' * 150}.vnnlib,1\n")
    with pytest.raises(InvalidInput, match="File name too long"):
        run_suite(path, tmp_path / "new", check=lambda *a, **k: log.append(1))  # type: ignore[arg-type]
    assert log == []


def test_a_file_that_changes_while_it_is_checked_has_no_verdict(tmp_path: Path, quick: None) -> None:
    path = listed(tmp_path, a="holds")

    def changing(network: Path, property: Path, **options: Any) -> CheckResult:
        network.write_text("another network")
        return scripted(network, property, **options)

    (row,) = run_suite(path, tmp_path / "out", check=changing).rows
    assert row.status == "error" and "was changed while it was read" in row.reason


def test_results_stand_until_new_ones_do(results: Stored) -> None:
    ends = [results.out / name for name in ("results.csv", "summary.json")]
    before = [path.read_bytes() for path in ends]
    rows = {path: path.read_bytes() for path in (results.out / "instances").iterdir()}

    def interrupted(*arguments: Any, **options: Any) -> CheckResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(results.list, results.out, resume=True, seed=1, check=interrupted)
    assert [path.read_bytes() for path in ends] == before
    assert {path: path.read_bytes() for path in (results.out / "instances").iterdir()} == rows


# A full disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", range(6))
def test_a_disk_that_fills_up_costs_no_verdict(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    path, out = listed(tmp_path, a="holds", b="violated", c="unknown", d="holds"), tmp_path / "out"
    temporary = elsewhere(monkeypatch, tmp_path / "elsewhere")
    fills_up(monkeypatch, out, writes)
    result = run_suite(path, out, check=scripted)
    assert statuses(result) == ["holds", "violated", "unknown", "holds"] and result.status == "error"
    assert "No space left on device" in result.unstored and result.unstored in str(result)
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
    assert len(list((out / "instances").iterdir())) == min(writes, 4)

    (saved,) = temporary.glob("*/*")
    assert str(saved) in result.unstored and (saved / "results.csv").is_file() and (saved / "summary.json").is_file()
    again = run_suite(path, saved, resume=True, check=scripted)
    assert again.rows == result.rows
    monkeypatch.undo()
    monkeypatch.setattr(suite, "in_processes", one_by_one)
    assert run_suite(path, out, resume=True, check=scripted).unstored == ""
    assert len(list((out / "instances").iterdir())) == 4


def test_a_disk_that_has_room_again_gets_what_it_missed(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, once = listed(tmp_path, a="holds", b="violated"), tmp_path / "out", iter([1])
    written = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if next(once, None):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    result = run_suite(path, out, check=scripted)
    assert result.unstored == "" and result.status == "violated" and len(list((out / "instances").iterdir())) == 2


def test_a_proof_without_room_is_saved_elsewhere_and_made_again(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, proofs = listed(tmp_path, a="holds"), tmp_path / "out", tmp_path / "proofs"
    temporary = elsewhere(monkeypatch, tmp_path / "elsewhere")
    fills_up(monkeypatch, proofs)
    result = run_suite(path, out, certificates=proofs, check=scripted)
    (row,) = result.rows
    assert row.status == "holds" and row.certificate is None and result.status == "error"
    (saved,) = temporary.glob("*/*")
    assert f"it was saved as {saved}" in row.incomplete and row.incomplete in str(result)
    assert PropertyCertificate.load(saved).leaves == PROOF.leaves
    monkeypatch.undo()
    monkeypatch.setattr(suite, "in_processes", one_by_one)
    (row,) = run_suite(path, out, resume=True, certificates=proofs, check=scripted).rows
    assert row.certificate == "net__a.npz" and row.incomplete == ""


KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_suite
from nnrepair.verify import suite

suite.in_processes = test_suite.one_by_one
folder, draw = Path({folder!r}), random.Random(0)
for attempt in range(12):
    pid = os.fork()
    if not pid:
        suite.run_suite(folder / "instances.csv", folder / "out", resume=True, certificates=folder / "proofs",
                        seed=attempt // 4, check=test_suite.scripted)
        os._exit(0)
    time.sleep(draw.uniform(0, 0.5))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for path in (folder / "out" / "instances").glob("*.json"):
        assert suite._stored(path) is not None, path
    names = [folder / "out" / name for name in ("results.csv", "summary.json")]
    assert all(path.read_text().endswith("\\n") for path in names if path.exists())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_kill_at_any_moment_leaves_whole_results(tmp_path: Path, quick: None) -> None:
    path = listed(tmp_path, **{f"p{k}": "holds" for k in range(12)})
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    paths = [str(Path(nnrepair.__file__).parents[1]), *sys.path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    kept = len(list((tmp_path / "out" / "instances").glob("*.json")))
    result = run_suite(path, tmp_path / "out", resume=True, certificates=tmp_path / "proofs", seed=2, check=scripted)
    assert kept > 0 and statuses(result) == ["holds"] * 12
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 12


@pytest.mark.parametrize("verdicts", [("holds",), ("holds", "violated"), ("violated", "unknown", "holds")])
def test_the_status_is_the_worst(tmp_path: Path, quick: None, verdicts: tuple[str, ...]) -> None:
    path = listed(tmp_path, **{f"p{i}": verdict for i, verdict in enumerate(verdicts)})
    result = run_suite(path, tmp_path / "out", check=scripted)
    assert result.status == max(verdicts, key=["holds", "violated", "unknown"].index)


def test_wrong_verdicts_are_reported(tmp_path: Path, quick: None, capsys) -> None:
    path, truth = listed(tmp_path, a="holds", b="holds", c="unknown", d="violated"), tmp_path / "truth.csv"
    truth.write_text(
        "property,verdict,network\na.vnnlib,sat,net.onnx\nb.vnnlib,unsat,net.onnx\nc.vnnlib,sat,net.onnx\n"
    )
    result = run_suite(path, tmp_path / "out", check=scripted, expect=truth, progress=True)
    assert [row.vnnlib for row in result.wrong] == ["a.vnnlib"] and result.status == "error"
    assert "WRONG: onnx/net.onnx with a.vnnlib is said to be unsat" in str(result)
    assert "3, of which 1 are wrong" in str(result) and capsys.readouterr().out.count("WRONG") == 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["wrong"] == [["onnx/net.onnx", "a.vnnlib"]]

    truth.write_text("network,property,verdict\nother.onnx,a.vnnlib,sat\n")
    with pytest.raises(InvalidInput, match="same files"):
        run_suite(path, tmp_path / "new", check=scripted, expect=truth)
    truth.write_text("network,property,verdict\nnet.onnx,a.vnnlib,maybe\n")
    with pytest.raises(InvalidInput, match="line 2"):
        run_suite(path, tmp_path / "new", check=scripted, expect=truth)
    truth.write_text("network,verdict\n")
    with pytest.raises(InvalidInput, match="lacks the columns property"):
        run_suite(path, tmp_path / "new", check=scripted, expect=truth)
    assert not (tmp_path / "new").exists()


def test_folders_of_another_origin_are_left_alone(tmp_path: Path, quick: None) -> None:
    path, out = listed(tmp_path, a="holds"), tmp_path / "out"
    out.mkdir()
    (out / "results.csv").write_text("mine")
    for resume in (False, True):
        with pytest.raises(InvalidInput, match="another folder"):
            run_suite(path, out, resume=resume, check=scripted)
    assert (out / "results.csv").read_text() == "mine"
    with pytest.raises(InvalidInput, match="cannot be written"):
        run_suite(path, path, check=scripted)
    with pytest.raises(InvalidInput, match="jobs"):
        run_suite(path, tmp_path / "new", jobs=0, check=scripted)


class TestInstances:
    def read(self, folder: Path, text: str | bytes) -> list[vnncomp.Instance]:
        path = folder / "list.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return vnncomp.read_instances(path)

    def test_files_are_found_beside_the_list_and_below(self, tmp_path: Path) -> None:
        for name in ("here.onnx", "onnx/below.onnx", "vnnlib/p.vnnlib.gz", "q.vnnlib"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        rows = self.read(tmp_path, "onnx,vnnlib,timeout\nhere.onnx, p.vnnlib ,1\n\nbelow.onnx,q.vnnlib,2.5\n")
        found = [[path.relative_to(tmp_path).as_posix() for path in (row.network, row.property)] for row in rows]
        assert found == [["here.onnx", "vnnlib/p.vnnlib.gz"], ["onnx/below.onnx", "q.vnnlib"]]
        assert [(row.name, row.timeout) for row in rows] == [("here__p", 1.0), ("below__q", 2.5)]

    def test_names_are_safe_and_different(self, tmp_path: Path) -> None:
        rows = self.read(tmp_path, "a/net.onnx,p.vnnlib,1\nb/net.onnx,p.vnnlib,1\n../../x y.onnx,p.vnnlib,1\n")
        assert [row.name for row in rows] == ["a_net__p", "b_net__p", "x_y__p"]
        with pytest.raises(InvalidInput, match="Rename"):
            self.read(tmp_path, "a/net.onnx,p.vnnlib,1\na_net.onnx,p.vnnlib,1\nb/net.onnx,p.vnnlib,1\n")

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("", "names no instance"),
            ("a.onnx,p.vnnlib\n", "line 1: expected onnx,vnnlib,timeout, got 2 columns"),
            ("a.onnx,p.vnnlib,1\na.onnx,p.vnnlib,1,1\n", "line 2"),
            ("a.onnx,p.vnnlib,soon\n", "timeout in seconds"),
            ("a.onnx,p.vnnlib,-1\n", "timeout in seconds"),
            ("a.onnx,p.vnnlib,inf\n", "timeout in seconds"),
            ("a.onnx,p.vnnlib,1\na.onnx,p.vnnlib,2\n", "line 2: a.onnx with p.vnnlib is listed twice"),
            (b"\xff\xfe\x00", "no CSV file"),
            (b'"a\x00', "no CSV file"),
        ],
    )
    def test_lists_that_are_wrong(self, tmp_path: Path, text: str | bytes, what: str) -> None:
        with pytest.raises(InvalidInput, match=what):
            self.read(tmp_path, text)

    def test_a_list_that_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="cannot be read"):
            vnncomp.read_instances(tmp_path / "none.csv")


@pytest.mark.data
def test_the_published_list_of_acas_xu(data_dir) -> None:
    folder = (
        data_dir("acasxu/acasxu_instances.csv", "acasxu/ground_truth.csv", "acasxu/onnx", "acasxu/vnnlib") / "acasxu"
    )
    rows = vnncomp.read_instances(folder / "acasxu_instances.csv")
    assert len(rows) == 186 == len({row.name for row in rows})
    assert all(row.network.is_file() and row.property.is_file() for row in rows)
    expected = vnncomp.read_expected(folder / "ground_truth.csv")
    assert [expected[row.onnx, row.vnnlib] for row in rows].count("violated") == 47
