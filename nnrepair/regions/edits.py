"""Edits over whole regions: segments and polygons become the corners of their linear regions, and are judged there.

A network is affine on each of its linear regions, so what is linear in its outputs holds on all of such a region when
it holds at the corners. So edits over regions become edits of finitely many points (Sotoudeh & Thakur, "Provable repair
of deep neural networks", PLDI 2021). A change of the last layer moves no linear region: corners that neighbours share
are the same point, and are there once. In the decoupled network regions stay too, but a corner counts once for every
piece it belongs to, with that piece's activations, and once as it is: where a unit is zero the network jumps. In hidden
layers of the same architecture regions move; `fix` then splits the repaired network again, and what fails there joins
the edits.

Other than in that paper, no piece mixes alternatives: see `RegionEdits`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.methods.base import Method, Proposal
from nnrepair.regions.splitting import Mesh, Pieces, split
from nnrepair.rounding import counted
from nnrepair.spec.accepted import first_look
from nnrepair.spec.criteria import (
    AllOf,
    AnyOf,
    Argmax,
    Argmin,
    Chosen,
    Criterion,
    Threshold,
    flat,
)
from nnrepair.spec.duplicates import differ
from nnrepair.spec.edits import Edits
from nnrepair.spec.inputs import Inputs
from nnrepair.spec.kinds import kind_of
from nnrepair.spec.network import copied
from nnrepair.spec.problem import Problem, check_model, fitted, has_choice
from nnrepair.spec.ranks import TopK
from nnrepair.spec.regions import Regions
from nnrepair.spec.running import call
from nnrepair.wrappers.base import Wrapper

#: How often a repair that moves linear regions is made anew with the corners where it still failed.
ROUNDS = 8
#: Alternatives whose margins differ by less than this share of the outputs are equally near.
EQUAL = 1e-12
#: Stands for conditions that always hold (a label's against itself), in place of infinity: corners are interpolated.
HUGE = 1e300


@dataclass(frozen=True)
class Corners:
    """Corners of pieces, as conditions need them.

    Attributes:
        point: (n, ...) float64, and `center`: (n, ...) a point inside the piece that the corner belongs to.
        y: (n, outputs) the network's outputs when alternatives were chosen.
        region: (n,) the region.
        group: (n,) corners of one group take the same alternative.
        vertex: (n,) the same number for the same point.
    """

    point: Tensor
    center: Tensor
    y: Tensor
    region: Tensor
    group: Tensor
    vertex: Tensor

    def __len__(self) -> int:
        return len(self.point)

    def __getitem__(self, index: Tensor) -> Corners:
        return Corners(*(part[index] for part in vars(self).values()))

    def joined(self, other: Corners) -> Corners:
        """Return both, with groups and points of their own."""
        other = replace(
            other,
            group=other.group + int(self.group.max()) + 1,
            vertex=other.vertex + int(self.vertex.max()) + 1,
        )
        return Corners(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))

    def and_themselves(self, by_group: bool) -> Corners:
        """Return these, and every point as the network itself has it: on a border it may be like neither side.

        The limit at a point that is approached from itself is its own value, see `Points`.

        Args:
            by_group: whether a point is there for each group that has it, else once.
        """
        keys = torch.stack([self.vertex, self.group * int(by_group)], 1)
        _, first = np.unique(keys.numpy(), axis=0, return_index=True)
        once = self[torch.from_numpy(np.sort(first))]
        once = replace(once, center=once.point)
        return Corners(*(torch.cat(pair) for pair in zip(vars(self).values(), vars(once).values(), strict=True)))

    def criterion(self, asked: Criterion) -> Criterion:
        """Return the criterion at every corner, alternatives chosen; `asked` is about the regions."""
        each = asked[self.region]
        return each.resolve(self.y, self.group) if has_choice(asked) else each

    def distinct(self, asked: Criterion) -> Corners:
        """Return the corners without those whose conditions another one at the same point has as well."""
        keys = torch.stack([self.vertex, *_choices(self.criterion(asked))], 1)
        _, first = np.unique(keys.numpy(), axis=0, return_index=True)
        return self[torch.from_numpy(np.sort(first))]

    def inputs(self, inside: bool, like: Tensor) -> Points:
        """Return what a network runs on."""
        return Points(self.point, self.center if inside else None).to(like)


@dataclass(frozen=True)
class Points(Inputs):
    """Points in float64 that are rounded to the model's dtype only when it runs (`Inputs`).

    Attributes:
        point: (n, ...).
        center: (n, ...) or None. With centers, outputs are the limits at `point` when it is approached from `center`,
            for networks that are affine in between: 2 y((point + center) / 2) - y(center).
        like: its dtype and device are the model's.
    """

    point: Tensor
    center: Tensor | None = None
    like: Tensor | None = None

    def __len__(self) -> int:
        return len(self.point)

    def __getitem__(self, index: Tensor) -> Points:
        index = index.to(self.point.device)
        return replace(self, point=self.point[index], center=None if self.center is None else self.center[index])

    def to(self, like: Tensor) -> Points:
        return replace(self, like=like.detach().flatten()[:1])

    def call(self, model: nn.Module) -> Tensor:
        like = self.point if self.like is None else self.like
        if self.center is None:
            y: Tensor = model(self.point.to(like))  # a part of a network may return several
            return y
        between = (self.point + self.center) / 2
        return 2 * call(model, between.to(like)) - call(model, self.center.to(like))


@dataclass(frozen=True)
class Judged:
    """What a network does over the regions, from its own linear regions in float64.

    Attributes:
        holds: (regions,) bool: whether the criterion holds at every corner of every piece.
        failing: the corners of pieces where it does not.
        pieces, points: how many linear regions and distinct corners there are.
        least: the smallest slack at any corner.
    """

    holds: Tensor
    failing: Corners
    pieces: int
    points: int
    least: float


class RegionEdits:
    """Edits over regions.

    A disjunction takes one alternative for all of a piece, else nothing would be said about the piece's interior. Where
    another alternative comes nearest within a piece, the piece is cut along that line first. Alternatives between
    labels (`Argmax(a) | Argmax(b)`) take one label for the whole region: scores are continuous, so where the winner
    changed there would be a tie, which is no decision.

    Attributes:
        asked: the edits as given; or what is to be kept, which is asked for alike.
        inside: whether the method keeps the original's activations (a decoupled network), so that corners must be seen
            from inside their pieces.
        corners: what the method gets to see.
    """

    def __init__(self, model: nn.Module, asked: Edits, inside: bool, what: str = "the edits") -> None:
        assert isinstance(asked.inputs, Regions)
        like = check_model(model)
        _refuse_contradictions(asked)
        self.inside, self.regions, self._like = inside, asked.inputs, like
        some = torch.stack([corners[0] for corners in self.regions.corners])
        y = first_look(model, Points(some).to(like), what)
        self.asked = Edits(asked.inputs, fitted(asked.criterion, y))
        self.asked.criterion.check(y)
        self._pieces = self._split(model)
        every = self._corners(self._pieces)
        self._last = (model, self._judged(self._pieces, every))
        self.corners = every if inside else every.distinct(self.asked.criterion)

    def points(self) -> Edits:
        """Return the corners of all linear regions as edits of points."""
        return Edits(self.corners.inputs(self.inside, self._like), self.corners.criterion(self.asked.criterion))

    def _split(self, model: nn.Module) -> Pieces:
        criterion = self.asked.criterion
        return split(model, self.regions, lambda mesh: _cut_between_alternatives(mesh, criterion))

    def _corners(self, pieces: Pieces) -> Corners:
        """Return every corner of every piece."""
        piece, place = torch.nonzero(torch.arange(pieces.corners.shape[1]) < pieces.count[:, None], as_tuple=True)
        vertex = pieces.corners[piece, place]
        group = pieces.region[piece] if _of_labels(self.asked.criterion) else piece
        y, center = pieces.outputs[vertex], pieces.centers[piece]
        corners = Corners(pieces.points[vertex], center, y, pieces.region[piece], group, vertex)
        return corners.and_themselves(has_choice(self.asked.criterion)) if self.inside else corners

    def judge(self, model: nn.Module) -> Judged:
        """Return where a network satisfies the criterion, over whole regions."""
        if self._last[0] is model:
            return self._last[1]
        if _keeps_regions(model):  # affine on the pieces of the network that it came from
            pieces, corners = self._pieces, self._corners(self._pieces)
            double = copied(model).double()
            with torch.no_grad():
                y = corners.inputs(True, self._like.double()).call(double).cpu()
            corners = replace(corners, y=y)
        else:
            pieces = self._split(model)
            corners = self._corners(pieces)
        self._last = (model, self._judged(pieces, corners))
        return self._last[1]

    def _judged(self, pieces: Pieces, corners: Corners) -> Judged:
        criterion = corners.criterion(self.asked.criterion)
        holds = criterion.holds(corners.y)
        bad = torch.bincount(corners.region[~holds], minlength=len(self.regions))
        slack = criterion.margin(corners.y)
        return Judged(bad == 0, corners[~holds], len(pieces), len(pieces.points), float(slack.min()))

    def repair(self, problem: Problem, method: Method) -> Proposal:
        """Let a method repair the corners; where that moved linear regions, again with the corners where it failed."""
        corners = self.corners
        proposal = method.repair(problem)
        for again in range(ROUNDS):
            failing = self.judge(proposal.model).failing
            if not len(failing) or proposal.infeasible or _keeps_regions(proposal.model):
                break
            corners = corners.joined(failing.distinct(self.asked.criterion))
            edits = Edits(corners.inputs(self.inside, self._like), corners.criterion(self.asked.criterion))
            proposal = method.repair(replace(problem, edits=edits))
            proposal.notes.append(
                f"the linear regions moved: repaired {again + 2} times, each with what failed before."
            )
        if not proposal.infeasible and len(self.judge(proposal.model).failing):
            proposal.notes.append('the last layer, or architecture="decoupled", does not move linear regions.')
        proposal.conflict = sorted(set(corners.region[torch.tensor(proposal.conflict, dtype=torch.long)].tolist()))
        return proposal

    def notes(self, model: nn.Module) -> list[str]:
        """Return what the report says about the regions."""
        judged = self.judge(model)
        return [
            f"{counted(len(self.regions), 'region')}, {counted(judged.pieces, 'linear region')} of the returned "
            f"network with {judged.points} corners, judged at every corner in float64, whose rounding is not bounded; "
            f"the smallest slack is {judged.least:.3g}."
        ]


def _keeps_regions(model: nn.Module) -> bool:
    return isinstance(model, Wrapper) and model.keeps_regions


def _choices(criterion: Criterion) -> list[Tensor]:
    """Return the alternatives that were chosen, (n,) for each disjunction."""
    own = [criterion.choice] if isinstance(criterion, Chosen) else []
    return own + [choice for part in getattr(criterion, "parts", ()) for choice in _choices(part)]


def _alternatives(criterion: Criterion) -> list[Criterion]:
    """Return the parts of a disjunction, those of disjunctions in it included; a criterion itself where it is none."""
    if not isinstance(criterion, AnyOf):
        return [criterion]
    return [alternative for part in criterion.parts for alternative in _alternatives(part)]


def _of_labels(criterion: Criterion) -> bool:
    """Whether a criterion is a choice between labels, which exclude each other (yes and no for a single output)."""
    parts = _alternatives(criterion)
    answers = [part for part in parts if isinstance(part, Threshold)]
    alone = all(flat(part.labels).shape[1] == 1 and kind_of(part) == kind_of(parts[0]) for part in answers)
    kinds = {type(part) for part in parts}
    return isinstance(criterion, AnyOf) and alone and kinds in ({Argmax}, {Argmin}, {Threshold})


def _cut_between_alternatives(mesh: Mesh, criterion: Criterion) -> None:
    """Cut the pieces on which no alternative of a disjunction is the nearest to holding at every corner."""
    if isinstance(criterion, TopK):
        raise InvalidInput(
            "TopK holds on no convex set of outputs, so it cannot be judged over regions; say which label is to win "
            "(Argmax, with | between alternatives), or which scores are to be above which (Above)."
        )
    if isinstance(criterion, AllOf):
        for part in criterion.parts:
            _cut_between_alternatives(mesh, part)
    alternatives = _alternatives(criterion)
    if len(alternatives) == 1 or _of_labels(criterion) or any(map(has_choice, alternatives)):
        return
    home, y = torch.from_numpy(mesh["home"][:, 0]).long(), torch.from_numpy(mesh["outputs"])
    names = [f"alternative {k}" for k in range(len(alternatives))]
    for name, part in zip(names, alternatives, strict=True):
        mesh[name] = part[home].slack(y).clamp(max=HUGE).numpy()
    zero = EQUAL * float(y.abs().max())

    def undecided() -> NDArray[np.bool_]:
        margins = np.stack([mesh[name].min(1) for name in names])
        nearest = margins >= margins.max(0) - zero
        decided: NDArray[np.bool_] = nearest[:, mesh.corners].all(2).any(0)
        return ~decided

    # Cut until one condition is the worst of each alternative, and then until one alternative is the nearest.
    for name in names:
        mesh["worst"] = mesh[name][:, :1].copy()
        for column in range(1, mesh[name].shape[1]):
            mesh.cut(mesh["worst"][:, 0] - mesh[name][:, column], zero, undecided())
            mesh["worst"] = np.minimum(mesh["worst"], mesh[name][:, column : column + 1])
    for one, other in combinations(names, 2):
        mesh.cut(mesh[one].min(1) - mesh[other].min(1), zero, undecided())
    for done in [*names, "worst"]:
        del mesh.values[done]


def _refuse_contradictions(edits: Edits) -> None:
    """Refuse equal regions with different labels."""
    assert isinstance(edits.inputs, Regions)
    if not isinstance(edits.criterion, Argmax | Threshold):
        return
    first: dict[frozenset[bytes], int] = {}
    clashes = []
    labels = flat(edits.criterion.labels).tolist()
    for index, corners in enumerate(edits.inputs.corners):
        seen = first.setdefault(frozenset(corner.numpy().tobytes() for corner in corners), index)
        if differ(labels[seen], labels[index]):
            one, other = (labels[k][0] if len(labels[k]) == 1 else labels[k] for k in (seen, index))
            clashes.append(f"{seen} and {index} (labels {one} and {other})")
    if clashes:
        raise InvalidInput(
            f"Equal regions are given different labels: edits {', '.join(clashes[:5])}. Remove one of each pair."
        )
