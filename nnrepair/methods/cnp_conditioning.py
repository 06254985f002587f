"""Conditioning: every edit becomes a pair of key and value, which is added to activations where points resemble it.

A conditional neural process (Garnelo et al., ICML 2018) as an editor, after the baseline in Sinitsin et al., "Editable
neural networks" (ICLR 2020): an encoder reads the edits, and the mean of what it makes of them is added to activations
of a trained network. That is `form="mean"`, which cannot tell the points that an edit is about from others.
`form="attention"` can: as in Kim et al., "Attentive neural processes" (ICLR 2019), each point takes the values of the
edits whose learned keys are near its own, beside a slot that stands for no edit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, near_matches
from nnrepair.jacobian.layers import layers, whole
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.trainable import Trainable
from nnrepair.rounding import counted
from nnrepair.spec.criterion import flat
from nnrepair.spec.edits import Edits, EditScope
from nnrepair.spec.network import copied, plain
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import call, outputs
from nnrepair.training import Descent
from nnrepair.wrappers.conditioned import Conditioned, Reader, Standard, passed, seen_of, width

Form = Literal["attention", "mean"]
#: Numbers that say what an edit asks of the outputs.
ASKED = 64
#: A margin that every edit misses: the gradient of its loss then says what it asks for, whatever the outputs are.
AMPLE = 1e3
#: How many times as fast as others the numbers change that pass on what is asked at a position.
DIRECT = 10.0
#: Exercises from which the mean and the spread of activations are taken.
MEASURED = 50
#: Activations whose spread is less than this part of the typical one count as if it were that.
SPREAD = 1e-2
#: Keys that differ by less than this part of their length stand for one point.
SAME = 1e-5
ADVICE = "a longer training, exercises that are more like these edits, other layers, or another method"


@dataclass(frozen=True)
class CNPConditioning(Trainable):
    """Add to activations what a trained encoder makes of the edits; weights stay as they are.

    A repair is one pass over the edits. Without edits the network is the original, bit for bit; their order does not
    matter; dropping a pair forgets its edit (`Conditioned.without`). Edits that hold already get no pair, and one whose
    key is that of an earlier edit takes its place.

    Example:
        >>> CNPConditioning(layers="fc1").capabilities.keeps_architecture
        False

    Args:
        layers: names of the modules whose outputs are conditioned; "auto" takes the two layers with a weight
            before the last one, or all where there are no more than two.
        form: "attention" conditions each point on the edits that it resembles; "mean" all points alike, on the mean.
        each_position: whether every position of the layers' outputs gets a condition of its own, from what is asked
            there, and none where nothing is; for networks whose outputs have these positions: images, labels of tokens.
        hidden: units of the encoder, and of what makes keys.
        features: numbers of a key.
        edit_weight, locality_weight, scope_weight: of the three terms of the loss: what edits miss, the divergence on
            the points to keep, and what the edit scope misses.
        lr: Adam's; it falls to 0 along a cosine.
        margin: by how much every edit must hold in training, in output units.

    Raises:
        InvalidInput: hyper-parameters that cannot be, or layers that are not there.
    """

    layers: str | Sequence[str] = field(default="auto", metadata={"flag": "layer"})
    form: Form = "attention"
    each_position: bool = False
    hidden: int = 128
    features: int = 64
    edit_weight: float = 1.0
    locality_weight: float = 10.0
    scope_weight: float = 0.3
    lr: float = 2e-3
    margin: float = 0.0

    capabilities: ClassVar[Capabilities] = Capabilities(
        "architectural", True, "wrapped", True, True, True, regions=False, rehearsal=False
    )

    def __post_init__(self) -> None:
        options.one_of(self, form=get_args(Form))
        options.flag(self, "each_position")
        options.whole(self, "hidden", "features")
        options.number(self, "edit_weight", "locality_weight", "scope_weight", "margin", zero=True)
        options.number(self, "lr")
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))

    # What is learned -------------------------------------------------------------------------------------------------

    def begin(self, model: nn.Module, generator: torch.Generator) -> Encoder:
        """Return an encoder of edits that makes values of zero, and what reads keys."""
        base = model.base if isinstance(model, Conditioned) else model
        return Encoder(base, _layers(base, self.layers), self, generator)

    def descent(self, learned: nn.Module, steps: int) -> Descent:
        """Return Adam's steps, which become smaller along a cosine."""
        optimizer = torch.optim.Adam(learned.parameters(), lr=self.lr)
        return Descent(optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps), clip=1.0)

    def loss(self, learned: nn.Module, problem: Problem) -> Tensor:
        """Return what edits and their scope miss, and the divergence on the points to keep."""
        assert isinstance(learned, Encoder)
        if learned.measured < MEASURED:
            points = [problem.edits, *(part for part in (problem.locality, problem.scope) if part is not None)]
            learned.measure(torch.cat([outputs(Activations(learned.base, learned.layers), p.inputs) for p in points]))
        network = learned.conditioned(problem.edits, problem)
        network.floor = 0.0  # far points are to be drawn nearer, or away
        total = self.edit_weight * self._missed(network, problem.edits)
        if problem.scope is not None and self.scope_weight:
            total = total + self.scope_weight * self._missed(network, problem.scope)
        if problem.locality is not None and self.locality_weight:
            after = call(network, problem.locality.inputs).double()
            moved = problem.kind.divergence(problem.before.double(), after)
            total = total + self.locality_weight * moved.mean()
        return total

    def _missed(self, network: nn.Module, points: Edits | EditScope) -> Tensor:
        y = call(network, points.inputs).double()
        return points.criterion.loss(y, self.margin).mean()

    # Repair ----------------------------------------------------------------------------------------------------------

    def edit(self, learned: nn.Module, problem: Problem) -> Proposal:
        """Propose the network with a pair for each edit that does not hold, beside those that it had."""
        assert isinstance(learned, Encoder)
        known = problem.model if isinstance(problem.model, Conditioned) else None
        network: Conditioned = learned.empty(copied(problem.model)) if known is None else copied(known)
        with torch.no_grad():
            pairs = learned.conditioned(problem.edits, problem)
        added = torch.zeros(len(problem.edits), dtype=torch.bool)
        while True:
            new = ~problem.edits.criterion.holds(outputs(network, problem.edits.inputs).double()).cpu() & ~added
            if not bool(new.any()):
                break
            network, added = _joined(network, pairs.without(torch.nonzero(~new).flatten())), added | new
        notes = [
            f"{counted(len(network), 'edit conditions', 'edits condition')} {', '.join(map(plain, learned.layers))}."
        ]
        return Proposal(network.eval(), {"edits": len(network), "added": int(added.sum())}, notes, advice=ADVICE)


