"""Encounter plots: what an ACAS Xu network advises for every position of the intruder, before and after a repair.

Ownship is at the origin and flies to the right; the intruder's heading and both speeds are fixed. The picture of
Julian, Kochenderfer & Owen 2019, "Deep neural network compression for aircraft collision avoidance systems", and of
Katz et al. 2017. Needs the extra `nnrepair[plot]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nnrepair.domains import acas
from nnrepair.domains.acas import proof
from nnrepair.domains.acas.proof import proved
from nnrepair.domains.acas.slice import (
    Claim,
    Maps,
    Mask,
    Network,
    Slice,
    Window,
    known_name,
    outline,
    percent,
    position,
    read_claims,
    read_state,
    telling,
    window_near,
)
from nnrepair.errors import InvalidInput
from nnrepair.plot.style import INK, MOST_CELLS, require_matplotlib
from nnrepair.rounding import percent_at_least

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnrepair.verify import Comparison

#: As in the literature clear of conflict is white, left blue and right green, and strong is dark: the pairs of
#: ColorBrewer's "Paired", which colour-blind readers tell apart too.
COLOURS = ("#FFFFFF", "#A6CEE3", "#B2DF8A", "#1F78B4", "#33A02C")
UNCHANGED, BROKEN, OUTSIDE = "#E4E4E4", "#D7191C", "#FFFFFF"
#: Proved nothing, another advice, the same advice, the same scores: a sequence that reads in grey too.
PROVED = ("#5E5E5E", "#D7191C", "#D9D9D9", "#F4F4F4")
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
    prove: float | None = None,
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
        prove: add a column that shows where the advice is proved to be the same, or another, after so many seconds of
            `nnrepair.verify.compare` on all positions of the slice. Parts proved to a share only are drawn as unknown.

    Returns:
        A figure that pyplot does not know; save it with `savefig`.

    Raises:
        InvalidInput: networks, property or state do not fit, or there is nothing that chooses a slice.
        MissingExtra: matplotlib is not installed.
    """
    if isinstance(pixels, bool) or not isinstance(pixels, int) or not 2 <= pixels <= MOST_CELLS:
        raise InvalidInput(f"pixels must be an integer from 2 to {MOST_CELLS}, got {pixels!r}.")
    if around is not None and not 0 < around <= acas.MOST[0]:
        raise InvalidInput(f"around must be a number of feet > 0 and at most {acas.MOST[0]:g}, got {around}.")
    networks = Network.of(before), Network.of(after)
    claims = read_claims(property)
    state = read_state(through)
    given = (psi, v_own, v_int)
    if state is None and None in given:
        if not claims:
            raise InvalidInput("Give psi, v_own and v_int, or a state to look at (through=), or a property.")
        state = telling(before, networks[0], claims[0].property)
    at = Slice.of(state, given)
    require_matplotlib()
    from matplotlib.figure import Figure

    whole = (-acas.MOST[0], acas.MOST[0], -acas.MOST[0], acas.MOST[0])
    windows = [whole] if state is None else [whole, window_near(state, at, claims, around)]
    columns = 3 if prove is None else 4
    width, height = 3.67 * columns, 3.55 * len(windows) + (1.55 if prove is None else 1.75)
    figure = Figure(figsize=(width, height))
    room = {
        "left": 0.65 / width,
        "right": 1 - 0.15 / width,
        "top": 1 - 0.95 / height,
        "bottom": (height - 3.55 * len(windows) - 0.7) / height,
    }
    axes = figure.subplots(len(windows), columns, squeeze=False, gridspec_kw=room | {"wspace": 0.17, "hspace": 0.2})
    maps = [Maps.of(networks, at, claims, window, pixels) for window in windows]
    for row, here in zip(axes, maps, strict=True):
        _draw_row(row[:3], here, claims, at)
    if prove is not None:
        found = proved(before, after, at, prove)
        for row, here in zip(axes, maps, strict=True):
            _draw_proved(row[3], found, here, claims, at)
    if state is not None:
        for above, below in zip(*axes, strict=True):
            _draw_window(above, windows[1])
            _draw_aircraft(below, position(state), at.psi, BROKEN, windows[1])
    _draw_words(figure, axes, maps, at, claims, name or known_name(before), 0 if prove is None else 4)
    return figure


