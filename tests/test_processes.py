"""Jobs in processes of their own: limits, crashes, and the same on every backend of joblib."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import pytest
import torch
from job import work
from networks import mistakes, mlp, randn
from suites import listed, scripted, statuses

import nnrepair
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.processes import Failure, in_processes
from nnrepair.verify.suite.suite import run_suite

#: Two workers, each a process.
CLUSTER = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}


@contextmanager
def dask_cluster() -> Iterator[None]:
    """Let joblib use a cluster of this machine."""
    distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed: nnrepair[dask]")
    with (
        distributed.LocalCluster(**CLUSTER) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        yield


BACKENDS: dict[str, Callable[[], Any]] = {
    "default": nullcontext,
    "threading": partial(joblib.parallel_config, backend="threading"),
    "loky": partial(joblib.parallel_config, backend="loky"),
    "multiprocessing": partial(joblib.parallel_config, backend="multiprocessing"),
    "dask": dask_cluster,
}


@pytest.mark.filterwarnings("ignore")  # of the backends themselves, about ports, forks and the time that they take
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_happens_to_a_job_costs_no_other_on_any_backend(backend: str) -> None:
    jobs = [("give", 0), ("die", None), ("sleep", 60), ("raise", "ours"), ("exit", 3), ("give", "last")]
    with BACKENDS[backend]():
        found = dict(in_processes(work, jobs, 2, seconds=10))
    assert set(found) == set(jobs)
    assert found["give", 0] == 0 and found["give", "last"] == "last"
    failures = {what: answer for (what, _), answer in found.items() if isinstance(answer, Failure)}
    assert {what: failure.kind for what, failure in failures.items()} == {
        "die": "end",
        "sleep": "time",
        "raise": "error",
        "exit": "end",
    }
    assert "signal 9" in failures["die"].how and failures["exit"].how == "exit code 3"
    assert str(failures["sleep"]) == "not finished in 10 s" and 10 <= failures["sleep"].seconds < 60
    assert str(failures["raise"]) == "ZeroDivisionError: ours"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["dask", pytest.param("loky", marks=pytest.mark.slow)])
def test_repairs_of_several_edits_run_as_calls_of_joblib(backend: str) -> None:
    model, x, kept = mlp(4, 16, 3), randn(3, 4, seed=1), randn(20, 4, seed=2)
    several = [nnrepair.Edits(x[[k]], [wrong]) for k, wrong in enumerate(mistakes(model, x).tolist())]
    repair = joblib.delayed(nnrepair.fix)
    with BACKENDS[backend]():
        results = joblib.Parallel(n_jobs=2)(repair(model, edits, kept) for edits in several)
    for edits, result in zip(several, results, strict=True):
        here = nnrepair.fix(model, edits, kept)
        assert torch.equal(result.model(x), here.model(x)) and result.patch.new.keys() == here.patch.new.keys()


def test_functions_of_scripts_take_the_package_with_them() -> None:
    def work() -> Any:
        return nnrepair.Argmax([1])

    work.__module__ = "__main__"  # as in a notebook: sent by value, with what it names
    assert len(pickle.loads(pickle.dumps(joblib.wrap_non_picklable_objects(work, keep_wrapper=False)))()) == 1
    assert pickle.loads(pickle.dumps(nnrepair)) is nnrepair


def test_a_job_that_the_backend_drops_is_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """As dask does with a task after four of its workers were lost."""

    def dropping(self: Any, tasks: Any) -> Any:
        return (function(*arguments) for function, arguments, _ in list(tasks)[1:])

    monkeypatch.setattr(joblib.Parallel, "__call__", dropping)
    found = dict(in_processes(work, [("give", 0), ("give", 1), ("give", 2)]))
    failure = found.pop(("give", 0))
    assert isinstance(failure, Failure) and "the backend lost the workers" in str(failure)
    assert found == {("give", 1): 1, ("give", 2): 2}


@pytest.mark.filterwarnings("ignore")
def test_a_suite_on_a_cluster_writes_what_it_writes_here(tmp_path: Path) -> None:
    words = {"a": "holds", "b": "die", "c": "violated", "d": "unknown", "e": "unreadable"}
    path = listed(tmp_path, **words)
    with dask_cluster():
        there = run_suite(path, tmp_path / "there", jobs=None, certificates=tmp_path / "proofs", check=scripted)
    here = run_suite(path, tmp_path / "here", jobs=1, certificates=tmp_path / "proofs", check=scripted)
    assert statuses(there) == statuses(here) == ["holds", "error", "violated", "unknown", "error"]
    fields = ("reason", "counterexample", "network_sha256", "property_sha256", "certificate_sha256", "checked_by")
    for one, other in zip(there.rows, here.rows, strict=True):
        assert all(getattr(one, name) == getattr(other, name) for name in fields)
    again = run_suite(path, tmp_path / "there", resume=True, certificates=tmp_path / "proofs", check=scripted)
    assert statuses(again) == statuses(here)


@pytest.mark.filterwarnings("ignore")
def test_the_command_line_takes_a_suite_to_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed: nnrepair[dask]")
    from nnrepair.cli import main

    path = listed(tmp_path, a="no property")
    with distributed.LocalCluster(**CLUSTER) as cluster:
        code = main(
            ["check", "--suite", str(path), "--out", str(tmp_path / "out"), "--dask", cluster.scheduler_address]
        )
    assert code == 3 and "1 error\n" in capsys.readouterr().out


def test_answers_come_as_they_are_there() -> None:
    jobs = [("sleep", 30), ("give", 1), ("give", 2)]
    answers = in_processes(work, jobs, 2)
    assert [next(answers)[1], next(answers)[1]] == [1, 2]
    answers.close()


def test_a_process_does_one_job_after_another_or_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs = [("where", k) for k in range(3)]
    shared = [answer for _, answer in in_processes(work, jobs)]
    assert len({pid for pid, *_ in shared}) == 1
    alone = [answer for _, answer in in_processes(work, [*jobs, ("die", None), ("where", 3)], fresh=True)]
    assert "signal 9" in alone.pop(3).how and len({pid for pid, *_ in alone}) == 4
    assert {(folder, threads) for _, folder, threads in shared + alone} == {(str(tmp_path), "1")}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process uses for data")
def test_a_job_may_use_so_much_memory_only() -> None:
    (small, large) = (answer for _, answer in in_processes(work, [("fill", 2**20), ("fill", 2**33)], memory=2**32))
    assert small == 2**20 and isinstance(large, Failure) and str(large) == "MemoryError"


def test_what_a_job_prints_is_no_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert [answer for _, answer in in_processes(work, [("print", "said")])] == ["said"]
    assert capfd.readouterr() == ("", "said\n")


def test_what_cannot_be_sent_is_told_at_once() -> None:
    with pytest.raises(InvalidInput, match="cannot be sent to another process"):
        next(in_processes(work, [("give", sys.stdout)]))


def test_an_answer_that_cannot_be_sent_is_one_failure() -> None:
    answers = [answer for _, answer in in_processes(work, [("open", None), ("give", 2)])]
    assert isinstance(answers[0], Failure) and answers[0].kind == "error" and answers[1] == 2


def test_a_backend_that_cannot_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no workers\nat all")

    monkeypatch.setattr(joblib, "Parallel", broken)
    with pytest.raises(NNRepairError, match="joblib's backend failed: RuntimeError: no workers"):
        next(in_processes(work, [("give", 1)]))


# No process is left behind -------------------------------------------------------------------------------------------


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from job import work
from nnrepair.processes import in_processes

for job, answer in in_processes(work, [("start", {place!r})], 2):  # a script without `if __name__ == "__main__":`
    raise AssertionError(answer)
"""


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_what_jobs_start_ends_with_the_caller(tmp_path: Path, how: signal.Signals) -> None:
    place = tmp_path / "pid"
    paths = [str(Path(nnrepair.__file__).parents[1]), *filter(None, sys.path)]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += SCRIPT.format(tests=str(Path(__file__).parent), place=str(place))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    caller = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    wait_until(lambda: (place.is_file() and place.read_text() != "") or caller.poll() is not None)
    pid = int(place.read_text())
    assert is_alive(pid)
    caller.send_signal(how)
    caller.communicate(timeout=60)
    wait_until(lambda: not is_alive(pid))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_jobs_on_a_cluster_end_when_nobody_waits_for_them(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="dask's distributed is not installed: nnrepair[dask]")
    place = tmp_path / "pid"
    with distributed.LocalCluster(**CLUSTER) as cluster:
        with distributed.Client(cluster), joblib.parallel_config(backend="dask"):
            answers = in_processes(work, [("start", str(place)), ("give", 1)])
            assert next(answers) == (("give", 1), 1)
            wait_until(lambda: place.is_file() and place.read_text() != "")
            pid = int(place.read_text())
            assert is_alive(pid)
            answers.close()
        wait_until(lambda: not is_alive(pid))  # the cluster itself goes on


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_job_started_ends_with_its_time(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    ((_, failure),) = in_processes(work, [("start", str(place))], seconds=3)
    assert isinstance(failure, Failure) and failure.kind == "time"
    pid = int(place.read_text())
    wait_until(lambda: not is_alive(pid))
