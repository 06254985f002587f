"""`nnrepair fix`: a model file and its mistakes in, a repaired model file out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnrepair.cli.method_options import chosen as with_options
from nnrepair.cli.method_options import options_given
from nnrepair.cli.model_file import ModelFile, OnnxCut, is_onnx, require_model
from nnrepair.cli.options import Outputs, constants, read_points, require_device, require_outputs
from nnrepair.cli.waiting import waiting
from nnrepair.errors import InvalidInput
from nnrepair.extras import installed
from nnrepair.files import plain, write_atomically
from nnrepair.fix import fix
from nnrepair.methods import Editor, KeepZeros, Method, OnGrid, named
from nnrepair.results.history import History
from nnrepair.results.result import RepairResult
from nnrepair.spec.edits import Edits

REPAIRED, NOT_REPAIRED = 0, 1
_POINTS = ("edits", "neighbours", "locality", "scope", "test")
_PLACES = ("model", *_POINTS, "out")


def run(arguments: argparse.Namespace) -> int:
    """Repair the model, write what was asked for, and return the exit code."""
    others = [
        path
        for path in (arguments.patch, arguments.certificate, arguments.report, arguments.page, arguments.resume)
        if path is not None
    ]
    points = {path for name in _POINTS if (path := getattr(arguments, name)) is not None}
    require_outputs([arguments.model, *points], arguments.out, *others)
    if arguments.page is not None and arguments.page.suffix != ".html":
        raise InvalidInput(f"--page {arguments.page.name}: a page about a repair is written as .html.")
    method = _method(arguments)
    require_device(arguments.device)
    require_model(arguments.model)
    with waiting(f"reading {arguments.model}", arguments.quiet):
        edits = read_points(arguments.edits, "--edits", labelled=True)
        file, method = _read(arguments, method, edits[0])
        file.model.to(arguments.device)
    near = arguments.neighbours
    near = None if near is None else read_points(near, "--neighbours", labelled=True)
    sequence: dict[str, Any] = {}
    if arguments.mode == "successive":
        sequence = {"batch_size": arguments.batch_size, "rehearsal": False if arguments.no_rehearsal else None}
        sequence["resume"] = arguments.resume
    elif arguments.batch_size != 1 or arguments.no_rehearsal or arguments.resume is not None:
        raise InvalidInput("--batch-size, --no-rehearsal and --resume are for --mode successive.")
    result: RepairResult | History = fix(
        file.model,
        Edits(edits[0], edits[1], neighbours=near),
        None if arguments.locality is None else read_points(arguments.locality, "--locality", labelled=False),
        edit_scope=None if arguments.scope is None else read_points(arguments.scope, "--scope", labelled=True),
        test_set=None if arguments.test is None else read_points(arguments.test, "--test", labelled=False),
        output=file.output,
        method=method,
        mode=arguments.mode,
        **sequence,
        throw=False,
        progress=not arguments.quiet and sys.stderr.isatty(),
        seed=arguments.seed,
    )
    result.model.to("cpu")
    outputs = Outputs(*file.notes, str(result))
    if result.outcome.ok:
        with waiting(f"writing {arguments.out}, and reading it back", arguments.quiet):
            _write_all(arguments, file, result, edits, outputs)
    else:
        unwritten = [p for p in (arguments.out, arguments.patch, arguments.certificate) if p is not None]
        outputs.lines.append(f"not written, because not every edit holds: {', '.join(map(str, unwritten))}")
    if arguments.report is not None:
        content = _as_json(arguments, result)
        outputs.write(arguments.report, "report", lambda path: write_atomically(path, content))
    if arguments.page is not None:
        outputs.write(arguments.page, "page", lambda path: result.save_page(path, **_told(arguments, result)))
    return outputs.tell(REPAIRED if result.outcome.ok else NOT_REPAIRED, arguments.quiet)


def _read(arguments: argparse.Namespace, method: Method, inputs: Any) -> tuple[ModelFile, Method]:
    """Return the model's file, and the method with what the file asks of it."""
    layer = options_given(arguments).get("layer")
    named = layer if isinstance(layer, str) and layer != "auto" else None
    cut = OnnxCut(arguments.in_place, named, arguments.output, constants(arguments.fixed))
    if not is_onnx(arguments.model):
        if cut.in_place or cut.fixed:
            raise InvalidInput("--in-place and --fixed are about .onnx files.")
        file = ModelFile.load(arguments.model)
        file.output = int(cut.output) if cut.output is not None and cut.output.isdigit() else cut.output
    else:
        file = ModelFile.load(arguments.model, cut, _some(inputs))
    file.refuse_fixed_batch()
    if file.layer is not None and cut.layer is not None:
        method = dataclasses.replace(method, layer=file.layer)  # type: ignore[type-var]  # it has the option
    if getattr(file.model, "grids", []):
        method = OnGrid(method)
    return file, KeepZeros(method) if arguments.keep_zeros else method


