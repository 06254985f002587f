"""What ACAS Xu networks advise on a slice: every position of the intruder, its heading and both speeds fixed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair.domains import acas
from nnrepair.errors import InvalidInput
from nnrepair.network import private_copy
from nnrepair.spec.network import stated_shape
from nnrepair.verify import CheckResult, Counterexample, check, vnnlib
from nnrepair.verify.property import Case, Property
from nnrepair.verify.search.attack import random_starts
from nnrepair.verify.search.jobs import Jobs

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: The ends of a window, in feet: x, x, y, y.
Window = tuple[float, float, float, float]
#: How far a window looks around a state: at least, at most, in feet.
NEAREST, FARTHEST = 500.0, 8000.0
#: States drawn to find a slice that shows violations, slices compared, and positions on each: distances and angles.
DRAWN, SLICES, RINGS, RAYS = 200_000, 64, 24, 96


@dataclass(frozen=True)
class Claim:
    """A property, and what a title calls it."""

    property: Property
    name: str


@dataclass(frozen=True)
class Network:
    """A network on states (n, 5), in batches."""

    model: nn.Module
    shape: tuple[int, ...]

    @classmethod
    def of(cls, given: nn.Module | str | Path) -> Network:
        model = private_copy(given)
        network = cls(model, stated_shape(model) or (5,))
        if math.prod(network.shape) != 5:
            raise InvalidInput(f"An ACAS Xu network reads 5 numbers, this one {math.prod(network.shape)}.")
        network(torch.zeros(1, 5, dtype=torch.float64))
        return network

    def __call__(self, x: Tensor) -> Array:
        like = next((p for p in self.model.parameters() if p.dtype.is_floating_point), torch.zeros(()))
        found = []
        for start in range(0, len(x), 32_768):
            try:
                with torch.no_grad():
                    part = x[start : start + 32_768]
                    y = self.model(part.to(like).reshape(-1, *self.shape))
            except RuntimeError as error:
                raise InvalidInput(f"The network does not accept states (n, 5): {error}") from error
            if not isinstance(y, torch.Tensor) or y.numel() != 5 * len(part):
                raise InvalidInput("An ACAS Xu network returns 5 scores for each state; this one does not.")
            found.append(y.reshape(-1, 5).double().cpu())
        scores: Array = torch.cat(found or [torch.zeros(0, 5, dtype=torch.float64)]).numpy()
        if np.isnan(scores).any():
            raise InvalidInput("The network returns NaN at states of the slice.")
        return scores


@dataclass(frozen=True)
class Slice:
    """Heading and speeds, in radians and ft/s."""

    psi: float
    v_own: float
    v_int: float

    @classmethod
    def of(cls, state: Array | None, given: Sequence[float | None]) -> Slice:
        known = acas.physical(state).tolist()[2:] if state is not None else [None] * 3
        at = cls(*(float(k if g is None else g) for k, g in zip(known, given, strict=True)))
        at.states(np.zeros(1), np.zeros(1))  # refuses what is out of range
        return at

    def states(self, rho: Array, theta: Array) -> Tensor:
        """Return the states at positions (n,); what is out of range by more than rounding is refused."""
        ends = zip((self.psi, self.v_own, self.v_int), acas.LEAST[2:], acas.MOST[2:], strict=True)
        return acas.normalised(rho, theta, *(_cut(value, least, most) for value, least, most in ends))

    def crosses(self, case: Case) -> bool:
        low, high = case.box.outer
        x = self.states(np.zeros(1), np.zeros(1))[0].numpy()
        near = 1e-6
        return bool(((low - near <= x) & (x <= high + near))[2:].all())


def _cut(value: float, least: float, most: float) -> float:
    near = min(max(value, least), most)
    return near if abs(near - value) <= 1e-6 * (most - least) else value


def read_claims(given: Any) -> list[Claim]:
    """Return the properties that someone gave: one, or a list of them."""
    claims = []
    for one in given if isinstance(given, list | tuple) else [given]:
        if not isinstance(one, Property | str | Path):
            raise InvalidInput(f"A property must be a Property or a VNN-LIB file, got {type(one).__name__}.")
        claim = one if isinstance(one, Property) else vnnlib.load(one)
        if (claim.inputs, claim.outputs) != (5, 5):
            raise InvalidInput(
                f"The property is about {claim.inputs} inputs and {claim.outputs} outputs; ACAS Xu has 5 and 5."
            )
        stem = "" if isinstance(one, Property) else Path(one).name.split(".")[0]
        number = re.fullmatch(r"prop_(\d+)", stem)
        claims.append(Claim(claim, rf"$\varphi_{{{number[1]}}}$" if number else stem or "the property"))
    return claims


def known_name(model: nn.Module | str | Path) -> str:
    """Return what a title calls a network: N_{a,b} for the files of the benchmark."""
    pair = None if isinstance(model, nn.Module) else re.search(r"run2a_(\d)_(\d)", Path(model).name)
    return rf"$N_{{{pair[1]},{pair[2]}}}$" if pair else "the network"


def read_state(given: Any) -> Array | None:
    """Return a state (5,), normalised."""
    if isinstance(given, CheckResult):
        given = given.counterexample
        if given is None:
            raise InvalidInput("through: this check found no counterexample; give a state, or psi, v_own and v_int.")
    if isinstance(given, Counterexample):
        given = given.input
    if given is None:
        return None
    state = acas.physical(given)
    if state.shape != (5,) or not bool(torch.isfinite(state).all()):
        raise InvalidInput(f"through must be one state of 5 finite numbers, got the shape {tuple(state.shape)}.")
    return np.asarray(torch.as_tensor(given, dtype=torch.float64))


def telling(model: Any, network: Network, claim: Property) -> Array:
    """Return a violation whose slice shows many others; by chance if that finds one, else from a check."""
    jobs = Jobs.of(claim)
    x, job = random_starts(jobs, torch.Generator().manual_seed(0), max(1, DRAWN // len(jobs.lower)))
    depth = jobs.depth(torch.from_numpy(network(x)), job)
    found = (depth >= 0).nonzero()[:, 0]
    if not len(found):
        return _checked(model, claim)
    best, most = x[found[depth[found].argmax()]], 0.0
    for k in found[depth[found].argsort(descending=True)[:SLICES]].tolist():
        low, high = jobs.lower[job[k]], jobs.upper[job[k]]
        rings, rays = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (RINGS, RAYS))
        grid = x[k].repeat(RINGS, RAYS, 1)
        grid[..., 0] = (low[0] + (high[0] - low[0]) * rings)[:, None]
        grid[..., 1] = low[1] + (high[1] - low[1]) * rays
        flat = grid.reshape(-1, 5)
        wrong = flat[jobs.depth(torch.from_numpy(network(flat)), job[k].expand(len(flat))) >= 0]
        area = float(acas.physical(wrong)[:, 0].sum())  # of a part of a ring: as its radius
        if area > most:
            best, most = _middle(wrong), area
    return best.numpy()


def _middle(states: Tensor) -> Tensor:
    """Return the state that has the others nearest to it."""
    rho, theta = acas.physical(states)[:, :2].T
    place = torch.stack([rho * theta.cos(), rho * theta.sin()], 1)
    return states[torch.cdist(place, place).clamp(max=FARTHEST).sum(1).argmin()]


def _checked(model: Any, claim: Property) -> Array:
    result = check(model, claim, timeout=60)
    if result.counterexample is None:
        raise InvalidInput(
            f"No state was found at which the first network breaks the property ({result.verdict}), so that none "
            "chooses the slice: give a state to look at (through=), or psi, v_own and v_int."
        )
    return result.counterexample.input


def position(state: Array) -> tuple[float, float]:
    """Return where the intruder of a state (5,) is: x along the own flight path and y to its left, in feet."""
    rho, theta = acas.physical(state).tolist()[:2]
    return rho * math.cos(theta), rho * math.sin(theta)


def window_near(state: Array, at: Slice, claims: Sequence[Claim], around: float | None) -> Window:
    """Return a window around a state: half its width is `around`, or fits the properties' regions there."""
    x, y = position(state)
    if around is None:
        around = FARTHEST
        for claim in claims:
            for case in claim.property.cases:
                corners = [p for line in outline(case) for p in line]
                low, high = np.min(corners, 0), np.max(corners, 0)
                if at.crosses(case) and (low - 1 <= (x, y)).all() and ((x, y) <= high + 1).all():
                    around = min(around, 1.2 * float(np.max([high - (x, y), (x, y) - low])))
        around = min(max(around, 0.6 * math.hypot(x, y), NEAREST), FARTHEST)
    return x - around, x + around, y - around, y + around


