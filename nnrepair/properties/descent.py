"""A first guess for all layers at once, where the last one cannot tell a region from the rest of the domain.

Stochastic gradient descent on what is asked for, each in units of the network's typical slack: the property on points
of its boxes, the locality set, points all around the boxes, and outputs that stay near what they were. Nothing is
promised of the answer; the linear program over its last layer makes it exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnrepair.spec.criteria import Criterion
from nnrepair.spec.kinds import kind_of
from nnrepair.spec.network import copied
from nnrepair.training import Descent, Training
from nnrepair.verify.search.jobs import Jobs

#: Weights in the loss, guessed: of a point around the boxes, and of a unit of drift; a point of the locality set has 1.
AROUND, DRIFT = 0.2, 0.01
#: How far around: multiples of the box's widths.
SCALES = (3, 10, 30, 100)


@dataclass(frozen=True)
class Wanted:
    """Points at which a property must hold: x (n, inputs) and the job of each, with the slack to reach."""

    jobs: Jobs
    x: Tensor
    job: Tensor
    margin: float


def descend(
    model: nn.Module,
    shape: tuple[int, ...],
    wanted: Sequence[Wanted],
    inputs: Tensor,
    criterion: Criterion,
    generator: torch.Generator,
    *,
    steps: int = 500,
    rate: float = 1e-4,
    batch: int = 2048,
    say: Callable[[str], None] = lambda text: None,
) -> nn.Module:
    """Return a copy of the model, all its trainable weights moved (Adam, one cycle of the learning rate).

    Args:
        model: maps (n, *shape) to (n, outputs).
        wanted: the properties.
        inputs: (points, inputs), the locality set, and `criterion`, which it satisfies.
        generator: where random numbers come from.
        steps, rate, batch: of Adam; points of the locality set per step, at most.
        say: told how far it is.
    """
    twin = copied(model).eval()
    like = next(twin.parameters())

    def run(x: Tensor) -> Tensor:
        y: Tensor = twin(x.to(like).reshape(-1, *shape))
        return y

    with torch.no_grad():
        before = run(inputs)
        typical = max(criterion.typical_slack(before.double()), 1e-9)
        near = _around(wanted, inputs, generator)
        answers = run(near)
        decided = kind_of(criterion).unchanged(answers, typical)
        goal = (criterion.slack(before.double()) / typical).clamp(max=1.0) / 2
    batch = min(batch, len(inputs))
    sizes = [len(part.x) for part in wanted]
    asked = torch.cat([inputs[:0], *(part.x for part in wanted)])
    optimizer = torch.optim.Adam([p for p in twin.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)

    def missed(criterion: Criterion, index: Tensor, y: Tensor, goal: Tensor | float) -> Tensor:
        return (goal - criterion[index].slack(y) / typical).clamp(min=0).amax(1).mean()

    def loss() -> Tensor:
        i = torch.randint(len(inputs), (batch,), generator=generator)
        j = torch.randint(len(near), (max(1, batch // 4),), generator=generator)
        points = torch.cat([inputs[i], near[j], asked])  # together: many small passes cost more than a large one
        y, around, *parts = torch.split(run(points), [batch, len(j), *sizes])
        total: Tensor = missed(criterion, i, y, goal[i]) + DRIFT * ((y - before[i]).abs().mean() / typical)
        total = total + AROUND * missed(decided, j, around, 0.1)
        for part, found in zip(wanted, parts, strict=True):
            depth = part.jobs.depth(found.double(), part.job)
            total = total + 0.3 * ((part.margin + depth) / typical).clamp(min=0).mean()
        return total

    Training(loss, Descent(optimizer, schedule), steps, model=twin, report=say).run()
    return twin


def _around(wanted: Sequence[Wanted], inputs: Tensor, generator: torch.Generator, each: int = 5000) -> Tensor:
    """Return points (n, inputs) around the boxes, on several scales, inside the range of the locality set."""
    low, high = inputs.amin(0), inputs.amax(0)
    found = [inputs[:1]]
    for part in wanted:
        for lower, upper in torch.unique(torch.stack([part.jobs.lower, part.jobs.upper], 1), dim=0):
            for scale in SCALES:
                drawn = torch.rand(each, len(lower), generator=generator, dtype=torch.float64) - 0.5
                x = torch.clamp((lower + upper) / 2 + scale * (upper - lower) * drawn, low, high)
                found.append(x[~((x >= lower) & (x <= upper)).all(1)])
    return torch.cat(found)
