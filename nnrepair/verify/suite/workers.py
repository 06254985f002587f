"""Work in processes whose death costs only the task in hand."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

import torch

from nnrepair.errors import NNRepairError

Task = TypeVar("Task")
Answer = TypeVar("Answer")

_STARTS = 3  # that may fail, one after the other


@dataclass(frozen=True)
class Death:
    """What is known of a task whose process ended: how, and after how many seconds."""

    how: str
    seconds: float


def in_processes(
    work: Callable[[Task], Answer], tasks: Sequence[Task], jobs: int
) -> Generator[tuple[Task, Answer | Death], None, None]:
    """Yield each task with its answer as soon as that is there.

    Processes are spawned, have one thread each, do not hear Ctrl-C, and end with this one however it ends; close the
    generator to end them. (A ProcessPoolExecutor breaks as a whole when one process dies, cannot tell which task killed
    it, and survives a killed parent.)

    Args:
        work: what to do with a task; a function of a module.
        tasks: in the order in which they are begun.
        jobs: how many at a time.

    Raises:
        NNRepairError: no process can be started.
    """
    todo, failed_starts = deque(tasks), 0
    workers: list[_Worker[Task, Answer]] = []
    try:
        while busy := len(todo) + sum(worker.task is not None for worker in workers):
            workers += [_Worker(work) for _ in range(min(jobs, busy) - len(workers))]
            ready = wait([worker.pipe for worker in workers])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                task, answer = worker.task, None
                try:
                    answer = worker.pipe.recv()  # the first is None, which says that the process has started
                except (EOFError, OSError):
                    workers.remove(worker)
                    answer = Death(worker.stop(patience=5.0), time.perf_counter() - worker.since)
                    failed_starts += task is None
                    if failed_starts == _STARTS:
                        raise NNRepairError(
                            f"Worker processes end as soon as they start ({answer.how}). They import the script that "
                            'runs, which needs `if __name__ == "__main__":` around what it does.'
                        ) from None
                else:
                    worker.task, failed_starts = None, 0
                    if todo:
                        worker.give(todo.popleft())
                if task is not None:
                    yield task, answer
    finally:
        for worker in workers:
            worker.stop()


class _Worker(Generic[Task, Answer]):
    """A process that does one task at a time."""

    def __init__(self, work: Callable[[Task], Answer]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        self.task: Task | None = None
        self.since = time.perf_counter()
        with _inherited():
            self.process.start()
        theirs.close()  # the pipe must end when the process does

    def give(self, task: Task) -> None:
        self.task, self.since = task, time.perf_counter()
        with suppress(OSError):  # it has just died, as the other end of the pipe will tell
            self.pipe.send(task)

    def stop(self, patience: float = 0.0) -> str:
        """End the process and say how it ended."""
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        self.pipe.close()
        code = self.process.exitcode or 0
        return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


@contextmanager
def _inherited() -> Iterator[None]:
    """Set what a process takes over when it starts: one thread, and deafness to Ctrl-C, which is ours to handle."""
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    before = {name: os.environ.get(name) for name in one}
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    os.environ.update(one)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if main:
            signal.signal(signal.SIGINT, handler)


def _serve(pipe: Connection, work: Callable[[Task], Answer]) -> None:
    """Do tasks until there are no more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.simplefilter("ignore")  # torch's, amid the progress of the parent
    torch.set_num_threads(1)
    for module in ("nnrepair.onnx.reader", "onnxruntime"):  # now, so that no task pays for it
        with suppress(ModuleNotFoundError):
            importlib.import_module(module)
    pipe.send(None)
    with suppress(EOFError):
        while True:
            pipe.send(work(pipe.recv()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
