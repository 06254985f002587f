"""ACAS Xu: 45 networks that advise aircraft how to avoid each other, and the ten properties of VNN-COMP.

Network N_{a,b} is for the previous advisory a (1..5) and the time to loss of vertical separation b (1..9). It reads
five normalised numbers (distance, two angles, two speeds) and returns a score for each of five advisories; the smallest
score is the advice. Katz et al. 2017, "Reluplex"; the files are those of VNN-COMP 2021.

>>> network(2, 9).name  # doctest: +SKIP
'ACASXU_run2a_2_9_batch_2000.onnx'
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.domains import files as data
from nnrepair.errors import InvalidInput
from nnrepair.spec.criteria import Argmin
from nnrepair.spec.edits import LocalitySet

ADVISORIES = ("clear of conflict", "weak left", "weak right", "strong left", "strong right")
#: What the networks were made for: distance 0 to 60 760 ft, all angles, speeds 100 to 1200 and 0 to 1200 ft/s.
DOMAIN = ((-0.328422877, 0.679857769), (-0.5, 0.5), (-0.5, 0.5), (-0.5, 0.5), (-0.5, 0.5))
INPUTS = ("distance", "angle to intruder", "heading of intruder", "own speed", "intruder speed")
#: Of the inputs as people measure them. Angles are counter-clockwise from the own heading: positive is left.
UNITS = ("ft", "rad", "rad", "ft/s", "ft/s")
#: What the networks read is (value - MEAN) / RANGE, for values from LEAST to MOST. These numbers stand in the headers
#: of the 45 .nnet files that came with Katz et al. 2017, the same in all of them.
LEAST = (0.0, -3.141593, -3.141593, 100.0, 0.0)
MOST = (60760.0, 3.141593, 3.141593, 1200.0, 1200.0)
MEAN = (19791.091, 0.0, 0.0, 650.0, 600.0)
RANGE = (60261.0, 6.28318530718, 6.28318530718, 1100.0, 1200.0)
#: A score in the paper's units is a network's output times this, and a constant more.
SCORE = 373.94992

_SOURCE = (
    "https://raw.githubusercontent.com/stanleybak/vnncomp2021/90419aadcf06cf543ce5c1706cae1059dc9fa6cf/"
    "benchmarks/acasxu/{}"
)


def network(a: int, b: int) -> Path:
    """Return the ONNX file of N_{a,b}, downloaded if it is not here.

    Raises:
        DataUnavailable: it is not on this machine and could not be fetched.
    """
    if a not in range(1, 6) or b not in range(1, 10):
        raise InvalidInput(f"There is no network N_{{{a},{b}}}: expected a in 1..5 and b in 1..9.")
    return _file(f"onnx/ACASXU_run2a_{a}_{b}_batch_2000.onnx")


def property_file(number: int) -> Path:
    """Return the VNN-LIB file of property phi_1 to phi_10, downloaded if it is not here."""
    if number not in range(1, 11):
        raise InvalidInput(f"There is no property phi_{number}: expected 1..10.")
    return _file(f"vnnlib/prop_{number}.vnnlib")


def instances() -> list[tuple[tuple[int, int], int]]:
    """Return the 186 pairs of network (a, b) and property that VNN-COMP checks, in its order."""
    with _file("acasxu_instances.csv").open(newline="") as file:
        rows = [(onnx.split("_"), text) for onnx, text, _ in csv.reader(file)]
    return [((int(name[2]), int(name[3])), int(text[5:].split(".")[0])) for name, text in rows]


def normalised(rho: Any, theta: Any, psi: Any, v_own: Any, v_int: Any) -> Tensor:
    """Return what the networks read (..., 5), float64, for numbers or tensors that people measure.

    Args:
        rho: distance to the intruder, 0 to 60 760 ft.
        theta: angle to the intruder from the own heading, -pi to pi, counter-clockwise: positive is left.
        psi: the intruder's heading from the own heading, likewise.
        v_own: own speed, 100 to 1200 ft/s.
        v_int: the intruder's speed, 0 to 1200 ft/s.

    Raises:
        InvalidInput: shapes do not fit, or a number is out of its range, where the networks were not trained.

    >>> normalised(60760, 0, 0, 1200, [0, 600])[:, [0, 3, 4]]
    tensor([[ 0.6799,  0.5000, -0.5000],
            [ 0.6799,  0.5000,  0.0000]], dtype=torch.float64)
    """
    try:
        values = [torch.as_tensor(value, dtype=torch.float64) for value in (rho, theta, psi, v_own, v_int)]
        shape = np.broadcast_shapes(*(value.shape for value in values))
        x = torch.stack([value.expand(shape) for value in values], -1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"rho, theta, psi, v_own and v_int must be numbers of shapes that fit: {error}") from error
    for name, value, least, most in zip(("rho", "theta", "psi", "v_own", "v_int"), values, LEAST, MOST, strict=True):
        if not bool(((value >= least) & (value <= most)).all()):
            raise InvalidInput(f"{name} must be from {least:g} to {most:g}, got {value.min():g} to {value.max():g}.")
    y: Tensor = (x - x.new_tensor(MEAN)) / x.new_tensor(RANGE)
    return y


def physical(x: Any) -> Tensor:
    """Return (..., 5), float64, in feet, radians and feet per second, for what the networks read (..., 5).

    >>> physical([-0.328422877, 0.5, 0, 0.5, -0.5]).round(decimals=2).tolist()
    [0.0, 3.14, 0.0, 1200.0, 0.0]
    """
    try:
        values = torch.as_tensor(x, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"States must be numbers (..., 5): {error}") from error
    if values.ndim < 1 or values.shape[-1] != 5:
        raise InvalidInput(f"A state has 5 numbers; got the shape {tuple(values.shape)}.")
    y: Tensor = values * values.new_tensor(RANGE) + values.new_tensor(MEAN)
    return y


def states(count: int, seed: int = 0) -> Tensor:
    """Return states (count, 5), float32, drawn uniformly from the networks' domain (normalised as they read it)."""
    low, high = torch.tensor(DOMAIN, dtype=torch.float64).T
    drawn = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x: Tensor = (low + drawn * (high - low)).float()
    return x


def locality_set(model: nn.Module, count: int = 50_000, seed: int = 0) -> LocalitySet:
    """Return random states with what a network advises there, to be kept."""
    x = states(count, seed)
    with torch.no_grad():
        return LocalitySet(x, Argmin(model(x.reshape(-1, 1, 1, 5)).argmin(1)))


def _file(path: str) -> Path:
    return data.locate(data.Resource(f"acasxu/{path}", _SOURCE.format(path), _hashes()[path]))


@functools.cache
def _hashes() -> dict[str, str]:
    lines = Path(__file__).with_name("acas.sha256").read_text().splitlines()
    return {path: digest for digest, path in (line.split() for line in lines)}
