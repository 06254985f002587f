"""Look for counterexamples by following gradients from random points of the boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from nnrepair.deadline import NEVER, Deadline
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.jobs import Confirm, Jobs, any_confirmed

#: Starts for a job, at least.
LEAST = 16
#: A start is given up with the others once its depth is less than so many times what the next step may win. All later
#: steps together are 5 times as long as the next one.
HOPE = 10.0
#: So many starts go together, at most, with so many numbers and multiplications: well under a second for a step.
TOGETHER, NUMBERS, WORK = 4096, 10_000_000, 200_000_000


def attack(
    graph: Graph,
    jobs: Jobs,
    confirm: Confirm,
    generator: torch.Generator,
    starts: int,
    steps: int = 24,
    deadline: Deadline = NEVER,
) -> bool:
    """Tell whether signed gradient steps reach a counterexample that `confirm` accepts.

    Many violations lie on faces of the box, where uniform starts never are: each input of a start is put on its lower
    or its upper face with probability 1/4 each.

    Args:
        graph: the network.
        jobs: where to look, and for what.
        confirm: called with the deepest points.
        generator: where random numbers come from.
        starts: how many altogether; LEAST for each of some random jobs where that are too few for all.
        steps: of size width / 8 at first, smaller by a constant factor each time.
        deadline: when to give up, with OutOfTime.
    """
    each, chosen = max(LEAST, starts // len(jobs)), torch.arange(len(jobs), device=jobs.lower.device)
    if len(jobs) * each > starts:
        chosen = torch.randperm(len(jobs), generator=generator)[: max(1, starts // each)].to(chosen)
    together = max(1, min(TOGETHER, NUMBERS // (graph.size + jobs.rows[0].numel()), WORK // max(1, graph.work)))
    for part in torch.split(chosen, max(1, together // each)):
        for start in range(0, each, together):
            if _climbed(graph, jobs, part, confirm, generator, min(together, each - start), steps, deadline):
                return True
    return False


def _climbed(
    graph: Graph,
    jobs: Jobs,
    part: Tensor,
    confirm: Confirm,
    generator: torch.Generator,
    each: int,
    steps: int,
    deadline: Deadline,
) -> bool:
    """Do so for some of the jobs, from `each` starts in every box, all at once."""
    jobs = jobs[part]
    x, job = random_starts(jobs, generator, each)
    lower, upper = jobs.lower[job], jobs.upper[job]
    size = (upper - lower) / 8
    for step in range(steps):
        depth, slope = depth_and_slope(graph, jobs, x, job, deadline)
        if step in (4, 10):  # most starts lead nowhere: go on with the deepest quarter
            best = depth.topk(max(16, len(depth) // 4)).indices if len(depth) > 16 else slice(None)
            x, job, lower, upper, size = x[best], job[best], lower[best], upper[best], size[best]
            depth, slope = depth[best], slope[best]
        if any_confirmed(confirm, x, part[job], depth):
            return True
        if bool((depth + HOPE * (size * slope.abs()).sum(1) < 0).all()):
            return False  # the steps that are left lead nowhere, by far
        x = torch.clamp(x + size * slope.sign(), lower, upper)
        size = size * 0.8
    return False


def random_starts(jobs: Jobs, generator: torch.Generator, each: int) -> tuple[Tensor, Tensor]:
    """Return random points (n, inputs), `each` in every box and many on its faces, and their jobs (n,)."""
    job = torch.arange(len(jobs.lower), device=jobs.lower.device).repeat_interleave(each)
    lower, upper = jobs.lower[job], jobs.upper[job]
    drawn = torch.rand(2, *lower.shape, generator=generator, dtype=torch.float64).to(lower.device)
    x = lower + drawn[0] * (upper - lower)
    x = torch.where(drawn[1] < 0.25, lower, torch.where(drawn[1] > 0.75, upper, x))
    x[::each] = (jobs.lower + jobs.upper) / 2
    return x, job


def depth_and_slope(
    graph: Graph, jobs: Jobs, x: Tensor, job: Tensor, deadline: Deadline = NEVER
) -> tuple[Tensor, Tensor]:
    """Return how deep each point's output lies in its unsafe set, and the gradient of that."""
    values = graph.values(x, deadline)
    depth, row = jobs.depth_and_row(values[-1], job)
    return depth, graph.gradient(values, -jobs.rows[job, row], deadline)
