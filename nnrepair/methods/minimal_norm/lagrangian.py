"""The smallest change of any parameters at which the true network does what is asked, by an augmented Lagrangian.

min |x|^2 / 2 subject to missed(x) <= 0 (Nocedal & Wright, Numerical Optimization, chapter 17): each round minimises
|x|^2 / 2 + sum max(multiplier + penalty * missed, 0)^2 / (2 penalty) over the edits and those locality points that were
found broken, by L-BFGS; then the multipliers take over what is missed, and the penalty grows where that did not help.
L-BFGS gets past the kinks of piecewise linear networks, at which successive linearisations stall, and needs no gradient
of a single condition, only of their sum. Where ReLUs are smooth, it is one whose steps need not end where slopes are
small (`descent`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from nnrepair.jacobian.tangents import gradients
from nnrepair.methods.minimal_norm.coordinates import Coordinates
from nnrepair.methods.minimal_norm.demands import Demand
from nnrepair.methods.minimal_norm.descent import descend
from nnrepair.methods.minimal_norm.trial import Look, Trial
from nnrepair.solver.rows import Array

#: The first penalty, in units of what makes missing a typical edit cost as much as repairing it.
PENALTY = 10.0
#: By how much the penalty grows where the worst miss did not fall to this share of what it was.
GROWTH, ENOUGH = 4.0, 0.3
#: Steps of L-BFGS in a round, and how many of them it remembers.
STEPS, MEMORY = 200, 10
#: At which relative decrease the first rounds stop, and all further ones. To L-BFGS a value below one is one, and its
#: first step is as long as one: it sees large values, and steps in units of what the first slope promises.
DECREASES, LARGE = (1e-3, 1e-3, 1e-4), 1e6
#: Steps of a round in which ReLUs are smooth.
SMOOTH_STEPS = 400
#: How much smaller steps become at which a round stops once one got stuck, down to which share; and how far from a kink
#: the next one begins, as a share of the change.
FINER, FINEST, ASIDE = 0.1, 1e-5, 1e-2
#: Locality points that join in a round, the worst first; and which share of what edits need a point must miss to join
#: although it has what it must have.
JOINING, SLIGHT = 500, 1e-2
#: How many gradients are kept of those computed last, and how near a round's end they count, relative to the change.
NEAR, CLOSE = 12, 1e-2
#: How much a sum of weights other than one costs, in the length of the longest vector.
SURE = 1e3
#: Edits whose gradients tell the penalty's unit.
SAMPLED = 8


@dataclass
class Lagrangian:
    """A change, with what each condition of the points in use costs.

    Attributes:
        trial: the network at other weights.
        demands: what is asked for, edits first.
        coordinates: of changes.
        x: (n,) the change's coordinates.
        active: for each demand, which points are in use.
        multipliers: for each demand, (active, conditions), >= 0.
        penalty: of what is missed.
        check: called before every evaluation; raises when there is no time left.
        evaluations: of the network on the points in use.
        rounds: how many there were.
        finer: by what the relative decrease of a step at which a round stops is multiplied.
        near: where the Lagrangian was computed last, with its gradient there.
    """

    trial: Trial
    demands: Sequence[Demand]
    coordinates: Coordinates
    x: Array
    active: list[Tensor]
    multipliers: list[Tensor]
    penalty: float
    check: Callable[[], None]
    evaluations: int = 0
    rounds: int = 0
    finer: float = 1.0
    near: deque[tuple[Array, Array]] = field(default_factory=lambda: deque(maxlen=NEAR))

    @classmethod
    def of_edits(
        cls, trial: Trial, demands: Sequence[Demand], coordinates: Coordinates, x: Array, check: Callable[[], None]
    ) -> Lagrangian | None:
        """Return the Lagrangian of edits and neighbours alone, or None where no edit that fails has a gradient."""
        active = [torch.arange(0 if d.name == "locality" else len(d)) for d in demands]
        multipliers = [torch.zeros_like(d.need[a]) for d, a in zip(demands, active, strict=True)]
        for k, mine in enumerate(active):
            trial.play(k, mine, multipliers[k] > 0)
        found = cls(trial, demands, coordinates, x, active, multipliers, 1.0, check)
        unit = found._unit()
        return None if unit is None else replace(found, penalty=PENALTY * unit)

    @property
    def change(self) -> dict[str, Tensor]:
        """The change by parameter name."""
        return self.coordinates.change(self._tensor(self.x))

    @property
    def in_use(self) -> int:
        """The number of points in use."""
        return sum(map(len, self.active))

    def minimise(self) -> None:
        """Move x to where the Lagrangian is least, as far as a round goes."""
        if self.trial.width > 0:
            self.x, self.rounds = _numpy(descend(self._slope, self._tensor(self.x), SMOOTH_STEPS)), self.rounds + 1
            return
        from scipy.optimize import minimize  # half a second to load, which only hidden layers need

        decrease = DECREASES[min(self.rounds, len(DECREASES) - 1)] * self.finer
        options = {"maxcor": MEMORY, "maxiter": STEPS, "maxfun": 2 * STEPS, "ftol": decrease, "gtol": 0.0}
        self.near.clear()
        value, slope = self._at(self.x)
        length = abs(value) / float(np.linalg.norm(slope)) if slope.any() and value else 1.0
        unit, known = LARGE / abs(value) if value else 1.0, [(value, slope)]

        def large(x: Array) -> tuple[float, Array]:
            value, slope = known.pop() if known else self._at(length * x)  # what it asks for first is where it starts
            return min(unit * value, 1e300), unit * length * slope

        self.x = length * minimize(large, self.x / length, jac=True, method="L-BFGS-B", options=options).x
        self.rounds += 1

    def noted(self) -> Lagrangian:
        """Return this, with its gradient here alone noted, for `optimality`."""
        self.near.clear()
        self._at(self.x)
        return self

    def loosened(self, stuck: bool) -> None:
        """Where descent got stuck at a kink, step aside, and let further rounds end at smaller steps."""
        self.finer = max(FINER * self.finer, FINEST) if stuck else 1.0
        if stuck:
            aside = np.random.default_rng(self.rounds).normal(size=len(self.x))
            self.x = self.x + ASIDE * float(np.linalg.norm(self.x) / np.linalg.norm(aside)) * aside

    def optimality(self, missed: Sequence[Tensor]) -> dict[str, float]:
        """Return how far a round's end is from satisfying the conditions of Karush, Kuhn and Tucker.

        Both are relative to the change, and zero where they are satisfied: `stationarity`, the length over |x| of the
        gradient of |x|^2 / 2 + sum multiplier * missed, with the multipliers that the round leads to; and
        `complementarity`, the sum of |multiplier * missed|, over |x|^2. Descent ends at kinks of the network, where it
        is not one gradient that must vanish but a mean of those around: the shortest one of the last gradients within
        `CLOSE` of x is taken (Lewis & Overton, Nonsmooth optimization via quasi-Newton methods, 2013).

        Args:
            missed: by how much conditions of the points in use are missed, from `missed`.
        """
        size = float(np.linalg.norm(self.x)) or 1.0
        owed = 0.0
        for k, (old, miss) in enumerate(zip(self.multipliers, missed, strict=True)):
            new = (old + self.penalty * miss).clamp(min=0)
            new = new.clamp(max=self._cap()) if self.demands[k].soft else new
            owed += float((new * miss)[new > 0].abs().sum())
        close = [slope for x, slope in self.near if float(np.linalg.norm(x - self.x)) <= CLOSE * size]
        return {
            "stationarity": shortest(np.stack(close)) / size if close else np.inf,
            "complementarity": owed / size**2,
        }

    def missed(self) -> list[Tensor]:
        """Return, for each demand, (active, conditions) by how much the points in use miss what they need."""
        change = self.change
        with torch.no_grad():
            pairs = enumerate(zip(self.demands, self.active, strict=True))
            return [d.need[a] - self.trial.slack(change, k, a).cpu() if len(a) else d.need[a] for k, (d, a) in pairs]

    def charge(self, missed: Sequence[Tensor]) -> None:
        """Let the multipliers take over what is missed."""
        for k, (old, miss) in enumerate(zip(self.multipliers, missed, strict=True)):
            new = (old + self.penalty * miss.nan_to_num(neginf=-torch.inf)).clamp(min=0)
            self.multipliers[k] = new.clamp(max=self._cap()) if self.demands[k].soft else new

    def join(self, looks: Sequence[Look]) -> list[Tensor]:
        """Take up points that are broken and not in use, the worst first; return which, for each demand."""
        enough = SLIGHT * float(self.demands[0].need.max())
        joined = []
        for k, look in enumerate(looks):
            broken = torch.nonzero(look.short | (look.worst > enough)).flatten()
            broken = broken[~torch.isin(broken, self.active[k])]
            broken = broken[torch.argsort(-look.worst[broken])][:JOINING]
            self.active[k] = torch.cat([self.active[k], broken])
            self.multipliers[k] = torch.cat([self.multipliers[k], torch.zeros_like(self.demands[k].need[broken])])
            joined.append(broken)
            self.trial.play(k, self.active[k], self.multipliers[k] > 0)
        return joined

    def turned(self, coordinates: Coordinates, change: Mapping[str, Tensor] | None = None) -> Lagrangian:
        """Return the Lagrangian of a change (of this one) in other coordinates, with prices in the unit of its size."""
        x = _numpy(coordinates.coordinates(self.change if change is None else change))
        unit = float(x @ x) / float(self.x @ self.x) if self.x.any() else 1.0
        multipliers = [unit * m for m in self.multipliers]
        return replace(
            self,
            coordinates=coordinates,
            x=x,
            active=list(self.active),
            multipliers=multipliers,
            penalty=unit * self.penalty,
        )

    def _at(self, x: Array) -> tuple[float, Array]:
        """Return the Lagrangian and its gradient, and take note of it."""
        total, slope = self._priced(self._tensor(x))
        if not np.isfinite(total):
            return 1e300, np.zeros_like(x)  # the line search turns back
        found = _numpy(slope) + x
        self.near.append((x.copy(), found))
        return total + float(x @ x) / 2, found

    def _slope(self, x: Tensor) -> tuple[float, Tensor]:
        """Return the Lagrangian and its gradient in the dtype of the coordinates."""
        total, slope = self._priced(x)
        return total + float(x.double().square().sum()) / 2, slope + x

    def _priced(self, x: Tensor) -> tuple[float, Tensor]:
        """Return what everything missed costs, and its gradient."""
        self.check()
        self.evaluations += 1
        free = x.detach().requires_grad_(True)
        with torch.enable_grad():
            change = self.coordinates.change(free)
        leaves = {name: part.detach().requires_grad_(True) for name, part in change.items()}
        total, slopes = 0.0, [torch.zeros_like(part) for part in leaves.values()]
        for k, active in enumerate(self.active):
            for here in self.trial.parts(k, len(active)):
                with torch.enable_grad():
                    slack = self.trial.slack(leaves, k, active[here])
                    missed = self.demands[k].need[active[here]].to(slack.device) - slack
                    value = self._charged(k, missed, self.multipliers[k][here].to(missed.device)).sum()
                total += float(value.detach())
                for slope, more in zip(slopes, gradients(value, list(leaves.values()), again=False), strict=True):
                    if more is not None:
                        slope += more
        (slope,) = torch.autograd.grad(list(change.values()), free, slopes)
        return total, slope

    def _charged(self, k: int, missed: Tensor, multipliers: Tensor) -> Tensor:
        """Return (points, conditions) what missing costs; linear beyond the cap where a demand is soft."""
        owed = (multipliers + self.penalty * missed).clamp(min=0)
        cost = owed.square() / 2
        if self.demands[k].soft:
            cap = self._cap()
            cost = torch.where(owed <= cap, cost, cap * owed - cap**2 / 2)
        return (cost - multipliers.square() / 2) / self.penalty

    def _cap(self) -> float:
        """Return the price of missing a soft condition: the largest multiplier of an edit."""
        return max(float(self.multipliers[0].max()), self.penalty * float(self.demands[0].need.max()))

    def _unit(self) -> float | None:
        """Return the typical inverse square of an edit's gradient; None where no failing edit has one."""
        none, found = [a[:0] for a in self.active], list[float]()
        for k in sorted(set(torch.linspace(0, len(self.active[0]) - 1, SAMPLED).long().tolist())):
            chosen = slice(k, k + 1)
            one = [self.active[0][chosen], *none[1:]], [self.multipliers[0][chosen], *self.multipliers[1:]]
            alone = replace(self, active=one[0], multipliers=one[1])
            missed = alone.missed()[0].clamp(min=0)
            slope = alone._at(self.x)[1] - self.x
            if missed.any() and slope.any():
                found.append(float(missed.square().sum()) / float(slope @ slope))
        return float(np.median(found)) if found else None

    def _tensor(self, x: Array) -> Tensor:
        return torch.from_numpy(x).to(self.trial.like)


def shortest(vectors: Array) -> float:
    """Return the length of the shortest weighted mean of vectors (k, n), whose weights are >= 0 and sum to one.

    >>> round(shortest(np.array([[3.0, 1.0], [-1.0, 1.0]])), 6)
    1.0
    """
    from scipy.optimize import nnls

    products = vectors @ vectors.T
    scale = float(np.abs(products).max()) or 1.0
    values, basis = np.linalg.eigh(products / scale)
    root = np.sqrt(values.clip(0))[:, None] * basis.T  # has the products of the vectors, in k dimensions
    weights, _ = nnls(np.vstack([root, np.full(len(root), SURE)]), np.append(np.zeros(len(root)), SURE))
    weights /= weights.sum()
    return float(np.linalg.norm(weights @ vectors))


def _numpy(x: Tensor) -> Array:
    return np.asarray(x.detach().to("cpu", torch.float64).numpy())
