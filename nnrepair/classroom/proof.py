"""Have a repair's proof of minimality checked by the independent program."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from nnrepair import onnx
from nnrepair.classroom.lesson import Repair
from nnrepair.errors import NNRepairError
from nnrepair.results import checkers

#: Seconds that the checker may take.
SECONDS = 60


@dataclass(frozen=True)
class Proof:
    """What the independent checker said: whether it accepted, and its words."""

    accepted: bool
    said: str


def prove(repair: Repair) -> Proof:
    """Write both networks and the certificate to a folder that is removed again, and run the checker on them."""
    certificate = repair.result.certificate
    if certificate is None:
        return Proof(False, "This repair comes without a certificate.")
    with tempfile.TemporaryDirectory(prefix="nnrepair-classroom-") as name:
        files = [Path(name) / each for each in ("certificate.npz", "before.onnx", "after.onnx")]
        certificate.save(files[0])
        for network, path in zip((repair.origin, repair.result.model), files[1:], strict=True):
            onnx.save(network, repair.digit.image, path)
        try:
            done = checkers.run("minimality", files[0], files[1], "--repaired", files[2], timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return Proof(False, f"The checker was stopped after {SECONDS} s.")
        except NNRepairError as error:
            return Proof(False, str(error))
    said = done.stdout.strip()
    return Proof(done.returncode == checkers.ACCEPTED, said.removeprefix("ACCEPTED").strip())
