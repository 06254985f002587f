"""Suites of instances: formats, what is kept when a run is killed, and which errors stop what."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import joblib
import pytest
from suites import listed, one_by_one, scripted, statuses

import nnrepair
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.verify import CheckResult
from nnrepair.verify.suite import suite, vnncomp
from nnrepair.verify.suite.suite import run_suite


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without worker processes, which take seconds to start."""
    monkeypatch.setattr(suite, "in_processes", one_by_one)


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
from suites import scripted
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
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NNRepairError, match=r"end as soon as they start \(exit code 1\).*/bin/false"):
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


def test_the_list_is_not_overwritten(tmp_path: Path, quick: None) -> None:
    path = listed(tmp_path, a="holds")
    (tmp_path / "instances").mkdir()
    path = path.rename(tmp_path / "results.csv")
    before = path.read_text()
    with pytest.raises(InvalidInput, match="where a result would be written"):
        run_suite(path, tmp_path, resume=True, check=scripted)
    assert path.read_text() == before


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

    def test_names_that_are_too_long_are_files_that_are_missing(self, tmp_path: Path) -> None:
        (row,) = self.read(tmp_path, f"{'x' * 300}.onnx,p.vnnlib,1\n")
        assert row.network == tmp_path / f"{'x' * 300}.onnx"

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
    assert [expected[row.onnx, row.vnnlib] for row in rows].count(("violated", None)) == 47


def test_two_verdicts_for_one_instance(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("network,property,verdict\na/n.onnx,p.vnnlib,sat\nn.onnx,p.vnnlib,sat\n")
    assert vnncomp.read_expected(truth) == {("n.onnx", "p.vnnlib"): ("violated", None)}
    truth.write_text("network,property,verdict\nn.onnx,p.vnnlib,sat\nn.onnx,p.vnnlib,unsat\n")
    with pytest.raises(InvalidInput, match="line 3: n.onnx with p.vnnlib has another verdict in an earlier line"):
        vnncomp.read_expected(truth)


def test_published_times(tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("network,property,verdict,seconds\nn.onnx,p.vnnlib,sat,0.25\nn.onnx,q.vnnlib,unsat,\n")
    expected = {("n.onnx", "p.vnnlib"): ("violated", 0.25), ("n.onnx", "q.vnnlib"): ("holds", None)}
    assert vnncomp.read_expected(truth) == expected
    for wrong in ("fast", "-1", "nan", "inf"):
        truth.write_text(f"network,property,verdict,seconds\nn.onnx,p.vnnlib,sat,{wrong}\n")
        with pytest.raises(InvalidInput, match=f"line 2: expected seconds, .* or nothing; got '{wrong}'"):
            vnncomp.read_expected(truth)


def test_the_page(tmp_path: Path, quick: None) -> None:
    path, truth = (
        listed(tmp_path, a="holds", b="holds", c="unknown late", d="violated", e="bug"),
        tmp_path / "truth.csv",
    )
    truth.write_text(
        "property,verdict,network,seconds\na.vnnlib,sat,net.onnx,0.5\n"
        "b.vnnlib,unsat,net.onnx,20\nc.vnnlib,sat,net.onnx,\n"
    )
    path.write_text(path.read_text() + "onnx/net.onnx,<b>&.vnnlib,9\n")
    run_suite(path, tmp_path / "out", check=scripted, expect=truth)
    page = (tmp_path / "out" / "page.html").read_text()
    assert "3 of 6 instances are solved (50.00%). Of 3 with a published answer 1 is answered otherwise." in page
    assert '<div class="tile"><b>2</b><span>error</span></div>' in page and "ZeroDivisionError: ours" in page
    assert '<td class="not">holds</td><td>violated</td>' in page  # a
    assert '<td>holds</td><td>holds</td><td class="number">0.50</td><td class="number">20.00</td>' in page  # b
    assert '<td>unknown</td><td>violated</td><td class="number">0.50</td><td class="number">–</td>' in page  # c
    assert "&lt;b&gt;&amp;.vnnlib" in page and "<b>&." not in page
    curves = re.findall(r'<polyline class="(\w+)" points="([^"]*)"', page)
    assert [(kind, len(points.split())) for kind, points in curves] == [("here", 4), ("there", 3)]
    for _, points in curves:
        x, y = zip(*(map(float, point.split(",")) for point in points.split()), strict=True)
        assert list(x) == sorted(x) and list(y) == sorted(y, reverse=True)
    assert "each measured on another machine" in page and "http" not in page


def test_the_page_where_nothing_is_solved_or_known(tmp_path: Path, quick: None) -> None:
    run_suite(listed(tmp_path, a="unknown"), tmp_path / "out", check=scripted)
    page = (tmp_path / "out" / "page.html").read_text()
    assert "0 of 1 instance is solved" in page and "None is solved." in page and "published answer" not in page


@pytest.mark.filterwarnings("ignore")  # of dask itself, about ports and the time that it takes
def test_a_suite_on_a_dask_cluster(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed: nnrepair[dask]")
    path, out = listed(tmp_path, a="holds", b="die", c="violated"), tmp_path / "out"
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        result = run_suite(path, out, jobs=None, check=scripted)
        assert statuses(result) == ["holds", "error", "violated"] and "signal 9" in result.rows[1].reason
        (tmp_path / "vnnlib" / "b.vnnlib").write_text("unknown")
        again = run_suite(path, out, jobs=None, check=scripted, resume=True)
    assert statuses(again) == ["holds", "unknown", "violated"]
    kept = [row.wall_seconds == old.wall_seconds for row, old in zip(again.rows, result.rows, strict=True)]
    assert kept[0] and kept[2]


def test_names_that_no_file_has(tmp_path: Path) -> None:
    listed = tmp_path / "instances.csv"
    listed.write_text(f"{'n' * 5000}.onnx,p.vnnlib,1\n")
    (instance,) = vnncomp.read_instances(listed)
    assert instance.network == tmp_path / f"{'n' * 5000}.onnx"
