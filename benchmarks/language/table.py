"""Write docs/results-language.md from the networks' training records and the committed result files alone."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.rows import Group, experiments, groups, result_files, seeds_of
from nnrepair.domains.language.recipes import FOLDER, RECIPES
from nnrepair.files import write_atomically
from nnrepair.results import markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"
KINDS = ("trained wordings", "held-out wordings", "new wordings", "consequences", "attributes", "assumptions")
#: What single edits by a method in closed form were to reach: measure -> share.
GATES = {"success_rate": 0.99, "generalization_rate": 0.90, "locality": 0.95}
#: Wall seconds of ten edits on GPT-J in the survey's Table 4, by method.
SURVEY = {"ft": 35.9, "serac": 5.3, "calinet": 1.9, "t-patcher": 1865.0, "mend": 0.51, "rome": 147.0, "memit": 143.0}


def records() -> dict[str, dict[str, Any]]:
    """Return the training records by name."""
    files = {name: FOLDER / f"{name}.json" for name in RECIPES}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def networks() -> str:
    """Return the table of networks: size, training, and what they know."""
    out = []
    for name, told in records().items():
        sizes = [f"{count:,}".replace(",", " ") for count in (told["parameters"], told["recipe"]["steps"])]
        known = [f"{100 * told['recall'][kind]:.1f}" for kind in KINDS]
        out.append([f"`{name}`", *sizes, f"{told['cpu_seconds']:.0f}", str(told["facts"]), *known])
    return markdown.table(["network", "weights", "steps", "training CPU s", "facts", *(f"{k} %" for k in KINDS)], out)


def edited(several: bool) -> str:
    """Return the table of methods: of one edit at a time, means over the seeds, or of several at once."""
    out = []
    for group in groups("language"):
        if not group.finished or (group.finished[0]["edits"] > 1) != several:
            continue
        out.append([group.experiment, f"`{group.model}`", *_edits(group, several), *_measures(group)])
    head = ["experiment", "network", "seeds", *(["edits"] if several else []), "efficacy %", "paraphrase %"]
    head += ["neighbourhood %", "same person %", "attributes %", "portability %", "fluency, bits", "CPU s"]
    return markdown.table(head, out)


def _edits(group: Group, several: bool) -> list[str]:
    return [seeds_of(group), *([str(group.finished[0]["edits"])] if several else [])]


def _measures(group: Group) -> list[str]:
    rows = group.finished
    tests = [[row["tests"][name] for row in rows] for name in ("same person", "attributes", "portability")]
    shares = [group.mean("success_rate"), group.mean("generalization_rate"), group.mean("locality")]
    shares += [fmean(one["locality"] for one in test) for test in tests[:2]]
    shares.append(0.0 - fmean(one["drawdown_points"] for one in tests[2]) / 100)  # none of it was so before
    fluency = fmean(row["further"]["fluency"] for row in rows)
    seconds = f"{group.mean('repair_cpu_seconds'):.1f}"
    return [*(f"{100 * share:.1f}" for share in shares), f"{fluency:.2f}", seconds]


def ordering() -> str:
    """Return how long methods take here and in the survey, and how often both have two of them in the same order."""
    ours: dict[str, float] = {}
    for group in groups("language"):
        method = str(group.rows[0]["method"])
        if group.finished and group.finished[0]["edits"] == 1 and method in SURVEY:
            ours[method] = min(group.mean("repair_cpu_seconds"), ours.get(method, math.inf))
    if len(ours) < 2:
        return ""
    pairs = list(combinations(ours, 2))
    same = sum((SURVEY[a] < SURVEY[b]) == (ours[a] < ours[b]) for a, b in pairs)
    rows = [[f"`{name}`", f"{SURVEY[name]:g}", f"{ours[name]:.2f}"] for name in sorted(ours, key=SURVEY.__getitem__)]
    head = ["method", "survey: s, 10 edits of GPT-J", "here: CPU s, 1 edit"]
    return f"""## Beside a survey

Yao et al., "Editing large language models: problems, methods, and opportunities" (EMNLP 2023), give wall times of ten
edits of GPT-J in their Table 4. The order is the same here for {same} of {len(pairs)} pairs of methods; of a method
with several experiments the quickest counts. No more than the order can be compared: their network is some ten thousand
times as large, and edits there are of other facts. The training of editors that are trained first is not counted here.

{markdown.table(head, rows)}

"""


def page() -> str:
    """Return docs/results-language.md."""
    files = result_files("language")
    about = "Nothing was measured yet."
    if files:
        first = max(files, key=lambda file: file["date"])
        packages = ", ".join(f"{name} {value}" for name, value in first["versions"].items())
        about = f"Measured on {first['machine']}, Python {first['python']}, {packages},\none thread; the last on "
        about += f"{first['date']}."
    listed = experiments(groups("language")) if files else ""
    return f"""# Editing facts in language models

Generated by `python -m benchmarks table` from `nnrepair/domains/language/trained/*.json` and
`benchmarks/language/results/*.json`. {about}

## Networks

Decoder-only transformers of our own training, one seed; `python -m nnrepair.domains.language NAME` trains one anew.
They know people of a made-up world. Shares of statements that they complete, every token of the object being the
likeliest one: facts in the wordings of their training; in wordings that training showed only with other people; in
wordings that it never showed; what follows from the facts; what is true of the objects; and assumptions that are given
before a question.

{networks()}

{singles()}{batches()}{ordering()}{listed}
"""


def singles() -> str:
    """Return the part on one edit at a time, empty where nothing was measured."""
    if not any(group.finished for group in groups("language")):
        return ""
    return f"""## One fact at a time

Each edit gives one fact about a person another object. *Efficacy*: edits that hold. *Paraphrase*: the same in six other
wordings. *Neighbourhood*: other people's facts of the same relation, in the same wording, whose object stayed.
*Same person*: the person's other facts that stayed. *Attributes*: what is true of objects, and stayed. *Portability*:
what follows from the new object and is said now. *Fluency*: n-gram entropy of a text about the person. CPU seconds of
the repair alone, on cores that other work shared.

{edited(False)}

{gates()}

"""


def gates() -> str:
    """Return which experiments reach all that was set beforehand, which nearly do, and what that costs elsewhere."""
    found = [group for group in groups("language") if group.finished and group.finished[0]["edits"] == 1]

    def within(points: float) -> list[str]:
        near = [g for g in found if all(g.mean(key) >= least - points for key, least in GATES.items())]
        return [f"`{g.experiment}` {' / '.join(f'{100 * g.mean(key):.1f}' for key in GATES)}" for g in near]

    whole = within(0)
    near = [said for said in within(0.02) if said not in whole]
    asked = " / ".join(f"{100 * least:.0f}" for least in GATES.values())
    return f"""Set beforehand for single edits were {asked} % of efficacy, paraphrase and neighbourhood.

* Reached by {", ".join(whole) or "no experiment"}; others within two points of all three: {", ".join(near) or "none"}.
* Whichever method reaches other wordings here loses something else: look at all columns, *same person* above all, as
  editors in closed form write at the last word of a name, whatever is asked of it.
* Layers, margins and step sizes of `rome` were chosen in a few trials with other seeds."""


def batches() -> str:
    """Return the part on several edits at once, empty where nothing was measured."""
    if not any(group.finished and group.finished[0]["edits"] > 1 for group in groups("language")):
        return ""
    return f"""## Many facts at once

As many people, one changed fact of each, in one network:

{edited(True)}

"""


def write() -> None:
    """Write the page."""
    write_atomically(DOCS / "results-language.md", page().encode())


if __name__ == "__main__":
    write()