class Encoder(nn.Module):
    """What is learned: values of edits, and what reads keys, where the form has any.

    Args:
        base: the network, of which a copy that needs no gradient is kept; it is no part of what is learned.
        layers: those that are conditioned.
        method: says the sizes and the form.
        generator: of the first weights.
    """

    base: nn.Module
    measured: Tensor
    unit: Tensor

    def __init__(self, base: nn.Module, layers: list[str], method: CNPConditioning, generator: torch.Generator) -> None:
        super().__init__()
        self.__dict__["base"] = copied(base).requires_grad_(False)
        self.layers, self.margin = layers, method.margin
        numbers, self.widths = seen_of(base, layers), sum(width(base, name) for name in layers)
        attends = method.form == "attention"
        self.reader = Reader(numbers, method.hidden, method.features) if attends else Standard(numbers)
        with torch.random.fork_rng(devices=[]):
            first, last = nn.Linear(numbers + ASKED, method.hidden), nn.Linear(method.hidden, self.widths)
            middle = nn.Linear(method.hidden, method.hidden)
            self.direct = nn.Linear(ASKED, self.widths, bias=False) if method.each_position else None
        self.values = nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last)
        with torch.no_grad():
            for linear in (first, middle, *(part for part in self.reader.children() if isinstance(part, nn.Linear))):
                linear.weight.normal_(0, (2 / linear.in_features) ** 0.5, generator=generator)
                linear.bias.zero_()
            last.weight.zero_()
            last.bias.zero_()
        if self.direct is not None:
            nn.init.zeros_(self.direct.weight)
        self.register_buffer("measured", torch.tensor(0))
        self.register_buffer("unit", torch.tensor(1.0))
        like = next((p for p in base.parameters() if p.dtype.is_floating_point), None)
        if like is not None:
            self.to(like)

    @torch.no_grad()
    def measure(self, seen: Tensor) -> None:
        """Let the mean and the spread of activations follow what layers show, (n, numbers)."""
        self.measured += 1
        share = 1 / float(self.measured)
        reader = self.reader
        typical = float(seen.std()) or 1.0
        reader.mean.lerp_(seen.mean(0), share)
        reader.scale.lerp_(seen.std(0).clamp(min=SPREAD * typical), share)
        self.unit.lerp_(torch.as_tensor(typical).to(self.unit), share)

    def empty(self, base: nn.Module) -> Conditioned:
        """Return a network without any edits."""
        none = self.reader.mean.new_empty(0, self.widths)
        if not isinstance(self.reader, Reader):
            return Conditioned(base, self.layers, none)
        return Conditioned(base, self.layers, none, none.new_empty(0, self.reader.outer.out_features), self.reader)

    def conditioned(self, edits: Edits, problem: Problem) -> Conditioned:
        """Return the network with a pair for each of the edits, differentiable."""
        activations = Activations(self.base, self.layers, beside=True)
        both = outputs(activations, edits.inputs)
        seen, y = both[:, : len(self.reader.mean)].contiguous(), both[:, len(self.reader.mean) :]
        wanted = change(edits, problem, y.reshape(-1, *activations.shape), self.margin)
        values = self._values(self.reader.standard(seen), wanted, activations.positions)
        if not isinstance(self.reader, Reader):
            return Conditioned(self.base, self.layers, values)
        return Conditioned(self.base, self.layers, values, self.reader(seen), self.reader)

    def _values(self, seen: Tensor, wanted: Tensor, positions: dict[str, int]) -> Tensor:
        """Return what is added for edits, of what layers show, (n, numbers), and what outputs are to change by."""
        if self.direct is None:
            values: Tensor = self.values(torch.cat([seen, sketched(flat(wanted)).to(seen)], -1)) * self.unit
            return values
        wanted, *_ = [_by_place(wanted, name, count).to(seen) for name, count in positions.items()]  # refuses others
        size = wanted.square().sum((1, 2), keepdim=True) / (wanted != 0).sum((1, 2), keepdim=True)
        size = torch.where(size > 0, size, 1.0).sqrt()  # twice as much is asked for: twice as much is added
        seen = seen[:, None].expand(-1, wanted.shape[1], -1)
        at = sketched(wanted / size)
        values = (self.values(torch.cat([seen, at], -1)) + DIRECT * self.direct(at)) * size
        return torch.where((wanted != 0).any(-1, keepdim=True), values, 0.0)


