"""Train one of the language models: `python -m nnrepair.domains.language NAME`.

Progress is shown and stored; the same command goes on after a kill.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnrepair.domains.language.recipes import FOLDER, RECIPES, train
from nnrepair.errors import NNRepairError


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m nnrepair.domains.language", description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write it (default: where it is read)")
    given = parser.parse_args()
    try:
        told = train(given.name, given.folder)
    except NNRepairError as error:
        parser.exit(3, f"{error}\n")
    print(f"{given.name}: {told['cpu_seconds']:.0f} CPU s; share of statements that it completes")
    for kind, share in told["recall"].items():
        print(f"  {kind:>17}: {100 * share:.1f} %")


if __name__ == "__main__":
    main()
