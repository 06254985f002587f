"""`nnrepair patch`: show, apply or revert a patch."""

from __future__ import annotations

import argparse

from nnrepair.cli.model_file import ModelFile, OnnxCut
from nnrepair.cli.options import require_outputs
from nnrepair.results.patch import Patch


def run(arguments: argparse.Namespace) -> int:
    """Do with the patch what was asked for."""
    if arguments.verb == "show":
        shown = Patch.load(arguments.patch)
        print("\n".join([str(shown), *shown.largest(arguments.numbers)]))
        return 0
    require_outputs([arguments.model, arguments.patch], arguments.out)
    patch = Patch.load(arguments.patch)
    file = ModelFile.load(arguments.model, _cut(patch))
    changed = patch.apply(file.model) if arguments.verb == "apply" else patch.revert(file.model)
    file.write(changed, arguments.out)
    print(f"wrote {arguments.out} ({'repaired' if arguments.verb == 'apply' else 'original'} weights)")
    return 0


def _cut(patch: Patch) -> OnnxCut:
    """Return where the file was cut that the patch is about; its fingerprint decides whether it is that one."""
    told = patch.about.get("onnx")
    if not isinstance(told, dict) or not all(isinstance(told.get(name), str) for name in ("layer", "output")):
        return OnnxCut()
    fixed = told.get("fixed", {})
    return OnnxCut(True, told["layer"], told["output"], fixed if isinstance(fixed, dict) else {})
