"""Encounter plots: what an ACAS Xu network advises for every position of the intruder, before and after a repair.

Ownship is at the origin and flies to the right; the intruder's heading and both speeds are fixed. The picture of
Julian, Kochenderfer & Owen 2019, "Deep neural network compression for aircraft collision avoidance systems", and of
Katz et al. 2017. Needs the extra `nnrepair[plot]`.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair.domains import acas
from nnrepair.errors import InvalidInput
from nnrepair.plot import INK, MOST_CELLS, require_matplotlib
from nnrepair.verify import CheckResult, Counterexample, check, vnnlib
from nnrepair.verify.falsify import random_starts
from nnrepair.verify.jobs import Jobs
from nnrepair.verify.property import Case, Property

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Window = tuple[float, float, float, float]
Mask = NDArray[np.bool_]
#: As in the literature clear of conflict is white, left blue and right green, and strong is dark: the pairs of
#: ColorBrewer's "Paired", which colour-blind readers tell apart too.
COLOURS = ("#FFFFFF", "#A6CEE3", "#B2DF8A", "#1F78B4", "#33A02C")
UNCHANGED, BROKEN, OUTSIDE = "#E4E4E4", "#D7191C", "#FFFFFF"
#: How far the second row looks around the marked state: at least, at most, in feet.
NEAREST, FARTHEST = 500.0, 8000.0
#: States drawn to find a slice that shows violations, slices compared, and positions on each: distances and angles.
DRAWN, SLICES, RINGS, RAYS = 200_000, 64, 24, 96
FOOT = 1000.0  # the axes are in thousands of feet


def encounter(
    before: nn.Module | str | Path,
    after: nn.Module | str | Path,
    *,
    property: Any = (),
    through: Any = None,
    psi: float | None = None,
    v_own: float | None = None,
    v_int: float | None = None,
    around: float | None = None,
    name: str | None = None,
    pixels: int = 400,
) -> Figure:
    """Draw the advisories of two networks side by side, and where they differ.

    One row shows all positions up to 60 760 ft. A second one looks closely around a state. Each pixel is what the
    networks return at its middle: a picture, no proof.

    Example:
        >>> from nnrepair.domains import acas, acas_plot
        >>> before, phi_8 = acas.network(2, 9), acas.property_file(8)  # doctest: +SKIP
        >>> figure = acas_plot.encounter(before, result.model, property=phi_8)  # doctest: +SKIP
        >>> figure.savefig("encounter.png")  # doctest: +SKIP

    Args:
        before, after: ONNX files, or modules that map (n, 5) or (n, 1, 1, 5) to (n, 5).
        property: a `Property`, a VNN-LIB file, or a list of these: their regions are outlined where they cross the
            slice, and where a network breaks them is red.
        through: a state (5 numbers as the networks read them), a `Counterexample` or a `CheckResult`: the second row is
            around it, and it says the heading and the speeds. None looks for a slice on which `before` breaks much of
            the first property.
        psi: the intruder's heading in radians, counter-clockwise from the own heading; replaces that of `through`.
        v_own, v_int: own speed and the intruder's, in ft/s, likewise.
        around: half the width of what the second row shows, in ft; None: as far as the property's region goes around
            the state and at least 0.6 of its distance, between 500 and 8000 ft.
        name: of the network, for the title; known for files.
        pixels: on each side of a panel.

    Returns:
        A figure that pyplot does not know; save it with `savefig`.

    Raises:
        InvalidInput: networks, property or state do not fit, or there is nothing that chooses a slice.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if isinstance(pixels, bool) or not isinstance(pixels, int) or not 2 <= pixels <= MOST_CELLS:
        raise InvalidInput(f"pixels must be an integer from 2 to {MOST_CELLS}, got {pixels!r}.")
    if around is not None and not 0 < around <= acas.MOST[0]:
        raise InvalidInput(f"around must be a number of feet > 0 and at most {acas.MOST[0]:g}, got {around}.")
    networks = _Network.of(before), _Network.of(after)
    claims = _claims(property)
    state = _state(through)
    given = (psi, v_own, v_int)
    if state is None and None in given:
        if not claims:
            raise InvalidInput("Give psi, v_own and v_int, or a state to look at (through=), or a property.")
        state = _telling(before, networks[0], claims[0].property)
    at = _Slice.of(state, given)
    require_matplotlib()
    from matplotlib.figure import Figure

    whole = (-acas.MOST[0], acas.MOST[0], -acas.MOST[0], acas.MOST[0])
    windows = [whole] if state is None else [whole, _near(state, at, claims, around)]
    width, height = 11.0, 3.55 * len(windows) + 1.55
    figure = Figure(figsize=(width, height))
    room = {"left": 0.65 / width, "right": 1 - 0.15 / width, "top": 1 - 0.95 / height, "bottom": 0.85 / height}
    axes = figure.subplots(len(windows), 3, squeeze=False, gridspec_kw=room | {"wspace": 0.17, "hspace": 0.2})
    maps = [_Maps.of(networks, at, claims, window, pixels) for window in windows]
    for row, here in zip(axes, maps, strict=True):
        _draw_row(row, here, claims, at)
    if state is not None:
        for above, below in zip(*axes, strict=True):
            _draw_window(above, windows[1])
            _draw_aircraft(below, _position(state), at.psi, BROKEN, windows[1])
    _draw_words(figure, axes, maps, at, claims, name or _known(before))
    return figure