class Activations(nn.Module):
    """What layers show, as a network: (n, numbers), with `beside` also the flat outputs, whose `shape` is noted.

    So is how many `positions` the layers have.
    """

    def __init__(self, base: nn.Module, layers: list[str], beside: bool = False) -> None:
        super().__init__()
        self.base, self.layers, self.beside = base, layers, beside
        self.shape: tuple[int, ...] = ()
        self.positions: dict[str, int] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y, seen = passed(self.base, self.layers, args, kwargs, positions=self.positions)
        self.shape = tuple(y.shape[1:])
        return torch.cat([seen, flat(y)], 1) if self.beside else seen


def change(edits: Edits, problem: Problem, y: Tensor, margin: float = 0.0) -> Tensor:
    """Return (n, ...), float64: which change of the outputs each edit asks for.

    Of decisions it is a direction, the same however far the outputs are from it; of numbers it is what they lack.

    Args:
        edits, problem: n edits, and what outputs stand for.
        y: (n, ...) their outputs.
        margin: by how much numbers are to lie within their bounds.
    """
    with torch.enable_grad():
        free = y.detach().double().requires_grad_(True)
        if problem.kind.decides:
            loss = edits.criterion.loss(free, AMPLE)
        else:
            loss = 0.5 * torch.relu(margin - flat(edits.criterion.slack(free))).square().sum(1)
        (gradient,) = torch.autograd.grad(loss.sum(), free)
    return -gradient


