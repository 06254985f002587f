"""A job that does what it is told; it imports nothing heavy, as its processes start in every test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def work(job: tuple[str, Any]) -> Any:
    """Do what a job says."""
    what, value = job
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(value)
    if what == "sleep":
        time.sleep(value)
    if what == "raise":
        raise ZeroDivisionError(value)
    if what == "fill":
        return len(bytearray(value))
    if what == "print":
        print(value, flush=True)
    if what == "start":  # a process of its own
        Path(value).write_text(str(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid))
        time.sleep(600)
    if what == "open":
        return sys.stdin
    if what == "where":
        return os.getpid(), os.getcwd(), os.environ["OMP_NUM_THREADS"]
    return value
