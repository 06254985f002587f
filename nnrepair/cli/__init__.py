"""The command `nnrepair`: repair model files and properties, check these, apply patches, list methods, run the demo."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnrepair.cli import check, fix, repair
from nnrepair.cli.options import ERROR, as_columns, own_version
from nnrepair.errors import NNRepairError, printable
from nnrepair.methods import LEGEND, distinct, table
from nnrepair.model_file import ModelFile
from nnrepair.patch import Patch

DONE = 0

_EXIT_CODES = """\
exit codes:
  0  every edit holds (or held before)
  1  not every edit holds; the report is written, the model is not
  2  the command line is wrong
  3  an input cannot be used, or an output not be written; stderr says which and why, and where the result is

nnrepair check and repair have exit codes of their own: see nnrepair check --help.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parser().parse_args(given)
    except SystemExit as stop:
        if stop.code and given[:1] == ["check"]:
            raise SystemExit(ERROR) from stop  # its 2 means that the property is undecided
        raise
    try:
        with _quiet_torch():
            code: int = arguments.run(arguments)
        return code
    except (NNRepairError, OSError, ModuleNotFoundError) as error:
        print(f"nnrepair: error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return ERROR
    except KeyboardInterrupt:
        print("nnrepair: interrupted.", file=sys.stderr)
        return ERROR
    except Exception:  # ours to fix; Python's own exit code 1 would read as "not every edit holds"
        traceback.print_exc()
        return ERROR


def _parser() -> argparse.ArgumentParser:
    def command(name: str, text: str, epilog: str = "", under: Any = None) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = (under or commands).add_parser(
            name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        return made

    parser = argparse.ArgumentParser(
        prog="nnrepair",
        description="Repair a trained network's known mistakes with the smallest change; prove or measure the rest.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nnrepair {own_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = command("demo", "repair a real digits classifier, prove it, and write a page about it")
    demo.add_argument("--out", type=Path, default=Path("nnrepair-demo.html"), help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0, help="of the split and the training; default: %(default)s")
    demo.set_defaults(run=_demo)

    fix.add_arguments(command("fix", fix.SUMMARY, fix.EPILOG + _EXIT_CODES))

    repair.add_arguments(command("repair", repair.SUMMARY, repair.EPILOG))

    check.add_arguments(command("check", check.SUMMARY, check.EPILOG))

    patches = command("patch", "show, apply or revert a patch").add_subparsers(required=True, metavar="COMMAND")
    show = command("show", "print what a patch changes, and why", under=patches)
    show.add_argument("patch", type=Path, metavar="FILE")
    show.set_defaults(run=_show)
    for verb, text in (("apply", "write the repaired model"), ("revert", "write the original model, bit for bit")):
        use = command(verb, text, under=patches)
        use.add_argument("patch", type=Path, metavar="FILE")
        use.add_argument("model", type=Path, metavar="MODEL")
        use.add_argument("--out", type=Path, required=True, metavar="FILE", help="the model to write: .onnx or .pt2")
        use.set_defaults(run=_patch, verb=verb)

    command("methods", "list the methods and what each needs and keeps").set_defaults(run=_methods)
    return parser


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


# The subcommands -----------------------------------------------------------------------------------------------------


def _demo(arguments: argparse.Namespace) -> int:
    from nnrepair import demo

    return DONE if demo.run(arguments.out, arguments.seed, say=print) else fix.NOT_REPAIRED


def _methods(arguments: argparse.Namespace) -> int:
    for row in as_columns(table()):
        print(row)
    print()
    print(LEGEND)
    print()
    for name, method in distinct().items():
        print(f"{name}: {(type(method).__doc__ or '').strip().splitlines()[0]}")
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    print(Patch.load(arguments.patch))
    return DONE


def _patch(arguments: argparse.Namespace) -> int:
    fix.require_outputs([arguments.model, arguments.patch], arguments.out)
    patch = Patch.load(arguments.patch)
    file = ModelFile.load(arguments.model)
    changed = patch.apply(file.model) if arguments.verb == "apply" else patch.revert(file.model)
    file.write(changed, arguments.out)
    print(f"wrote {arguments.out} ({'repaired' if arguments.verb == 'apply' else 'original'} weights)")
    return DONE
