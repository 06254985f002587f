"""Many different counterexamples at once: what a repair needs, where a checker needs only one."""

from __future__ import annotations

import torch
from torch import Tensor

from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.attack import depth_and_slope, random_starts
from nnrepair.verify.search.jobs import Jobs

#: Of the points found, so many at most become rows: the deepest quarter, the rest far apart.
MOST = 128
#: Points among which those far apart are chosen.
POOL = 4096


def hunt(
    graph: Graph, jobs: Jobs, generator: torch.Generator, reach: float = 0.0, starts: int = 2048, steps: int = 24
) -> tuple[Tensor, Tensor]:
    """Follow gradients into the unsafe sets; return every point on the way that is inside, or nearer than `reach`.

    Args:
        graph: the network.
        jobs: where to look, and for what.
        generator: where random numbers come from.
        reach: how near to an unsafe set counts, in units of its rows.
        starts: how many altogether, at least 256 for each of a few jobs, 16 for each of many.
        steps: of size width / 8 at first, smaller by a constant factor each time.

    Returns:
        The points (n, inputs) and their jobs (n,).
    """
    x, job = random_starts(jobs, generator, max(256 if len(jobs.lower) <= 64 else 16, starts // len(jobs.lower)))
    lower, upper = jobs.lower[job], jobs.upper[job]
    size, found = (upper - lower) / 8, []
    for _ in range(steps):
        depth, slope = depth_and_slope(graph, jobs, x, job)
        inside = (depth >= -reach).nonzero()[:, 0]
        found.append((x[inside], job[inside]))
        x, size = torch.clamp(x + size * slope.sign(), lower, upper), size * 0.85
    points, of = (torch.cat(parts) for parts in zip(*found, strict=True))
    return points, of


def spread(keys: Tensor, depth: Tensor, generator: torch.Generator, most: int = MOST) -> Tensor:
    """Choose points: the deepest ones, and then always the one whose key is farthest from all chosen so far.

    Args:
        keys: (n, width).
        depth: (n,), deeper is worse.
        generator: draws the pool when there are very many.
        most: how many to choose.

    Returns:
        Their indices.
    """
    if len(keys) <= most:
        return torch.arange(len(keys))
    deepest = depth.topk(most // 4).indices
    pool = torch.cat([deepest, torch.randperm(len(keys), generator=generator)[:POOL]])
    near = keys[pool] / keys[pool].abs().amax(0).clamp(min=1e-300)
    chosen = list(range(len(deepest)))
    distance = torch.cdist(near[chosen], near).amin(0)
    while len(chosen) < most:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, torch.cdist(near[chosen[-1:]], near)[0])
    return torch.tensor(sorted(set(pool[chosen].tolist())))
