"""Editable Training: a network is prepared so that a few gradient steps repair it and leave other decisions alone.

After Sinitsin et al., "Editable neural networks" (ICLR 2020). What is trained are the weights of a block and the editor
function, through whose steps gradients flow. What differs from the published code: the network given need not be
trained again, so that `base="distillation"` compares it with the prepared one by the divergence per point (the
published code's `F.kl_div` takes the mean over classes too, which is smaller by their number); every tensor has a step
size of its own, which is learned; steps are taken on the edits that do not hold yet, and whether they do is asked
before each step and about the weights that are returned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, near_matches
from nnrepair.fingerprint import digest_of_state
from nnrepair.jacobian.layers import tunable
from nnrepair.jacobian.suffix import Behind
from nnrepair.jacobian.tangents import gradients
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.trainable import Editor, Trainable
from nnrepair.spec.criterion import Criterion
from nnrepair.spec.edits import Edits, EditScope
from nnrepair.spec.network import copied
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import outputs
from nnrepair.training import Descent
from nnrepair.wrappers.inserted import EditingBlock, Inserted

Update = Literal["sgd", "momentum", "rmsprop"]
Base = Literal["distillation", "labels"]
Weights = dict[str, Tensor]
#: Added to the mean square before its root is taken, squared: gradients of a root have none at zero.
EPSILON = 1e-6
ADVICE = "more steps, a longer training, a larger block, or another method"


@dataclass(frozen=True)
class EditableTraining(Trainable):
    """Gradient steps in a block whose weights, and the size of whose steps, were trained to take them.

    The loss of an exercise is `base` on its points to keep, plus what its edits miss after `unrolled` steps, plus the
    divergence on the points to keep of the edited network from the prepared one. Repairs start from the prepared
    network: what preparing changes is part of what they change.

    Example:
        >>> EditableTraining("fc2", residual=64).capabilities.returns
        'wrapped'

    Args:
        layers: names of layers, or of modules that hold several, whose parameters are trained and edited; or "all".
        residual: hidden units of a residual block that is inserted before `layers`, then one linear layer, and trained
            and edited in its stead; 0 inserts none.
        update: plain steps ("sgd"), steps with momentum, or gradients divided by their recent size ("rmsprop").
        steps: of a repair, at most; none are taken once all edits hold.
        unrolled: of an exercise, at most.
        start: every step size, before training.
        decay: of momentum, or of the mean square of gradients, before training.
        base: "distillation" keeps what the network says, with no use of labels; "labels" trains it on those of the
            points to keep, which on other data than it was trained on is a training for these too.
        base_weight, edit_weight, locality_weight: of the three terms of the loss.
        second_order: differentiate through the gradients of the steps too; without, training takes less time.
        lr: Adam's, on the block's weights; it falls to 0 along a cosine.
        rate_lr: Adam's, on the logarithms of step sizes and on the decay.
        margin: by how much every edit must hold, in output units.

    Raises:
        InvalidInput: hyper-parameters that cannot be, unknown layers, or a residual block before what is not linear.
    """

    layers: str | Sequence[str] = field(default="all", metadata={"flag": "layer"})
    residual: int = 0
    update: Update = "sgd"
    steps: int = 100
    unrolled: int = 3
    start: float = 2e-3
    decay: float = 0.5
    base: Base = "distillation"
    base_weight: float = 5.0
    edit_weight: float = 10.0
    locality_weight: float = 5.0
    second_order: bool = True
    lr: float = 1e-3
    rate_lr: float = 1e-2
    margin: float = 0.0

    def __post_init__(self) -> None:
        options.one_of(self, update=get_args(Update), base=get_args(Base))
        options.whole(self, "residual", "steps", least=0)
        options.whole(self, "unrolled")
        options.number(self, "start", "lr", "rate_lr", "decay")
        options.number(self, "base_weight", "edit_weight", "locality_weight", "margin", zero=True)
        if self.decay >= 1:
            raise InvalidInput(f"decay must lie between 0 and 1, got {self.decay!r}.")
        options.flag(self, "second_order")
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.residual and (not isinstance(self.layers, str) or self.layers == "all"):
            raise InvalidInput(f"A residual block goes before one linear layer: name it, got layers={self.layers!r}.")

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]  # what it returns is for its options to say
        returns: Literal["wrapped", "same"] = "wrapped" if self.residual else "same"
        return Capabilities("meta-learning", True, returns, True, True, True, regions=not self.residual)

    # What is learned -------------------------------------------------------------------------------------------------

    def begin(self, model: nn.Module, generator: torch.Generator) -> Prepared:
        """Return the block as it is in the network, or a new one, and the first step sizes."""
        network, names = self._block(model, generator)
        known = dict(network.named_parameters())
        return Prepared({name: known[name] for name in names}, self, self._origin(model))

    def descent(self, learned: nn.Module, steps: int) -> Descent:
        """Return Adam's steps, which become smaller along a cosine."""
        assert isinstance(learned, Prepared)
        rest = [p for name, p in learned.named_parameters() if not name.startswith("values")]
        groups = [{"params": list(learned.values), "lr": self.lr}, {"params": rest, "lr": self.rate_lr}]
        optimizer = torch.optim.Adam(groups)
        return Descent(optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps), clip=10.0)

    def _block(self, model: nn.Module, generator: torch.Generator | None = None) -> tuple[nn.Module, list[str]]:
        """Return the network with the block, which does what the model does, and the names of the block's parameters.

        Raises:
            InvalidInput: unknown layers, or a residual block before what is not linear.
        """
        if not self.residual:
            return model, tunable(model, self.layers)
        network = model
        if not (isinstance(model, Inserted) and model.layer == self.layers):
            assert isinstance(self.layers, str)
            linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
            if self.layers not in linear:
                raise InvalidInput(
                    f"A residual block goes before a linear layer, and {self.layers!r} is none."
                    f"{near_matches(self.layers, linear)} Linear layers: {', '.join(linear) or 'none'}."
                )
            block = EditingBlock(linear[self.layers].in_features, self.residual, generator)
            network = Inserted(model, self.layers, block.to(linear[self.layers].weight))
        return network, [name for name, _ in network.named_parameters() if name.startswith("block.")]

    def _origin(self, model: nn.Module) -> str:
        """Return what tells a block that was not trained yet from one that was edited: a hash of what is there."""
        network, names = self._block(model)
        known = dict(network.named_parameters())
        return digest_of_state({name: known[name].detach() for name in names} if network is model else {})

    # Training --------------------------------------------------------------------------------------------------------

    def loss(self, learned: nn.Module, problem: Problem) -> Tensor:
        """Return the three terms, and what the edit scope misses beside the edits where the exercise has one."""
        assert isinstance(learned, Prepared)
        network, names = self._block(problem.model)
        parameters = dict(network.named_parameters())
        original = {name: parameters[name].detach() for name in names}
        prepared: Weights = dict(zip(names, learned.values, strict=True))
        edits = Behind(network, names, problem.edits.inputs)
        edited, _ = self._stepped(learned, edits, problem, prepared, self.unrolled, self.second_order)
        missed = self._missed(problem, edits.outputs(edited), problem.edits)
        if problem.scope is not None:
            near = Behind(network, names, problem.scope.inputs)
            missed = missed + self._missed(problem, near.outputs(edited), problem.scope)
        total = self.edit_weight * missed
        if problem.locality is None:
            return total
        kept = Behind(network, names, problem.locality.inputs)
        before, after = (kept.outputs(weights).double() for weights in (prepared, edited))
        if self.base == "labels":
            base = problem.locality.criterion.loss(before)
        else:
            base = problem.kind.divergence(kept.outputs(original).detach().double(), before)
        moved = problem.kind.divergence(before.detach(), after)
        return total + self.base_weight * base.mean() + self.locality_weight * moved.mean()

    def _missed(self, problem: Problem, y: Tensor, points: Edits | EditScope) -> Tensor:
        """Return by how much points miss their margin, on average."""
        each = self._behind(problem, points.criterion, y.double())
        return F.relu(each).mean()

    def _behind(self, problem: Problem, criterion: Criterion, y: Tensor) -> Tensor:
        """Return (n,): what gradient descent lowers until an edit holds; not above 0 where it holds with its margin."""
        if problem.kind.decides:
            return self.margin - criterion.margin(y)
        return criterion.loss(y, self.margin)

    def _stepped(
        self, learned: Prepared, behind: Behind, problem: Problem, weights: Weights, most: int, create_graph: bool
    ) -> tuple[Weights, int]:
        """Take steps until all edits hold; return the weights, as functions of what is learned, and how many."""
        state = EditorFunction(learned)
        for taken in range(most):
            y = behind.outputs(weights).double()
            failing = ~self._enough(problem, y.detach())
            if not bool(failing.any()):
                return weights, taken
            loss = self._behind(problem, problem.edits.criterion, y)[failing].mean()
            found = gradients(loss, list(weights.values()), create_graph=create_graph)
            weights = dict(zip(weights, state.step(list(weights.values()), found), strict=True))
        return weights, most

    def _enough(self, problem: Problem, y: Tensor) -> Tensor:
        """Return (n,): which edits hold, with the margin asked for."""
        criterion = problem.edits.criterion
        return criterion.holds(y) & (criterion.margin(y) >= self.margin)

    # Repair ----------------------------------------------------------------------------------------------------------

    def edit(self, learned: nn.Module, problem: Problem) -> Proposal:
        """Propose what the steps make of the prepared network, or of what they made of it before."""
        assert isinstance(learned, Prepared)
        network, names = self._prepared(learned, problem.model)
        parameters = dict(network.named_parameters())
        weights = {name: parameters[name] for name in names}
        points = Behind(network, names, problem.edits.inputs)
        state, taken = EditorFunction(learned), 0
        best, most = {name: p.detach().clone() for name, p in weights.items()}, -1
        while True:
            enough = self._enough(problem, outputs(network, problem.edits.inputs).double())  # as it will be judged
            finite = all(bool(torch.isfinite(p).all()) for p in weights.values())
            if finite and int(enough.sum()) > most:
                best, most = {name: p.detach().clone() for name, p in weights.items()}, int(enough.sum())
            if bool(enough.all()) or not finite or taken == self.steps:
                break
            now = {name: p.detach().requires_grad_(True) for name, p in weights.items()}
            y = points.outputs(now).double()
            behind = self._behind(problem, problem.edits.criterion, y)
            found = gradients(behind[~enough].mean(), list(now.values()))
            _write(weights, dict(zip(now, state.step(list(now.values()), found), strict=True)))
            taken += 1
        _write(weights, best)
        notes = [f"{taken} gradient steps of the prepared block."]
        if most < len(problem.edits):
            notes.append(f"returned the weights under which most edits held: {most} of {len(problem.edits)}.")
        return Proposal(network, {"steps": taken, "layers": names}, notes, advice=ADVICE)

    def _prepared(self, learned: Prepared, model: nn.Module) -> tuple[nn.Module, list[str]]:
        """Return a copy of the model, prepared where its block was not edited before, and the block's parameters."""
        network, names = self._block(copied(model))
        if bytes(learned.origin.tolist()).hex() == self._origin(model):
            parameters = dict(network.named_parameters())
            _write(parameters, dict(zip(names, learned.values, strict=True)))
        return network.eval(), names