def outline(case: Case) -> list[list[tuple[float, float]]]:
    """Return the closed lines (x, y) in feet around a box's positions."""
    low, high = (acas.physical(end).tolist()[:2] for end in case.box.outer)
    (r0, t0), (r1, t1) = (max(low[0], 0.0), low[1]), high
    angles = np.linspace(t0, t1, 361)

    def arc(r: float) -> list[tuple[float, float]]:
        return [(r * math.cos(t), r * math.sin(t)) for t in angles]

    if t1 - t0 > 2 * math.pi - 1e-3:
        return [arc(r) for r in (r0, r1) if r > 1.0]
    inner = arc(r0)[::-1] if r0 > 1.0 else [(0.0, 0.0)]
    return [[*arc(r1), *inner, arc(r1)[0]]]


# What is there -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Maps:
    """Pixels (rows, columns) of a window, from below: advisories of both networks, and where they break a property.

    `region` is that of the properties that one of them breaks here, or of all if none is broken.
    """

    window: Window
    inside: Mask
    advice: tuple[NDArray[np.int64], NDArray[np.int64]]
    broken: tuple[Mask, Mask]
    region: Mask

    @classmethod
    def of(
        cls,
        networks: tuple[Network, Network],
        at: Slice,
        claims: Sequence[Claim],
        window: Window,
        pixels: int,
    ) -> Maps:
        rho, theta, inside = _places(window, pixels)
        states = at.states(rho[inside], theta[inside])
        rows = states.numpy()
        cases = [[(case, _in(case, rows)) for case in claim.property.cases if at.crosses(case)] for claim in claims]
        covered = [np.any([here for _, here in claim], 0) for claim in cases if claim]
        advice, broken, told = [], [], np.zeros(len(states), bool)
        for network in networks:
            scores = network(states)
            wrong = [np.any([here & _unsafe(case, scores) for case, here in claim], 0) for claim in cases if claim]
            advice.append(_spread(scores.argmin(1), inside, -1))
            broken.append(_spread(_any(wrong, len(states)), inside, False))
            told |= _any([here for here, bad in zip(covered, wrong, strict=True) if bad.any()], len(states))
        region = _spread(told if told.any() else _any(covered, len(states)), inside, False)
        return cls(window, inside, (advice[0], advice[1]), (broken[0], broken[1]), region)

    @property
    def places(self) -> tuple[Array, Array, Mask]:
        """Distance and angle of each pixel (rows, columns), and whether the networks know it."""
        return _places(self.window, len(self.inside))

    @property
    def changed(self) -> Mask:
        return np.asarray(self.inside & (self.advice[0] != self.advice[1]))

    @property
    def mended(self) -> Mask:
        return np.asarray(self.broken[0] & ~self.broken[1])

    def words(self, who: int) -> str:
        """Say how much of the properties' regions is broken here."""
        count, broken = int(self.region.sum()), int(self.broken[who].sum())
        if not count:
            return ""
        return f"{percent(broken / count)} of the region violates" if broken else "no violating pixel"


