"""`nnrepair locate`: in which layer of a model file would some edits best be made, and on what evidence?"""

from __future__ import annotations

import argparse

from nnrepair.cli.model_file import ModelFile
from nnrepair.cli.options import read_points
from nnrepair.cli.waiting import waiting
from nnrepair.locating import locate
from nnrepair.spec.edits import Edits

FOUND, NOWHERE = 0, 1


def run(arguments: argparse.Namespace) -> int:
    """Try every layer, print the table, and return whether all edits hold in the best one."""
    edits = read_points(arguments.edits, "--edits", labelled=True)
    kept = read_points(arguments.locality, "--locality", labelled=False)
    with waiting(f"reading {arguments.model}"):
        file = ModelFile.load(arguments.model)
        file.refuse_fixed_batch()
    with waiting("trying every layer"):
        found = locate(file.model, Edits(*edits), kept, layers=arguments.layer, seed=arguments.seed)
    print(found)
    return FOUND if found.places[0].holding == found.edits else NOWHERE
