"""Train one of the language models: `python -m nnrepair.domains.language NAME`.

Progress is shown and stored; the same command goes on after a kill.
"""

from __future__ import annotations

from typing import Any

from nnrepair.domains import recipes
from nnrepair.domains.language.recipes import COMMAND, FOLDER, RECIPES, train


def said(told: dict[str, Any]) -> str:
    """Return what a record says of the network's knowledge as text."""
    shares = (f"  {kind:>17}: {100 * share:.1f} %" for kind, share in told["recall"].items())
    return "\n".join(["share of statements that it completes", *shares])


def main() -> None:
    """Read the command line and train."""
    recipes.main(COMMAND, __doc__, RECIPES, FOLDER, train, said)


if __name__ == "__main__":
    main()
