"""Write docs/results-vision.md and its figures from the committed result files alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.figures import new_panels, styles_of
from benchmarks.rows import Group, experiments, groups, result_files, seeds_of, spread
from benchmarks.vision import blocks, gallery, streams
from benchmarks.vision.cifar import NEAR, QUALITY
from nnrepair.files import write_atomically
from nnrepair.results import markdown
from nnrepair.rounding import percent

DOCS = Path(__file__).resolve().parents[2] / "docs"
Row = dict[str, Any]
#: What is measured beside the first test set, by network: name in rows -> title, and whether a loss is a gain.
OTHERS = {
    "squeezenet": {"with misread": "drawdown, with misread ones", "snow": "drawdown, snow"},
    "squeezenet-fire": {"with misread": "drawdown, with misread ones", "snow": "drawdown, snow"},
    "squeezenet-snow": {"snow read right": "drawdown, snow read right"},
    "squeezenet-exemplars": {"snow": "drawdown, snow", "snow read right": "drawdown, snow read right"},
    "resnet20": {"lossless": "drawdown, lossless"},
    "resnet56": {"lossless": "drawdown, lossless"},
    "resnet20-jpeg": {"compressed": "drawdown, compressed", "lossless": "drawdown, lossless"},
}
FIRST = {
    "squeezenet": "drawdown, samples",
    "squeezenet-fire": "drawdown, samples",
    "squeezenet-snow": "drawdown, samples",
    "squeezenet-exemplars": "drawdown, samples",
    "resnet20": "drawdown, JPEG",
    "resnet56": "drawdown, JPEG",
    "resnet20-jpeg": "drawdown, originals",
}
SCOPES = {
    "squeezenet": "neighbours",
    "squeezenet-fire": "neighbours",
    "squeezenet-snow": "of the other half follow",
    "squeezenet-exemplars": "of vehicles on snow follow",
    "resnet20": "neighbours",
    "resnet56": "neighbours",
    "resnet20-jpeg": "other qualities",
}


#: Networks whose real mistakes are repaired.
NETWORKS = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "squeezenet": "SqueezeNet",
    "squeezenet-fire": "SqueezeNet",
}


def rows(path: Path) -> list[Row]:
    """Return the rows of a result file; none where it was not measured."""
    found: list[Row] = json.loads(path.read_text())["rows"] if path.exists() else []
    return found


def table(model: str) -> str:
    """Return one row for each experiment on a network."""
    found = [group for group in groups("vision") if group.model == model]
    if not found:
        return "Not measured yet."
    found.sort(key=lambda group: group.rows[0]["edits"])
    out = [[group.experiment + _found_best(group), group.rows[0]["edits"], *_figures(group)] for group in found]
    head = ["experiment", "edits", "success %", f"{SCOPES[model]} %", FIRST[model], *OTHERS[model].values()]
    return markdown.table([*head, "size of change (l2)", "steps", "CPU s", "MiB", "training CPU s", "seeds"], out)


def _found_best(group: Group) -> str:
    """Return which layers a search chose, where there was one, and how often."""
    chosen = Counter(row["layer"][0].removesuffix(".weight") for row in group.finished if "layer" in row)
    return f": {', '.join(f'`{name}` {count}x' for name, count in chosen.most_common())}" if chosen else ""


def _figures(group: Group) -> list[str]:
    trained = [row["trained"]["cpu_seconds"] for row in group.finished if "trained" in row]
    return [
        spread(group.values("success_rate"), ".1f", 100),
        spread(group.values("generalization_rate"), ".1f", 100),
        drawdown(group),
        *(drawdown(group, name) for name in OTHERS[group.model]),
        "–" if group.rows[0]["method"] == "grace" else spread(group.values("change"), ".3g"),  # a codebook has no size
        spread(group.values("steps"), ".0f"),
        spread(group.values("cpu_seconds"), ".0f"),
        spread(group.values("peak_mib"), ".0f"),
        spread(trained, ".0f"),
        seeds_of(group),
    ]


def drawdown(group: Group, test: str | None = None) -> str:
    """Return the loss on a test set, by default the first, with the standard error that sampling images brings."""
    told = spread(group.values("drawdown_points" if test is None else f"test {test}"), ".2f")
    sets = [row if test is None else row["tests"][test] for row in group.finished]
    sampled = [100 * sqrt((1 - one["locality"]) * one["points"]) / one["points"] for one in sets if "points" in one]
    return f"{told} ({fmean(sampled):.2f})" if len(sampled) == len(sets) > 0 else told


def streamed() -> str:
    """Return what keeping all training images costs."""
    out = [
        [
            f"`{row['layer']}`",
            row["edits"],
            f"{row['kept']:,}",
            row["status"],
            f"{row['passes']:.2f}",
            f"{row['peak_mib']:.0f}",
            f"{row['cpu_seconds']:.0f}",
            percent(row["locality"], 2),
        ]
        for row in rows(streams.RESULTS)
        if "passes" in row
    ]
    head = ["layer", "edits", "images kept", "outcome", "passes over them", "MiB above the process's base", "CPU s"]
    return markdown.table([*head, "decisions unchanged on them"], out)


def trainings() -> str:
    """Return Editable Training of convolutions, as time passes."""
    out = []
    for row in rows(blocks.RESULTS):
        if "random labels" not in row:
            continue
        told, random, real = row.get("training"), row["random labels"], row["real mistakes"]
        gained = "–" if told is None else [100 * (told["accuracy"][k] - told["accuracy_before"][k]) for k in SETS]
        out.append(
            [
                f"`{row['name']}`",
                "not prepared" if told is None else f"{told['steps']:,} of {told['of']:,}",
                "–" if told is None else f"{told['cpu_seconds']:.0f}",
                random["edits"],
                percent(random["success_rate"], 1),
                f"{random['steps']:.2f}",
                *(f"{random['drawdown_points'][name]:.2f}" for name in SETS),
                *(f"{real['drawdown_points'][name]:.2f}" for name in SETS),
                *(["–", "–"] if told is None else [f"{value:+.2f}" for value in gained]),
            ]
        )
    head = ["block", "training steps", "CPU s", "edits", "success", "steps of an edit", "drawdown, random labels"]
    head += ["lossless", "drawdown, real mistakes", "lossless", "accuracy gained by preparing, JPEG", "lossless"]
    return markdown.table(head, out)


SETS = ("jpeg", "lossless")


def pictures() -> str:
    """Return the table beside the gallery's picture."""
    found = rows(gallery.RESULTS)
    if not found:
        return "Not measured yet."
    row, out = found[0], []
    for k, name in enumerate(row["photographs"]):
        three = [", ".join(f"{c} {percent(p, 0)}" for c, p in row[key][k]) for key in ("before", "after")]
        out.append([name, row["wanted"][k], *three, row["mirrored after"][k][0][0], gallery.CREDITS[name]])
    head = ["photograph (cropped)", "wanted", "three best before", "after", "best of it mirrored, after", "by"]
    told = (
        f"`{row['options']}`: {row['status']}; the change of `{gallery.METHOD.layer}` has l2 norm {row['l2']:.3g}, "
        f"{percent(row['relative'], 1)} of the layer's own, and {row['linf']:.2g} is the largest of a weight. Of "
        f"{row['tested']} samples that were read right and not kept, {row['drawdown_points']:.2f} % are lost; "
        f"{row['kept']} were kept."
    )
    return f"{markdown.table(head, out)}\n\n{told}"


