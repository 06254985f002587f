"""Pictures of completions and of repairs: `python -m benchmarks.inpainting.gallery MODEL FOLDER`.

Those of MNIST are in docs/. Those of faces are to be made and kept locally: CelebA is for non-commercial research, and
its pictures are not to be published.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import nnrepair
from nnrepair.domains.inpainting import contexts, plot
from nnrepair.domains.inpainting.data import grey
from nnrepair.domains.inpainting.networks import Completion
from nnrepair.domains.inpainting.recipes import RECIPES, recipe, trained
from nnrepair.domains.inpainting.task import task
from nnrepair.files import replacing
from nnrepair.methods import MinimalNorm

#: How many images, and how many edits, a picture has.
SHOWN, EDITED = 6, 3
#: So often an edited picture counts among those that the norm spares; else what is around its patch would be spoiled.
OWN = 40
#: The decoder, and what it is told of the context; attentive networks have one layer more. See docs/inpainting.md.
DECODER = ("model.summary", "model.decoder.1", "model.decoder.3", "model.decoder.5", "model.head")


def completed(name: str, path: Path, size: int | None = None) -> None:
    """Draw completions from a hundredth, a tenth and all but a few of the pixels, and from the upper half.

    Faces may have another size than those that the network was trained on.
    """
    made, generator = recipe(name), torch.Generator().manual_seed(0)
    made = made if size is None else replace(made, size=size)
    images = grey(made.images("test")[:SHOWN])
    pixels = made.size**2
    asked: list[tuple[contexts.Kind, int]] = [
        *(("random", max(3, round(share * pixels))) for share in (0.01, 0.1, 0.98)),
        ("ordered", pixels // 2),
    ]
    masked = [contexts.masked(images, contexts.context(kind, images, count, generator)) for kind, count in asked]
    titles = [f"{count} {kind}" for kind, count in asked]
    figure = plot.completions(Completion(trained(name), made.size, made.size).eval(), images, masked, titles)
    save(figure, path)


def repaired(name: str, path: Path) -> None:
    """Draw edits, each repaired alone, beside an image that was to stay."""
    posed = task(name, 0, EDITED, own=OWN)
    method = MinimalNorm(
        layer=("model.seen", *DECODER) if recipe(name).attentive else DECODER, norm="fisher", locality="none"
    )
    after = [
        nnrepair.fix(posed.model, posed.edits[k : k + 1], posed.locality_set, method=method, throw=False).model
        for k in range(EDITED)
    ]
    others = posed.test_set["error"][0][:EDITED]
    save(plot.gallery(posed.model, after, posed.edits.inputs, posed.edits.criterion, others), path)


def save(figure: object, path: Path) -> None:
    with replacing(path, ".png") as part:
        figure.savefig(part, dpi=110, metadata={"Software": None})  # type: ignore[attr-defined]


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inpainting.gallery", description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    start = f"inpainting-{given.model}"
    drawn = {given.folder / f"{start}-completions.png": completed, given.folder / f"{start}-repairs.png": repaired}
    if recipe(given.model).data == "celeba":
        drawn[given.folder / f"{start}-64.png"] = partial(completed, size=64)
    for path, draw in drawn.items():
        draw(given.model, path)
        print(path)


if __name__ == "__main__":
    main()
