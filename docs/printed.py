"""Write what code prints below it, on the pages that show it, and draw docs/first-repair.png.

python docs/printed.py
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib.figure import Figure

from nnrepair.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *(ROOT / "docs" / name for name in ("quickstart.md", "how-to-choose.md")))
PICTURE = ROOT / "docs" / "first-repair.png"
#: A block of Python, and what it prints.
PRINTS = re.compile(r"(?<=^```python\n)(?P<code>(?:(?!^```).*\n)*)^```\n\n```text\n(?P<said>(?:(?!^```).*\n)*)", re.M)
BEFORE, AFTER = "#CC6677", "#117733"


def said(code: str, names: dict[str, Any]) -> str:
    """Run code among `names`, and return what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "a block of Python", "exec"), names)
    return out.getvalue()


def filled(text: str, names: dict[str, Any]) -> str:
    """Return a page with what its code prints in the blocks below."""

    def block(found: re.Match[str]) -> str:
        return f"{found['code']}```\n\n```text\n{said(found['code'], names)}"

    return PRINTS.sub(block, text)


def picture(names: dict[str, Any], count: int = 8) -> Figure:
    """Return the first digits that were misread, with what the two networks read."""
    test, right = names["test"], names["right"]
    images, labels = test.inputs[~right][:count], test.labels[~right][:count]
    before, after = (network(images).argmax(1).tolist() for network in (names["model"], names["result"].model))
    figure = Figure(figsize=(9, 1.9), layout="constrained")
    axes = figure.subplots(1, count)
    for axis, image, was, now, label in zip(axes, images, before, after, labels.tolist(), strict=True):
        axis.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("#BBBBBB")
        axis.set_title(f"read as {was}", color=AFTER if was == label else BEFORE, fontsize=11)
        axis.set_xlabel(f"now {now}", color=AFTER if now == label else BEFORE, fontsize=11)
    return figure


def main() -> None:
    torch.set_num_threads(1)
    for page in PAGES:
        names: dict[str, Any] = {}
        text = page.read_text()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            text = filled(text, names)
        write_atomically(page, text.encode())
        if page.name == "README.md":
            picture(names).savefig(PICTURE, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