def page() -> str:
    """Return docs/results-vision.md."""
    files = result_files("vision")
    data = files[0]
    about = ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    dates = sorted({file["date"] for file in files})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return f"""# Photographs: results

Generated by `python -m benchmarks table` from `benchmarks/vision/results/*.json`. Measured on {data["machine"]}, Python
{data["python"]}, {about}, one thread, one fresh process for each row, {when},
on a machine that did other work too. Figures are means ± standard deviations over seeds; drawdown is in percentage
points of accuracy, and a negative one is a gain. In brackets: the standard error of one seed's drawdown at most, for
test images are a sample; of n of them, c with another decision than before, it is 100 √c / n. What the network computes
before the first layer that a row may change is computed once, before the clock runs.

{intro()}
## SqueezeNet 1.1: real mistakes among ImageNet's samples

1,000 photographs, one of each class, of which SqueezeNet reads 612 right (whether they are of its training set is not
known). Edits: as many of the other 388 as the table says. Kept, as hard constraints: half of the 612. *Samples*: the
other half, all of which the network reads right before; drawdown on them is the share that it reads wrong afterwards,
and nothing gained elsewhere can make up for it. *With misread ones*: the same samples and the misread ones that are no
edits, which is how drawdown is published. *Snow*: the 127 photographs below. *Neighbours*: each edited sample mirrored,
and moved by eight pixels two ways. All edits at once, in `classifier.1`, a convolution of 513,000 parameters in front
of a ReLU and an average.

![Drawdown against the number of edits](vision-drawdown.png)

{table("squeezenet")}

In other layers, the convolutions of the last fire module (the same draws):

{table("squeezenet-fire")}

## Vehicles on snow

127 photographs of seven classes on snow (Santurkar et al., NeurIPS 2021), of which SqueezeNet reads 72 wrong. Edits:
half of those of each class. *Of the other half follow*: the share of the other 36 misread ones that the repaired
network reads right. Kept: of half of the 1,000 samples, those that are read right. *Samples*: the other 500.
`editable-training` is trained on 4 edits at a time for 25 steps, `editable-training-200` on 8 for 200 steps; both
repair all at once.

{table("squeezenet-snow")}

### From exemplars

The lowest 80 of 224 rows of samples are covered with those of photographs on snow. Edits: samples that are read right
without, and wrong with the snow; `rewriting` is told what they were before. *Of vehicles on snow follow*: the share of
the misread photographs on snow, all of other classes than the edits, that the repaired network reads right. *Snow*: all
photographs of which no rows were taken. Kept: of half of the other samples, those that are read right. *Samples*: the
other half.

{table("squeezenet-exemplars")}

## ResNet-20 on CIFAR-10

Edits: JPEG copies of test images that the network reads wrong. Kept: JPEG copies of 4,000 training images. Test sets:
the JPEG copies of the other test images, and the up to 389 originals that are here, which are a biased sample; neither
figure is comparable with published ones. *Neighbours*: the edited images mirrored, and moved by one pixel. The network
begins at `layer3`.

{table("resnet20")}

### ResNet-56

The same with ResNet-56, which begins at its last block, `layer3.8`.

{table("resnet56")}

{_optional()}## Gallery

![Three photographs with their three best classes before and after](vision-gallery.png)

{pictures()}

Photographs of ImageNet, CIFAR-10 and Flickr may be looked at, and not published: where they are,
`python -m benchmarks.vision.gallery` repairs some of them and draws the same pictures into `build/gallery/`.

## What the names stand for

{experiments(groups("vision"))}
"""


