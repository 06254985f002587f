"""Draw what ACAS Xu networks advise before and after their repair. Needs $NNREPAIR_DATA/acasxu.

python docs/encounters.py IN       docs/acas-*.png, five of the networks in the folder IN
python docs/encounters.py IN OUT   every network in IN that was repaired, into the folder OUT

IN is what `python verification/acas/materialise.py --out IN` writes.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from PIL import Image

from nnrepair.domains import acas
from nnrepair.domains.acas import plot as acas_plot
from nnrepair.verify import check

HERE = Path(__file__).parent
#: The networks of the tutorial.
SHOWN = ((2, 9), (1, 9), (1, 7), (2, 1), (4, 6))


def draw(after: Path, pair: tuple[int, int], broken: tuple[int, ...], out: Path) -> None:
    """Draw one network, on the slice that shows most of its first property's violations."""
    files = [acas.property_file(number) for number in broken]
    figure, drawn = acas_plot.encounter(acas.network(*pair), after, property=files), io.BytesIO()
    figure.savefig(drawn, dpi=100)
    few = _few_colours(Image.open(drawn).convert("RGB"))
    few.save(out / f"acas-{pair[0]}_{pair[1]}.png", optimize=True)


def _few_colours(picture: Image.Image) -> Image.Image:
    """Return the picture with its 256 most frequent colours as they are: half the size."""
    pixels = np.asarray(picture)
    colours, index, count = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    chosen = np.argsort(-count, kind="stable")[:256]
    distance = ((colours[:, None].astype(int) - colours[chosen].astype(int)) ** 2).sum(2)
    few = Image.fromarray(distance.argmin(1).astype(np.uint8)[index.reshape(pixels.shape[:2])], mode="P")
    few.putpalette(colours[chosen].tobytes())
    return few


def violated(pair: tuple[int, int]) -> tuple[int, ...]:
    """Return the properties that an original network violates, of those it is checked for; rare ones first."""
    mine = [number for network, number in acas.instances() if network == pair]
    found = [n for n in mine if check(acas.network(*pair), acas.property_file(n)).verdict == "violated"]
    return tuple(sorted(found, key=lambda number: number != 8))


def main(arguments: list[str]) -> None:
    if len(arguments) not in (1, 2):
        raise SystemExit(__doc__)
    out = Path(arguments[1]) if len(arguments) == 2 else HERE
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(Path(arguments[0]).glob("ACASXU_run2a_*.onnx")):
        found = re.search(r"run2a_(\d)_(\d)_", file.name)
        pair = (int(found[1]), int(found[2])) if found else (0, 0)
        broken = violated(pair) if out != HERE or pair in SHOWN else ()
        if broken:
            draw(file, pair, broken, out)


if __name__ == "__main__":
    main(sys.argv[1:])