# Drawing -------------------------------------------------------------------------------------------------------------


def _draw_row(axes: Sequence[Axes], maps: Maps, claims: Sequence[Claim], at: Slice) -> None:
    unchanged = np.where(maps.changed | ~maps.inside, maps.advice[1], len(COLOURS))
    for ax, advice, broken in zip(axes, (*maps.advice, unchanged), (*maps.broken, maps.mended), strict=True):
        _draw_pixels(ax, maps, advice)
        _draw_broken(ax, maps, broken, hatched=ax is not axes[2])
        _draw_frame(ax, maps.window, claims, at)
        _draw_aircraft(ax, (0.0, 0.0), 0.0, INK, maps.window)


def _draw_proved(ax: Axes, found: Comparison, maps: Maps, claims: Sequence[Claim], at: Slice) -> None:
    from matplotlib.colors import ListedColormap

    kinds = proof.pixels(found, at, maps)
    x0, x1, y0, y1 = (v / FOOT for v in maps.window)
    ax.imshow(
        kinds, cmap=ListedColormap([OUTSIDE, *PROVED]), vmin=-0.5, vmax=4.5, extent=(x0, x1, y0, y1), origin="lower",
        interpolation="nearest",
    )  # fmt: skip
    _draw_frame(ax, maps.window, claims, at)
    _draw_aircraft(ax, (0.0, 0.0), 0.0, INK, maps.window)
    inside = int((kinds > 0).sum())
    same, changed = (int(np.isin(kinds, which).sum()) / max(inside, 1) for which in ((3, 4), (2,)))
    _title(ax, "proved", f"{percent_at_least(same, 1)} the same, {percent_at_least(changed, 1)} changed")


def _draw_pixels(ax: Axes, maps: Maps, advice: NDArray[np.int64]) -> None:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([OUTSIDE, *COLOURS, UNCHANGED])
    x0, x1, y0, y1 = (v / FOOT for v in maps.window)
    ax.imshow(
        advice, cmap=colours, vmin=-1.5, vmax=5.5, extent=(x0, x1, y0, y1), origin="lower", interpolation="nearest"
    )


def _draw_broken(ax: Axes, maps: Maps, broken: Mask, hatched: bool) -> None:
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


def _draw_frame(ax: Axes, window: Window, claims: Sequence[Claim], at: Slice) -> None:
    from matplotlib.patches import Circle
    from matplotlib.ticker import MaxNLocator

    ax.add_patch(Circle((0, 0), acas.MOST[0] / FOOT, fill=False, edgecolor="#999999", linewidth=0.6))
    for claim in claims:
        for case in claim.property.cases:
            for line in outline(case) if at.crosses(case) else ():
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
    figure: Figure, axes: Any, maps: Sequence[Maps], at: Slice, claims: Sequence[Claim], name: str, proofs: int
) -> None:
    for row, here in zip(axes, maps, strict=True):
        hidden = not here.broken[0].any() and any(other.broken[0].any() for other in maps)  # smaller than a pixel
        _title(row[0], "before", "" if hidden else here.words(0))
        _title(row[1], "after", "" if hidden else here.words(1))
        changed = int(here.changed.sum())
        _title(row[2], "what changed", f"{percent(changed / max(int(here.inside.sum()), 1))} of the pixels")
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
        handles=_key(maps, claims, at, proofs), loc="lower center", bbox_to_anchor=(0.5, 0.06 / height),
        ncols=7 if proofs else 9, frameon=False,
        fontsize="small", handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip


def _title(ax: Axes, title: str, detail: str) -> None:
    ax.set_title(f"{title}: {detail}" if detail else title, fontsize="medium", color=INK)


def _key(maps: Sequence[Maps], claims: Sequence[Claim], at: Slice, proofs: int) -> list[Any]:
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
    said = ("not proved", "proved changed", "proved the same advice", "proved the same scores")[:proofs]
    key += [Patch(facecolor=c, edgecolor="#999999", linewidth=0.6, label=t) for c, t in zip(PROVED, said, strict=False)]
    return key
