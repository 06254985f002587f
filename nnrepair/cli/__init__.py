"""The command `nnrepair`: repair model files and properties, check these, apply patches, list methods, run the demo."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnrepair.cli import check, repair
from nnrepair.cli.options import own_version, read_points, require_device, require_places
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.files import write_atomically
from nnrepair.fix import fix
from nnrepair.methods import REGISTRY, Method, named
from nnrepair.methods.base import Capabilities
from nnrepair.model_file import ModelFile
from nnrepair.patch import Patch
from nnrepair.result import RepairResult

REPAIRED, NOT_REPAIRED, ERROR = 0, 1, 3

_EXIT_CODES = """\
exit codes:
  0  every edit holds (or held before)
  1  not every edit holds; the report is written, the model is not
  2  the command line is wrong
  3  an input cannot be used; one line on stderr says which and why

nnrepair check and repair have exit codes of their own: see nnrepair check --help.
"""

_FILES = """\
files:
  MODEL    .onnx, or .pt2 as torch.export.save writes it. Reading a .pt2 can run code that its author put there, so open
           only those you trust; reading .onnx runs none.
  --edits, --scope     .npz with the arrays inputs (n, ...) and labels (n,)
  --locality           the same; without labels every decision is kept

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
        print(f"nnrepair: error: {' '.join(str(error).split())}", file=sys.stderr)
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

    repair_points = command("fix", "repair a model file", _FILES + _EXIT_CODES)
    repair_points.add_argument("model", type=Path, metavar="MODEL")
    repair_points.add_argument(
        "--edits", type=Path, required=True, metavar="NPZ", help="the mistakes, with the right labels"
    )
    repair_points.add_argument("--locality", type=Path, metavar="NPZ", help="points whose decisions must stay")
    repair_points.add_argument("--scope", type=Path, metavar="NPZ", help="points that should follow; only measured")
    repair_points.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the repaired model: .onnx or .pt2"
    )
    repair_points.add_argument("--method", default="auto", help="see `nnrepair methods`; default: %(default)s")
    repair_points.add_argument("--layer", nargs="+", action="extend", help="the layers or parameters to change")
    repair_points.add_argument("--norm", help="what small means: l1, linf, l2, mean+max, nuclear, drift")
    repair_points.add_argument("--margin", type=float, help="by how much every edit must hold, in output units")
    repair_points.add_argument("--architecture", help="same (a decoupled network cannot be written to a file)")
    repair_points.add_argument("--locality-mode", dest="locality_mode", help="hard, soft or none")
    repair_points.add_argument("--gap", type=float, help="relative distance from the minimum at which to stop")
    repair_points.add_argument("--patch", type=Path, metavar="FILE", help="write the change alone (.safetensors)")
    repair_points.add_argument("--certificate", type=Path, metavar="FILE", help="write the proof of minimality (.npz)")
    repair_points.add_argument("--report", type=Path, metavar="FILE", help="write what was measured (.json)")
    repair_points.add_argument("--device", default="cpu", help="where to compute: cpu or cuda; default: %(default)s")
    repair_points.add_argument("--seed", type=int, default=0, help="for methods that draw random numbers")
    repair_points.add_argument("--quiet", action="store_true", help="print nothing but errors")
    repair_points.set_defaults(run=_fix)

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

    return REPAIRED if demo.run(arguments.out, arguments.seed, say=print) else NOT_REPAIRED


def _methods(arguments: argparse.Namespace) -> int:
    columns = [field.name for field in dataclasses.fields(Capabilities)]
    table = [["method", *(column.replace("_", " ") for column in columns)]]
    summaries = []
    for name in REGISTRY:
        method = named(name)
        values = (getattr(method.capabilities, column) for column in columns)
        table.append([name, *(("yes" if v else "no") if isinstance(v, bool) else str(v) for v in values)])
        summaries.append((name, (type(method).__doc__ or "").strip().split("\n")[0]))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()
    for name, summary in summaries:
        print(f"{name}: {summary}")
    return REPAIRED


def _show(arguments: argparse.Namespace) -> int:
    print(Patch.load(arguments.patch))
    return REPAIRED


def _patch(arguments: argparse.Namespace) -> int:
    _check_outputs(arguments.model, arguments.out)
    patch = Patch.load(arguments.patch)
    file = ModelFile.load(arguments.model)
    changed = patch.apply(file.model) if arguments.verb == "apply" else patch.revert(file.model)
    file.write(changed, arguments.out)
    print(f"wrote {arguments.out} ({'repaired' if arguments.verb == 'apply' else 'original'} weights)")
    return REPAIRED


