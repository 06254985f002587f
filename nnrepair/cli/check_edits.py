"""`nnrepair check-edits`: do edits hold in a model file? For a line of continuous integration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from nnrepair.cli.model_file import ModelFile, is_onnx
from nnrepair.cli.options import constants, read_points
from nnrepair.errors import InvalidInput
from nnrepair.failing import failing
from nnrepair.judge import NAMED
from nnrepair.rounding import percent
from nnrepair.spec.criteria import Threshold
from nnrepair.spec.edits import Edits

HOLD, FAIL = 0, 1


def run(arguments: argparse.Namespace) -> int:
    """Count, tell, and return the exit code."""
    if not 0 <= arguments.at_least <= 1:
        raise InvalidInput(f"--at-least is {arguments.at_least:g}; expected a share between 0 and 1.")
    model, fixed = _model(arguments.model), constants(arguments.fixed)
    if fixed and not is_onnx(arguments.model):
        raise InvalidInput("--fixed is about inputs of .onnx files.")
    code = HOLD
    for path in arguments.edits:
        inputs, labels = read_points(path, str(path), labelled=True)
        wanted: Any = labels if arguments.threshold is None else Threshold(labels, arguments.threshold)
        lost, count = failing(model, Edits(inputs, wanted), output=arguments.output, fixed=fixed), len(labels)
        share = 1 - len(lost) / count if count else 1.0
        enough = share >= arguments.at_least
        code = code if enough else FAIL
        if not arguments.quiet:
            more = ", ..." if len(lost) > NAMED else ""
            which = f"; not {', '.join(map(str, lost[:NAMED]))}{more}" if lost else ""
            asked = "" if arguments.at_least == 1 else f", asked were {percent(arguments.at_least)}"
            print(f"{'ok' if enough else 'FAILED'}  {path}: {count - len(lost)} of {count} hold{asked}{which}")
    return code


def _model(path: Path) -> nn.Module | Path:
    """Return the path of an ONNX file, which onnxruntime will run, or the module of another one."""
    if is_onnx(path):
        return path
    file = ModelFile.load(path)
    file.refuse_fixed_batch()
    return file.model
