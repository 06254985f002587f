"""`nnrepair repair`: a network that violates properties in, one for which they are proved out."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from nnrepair.cli.options import read_points, require_places
from nnrepair.criteria import Argmin
from nnrepair.errors import InvalidInput
from nnrepair.files import write_atomically
from nnrepair.model_file import ModelFile
from nnrepair.problem import outputs
from nnrepair.properties import repair_property
from nnrepair.result import RepairResult
from nnrepair.spec import LocalitySet


def run(arguments: argparse.Namespace) -> int:
    """Repair, write what was asked for, and return the exit code."""
    inputs = [arguments.model, *arguments.properties, *arguments.keep]
    inputs += [] if arguments.locality is None else [arguments.locality]
    require_places(inputs, [p for p in (arguments.out, arguments.patch) if p is not None])
    if arguments.model.suffix != ".onnx" or arguments.out.suffix != ".onnx":
        raise InvalidInput("Proofs are about ONNX files: MODEL and --out must end in .onnx (see nnrepair.onnx.save).")
    if arguments.certificates is not None and arguments.certificates.is_file():
        raise InvalidInput(f"--certificates {arguments.certificates} is a file; give the name of a folder.")
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


def _write_all(arguments: argparse.Namespace, file: ModelFile, result: RepairResult) -> list[str]:
    """Write certificates, patch and model, this last; return what to tell about it."""
    out, lines = arguments.out, [f"wrote {arguments.out} (repaired model)"]
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".nnrepair-") as folder:
        part = Path(folder) / out.name
        if result.outcome.status == "nothing to do":
            write_atomically(part, arguments.model.read_bytes())
        elif not file.write(result.model, part):
            raise InvalidInput(
                f"{arguments.model}: its weights cannot be replaced in place, so the proofs would not be about the "
                "file; nothing was written. Export the model again, each weight as a tensor of its own."
            )
        for proof in result.proofs if arguments.certificates is not None else ():
            if proof.result.certificate is None:
                lines.append(f"not written: {proof.name}.npz, because {proof.result.reason}")
                if arguments.quiet:  # asked for and not delivered: that is never silent
                    print(lines[-1], file=sys.stderr)
                continue
            path = arguments.certificates / f"{proof.name}.npz"
            proof.result.certificate.for_network(part).save(path)
            lines.append(f"wrote {path} (certificate, not yet checked)")
            command = ("nnrepair", "certify", str(path), str(out), str(proof.source))
            lines.append(f"check it: {shlex.join(command)}")
        if arguments.patch is not None and result.patch is not None:
            result.patch.save(arguments.patch)
            lines.append(f"wrote {arguments.patch} (patch)")
        os.replace(part, out)
    return lines