def prepared(editor: Editor, model: nn.Module) -> nn.Module:
    """Return the network that an editor of `EditableTraining` starts from: prepared, and not edited.

    Args:
        editor: from `EditableTraining.prepare`, or loaded.
        model: the network that it belongs to.

    Raises:
        InvalidInput: an editor of another method, or of another network.
    """
    if not isinstance(editor.method, EditableTraining):
        raise InvalidInput(f"{editor!r} prepares no network; editors of EditableTraining do.")
    editor.refuse_another(model)
    learned = editor.restored(model)
    assert isinstance(learned, Prepared)
    return editor.method._prepared(learned, model)[0]


class Prepared(nn.Module):
    """What is learned: the block's weights, a step size for each of them, and a decay.

    Args:
        block: by name, the block's parameters as training begins.
        method: says which editor function, and its first values.
        origin: a hash of the block as it is in the network, in hexadecimal digits.
    """

    origin: Tensor

    def __init__(self, block: Weights, method: EditableTraining, origin: str) -> None:
        super().__init__()
        self.update: Update = method.update
        self.values = nn.ParameterList(value.detach().clone() for value in block.values())
        self.log_rates = nn.Parameter(torch.full((len(block),), math.log(method.start), dtype=torch.float64))
        if method.update != "sgd":
            odds = math.log(method.decay / (1 - method.decay))
            self.log_odds = nn.Parameter(torch.tensor(odds, dtype=torch.float64))
        self.register_buffer("origin", torch.frombuffer(bytearray.fromhex(origin), dtype=torch.uint8))


