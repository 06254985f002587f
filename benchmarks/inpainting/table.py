"""Write docs/results-inpainting.md from the networks' training records and the committed result files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.rows import experiments, groups, result_files
from nnrepair.domains.inpainting.recipes import FOLDER, RECIPES
from nnrepair.files import write_atomically
from nnrepair.results import markdown
from nnrepair.spec.bounds import ERROR

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: Mean squared errors of Garnelo et al. (2018), table 1, as remembered, not read again: by kind and count of context.
PAPER = {"random 10": 0.039, "random 100": 0.016, "random 1000": 0.009}
PAPER |= {"ordered 10": 0.057, "ordered 100": 0.047, "ordered 1000": 0.021}


def records() -> dict[str, dict[str, Any]]:
    """Return the training records by name."""
    files = {name: FOLDER / f"{name}.json" for name in RECIPES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def networks() -> str:
    """Return the table of networks: size, training, errors by context."""
    out = []
    for name, told in records().items():
        errors = list(told["mse"].values())
        steps = f"{told['recipe']['steps']:,}".replace(",", " ")
        out.append([f"`{name}`", f"{told['parameters']:,}".replace(",", " "), steps, f"{told['cpu_seconds']:.0f}"])
        out[-1] += [f"{error:.4f}" for error in errors] if len(errors) == 6 else _few(told["mse"])
        out[-1].append(str(told["held_out_images"]))
    out.append(["Garnelo et al., faces", "–", "–", "–", *(f"{value:.3f}" for value in PAPER.values()), "–"])
    head = ["network", "weights", "steps", "training CPU s", *PAPER, "images"]
    return markdown.table(head, out)


def _few(mse: dict[str, float]) -> list[str]:
    """Return errors in the columns of larger images; nothing where smaller ones have no such context."""
    found = {(at.split()[0], round(int(at.split()[1]), -1)): value for at, value in mse.items()}
    most = max(int(at.split()[1]) for at in mse)
    out = []
    for at in PAPER:
        kind, count = at.split()
        value = mse.get(f"{kind} {most}") if count == "1000" else found.get((kind, int(count)))
        out.append("–" if value is None else f"{value:.4f}")
    return out


def repairs(modes: Sequence[str]) -> str:
    """Return the table of methods: means over the edits, and the worst of them."""
    out = []
    for group in groups("inpainting"):
        rows = group.finished
        if group.mode not in modes or not rows:
            continue
        edits = sum(row["edits"] for row in rows)
        start = [group.experiment, *([] if len(modes) == 1 else [group.mode]), str(edits)]
        errors = [fmean(row["measures"][ERROR][when] for row in rows) for when in (0, 1)]
        worst = max(row["worst_error"] / row["measures"][ERROR][0] - 1 for row in rows)
        out.append(
            [
                *start,
                f"{100 * group.mean('success_retain_rate' if group.mode == 'successive' else 'success_rate'):.0f}",
                f"{100 * group.mean('generalization_rate'):.0f}",
                f"{errors[0]:.5f} → {errors[1]:.5f}",
                f"{100 * (errors[1] / errors[0] - 1):.2f}",
                f"{100 * worst:.2f}",
                f"{fmean(row['tests']['kept']['moved'] for row in rows):.4f}",
                *([] if len(modes) == 1 else [_rest(rows)]),
                *(f"{sum(row[key] for row in rows) / edits:.1f}" for key in ("repair_cpu_seconds", "cpu_seconds")),
                _trained_first(rows),
            ]
        )
    head = ["experiment", *([] if len(modes) == 1 else ["mode"]), "edits", "within tolerance %", "other contexts %"]
    head += ["error, other faces", "rise %", "worst rise %", "mean change, kept"]
    head += [] if len(modes) == 1 else ["mean change, around"]
    return markdown.table([*head, "CPU s, repair", "with measuring", "trained first"], out)


def _rest(rows: Sequence[dict[str, Any]]) -> str:
    """Return by how much edited pictures move around their patches; earlier rows did not look."""
    found = [row["further"]["rest"] for row in rows if "further" in row]
    return f"{fmean(found):.3f}" if found else "–"


def _trained_first(rows: Sequence[dict[str, Any]]) -> str:
    """Return the CPU seconds of a training before the repairs; rows that took a stored editor had none."""
    found = [row["trained"]["cpu_seconds"] for row in rows if "trained" in row and not row["trained"].get("stored")]
    return f"{fmean(found):.0f}" if found else "–"


def page() -> str:
    """Return docs/results-inpainting.md."""
    files = [file for file in result_files("inpainting") if any("experiment" in row for row in file["rows"])]
    about = "Nothing was measured yet."
    if files:
        first = max(files, key=lambda file: file["date"])
        packages = ", ".join(f"{name} {value}" for name, value in first["versions"].items())
        about = f"Measured on {first['machine']}, Python {first['python']}, {packages},\none thread; the last on "
        about += f"{first['date']}."
    listed = experiments(groups("inpainting")) if files else ""
    return f"""# Completing images, and repairing completions

