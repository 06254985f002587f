"""What a repair does to a network beyond what is proved: advisories kept, regret, counterexamples nobody was told of.

All functions take networks as functions from states (n, 5) in float32 to scores (n, 5) in float64, so that the repair
can measure with torch and the audit with onnxruntime. The smallest score is the advice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnrepair.domains import acas
from nnrepair.properties.hunt import hunt
from nnrepair.verify import vnnlib
from nnrepair.verify.reading.graph import Graph
from nnrepair.verify.search.jobs import Jobs

Run = Callable[[Tensor], Tensor]

#: The repair's own points are drawn with seed 0.
SEED = 1
#: States drawn inside a property's box, and as many around it.
LOCAL = 100_000
#: A neighbourhood with fewer states outside the repaired boxes than this is not measured.
FEWEST = 1000
#: Held-out violated points that are kept; how many starts the attack has that looks for them; how many of the deepest
#: points it then looks around, in boxes that are narrower by this factor.
MOST, STARTS, DEEPEST, NARROWER = 2000, 8192, 64, 20
#: A box that fills more of the domain than this leaves no outside.
WHOLE = 0.9


@dataclass(frozen=True)
class Region:
    """A property: where it applies, and what is unsafe there."""

    number: int

    @cached_property
    def jobs(self) -> Jobs:
        """Its boxes and unsafe sets in float64."""
        return Jobs.of(vnnlib.load(acas.property_file(self.number)))

    @property
    def is_whole(self) -> bool:
        """Whether one of its boxes is (nearly) all of the domain."""
        low, high = torch.tensor(acas.DOMAIN, dtype=torch.float64).T
        common = torch.minimum(self.jobs.upper, high) - torch.maximum(self.jobs.lower, low)
        return bool(((common.clamp(min=0) / (high - low)).prod(1) > WHOLE).any())

    def inside(self, x: Tensor, job: int) -> Tensor:
        """Tell which states lie in the box of a job."""
        return ((x >= self.jobs.lower[job]) & (x <= self.jobs.upper[job])).all(1)

    def within(self, x: Tensor) -> Tensor:
        """Tell which states lie in any of its boxes."""
        return torch.stack([self.inside(x, job) for job in range(len(self.jobs.lower))]).any(0)

    def unsafe(self, x: Tensor, y: Tensor) -> Tensor:
        """Tell at which states the scores y violate it."""
        found = torch.zeros(len(x), dtype=torch.bool)
        for job in range(len(self.jobs.lower)):
            found |= self.inside(x, job) & (self.jobs.depth(y, torch.full((len(x),), job)) >= 0)
        return found

    def drawn(self, count: int, scale: float, generator: torch.Generator) -> Tensor:
        """Return uniform states, float32, of its boxes; of what lies in the domain, if they are inflated."""
        boxes = torch.unique(torch.stack([self.jobs.lower, self.jobs.upper], 1), dim=0)
        low, high = torch.tensor(acas.DOMAIN, dtype=torch.float64).T
        parts = []
        for lower, upper in boxes:
            if scale != 1:
                middle, half = (lower + upper) / 2, scale * (upper - lower) / 2
                lower, upper = torch.maximum(middle - half, low), torch.minimum(middle + half, high)
            u = torch.rand(count // len(boxes), len(lower), generator=generator, dtype=torch.float64)
            x = lower + (upper - lower) * u
            parts.append(inward(x, lower.expand_as(x), upper.expand_as(x)))
        return torch.cat(parts)


def inward(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Round states to float32 without leaving their boxes."""
    low, high = (end.numpy().astype(np.float32) for end in (lower, upper))
    low = np.where(low < lower.numpy(), np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(high > upper.numpy(), np.nextafter(high, np.float32(-np.inf)), high)
    return torch.from_numpy(np.clip(x.numpy().astype(np.float32), low, high))


def violations(graph: Graph, before: Run, region: Region) -> tuple[Tensor, int]:
    """Attack a network; return violated states (at most MOST of them) and how many different ones were found.

    Many violated sets are small: after the whole boxes, those around the deepest points are attacked, too.
    """
    generator, jobs = torch.Generator().manual_seed(SEED), region.jobs
    points, job = hunt(graph, jobs, generator, reach=torch.inf, starts=STARTS)
    deepest = jobs.depth(graph(points), job).topk(DEEPEST * 8).indices[::8]
    centre, of = points[deepest], job[deepest]
    width = (jobs.upper - jobs.lower)[of] / NARROWER
    low, high = torch.maximum(jobs.lower[of], centre - width), torch.minimum(jobs.upper[of], centre + width)
    near, box = hunt(graph, Jobs(low, high, jobs.rows[of], jobs.offset[of], jobs.real[of]), generator, reach=torch.inf)
    points, job = torch.cat([points, near]), torch.cat([job, of[box]])
    x = inward(points, jobs.lower[job], jobs.upper[job])
    x = torch.unique(x[region.unsafe(x, before(x))], dim=0)
    chosen = torch.randperm(len(x), generator=generator)[:MOST].sort().values
    return x[chosen], len(x)


def outside(x: Tensor, y: Tensor, repaired: Sequence[Region]) -> Tensor:
    """Tell which states no repaired property is about; for one about the whole domain, where it was not violated."""
    free = torch.ones(len(x), dtype=torch.bool)
    for region in repaired:
        free &= ~(region.unsafe(x, y) if region.is_whole else region.within(x))
    return free


def over(repaired: Sequence[Region]) -> str:
    """Say in words what `outside` leaves."""
    boxes = [f"phi_{r.number}" for r in repaired if not r.is_whole]
    states = [f"phi_{r.number}" for r in repaired if r.is_whole]
    said = [f"outside the boxes of {', '.join(boxes)}"] if boxes else []
    said += [f"outside the states where the original violates {', '.join(states)}"] if states else []
    return " and ".join(said)


def whole_domain(before: Run, after: Run, repaired: Sequence[Region], count: int) -> dict[str, Any]:
    """Compare advisories on uniform states that no repaired property is about, and say what changed ones cost."""
    x = acas.states(count, seed=SEED)
    old, new = before(x), after(x)
    free = outside(x, old, repaired)
    old, new = old[free], new[free].argmin(1)
    loss = (old.gather(1, new[:, None])[:, 0] - old.amin(1))[new != old.argmin(1)]
    return {
        "agreement": {"states": count, "over": over(repaired), "compared": len(new), "same": len(new) - len(loss)},
        "regret": {"changed": len(loss)}
        | ({"mean": float(loss.mean()), "max": float(loss.max())} if len(loss) else {"mean": None, "max": None}),
    }


def nearby(before: Run, after: Run, region: Region, repaired: Sequence[Region]) -> dict[str, Any]:
    """Compare advisories inside a property's boxes where the original was safe, and around them (inflated 3 times)."""
    generator = torch.Generator().manual_seed(SEED)
    x = region.drawn(LOCAL, 1, generator)
    old = before(x)
    safe = ~torch.stack([each.unsafe(x, old) for each in repaired]).any(0)
    around = region.drawn(LOCAL, 3, generator)
    near = before(around)
    free = outside(around, near, repaired) & ~region.within(around)
    few = int(free.sum()) < FEWEST
    return {
        "region": _same(old[safe], after(x)[safe]),
        "neighbourhood": None if few else _same(near[free], after(around)[free]),
    }


def _same(old: Tensor, new: Tensor) -> dict[str, int]:
    return {"compared": len(old), "same": int((old.argmin(1) == new.argmin(1)).sum())}
