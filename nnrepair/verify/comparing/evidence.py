"""What two networks were compared on, and what was met on the way: inputs that differ, and what was known when."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnrepair.verify.comparing.decision import Decision
from nnrepair.verify.property import Box


@dataclass(frozen=True)
class Subject:
    """What was compared.

    Attributes:
        before, after: what the networks are called: by their files, else by their classes.
        hashes: of both: the sha256 of a file, of a module its `nnrepair.fingerprint`.
        boxes: of the region; they share no inside.
        decision: as it was asked for.
    """

    before: str
    after: str
    hashes: tuple[str, str]
    boxes: tuple[Box, ...]
    decision: Decision


@dataclass(frozen=True)
class Witness:
    """An input at which the networks decide differently, in their own precision and in exact arithmetic.

    Attributes:
        input: (inputs,), a number of the networks' own precision for each input.
        before, after: (outputs,), what the networks return there.
        replayed: what agreed that the decision is another: "network" (torch), "onnxruntime", "exact".
    """

    input: NDArray[np.float64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    replayed: tuple[str, ...]


@dataclass(frozen=True)
class Moment:
    """What was known after so many seconds and boxes, as shares of the region; floats, for curves.

    Attributes:
        cpu_seconds, boxes: since the comparison began.
        identical, same, changed: as in `Comparison`.
    """

    cpu_seconds: float
    boxes: int
    identical: float
    same: float
    changed: float
