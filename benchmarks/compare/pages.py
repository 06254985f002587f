"""Pages about what stayed the same in each repaired ACAS Xu network, and an index. Needs $NNREPAIR_DATA/acasxu.

    python -m benchmarks.compare.pages [--networks 2_9,3_2] [--seconds 5] [--out build/stayed]

There are two pages for a network, so many CPU seconds each: over all states outside of the boxes of the repaired
properties, with the independent checker's verdict on the certificate; and over a plane, all distances and angles at the
speeds and the heading of a state at which the original violates a repaired property. The repaired networks are made of
the committed patches. Pages that are there already, with as many seconds, are kept, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import measure
from benchmarks.compare import acas as repairs
from nnrepair.deadline import Deadline
from nnrepair.domains import acas
from nnrepair.errors import InvalidInput
from nnrepair.files import write_atomically
from nnrepair.pages.templates import style, template
from nnrepair.results import checkers
from nnrepair.rounding import percent_at_least, percent_at_most
from nnrepair.verify import Box, Comparison
from nnrepair.verify.compare import Asked, compared
from nnrepair.verify.comparing.regions import boxes_of

OUT, SECONDS = Path(__file__).resolve().parents[2] / "build" / "stayed", 5.0
#: The independent checker may take so many seconds.
LIMIT = 600.0
#: The inputs of a plane that vary.
VARYING = (0, 1)
ABOUT = "Inputs are as the networks read them, normalised; the smallest score is the advice."


def plane(network: str) -> tuple[Box, str]:
    """Return all distances and angles at the other three inputs of one state, and which state that is."""
    number = max(row["property"] for row in repairs.rows_of(network))
    stored = repairs.REPAIRS / "results" / f"N_{network}" / f"phi_{number}-violations.npy"
    found = np.load(stored) if stored.is_file() else np.zeros((0, 5))
    if len(found):
        state, which = [Fraction(v) for v in found[0].tolist()], f"a state at which the original violates phi_{number}"
    else:
        box = boxes_of(acas.property_file(number))[0]
        state = [(low + high) / 2 for low, high in zip(box.lower, box.upper, strict=True)]
        which = f"the middle of the box of phi_{number}"
    ends = [acas.DOMAIN[k] if k in VARYING else (v, v) for k, v in enumerate(state)]
    return Box(*zip(*ends, strict=True)), which


def compared_for(seconds: float, before: Path, after: Path, boxes: Sequence[Box], identical: bool) -> Comparison:
    """Compare for so many CPU seconds."""
    started = time.process_time()
    deadline = Deadline(seconds, clock=time.process_time)
    found = compared(before, after, list(boxes), Asked("argmin", identical=identical), deadline)
    return replace(found, cpu_seconds=time.process_time() - started)


def judged(certificate: Path, before: Path, after: Path) -> tuple[str | None, str]:
    """Return what the independent checker says where it accepts, else why not."""
    try:
        done = checkers.run("comparison", certificate, before, after, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return None, f"The independent checker did not end within {LIMIT:g} s."
    said = done.stdout.strip()
    return (said, "") if done.returncode == checkers.ACCEPTED else (None, f"The independent checker says: {said}")


def one(network: str, part: str, seconds: float, out: Path) -> dict[str, Any]:
    """Write a page, and return what stands in the index about it."""
    name, label = f"N_{network}", f"N_{{{network.replace('_', ',')}}}"
    a, b = map(int, network.split("_"))
    before, after = out / f"{name}.onnx", out / f"{name}-repaired.onnx"
    shutil.copyfile(acas.network(a, b), before)
    patch = repairs.REPAIRS / "results" / name / "patch.safetensors"
    repairs.materialise().materialised(before, patch, after)
    rows = repairs.rows_of(network)
    mended = ", ".join(f"phi_{row['property']}" for row in rows)
    if part == "plane":
        box, which = plane(network)
        boxes, where = [box], f"all distances and angles at the heading and the speeds of {which}"
    else:
        boxes, where = repairs.region(network), f"all states of the domain outside of the boxes of {mended}"
    found = compared_for(seconds, before, after, boxes, identical=part == "plane")
    verdict, why = None, ""
    if found.certificate is not None:
        verdict, why = judged(found.certificate.save(out / f"{name}.npz"), before, after)
    page = f"{name}{'-plane' if part == 'plane' else ''}.html"
    check = f"nnrepair certify {name}.npz {before.name} --repaired {after.name}"
    found.save_page(
        out / page,
        title=f"ACAS Xu {label}: what stayed the same",
        about=f"The repair of {mended}, over {where}. {ABOUT}",
        verdict=verdict,
        unchecked=why,
        commands=[] if found.certificate is None else [check],
        inputs=acas.INPUTS,
        outputs=acas.ADVISORIES,
    )
    return {
        "page": page,
        "properties": mended,
        "same": percent_at_least(found.same),
        "changed": percent_at_least(found.changed),
        "unknown": percent_at_most(found.unknown),
        "certificate": "none" if found.certificate is None else "not accepted" if verdict is None else "accepted",
    }


def index(rows: Sequence[dict[str, Any]], out: Path) -> Path:
    """Write the index of what is there."""
    named: dict[str, dict[str, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: str(row["network"])):
        named.setdefault(row["network"], {})[row["part"]] = row
    title = "ACAS Xu: what stayed the same"
    html: str = template("pages.html", Path(__file__).parent).render(
        title=title, styles=style(), networks=named, parts=("plane", "domain")
    )
    return write_atomically(out / "index.html", html.encode())


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", metavar="A_B,...", help="only these, e.g. 2_9,3_2")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the CPU for each page; default: %(default)g")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder to write to; default: build/stayed")
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    there = repairs.networks()
    names = there if asked.networks is None else asked.networks.split(",")
    if unknown := sorted({*names} - {*there}):
        raise InvalidInput(f"There is no repaired network {unknown[0]!r}; there are {', '.join(there)}.")
    asked.out.mkdir(parents=True, exist_ok=True)
    stored = asked.out / "pages.json"
    rows = measure.load(stored)
    for network, part in tqdm([(name, part) for name in names for part in ("plane", "domain")], desc="pages"):
        case = {"network": network, "part": part, "seconds": asked.seconds}
        if any(case.items() <= row.items() and (asked.out / row["page"]).is_file() for row in rows):
            continue
        row = case | one(network, part, asked.seconds, asked.out)
        rows = [other for other in rows if other["page"] != row["page"]] + [row]
        measure.save(stored, rows, "pages about what stayed the same in repaired networks")
    print(index(rows, asked.out))


if __name__ == "__main__":
    main()