def _places(window: Window, pixels: int) -> tuple[Array, Array, Mask]:
    share = (np.arange(pixels) + 0.5) / pixels
    x = window[0] + (window[1] - window[0]) * share
    y = (window[2] + (window[3] - window[2]) * share)[:, None]
    rho = np.hypot(x, y)
    return rho, np.arctan2(y, x + 0 * y), rho <= acas.MOST[0]


def _spread(values: NDArray[Any], inside: Mask, rest: Any) -> NDArray[Any]:
    out = np.full(inside.shape, rest, values.dtype)
    out[inside] = values
    return out


def _any(masks: Sequence[Mask], size: int) -> Mask:
    return np.asarray(np.any([np.zeros(size, bool), *masks], 0))


def _in(case: Case, states: Array) -> Mask:
    low, high = (end[:2] for end in case.box.outer)
    return np.asarray(((low <= states[:, :2]) & (states[:, :2] <= high)).all(1))


def _unsafe(case: Case, scores: Array) -> Mask:
    found = np.zeros(len(scores), bool)
    for conjunction in case.unsafe:
        here = np.ones(len(scores), bool)
        for row in conjunction:
            value, bound = scores @ np.array([float(c) for c in row.coefficients]), float(row.bound)
            here &= value < bound if row.strict else value <= bound
        found |= here
    return found


def percent(share: float) -> str:
    """Return a share in words, with three digits for people who look for one pixel."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    text = f"{100 * share:.3g} %" if share >= 1e-4 else "under 0.01 %"
    return "over 99.9 %" if text == "100 %" else text
