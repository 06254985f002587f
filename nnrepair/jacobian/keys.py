"""Outputs that are affine in the chosen parameters, written as one linear map applied to one key per point.

Put the chosen parameters side by side, each as a matrix with one row per class: W (out, inp). A layer's output is very
often y[v] = y0[v] + (W - W0) k[v], however the layer works inside: before or after the messages of a graph are summed,
with one matrix for a node and another for its neighbours, before or after pooling. The keys k (points, inp) then
determine the outputs, and what holds for a network's last linear map holds for W: rows are outer products, drift is the
keys' second moment, and no repair needs the network again.

That a model is of this kind is tested, not proved: at random W, near and far and on both sides of the present one, its
outputs must be those computed from the keys, to within rounding in float64. It covers only the points it is made on:
those that a repair will use, and on all nodes of a graph, since one node may be affine where its neighbours
are not (attention of a node to itself alone).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from nnrepair.errors import UnsupportedModel
from nnrepair.jacobian.head import AffineHead
from nnrepair.jacobian.tangents import gradients
from nnrepair.jacobian.taps import TappedModel
from nnrepair.spec.inputs import AnyInputs, batches, independent, together

#: Sizes of the random changes of W, relative to W, at which outputs must be those computed from the keys.
REACHES = (1.0, 1000.0)
#: And where some keys are zero: an output that nothing moves may lie behind a ReLU that only a larger change activates.
FAR = 1e9
#: Random directions at every reach, each in both signs: a kink at zero shows on one side only.
DIRECTIONS = 2
#: Points of each further set on which keys are tested, where points are independent; all of them where they are not.
MORE_PROBES = 32
#: What rounding may add, relative to the largest change of an output.
ROUNDING = 1e-9


def fits(y: Tensor, head: AffineHead) -> bool:
    """Whether outputs and parameters have the shapes of one linear map: one output per row of every parameter."""
    if y.ndim != 2 or any(len(shape) == 0 for shape in head.shapes.values()):
        return False
    return all(shape[-1 if n in head.transposed else 0] == y.shape[1] for n, shape in head.shapes.items())


def keys(y: Tensor, parameters: Mapping[str, Tensor], head: AffineHead) -> Tensor | None:
    """Return (points, inp) what the map would be applied to, or None where the model cannot be differentiated twice.

    With cotangents u (points, out), reverse mode gives sum_v u[v, o] k[v, i] at W[o, i], which is linear in u: its
    derivative along u[v, o] is k[v, i]. Every row o serves another i, so inp / out further passes, and none of them
    through what comes before the layer, give the keys of all points.
    """
    out = y.shape[1]
    u = torch.zeros_like(y, requires_grad=True)
    try:
        grads = gradients(y, list(parameters.values()), u, create_graph=True)
        pairs = zip(parameters.items(), grads, strict=True)
        summed = head.matrix({n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs})
        found = []
        for start in range(0, summed.shape[1], out):
            count = min(out, summed.shape[1] - start)
            row = torch.arange(count, device=y.device)
            seed = torch.zeros_like(summed).index_put_((row, start + row), y.new_ones(count))
            (part,) = gradients(summed, [u], seed)
            found.append(torch.zeros_like(u[:, :count]) if part is None else part[:, :count])
    except UnsupportedModel:
        return None
    return torch.cat(found, 1).detach()


@torch.no_grad()
def predict(
    k: Tensor, y: Tensor, parameters: Mapping[str, Tensor], head: AffineHead, run: Callable[[], Tensor]
) -> bool:
    """Whether the outputs at random values of the parameters are those computed from the keys.

    Args:
        k, y: (points, inp) the keys and (points, out) the outputs at the present parameters.
        parameters: moved, and put back.
        head: how they lie side by side.
        run: computes the outputs at whatever values the parameters have.
    """
    generator = torch.Generator().manual_seed(0)
    start = {name: p.clone() for name, p in parameters.items()}
    size = max(float(torch.cat([p.flatten() for p in start.values()]).square().mean().sqrt()), 1e-3)
    try:
        reaches = REACHES if k.any(1).all() else (*REACHES, FAR)
        for reach, _ in itertools.product(reaches, range(DIRECTIONS)):
            random = {
                name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for name, p in start.items()
            }
            for length in (reach * size, -reach * size):
                change = {name: length * r for name, r in random.items()}
                for name, p in parameters.items():
                    p.copy_(start[name] + change[name])
                predicted = k @ head.matrix(change).T
                missed = (run() - y - predicted).abs().max()
                # Not `missed > ...`: NaN must not pass.
                if not missed <= ROUNDING * max(float(predicted.abs().max()), float(y.abs().max())):
                    return False
    finally:
        for name, p in parameters.items():
            p.copy_(start[name])
    return True


class Keys:
    """The keys of a model's chosen parameters, where these are one linear map of one key per point.

    Args:
        model: with the parameters.
        independent: whether points do not influence each other.
        outputs: computes the outputs of prepared inputs at whatever values the parameters have.
        head: how the parameters lie side by side.
    """

    def __init__(
        self, model: TappedModel, independent: bool, outputs: Callable[[AnyInputs], Tensor], head: AffineHead
    ) -> None:
        self._model, self.independent, self._outputs, self.head = model, independent, outputs, head
        self._known: dict[int, tuple[AnyInputs, Tensor]] = {}
        self._model_tells = False

    def predict(self, y: Tensor, few: AnyInputs, given: Sequence[AnyInputs]) -> bool:
        """Whether keys predict the outputs, see `predict`.

        Args:
            y, few: outputs, with their history, of points of the example.
            given: the example and the probes.
        """
        parameters = self._model.parameters
        if not fits(y, self.head):
            return False
        self._model_tells = self._told(few) is not None
        given = [g for g in given if len(g) and independent(g) == self.independent]
        points = self._points(few, given)
        parts = together(points)
        ys, found = [], []
        mine: dict[int, Tensor] = {}
        for inputs, members in parts:
            y = y if inputs is few else self._model.run(inputs)[0]
            k = self._told(inputs) if self._model_tells else None
            k = keys(y, parameters, self.head) if k is None else k
            if k is None:
                return False
            ys.append(y.detach())
            found.append(k)
            mine |= dict(zip(members, torch.split(k, [len(points[m]) for m in members]), strict=True))
        if not mine[0].any():  # nothing would be tested where the repair is to be
            return False

        def run() -> Tensor:
            return torch.cat([self._outputs(inputs) for inputs, _ in parts])

        if not predict(torch.cat(found), torch.cat(ys), parameters, self.head, run):
            return False
        if not self.independent:
            self._known |= {id(g): (g, mine[m].cpu()) for m, g in enumerate(given)}
        return True

    def of(self, inputs: AnyInputs) -> Tensor:
        """Return (points, inp), on the CPU. A whole graph runs for them, so a graph's are kept."""
        if self._model_tells and (told := self._told(inputs)) is not None:
            return told.cpu()
        if id(inputs) in self._known:
            return self._known[id(inputs)][1]
        found = []
        for step in batches(inputs) if self.independent else [None]:
            y, _ = self._model.run(self._model.prepare(inputs if step is None else inputs[step]))
            part = keys(y, self._model.parameters, self.head)
            assert part is not None  # it could be differentiated twice before
            found.append(part.cpu())
        if not self.independent:
            self._known[id(inputs)] = (inputs, torch.cat(found))
        return torch.cat(found)

    def _points(self, few: AnyInputs, given: Sequence[AnyInputs]) -> list[AnyInputs]:
        """Return the prepared points on which keys are tested."""
        if self.independent:
            return [few, *(self._model.prepare(spread(g, MORE_PROBES)) for g in given[1:])]
        points = [self._model.prepare(g) for g in given]
        if not isinstance(few, Tensor) and (whole := few.whole()) is not None:
            points.append(whole)
        return points

    def _told(self, inputs: AnyInputs) -> Tensor | None:
        """Return the keys (points, inp) of a model that knows them; they are tested like those that are found."""
        keys_of = getattr(self._model.model, "keys_of", None)
        return None if keys_of is None else keys_of(inputs, self._model.names)


def spread(inputs: AnyInputs, count: int) -> AnyInputs:
    """Return at most `count` points, evenly spread."""
    return inputs[torch.arange(0, len(inputs), max(1, len(inputs) // count))[:count]]