def _fix(arguments: argparse.Namespace) -> int:
    others = [path for path in (arguments.patch, arguments.certificate, arguments.report) if path is not None]
    _check_outputs(arguments.model, arguments.out, *others)
    method = _method(arguments)
    require_device(arguments.device)
    file = ModelFile.load(arguments.model)
    file.refuse_fixed_batch()
    file.model.to(arguments.device)
    edits = read_points(arguments.edits, "--edits", labelled=True)
    result = fix(
        file.model,
        edits,
        None if arguments.locality is None else read_points(arguments.locality, "--locality", labelled=False),
        edit_scope=None if arguments.scope is None else read_points(arguments.scope, "--scope", labelled=True),
        method=method,
        throw=False,
        progress=not arguments.quiet and sys.stderr.isatty(),
        seed=arguments.seed,
    )
    result.model.to("cpu")
    lines = [str(result)]
    if result.outcome.ok:
        lines += _write_all(arguments, file, result, edits)
    else:
        unwritten = [p for p in (arguments.out, arguments.patch, arguments.certificate) if p is not None]
        lines.append(f"not written, because not every edit holds: {', '.join(map(str, unwritten))}")
    if arguments.report is not None:
        write_atomically(arguments.report, _as_json(arguments, result))
        lines.append(f"wrote {arguments.report} (report)")
    if not arguments.quiet:
        print("\n".join(lines))
    return REPAIRED if result.outcome.ok else NOT_REPAIRED


def _write_all(
    arguments: argparse.Namespace, file: ModelFile, result: RepairResult, edits: tuple[Tensor, Tensor]
) -> list[str]:
    """Write model, patch and certificate; return what to tell about it."""
    in_place = file.write(result.model, arguments.out, edits)
    lines = [f"wrote {arguments.out} (repaired model; read back, and every edit holds in it)"]
    if arguments.patch is not None and result.patch is not None:
        result.patch.save(arguments.patch)
        lines.append(f"wrote {arguments.patch} (patch)")
    if arguments.certificate is not None and result.certificate is None:
        lines.append(
            f"not written: {arguments.certificate}. A certificate of minimality exists for changes of one layer after "
            "which everything is affine (usually the last one): choose it with --layer."
        )
        if arguments.quiet:  # asked for and not delivered: that is never silent
            print(lines[-1], file=sys.stderr)
    elif arguments.certificate is not None and result.certificate is not None:
        file.named_as_in_file(result.certificate).save(arguments.certificate)
        lines.append(f"wrote {arguments.certificate} (certificate, not yet checked)")
        if in_place and file.program is None:
            paths = f"{arguments.certificate} {arguments.model} --repaired {arguments.out}"
            lines.append(f"check it: python verification/minimality.py {paths}")
    return lines


def _check_outputs(model: Path, *paths: Path) -> None:
    """Refuse what could not be written, before the long computation."""
    out = paths[0]
    if out.suffix not in (".onnx", ".pt2"):
        raise InvalidInput(
            f"--out {out.name}: a model is written as .onnx or .pt2, so the name must end in one of them."
        )
    require_places([model], paths)


def _method(arguments: argparse.Namespace) -> Method:
    """Return the named method with the options that were given."""
    method = named(arguments.method)
    given = {
        "layer": arguments.layer[0] if arguments.layer and len(arguments.layer) == 1 else arguments.layer,
        "norm": arguments.norm,
        "margin": arguments.margin,
        "architecture": arguments.architecture,
        "locality": arguments.locality_mode,
        "gap": arguments.gap,
    }
    given = {name: value for name, value in given.items() if value is not None}
    fields: set[str] = (
        {field.name for field in dataclasses.fields(method)} if dataclasses.is_dataclass(method) else set()
    )
    unknown = [f"--{'locality-mode' if name == 'locality' else name}" for name in given if name not in fields]
    if unknown:
        known = ", ".join(sorted(fields)) or "none"
        raise InvalidInput(f"Method {arguments.method!r} has no option {', '.join(unknown)}. Its options: {known}.")
    chosen: Method = dataclasses.replace(method, **given) if given else method  # type: ignore[type-var]
    if not chosen.capabilities.keeps_architecture:
        raise InvalidInput(
            "A repair that changes the architecture cannot be written as .onnx or .pt2; leave out --architecture, or "
            "call nnrepair.fix from Python."
        )
    return chosen


def _as_json(arguments: argparse.Namespace, result: RepairResult) -> bytes:
    about = {
        "outcome": dataclasses.asdict(result.outcome),
        "report": result.report.as_dict(),
        "stats": result.stats,
        "certificate": None if result.certificate is None else result.certificate.claim,
        "files": {name: str(getattr(arguments, name)) for name in ("model", "edits", "locality", "scope", "out")},
        "seed": arguments.seed,
        "versions": {"nnrepair": own_version(), "torch": torch.__version__},
    }
    return json.dumps(_plain(about), indent=2, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    """Return what JSON can hold; an infinity becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
