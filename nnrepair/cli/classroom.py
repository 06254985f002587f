"""`nnrepair classroom`: repair digits in a web page, or write one recorded lesson as a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnrepair.classroom.material import Material, material
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.extras import needed
from nnrepair.files import require_writable, write_atomically, write_or_rescue


def run(arguments: argparse.Namespace) -> int:
    """Open the classroom, or write the page of a recorded lesson, and return the exit code."""
    page: Path | None = arguments.static
    if page is not None and page.suffix not in (".html", ".htm"):
        raise InvalidInput(f"--static {page.name}: the page is written as .html.")
    if page is not None:
        require_writable(page)
    with needed("classroom", "The classroom needs scikit-learn, matplotlib, the onnx packages and NiceGUI"):
        import matplotlib  # noqa: F401
        import nicegui  # noqa: F401
        import onnxscript  # noqa: F401
        import sklearn  # noqa: F401
    print("Training the network ...", flush=True)
    given = material(arguments.data, arguments.seed)
    return _serve(given, arguments) if page is None else _record(given, page)


def _serve(given: Material, arguments: argparse.Namespace) -> int:
    from nnrepair.classroom.server import serve

    serve(
        given,
        host=arguments.host,
        port=arguments.port,
        show=not arguments.no_browser,
        say=lambda line: print(line, flush=True),
    )
    return 0


def _record(given: Material, page: Path) -> int:
    from nnrepair.classroom.record import lesson_page

    print("Recording repairs, and having their proofs checked ...", flush=True)
    content = lesson_page(given).encode()
    missed = write_or_rescue(page, lambda path: write_atomically(path, content))
    if missed is not None:
        raise NNRepairError(f"{missed}.")
    print(f"The lesson     {page}  (open it in any browser; it needs nothing else)")
    return 0
