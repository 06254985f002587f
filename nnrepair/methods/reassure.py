"""One patch for each mistake, on the linear region that it lies in: nothing else changes, by construction.

After Fu & Li, "Sound and complete neural network repair with minimality and locality guarantees" (REASSURE, ICLR
2022), for networks with ReLUs. A patch is what is added to the outputs times a support that is zero outside of one
linear region. What differs from the paper:

* Edits are points. The smallest patch, measured by its largest value over the region, is then a constant where a
  region has one edit, and no linear program is solved; mistakes elsewhere in the region are repaired as far as the
  support reaches.
* The support falls off inside of the region, from the edit's point to the faces, where the paper's falls off outside,
  within a distance that goes to zero: here no point outside is touched, and there is no weight that goes to infinity.
* Several edits in one region share its patch as long as one shift suits all of them, and are told of where none does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.least_squares.targets import at_outputs
from nnrepair.rounding import counted
from nnrepair.spec.network import copied
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs
from nnrepair.wrappers.regional import Regional, support, with_places

#: Answers hold by this share of a typical margin, and so many roundings, at least.
BEYOND, ROUNDINGS = 1e-4, 16
#: How often patches that reach each other's points are corrected.
LOOKS = 20
ADVICE = "another method: edits in one linear region need different shifts"


@dataclass(frozen=True)
class REASSURE:
    """Shift the outputs on the linear region of each mistake; everywhere else they are what they were, bit for bit.

    Edits that hold already get no patch. A network that has patches keeps them.

    Example:
        >>> REASSURE().capabilities.only_edit_pair
        True

    Args:
        margin: by how much every edit must hold, in output units.

    Raises:
        InvalidInput: a margin that cannot be.
    """

    margin: float = 0.0

    capabilities: ClassVar[Capabilities] = Capabilities(
        "architectural", False, "wrapped", True, True, True, regions=False
    )

    def __post_init__(self) -> None:
        options.number(self, "margin", zero=True)

    def repair(self, problem: Problem) -> Proposal:
        """Propose the network with patches, see the class."""
        known = problem.model if isinstance(problem.model, Regional) else None
        base = problem.model if known is None else known.base
        z = outputs(Places(base), problem.edits.inputs)
        criterion, y = problem.edits.criterion, problem.answers.double()
        rounding = ROUNDINGS * torch.finfo(problem.answers.dtype).eps * float(y.abs().amax())
        aim = self.margin + BEYOND * criterion.typical_slack(y) + rounding
        made = Regional(copied(base), z[:0], problem.answers[:0]) if known is None else copied(known)
        first, groups, shifts = len(made), dict[int, list[int]](), dict[int, Tensor]()
        for _ in range(LOOKS):
            fails = torch.nonzero(~_holds(problem, y, self.margin)).flatten().tolist()
            if not fails:
                break
            missing = at_outputs(criterion, y, aim) - y
            for edit in fails:
                home = next((k for k in groups if float(support(z[edit : edit + 1], z[k])) > 0), edit)
                groups.setdefault(home, [])
                groups[home] += [edit] if edit not in groups[home] else []
            for home, mine in groups.items():  # what an edit lacks most, one after another
                lacks = max(mine, key=lambda edit: float(missing[edit].abs().amax()))
                shifts[home] = shifts.get(home, torch.zeros_like(y[0])) + missing[lacks]
            places = torch.cat([made.places[:first], *(_place(z, mine) for mine in groups.values())])
            added = torch.stack([*shifts.values()]).to(made.shifts)
            made = Regional(made.base, places, torch.cat([made.shifts[:first], added]))
            y = outputs(made, problem.edits.inputs).double()
        holding = int(_holds(problem, y, 0.0).sum())
        stats = {"patches": len(made), "added": len(groups), "units": z.shape[1]}
        have = counted(len(groups), "linear region has", "linear regions have")
        notes = [f"{have} a new patch; elsewhere outputs are the same bits."]
        if holding < len(problem.edits):
            lost = len(problem.edits) - holding
            share = counted(lost, "edit shares", "edits share")
            notes.append(f"{share} a linear region with others that need another shift.")
        return Proposal(made.eval(), stats, notes, advice=ADVICE)


class Places(nn.Module):
    """What a network's ReLUs are applied to, as a network: (n, units)."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        return with_places(self.base, *args, **kwargs)[1]


def _holds(problem: Problem, y: Tensor, margin: float) -> Tensor:
    """Return (edits,) bool: which edits hold by a margin at outputs y."""
    criterion = problem.edits.criterion
    return criterion.holds(y) & (criterion.margin(y) >= margin)


def _place(z: Tensor, mine: list[int]) -> Tensor:
    """Return (1, units) what is nearest to zero at any of a region's edits, so that the support is 1 at all of them."""
    some = z[mine]
    return some.gather(0, some.abs().argmin(0, keepdim=True))


register("reassure", REASSURE)
