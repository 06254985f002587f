"""`nnrepair prepare`: a model file and labelled points in, an editor for this model out."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from nnrepair.cli.method_options import chosen
from nnrepair.cli.model_file import ModelFile
from nnrepair.cli.options import Outputs, read_points, require_device, require_places
from nnrepair.errors import InvalidInput
from nnrepair.methods import RandomLabels, Trainable
from nnrepair.methods.base import REGISTRY, kind_of

PREPARED, BROKEN_OFF = 0, 1


def run(arguments: argparse.Namespace) -> int:
    """Train an editor, write it, and return the exit code."""
    if arguments.out.suffix != ".safetensors":
        raise InvalidInput(f"--out {arguments.out.name}: an editor is written as .safetensors; let the name end in it.")
    others = [arguments.resume] if arguments.resume is not None else []
    require_places([arguments.model, arguments.data], [arguments.out, *others])
    method = _method(arguments)
    require_device(arguments.device)
    file = ModelFile.load(arguments.model)
    file.refuse_fixed_batch()
    inputs, labels = read_points(arguments.data, "--data", labelled=True)
    edits = max(1, min(RandomLabels.edits, len(labels) // 2))
    episodes = RandomLabels(inputs, labels, edits, max(1, min(RandomLabels.locality, len(labels) - edits)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Training: ")  # told below
        editor = method.prepare(
            file.model.to(arguments.device),
            episodes,
            steps=arguments.steps,
            seed=arguments.seed,
            progress=not arguments.quiet and sys.stderr.isatty(),
            resume=arguments.resume,
            seconds=arguments.seconds,
        )
    outputs = Outputs(repr(editor))
    written = outputs.write(arguments.out, f"editor; nnrepair fix --method {arguments.out}", editor.save)
    late = "time limit" in editor.stopped
    if editor.stopped and written is not None:
        (outputs.lines if late else outputs.problems).append(f"training {editor.stopped}")
    code = outputs.tell(PREPARED, arguments.quiet)
    return BROKEN_OFF if editor.stopped and not late and written == Path(arguments.out) else code


def _method(arguments: argparse.Namespace) -> Trainable:
    method = chosen(arguments)
    if not isinstance(method, Trainable):
        trained = [name for name, make in REGISTRY.items() if issubclass(kind_of(make), Trainable)]
        raise InvalidInput(
            f"Method {arguments.method!r} needs no training: give it to nnrepair fix. Methods that are trained first: "
            f"{', '.join(trained)}."
        )
    return method