def sketched(numbers: Tensor) -> Tensor:
    """Return (..., ASKED): the numbers (..., k) and zeros; of more, projections at random, always in the same way."""
    count = numbers.shape[-1]
    if count <= ASKED:
        return nn.functional.pad(numbers, (0, ASKED - count))
    projection = torch.randn(count, ASKED, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sketch: Tensor = numbers @ projection.to(numbers) / ASKED**0.5
    return sketch


def _by_place(change: Tensor, layer: str, positions: int) -> Tensor:
    """Return (n, positions, numbers): a change of the outputs (n, ...) at each position of a layer's outputs.

    Raises:
        InvalidInput: the outputs have other positions.
    """
    for axis in (1, change.ndim - 1):  # of the outputs' features: of images and of tokens
        by_position = change.movedim(axis, -1)
        if change.ndim > 2 and math.prod(by_position.shape[1:-1]) == positions:
            return by_position.flatten(1, -2)
    raise InvalidInput(
        f"each_position needs layers with the outputs' positions: layer {layer!r} has {positions} for each point, "
        f"and outputs are {tuple(change.shape)}. Choose other layers, or leave it out."
    )


def _joined(network: Conditioned, more: Conditioned) -> Conditioned:
    """Return a network with the pairs of another beside its own; of equal keys those of the other."""
    if len(network) and network.values.shape[1:] != more.values.shape[1:]:
        raise InvalidInput(
            f"Earlier edits condition {network.values.shape[1]} positions, these {more.values.shape[1]}: give edits of "
            "one size, or conditions that all positions share (each_position=False)."
        )
    keys, values = more.keys, more.values
    if network.keys is not None and keys is not None:
        apart = (network.keys[:, None] - keys).norm(dim=2)
        stale = (apart <= SAME * keys.norm(dim=1)).any(1)
        network = network.without(torch.nonzero(stale).flatten())
        assert network.keys is not None
        keys = torch.cat([network.keys, keys])
    if len(network):  # without edits it knows no positions
        values = torch.cat([network.values, values])
    return Conditioned(network.base, network.layers, values, keys, network.reader)


def _layers(model: nn.Module, wanted: str | Sequence[str]) -> list[str]:
    """Return the layers whose outputs are conditioned.

    Raises:
        InvalidInput: there are none of these names.
    """
    modules = dict(model.named_modules())
    if wanted == "auto":
        weights = [name for name, own in layers(model).items() if any(model.get_parameter(p).ndim > 1 for p in own)]
        known = list(dict.fromkeys(whole(model, name) for name in weights if name in modules))
        known = [name for name in known if _says_its_width(model, name)]  # recurrent layers and attention return tuples
        if not known:
            raise InvalidInput(
                "No layer with a weight matrix says how wide its outputs are: name one, CNPConditioning(layers=...)."
            )
        return known[-3:-1] if len(known) > 2 else known
    names = {plain(name): name for name in modules if name}
    chosen = []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if plain(name) not in names:
            raise InvalidInput(f"Layer {name!r} not found.{near_matches(name, names)} Layers: {', '.join(names)}.")
        chosen.append(names[plain(name)])
    if len(set(chosen)) < max(len(chosen), 1):
        raise InvalidInput(f"layers must name layers, each once, got {wanted!r}.")
    return chosen


def _says_its_width(model: nn.Module, layer: str) -> bool:
    try:
        return width(model, layer) > 0
    except InvalidInput:
        return False


register("cnp", CNPConditioning)