Generated by `python -m benchmarks table` from `nnrepair/domains/inpainting/trained/*.json` and
`benchmarks/inpainting/results/*.json`. {about}

## Networks

Conditional Neural Processes of our own training, one seed; `python -m nnrepair.domains.inpainting NAME` trains one
anew. Mean squared errors over all pixels and channels of held-out images (how many: last column), pixels in [0, 1], by
the number of given pixels: at random, or from above to below. Digits of 28 pixels a side are given 765 for 1000, those
of 8 pixels 62. The paper's figures are quoted from memory; its faces may be another cut of CelebA, so that they are no
like for like.

{networks()}

## Repairs

Each edit asks for the 8 x 8 pixels that a face's completion from 102 random pixels gets worst: every channel of every
pixel within ten grey levels of the truth. *Within tolerance*: share of edits for which that holds. *Other contexts*:
the same with other pixels given. *Error*: mean squared error on 500 other faces, before and after, mean over the
edits; *worst rise*: after any one edit. *Mean change, kept*: of the completions of 50 other faces, in units of the
pixels. CPU seconds for each edit, of the repair alone and with all that is measured before and after, on cores that
other work shared.

{repairs(["independent"])}

What a patch costs other faces depends on how well the layers tell its face from them. On single faces, tried and not
stored: without `model.summary` others moved many times as far; 20 kept faces were far too few, and 500 no better than
200; the encoder's layers beside the others, and an aim further inside the tolerance, gained next to nothing.

`grace` and `cnp` leave the weights alone: they carry beside the network what is to be painted, for faces that resemble
the edited one. `grace` stores its whole completion, which it returns for other pixels of that face too, and for a few
other faces; `cnp` stores what the patch lacked, given these pixels. It is trained first (*trained first*: CPU seconds,
once for all edits of a network). `ft+l2-heavy` shows what a penalty that is too heavy comes to.
Not tried: `learned-steps` and
`editable-training`, whose exercises need gradients of the decoder's gradients, and the editors in closed form (`rome`
and others).

{several()}{listed}
"""


def several() -> str:
    """Return the part on several edits in one network, empty where nothing was measured."""
    modes = ["batch", "successive"]
    if not any(group.mode in modes and group.finished for group in groups("inpainting")):
        return ""
    return f"""Several edits in one network, all at once (batch), or one after another, where every step is asked for
all edits so far (successive, measured after the last one).

*Mean change, around*: of the edited pictures outside their patches, of which nothing was asked; rows without it are of
before it was looked at. `minimal-norm-fisher-alone` and `-own` have one edit in each of five networks; for `-own` the
edited picture, as it was completed, is among the 200 kept ones forty times. The norm then spares it as it spares them.

{repairs(modes)}

"""


def write() -> None:
    """Write the page."""
    write_atomically(DOCS / "results-inpainting.md", page().encode())


if __name__ == "__main__":
    write()
