"""What was asked of one repair, and the problem that it poses for a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.methods.base import Method, Proposal
from nnrepair.regions.edits import RegionEdits
from nnrepair.rounding import counted, first
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.duplicates import edits_in_locality, shared_points
from nnrepair.spec.edits import Edits, EditScope, LocalitySet
from nnrepair.spec.problem import Problem, kind_notes, pose
from nnrepair.spec.regions import Regions
from nnrepair.spec.running import outputs


@dataclass(frozen=True)
class Posed:
    """A problem, and the edits that its points stand for; a method sees the problem alone.

    Attributes:
        problem: the task, about points.
        edits: as the caller gave them: over regions, not the corners that a method sees, and each with all its points.
        regions: what its points are corners of, or None where the edits are points.
        kept: what the points to keep are corners of, or None where they are points.
    """

    problem: Problem
    edits: Edits
    regions: RegionEdits | None = None
    kept: RegionEdits | None = None

    def holds(self, network: nn.Module) -> Tensor:
        """Return (edits,) bool: which edits hold, over their whole regions where they are about regions."""
        if self.regions is not None:
            return self.edits.together(self.regions.judge(network).holds)
        return self.edits.together(self.edits.criterion.holds(outputs(network, self.edits.inputs).double()))

    def held(self) -> Tensor:
        """Return (edits,) bool: which edits hold in the network for which the problem was posed."""
        if self.regions is not None:
            return self.holds(self.problem.model)
        return self.edits.together(self.edits.criterion.holds(self.problem.answers.double()))

    def repair(self, method: Method) -> Proposal:
        """Return what a method proposes."""
        proposal = method.repair(self.problem) if self.regions is None else self.regions.repair(self.problem, method)
        proposal.conflict = self.edits.owners(proposal.conflict)
        return proposal

    def notes_on_labels(self) -> list[str]:
        """Return what a report says of how labels and outputs were read."""
        return kind_notes(self.problem, self.edits.criterion)

    def notes(self, repaired: nn.Module) -> list[str]:
        """Return what a report says of edits that are kept too, or of the regions."""
        kept = [] if self.kept is None else [f"to keep: {note}" for note in self.kept.notes(repaired)]
        if self.regions is not None:
            return self.regions.notes(repaired) + kept
        posed, notes = self.problem, kept
        if self.edits.of is not None:
            edits = counted(len(self.edits), "edit has", "edits have")
            notes.append(f"an edit holds where all of its points do; the {edits} {len(posed.edits)}.")
        if posed.locality is not None and self.kept is None:
            notes += edits_in_locality(self.edits, posed.locality)
        return notes + ([] if posed.edits.neighbours is None else self._notes_on(posed.edits.neighbours, repaired))

    def _notes_on(self, near: EditScope, repaired: nn.Module) -> list[str]:
        """Return how many neighbours hold, and how many points of the edit scope are among them."""
        before, now = (
            int(near.criterion.holds(outputs(network, near.inputs).double()).sum())
            for network in (self.problem.model, repaired)
        )
        notes = [f"neighbours: {now} of {len(near)} hold, {before} did before; no rate counts them."]
        scope = self.problem.scope
        if scope is not None and (shared := shared_points(scope.inputs, near.inputs)):
            are = counted(shared, "point of the edit scope is a neighbour", "points of the edit scope are neighbours")
            notes.append(f"{are} that the method worked towards; measure on others.")
        return notes


@dataclass(frozen=True)
class Request:
    """What a caller of `fix` asks for; see there.

    Attributes:
        edits, locality_set, edit_scope, method, seed: as given.
        progress: whether a method shows a progress bar.
    """

    edits: Edits
    locality_set: Any
    edit_scope: Any
    method: Method
    seed: int | None
    progress: bool

    def pose(self, network: nn.Module) -> Posed:
        """Check everything against a network and return the problem."""
        stays = None if self.locality_set is None else LocalitySet.coerce(self.locality_set)
        kept = None
        if stays is not None and isinstance(stays.inputs, Regions):
            kept = self._kept(network, stays.inputs, stays.criterion)
            corners = kept.points()
            stays = LocalitySet(corners.inputs, corners.criterion)
        return replace(self._posed(network, self.edits, self.edit_scope, stays), kept=kept)

    def pose_again(self, first: Posed, network: nn.Module, which: Tensor, seed: int) -> Posed:
        """Ask for some of the edits in another network.

        Args:
            first: the problem of all edits in the original network; what is to stay is what it says.
            network: from which to repair.
            which: (n,) the numbers of the edits.
            seed: for the method's random choices.
        """
        if first.regions is None:  # checked before
            edits = first.edits[which]
            again = Posed(replace(first.problem, edits=edits.points()), edits, kept=first.kept)
        else:  # what linear regions there are depends on the network
            again = replace(self._posed(network, self.edits[which], None, None), kept=first.kept)
        stays = first.problem.locality
        if stays is not None and network is not first.problem.model:
            stays = replace(stays, before=None)
        return replace(again, problem=replace(again.problem, model=network, locality=stays, scope=None, seed=seed))

    def _kept(self, network: nn.Module, regions: Regions, criterion: Criterion | None) -> RegionEdits:
        """Return regions to keep as they are at their corners; refuse those that do not hold today."""
        if criterion is None:
            raise InvalidInput("Regions to keep need labels or a criterion: LocalitySet(Segments(start, end), labels).")
        inside = self._able_of_regions("what is to be kept is")
        kept = RegionEdits(network, Edits(regions, criterion), inside, "what is to be kept")
        broken = torch.nonzero(~kept.judge(network).holds).flatten().tolist()
        if broken:
            do, them = ("does", "it") if len(broken) == 1 else ("do", "them")
            raise InvalidInput(
                f"Regions to keep: {first(broken)} {do} not hold at every point today. Give {them} as edits, or leave "
                f"{them} out."
            )
        return kept

    def _able_of_regions(self, what: str) -> bool:
        """Return whether corners must be seen from inside of their pieces; refuse methods that repair points alone."""
        able = self.method.capabilities
        if not able.regions:
            raise InvalidInput(
                f"{type(self.method).__name__} repairs points, but {what} about regions: what it adds bends the "
                "network inside of them. Give points, or use MinimalNorm."
            )
        return able.returns == "decoupled"

    def _posed(self, network: nn.Module, edits: Edits, scope: Any, stays: Any) -> Posed:
        regions, points = None, edits
        able, name = self.method.capabilities, type(self.method).__name__
        if edits.neighbours is not None and (not able.neighbours or isinstance(edits.inputs, Regions)):
            what = "edits about regions have" if able.neighbours else f"{name} works towards"
            raise InvalidInput(
                f"{what} no neighbours. Leave them out of Edits, give them as points that must hold too, "
                "Edits(points, labels, of=...), or use MinimalNorm on points."
            )
        if isinstance(edits.inputs, Regions):
            regions = RegionEdits(network, edits.points(), self._able_of_regions("these edits are"))
            points = regions.points()
        problem = pose(network, points, stays, scope, count=len(edits), seed=self.seed, progress=self.progress)
        read = problem.edits if regions is None else regions.asked
        near = read.neighbours
        if near is not None and near.of is not None and edits.of is not None:
            near = EditScope(near.inputs, near.criterion, edits.of[near.of])  # of edits again, not of their points
        return Posed(problem, Edits(read.inputs, read.criterion, edits.of, near), regions)
