"""The independent checkers of certificates: programs that travel with the package and share nothing with it.

They lie in `verification/` of a checkout, where they can be read and run by themselves, and in `_checkers/` of an
installed package. Here they run in a process of their own in which `nnrepair` cannot be imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

from nnrepair.archives import open_npz
from nnrepair.errors import InvalidInput, NNRepairError
from nnrepair.extras import needed

Kind = Literal["minimality", "property", "comparison"]

ACCEPTED, REJECTED, UNREADABLE = 0, 1, 2
MAX_META = 2**20  # bytes of a certificate's meta data; the checkers read no more either
FOLDERS = (Path(__file__).parents[1] / "_checkers", Path(__file__).parents[2] / "verification")
PROGRAMS: dict[Kind, str] = {"minimality": "minimality.py", "property": "check.py", "comparison": "compare.py"}

# Isolated (-I -S), a program sees Python's own modules alone. It gets its own folder before them, as if it were run as
# a file, and behind them the places where this process finds numpy and onnx.
_ALONE = """
import json, os, runpy, sys
places, *sys.argv = sys.argv[1:]
sys.path = [os.path.dirname(sys.argv[0]), *sys.path, *json.loads(places)]
sys.modules["nnrepair"] = None
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def kind_of(certificate: Path) -> Kind:
    """Return what a certificate proves: "minimality", a "property" or a "comparison"; nothing is unpickled.

    Raises:
        InvalidInput: it is none of these, or damaged.
    """
    try:
        with open_npz(certificate) as file:
            assert file.zip is not None  # only once it is closed
            sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in file.zip.infolist()}
            if sizes["meta"] > MAX_META:
                raise ValueError(f"its meta data have {sizes['meta']} bytes; at most {MAX_META} are read")
            name = json.loads(file["meta"].tobytes())["format"]
        for kind in PROGRAMS:  # which version of it, the checker says
            if name.startswith(f"nnrepair-{kind}-"):
                return kind
        raise ValueError(f"its format is {name!r}")
    except OSError as error:
        raise InvalidInput(f"The certificate {certificate} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # damaged arrays raise many kinds
        raise InvalidInput(f"{certificate} is not a certificate of nnrepair, or it is damaged: {error}") from error


def run(kind: Kind, *arguments: str | Path, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a checker, and return what it said and its exit code: 0 accepted, 1 rejected, 2 unreadable.

    Raises:
        MissingExtra: onnx is not installed.
        NNRepairError: the checker is not there, or came to no end of its own.
        subprocess.TimeoutExpired: it took longer than `timeout` seconds.
    """
    with needed("onnx", "The independent checkers read ONNX files"):
        import onnx  # noqa: F401
    program = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _ALONE]
    places = [os.path.abspath(place) for place in sys.path if place]
    command = [*program, json.dumps(places), str(_found(PROGRAMS[kind])), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=timeout, check=False)
    if done.returncode not in (ACCEPTED, REJECTED, UNREADABLE) or not done.stdout:  # Python ends with 1 when it fails
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise NNRepairError(f"The checker {PROGRAMS[kind]} did not come to a verdict: {last}")
    return done


def _found(program: str) -> Path:
    for folder in FOLDERS:
        if (folder / program).is_file():
            return folder / program
    raise NNRepairError(
        f"The checker {program} is in none of {' and '.join(map(str, FOLDERS))}, where an installed package or a "
        "checkout has it. Install nnrepair again."
    )