def _told(arguments: argparse.Namespace, result: RepairResult | History) -> dict[str, Any]:
    """Return what a page says of the files."""
    model, out, patch = map(str, (arguments.model, arguments.out, arguments.patch or "PATCH.safetensors"))
    commands: list[list[str]] = []
    if result.patch is not None:
        commands = [["patch", "show", patch, "--numbers", "5"], ["patch", "apply", patch, model, "--out", out]]
        commands.append(["patch", "revert", patch, out, "--out", f"original{arguments.model.suffix}"])
    if result.outcome.ok:
        fixed = [word for text in arguments.fixed for word in ("--fixed", text)]
        commands.append(["check-edits", out, str(arguments.edits), *fixed])
    about = f"{model}, repaired for {arguments.edits}."
    shown = [shlex.join(["nnrepair", *command]) for command in commands]
    return {"title": f"Repair of {arguments.model.name}", "about": about, "commands": shown}


def _some(inputs: Any) -> Any:
    """Return a few of the inputs (n, ...), for a first look at the model."""
    return {name: part[:2] for name, part in inputs.items()} if isinstance(inputs, dict) else inputs[:2]


def _write_all(
    arguments: argparse.Namespace,
    file: ModelFile,
    result: RepairResult | History,
    edits: tuple[Any, Tensor],
    outputs: Outputs,
) -> None:
    """Write model, patch and certificate."""
    in_place = False

    def write(path: Path) -> None:
        nonlocal in_place
        in_place = file.write(result.model, path, edits)

    model = outputs.write(arguments.out, "repaired model; read back, and every edit holds in it", write)
    if model is not None and isinstance(result, RepairResult):
        outputs.lines += file.measured(model, result.asked)
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
        if arguments.quiet:  # a file that was asked for is missing: --quiet does not hide that
            print(outputs.lines[-1], file=sys.stderr)
    elif arguments.certificate is not None and certificate is not None:

        def certify(path: Path) -> None:
            file.named_as_in_file(certificate).save(path)

        proof = outputs.write(arguments.certificate, "certificate, not yet checked", certify)
        if in_place and file.program is None and model is not None and proof is not None:
            files = (str(proof), str(arguments.model), "--repaired", str(model))
            outputs.lines.append(f"check it: {shlex.join(['nnrepair', 'certify', *files])}")


def _method(arguments: argparse.Namespace) -> Method:
    """Return the named method with the options that were given, or the editor in a file."""
    given = options_given(arguments)
    if arguments.method.endswith(".safetensors"):
        if given:
            raise InvalidInput(
                f"{', '.join(f'--{flag}' for flag in given)}: an editor repairs as it was trained. Give these options "
                "to nnrepair prepare."
            )
        return Editor.load(arguments.method)
    chosen: Method = named(with_options(arguments))
    if chosen.capabilities.returns == "decoupled":
        raise InvalidInput(
            "The command line writes no decoupled networks; leave out --architecture, or call nnrepair.fix from Python."
        )
    return chosen


def _as_json(arguments: argparse.Namespace, result: RepairResult | History) -> bytes:
    about = {
        "outcome": dataclasses.asdict(result.outcome),
        **_measured(result),
        "files": {name: str(getattr(arguments, name)) for name in _PLACES},
        "seed": arguments.seed,
        "versions": {"nnrepair": installed(), "torch": torch.__version__},
    }
    return json.dumps(plain(about), indent=2, allow_nan=False).encode()


def _measured(result: RepairResult | History) -> dict[str, Any]:
    if isinstance(result, History):
        return {"history": result.as_dict()}
    claim = None if result.certificate is None else result.certificate.claim
    return {"report": result.report.as_dict(), "stats": result.stats, "certificate": claim}
