"""`python -m benchmarks run [--domain ...] [--part ... | --method ... --mode ...]` and `python -m benchmarks table`.

The editing benchmark (`--part editing`) runs `benchmarks/<domain>/experiments/*.toml`: every method on real mistakes of
mnist, cifar, cora and other graphs, independent, one after another, and all at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from benchmarks import experiments, run, table
from benchmarks.acas import tradeoff
from benchmarks.cifar import editable
from benchmarks.compare import acas as comparisons
from benchmarks.compare import baseline as stacked
from benchmarks.compare import equivalence, locality
from benchmarks.compare import parts as needed
from benchmarks.conditioning import run as conditioning
from benchmarks.editing import DOMAINS, MODES
from benchmarks.generality import run as generality
from benchmarks.graph import scale
from benchmarks.mnist import balls, long, streams
from benchmarks.regions import run as regions
from benchmarks.robust import kills
from benchmarks.shipped import run as shipped
from benchmarks.vision import blocks, gallery
from benchmarks.vision import streams as photographs
from nnrepair.errors import NNRepairError

PARTS: dict[str, dict[str, Callable[[], None]]] = {
    "mnist": {
        "like-for-like": run.run_like_for_like,
        "locality": run.run_locality,
        "growth": run.run_growth,
        "long": long.run_long,
        "streams": streams.run_streams,
        "balls": balls.run,
    },
    "regions": {"slices": regions.run_slices, "lines": regions.run_lines},
    "acas": {"tradeoff": tradeoff.run},
    "graph": {"scale": scale.run_scale},
    "generality": {name: partial(generality.run, name) for name in generality.NETWORKS},
    "cifar": {"editable-training": editable.run},
    "vision": {"streams": photographs.run, "blocks": blocks.run, "gallery": gallery.run},
    "conditioning": {"cnp": conditioning.run},
    "compare": {
        "acas": comparisons.run,
        "short": comparisons.run_short,
        "baseline": stacked.run,
        "parts": needed.run,
        "equivalence": equivalence.run,
        "locality": locality.run,
    },
    "robust": {"kills": kills.run},
    "shipped": {"networks": shipped.run},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sub = parser.add_subparsers(dest="verb", required=True)
    runner = sub.add_parser("run", help="measure; resumes where it was stopped")
    runner.add_argument("--domain", choices=sorted({*PARTS, *DOMAINS}), default="mnist")
    runner.add_argument("--part", action="append", help="of the domain; several may be given, default: all")
    editing = runner.add_argument_group("the editing benchmark (implies --part editing)")
    editing.add_argument("--method", action="append", help="only experiments of this method, or of this name")
    editing.add_argument("--mode", action="append", choices=list(MODES))
    editing.add_argument("--model", action="append")
    editing.add_argument("--again", action="store_true", help="measure rows once more that failed")
    editing.add_argument("--trial", action="store_true", help="5 edits and 2 seeds, stored in build/trials")
    editing.add_argument("--jobs", type=int, default=1, help="processes at a time")
    sub.add_parser("table", help="write the tables and figures in docs/ from the committed results")
    arguments = parser.parse_args()
    if arguments.verb == "table":
        table.write()
        return
    parts = dict(PARTS.get(arguments.domain, {}))
    if arguments.domain in DOMAINS:
        parts["editing"] = partial(
            experiments.run,
            DOMAINS[arguments.domain],
            arguments.method or (),
            arguments.mode or (),
            arguments.model or (),
            again=arguments.again,
            trial=arguments.trial,
            jobs=arguments.jobs,
        )
        parts["tasks"] = partial(experiments.measure_tasks, DOMAINS[arguments.domain])
    asked = arguments.part
    if arguments.method or arguments.mode or arguments.model or arguments.again or arguments.trial:
        asked = asked or ["editing"]
    wrong = [part for part in asked or () if part not in parts]
    if wrong:
        parser.error(f"domain {arguments.domain} has no part {wrong[0]!r}; its parts are {', '.join(parts)}")
    for part in asked or parts:
        try:
            parts[part]()
        except NNRepairError as error:
            parser.exit(3, f"{error}\n")


if __name__ == "__main__":
    main()
