"""`python -m benchmarks run --domain mnist [--part ...]` and `python -m benchmarks table`."""

from __future__ import annotations

import argparse

from benchmarks import run, table

PARTS = {
    "like-for-like": run.run_like_for_like,
    "locality": run.run_locality,
    "growth": run.run_growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    sub = parser.add_subparsers(dest="verb", required=True)
    runner = sub.add_parser("run", help="measure; resumes where it was stopped")
    runner.add_argument("--domain", choices=["mnist"], default="mnist")
    runner.add_argument("--part", choices=list(PARTS), action="append")
    sub.add_parser("table", help="write the tables and figures in docs/ from the committed results")
    arguments = parser.parse_args()
    if arguments.verb == "table":
        table.write()
        return
    for part in arguments.part or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main()
