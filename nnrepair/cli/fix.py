"""`nnrepair fix`: a model file and its mistakes in, a repaired model file out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnrepair.cli.options import Outputs, own_version, read_points, require_device, require_places
from nnrepair.errors import InvalidInput
from nnrepair.files import plain, write_atomically
from nnrepair.fix import fix
from nnrepair.history import History
from nnrepair.methods import Method, named
from nnrepair.model_file import ModelFile
from nnrepair.result import RepairResult

REPAIRED, NOT_REPAIRED = 0, 1
_PLACES = ("model", "edits", "locality", "scope", "test", "out")
SUMMARY = "repair a model file"
EPILOG = """\
files:
  MODEL    .onnx, or .pt2 as torch.export.save writes it. Reading a .pt2 can run code that its author put there, so open
           only those you trust; reading .onnx runs none.
  --edits, --scope     .npz with the arrays inputs (n, ...) and labels (n,)
  --locality, --test   the same; without labels every decision is kept

"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--edits", type=Path, required=True, metavar="NPZ", help="the mistakes, with the right labels")
    parser.add_argument("--locality", type=Path, metavar="NPZ", help="points whose decisions must stay")
    parser.add_argument("--scope", type=Path, metavar="NPZ", help="points that should follow; only measured")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the repaired model: .onnx or .pt2")
    parser.add_argument("--method", default="auto", help="see `nnrepair methods`; default: %(default)s")
    parser.add_argument("--layer", nargs="+", action="extend", help="the layers or parameters to change")
    parser.add_argument("--norm", help="what small means: l1, linf, l2, mean+max, nuclear, drift")
    parser.add_argument("--margin", type=float, help="by how much every edit must hold, in output units")
    parser.add_argument("--architecture", help="same (a decoupled network cannot be written to a file)")
    parser.add_argument("--locality-mode", dest="locality_mode", help="hard, soft or none")
    parser.add_argument("--gap", type=float, help="relative distance from the minimum at which to stop")
    parser.add_argument("--patch", type=Path, metavar="FILE", help="write the change alone (.safetensors)")
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="write the proof of minimality (.npz)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write what was measured (.json)")
    parser.add_argument("--steps", type=int, help="gradient steps at most (fine-tuning)")
    parser.add_argument("--lr", type=float, help="learning rate (fine-tuning)")
    parser.add_argument("--test", type=Path, metavar="NPZ", help="points never shown to the method; only measured")
    parser.add_argument(
        "--mode",
        choices=("batch", "successive"),
        default="batch",
        help="all edits at once, or one after another, each from the last network; default: %(default)s",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="edits per step (successive); default: %(default)s")
    parser.add_argument("--no-rehearsal", action="store_true", help="do not ask every step for past edits (successive)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="store progress, and go on from it (successive)")
    parser.add_argument("--device", default="cpu", help="where to compute: cpu or cuda; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="for methods that draw random numbers")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Repair the model, write what was asked for, and return the exit code."""
    others = [
        path
        for path in (arguments.patch, arguments.certificate, arguments.report, arguments.resume)
        if path is not None
    ]
    points = {
        path for path in (arguments.edits, arguments.locality, arguments.scope, arguments.test) if path is not None
    }
    require_outputs([arguments.model, *points], arguments.out, *others)
    method = _method(arguments)
    require_device(arguments.device)
    file = ModelFile.load(arguments.model)
    file.refuse_fixed_batch()
    file.model.to(arguments.device)
    edits = read_points(arguments.edits, "--edits", labelled=True)
    sequence: dict[str, Any] = {}
    if arguments.mode == "successive":
        sequence = {"batch_size": arguments.batch_size, "rehearsal": not arguments.no_rehearsal}
        sequence["resume"] = arguments.resume
    elif arguments.batch_size != 1 or arguments.no_rehearsal or arguments.resume is not None:
        raise InvalidInput("--batch-size, --no-rehearsal and --resume are for --mode successive.")
    result: RepairResult | History = fix(
        file.model,
        edits,
        None if arguments.locality is None else read_points(arguments.locality, "--locality", labelled=False),
        edit_scope=None if arguments.scope is None else read_points(arguments.scope, "--scope", labelled=True),
        test_set=None if arguments.test is None else read_points(arguments.test, "--test", labelled=False),
        method=method,
        mode=arguments.mode,
        **sequence,
        throw=False,
        progress=not arguments.quiet and sys.stderr.isatty(),
        seed=arguments.seed,
    )
    result.model.to("cpu")
    outputs = Outputs(str(result))
    if result.outcome.ok:
        _write_all(arguments, file, result, edits, outputs)
    else:
        unwritten = [p for p in (arguments.out, arguments.patch, arguments.certificate) if p is not None]
        outputs.lines.append(f"not written, because not every edit holds: {', '.join(map(str, unwritten))}")
    if arguments.report is not None:
        content = _as_json(arguments, result)
        outputs.write(arguments.report, "report", lambda path: write_atomically(path, content))
    return outputs.tell(REPAIRED if result.outcome.ok else NOT_REPAIRED, arguments.quiet)


def _write_all(
    arguments: argparse.Namespace,
    file: ModelFile,
    result: RepairResult | History,
    edits: tuple[Tensor, Tensor],
    outputs: Outputs,
) -> None:
    """Write model, patch and certificate."""
    in_place = False

    def write(path: Path) -> None:
        nonlocal in_place
        in_place = file.write(result.model, path, edits)

    model = outputs.write(arguments.out, "repaired model; read back, and every edit holds in it", write)
    if arguments.patch is not None and result.patch is not None:
        outputs.write(arguments.patch, "patch", result.patch.save)
    elif model is None and result.patch is not None:  # much smaller than the model, and enough to make it
        outputs.rescue(result.patch, arguments.model)
    certificate = result.certificate if isinstance(result, RepairResult) else None
    if arguments.certificate is not None and certificate is None:
        outputs.lines.append(
            f"not written: {arguments.certificate}. A certificate of minimality exists for changes of one layer after "
            "which everything is affine (usually the last one): choose it with --layer."
        )
        if arguments.quiet:  # asked for and not delivered: that is never silent
            print(outputs.lines[-1], file=sys.stderr)
    elif arguments.certificate is not None and certificate is not None:

        def certify(path: Path) -> None:
            file.named_as_in_file(certificate).save(path)

        proof = outputs.write(arguments.certificate, "certificate, not yet checked", certify)
        if in_place and file.program is None and model is not None and proof is not None:
            outputs.lines.append(
                f"check it: python verification/minimality.py {proof} {arguments.model} --repaired {model}"
            )


def require_outputs(inputs: Sequence[Path], *paths: Path) -> None:
    """Refuse what could not be written or would overwrite what is read, before the long computation."""
    out = paths[0]
    if out.suffix not in (".onnx", ".pt2"):
        raise InvalidInput(
            f"--out {out.name}: a model is written as .onnx or .pt2, so the name must end in one of them."
        )
    require_places(inputs, paths)


def _method(arguments: argparse.Namespace) -> Method:
    """Return the named method with the options that were given."""
    method = named(arguments.method)
    fields: set[str] = (
        {field.name for field in dataclasses.fields(method)} if dataclasses.is_dataclass(method) else set()
    )
    where = "layers" if "layers" in fields else "layer"
    given = {
        where: arguments.layer[0] if arguments.layer and len(arguments.layer) == 1 else arguments.layer,
        "norm": arguments.norm,
        "margin": arguments.margin,
        "architecture": arguments.architecture,
        "locality": arguments.locality_mode,
        "gap": arguments.gap,
        "steps": arguments.steps,
        "lr": arguments.lr,
    }
    given = {name: value for name, value in given.items() if value is not None}
    unknown = [f"--{'locality-mode' if name == 'locality' else name}" for name in given if name not in fields]
    if unknown:
        known = ", ".join(sorted(fields)) or "none"
        raise InvalidInput(f"Method {arguments.method!r} has no option {', '.join(unknown)}. Its options: {known}.")
    chosen: Method = dataclasses.replace(method, **given) if given else method  # type: ignore[type-var]
    if not chosen.capabilities.keeps_architecture:
        instead = "leave out --architecture" if arguments.architecture else "choose another --method"
        raise InvalidInput(
            f"A repair that changes the architecture cannot be written as .onnx or .pt2; {instead}, or call "
            "nnrepair.fix from Python."
        )
    return chosen


def _as_json(arguments: argparse.Namespace, result: RepairResult | History) -> bytes:
    about = {
        "outcome": dataclasses.asdict(result.outcome),
        **_measured(result),
        "files": {name: str(getattr(arguments, name)) for name in _PLACES},
        "seed": arguments.seed,
        "versions": {"nnrepair": own_version(), "torch": torch.__version__},
    }
    return json.dumps(plain(about), indent=2, allow_nan=False).encode()


def _measured(result: RepairResult | History) -> dict[str, Any]:
    if isinstance(result, History):
        return {"history": result.as_dict()}
    claim = None if result.certificate is None else result.certificate.claim
    return {"report": result.report.as_dict(), "stats": result.stats, "certificate": claim}
