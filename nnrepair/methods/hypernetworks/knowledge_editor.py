"""A gradient that a network masks and shifts, by what the edit is: KnowledgeEditor, trained under a constraint.

After De Cao et al., "Editing factual knowledge in language models" (EMNLP 2021). The gradient G of a weight is taken
apart and put together again by two matrices of rank 1, which a network says of the edit: the change is
sigmoid(e) (G * softmax(r) c^T + softmax(s) q^T), with * entry by entry. Training minimises what the edits miss under a
constraint on the divergence on the points to keep, with a multiplier that climbs while it is violated; what is allowed
falls whenever most edits hold. `successive=True` trains as Hase et al., "Do language models have beliefs?" (SLAG, 2021)
do, for editors of this very form.

What differs from the published code, which is for language models: what is known of an edit is not a text that an LSTM
reads, but what each weight sees of it, the mean of what it is applied to (of a last layer: the features of the point)
and of the gradient at its outputs (what the network says against what it is to say); c and r are masks that change
nothing before any training, s q^T is zero then, and everything is in units of the gradient's spread, so that training
begins at plain gradient descent, where that code begins at a random change; the step size is learned too; there is no
weight normalisation; several edits at once have one mask and one shift; the edits of the last exercises, not a
validation set, say when less is allowed; and the step is taken again where an edit does not hold, at most `rounds`
times, as that code does on request.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.methods.base import register
from nnrepair.methods.hypernetworks.base import Hypernetwork, Learned
from nnrepair.methods.hypernetworks.factors import Factors, Standard, linear
from nnrepair.training import Descent, ranks

#: Adam's step size on the multiplier.
CLIMB = 0.1
#: What is allowed at first, relative to what is allowed in the end; by how much it falls; after how many exercises, and
#: where which share of their edits held.
AT_FIRST, FALLS, EXERCISES, MOST = 100.0, 0.8, 50, 0.9


@dataclass(frozen=True)
class KnowledgeEditor(Hypernetwork):
    """A step along the edits' gradient, masked and shifted by matrices of rank 1 that networks say of the edits.

    Args:
        allowed: nats of divergence on the locality set that training allows in the end; it begins with a hundred times
            as many. `locality_weight` is the multiplier's first value.

    Example:
        >>> KnowledgeEditor(layers="fc2", successive=True).capabilities.extra_training
        True
    """

    locality_weight: float = 1.0
    allowed: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.allowed, bool) or not isinstance(self.allowed, int | float) or not 0 < self.allowed < 1e6:
            raise InvalidInput(f"allowed must be a number > 0 of nats, got {self.allowed!r}.")

    def transform(self, inp: int, out: int, generator: torch.Generator) -> Conditioner:
        return Conditioner(inp, out, self.rank, generator)

    def change(self, learned: Learned, place: int, factors: Factors) -> Tensor:
        conditioner = learned.transforms[place]
        assert isinstance(conditioner, Conditioner)
        moved: Tensor = -learned.rates[place].exp() * conditioner(factors)
        return moved

    def begin(self, model: nn.Module, generator: torch.Generator) -> Learned:
        learned = super().begin(model, generator)
        learned.constraint = Constraint(self.locality_weight, self.allowed).to(learned.rates)
        return learned

    def descent(self, learned: nn.Module, steps: int) -> Descent:
        """Return Adam's steps; the multiplier's are those of an ascent."""
        descent = super().descent(learned, steps)
        assert isinstance(learned, Learned) and isinstance(learned.constraint, Constraint)
        descent.optimizer.add_param_group({"params": [learned.constraint.multiplier], "lr": CLIMB})
        return descent

    def price(self, learned: Learned, divergence: Tensor, held: float) -> Tensor:
        assert isinstance(learned.constraint, Constraint)
        price: Tensor = learned.constraint(divergence, held)
        return price


class Conditioner(Standard):
    """Masks and shifts a gradient by what the edit is; at first it does nothing.

    Args:
        inp, out: of the weight, (out, inp).
        hidden: units of the network that sees what the edit is.
        generator: of its first weights.
    """

    def __init__(self, inp: int, out: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__(inp, out)
        self.first, self.last = linear(self.size, hidden, generator), linear(hidden, 2 * self.size + 1)

    def said(self, factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gate (), the mask's rows and columns, and the shift's, (2, out, inp) each as outer products."""
        rows = self.standard(torch.cat([factors.u, factors.d], 1))
        known = rows.mean(0) if len(rows) else rows.new_zeros(self.size)
        inp, out = self.inp, self.out
        c, r, q, s, gate = self.last(torch.tanh(self.first(known))).split([inp, out, inp, out, 1])
        spread = self.spread.tensor_split([inp])
        mask = torch.outer(out * r.softmax(0), 1 + c)
        shift = torch.outer(out * s.softmax(0) * spread[1], q * spread[0])
        return 2 * gate.sigmoid().squeeze(0), mask, shift

    def forward(self, factors: Factors) -> Tensor:
        """Return (out, inp), what takes the gradient's place."""
        gate, mask, shift = self.said(factors)
        moved: Tensor = gate * (factors.d.T @ factors.u * mask + shift * bool(len(factors.u)))
        return moved


class Constraint(nn.Module):
    """The Lagrangian of a divergence that is not to be more than what is allowed.

    Args:
        multiplier: at first.
        allowed: in the end.
    """

    limit: Tensor
    seen: Tensor
    held: Tensor

    def __init__(self, multiplier: float, allowed: float) -> None:
        super().__init__()
        self.allowed = allowed
        self.multiplier = nn.Parameter(torch.tensor(float(multiplier)))
        self.register_buffer("limit", torch.tensor(AT_FIRST * allowed))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("held", torch.tensor(0.0))

    @torch.no_grad()
    def look(self, held: float) -> None:
        """Be told which share of an exercise's edits held, and allow less where most did for long enough."""
        if float(self.multiplier) < 0:  # after a step, not between the edits of one exercise, which share it
            self.multiplier.zero_()
        share = torch.full_like(self.held, held)
        ranks.average([share])
        self.seen += 1
        self.held += share
        if int(self.seen) == EXERCISES:
            if float(self.held) > MOST * EXERCISES:
                self.limit.mul_(FALLS).clamp_(min=self.allowed)
            self.seen.zero_()
            self.held.zero_()

    def forward(self, divergence: Tensor, held: float) -> Tensor:
        """Return the constraint's part of the loss; a descent on it raises the multiplier where it is violated."""
        self.look(held)
        beyond = divergence - self.limit
        climb = self.multiplier * beyond.detach()
        price: Tensor = self.multiplier.detach() * beyond - (climb - climb.detach())
        return price


register("knowledge-editor", KnowledgeEditor)
