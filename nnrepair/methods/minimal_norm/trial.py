"""The network with other values of its chosen parameters, tried on what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from nnrepair.jacobian.channels import Channels
from nnrepair.jacobian.linearize import Linearization
from nnrepair.jacobian.positions import Positions
from nnrepair.jacobian.suffix import Suffix, Values
from nnrepair.methods.minimal_norm.demands import Demand
from nnrepair.methods.minimal_norm.relus import Leaky, Sizes, Smooth
from nnrepair.spec.criteria import flat
from nnrepair.spec.inputs import AnyInputs, independent
from nnrepair.spec.running import call_with

#: Kept points keep at least this share of the margin that they are asked to keep.
KEPT_SHARE = 0.1

#: Numbers of points that run together with gradients.
TOGETHER = 4_000_000

#: The conditions of a point that are in play, the worst first, beside those that cost something. All that can be missed
#: are where these are few: a tolerance that is infinite never is.
WATCHED = 15
#: Points whose outputs in play are looked for together, and how many times these must be fewer than all.
FEW, SMALL = 256, 4


@dataclass(frozen=True)
class Look:
    """How a demand fares.

    Attributes:
        worst: (points,) by how much each point misses what it needs, at its worst condition; float64 on the CPU.
        short: bool (points,) which have less than they must: edits all they need, kept points a share of it.
        met: whether none has, or some may.
        moved: the mean change of outputs since the first look.
    """

    worst: Tensor
    short: Tensor
    met: bool
    moved: float


@dataclass(frozen=True)
class InPlay:
    """What is computed of points whose other outputs are left out.

    Attributes:
        conditions: bool (points, conditions).
        outputs: (points, width) int64, those that the conditions are about; filled up with others.
    """

    conditions: Tensor
    outputs: Tensor


class Trial:
    """A network whose chosen parameters vary, in its own dtype. What lies before them runs once per point.

    Args:
        line: the chosen parameters of the suffix, for models in half precision: no descent in two or three digits.
        suffix: of the network; nothing of it is changed.
        demands: what is asked of the suffix, edits first.

    Attributes:
        like: a tensor of the dtype in which descent computes: the model's own, float64 for half precision.
        leak: how much ReLUs let through of what is below zero, in `slack` alone.
        width: how far around zero ReLUs are smooth, in `slack` alone, in units of what each is applied to on average.
    """

    def __init__(self, line: Linearization, suffix: Suffix, demands: Sequence[Demand]) -> None:
        self._line, self._own, self._demands, self.leak = line, suffix.module, demands, 0.0
        self.width, self._sizes = 0.0, list[float]()
        parameters = dict(self._own.named_parameters(remove_duplicate=False))
        self._start = {n: parameters[n].detach().clone() for n in line.names}
        self._coarse = any(torch.finfo(p.dtype).bits < 32 for p in self._start.values())
        self._fine = self._start
        if self._coarse:
            self._fine = {n: p.detach().clone() for n, p in line.parameters.items()}
        self.like = next(iter(self._fine.values()))
        self._together = [_together(d.inputs) for d in demands]
        known = self._own, line.names, demands[0].inputs
        self._some = None if self._coarse else Channels.of(*known) or Positions.of(*known)
        self._in_play: list[InPlay | None] = [None for _ in demands]
        self._watched: list[Tensor] = []
        self._first: list[Tensor] = []

    def slack(self, change: Mapping[str, Tensor], k: int, index: Tensor) -> Tensor:
        """Return (points, conditions) the slack of points `index` of demand k, float64, differentiable.

        Infinity for conditions that are not in play.
        """
        moved = {n: p + change[n] for n, p in self._fine.items()}
        inputs, criterion, play = self._demands[k].inputs[index], self._demands[k].criterion[index], self._in_play[k]
        with self._relus():
            if self._coarse:
                with self._line.in_float64():
                    y = call_with(self._line.model, moved, self._line.prepare(inputs))
            elif play is not None and self._some is not None:
                chosen = play.outputs[index].to(self.like.device)
                some = self._some.outputs(moved, inputs, chosen)
                y = some.new_zeros(len(index), self._some.count).scatter(1, chosen, some)
                y = y.reshape(len(index), *self._some.shape)
            else:
                y = call_with(self._own, moved, inputs)
        slack = criterion.slack(y.double())
        return slack if play is None else torch.where(play.conditions[index].to(y.device), slack, torch.inf)

    def play(self, k: int, active: Tensor, held: Tensor) -> None:
        """Choose which conditions of points `active` of demand k are in play from now on, after a look.

        Where outputs can be computed alone, these are all that can be missed, or the worst of each point, and those
        that are `held` to it, bool (active, conditions); elsewhere, and where that is no small share, all.
        """
        if self._some is None or not self._watched or len(active) == 0:
            return
        conditions = held | self._watched[k][active]
        y, used = torch.zeros(1, self._some.count), list[Tensor]()
        for part in torch.split(torch.arange(len(active)), FEW):
            point, condition = torch.nonzero(conditions[part], as_tuple=True)
            rows = self._demands[k].criterion.rows(active[part][point], condition, y).abs().flatten(1)
            used.append(y.new_zeros(len(part), y.shape[1]).index_add_(0, point, rows.to(y)))
        outputs = torch.cat(used) > 0
        width = max(2, int(outputs.sum(1).max()))
        if SMALL * width > self._some.count:
            self._in_play[k] = None
            return
        play = InPlay(
            torch.zeros(self._demands[k].need.shape, dtype=torch.bool),
            torch.arange(width).repeat(len(self._demands[k]), 1),
        )
        play.conditions[active], play.outputs[active] = conditions, outputs.float().topk(width).indices
        self._in_play[k] = play

    def parts(self, k: int, count: int) -> list[slice]:
        """Return so many points of demand k in parts that run together with gradients."""
        size = self._together[k] if independent(self._demands[k].inputs) else max(1, count)
        return [slice(start, start + size) for start in range(0, count, size)]

    @torch.no_grad()
    def look(self, change: Mapping[str, Tensor]) -> list[Look]:
        """Return how every demand fares, in the model's own dtype."""
        moved = {n: (p.double() + change[n].double()).to(p.dtype) for n, p in self._start.items()}
        found, self._watched = [], []
        for k, demand in enumerate(self._demands):
            worst, short, which, outputs = [], [], [], []
            whole = torch.arange(len(demand))
            for part in [whole[here] for here in self.parts(k, len(demand))]:
                some = demand[part]
                y = call_with(self._own, moved, some.inputs).cpu()
                missed = some.missed(y)
                outputs.append(flat(y))
                allowed = 0.0 if k == 0 else (1 - KEPT_SHARE) * some.need.clamp(min=0)
                worst.append(missed.amax(1))
                short.append((missed > allowed).any(1))
                which.append(self._watch(missed) if self._some is not None else missed[:0] > 0)
            self._watched.append(torch.cat(which))
            self._first += [torch.cat(outputs)] if len(self._first) == k else []
            moved_by = float((torch.cat(outputs) - self._first[k]).norm(dim=1).mean())
            met = demand.soft or not any(map(torch.any, short))
            found.append(Look(torch.cat(worst), torch.cat(short), met, moved_by))
        return found

    def _watch(self, missed: Tensor) -> Tensor:
        """Return bool (points, conditions): what is in play, of (points, conditions) by how much each is missed."""
        assert self._some is not None
        most = min(WATCHED, missed.shape[1])
        worst = torch.zeros_like(missed, dtype=torch.bool).scatter(1, missed.topk(most).indices, True)
        able = torch.isfinite(missed)
        few = SMALL * able.sum(1, keepdim=True) <= self._some.count
        return torch.where(few, able, worst)

    def _relus(self) -> AbstractContextManager[object]:
        """Return in what the network runs so that its ReLUs are what they are to be."""
        if self.leak:
            return Leaky(self.leak)
        if self.width == 0:
            return nullcontext()
        if not self._sizes:
            first = torch.arange(len(self._demands[0]))[self.parts(0, len(self._demands[0]))[0]]
            with torch.no_grad(), Sizes() as sizes:
                call_with(self._own, self._start, self._demands[0].inputs[first])
            self._sizes = sizes.found or [1.0]
        return Smooth(self.width, self._sizes)


def _together(inputs: AnyInputs) -> int:
    """Return how many points run together with gradients, by how many numbers one has."""
    if isinstance(inputs, Values):
        return max(1, min(inputs.batch, TOGETHER // max(1, inputs.size)))
    parts = [inputs] if isinstance(inputs, Tensor) else inputs.tensors()
    most = TOGETHER if isinstance(inputs, Tensor) else min(TOGETHER, inputs.batch)
    return max(1, min(most, TOGETHER // max([1, *(p[0].numel() for p in parts if p.shape[:1] == (len(inputs),))])))
