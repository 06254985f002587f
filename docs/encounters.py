"""Draw docs/acas-*.png: what ACAS Xu networks advise before and after a repair. Needs $NNREPAIR_DATA/acasxu.

python docs/encounters.py            repairs five networks (some CPU minutes) and draws them
python docs/encounters.py IN OUT     draws every repaired network in the folder IN, whose files are called as the
                                     originals, into the folder OUT
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from PIL import Image

import nnrepair
from nnrepair import onnx
from nnrepair.domains import acas, acas_plot
from nnrepair.model_file import ModelFile
from nnrepair.verify import check

HERE = Path(__file__).parent
#: Network, properties that it violates, properties to keep.
REPAIRS = (
    ((2, 9), (8, 2), (1, 3, 4)),
    ((1, 9), (3, 4, 7), (1,)),
    ((1, 7), (3, 4), (1,)),
    ((2, 1), (2,), (1, 3, 4)),
    ((4, 6), (2,), (1, 3, 4)),
)


def repair(pair: tuple[int, int], broken: tuple[int, ...], keep: tuple[int, ...], out: Path) -> None:
    """Write the repaired network."""
    base = acas.network(*pair)
    result = nnrepair.repair_property(
        base,
        [acas.property_file(number) for number in broken],
        keep=[acas.property_file(number) for number in keep],
        locality_set=acas.locality_set(onnx.load(base)),
    )
    ModelFile.load(base).write(result.model, out / base.name)


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
    """Return the properties that an original network violates, of those it is checked for."""
    mine = [number for network, number in acas.instances() if network == pair]
    return tuple(n for n in mine if check(acas.network(*pair), acas.property_file(n)).verdict == "violated")


def main(arguments: list[str]) -> None:
    if len(arguments) == 2:
        for file in sorted(Path(arguments[0]).glob("ACASXU_run2a_*.onnx")):
            found = re.search(r"run2a_(\d)_(\d)_", file.name)
            pair = (int(found[1]), int(found[2])) if found else (0, 0)
            draw(file, pair, violated(pair), Path(arguments[1]))
        return
    if arguments:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for pair, broken, keep in REPAIRS:
            repair(pair, broken, keep, Path(folder))
            draw(Path(folder) / acas.network(*pair).name, pair, broken, HERE)


if __name__ == "__main__":
    main(sys.argv[1:])
