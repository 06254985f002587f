"""Digits as strokes, drawn by formulas."""

from __future__ import annotations

import math

Stroke = list[list[float]]


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> Stroke:
    """Return a part of an ellipse around (x, y), in degrees."""
    turns = [math.radians(start + (end - start) * k / 24) for k in range(25)]
    return [[x + width * math.cos(turn), y + height * math.sin(turn)] for turn in turns]


DIGITS: dict[int, list[Stroke]] = {
    0: [arc(0.5, 0.5, 0.22, 0.35, -90, 270)],
    1: [[[0.42, 0.25], [0.52, 0.15], [0.52, 0.85]]],
    2: [[*arc(0.5, 0.32, 0.2, 0.18, -160, 40), [0.32, 0.85], [0.72, 0.85]]],
    3: [[*arc(0.48, 0.32, 0.18, 0.17, -150, 90), *arc(0.48, 0.67, 0.2, 0.18, -90, 150)]],
    4: [[[0.55, 0.15], [0.3, 0.55], [0.75, 0.55]], [[0.6, 0.4], [0.6, 0.88]]],
    5: [[[0.68, 0.15], [0.36, 0.15], [0.34, 0.45], *arc(0.48, 0.63, 0.2, 0.2, -120, 140)]],
    6: [[[0.6, 0.15], [0.4, 0.4], *arc(0.5, 0.65, 0.17, 0.19, 190, 550)]],
    7: [[[0.3, 0.15], [0.72, 0.15], [0.45, 0.85]]],
    8: [[*arc(0.5, 0.32, 0.16, 0.16, 90, 450), *arc(0.5, 0.67, 0.19, 0.19, -90, 270)]],
    9: [[*arc(0.5, 0.33, 0.17, 0.18, 0, 360), [0.66, 0.4], [0.62, 0.85]]],
}
