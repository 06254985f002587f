"""Many edits at once: what a trained network wants at each edit's key is merged by least squares.

After Tan et al., "Massive editing for large language models via meta learning" (MALMEN, ICLR 2024). As in MEND a
network transforms the factors u and d of the gradient. What it says is read as a change of the layer's value at the key
u, -(u . u') d' times a step size, and the weights change by the ridge regression of these on the keys, so that edits
whose keys agree do not add up. What differs from the published code: training is one piece, where that code splits the
backward pass for want of memory; the ridge is relative to the keys' mean square, with a learned factor; and what
differs in `MEND`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nnrepair.methods.base import register
from nnrepair.methods.hypernetworks.base import Hypernetwork, Learned
from nnrepair.methods.hypernetworks.factors import Factors
from nnrepair.methods.least_squares.insertion import ridge

#: The ridge before training, relative to the keys' mean square.
RIDGE = 0.01


@dataclass(frozen=True)
class MALMEN(Hypernetwork):
    """A change of weights that merges, by least squares, what trained networks want at the keys of the edits.

    Example:
        >>> MALMEN(layers="fc2").capabilities.modes["BNS"]
        True
    """

    start: float = 0.1

    def change(self, learned: Learned, place: int, factors: Factors) -> Tensor:
        made = learned.transforms[place](factors)
        wanted = -learned.rates[place].exp() * (factors.u * made.u).sum(1, keepdim=True) * made.d
        return merged(factors.u, wanted, RIDGE * learned.ridges[place].exp())


def merged(keys: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Return (out, inp): the ridge regression of wanted changes (rows, out) of values on keys (rows, inp).

    Args:
        keys, wanted: one row each.
        weight: of the ridge, relative to the keys' mean square, ().
    """
    keys, wanted = keys.double(), wanted.double()
    mean = keys.square().sum(1).mean() if len(keys) else keys.new_ones(())
    size = weight.double() * mean.clamp(min=1e-30)
    return ridge(keys, wanted, size * torch.eye(keys.shape[1]).to(keys), 1.0)


register("malmen", MALMEN)