def _optional() -> str:
    """Return the sections of what was measured, and a line on what was not."""
    measured = {group.model for group in groups("vision") if group.finished}
    sections = [
        ("JPEG as a corruption", "resnet20-jpeg" in measured, _jpeg),
        ("50,000 images kept from disk", any("passes" in row for row in rows(streams.RESULTS)), _kept),
        ("Editable Training of convolutions", any("training" in row for row in rows(blocks.RESULTS)), _training),
    ]
    lacking = [title for title, there, _ in sections if not there]
    told = "".join(section() for _, there, section in sections if there)
    if lacking:
        told += f"Not measured yet: {'; '.join(lacking)} (`python -m benchmarks run --domain vision` does).\n\n"
    return told


def _jpeg() -> str:
    return f"""### JPEG as a corruption

Originals of 4,000 training images, compressed to a quality of {QUALITY}. Edits: of half of them, images that are read
right and, compressed, wrong. Kept: originals of the other half. Test sets: the originals of the first half that are no
edits, the same ones compressed, and original test images. *Other qualities*: the edited images compressed to
{" and ".join(map(str, NEAR))}.

{table("resnet20-jpeg")}

"""


def _kept() -> str:
    return f"""### 50 000 images kept, from disk

The whole network on images that are read from a file whenever it runs on them. *Infeasible*: no change of that layer
makes all edits hold and keeps every image that is read right; 4,000 of them it can keep, as above.

{streamed()}

"""


