"""The command line and demo.

`nnrepair` repairs models and properties, checks these and their proofs, applies patches, runs the demo.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from nnrepair.cli.parser import ERROR, WITH_METHOD, command_line
from nnrepair.cli.waiting import waiting
from nnrepair.errors import NNRepairError, printable


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = sys.argv[1:] if argv is None else argv
    try:
        arguments = _read(given)
    except SystemExit as stop:
        if stop.code and given[:1] == ["check"]:
            raise SystemExit(ERROR) from stop  # its 2 means that the property is undecided
        raise
    except KeyboardInterrupt:  # options of methods are read with torch, which takes seconds to import
        return _interrupted()
    try:
        with _quiet_torch():
            with waiting("starting", "--quiet" in given):
                command = importlib.import_module(f"{__name__}.{arguments.command.replace('-', '_')}")
            code: int = command.run(arguments)
        _print("")
        return code
    except (NNRepairError, OSError) as error:
        print(f"nnrepair: error: {printable(' '.join(_told(error).split()))}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        return _interrupted()
    except Exception:  # ours to fix; Python's own exit code 1 would read as "not every edit holds"
        traceback.print_exc()
        return ERROR


def _interrupted() -> int:
    print("nnrepair: interrupted.", file=sys.stderr)
    return ERROR


def _told(error: Exception) -> str:
    """Return what to say of an error; where one of the system names no file, whether nothing can be printed."""
    nameless = isinstance(error, OSError) and error.errno is not None and error.filename is None
    try:
        _print("\n" if nameless else "")
    except OSError as failed:
        error = failed if nameless else error
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    return str(error)


def _print(text: str) -> None:
    """Print a text, and all that waits to be printed, while it can still be told where that fails."""
    try:
        print(end=text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries it again when it ends
        raise OSError(error.errno, error.strerror, "standard output") from error


def _read(given: Sequence[str]) -> argparse.Namespace:
    helps = {"-h", "--help"} & set(given)
    commands = command_line(_method_options(given) if given and given[0] in WITH_METHOD and not helps else None)
    if not given:
        commands.print_help(sys.stderr)
        commands.exit(2)
    return commands.parse_args(given)


def _method_options(given: Sequence[str]) -> Callable[[argparse.ArgumentParser], None]:
    """Return what adds the options of the method that a command line names."""
    first = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    first.add_argument("--method", default="auto")
    try:
        name = first.parse_known_args(given[1:])[0].method
    except argparse.ArgumentError:  # the whole command line will be refused for it
        name = "auto"
    with waiting("starting", "--quiet" in given):
        add = importlib.import_module(f"{__name__}.method_options").add
    return partial(add, name=name)


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Keep torch's own logs and deprecations off stderr, where they would bury our one line."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch(\.|$)")
            yield
    finally:
        logger.setLevel(level)
