"""The gradient of a linear map's weights as factors: what it is applied to, and the gradient at its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.jacobian import layers
from nnrepair.jacobian.tangents import gradients
from nnrepair.jacobian.taps import TappedModel
from nnrepair.spec.edits import Edits


@dataclass(frozen=True)
class Factors:
    """The gradient of one weight, the sum over rows of d u^T.

    Attributes:
        u: (rows, inp) what the map is applied to: one row for each point and position, without those of no effect.
        d: (rows, out) the gradient at its outputs.
        transposed: whether the weight is stored as (inp, out), as GPT-2's are.
    """

    u: Tensor
    d: Tensor
    transposed: bool = False


class GradientFactors:
    """Gradients of an edits' loss with respect to some weights, as factors, in the network's dtype.

    Args:
        model: left alone.
        names: weights of linear layers and convolutions.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._tapped = TappedModel(model, names)
        self._like = next(p for p in model.parameters() if p.dtype.is_floating_point)
        self._ran = False

    def at(self, weights: Mapping[str, Tensor], edits: Edits, margin: float) -> dict[str, Factors]:
        """Return the factors of the sum of the losses of the edits, where the weights have these values.

        Raises:
            InvalidInput: a weight is used by no linear map or convolution that can be followed.
        """
        with torch.no_grad():
            for name, parameter in self._tapped.parameters.items():
                parameter.copy_(weights[name].detach())
        inputs = self._tapped.prepare(edits.inputs)
        y, tap = self._tapped.run(inputs) if self._ran else self._tapped.first_run(inputs)
        self._ran = True
        missing = [name for name, uses in tap.uses.items() if not uses]
        if missing:
            raise InvalidInput(
                f"{', '.join(missing)}: no linear layer or convolution (without groups) was seen to use it. Choose "
                "other layers."
            )
        loss = edits.criterion.loss(y.double(), margin).sum()
        uses = [(name, use) for name in tap.uses for use in tap.uses[name]]
        found = gradients(loss, [use.output for _, use in uses], again=False)
        parts: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in tap.uses}
        for (name, use), gradient in zip(uses, found, strict=True):
            u, rows = use.inputs(), len(use.output)
            u = u.reshape(rows, -1, u.shape[-1]).flatten(0, 1)
            d = use.by_position(gradient, rows).flatten(0, 1).detach()
            moves = d.any(1)
            parts[name].append((u[moves].to(self._like), d[moves].to(self._like)))
        turned = {name: all(use.transposed for use in uses) for name, uses in tap.uses.items()}
        return {
            n: Factors(torch.cat([u for u, _ in p]), torch.cat([d for _, d in p]), turned[n]) for n, p in parts.items()
        }


def sizes_of(model: nn.Module, name: str) -> tuple[int, int]:
    """Return how many numbers a weight's map takes and returns; its layer's bias says which is which, if it has one."""
    known = dict(model.named_parameters(remove_duplicate=False))
    shape, bias = known[name].shape, known.get(name.removesuffix("weight") + "bias")
    turned = len(shape) == 2 and bias is not None and bias.shape == shape[1:] != shape[:1]
    out = shape[1 if turned else 0]
    return known[name].numel() // out, out


def weights_of(model: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """Return the names of the weight matrices of some layers; "auto" takes the last layer with one.

    Raises:
        InvalidInput: there is none.
    """
    names = layers.choose(model, layers.modules(model, wanted) if wanted == "auto" else wanted)
    known = dict(model.named_parameters(remove_duplicate=False))
    found = [name for name in names if known[name].ndim >= 2]
    if not found:
        raise InvalidInput(f"{wanted!r} has no weight matrix. Layers: {', '.join(layers.weighted(model))}.")
    return found


class Standard(nn.Module):
    """Rows of factors, u beside d, in units of their spread in training.

    Args:
        inp, out: numbers of a row of u, and of d.
    """

    mean: Tensor
    spread: Tensor
    measured: Tensor

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.inp, self.out, self.size = inp, out, inp + out
        self.register_buffer("mean", torch.zeros(self.size))
        self.register_buffer("spread", torch.ones(self.size))
        self.register_buffer("measured", torch.tensor(0))

    @torch.no_grad()
    def measure(self, factors: Factors) -> None:
        """Let the mean and the spread of rows follow what is seen."""
        widths = factors.u.shape[1], factors.d.shape[1]
        if widths != (self.inp, self.out):
            raise InvalidInput(
                f"A weight of {self.inp} inputs and {self.out} outputs, as its shape and its bias say, is used with "
                f"{widths[0]} inputs and {widths[1]} outputs. Choose other layers."
            )
        rows = torch.cat([factors.u, factors.d], 1)
        if len(rows) == 0:
            return
        self.measured += 1
        share = 1 / float(self.measured)
        self.mean.lerp_(rows.mean(0), share)
        apart = (rows - self.mean).square().mean(0).sqrt()
        least = [1e-2 * part.square().mean().sqrt() for part in (apart[: self.inp], apart[self.inp :])]
        apart = torch.cat([apart[: self.inp].clamp(min=float(least[0])), apart[self.inp :].clamp(min=float(least[1]))])
        self.spread.lerp_(apart.clamp(min=1e-12), share)

    def standard(self, rows: Tensor) -> Tensor:
        """Return rows (n, inp + out) less their mean, in units of their spread."""
        return (rows - self.mean) / self.spread


class Transform(Standard):
    """Changes rows of factors; at first it changes nothing.

    Two residual blocks of low rank see u and d side by side, in units of their spread in training.

    Args:
        inp, out: numbers of a row of u, and of d.
        rank: hidden units of a block, at most inp + out.
        generator: of the first weights.
    """

    def __init__(self, inp: int, out: int, rank: int, generator: torch.Generator) -> None:
        super().__init__(inp, out)
        rank = min(rank, self.size)
        self.down = nn.ModuleList(linear(self.size, rank, generator) for _ in range(2))
        self.up = nn.ModuleList(linear(rank, self.size) for _ in range(2))

    def forward(self, factors: Factors) -> Factors:
        rows = torch.cat([factors.u, factors.d], 1)
        start = self.standard(rows)
        h = start
        for down, up in zip(self.down, self.up, strict=True):
            h = h + up(torch.relu(down(h)))
        rows = rows + self.spread * (h - start)
        return Factors(rows[:, : self.inp], rows[:, self.inp :])


def linear(inp: int, out: int, generator: torch.Generator | None = None) -> nn.Linear:
    """Return an affine map that is zero, or whose weights are drawn; the state of torch's own generator stays."""
    with torch.random.fork_rng(devices=[]):
        made = nn.Linear(inp, out)
    with torch.no_grad():
        made.bias.zero_()
        if generator is None:
            made.weight.zero_()
        else:
            made.weight.normal_(0, inp**-0.5, generator=generator)
    return made
