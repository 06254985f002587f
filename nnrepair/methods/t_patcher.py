"""One unit beside a layer for each mistake: silent where other points are, active where the mistake was.

After Huang et al., "Transformer-Patcher: one mistake worth one neuron" (ICLR 2023). A unit adds its value to what a
layer returns, as far as a point's query activates its key. What differs from the published code: any layer of any
network may have units, not only the last feed-forward layer of a transformer; a unit's activity at its own query is
held at 1, where there a loss keeps it active, so that its key (which points hear it?) and its value (what do they
hear?) are found one after the other; the key begins in the direction that tells the mistake best from other points,
C^-1 q with C the second moment of their queries, not with the query q itself; one loss, the logarithm of the mean of
exponentials, takes the place of the two that silence it, and counts the loudest points most, as taking these alone does
there; training ends as soon as nothing that is remembered hears the unit and the edit holds; and an edit that holds
already gets no unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.jacobian.layers import modules
from nnrepair.jacobian.tangents import gradients
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.fine_tune.method import FineTune
from nnrepair.rounding import counted
from nnrepair.spec.edits import Edits
from nnrepair.spec.inputs import independent
from nnrepair.spec.network import copied, plain
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import call_with, outputs, outputs_of
from nnrepair.wrappers.codebook import Seen
from nnrepair.wrappers.parallel import Parallel, Queries, without_units

#: Relative ridge on the second moment of queries.
RIDGE = 1e-3
#: Iterations of L-BFGS between looks at the loss, how many looks there are at most, and by how much the loss must have
#: fallen for another.
ITERATIONS, LOOKS, LOWER = 10, 20, 1e-3
#: The weight of the mean square of a unit's activity at other points, which keeps planes from being too steep.
SPREAD = 0.01
#: Outputs aim this far beyond the margin asked for, relative to the typical one.
BEYOND = 0.05
#: How often edits that units of later ones broke get another, at most.
ROUNDS = 2
ADVICE = "more steps, another layer, less silence, or another method"


@dataclass(frozen=True)
class TPatcher:
    """Train one unit beside a layer for each edit that does not hold, which stays silent at other points.

    A network that has such units at this layer keeps them, and gets more. Remembered are the locality set and the other
    edits, also past ones where they are rehearsed.

    Example:
        >>> TPatcher(layer="fc3").capabilities.modes
        {'SNS': True, 'BNS': True, 'SSE': True, 'BSE': True}

    Args:
        layer: the name of a module that runs once and has one row for each point; "auto" takes the last with a weight.
        silence: how far below its threshold a unit is to be at what is remembered; at its own edit it is 1 above.
        most: remembered points, at most, drawn at random.
        steps, lr: of Adam on a unit's value, the step size relative to the typical output of the layer.
        margin: by how much every edit must hold, in output units.

    Raises:
        InvalidInput: hyper-parameters that cannot be, or layers that are not there.
    """

    layer: str = "auto"
    silence: float = 0.5
    most: int = 40_000
    steps: int = 300
    lr: float = 0.1
    margin: float = 0.0

    def __post_init__(self) -> None:
        options.one_layer(self)
        options.whole(self, "most")
        options.number(self, "silence", zero=True, below=1e6)
        FineTune(steps=self.steps, lr=self.lr, margin=self.margin)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("architectural", False, "wrapped", False, True, True, regions=False)

    def repair(self, problem: Problem) -> Proposal:
        """Propose the network with a unit for each edit that did not hold when its turn came."""
        task, added = _Task(self, problem), 0
        for _ in range(ROUNDS):
            for edit in task.failing():
                if edit in task.failing([edit]):  # nor by the units of others
                    task.add(edit)
                    added += 1
        network = task.network
        notes = [f"{counted(len(network), 'unit')} beside layer {plain(network.layer)!r}."]
        if problem.locality is None:
            notes.append("no locality set: units are silent at other edits alone, as far as is known.")
        if task.heard:
            units, are = counted(added, "new unit"), "is" if task.heard == 1 else "are"
            notes.append(f"{task.heard} of {units} {are} active at points that should not hear them.")
        stats = {"layer": plain(network.layer), "units": len(network), "added": added, "heard": task.heard}
        return Proposal(network.eval(), stats, notes, advice=ADVICE)


class _Task:
    """One repair: the network with its units so far, and the queries."""

    def __init__(self, method: TPatcher, problem: Problem) -> None:
        self.method, self.problem, self.heard = method, problem, 0
        self.network = started(problem.model, method.layer, problem)
        base, layer = self.network.base, self.network.layer
        several = [problem.edits.inputs]
        if problem.locality is not None:
            several.append(problem.locality.inputs[self._drawn(len(problem.locality))])
        seen = outputs_of(Queries(base, layer), several)
        #: (edits, features), of several positions the mean; and (points * positions, features) of the locality set.
        self.queries = seen[0].reshape(len(seen[0]), -1, seen[0].shape[-1]).mean(1)
        self.remembered = seen[-1].flatten(0, -2) if len(seen) > 1 else self.queries[:0]
        values = outputs(Seen(base, layer, output=True), problem.edits.inputs)
        self.typical = float(values.double().square().mean().sqrt()) or 1.0
        y = problem.answers.double()
        rounding = 8 * torch.finfo(problem.answers.dtype).eps * float(y.abs().amax())
        self.aim = method.margin + BEYOND * problem.edits.criterion.typical_slack(y) + rounding

    def failing(self, among: Sequence[int] | None = None) -> list[int]:
        """Return the edits that do not hold now with the margin asked for."""
        index = list(range(len(self.problem.edits))) if among is None else list(among)
        some = self.problem.edits[index]
        y = outputs(self.network, some.inputs).double()
        good = (some.criterion.holds(y) & (some.criterion.margin(y) >= self.method.margin)).tolist()
        return [edit for edit, holds in zip(index, good, strict=True) if not holds]

    def add(self, edit: int) -> None:
        """Train one unit more, for an edit that does not hold."""
        network, query = self.network, self.queries[edit]
        others = self.queries[torch.arange(len(self.queries)) != edit]
        key, silent = silenced(query, [self.remembered, others], self.method.silence)
        self.heard += not silent
        keys, biases = torch.cat([network.keys, key[None]]), torch.cat([network.biases, 1 - key[None] @ query])
        nothing = network.values.new_zeros(1, network.values.shape[1])
        grown = Parallel(network.base, network.layer, keys, biases, torch.cat([network.values, nothing])).eval()
        missed = set(self.failing()) - {edit}
        together = [k for k in range(len(self.problem.edits)) if k not in missed]  # those that hold may hear it, too
        value = self._value(grown, nothing, self.problem.edits[together])
        with torch.no_grad():
            grown.values[-1:] = value
        self.network = grown

    def _value(self, grown: Parallel, nothing: Tensor, some: Edits) -> Tensor:
        """Return the value (1, width) of the last unit with which some edits hold, or the last one tried."""
        value = nothing.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([value], lr=self.method.lr * self.typical)
        held = grown.values[:-1].detach()
        with torch.enable_grad():
            for _ in range(self.method.steps):
                y = call_with(grown, {"values": torch.cat([held, value])}, some.inputs).double()
                missed = ~(some.criterion.holds(y.detach()) & (some.criterion.margin(y.detach()) >= self.aim))
                if not bool(missed.any()):
                    break
                (gradient,) = gradients(some.criterion.loss(y, self.aim)[missed].sum(), [value], again=False)
                value.grad = torch.zeros_like(value) if gradient is None else gradient.nan_to_num()
                optimizer.step()
        return value.detach()

    def _drawn(self, points: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.problem.seed)
        return torch.randperm(points, generator=generator)[: self.method.most].sort().values


def started(model: nn.Module, wanted: str, problem: Problem) -> Parallel:
    """Return a copy of a network with the units that it has beside a layer, or with none yet.

    Raises:
        InvalidInput: there is no such layer, or it has units beside another.
    """
    if isinstance(model, Parallel):
        if wanted not in ("auto", plain(model.layer)):
            raise InvalidInput(
                f"This network has units beside layer {plain(model.layer)!r} already, and none can be added beside "
                f"{wanted!r}. Leave layer='auto', or take the units off first (patch.revert)."
            )
        return copied(model)
    inputs = problem.edits.inputs
    few = inputs[torch.arange(1)] if independent(inputs) else inputs
    return without_units(copied(model), modules(model, wanted)[0], few)


def silenced(query: Tensor, others: Sequence[Tensor], silence: float) -> tuple[Tensor, bool]:
    """Return a key k (features,) with which k (x - query) + 1 <= -silence at others x, and whether it is so at all.

    Args:
        query: (features,).
        others: several sets (n, features), each of which counts alike, however many it has.
        silence: >= 0.
    """
    given = [x.double().nan_to_num() for x in others if len(x)]
    query = query.nan_to_num()
    if not given:
        return query / (query.square().sum() or 1.0), True
    apart = [x - query.double() for x in given]
    key = _direction(query.double(), torch.cat(given)).requires_grad_(True)
    optimizer = torch.optim.LBFGS([key], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        told = [x @ key for x in apart]
        total = torch.stack([t.logsumexp(0) - math.log(len(t)) + SPREAD * t.square().mean() for t in told]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    before = math.inf
    for _ in range(LOOKS):
        with torch.enable_grad():
            now = float(torch.as_tensor(optimizer.step(loss)).detach())  # type: ignore[no-untyped-call]
        if not now < before - LOWER:
            break
        before = now
    found = key.detach().nan_to_num()
    loudest = max(float((x @ found).max()) for x in apart)
    if loudest < 0:  # there is a plane between: as steep as it must be
        found = found * ((1 + silence) / -loudest)
    return found.to(query), loudest < 0


def _direction(query: Tensor, others: Tensor) -> Tensor:
    """Return the key that is 1 at a query and least at others (n, features), in the mean square."""
    moment = others.T @ others / len(others)
    moment.diagonal().add_(RIDGE * (float(moment.trace()) / len(moment) or 1.0))
    direction: Tensor = torch.linalg.solve(moment, query)
    size = float(query @ direction)
    return direction / size if size > 0 else direction


register("t-patcher", TPatcher)
