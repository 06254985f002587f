"""`nnrepair classroom`: repair digits in a web page, or write one lesson as a file."""

from __future__ import annotations

import argparse

from nnrepair.classroom.material import material


def run(arguments: argparse.Namespace) -> int:
    """Open the classroom, or write the static page, and return the exit code."""
    from nnrepair.classroom.server import serve

    print("Training the network ...", flush=True)
    serve(
        material(arguments.data, arguments.seed),
        host=arguments.host,
        port=arguments.port,
        show=not arguments.no_browser,
        say=lambda line: print(line, flush=True),
    )
    return 0
