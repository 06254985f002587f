"""`nnrepair repair`: a network that violates properties in, one for which they are proved out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from nnrepair.cli.options import read_points, require_places
from nnrepair.criteria import Argmax, Argmin
from nnrepair.errors import InvalidInput
from nnrepair.files import write_atomically
from nnrepair.model_file import ModelFile
from nnrepair.problem import outputs
from nnrepair.properties import repair_property
from nnrepair.result import RepairResult
from nnrepair.spec import LocalitySet

SUMMARY = "repair a model so that properties hold on whole regions"
EPILOG = """\
files:
  MODEL       .onnx; its last operation must be a linear layer
  PROPERTY    .vnnlib; all of them are repaired jointly
  --locality  .npz with the array inputs (n, ...), and labels (n,) if only points with these are to be kept

exit codes:
  0  every property holds on the model written (or held before: then it is a copy)
  1  not proved, or no such change exists; nothing was written
  2  the command line is wrong
  3  an input cannot be used; one line on stderr says which and why
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("properties", type=Path, nargs="+", metavar="PROPERTY")
    parser.add_argument(
        "--keep", type=Path, nargs="+", action="extend", default=[], metavar="PROPERTY", help="hold now"
    )
    parser.add_argument("--locality", type=Path, metavar="NPZ", help="points whose decisions are to stay")
    parser.add_argument("--lowest", action="store_true", help="the smallest output decides (as in ACAS Xu)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the repaired model: .onnx")
    parser.add_argument("--patch", type=Path, metavar="FILE", help="write the change alone (.safetensors)")
    parser.add_argument("--certificates", type=Path, metavar="DIR", help="write the proofs about the repaired model")
    parser.add_argument("--layer", default="auto", help="last, all or auto; default: %(default)s")
    parser.add_argument("--margin", type=float, help="by how much counterexamples must hold, in output units")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="of each check")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice; default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Repair, write what was asked for, and return the exit code."""
    inputs = [arguments.model, *arguments.properties, *arguments.keep]
    inputs += [] if arguments.locality is None else [arguments.locality]
    require_places(inputs, [p for p in (arguments.out, arguments.patch) if p is not None])
    if arguments.model.suffix != ".onnx" or arguments.out.suffix != ".onnx":
        raise InvalidInput("Proofs are about ONNX files: MODEL and --out must end in .onnx (see nnrepair.onnx.save).")
    file = ModelFile.load(arguments.model)
    result = repair_property(
        arguments.model,
        arguments.properties,
        keep=arguments.keep,
        locality_set=_locality(arguments, file),
        layer=arguments.layer,
        margin=arguments.margin,
        timeout=arguments.timeout,
        throw=False,
        progress=not arguments.quiet and sys.stderr.isatty(),
        seed=arguments.seed,
    )
    lines = [str(result)]
    if result.outcome.ok:
        lines += _write_all(arguments, file, result)
    else:
        lines.append(f"not written: {arguments.out}, because not every property is proved")
    if not arguments.quiet:
        print("\n".join(lines))
    return 0 if result.outcome.ok else 1


def _locality(arguments: argparse.Namespace, file: ModelFile) -> LocalitySet | None:
    """Return the points to keep; where a smallest output decides, with what it decides."""
    if arguments.locality is None:
        return None
    given = read_points(arguments.locality, "--locality", labelled=False)
    inputs, labels = given if isinstance(given, tuple) else (given, None)
    shape = getattr(file.model, "item_shape", None) or inputs.shape[1:]
    if labels is None:
        try:
            y = outputs(file.model, inputs.float().reshape(-1, *shape))
        except RuntimeError as error:
            raise InvalidInput(
                f"--locality: inputs of shape {tuple(inputs.shape)} do not fit a model that reads {tuple(shape)}."
            ) from error
        labels = y.argmin(1) if arguments.lowest else y.argmax(1)
    return LocalitySet(inputs.to(torch.float32), Argmin(labels) if arguments.lowest else Argmax(labels))


def _write_all(arguments: argparse.Namespace, file: ModelFile, result: RepairResult) -> list[str]:
    """Write model, patch and certificates; return what to tell about it."""
    if result.outcome.status == "nothing to do":
        write_atomically(arguments.out, arguments.model.read_bytes())
    elif not file.write(result.model, arguments.out):
        arguments.out.unlink()
        raise InvalidInput(f"{arguments.model}: its weights cannot be replaced in place; nothing was written.")
    lines = [f"wrote {arguments.out} (repaired model)"]
    if arguments.patch is not None and result.patch is not None:
        result.patch.save(arguments.patch)
        lines.append(f"wrote {arguments.patch} (patch)")
    if arguments.certificates is not None:
        for proof, source in zip(result.proofs, _sources(arguments, result), strict=True):
            if proof.result.certificate is None:
                lines.append(f"no certificate for {proof.name}: {proof.result.reason}")
                continue
            path = arguments.certificates / f"{proof.name}.npz"
            proof.result.certificate.for_network(arguments.out).save(path)
            lines.append(f"wrote {path} (certificate, not yet checked)")
            lines.append(f"check it: python verification/check.py {path} {arguments.out} {source}")
    return lines


def _sources(arguments: argparse.Namespace, result: RepairResult) -> list[Path]:
    """Return the file of each proved property; files that say the same were read once."""
    files = {path.name.split(".")[0]: path for path in [*arguments.keep, *arguments.properties][::-1]}
    return [files[proof.name.split(" (")[0]] for proof in result.proofs]