def _training() -> str:
    return f"""## Editable Training of convolutions

[`EditableTraining`](results-editable-training.md) of the network's own last block, and last stage: no block is added.
One training each; the editor is measured as time passes. The step sizes of training fall along a cosine to its end, so
that rows before the last one are not what a shorter training of its own would give. Edits and drawdown are as on that
page, on every tenth test image; one seed. *Not prepared*: gradient descent on the same loss with nothing trained, with
a step size that makes it take about as many steps. Drawdown is against the network that was given, so that what
preparing gains is part of it: against the prepared network the loss is larger by as much. On that page the smallest
change, which is given points to keep, does the same edits in the last layer.

![Drawdown against CPU seconds of training](vision-training.png)

{trainings()}

"""


def intro() -> str:
    """Return what the figures come to, in words; nothing of what was not measured."""
    lines = [line for part in (_mistakes, _snow, _streams, _blocks) for line in part()]
    return "\n".join(f"* {line}" for line in lines) + ("\n" if lines else "")


def _mistakes() -> list[str]:
    lines = []
    for group in sorted(groups("vision"), key=lambda group: (group.model, group.rows[0]["edits"])):
        if group.model in NETWORKS and group.finished and "norm" in group.rows[0]["options"]:
            options, edits = group.rows[0]["options"], group.rows[0]["edits"]
            name, title = next(iter(OTHERS[group.model].items()))
            lines.append(
                f"{NETWORKS[group.model]}, {edits} real mistakes, the smallest change of {_layers(options['layer'])} "
                f"in norm {options['norm']}: {percent(group.mean('success_rate'), 1)} hold, drawdown "
                f"{group.mean('drawdown_points'):.2f} points ({title.removeprefix('drawdown, ')}: "
                f"{group.mean(f'test {name}'):.2f}), {group.mean('cpu_seconds'):.0f} CPU s, "
                f"{group.mean('peak_mib'):.0f} MiB."
            )
    return lines


def _layers(given: str | list[str]) -> str:
    """Say which layers a repair changes."""
    if given == "auto":
        return "the layer that the search finds best"
    return f"`{given}`" if isinstance(given, str) else " and ".join(f"`{name}`" for name in given)


def _snow() -> list[str]:
    found = [group for group in groups("vision") if group.model == "squeezenet-snow" and group.finished]
    if not found:
        return []
    told = [
        f"`{group.experiment}` {percent(group.mean('success_rate'), 0)}, "
        f"{percent(group.mean('generalization_rate'), 0)} and {group.mean('drawdown_points'):.2f} points"
        for group in found
    ]
    return [
        "Vehicles on snow, half of the misread ones of each class repaired: share that holds, share of the other half "
        f"that follows, and drawdown on ImageNet's samples: {'; '.join(told)}."
    ]


def _streams() -> list[str]:
    return [
        f"{row['kept']:,} images kept from disk by a repair of ResNet-20 ({row['edits']} edits, `{row['layer']}`): "
        f"{row['status']}, {row['passes']:.1f} passes over them, {row['peak_mib']:.0f} MiB, "
        f"{row['cpu_seconds']:.0f} CPU s."
        for row in rows(streams.RESULTS)
        if "passes" in row
    ]


