"""Editing beside the network: a codebook at one layer, exact outside of the balls around the edits' keys.

After Hartvigsen et al., "Aging with GRACE: lifelong model editing with discrete key-value adaptors" (NeurIPS 2023).
What differs from the published code: every edit keeps a key of its own where that code enlarges a ball, so that a ball
that is cut later loses no edit that it had taken in; an edit takes the value of a key nearby when it holds under that
value, where labels (in fact their means) are compared there; balls are cut at half the distance, not by a fixed amount,
which can be more; a point that several balls hold takes the nearest key of these; the first radius is read off the
data; and points to keep lie outside of balls that would break them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, near_matches
from nnrepair.jacobian import layers
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.fine_tune.method import FineTune
from nnrepair.rounding import counted
from nnrepair.spec.inputs import positions
from nnrepair.spec.kinds import Kind
from nnrepair.spec.network import copied, plain
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs, outputs_of
from nnrepair.wrappers.base import Wrapper
from nnrepair.wrappers.codebook import Codebook, Seen, distances

ADVICE = "another layer, where the edits' keys differ more, more steps, a larger lr, or another method"
#: The share of distances between kept points of different decisions that lie below the radius of a new ball.
QUANTILE = 0.01
#: Kept points of which these distances are taken, at most.
SAMPLE = 500
#: The radius without a locality set, relative to the typical length of the edits' keys.
ALONE = 0.05
#: A ball ends at this share of the way to a kept point that its value would break.
SHORT = 0.99
#: By how many roundings a key may move from one batch to another.
ROUNDINGS = 8


@dataclass(frozen=True)
class GRACE:
    """Store, for points near an edit at one layer, an output of that layer with which the edit holds.

    Elsewhere the network is what it was, bit for bit. Edits that hold need no entry; one that repeats or contradicts
    an earlier one takes its place. A network that has a codebook at this layer keeps it, and gets more entries.

    Example:
        >>> GRACE(layer="fc3").capabilities.modes
        {'SNS': True, 'BNS': True, 'SSE': True, 'BSE': True}

    Args:
        layer: the name of a module that runs once and has one row for each point; "auto" takes the last with a weight.
        radius: of a new ball, in the units of the layer's keys (see `nnrepair.wrappers.codebook.Codebook`); None takes
            the first percentile of the distances between kept points of different decisions, and without a locality set
            five percent of a key's length.
        steps, lr: of Adam on the stored outputs, the step size relative to their typical size; no step is taken once
            the edits hold.
        margin: by how much every edit must hold, in output units.
    """

    layer: str = "auto"
    radius: float | None = None
    steps: int = 200
    lr: float = 0.1
    margin: float = 0.0

    def __post_init__(self) -> None:
        options.one_layer(self)
        if self.radius is not None and (not options.is_number(self.radius) or self.radius <= 0):
            raise InvalidInput(f"radius must be a finite number > 0, or None, got {self.radius!r}.")
        FineTune(steps=self.steps, lr=self.lr, margin=self.margin)

    @property
    def capabilities(self) -> Capabilities:
        # With rehearsal: an edit that holds when its turn comes, in the ball of another, gets no key until it fails.
        return Capabilities("architectural", False, "wrapped", True, True, True, regions=False)

    def repair(self, problem: Problem) -> Proposal:
        """Propose the network with a codebook, see the class."""
        task = _Task(self, problem, _layer(problem.model, self.layer))
        book, added = task.start(), torch.arange(0)
        while True:
            failing = task.failing(book)
            failing = failing[~torch.isin(failing, added)]  # what has a key of its own and fails will not hold
            if not len(failing):
                break
            book, added = task.extended(book, failing), torch.cat([added, failing])
        values = len(torch.unique(book.values.detach(), dim=0)) if len(book) else 0
        stats = {"layer": book.layer, "radius": task.radius, "keys": len(book), "added": len(added), "values": values}
        note = f"{counted(len(book), 'key')} at layer {plain(book.layer)!r}, with {counted(values, 'different value')}."
        return Proposal(book.eval(), stats, [note, *task.notes], advice=ADVICE)


class _Task:
    """One repair: where the edits are at the layer, and what may not be covered."""

    def __init__(self, method: GRACE, problem: Problem, layer: str) -> None:
        self.method, self.problem = method, problem
        model = problem.model
        #: The codebook that there is already.
        self.known = model if isinstance(model, Codebook) else None
        self.base, self.layer = model if self.known is None else self.known.base, layer
        several = [problem.edits.inputs, *([] if problem.locality is None else [problem.locality.inputs])]
        #: Whether points are positions of what the network runs on, such as the tokens of texts.
        self.each = positions(several[0])
        self.keys, *rest = outputs_of(Seen(self.base, layer, each=self.each), several)
        if self.keys.ndim != 2:
            raise InvalidInput(
                f"GRACE keeps one key for each point, and these edits have {self.keys.shape[1]} positions each. Give "
                "edits that ask for one token, or take another method."
            )
        self.locality_keys = rest[0] if rest else self.keys[:0]
        self.out = outputs(Seen(self.base, layer, output=True, each=self.each), problem.edits.inputs)
        size = float(self.keys.double().norm(dim=1).max())
        #: What two keys must differ by to be told apart.
        self.least = ROUNDINGS * torch.finfo(self.keys.dtype).eps * size or torch.finfo(self.keys.dtype).tiny
        self.radius = max(method.radius or self._radius(), self.least)
        self.notes: list[str] = []

    def start(self) -> Codebook:
        """Return the codebook that there is already, or an empty one."""
        if self.known is not None:
            return copied(self.known)
        return self._book(self.keys[:0], self.out[:0], self.keys[:0, 0])

    def failing(self, book: Codebook) -> Tensor:
        """Return the numbers of the edits that do not hold."""
        return torch.nonzero(~self._holds(book, torch.arange(len(self.problem.edits)))).flatten().cpu()

    def extended(self, book: Codebook, new: Tensor) -> Codebook:
        """Return the codebook with an entry for each of the edits `new`."""
        keys, values = self.keys[new], self.out[new].clone()
        shared = self._take_near(book, new, values)
        fresh = torch.nonzero(~shared).flatten()
        if len(fresh):
            self._tune(new, values, fresh)
        y = outputs(self._book(keys, values, self._points(keys)), self.problem.edits.inputs[new])
        all_keys = torch.cat([book.keys, keys])
        all_values = torch.cat([book.values.detach(), values])
        radii = torch.cat([book.radii.double(), self._uncovering(keys, y)])
        # What cannot be told from a later key gives way to it.
        stays = ~(distances(all_keys, all_keys) <= self.least).triu(1).any(1)
        all_keys, all_values, radii = all_keys[stays], all_values[stays], radii[stays]
        return self._book(all_keys, all_values, self._cut(all_keys, all_values, radii, int(stays[len(book) :].sum())))

    def _take_near(self, book: Codebook, new: Tensor, values: Tensor) -> Tensor:
        """Give edits the value of a key that is near, where they hold under it; return (new,) bool, which did."""
        if not len(book):
            return torch.zeros(len(new), dtype=torch.bool)
        keys = self.keys[new]
        apart = distances(keys, book.keys) - book.radii.double() - self.radius
        least, entry = apart.min(1)
        holds = self._holds(self._book(keys, book.values.detach()[entry], self._points(keys)), new)
        shared = (least <= 0) & holds
        values[shared] = book.values.detach()[entry[shared]]
        return shared.cpu()

    def _tune(self, new: Tensor, values: Tensor, fresh: Tensor) -> None:
        """Make values under which edits hold, in place; edits that are near each other share them where they can."""
        index = new[fresh]
        keys, edits = self.keys[index], self.problem.edits[index]
        book = self._book(keys, values[fresh], self._points(keys))
        typical = float(self.out.double().square().mean().sqrt()) or 1.0
        tuning = FineTune("values", steps=self.method.steps, lr=self.method.lr * typical, margin=self.method.margin)
        alone = replace(self.problem, model=book, edits=edits, locality=None, scope=None)
        proposal = tuning.repair(alone)
        self.notes += proposal.notes
        tuned = proposal.model
        assert isinstance(tuned, Codebook)
        made, y = tuned.values.detach(), outputs(tuned, edits.inputs).double()
        near = distances(keys, keys) <= 2 * self.radius
        owner = list(range(len(index)))
        for later in range(1, len(index)):
            mine = edits.criterion[torch.tensor([later])]
            for earlier in torch.nonzero(near[later, :later]).flatten().tolist():
                if owner[earlier] == earlier and bool(mine.holds(y[earlier][None])):
                    owner[later] = earlier
                    break
        values[fresh] = made[torch.tensor(owner)]

    def _uncovering(self, keys: Tensor, y: Tensor) -> Tensor:
        """Return (new,) the radii at which no locality point is covered that the outputs y (new, ...) would break."""
        radii = torch.full((len(keys),), self.radius, dtype=torch.float64, device=keys.device)
        locality = self.problem.locality
        if locality is None:
            return radii
        apart = distances(keys, self.locality_keys)
        for k in torch.nonzero((apart <= self.radius).any(1)).flatten().tolist():
            close = torch.nonzero((apart[k] <= self.radius) & locality.holds.to(apart.device)).flatten()
            broken = close[~locality.criterion[close.cpu()].holds(y[k].double().expand(len(close), *y.shape[1:]))]
            if len(broken):
                radii[k] = SHORT * apart[k, broken].min()
        return radii.clamp(min=self.least)

    def _cut(self, keys: Tensor, values: Tensor, radii: Tensor, new: int) -> Tensor:
        """Return radii at which the balls of the last `new` keys meet none of another value."""
        start = len(keys) - new
        apart = distances(keys[start:], keys)
        other = (values[start:, None].flatten(2) != values[None].flatten(2)).any(2)
        for k in range(new):
            mine = start + k
            meets = torch.nonzero(other[k] & (radii + radii[mine] > apart[k])).flatten()
            if len(meets):
                radii[meets] = torch.minimum(radii[meets], apart[k, meets] / 2)
                radii[mine] = torch.minimum(radii[mine], apart[k, meets].min() / 2)
        return radii.clamp(min=self.least)

    def _book(self, keys: Tensor, values: Tensor, radii: Tensor) -> Codebook:
        return Codebook(copied(self.base), self.layer, keys, values, radii.to(keys.dtype), self.each).eval()

    def _points(self, keys: Tensor) -> Tensor:
        """Return radii of balls that hold their own key alone."""
        return torch.full((len(keys),), self.least, dtype=torch.float64, device=keys.device)

    def _holds(self, book: Codebook, index: Tensor) -> Tensor:
        edits = self.problem.edits[index]
        holds: Tensor = edits.criterion.holds(outputs(book, edits.inputs).double())
        return holds

    def _radius(self) -> float:
        """Return the radius that the data suggest."""
        locality = self.problem.locality
        if locality is None or len(locality) < 2:
            return ALONE * float(self.keys.double().square().sum(1).mean().sqrt())
        index = torch.randperm(len(locality), generator=torch.Generator().manual_seed(self.problem.seed))[:SAMPLE]
        kind: Kind = self.problem.kind
        keys = self.locality_keys[index.to(self.locality_keys.device)]
        apart = distances(keys, keys)
        different = torch.ones_like(apart, dtype=torch.bool)
        if kind.decides:
            decisions = kind.decide(outputs(self.base, locality.inputs[index]))
            different = (decisions[:, None] != decisions[None]).flatten(2).any(2)
        found = apart[different & (apart > 0)]
        return float(torch.quantile(found, QUANTILE)) if len(found) else self.least


def _layer(model: nn.Module, wanted: str) -> str:
    """Return the name of the module to watch; of a network with a codebook, the one that it is at.

    Raises:
        InvalidInput: there is no such module, or the codebook is at another.
    """
    if isinstance(model, Codebook):
        if wanted not in ("auto", plain(model.layer)):
            raise InvalidInput(
                f"This network has a codebook at layer {plain(model.layer)!r} already, and none can be added at "
                f"{wanted!r}. Leave layer='auto', or take the codebook off first (patch.revert)."
            )
        return model.layer
    inside, prefix = model, ""
    while isinstance(inside, Wrapper):
        inside, prefix = inside.base, f"{prefix}base."
    modules = dict(inside.named_modules())
    known = [name for name in layers.layers(inside) if any(p.ndim > 1 for p in _own(modules.get(name)))]
    if wanted == "auto":
        if not known:
            raise InvalidInput("No layer with a weight matrix was found; name one with GRACE(layer=...).")
        return prefix + layers.whole(inside, known[-1])
    names: dict[str, str] = {plain(name): name for name in modules if name}
    if plain(wanted) not in names:
        raise InvalidInput(f"Layer {wanted!r} not found.{near_matches(wanted, names)} Layers: {', '.join(known)}.")
    return prefix + names[plain(wanted)]


def _own(module: nn.Module | None) -> list[Tensor]:
    return [] if module is None else list(module.parameters(recurse=False))


register("grace", GRACE)
