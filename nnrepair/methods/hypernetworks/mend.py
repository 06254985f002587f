"""Gradients of edits, transformed by small networks that were trained for it: one step is to be the whole edit.

After Mitchell et al., "Fast model editing at scale" (MEND, ICLR 2022). The gradient of a linear map's weights is a sum
of products d u^T; a network sees each u and d, and returns others. What differs from the published code: before any
training a step is one of plain gradient descent (there it is one of ascent until the step size has changed its sign);
what the network adds is scaled back to the factors' own units, so that this holds whatever their spread; each weight
has a network of its own; and the step is taken again where an edit does not hold after it, at most `rounds` times.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nnrepair.methods.base import register
from nnrepair.methods.hypernetworks.base import Hypernetwork, Learned
from nnrepair.methods.hypernetworks.factors import Factors


@dataclass(frozen=True)
class MEND(Hypernetwork):
    """A step along the edits' gradient, whose factors networks transform that were trained for it.

    Example:
        >>> MEND(layers="fc2").capabilities.extra_training
        True
    """

    def change(self, learned: Learned, place: int, factors: Factors) -> Tensor:
        made = learned.transforms[place](factors)
        moved: Tensor = -learned.rates[place].exp() * made.d.T @ made.u
        return moved


register("mend", MEND)
