"""Which neurons of a layer an answer rests on: attribution, and what suppressing or amplifying them does.

After Dai et al., "Knowledge neurons in pretrained transformers" (ACL 2022): integrated gradients of the answer's
probability along the way from no activation to the one that is there, and the neurons that several points share. What
differs: any layer of any classifier may be asked, a neuron being one number of what the layer takes (of convolutions a
channel, of texts one number at every position); and the paper's edit, which writes embeddings of words into the
neurons' columns, is left to the methods that change weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.jacobian.layers import modules
from nnrepair.spec.given import as_inputs
from nnrepair.spec.inputs import AnyInputs
from nnrepair.spec.running import call

#: Steps of the integral.
STEPS = 20
#: Neurons count for a point from this share of the largest attribution on, and in all from this share of the points on.
LEAST, SHARED = 0.3, 0.5


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of a layer that answers rest on.

    Attributes:
        layer: whose inputs they are.
        attribution: (n, neurons) of every point; the sum over neurons is about by how much the probability of its
            answer is larger than without any activation.
        chosen: the neurons that at least half of the points share, the most important first.
        before: (n,) the answers' probabilities.
        suppressed, amplified: (n,) the same with the chosen neurons at zero, and doubled.
    """

    layer: str
    attribution: Tensor
    chosen: list[int]
    before: Tensor
    suppressed: Tensor
    amplified: Tensor

    def __str__(self) -> str:
        few = ", ".join(map(str, self.chosen[:5])) + (", ..." if len(self.chosen) > 5 else "")
        means = [float(p.mean()) for p in (self.before, self.suppressed, self.amplified)]
        return f"neurons {few or 'none'}: p {means[0]:.3f}, suppressed {means[1]:.3f}, amplified {means[2]:.3f}"


def neurons(model: nn.Module, inputs: AnyInputs, answers: Tensor, layer: str, steps: int = STEPS) -> Neurons:
    """Return the neurons of a layer that the answers rest on.

    Args:
        model: a classifier in eval mode: (n, ...) inputs to (n, classes) scores, of which the largest wins.
        inputs: n points.
        answers: (n,) the classes to explain, such as those that the network gives.
        layer: the name of a module that runs once, on numbers.
        steps: of the integral.

    Raises:
        InvalidInput: no such layer, no points, or answers that are no classes of the model.
        UnsupportedModel: the layer does not run exactly once, on numbers.
    """
    inputs, name = as_inputs(inputs, "neurons"), modules(model, layer)[0]
    if steps < 1 or len(inputs) == 0 or answers.shape != (len(inputs),):
        raise InvalidInput(
            f"Give points, one class for each, and steps >= 1; given {len(inputs)}, {tuple(answers.shape)}, {steps}."
        )
    module = model.get_submodule(name)
    image = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)

    def p(change: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (n,) the answers' probabilities with what the layer takes changed."""
        runs = 0

        def before(_: nn.Module, taken: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal runs
            runs += 1
            if not taken or not isinstance(taken[0], Tensor) or not taken[0].dtype.is_floating_point:
                raise UnsupportedModel(f"Layer {layer!r} takes no numbers. Choose another layer.")
            return change(taken[0]), *taken[1:]

        handle = module.register_forward_pre_hook(before)
        try:
            y = call(model, inputs)
        finally:
            handle.remove()
        if runs != 1:
            raise UnsupportedModel(f"Layer {layer!r} runs {runs} times in one pass, not once. Choose another layer.")
        if y.ndim != 2 or not 0 <= int(answers.min()) <= int(answers.max()) < y.shape[1]:
            raise InvalidInput(f"Answers must be classes of outputs (n, classes), the model's are {tuple(y.shape)}.")
        return y.double().softmax(1).gather(1, answers.to(y.device)[:, None])[:, 0]

    each = _attributed(p, steps, image)
    counts = (each >= LEAST * each.amax(1, keepdim=True).clamp(min=1e-30)).double().mean(0)
    means = each.mean(0)
    chosen = [k for k in means.argsort(descending=True).tolist() if counts[k] >= SHARED]
    mask = torch.zeros(each.shape[1], dtype=torch.bool)
    mask[chosen] = True

    def scaled(factor: float) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            which = mask.to(x.device)
            which = which.reshape(-1, *[1] * (x.ndim - 2)) if image else which
            return torch.where(which, factor * x, x)

        return change

    with torch.no_grad():
        return Neurons(layer, each, chosen, *(p(scaled(factor)) for factor in (1.0, 0.0, 2.0)))


def _attributed(p: Callable[[Callable[[Tensor], Tensor]], Tensor], steps: int, image: bool) -> Tensor:
    """Return (n, neurons) the attributions, see `Neurons`; the integral by its midpoints."""
    total, seen = None, list[Tensor]()
    for k in range(steps):
        share = (k + 0.5) / steps

        def change(x: Tensor, share: float = share) -> Tensor:
            seen[:] = [x.detach(), (share * x.detach()).requires_grad_(True)]
            return seen[1]

        with torch.enable_grad():
            (slope,) = torch.autograd.grad(p(change).sum(), seen[1])
        part = seen[0].double() * slope.double() / steps
        total = part if total is None else total + part
    assert total is not None
    spread = tuple(range(2, total.ndim)) if image else tuple(range(1, total.ndim - 1))
    return (total.sum(spread) if spread else total).cpu()
