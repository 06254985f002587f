"""Run jobs in processes of their own, on this machine or wherever joblib's backend runs them.

for job, answer in in_processes(work, jobs, 2): ...                                       # two processes here

with joblib.parallel_config(backend="dask"):                                              # all workers of a cluster
    for job, answer in in_processes(work, jobs): ...

joblib says where a job runs and brings its answer back; there, a process that is started for it runs it. So limits hold
on any backend, and a job that crashes or is killed costs no other. Pickles pass between these processes alone.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, Literal, NoReturn, TypeVar

import joblib

from nnrepair.errors import InvalidInput, NNRepairError, first_line

Job = TypeVar("Job")
Answer = TypeVar("Answer")

#: Starts that may fail, one after the other.
STARTS = 3
#: Seconds between two looks at whether an answer is still waited for.
LOOK = 1.0
#: Seconds after which a process ends that has nothing to do.
IDLE = 30.0
#: How many jobs per worker are begun at a time on backends that give answers only when all are there.
ROUND = 4


@dataclass(frozen=True)
class Failure:
    """What is known of a job without an answer.

    Attributes:
        kind: "time" where its time was over, "end" where its process ended, "error" where it raised an exception.
        how: the limit, the signal or exit code, the exception.
        seconds: how long it took until then.
    """

    kind: Literal["time", "end", "error"]
    how: str
    seconds: float

    def __str__(self) -> str:
        return f"the process ended ({self.how})" if self.kind == "end" else self.how


def in_processes(
    work: Callable[[Job], Answer],
    jobs: Sequence[Job],
    n_jobs: int | None = None,
    *,
    seconds: float | None = None,
    memory: int | None = None,
    fresh: bool = False,
    preload: Sequence[str] = (),
) -> Generator[tuple[Job, Answer | Failure], None, None]:
    """Yield each job with its answer as soon as that is there.

    Processes have one thread each, do not hear Ctrl-C, have the folder and the import path of the caller, and end with
    what started them, however that ends. Close the generator to end those of this machine early; those of a dask
    cluster end when its client is closed, those of other backends with machines of their own at their limit.

    Args:
        work: what to do with a job.
        jobs: in the order in which they are begun. Jobs, answers and `work` are pickled (by cloudpickle, so those of a
            script or a notebook may be among them).
        n_jobs: how many at a time; None: what `joblib.parallel_config` says, or else one.
        seconds: after which a job is killed; None: never.
        memory: bytes that a process may use for data (Linux; not for work on a GPU, which reserves far more).
        fresh: whether each job has a process that did nothing before but import `preload`. Otherwise a process does
            one job after another.
        preload: modules to import before the first job, so that no job's time is spent on it; those that are missing
            or cannot be imported are left out.

    Raises:
        InvalidInput: `work` or a job cannot be pickled.
        NNRepairError: no process can be started, or the backend fails.
    """
    try:
        packed = [_packed(partial(work, job)) for job in jobs]
    except Exception as error:  # pickling raises many kinds
        raise InvalidInput(f"A job cannot be sent to another process: {first_line(error)}.") from error
    path = [each for each in sys.path if isinstance(each, str)]
    run = _Run(path, os.getcwd(), tuple(preload), seconds, memory, fresh)
    missing = set(range(len(jobs)))
    try:
        with closing(_answers(run, packed, n_jobs)) as answers:
            for place, answer in answers:
                missing.discard(place)
                yield jobs[place], answer if isinstance(answer, Failure) else _unpacked(answer)
        for place in sorted(missing):  # joblib says nothing of tasks that dask gives up
            yield jobs[place], Failure("end", "the backend lost the workers that ran it", 0.0)
    except NNRepairError:
        raise
    except Exception as error:
        raise NNRepairError(
            f"joblib's backend failed: {type(error).__name__}: {first_line(error)}. What was done until then is kept."
        ) from error
    finally:
        _stop(run)


def _packed(value: Any) -> bytes:
    """Pickle a value; functions and classes of a script by value."""
    return pickle.dumps(joblib.wrap_non_picklable_objects(value, keep_wrapper=False))


def _unpacked(answer: bytes) -> Any:
    try:
        return pickle.loads(answer)
    except Exception as error:  # classes may raise what they like
        return Failure("error", f"the answer cannot be unpickled: {first_line(error)}", 0.0)


# What joblib does ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """What all jobs of one call share."""

    path: list[str]
    folder: str
    preload: tuple[str, ...]
    seconds: float | None
    memory: int | None
    fresh: bool
    name: str = field(default_factory=lambda: uuid.uuid4().hex)


def _answers(
    run: _Run, packed: Sequence[bytes], n_jobs: int | None
) -> Generator[tuple[int, bytes | Failure], None, None]:
    """Let joblib do all jobs; yield what comes back, and which job it belongs to."""
    places = range(len(packed))
    parallel = partial(joblib.Parallel, n_jobs, prefer="threads", batch_size=1)
    try:
        answers = parallel(return_as="generator_unordered")
    except ValueError:  # as ray and multiprocessing say, whose answers come when all are there
        size = ROUND * joblib.effective_n_jobs(n_jobs)
        for begin in range(0, len(packed), size):
            yield from parallel()(joblib.delayed(_attend)(run, k, packed[k]) for k in places[begin : begin + size])
        return
    found = answers(joblib.delayed(_attend)(run, k, packed[k]) for k in places)
    try:
        for each in found:  # noqa: UP028  `yield from` would close it before the processes end
            yield each
    finally:
        _stop(run)  # so that no thread waits for a job that nobody waits for
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib's, that some answers are not used
            found.close()


def _attend(run: _Run, place: int, job: bytes) -> tuple[int, bytes | Failure]:
    """Have one job done by a process on this machine; joblib calls this wherever its backend works."""
    how = ""
    for _ in range(STARTS):
        try:
            process = _process(run)
        except OSError as error:
            how = first_line(error)
            continue
        with process.busy():
            try:
                process.begin(job)
            except _GONE:  # it ended before it took the job
                how = process.end()
                continue
            return place, process.finish(run.seconds, _wanted())
    raise NNRepairError(
        f"Processes for jobs end as soon as they start ({how}). They run {sys.executable or 'no known Python'} and "
        "import nnrepair; what they print on stderr says more."
    )


def _wanted() -> Callable[[], bool]:
    """Return what tells whether the answer to the present job is still waited for, as far as its backend says that.

    Dask drops the task of a caller that was interrupted, and lets the thread that does it run on.
    """
    dask = sys.modules.get("distributed.worker")
    if dask is None:
        return lambda: True
    try:
        worker = dask.get_worker()
        key = worker.get_current_task()
    except ValueError:  # a thread of the caller's
        return lambda: True

    def is_running() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state in ("executing", "long-running")

    return is_running


# The processes of this machine ---------------------------------------------------------------------------------------

#: What reading and writing raise when the other end has gone, or the pipe was closed.
_GONE = (EOFError, OSError, ValueError, pickle.UnpicklingError)
_LOCK = threading.Lock()
_PROCESSES: dict[str, list[_Process]] = {}
_STOPPED = set[str]()


def _process(run: _Run) -> _Process:
    """Return a process that has nothing to do, perhaps a new one."""
    with _LOCK:
        if run.name in _STOPPED:
            raise OSError("the run was stopped")
        mine = _PROCESSES.setdefault(run.name, [])
        mine[:] = [each for each in mine if not each.ended]
        found = next((each for each in mine if not each.is_busy), None)
        if found is None:
            found = _Process(run)
            mine.append(found)
        found.is_busy = True
        return found


def _stop(run: _Run) -> None:
    """End the processes of a run on this machine, and start no more."""
    with _LOCK:
        _STOPPED.add(run.name)
        processes = _PROCESSES.pop(run.name, [])
    for process in processes:
        process.end(patience=0.0)


class _Process:
    """A Python of its own, in a process group of its own, that does one job at a time."""

    _COMMAND = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); import nnrepair.processes as p; p._serve()"

    def __init__(self, run: _Run) -> None:
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", self._COMMAND, json.dumps(run.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | threads,
            process_group=0,  # which Ctrl-C in a terminal does not reach, and which can be killed as a whole
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to: Any = self._process.stdin
        self._from: Any = self._process.stdout
        self._since, self.is_busy = 0.0, False
        self._first: _Run | None = run

    @property
    def ended(self) -> bool:
        """Whether it has ended, by itself or not."""
        return self._process.poll() is not None

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Leave it to others at the end; end it where that end is an exception."""
        try:
            yield
        except BaseException:
            self.end(patience=0.0)
            raise
        finally:
            self.is_busy = False

    def begin(self, job: bytes) -> None:
        """Give it a job, and wait until it has begun."""
        for message in (self._first, job):
            if message is not None:
                pickle.dump(message, self._to)
                self._to.flush()
                pickle.load(self._from)  # that it is ready, or has taken the job
        self._first, self._since = None, time.perf_counter()

    def finish(self, seconds: float | None, wanted: Callable[[], bool]) -> bytes | Failure:
        """Wait for the answer, until the time is over or the answer is not wanted any more."""
        answered, late = threading.Event(), threading.Event()
        limit = threading.Thread(target=self._limit, args=(seconds, wanted, answered, late), daemon=True)
        limit.start()
        try:
            kind, said = pickle.load(self._from)
        except _GONE:
            kind, said = "end", self.end()
        finally:
            answered.set()
        if kind == "answer":
            return bytes(said)
        if late.is_set():
            kind, said = "time", f"not finished in {seconds:.0f} s"
        return Failure(kind, said, time.perf_counter() - self._since)

    def _limit(
        self, seconds: float | None, wanted: Callable[[], bool], answered: threading.Event, late: threading.Event
    ) -> None:
        end = time.monotonic() + (math.inf if seconds is None else seconds)
        while not answered.wait(min(max(end - time.monotonic(), 0.0), LOOK)):
            if time.monotonic() >= end:
                late.set()
            if late.is_set() or not wanted():
                self._kill()
                return

    def end(self, patience: float = 5.0) -> str:
        """End it, and all that it started; say how it ended, by itself if it does so in time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._kill()
        code = self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):
                pipe.close()
        return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"

    def _kill(self) -> None:
        with suppress(OSError):  # it has ended
            os.killpg(self._process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self._process.kill()


# Inside such a process -----------------------------------------------------------------------------------------------


def _serve() -> NoReturn:
    """Do jobs until there are no more for a while, or whoever gives them has ended."""
    given, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what jobs print is no answer
    inbox = queue.SimpleQueue[Any]()
    threading.Thread(target=_listen, args=(given, inbox), daemon=True).start()
    run: _Run = inbox.get()
    _prepare(run)
    answer = _forked if run.fresh and hasattr(os, "fork") else _answer
    _send(answers, None)
    with suppress(queue.Empty):
        while True:
            job = inbox.get(timeout=IDLE)
            _send(answers, None)
            _send(answers, answer(job))
            if run.fresh and answer is _answer:
                break
    os._exit(0)


def _listen(given: BinaryIO, inbox: queue.SimpleQueue[Any]) -> NoReturn:
    """Receive jobs; end this process, and all that it started, when whoever gives them has ended."""
    with suppress(Exception):
        while True:
            inbox.put(pickle.load(given))
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _prepare(run: _Run) -> None:
    os.chdir(run.folder)
    for name in run.preload:
        with suppress(Exception):  # whoever needs it will meet it again
            importlib.import_module(name)
    if run.memory is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (run.memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _send(answers: BinaryIO, message: Any) -> None:
    pickle.dump(message, answers)
    answers.flush()


def _answer(job: bytes) -> tuple[str, Any]:
    """Do a job; return "answer" and what came out, pickled, or "error" and why nothing did."""
    try:
        return "answer", _packed(pickle.loads(job)())
    except BaseException as error:  # one job is no reason to lose the others
        name, said = type(error).__name__, first_line(error)
        return "error", name if said == name else f"{name}: {said}"


def _forked(job: bytes) -> tuple[str, Any]:
    """Do a job in a copy of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with os.fdopen(writer, "wb") as pipe:
            _send(pipe, _answer(job))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    try:
        found: tuple[str, Any] = pickle.loads(said)
    except (EOFError, pickle.UnpicklingError):
        return "end", f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"
    return found