# What to show --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Claim:
    property: Property
    name: str


@dataclass(frozen=True)
class _Network:
    """A network on states (n, 5), in batches."""

    model: nn.Module
    shape: tuple[int, ...]

    @classmethod
    def of(cls, given: nn.Module | str | Path) -> _Network:
        if isinstance(given, nn.Module):
            model = copy.deepcopy(given).eval()
        elif isinstance(given, str | Path):
            from nnrepair import onnx

            model = onnx.load(given).eval()
        else:
            raise InvalidInput(f"A network is a torch.nn.Module or an ONNX file, got {type(given).__name__}.")
        known = getattr(model, "item_shape", None)
        network = cls(model, tuple(known) if known is not None and None not in known else (5,))
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
class _Slice:
    """Heading and speeds, in radians and ft/s."""

    psi: float
    v_own: float
    v_int: float

    @classmethod
    def of(cls, state: Array | None, given: Sequence[float | None]) -> _Slice:
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


def _claims(given: Any) -> list[_Claim]:
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
        claims.append(_Claim(claim, rf"$\varphi_{{{number[1]}}}$" if number else stem or "the property"))
    return claims


def _known(model: nn.Module | str | Path) -> str:
    pair = None if isinstance(model, nn.Module) else re.search(r"run2a_(\d)_(\d)", Path(model).name)
    return rf"$N_{{{pair[1]},{pair[2]}}}$" if pair else "the network"


def _state(given: Any) -> Array | None:
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


def _telling(model: Any, network: _Network, claim: Property) -> Array:
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


def _position(state: Array) -> tuple[float, float]:
    rho, theta = acas.physical(state).tolist()[:2]
    return rho * math.cos(theta), rho * math.sin(theta)


def _near(state: Array, at: _Slice, claims: Sequence[_Claim], around: float | None) -> Window:
    """Return the window of the second row, in feet."""
    x, y = _position(state)
    if around is None:
        around = FARTHEST
        for claim in claims:
            for case in claim.property.cases:
                corners = [p for line in _outline(case) for p in line]
                low, high = np.min(corners, 0), np.max(corners, 0)
                if at.crosses(case) and (low - 1 <= (x, y)).all() and ((x, y) <= high + 1).all():
                    around = min(around, 1.2 * float(np.max([high - (x, y), (x, y) - low])))
        around = min(max(around, 0.6 * math.hypot(x, y), NEAREST), FARTHEST)
    return x - around, x + around, y - around, y + around


