"""One direction of a layer's keys gets new values: a rule of the network is rewritten.

After Bau et al., "Rewriting a deep generative model" (ECCV 2020), and Santurkar et al., "Editing a classifier by
rewriting its prediction rules" (NeurIPS 2021). A layer is read as a memory from keys to values, as by `LeastSquares`.
Its weights change in few directions alone, those that tell the edits' keys best from the keys of the points to keep,
C^-1 k for one key k: there they are made to return, at the places where exemplars were changed, what they returned
before that (`nnrepair.Exemplars`); where no originals are given, what makes the edits hold.

What differs from the published codes:

* Exemplars' values are fitted to the end, with the same loss, the mean absolute difference: that is a convex problem,
  where the codes take thousands of gradient steps and project now and then. The layer's own outputs are compared, not
  those of the block around it; its bias is part of the map, by a one in every key.
* Where the edits do not hold then, gradient steps in the same directions follow, on the edits' own loss, until they do.
  The codes do not look at the label.
* C has a small ridge, in place of a search for the nearest matrix that can be inverted, of which the authors say that
  it is wrong. Keys to keep are those of the locality set; without one all directions count alike.
* Any layer that is a linear map of one key for each position, not only convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.jacobian.layers import modules, moved
from nnrepair.jacobian.moments import root
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.fine_tune.method import FineTune
from nnrepair.methods.least_squares import insertion
from nnrepair.methods.least_squares.linear_map import LinearMap
from nnrepair.spec.exemplars import Exemplars
from nnrepair.spec.inputs import AnyInputs, about
from nnrepair.spec.network import plain
from nnrepair.spec.problem import Problem

#: Rounds of reweighting, and the residual that counts as none, relative to the largest.
REWEIGHTED, NONE = 300, 1e-9
ADVICE = "a higher rank, more steps, another layer (layer=...), or another method"


@dataclass(frozen=True)
class Rewriting:
    """Give the keys of the edits new values in a layer's weights, by a change of low rank in chosen directions.

    Example:
        >>> Rewriting(layer="fc3", rank=2).capabilities.keeps_architecture
        True

    Args:
        layer: the name of a layer; "auto" takes the last.
        rank: how many directions of keys may get other values; both papers take 1, for one rule.
        steps, lr: of Adam, where values are not known or the edits do not hold with them; the step size is relative to
            the typical output of the layer.
        margin: by how much every edit must hold, in output units.

    Raises:
        InvalidInput: hyper-parameters that cannot be, or a layer that is not there or no linear map.
    """

    layer: str = "auto"
    rank: int = 1
    steps: int = 1000
    lr: float = 0.01
    margin: float = 0.0

    def __post_init__(self) -> None:
        options.one_layer(self)
        options.whole(self, "rank")
        FineTune(steps=self.steps, lr=self.lr, margin=self.margin)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("direct", False, "same", False, True, True, regions=False)

    def repair(self, problem: Problem) -> Proposal:
        """Propose the network with some directions of a layer's keys rewritten, see the class."""
        model, edits, locality, notes = problem.model, problem.edits, problem.locality, list[str]()
        (name,) = modules(model, self.layer)
        seen: AnyInputs = about(edits.inputs)
        layer = LinearMap(model, name, [seen, *([] if locality is None else [about(locality.inputs)])])
        if locality is None:
            notes.append("no locality set: all directions of keys count alike.")
            lower = torch.eye(layer.inputs, dtype=torch.float64)
        else:
            lower = torch.from_numpy(root(layer.moment(locality.inputs).numpy().copy()))
        keys, values = layer.seen(seen)
        chosen = layer.places(seen, seen.places if isinstance(seen, Exemplars) else None)
        K, V = keys[chosen], values[chosen]
        D = directions(K, lower, self.rank)
        start = V.new_zeros(V.shape[1], D.shape[1])
        if isinstance(seen, Exemplars):
            wanted = layer.seen(seen.originals)[1][chosen]
            start = least_absolute(K @ D, wanted - V)
            left = (wanted - V - K @ D @ start.T).abs().mean() / (wanted - V).abs().mean().clamp(min=1e-30)
            notes.append(f"{1 - float(left):.0%} of what the changes made of the layer's outputs there is taken back.")
        size = float(V.square().mean().sqrt()) or 1.0

        def apart(matrix: Tensor) -> dict[str, Tensor]:  # unlike the method, it is not copied with the network
            return layer.change(matrix)

        rewritten = _Rewritten(model, apart, D, start / size, size)
        rounding = 16 * torch.finfo(problem.answers.dtype).eps * float(problem.answers.abs().amax())
        tuning = FineTune("values", steps=self.steps, lr=self.lr, margin=max(self.margin, rounding))
        proposal = tuning.repair(replace(problem, model=rewritten.eval()))
        assert isinstance(proposal.model, _Rewritten)
        made = moved(model, proposal.model.change(torch.float64))
        stats = {"layer": plain(name), "rank": D.shape[1], "places": len(K), "steps": proposal.stats["steps"]}
        return Proposal(made, stats, notes + proposal.notes, advice=ADVICE)