class EditorFunction:
    """The steps of one repair: what they remember from one to the next."""

    def __init__(self, learned: Prepared) -> None:
        self._update, self._rates = learned.update, learned.log_rates.exp()
        self._decay = torch.sigmoid(learned.log_odds) if learned.update != "sgd" else None
        self._memory: list[Tensor | None] = [None] * len(self._rates)

    def step(self, weights: Sequence[Tensor], found: Sequence[Tensor | None]) -> list[Tensor]:
        """Return the weights after one step; a weight without a gradient stays."""
        moved = []
        for k, (weight, gradient) in enumerate(zip(weights, found, strict=True)):
            change = None if gradient is None else self._change(k, gradient)
            moved.append(weight if change is None else weight - self._rates[k].to(weight) * change)
        return moved

    def _change(self, k: int, gradient: Tensor) -> Tensor:
        if self._decay is None:
            return gradient
        decay, past = self._decay.to(gradient), self._memory[k]
        if self._update == "momentum":
            self._memory[k] = now = gradient if past is None else decay * past + gradient
            return now
        square = gradient.square()
        self._memory[k] = mean = square if past is None else decay * past + (1 - decay) * square
        return gradient / (mean + EPSILON**2).sqrt()


@torch.no_grad()
def _write(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)


register("editable-training", EditableTraining)
