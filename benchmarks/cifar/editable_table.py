"""Write docs/results-editable-training.md and its picture from the committed result file alone."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.cifar.editable import BLOCK, LOCALITY, RANDOM, REAL, RESULTS, TRAINED, UNPREPARED
from benchmarks.figures import new_panels
from benchmarks.rows import spread
from nnrepair.files import write_atomically
from nnrepair.results import markdown
from nnrepair.rounding import percent

DOCS = Path(__file__).resolve().parents[2] / "docs"
Row = dict[str, Any]
TITLES = {"random labels": "Random labels", "real mistakes": "Real mistakes"}
#: What rows are about; those of other trainings are in the second table.
NAMES = {
    "block": "**editable-training, block before `linear`**",
    "block, not prepared": "the same block, not prepared, gradient descent",
    "linear, not prepared": "`linear`, gradient descent",
    "ft": "`ft`: `linear`, Adam 0.01",
    "minimal-norm, l2": "`minimal-norm`, l2, no locality set",
    "minimal-norm, drift": "`minimal-norm`, drift, 2500 points kept",
}


def _rows() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in json.loads(RESULTS.read_text())["rows"]:
        if "random labels" in row:
            found.setdefault(row["name"], []).append(row)
    return found


def methods(protocol: str) -> str:
    """One row for each method."""
    out = []
    for name, told in NAMES.items():
        rows = _rows().get(name, [])
        if not rows:
            continue
        some = [row[protocol] for row in rows]
        training = [row["training"]["cpu_seconds"] for row in rows if "training" in row]
        out.append(
            [
                told,
                len(rows),
                spread(training, ".0f"),
                percent(fmean(one["success_rate"] for one in some), 1),
                percent(fmean(one["generalization_rate"] for one in some), 1),
                spread([one["steps"] for one in some], ".2f") if name in {**TRAINED, **UNPREPARED, "ft": 0} else "–",
                spread([one["drawdown_points"]["jpeg"] for one in some], ".2f"),
                f"{max(one['drawdown_points_max']['jpeg'] for one in some):.1f}",
                spread([one["drawdown_points"]["lossless"] for one in some], ".2f"),
                f"{1000 * fmean(one['edit_seconds'] for one in some):.0f}",
            ]
        )
    head = ["method", "seeds", "training CPU s", "success", "neighbours", "steps", "drawdown", "worst"]
    return markdown.table([*head, "drawdown, lossless", "ms per edit"], out)


def trainings() -> str:
    """One row for each training."""
    out = []
    for name in sorted(TRAINED, key=lambda name: (TRAINED[name].options != {}, TRAINED[name].steps)):
        rows = _rows().get(name, [])
        if not rows:
            continue
        told = [row["training"] for row in rows]
        changed = ", ".join(f"{key} = {value}" for key, value in TRAINED[name].options.items()) or "–"
        random, real = ([row[protocol] for row in rows] for protocol in TITLES)
        out.append(
            [
                changed,
                TRAINED[name].steps,
                len(rows),
                spread([one["cpu_seconds"] for one in told], ".0f"),
                spread([one["steps"] for one in random], ".2f"),
                percent(min(one["success_rate"] for one in random), 1),
                spread([one["drawdown_points"]["jpeg"] for one in random], ".2f"),
                spread([one["drawdown_points"]["jpeg"] for one in real], ".2f"),
                *(spread([100 * (t["accuracy"][k] - t["accuracy_before"][k]) for t in told], "z.2f") for k in SETS),
            ]
        )
    head = ["other options", "training steps", "seeds", "CPU s", "steps of an edit", "success, least"]
    head += ["drawdown, random", "drawdown, real", "accuracy gained by preparing, JPEG", "lossless"]
    return markdown.table(head, out)


SETS = ("jpeg", "lossless")


def _mean(name: str, protocol: str, key: str = "drawdown_points") -> float:
    found = [row[protocol][key] for row in _rows()[name]]
    return fmean(one["jpeg"] if isinstance(one, dict) else one for one in found)


def page() -> str:
    """Return docs/results-editable-training.md."""
    data = json.loads(RESULTS.read_text())
    about = ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    block = _rows()["block"]
    before = block[0]["training"]["accuracy_before"]
    size = max(row["training"]["bytes"] for row in block) / 1e6
    ours, bare = (_mean(name, "random labels") for name in ("block", "block, not prepared"))
    exact = _mean("minimal-norm, drift", "random labels"), _mean("minimal-norm, drift", "real mistakes")
    alone = _mean("minimal-norm, l2", "random labels"), _mean("minimal-norm, l2", "real mistakes")
    real, images = _mean("block", "real mistakes"), block[0]["training"]["images"]
    near = [_mean(name, "real mistakes", "generalization_rate") for name in ("block", "block, not prepared")]
    options = ", ".join(f"{key} = {value}" for key, value in BLOCK.items())
    cost = fmean(row["training"]["cpu_seconds"] for row in block)
    labels = _labels()
    return f"""# Preparing a network to be edited: results

Generated by `python -m benchmarks table` from `benchmarks/cifar/results/{RESULTS.name}`. Measured on
{data["machine"]}, Python {data["python"]}, {about},
one thread, one fresh process for each row, on a machine that did other work too: CPU seconds drift by up to a factor of
two, milliseconds by more.

