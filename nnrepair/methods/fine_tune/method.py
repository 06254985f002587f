"""Fine-tuning: gradient descent on the edits, held back by penalties, with rehearsal of what must stay.

The baseline of all editing papers, in one class: plain (as in Mazzia et al.'s survey, 2023), with a bound on each
weight (Zhu et al., 2020), with a divergence on the locality set (Mitchell et al., 2022), with elastic weight
consolidation (Kirkpatrick et al., 2017), with rehearsal, and with interpolation towards the old weights (PAINT:
Ilharco et al., "Patching open-vocabulary models by interpolating weights", 2022, which picks the share by accuracy on
held-out data; here it is the smallest under which the edits hold). See `penalties` for what differs from published
code there.

Where this differs from most of it: whether the edits hold is asked before each step and about the weights that are
returned, so no step is taken that is not needed; published loops judge the outputs from before their last step. The
model stays in eval mode, and what is returned are the first weights under which most edits held, not the last ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.jacobian import layers
from nnrepair.jacobian.fisher import at_least_float
from nnrepair.jacobian.tangents import CUT, gradients
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal
from nnrepair.methods.fine_tune.penalties import Penalty, between
from nnrepair.methods.fine_tune.points import Drawn, Points
from nnrepair.methods.fine_tune.steps import LowRank, Whole
from nnrepair.progress import progress_bar
from nnrepair.rounding import that_hold
from nnrepair.spec.network import copied
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs
from nnrepair.training import Training, ranks

Optimizer = Literal["adam", "sgd", "rmsprop"]
Interpolate = Literal["auto", "none"]
_OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}
#: Steps between the old weights (0) and the new ones (1) at which interpolate="auto" looks for weights that will do.
GRID = 50
#: How often the first such step is halved.
HALVINGS = 10
#: The loss aims this far beyond the margin asked for, relative to the typical one, so that rounding cannot stall it.
BEYOND = 1e-5
ADVICE = "more steps, another lr, more layers, or weaker penalties and less rehearsal"
#: Stands for every larger step size: weights explode all the same, but optimizers refuse what float32 cannot hold.
LARGEST_LR = 1e30


@dataclass(frozen=True)
class FineTune:
    """Gradient descent on the edits until all of them hold, held back by penalties and rehearsal.

    Example:
        >>> from nnrepair.penalties import KL
        >>> FineTune(lr=0.01, penalties=[KL(10.0)], rehearsal=64).capabilities.only_edit_pair
        False

    Args:
        layers: names of layers or parameters, or "all" for every trainable floating-point parameter.
        steps: at most this many; none are taken once all edits hold.
        lr: the optimizer's step size; or one for every chosen parameter, by name.
        optimizer: "adam", "sgd" (no momentum) or "rmsprop".
        penalties: what holds the change back, see `nnrepair.penalties`; several compose.
        rehearsal: this many kept points of the locality set join every step's loss, drawn anew each time.
        interpolate: "auto" returns the smallest step from the old weights towards the tuned ones under which all edits
            still hold (holding is not monotone: the first on a grid, refined by bisection); "none" takes it whole.
        margin: by how much every edit must hold, in output units.
        batch_size: edits per step, and locality points per step for penalties that watch them, of points with many
            numbers (images) fewer; points that depend on each other (the nodes of a graph) always run together.
        rank: each chosen matrix changes by a product of two thin ones with so many columns and rows, and nothing else
            does (LoRA, see `steps.LowRank`); 0 changes weights one by one.

    Raises:
        InvalidInput: hyper-parameters that cannot be, unknown names, or a missing locality set.
    """

    layers: str | Sequence[str] = field(default="all", metadata={"flag": "layer"})
    steps: int = 1000
    lr: float | Mapping[str, float] | tuple[tuple[str, float], ...] = 1e-3
    optimizer: Optimizer = "adam"
    penalties: Sequence[Penalty] = ()
    rehearsal: int = 0
    interpolate: Interpolate = "none"
    margin: float = 0.0
    batch_size: int = 256
    rank: int = 0

    def __post_init__(self) -> None:
        options.one_of(self, optimizer=get_args(Optimizer), interpolate=get_args(Interpolate))
        options.whole(self, "steps", "rehearsal", "rank", least=0)
        options.whole(self, "batch_size")
        if isinstance(self.lr, Mapping):
            object.__setattr__(self, "lr", tuple(self.lr.items()))
        rates: list[Any] = [rate for _, rate in self.lr] if isinstance(self.lr, tuple) else [self.lr]
        if not all(options.is_number(rate) and rate > 0 for rate in rates):
            raise InvalidInput(f"lr must be a finite number > 0, got {self.lr!r}.")
        options.number(self, "margin", zero=True)
        listed = (self.penalties,) if isinstance(self.penalties, Penalty) else self.penalties
        if not isinstance(listed, (list, tuple)):
            raise InvalidInput(f"penalties must be a list of Penalty objects, got {listed!r}.")
        for penalty in listed:
            if not isinstance(penalty, Penalty):
                raise InvalidInput(
                    f"penalties must be Penalty objects such as L2(0.1) or KL(1.0) from nnrepair.penalties, "
                    f"got {penalty!r}."
                )
            if self.rank and penalty.bounds:
                raise InvalidInput(
                    f"{penalty!r} bounds single weights, which rank={self.rank} moves together. Leave one of both out."
                )
        names = tuple(self.layers) if isinstance(self.layers, (list, tuple)) else self.layers
        if not isinstance(names, str) and not all(isinstance(name, str) for name in _listed(names)):
            raise InvalidInput(f"layers must be a name or several names, got {self.layers!r}.")
        object.__setattr__(self, "penalties", tuple(listed))  # so that equal methods are equal, and have a hash
        object.__setattr__(self, "layers", names)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("regularisation", False, "same", not self._uses_locality, True, True)

    @property
    def _uses_locality(self) -> bool:
        return self.rehearsal > 0 or any(penalty.needs_locality for penalty in self.penalties)

    def repair(self, problem: Problem) -> Proposal:
        """Propose fine-tuned weights, see the class."""
        self._check_locality(problem)
        names = layers.tunable(problem.model, self.layers)
        if self.rank:
            sizes = dict(problem.model.named_parameters(remove_duplicate=False))
            names = [name for name in names if sizes[name].ndim > 1]
            if not names:
                raise InvalidInput(f"rank={self.rank} changes matrices, and {self.layers!r} has none: name others.")
        with torch.enable_grad():
            return _Run(self, problem, names).proposal()

    def _check_locality(self, problem: Problem) -> None:
        if problem.locality is not None:
            return
        for penalty in self.penalties:
            if penalty.needs_locality:
                raise InvalidInput(
                    f"{penalty!r} measures change on the locality set, and there is none: give a locality set, or "
                    "choose a penalty without one (L2, LInf, L2Ball)."
                )
        if self.rehearsal:
            raise InvalidInput(
                f"rehearsal={self.rehearsal} takes points of the locality set, and there is none: give one, or leave "
                "rehearsal=0."
            )


class _Run:
    """One repair: a network whose chosen parameters are stepped, and the best weights seen."""

    def __init__(self, method: FineTune, problem: Problem, names: list[str]) -> None:
        self.method, self.problem = method, problem
        self.generator = torch.Generator().manual_seed(problem.seed)
        self.network = copied(problem.model).requires_grad_(False)
        parameters = dict(self.network.named_parameters(remove_duplicate=False))
        self.weights = {name: parameters[name].requires_grad_(True) for name in names}
        self.old = self._snapshot()
        self.place = LowRank(self.weights, method.rank, self.generator) if method.rank else Whole(self.weights)
        optimizer = _OPTIMIZERS[method.optimizer]
        groups = [
            {"params": moved, "lr": min(rate, LARGEST_LR)}
            for moved, rate in zip(self.place.stepped.values(), self._rates(), strict=True)
        ]
        self.optimizer = optimizer(groups)
        self.regularizers = [penalty.start(problem, self.old, self.generator) for penalty in method.penalties]
        watch = any(each.watches for each in self.regularizers)
        self.points = Points(problem, method.batch_size, method.rehearsal, self.generator, watch)
        y = problem.answers.double()
        rounding = 8 * torch.finfo(self.weights[names[0]].dtype).eps * float(y.abs().amax())
        self.aim = method.margin + BEYOND * problem.edits.criterion.typical_slack(y) + rounding
        self.best, self.score, self.steps = self.old, (-1, -1), 0
        self.before = self._count(y)
        self.reached = False
        self.loss, self.notes = math.nan, [note for each in self.regularizers for note in each.notes]

    def _rates(self) -> list[float]:
        """Return the step size of every chosen parameter."""
        lr = self.method.lr
        if isinstance(lr, int | float):
            return [lr] * len(self.weights)
        rates = dict(lr)
        missing = [name for name in self.weights if name not in rates]
        if missing:
            raise InvalidInput(f"lr names no step size for {', '.join(missing)}; it has {', '.join(rates) or 'none'}.")
        return [rates[name] for name in self.weights]

    def proposal(self) -> Proposal:
        done = self._descend()
        self._set(self.best)
        stats: dict[str, Any] = {"layers": list(self.weights), "steps": self.steps, "loss": self.loss}
        if self.method.interpolate == "auto" and self.steps and done:
            stats["alpha"] = self._interpolate()
        elif self.method.interpolate == "auto" and not done:
            self.notes.append("no interpolation: not all edits hold with their margin under the tuned weights.")
        return Proposal(self.network, stats, self.notes, advice=ADVICE)

    def _descend(self) -> bool:
        """Step until every edit holds with its margin; return whether that was reached."""
        with progress_bar("fine-tune", self.problem.progress) as report:

            def say(step: str) -> None:
                report(f"{self.score[0]}/{len(self.problem.edits)} edits hold, loss {self.loss:.3g}")

            trained = Training(self._next_loss, self._step, self.method.steps, report=say).run()
        self.steps = trained.steps
        if trained.stopped:
            self.notes.append(f"{trained.stopped}. A smaller lr may help (now {max(self._rates()):g}).")
        elif self.reached or self._drawn() is None:
            return True
        self._set(self.best)
        self.score = self._count(outputs(self.network, self.problem.edits.inputs))  # alone, as they will be judged
        if self.score < self.before:  # huge outputs are others where points run together
            self.best, self.score = self.old, self.before
        holds, enough = self.score
        if holds < len(self.problem.edits):
            self.notes.append(f"returned the weights under which most edits held: {holds}.")
        elif enough < len(self.problem.edits):
            only = ("" if holds == 1 else "only ") + that_hold(enough, holds, "edit")
            self.notes.append(f"{only} with the margin asked for, {self.method.margin:g}.")
        return False

    def _drawn(self) -> Drawn | None:
        """Return outputs to take a step from, or None where every edit holds with its margin."""
        drawn = self.points.run(self.network)
        all_there = self.points.whole and len(drawn.index) == len(self.problem.edits)
        y = drawn.edits if all_there else outputs(self.network, self.problem.edits.inputs)
        if self._reached(y):
            self.best, self.reached = self._snapshot(), True
            return None
        self._remember(y)
        return drawn

    def _next_loss(self) -> Tensor | None:
        drawn = self._drawn()
        if drawn is None:
            return None
        loss = self._loss(drawn)
        self.loss = float(loss.detach())
        return loss

    def _loss(self, drawn: Drawn) -> Tensor:
        if not drawn.edits.requires_grad:
            raise UnsupportedModel(
                f"The outputs carry no gradient with respect to {list(self.weights)}: {CUT}. Choose other layers."
            )
        index = drawn.index
        # Conditions are computed in float64, as they are judged: in the model's dtype a hinge may be zero too early.
        each = [self.problem.edits.criterion[index].loss(drawn.edits.double(), self.aim) * drawn.counts]
        if drawn.rehearsed is not None:
            assert self.problem.locality is not None
            each.append(self.problem.locality.criterion[drawn.rehearsal].loss(drawn.rehearsed.double()))
        losses = torch.cat(each)
        loss = losses.sum() * drawn.share if self.points.shared else losses.mean()
        watched = None if drawn.watched is None else drawn.watched.double()
        for regularizer in self.regularizers:
            if watched is not None or not regularizer.watches:  # else other processes have these points
                extra = regularizer.loss(self.weights, watched, drawn.watch)
                weight = drawn.watched_share if regularizer.watches else 1.0
                loss = loss if extra is None else loss + weight * extra
        return loss

    def _step(self, loss: Tensor) -> None:
        found = gradients(loss, list(self.weights.values()), again=False)
        given: dict[str, Tensor] = {}
        for (name, weight), gradient in zip(self.weights.items(), found, strict=True):
            given[name] = at_least_float(torch.zeros_like(weight) if gradient is None else gradient)
        ranks.average(list(given.values()))
        for regularizer in self.regularizers:
            given |= regularizer.redirect(given)
        self.place.take(given)
        self.optimizer.step()
        made = self.place.weights()
        for regularizer in self.regularizers:
            regularizer.project(made)
        self._set(made)

    def _reached(self, y: Tensor) -> bool:
        """Whether all edits hold at outputs y, and again when they run alone, as they will be judged (it may round)."""
        return self._enough(y) and self._finite() and self._enough(outputs(self.network, self.problem.edits.inputs))

    def _enough(self, y: Tensor) -> bool:
        return bool(self._held(y)[1].all())

    def _held(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return which edits hold, and which do so with the margin asked for."""
        criterion, y = self.problem.edits.criterion, y.detach().double()
        holds = criterion.holds(y)
        return holds, holds & (criterion.margin(y) >= self.method.margin)

    def _count(self, y: Tensor) -> tuple[int, int]:
        """Return how many edits hold, and how many do so with the margin asked for."""
        holds, enough = self._held(y)
        return int(holds.sum()), int(enough.sum())

    def _remember(self, y: Tensor) -> None:
        score = self._count(y)
        if score > self.score and self._finite():
            self.best, self.score = self._snapshot(), score

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(weight).all()) for weight in self.weights.values())

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.weights[name].copy_(value)

    def _interpolate(self) -> float:
        """Return the share of the way to the best weights at which all edits hold first, and go there."""

        def holds(share: float) -> bool:
            self._set({name: between(self.old[name], new, share) for name, new in self.best.items()})
            return self._enough(outputs(self.network, self.problem.edits.inputs))

        high = next((k / GRID for k in range(1, GRID) if holds(k / GRID)), 1.0)
        low = high - 1 / GRID
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        if high == 1.0:
            self._set(self.best)
        else:
            holds(high)
        return high


def _listed(names: object) -> Sequence[object]:
    return names if isinstance(names, tuple) else [names]
