"""Edit a network by adding the output of a small MLP, whose input is each point's own features alone.

After Liu et al., "Editable graph neural network for node classifications" (EGNN, 2023, arXiv 2305.15529), with the
rehearsal of training nodes of Zhong et al., "GNNs also deserve editing, and they need it more than once" (SEED-GNN,
ICML 2024), some of them near the edits; their rehearsal of past edits is `fix(mode="successive", rehearsal=True)`. An
edit of a graph network reaches all neighbours through the weights that they share. Here the network is frozen, and the
MLP that is edited uses no neighbours. Nothing of this is about graphs, so it works wherever points have features of
their own.

What differs from SEED-GNN's published code: nodes are drawn anew at every step, not once for an edit, and the share of
near ones holds on average; nodes and positions in the list of training nodes are not mixed up; and a node counts as
near where few edges lead to it, in as few steps as give enough nodes to draw from, at most 4, as there. Where points
are no nodes of a graph, those are near whose own features are most like an edit's.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.fine_tune.method import FineTune
from nnrepair.methods.fine_tune.penalties import KL, Penalty
from nnrepair.rounding import counted
from nnrepair.spec.criteria import flat
from nnrepair.spec.edits import Edits, Locality, LocalitySet
from nnrepair.spec.inputs import AnyInputs, own
from nnrepair.spec.network import copied
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs_of
from nnrepair.spec.streams import Stream
from nnrepair.wrappers.stitched import OwnMLP, Stitched

#: Features are scaled to this root mean square before the MLP sees them: edits lose more elsewhere with larger ones,
#: and take more steps with smaller ones (measured on Cora).
SIZE = 0.2


#: Along how many edges nodes are looked for that are near the edits.
HOPS = 4
#: Points that are compared with the edits together.
CHUNK = 4096
ADVICE = "more steps, a larger lr, a smaller kl, less rehearsal, more hidden units, or another method"


@dataclass(frozen=True)
class EGNN:
    """Add to what the network says, which stays as it is, what a small MLP makes of each point's own features.

    The base runs once on the edits and the locality set; what follows costs the same for every base and for every
    number of edges. A network that was stitched before keeps its one MLP, which is edited further.

    Example:
        >>> EGNN(rehearsal=0).capabilities.returns
        'wrapped'

    Args:
        hidden: units per hidden layer of the MLP.
        depth: linear layers of the MLP; 1 is an affine map of the features.
        steps: at most this many; none are taken once all edits hold.
        lr: Adam's step size.
        rehearsal: this many kept points of the locality set join every step's loss, drawn anew each time.
        near: which share of the rehearsed points is to be near the edits.
        kl: the weight of `penalties.KL`, which holds outputs on the locality set where they are. Without a locality set
            there is nothing to rehearse or to compare with, and little but `penalties` keeps other decisions.
        penalties: what else holds the MLP's change back, see `nnrepair.penalties`.
        margin: by how much every edit must hold, in output units; at least a few roundings.
        batch_size: edits per step, and locality points per step for penalties that watch them.
    """

    hidden: int = 32
    depth: int = 2
    steps: int = 1000
    lr: float = 1e-3
    rehearsal: int = 100
    near: float = 0.0
    kl: float = 10.0
    penalties: Sequence[Penalty] = ()
    margin: float = 0.0
    batch_size: int = 256

    def __post_init__(self) -> None:
        options.whole(self, "hidden", "depth")
        if not options.is_number(self.near) or not 0 <= self.near < 1:
            raise InvalidInput(f"near is a share of the rehearsed points, from 0 to less than 1, got {self.near!r}.")
        KL(self.kl)
        object.__setattr__(self, "penalties", self._tuning(False).penalties)  # a tuple, so that methods have a hash

    def _tuning(self, locality: bool) -> FineTune:
        """Return what tunes the MLP, with a locality set or without."""
        plain = FineTune(
            steps=self.steps,
            lr=self.lr,
            rehearsal=self.rehearsal,
            penalties=self.penalties,
            margin=self.margin,
            batch_size=self.batch_size,
        )
        if not locality:
            return replace(plain, rehearsal=0)
        return replace(plain, penalties=(KL(self.kl), *plain.penalties)) if self.kl else plain

    @property
    def capabilities(self) -> Capabilities:
        only_edits = self._tuning(True).capabilities.only_edit_pair
        return Capabilities("architectural", False, "wrapped", only_edits, True, True, regions=False)

    def repair(self, problem: Problem) -> Proposal:
        """Propose a stitched network, see the class."""
        model, tuning, notes = problem.model, self._tuning(problem.locality is not None), list[str]()
        if problem.locality is None and (self.rehearsal or self.kl):
            notes.append("no locality set: little keeps other decisions as they are.")
        base = model.base if isinstance(model, Stitched) else model
        like = next(p for p in base.parameters() if p.dtype.is_floating_point)
        locality = None if tuning.capabilities.only_edit_pair else problem.locality
        if locality is not None and isinstance(locality.inputs, Stream):
            notes.append(
                f"held the own features of all {counted(len(locality), 'point')} of the locality set in memory."
            )
        several = [problem.edits.inputs, *([] if locality is None else [locality.inputs])]
        seen = [_Seen(own(inputs).to(like), y) for inputs, y in zip(several, outputs_of(base, several), strict=True)]
        edits, known = seen[0], seen[-1]
        if locality is not None and self.rehearsal and self.near:
            often = self._often(problem.edits.inputs, locality, edits, known)
            locality, known = locality[often], known[often]
        if isinstance(model, Stitched):
            mlp = copy.deepcopy(model.mlp).requires_grad_(True)
        else:
            mlp = self._new(known, problem.seed).to(like)
        surrogate = replace(
            problem,
            model=_Tuned(mlp, edits.y.shape[1:]),
            edits=Edits(edits.rows, problem.edits.criterion),
            locality=None
            if locality is None
            else replace(locality, points=LocalitySet(known.rows, locality.points.criterion)),
            scope=None,
        )
        # The MLP may round otherwise among other points, and an edit that holds here is to hold there too.
        rounding = 16 * torch.finfo(like.dtype).eps * float(edits.y.abs().amax())
        proposal = replace(tuning, margin=max(self.margin, rounding)).repair(surrogate)
        assert isinstance(proposal.model, _Tuned)
        stitched = Stitched(copied(base), proposal.model.mlp.requires_grad_(True)).eval()
        return Proposal(stitched, proposal.stats, notes + proposal.notes, advice=ADVICE)

    def _often(self, edits: AnyInputs, locality: Locality, mine: _Seen, known: _Seen) -> Tensor:
        """Return the points to keep, by number, those near the edits so often that they are their share of all."""
        enough = max(1, round(self.near * self.rehearsal))
        away: Tensor | None = None
        if not isinstance(edits, Tensor) and not isinstance(locality.inputs, Tensor):
            away = edits.hops(locality.inputs, HOPS)
        if away is None:
            away = torch.cat([torch.cdist(part, mine.own).amin(1) for part in torch.split(known.own, CHUNK)])
        else:
            away = torch.where(away > HOPS, torch.inf, away.double())
        away = torch.where(locality.holds.to(away.device), away.double(), torch.inf)
        there = away[away.isfinite()]
        near = away <= there.sort().values[:enough][-1] if len(there) else away < 0
        others = int((locality.holds.to(near.device) & ~near).sum())
        times = max(1, round(self.near / (1 - self.near) * others / max(1, int(near.sum()))))
        every = torch.arange(len(locality), device=near.device)
        return torch.cat([every, every[near].repeat(times - 1)]).cpu()

    def _new(self, known: _Seen, seed: int) -> OwnMLP:
        size = float(known.own.double().square().mean().sqrt())
        return OwnMLP(
            known.own.shape[1],
            known.y[0].numel(),
            hidden=self.hidden,
            depth=self.depth,
            scale=SIZE / size if size > 0 else 1.0,
            seed=seed,
        )


@dataclass(frozen=True)
class _Seen:
    """Points as tuning sees them.

    Attributes:
        own: (n, features) their own features.
        y: (n, ...) the base's outputs.
    """

    own: Tensor
    y: Tensor

    def __getitem__(self, index: Tensor) -> _Seen:
        return _Seen(self.own[index.to(self.own.device)], self.y[index.to(self.y.device)])

    @property
    def rows(self) -> Tensor:
        """(n, features + outputs): both in one tensor, whose points no longer depend on each other."""
        return torch.cat([self.own, flat(self.y)], 1)


class _Tuned(nn.Module):
    """The stitched network on cached rows."""

    def __init__(self, mlp: OwnMLP, shape: Sequence[int]) -> None:
        super().__init__()
        self.mlp, self.shape = mlp, tuple(shape)

    def forward(self, rows: Tensor) -> Tensor:
        x, y = rows.tensor_split([self.mlp.features], dim=1)
        return self.mlp.added(x, y.reshape(len(rows), *self.shape))


def _seed() -> EGNN:
    """As egnn, held back by points to keep with their labels alone, a quarter of them near the edits (SEED-GNN)."""
    return EGNN(steps=500, near=0.25, kl=0.0)


register("egnn", EGNN)
register("seed-gnn", _seed)