[`EditableTraining`](add-a-trained-method.md#preparing-a-network) (Sinitsin et al., "Editable neural networks", ICLR
2020) of CIFAR-10's ResNet-20: a residual block before the last layer is trained, and then edited
({options}, and the defaults). Exercises come from JPEG copies of {images:,} training images:
one edit with a label drawn at random, and {LOCALITY} images to keep, whose labels are not used. The 64 features
that the last layer sees are computed once. Every edit is made alone, from the original network; editors see nothing but
the edit. Figures are in percentage points, means ± standard deviations over seeds.

* *Random labels*: {RANDOM} test images a seed, each with a label drawn at random, which is at times the one that the
  network gives already: then nothing is done, and the mean has a 0. *Real mistakes*: {REAL} test images a seed that
  the network gets wrong, with their true labels.
* *Drawdown*: loss of accuracy on the JPEG copies of all test images ({percent(before["jpeg"], 2)} before), on average
  over edits, and after the worst one. The 389 *lossless* test images that are here are a second figure, of a biased
  sample ({percent(before["lossless"], 2)} before): one image of them is 0.26 points. Neither is comparable with
  published figures, which are about lossless images and a network that was trained with the editor.
* *Neighbours*: share of the edited images, mirrored and moved by one pixel, that have the wanted label.
* *Not prepared*: gradient descent on the same loss with nothing trained, one step size for all, chosen on the first
  random-label edits of the seed so that it takes about as many steps.

Options were chosen on other draws of test images with random labels.

{chr(10).join(f"## {TITLES[protocol]}{chr(10)}{chr(10)}{methods(protocol)}{chr(10)}" for protocol in TITLES)}
## Trainings

The same block with other lengths of training, and with other options (seed 0 alone, where the number of seeds says 1).
The editors of {block[0]["training"]["steps"]} steps are in `benchmarks/cifar/editors` ({size:.1f} MB each at most; they
hold the block and its step sizes alone, and belong to the last layer as a network, `benchmarks.cifar.task.head`).

![Drawdown and steps against CPU seconds of training](editable-training.png)

{trainings()}
{_longest()}
## When preparing pays

Preparing the block takes {cost:.0f} CPU s, and then an edit with a random label costs {ours:.2f} points,
{ours / bare:.2f} of what the same block loses in about as many steps without, and a real mistake {real:.2f}. Its price
is generality: of a mistake's neighbours {percent(near[0], 0)} follow, and {percent(near[1], 0)} without preparing.

It does not pay where a locality set is at hand when the edit is made, and the edit is one for a last layer: the
smallest change under the drift norm needs no training and loses {exact[0]:.2f} points with random labels and
{exact[1]:.2f} with real mistakes. It pays

* where nothing but the edit is at hand when it is made: the smallest change without a locality set loses
  {alone[0]:.2f} and {alone[1]:.2f} points;
* where an edit is to be a few gradient steps in a block of one's choice, and no program to solve;
* where many edits are made alone, each from the same network: training is paid once.
{labels}"""


def _longest() -> str:
    """Return what the longest training gains, in words."""
    name = max((n for n in _rows() if n in TRAINED and not TRAINED[n].options), key=lambda n: TRAINED[n].steps)
    usual, most = (_rows()[n][0] for n in ("block", name))
    lost = [row["random labels"]["drawdown_points"]["jpeg"] for row in (usual, most)]
    steps = [row["training"]["steps"] for row in (usual, most)]
    images = usual["training"]["images"]
    if lost[1] <= lost[0]:
        return ""
    return f"""
More training with the same {images:,} images does not help: with seed 0 drawdown goes from {lost[0]:.2f} points after
{steps[0]:,} steps to {lost[1]:.2f} after {steps[1]:,}.
"""


def _labels() -> str:
    """Return what training on labels does, in words."""
    rows = _rows().get("block, trained on labels", [])
    if not rows:
        return ""
    told = rows[0]["training"]
    jpeg, lossless = (100 * (told["accuracy"][key] - told["accuracy_before"][key]) for key in SETS)
    return f"""
Training the block on labels, and not on what the network says, trains it for JPEG images: accuracy on these changes by
{jpeg:+.2f} points, and on lossless ones by {lossless:+.2f}, before any edit. Drawdown then says little about editing.
"""


def write(folder: Path = DOCS) -> None:
    """Write the page and the picture."""
    write_atomically(folder / "results-editable-training.md", page().encode())
    picture(folder / "editable-training.png")


def picture(path: Path) -> None:
    """Draw drawdown, and steps of an edit, against the length of training."""
    from matplotlib import pyplot as plt

    fig, axes = new_panels(1, 2)
    names = sorted((name for name in TRAINED if not TRAINED[name].options), key=lambda name: TRAINED[name].steps)
    rows = [next(row for row in _rows()[name] if row["seed"] == 0) for name in names if name in _rows()]
    seconds = [row["training"]["cpu_seconds"] for row in rows]
    for protocol, marker in zip(TITLES, "os", strict=True):
        drawdown = [row[protocol]["drawdown_points"]["jpeg"] for row in rows]
        axes[0, 0].plot(seconds, drawdown, marker=marker, label=TITLES[protocol].lower())
        axes[0, 1].plot(seconds, [row[protocol]["steps"] for row in rows], marker=marker)
    for axis, title in zip(axes.flat, ("drawdown (points)", "steps of an edit"), strict=True):
        axis.set(xscale="log", xlabel="CPU seconds of training", ylabel=title, ylim=(min(0, axis.get_ylim()[0]), None))
        axis.set_xticks(seconds, [f"{value:.0f}" for value in seconds])
        axis.minorticks_off()
    fig.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)


if __name__ == "__main__":
    write()