class _Rewritten(nn.Module):
    """The network with values (out, rank) in some directions (inp, rank) of a layer's keys, in units of `size`.

    Args:
        base: the network.
        apart: makes changes of parameters, by name, of one of the layer's map.
        D, values, size: see above.
    """

    def __init__(
        self, base: nn.Module, apart: Callable[[Tensor], dict[str, Tensor]], D: Tensor, values: Tensor, size: float
    ) -> None:
        super().__init__()
        like = next(p for p in base.parameters() if p.dtype.is_floating_point)
        self.base, self.apart, self.directions, self.size = base, apart, D, size
        self.values = nn.Parameter(values.to(like))

    def change(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return by how much parameters change."""
        values = self.values if dtype is None else self.values.detach().to("cpu", dtype)
        return self.apart(self.size * values @ self.directions.to(values).T)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        known = dict(self.base.named_parameters(remove_duplicate=False))
        weights = {name: known[name] + part.to(known[name]) for name, part in self.change().items()}
        return torch.func.functional_call(self.base, weights, args, kwargs)


def directions(K: Tensor, lower: Tensor, rank: int) -> Tensor:
    """Return (inp, rank) the directions in which keys stand out most among others, each of mean square 1 at the keys.

    They are C^-1/2 times the first right singular vectors of K C^-1/2, and so in the span of C^-1 K^T; of one key k, it
    is C^-1 k.

    Args:
        K: (m, inp).
        lower: (inp, inp) lower triangular, with lower lower^T = C.
        rank: at most; keys may span less.
    """
    whitened = torch.linalg.solve_triangular(lower, K.T, upper=False).T
    _, sizes, right = torch.linalg.svd(whitened, full_matrices=False)
    several = max(1, int((sizes[:rank] > insertion.SAME * sizes[0]).sum()))
    D: Tensor = torch.linalg.solve_triangular(lower.T, right[:several].T, upper=True)
    return D / (K @ D).square().mean(0).sqrt().clamp(min=1e-150)


def least_absolute(X: Tensor, R: Tensor) -> Tensor:
    """Return the L (out, rank) that minimises the sum of |X L^T - R|, by reweighted least squares.

    Args:
        X: (m, rank).
        R: (m, out).
    """
    found: Tensor = torch.linalg.lstsq(X, R).solution
    least = NONE * float(R.abs().amax()) or 1.0
    for _ in range(REWEIGHTED):
        weight = 1 / (R - X @ found).abs().clamp(min=least)
        A = torch.einsum("mo,mr,ms->ors", weight, X, X)
        b = torch.einsum("mo,mr,mo->or", weight, X, R)
        tiny = 1e-14 * A.diagonal(dim1=1, dim2=2).mean(1) + math.ulp(0.0)
        found = torch.linalg.solve(A + tiny[:, None, None] * torch.eye(X.shape[1]).to(A), b).T
    return found.T


register("rewriting", Rewriting)
