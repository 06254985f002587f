"""`nnrepair patch`: show, apply or revert a patch."""

from __future__ import annotations

import argparse

from nnrepair.cli.model_file import ModelFile
from nnrepair.cli.options import require_outputs
from nnrepair.results.patch import Patch


def run(arguments: argparse.Namespace) -> int:
    """Do with the patch what was asked for."""
    if arguments.verb == "show":
        print(Patch.load(arguments.patch))
        return 0
    require_outputs([arguments.model, arguments.patch], arguments.out)
    patch = Patch.load(arguments.patch)
    file = ModelFile.load(arguments.model)
    changed = patch.apply(file.model) if arguments.verb == "apply" else patch.revert(file.model)
    file.write(changed, arguments.out)
    print(f"wrote {arguments.out} ({'repaired' if arguments.verb == 'apply' else 'original'} weights)")
    return 0