def _blocks() -> list[str]:
    found = [row for row in rows(blocks.RESULTS) if "training" in row and "random labels" in row]
    lines = []
    for name in dict.fromkeys(row["name"] for row in found):
        first, last = (next(row for row in order if row["name"] == name) for order in (found, found[::-1]))
        lost = [row["random labels"]["drawdown_points"]["jpeg"] for row in (first, last)]
        seconds = [row["training"]["cpu_seconds"] for row in (first, last)]
        lines.append(
            f"Editable Training of ResNet-20's own `{name}`: drawdown with random labels goes from {lost[0]:.2f} "
            f"points after {seconds[0]:.0f} CPU s to {lost[1]:.2f} after {seconds[1]:.0f}."
        )
    return lines


def write(folder: Path = DOCS) -> None:
    """Write the page and its pictures."""
    write_atomically(folder / "results-vision.md", page().encode())
    against_edits(folder / "vision-drawdown.png")
    if any("training" in row for row in rows(blocks.RESULTS)):
        against_time(folder / "vision-training.png")
    gallery.picture(folder / "vision-gallery.png")


def against_edits(path: Path) -> None:
    """Draw drawdown against the number of edits, of minimal norm."""
    from matplotlib import pyplot as plt

    fig, axes = new_panels(1, 2)
    first = {"squeezenet": "held-out samples read right", "resnet20": "JPEG copies"}  # the tasks' first test sets
    for axis, model in zip(axes.flat, first, strict=True):
        found = [g for g in groups("vision") if g.model == model and g.finished and "norm" in g.rows[0]["options"]]
        for (label, some), style in zip(_lines(found).items(), styles_of(list(_lines(found))).values(), strict=True):
            edits = [group.rows[0]["edits"] for group in some]
            axis.plot(edits, [group.mean("drawdown_points") for group in some], label=label, **style)
        axis.axhline(0, color="0.6", linewidth=0.8)
        axis.set(xlabel="edits", ylabel="drawdown (points)", xlim=(0, None))
        axis.set_title(f"{NETWORKS[model]}, {first[model]}", fontsize="medium")
        if found:
            axis.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15))
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)


def _lines(found: Sequence[Group]) -> dict[str, list[Group]]:
    """Return groups of one layer and norm, by edits."""
    lines: dict[str, list[Group]] = {}
    for group in sorted(found, key=lambda group: group.rows[0]["edits"]):
        options = group.rows[0]["options"]
        layer = "best layer" if options["layer"] == "auto" else _layers(options["layer"]).replace("`", "")
        lines.setdefault(f"{layer}, {options['norm']}", []).append(group)
    return lines


def against_time(path: Path) -> None:
    """Draw drawdown and steps against the length of training."""
    from matplotlib import pyplot as plt

    fig, axes = new_panels(1, 2)
    found = [row for row in rows(blocks.RESULTS) if "training" in row and "random labels" in row]
    for protocol, line in (("random labels", "-"), ("real mistakes", "--")):
        for name, style in styles_of([row["name"] for row in found]).items():
            some = [row for row in found if row["name"] == name]
            seconds = [row["training"]["cpu_seconds"] for row in some]
            lost = [row[protocol]["drawdown_points"]["jpeg"] for row in some]
            label = f"{name}, {protocol}"
            axes[0, 0].plot(seconds, lost, linestyle=line, label=label, **style)
            axes[0, 1].plot(seconds, [row[protocol]["steps"] for row in some], linestyle=line, **style)
    for axis, title in zip(axes.flat, ("drawdown (points)", "steps of an edit"), strict=True):
        axis.set(xlabel="CPU seconds of training", ylabel=title, ylim=(min(0, axis.get_ylim()[0]), None))
    if found:
        fig.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    fig.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(fig)


if __name__ == "__main__":
    write()