def _outline(case: Case) -> list[list[tuple[float, float]]]:
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
class _Maps:
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
        networks: tuple[_Network, _Network],
        at: _Slice,
        claims: Sequence[_Claim],
        window: Window,
        pixels: int,
    ) -> _Maps:
        share = (np.arange(pixels) + 0.5) / pixels
        x = window[0] + (window[1] - window[0]) * share
        y = (window[2] + (window[3] - window[2]) * share)[:, None]
        rho, theta = np.hypot(x, y), np.arctan2(y, x + 0 * y)
        inside = rho <= acas.MOST[0]
        states = at.states(rho[inside], theta[inside])
        rows, advice, broken = states.numpy(), [], []
        cases = [[(case, _in(case, rows)) for case in claim.property.cases if at.crosses(case)] for claim in claims]
        covered, told = np.zeros(len(states), bool), np.zeros(len(states), bool)
        for network in networks:
            scores = network(states)
            wrong = np.zeros(len(states), bool)
            for claim in cases:
                unsafe = [here & _unsafe(case, scores) for case, here in claim]
                for (_, here), bad in zip(claim, unsafe, strict=True):
                    wrong |= bad
                    covered |= here
                    told |= here & any(each.any() for each in unsafe)
            advice.append(_spread(scores.argmin(1), inside, -1))
            broken.append(_spread(wrong, inside, False))
        region = _spread(told if told.any() else covered, inside, False)
        return cls(window, inside, (advice[0], advice[1]), (broken[0], broken[1]), region)

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
        return f"{_percent(broken / count)} of the region violates" if broken else "no violating pixel"


def _spread(values: NDArray[Any], inside: Mask, rest: Any) -> NDArray[Any]:
    out = np.full(inside.shape, rest, values.dtype)
    out[inside] = values
    return out


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


# Drawing -------------------------------------------------------------------------------------------------------------


def _draw_row(axes: Sequence[Axes], maps: _Maps, claims: Sequence[_Claim], at: _Slice) -> None:
    unchanged = np.where(maps.changed | ~maps.inside, maps.advice[1], len(COLOURS))
    for ax, advice, broken in zip(axes, (*maps.advice, unchanged), (*maps.broken, maps.mended), strict=True):
        _draw_pixels(ax, maps, advice)
        _draw_broken(ax, maps, broken, hatched=ax is not axes[2])
        _draw_frame(ax, maps.window, claims, at)
        _draw_aircraft(ax, (0.0, 0.0), 0.0, INK, maps.window)


def _draw_pixels(ax: Axes, maps: _Maps, advice: NDArray[np.int64]) -> None:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([OUTSIDE, *COLOURS, UNCHANGED])
    x0, x1, y0, y1 = (v / FOOT for v in maps.window)
    ax.imshow(
        advice, cmap=colours, vmin=-1.5, vmax=5.5, extent=(x0, x1, y0, y1), origin="lower", interpolation="nearest"
    )


def _draw_broken(ax: Axes, maps: _Maps, broken: Mask, hatched: bool) -> None:
    if not broken.any():
        return
    share = (np.arange(len(broken)) + 0.5) / len(broken)
    x, y = (np.concatenate([[-1], share, [2]]) * (b - a) + a for a, b in (maps.window[:2], maps.window[2:]))
    framed = np.pad(broken, 1).astype(float)  # so that every outline is closed
    if hatched:
        drawn = ax.contourf(x / FOOT, y / FOOT, framed, levels=[0.5, 1.5], colors="none", hatches=["/////"])
        drawn.set_edgecolor(BROKEN)
        drawn.set_linewidth(0)
    ax.contour(x / FOOT, y / FOOT, framed, levels=[0.5], colors=BROKEN, linewidths=1.4)


def _draw_frame(ax: Axes, window: Window, claims: Sequence[_Claim], at: _Slice) -> None:
    from matplotlib.patches import Circle
    from matplotlib.ticker import MaxNLocator

    ax.add_patch(Circle((0, 0), acas.MOST[0] / FOOT, fill=False, edgecolor="#999999", linewidth=0.6))
    for claim in claims:
        for case in claim.property.cases:
            for line in _outline(case) if at.crosses(case) else ():
                x, y = np.array(line).T / FOOT
                ax.plot(x, y, color=INK, linewidth=1.0, linestyle=(0, (4, 2)), scalex=False, scaley=False)
    ax.set_xlim(window[0] / FOOT, window[1] / FOOT)
    ax.set_ylim(window[2] / FOOT, window[3] / FOOT)
    ax.set_aspect("equal")
    ax.tick_params(labelsize="small")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    for side in ax.spines.values():
        side.set_color("#999999")


