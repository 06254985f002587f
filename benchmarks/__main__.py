"""`python -m benchmarks run [--domain mnist | regions | acas] [--part ...]` and `python -m benchmarks table`."""

from __future__ import annotations

import argparse

from benchmarks import run, table
from benchmarks.acas import tradeoff
from benchmarks.regions import run as regions

PARTS = {
    "mnist": {
        "like-for-like": run.run_like_for_like,
        "locality": run.run_locality,
        "growth": run.run_growth,
    },
    "regions": {"slices": regions.run_slices, "lines": regions.run_lines},
    "acas": {"tradeoff": tradeoff.run},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    sub = parser.add_subparsers(dest="verb", required=True)
    runner = sub.add_parser("run", help="measure; resumes where it was stopped")
    runner.add_argument("--domain", choices=list(PARTS), default="mnist")
    runner.add_argument("--part", choices=[part for parts in PARTS.values() for part in parts], action="append")
    sub.add_parser("table", help="write the tables and figures in docs/ from the committed results")
    arguments = parser.parse_args()
    if arguments.verb == "table":
        table.write()
        return
    parts = PARTS[arguments.domain]
    wrong = [part for part in arguments.part or () if part not in parts]
    if wrong:
        parser.error(f"domain {arguments.domain} has no part {wrong[0]!r}; its parts are {', '.join(parts)}")
    for part in arguments.part or parts:
        parts[part]()


if __name__ == "__main__":
    main()
