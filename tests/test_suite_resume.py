"""What a suite keeps when it is resumed: nothing that would come out differently, and nothing that is damaged."""

from __future__ import annotations

import errno
import functools
import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disks import elsewhere, fills_up
from suites import PROOF, listed, one_by_one, scripted, statuses

import nnrepair
from nnrepair.errors import InvalidInput
from nnrepair.verify import CheckResult, PropertyCertificate
from nnrepair.verify.suite import suite
from nnrepair.verify.suite.stored import FORMAT, LARGEST, checksum, stored
from nnrepair.verify.suite.suite import run_suite


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without worker processes, which take seconds to start."""
    monkeypatch.setattr(suite, "in_processes", one_by_one)


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
    content, right = row.read_bytes(), stored(row)
    assert right is not None and right.status == "violated" and right.cpu_seconds == 0.5
    for place in draw.sample(range(8 * len(content)), 500):
        row.write_bytes(content)
        flipped(row, place)
        found = stored(row)
        assert found in (None, right)
        refused += [place] if found is None else []
    assert len(refused) > 400  # the others were in spaces
    for place in refused[:5]:
        row.write_bytes(content)
        flipped(row, place)
        assert results.redone() == "b"
        assert stored(row) == right


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
            file.truncate(LARGEST + 1)
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
        {"boxes": 10**400},
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
    row.write_text(json.dumps(content | {"format": FORMAT, "sha256": checksum(content)}))
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
import suites
from nnrepair.verify.suite import suite
from nnrepair.verify.suite.stored import stored

suite.in_processes = suites.one_by_one
folder, draw = Path({folder!r}), random.Random(0)
for attempt in range(12):
    pid = os.fork()
    if not pid:
        suite.run_suite(folder / "instances.csv", folder / "out", resume=True, certificates=folder / "proofs",
                        seed=attempt // 4, check=suites.scripted)
        os._exit(0)
    time.sleep(draw.uniform(0, 0.5))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for path in (folder / "out" / "instances").glob("*.json"):
        assert stored(path) is not None, path
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
