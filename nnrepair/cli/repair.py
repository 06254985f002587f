"""`nnrepair repair`: a network that violates properties in, one for which they are proved out."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from nnrepair.cli.model_file import ModelFile
from nnrepair.cli.options import Outputs, read_points, require_places
from nnrepair.cli.waiting import waiting
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.files import replacing, require_writable, write_atomically
from nnrepair.properties import repair_property
from nnrepair.results.result import RepairResult
from nnrepair.spec.criteria import Argmin
from nnrepair.spec.edits import LocalitySet
from nnrepair.spec.running import outputs


def run(arguments: argparse.Namespace) -> int:
    """Repair, write what was asked for, and return the exit code."""
    inputs = [arguments.model, *arguments.properties, *arguments.keep]
    inputs += [] if arguments.locality is None else [arguments.locality]
    require_places(inputs, [p for p in (arguments.out, arguments.patch) if p is not None])
    if arguments.model.suffix != ".onnx" or arguments.out.suffix != ".onnx":
        raise InvalidInput("Proofs are about ONNX files: MODEL and --out must end in .onnx (see nnrepair.onnx.save).")
    if arguments.certificates is not None:
        _require_folder(arguments.certificates, inputs)
    with waiting(f"reading {arguments.model}", arguments.quiet):
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
    outputs = Outputs(str(result))
    if result.outcome.ok:
        with waiting(f"writing {arguments.out}, and reading it back", arguments.quiet):
            _write_all(arguments, file, result, outputs)
    else:
        outputs.lines.append(f"not written: {arguments.out}, because not every property is proved")
    return outputs.tell(0 if result.outcome.ok else 1, arguments.quiet)


def _require_folder(folder: Path, inputs: Sequence[Path]) -> None:
    """Refuse a folder for certificates that could not be written, or where one could overwrite what is read."""
    if folder.is_file():
        raise InvalidInput(f"--certificates {folder} is a file; give the name of a folder.")
    require_writable(folder / "certificate.npz")
    inside = [path for path in inputs if path.suffix == ".npz" and path.resolve().parent == folder.resolve()]
    if inside:
        raise InvalidInput(f"{inside[0]} lies in --certificates {folder}, where certificates have such names; move it.")


def _locality(arguments: argparse.Namespace, file: ModelFile) -> LocalitySet | None:
    """Return the points to keep; where a smallest output decides, with what it decides."""
    if arguments.locality is None:
        return None
    given = read_points(arguments.locality, "--locality", labelled=False)
    inputs, labels = given if isinstance(given, tuple) else (given, None)
    shape: Sequence[int | None] = getattr(file.model, "item_shape", None) or tuple(inputs.shape[1:])
    size = math.prod(size or 0 for size in shape)
    if None in shape:
        raise InvalidInput(f"{arguments.model} leaves the size of its input open ({shape}); fix it when exporting.")
    if inputs.ndim == 0 or inputs[:1].numel() != size:
        raise InvalidInput(
            f"--locality: inputs of shape {tuple(inputs.shape)} do not fit a model that reads {tuple(shape)} at a time."
        )
    y = outputs(file.model, inputs[:1].float().reshape(-1, *shape))
    if y[0].numel() == 1:
        if labels is None or arguments.lowest:
            raise InvalidInput(
                f"{arguments.model} has a single output, of which none is lowest or largest: give --locality labels 0 "
                "or 1, the sign that is to stay, and leave out --lowest."
            )
        return LocalitySet(inputs.to(torch.float32), labels)
    if labels is None:
        y = outputs(file.model, inputs.float().reshape(-1, *shape))
        labels = y.argmin(1) if arguments.lowest else y.argmax(1)
    return LocalitySet(inputs.to(torch.float32), Argmin(labels) if arguments.lowest else labels)


def _write_all(arguments: argparse.Namespace, file: ModelFile, result: RepairResult, outputs: Outputs) -> None:
    """Write model, certificates and patch."""
    out = outputs.write(arguments.out, "repaired model", lambda path: _write_model(arguments.model, file, result, path))
    if arguments.patch is not None and result.patch is not None:
        outputs.write(arguments.patch, "patch", result.patch.save)
    elif out is None and result.patch is not None:  # much smaller than the model, and enough to make it
        outputs.rescue(result.patch, arguments.model)
    if arguments.certificates is None or out is None:  # a certificate is about the bytes of a file
        return
    for proof in result.proofs:
        if proof.result.certificate is None:
            outputs.lines.append(f"not written: {proof.name}.npz, because {proof.result.reason}")
            if arguments.quiet:  # a file that was asked for is missing: --quiet does not hide that
                print(outputs.lines[-1], file=sys.stderr)
            continue
        certificate = proof.result.certificate.for_network(out)
        path = arguments.certificates / f"{proof.name}.npz"
        written = outputs.write(path, "certificate, not yet checked", certificate.save)
        if written is not None:
            command = ("nnrepair", "certify", str(written), str(out), str(proof.source))
            outputs.lines.append(f"check it: {shlex.join(command)}")


def _write_model(model: Path, file: ModelFile, result: RepairResult, path: Path) -> None:
    if result.outcome.status == "nothing to do":
        write_atomically(path, model.read_bytes())
        return
    with replacing(path, ending=path.suffix) as part:
        if not file.write(result.model, part):
            raise UnsupportedModel(
                f"{model}: its weights cannot be replaced in place, so the proofs would not be about the file; the "
                "model was not written. Export the model again, each weight as a tensor of its own."
            )