def _draw_aircraft(ax: Axes, place: tuple[float, float], heading: float, colour: str, window: Window) -> None:
    from matplotlib.markers import MarkerStyle
    from matplotlib.path import Path as Shape
    from matplotlib.transforms import Affine2D

    if not (window[0] <= place[0] <= window[1] and window[2] <= place[1] <= window[3]):
        return
    half = [
        (10, 0),
        (8.5, 0.9),
        (3, 1),
        (-1.5, 9),
        (-3.5, 9),
        (-1, 1),
        (-6.5, 0.8),
        (-8.5, 3.6),
        (-9.8, 3.6),
        (-8.8, 0),
    ]
    shape = Shape([*half, *((x, -y) for x, y in half[-2::-1])])
    marker = MarkerStyle(shape, transform=Affine2D().rotate(heading))
    ax.plot(
        *(v / FOOT for v in place), marker=marker, markersize=16, color=colour, markeredgecolor="white",
        markeredgewidth=0.8, zorder=6, scalex=False, scaley=False,
    )  # fmt: skip


def _draw_window(ax: Axes, window: Window) -> None:
    from matplotlib.patches import Rectangle

    x, y, side = window[0] / FOOT, window[2] / FOOT, (window[1] - window[0]) / FOOT
    ax.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=BROKEN, linewidth=1.0, zorder=7))


def _draw_words(
    figure: Figure, axes: Any, maps: Sequence[_Maps], at: _Slice, claims: Sequence[_Claim], name: str
) -> None:
    for row, here in zip(axes, maps, strict=True):
        hidden = not here.broken[0].any() and any(other.broken[0].any() for other in maps)  # smaller than a pixel
        _title(row[0], "before", "" if hidden else here.words(0))
        _title(row[1], "after", "" if hidden else here.words(1))
        changed = int(here.changed.sum())
        _title(row[2], "what changed", f"{_percent(changed / max(int(here.inside.sum()), 1))} of the pixels")
        row[0].set_ylabel("crossrange (kft)", fontsize="small")
    for ax in axes[-1]:
        ax.set_xlabel("downrange (kft)", fontsize="small")
    about = ", ".join(claim.name for claim in claims)
    height = figure.get_figheight()
    title = f"ACAS Xu {name} before and after the repair{f' of {about}' if about else ''}"
    figure.text(0.5, 1 - 0.14 / height, title, ha="center", va="top", fontsize="x-large", color=INK)
    where = f"intruder's heading {math.degrees(at.psi) + 0.0:.1f}° from the own heading (shown flying right), "
    where += f"own speed {at.v_own:,.0f} ft/s, intruder's speed {at.v_int:,.0f} ft/s"
    where = where.replace("-", "−")
    figure.text(0.5, 1 - 0.46 / height, where, ha="center", va="top", fontsize="medium", color="#555555")
    figure.legend(
        handles=_key(maps, claims, at), loc="lower center", bbox_to_anchor=(0.5, 0.06 / height), ncols=9, frameon=False,
        fontsize="small", handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip


def _title(ax: Axes, title: str, detail: str) -> None:
    ax.set_title(f"{title}: {detail}" if detail else title, fontsize="medium", color=INK)


def _key(maps: Sequence[_Maps], claims: Sequence[_Claim], at: _Slice) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    key: list[Any] = [
        Patch(facecolor=colour, edgecolor="#999999", linewidth=0.6, label=advice)
        for colour, advice in zip(COLOURS, acas.ADVISORIES, strict=True)
    ]
    key.append(Patch(facecolor=UNCHANGED, edgecolor="#999999", linewidth=0.6, label="unchanged"))
    if any(here.broken[who].any() for here in maps for who in (0, 1)):
        key.append(Patch(facecolor="none", edgecolor=BROKEN, hatch="/////", label="violates"))
    if any(here.mended.any() for here in maps):
        key.append(Line2D([], [], color=BROKEN, linewidth=1.4, label="no longer violates"))
    if any(at.crosses(case) for claim in claims for case in claim.property.cases):
        key.append(Line2D([], [], color=INK, linewidth=1.0, linestyle=(0, (4, 2)), label="region"))
    return key


def _percent(share: float) -> str:
    """With three digits, for people who look for one pixel."""
    return "0 %" if not share else f"{100 * share:.3g} %" if share >= 1e-4 else "under 0.01 %"
