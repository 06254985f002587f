"""`nnrepair demo`: a repair of real mistakes from beginning to end."""

from __future__ import annotations

import argparse

from nnrepair.cli import demonstration as demo


def run(arguments: argparse.Namespace) -> int:
    """Make the demo, and return the exit code."""
    return 0 if demo.run(arguments.out, arguments.seed, say=print) else 1
