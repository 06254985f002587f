"""Train one of the networks that complete images: `python -m nnrepair.domains.inpainting NAME`.

Progress is shown and stored; the same command goes on after a kill.
"""

from __future__ import annotations

from typing import Any

from nnrepair.domains import recipes
from nnrepair.domains.inpainting.recipes import COMMAND, FOLDER, RECIPES, train


def said(told: dict[str, Any]) -> str:
    """Return the errors of a record as text."""
    errors = (f"  {at:>14} pixels: {value:.4f}" for at, value in told["mse"].items())
    return "\n".join(["mean squared error at contexts of", *errors])


def main() -> None:
    """Read the command line and train."""
    recipes.main(COMMAND, __doc__, RECIPES, FOLDER, train, said)


if __name__ == "__main__":
    main()
