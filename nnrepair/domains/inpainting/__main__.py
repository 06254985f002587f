"""Train one of the networks that complete images: `python -m nnrepair.domains.inpainting NAME`.

Progress is shown and stored; the same command goes on after a kill.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnrepair.domains.inpainting.recipes import FOLDER, RECIPES, train
from nnrepair.errors import NNRepairError


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m nnrepair.domains.inpainting", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write it (default: where it is read)")
    given = parser.parse_args()
    try:
        told = train(given.name, given.folder)
    except NNRepairError as error:
        parser.exit(3, f"{error}\n")
    print(f"{given.name}: {told['cpu_seconds']:.0f} CPU s; mean squared error at contexts of")
    for at, value in told["mse"].items():
        print(f"  {at:>14} pixels: {value:.4f}")


if __name__ == "__main__":
    main()
