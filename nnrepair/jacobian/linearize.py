"""From a network to rows: gradients of chosen conditions with respect to chosen parameters, for any nn.Module.

Every use of a chosen weight in a linear map, a convolution or their exported forms is intercepted while the model
runs (`taps`); its input and the gradient at its output are the factors of the row (`factors`). Whatever cannot be
factored (normalisation weights, embeddings, weights used in other ways) gets plain rows by automatic differentiation.
Where the outputs are affine in the chosen parameters without these being a plain linear map at the network's end (the
last layer of a graph network), `keys` finds the linear map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.errors import UnsupportedModel
from nnrepair.jacobian.factors import PROBES, Factors, Group
from nnrepair.jacobian.fisher import affordable_diagonal
from nnrepair.jacobian.keys import Keys, spread
from nnrepair.jacobian.moments import RIDGE, SURE, gradient_moments, root, second_moments, slopes
from nnrepair.jacobian.tangents import gradients, moved_outputs
from nnrepair.jacobian.taps import TappedModel, numpy
from nnrepair.solver.metric import Metric
from nnrepair.solver.rows import Array, Factored, Rows
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.inputs import AnyInputs, batches, independent, positions
from nnrepair.spec.kinds import Kind, Regression
from nnrepair.spec.running import call


class Linearization:
    """The chosen parameters' first-order effect on a model's outputs, in float64.

    Args:
        model, names: left alone; and parameters of it.
        example: the points whose rows will be asked for first (the edits).
        probes: further points that will be asked for (the locality set). Whether outputs are affine in the parameters
            is tested on some of them, too, and where the points influence each other on all.

    Attributes:
        model: a copy in float64, or where it does not run in that in its own dtype; `move` changes its chosen
            parameters.
        names: the chosen parameters.
        ends_affine: whether outputs are affine in the chosen parameters: these are the linear map that is the model's
            last operation, or they pass the tests in `keys`.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], example: AnyInputs, probes: Sequence[AnyInputs] = ()
    ) -> None:
        self._tapped = TappedModel(model, names)
        self.names = self._tapped.names
        self.independent = independent(example)
        few = self.prepare(spread(example, PROBES) if self.independent else example)
        y, tap = self._tapped.first_run(few)
        self.model, self.parameters = self._tapped.model, self._tapped.parameters
        few = self.prepare(few)  # in float64 the model may not have run
        self.factors = Factors(self._tapped, y, tap, self.independent)
        self.groups, self.ends_affine = self.factors.groups, self.factors.last
        self.channels = isinstance(few, Tensor) and self._channels_agree(y, few)
        self._keys = Keys(self._tapped, self.independent, self.outputs, self.factors.head)
        if not self.ends_affine and self._keys.predict(y, few, [example, *probes]):
            self.groups, self.ends_affine = [Group(None, None, None, self.factors.head)], True

    @property
    def fine(self) -> bool:
        """Whether it is in float64."""
        return self._tapped.fine

    def prepare(self, inputs: AnyInputs) -> AnyInputs:
        """Return the inputs in float64 on the model's device."""
        return self._tapped.prepare(inputs)

    def in_float64(self) -> AbstractContextManager[object]:
        """Run `model` in float64, where it casts too."""
        return self._tapped.in_float64()

    def _channels_agree(self, y: Tensor, few: AnyInputs) -> bool:
        """Whether plain operations give the same first-order change as reverse mode, on a few points."""
        parameters = list(self.parameters.values())
        change = [torch.linspace(-1, 1, p.numel()).to(p).reshape(p.shape) for p in parameters]
        weights = torch.linspace(0.5, 1.5, y.numel()).to(y).reshape(y.shape)
        grads = gradients(y, parameters, weights)
        true = sum(float((g * c).sum()) for g, c in zip(grads, change, strict=True) if g is not None)
        try:
            with torch.no_grad(), self._tapped.in_float64():
                moved = moved_outputs(self.model, dict(zip(self.names, change, strict=True)), few) - y
        except UnsupportedModel:
            return False
        ours = float((moved * weights).sum())
        return abs(ours - true) <= self._tapped.rounding * max(abs(true), float((moved * weights).abs().sum()))

    def flatten(self, tensors: dict[str, Tensor]) -> Array:
        """Return a change given by parameter name as a flat vector (n,)."""
        return np.concatenate([g.flat(tensors) for g in self.groups])

    def unflatten(self, d: Array) -> dict[str, Tensor]:
        """Return a flat change (n,) by parameter name, float64, shaped like the parameters."""
        out: dict[str, Tensor] = {}
        for group, part in zip(
            self.groups, np.split(d, np.cumsum([g.head.size for g in self.groups])[:-1]), strict=True
        ):
            out |= group.apart(torch.from_numpy(np.ascontiguousarray(part)))
        return {n: out[n].to(self._tapped.like.device) for n in self.names}

    def move(self, d: Array) -> None:
        """Set the chosen parameters to their start plus the change d."""
        self._tapped.move(self.unflatten(d))

    @torch.no_grad()
    def outputs(self, inputs: AnyInputs, d: Array | None = None) -> Tensor:
        """Return the outputs at the current parameters, plus, when d is given, their first-order change along d."""
        inputs = self.prepare(inputs)
        with self._tapped.in_float64():
            if d is None:
                return call(self.model, inputs).double()
            change = {name: part.to(self._tapped.like.dtype) for name, part in self.unflatten(d).items()}
            return moved_outputs(self.model, change, inputs, self.channels).double()

    def outputs_in_batches(
        self, inputs: AnyInputs, d: Array | None = None, tick: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Return `outputs` of any number of points, on the CPU; `tick` is called before each batch."""
        if not self.independent:
            return self.outputs(inputs, d).cpu()
        found = []
        for step in batches(inputs):
            tick()
            found.append(self.outputs(inputs[step], d).cpu())
        return torch.cat(found)

    def with_features(self, inputs: AnyInputs, tick: Callable[[], None] = lambda: None) -> tuple[Tensor, Tensor | None]:
        """Return outputs and, when `ends_affine` and it is applied once per point, the last map's inputs (points, inp).

        One pass tells both, in batches, before each of which `tick` is called.
        """
        if not self.ends_affine or self.groups[0].keyed:
            y = self.outputs_in_batches(inputs, None, tick)
            return y, self._keys.of(inputs) if self.groups[0].keyed else None
        found, y = self.by_position(inputs, tick)
        return y, found[:, 0] if y.ndim == 2 else None

    def by_position(self, inputs: AnyInputs, tick: Callable[[], None] = lambda: None) -> tuple[Tensor, Tensor]:
        """Return (points, P, inp) what the last map is applied to, if `ends_affine`, and (points, ...) its outputs."""
        group, found, ys = self.groups[0], list[Tensor](), list[Tensor]()
        if group.keyed:
            return self._keys.of(inputs)[:, None], self.outputs_in_batches(inputs, None, tick)
        for step in batches(inputs) if self.independent else [None]:
            tick()
            y, tap = self._tapped.run(self.prepare(inputs if step is None else inputs[step]))
            found.append(group.applied_to(tap.uses[group.tapped])[0].double().cpu())
            ys.append(y.detach().double().cpu())
        return torch.cat(found), torch.cat(ys)

    def features(self, inputs: AnyInputs) -> Tensor | None:
        """Return (points, inp), the last map's inputs, when `ends_affine` and it is applied once per point."""
        return self._keys.of(inputs) if self.groups[0].keyed else self.with_features(inputs)[1]

    def keys(self, inputs: AnyInputs) -> list[Tensor | None]:
        """Return, for each group, (k, inp) what its map is applied to, for all points and positions.

        None for plain parameters, and for maps that are applied at least as often as they have inputs: there is no need
        to look at keys that span everything.
        """
        if not self.independent or len(inputs) == 0:
            return [None for _ in self.groups]
        tap = self._tapped.used(self.prepare(inputs[torch.zeros(1, dtype=torch.int64)]))
        found: list[Tensor | None] = []
        for group in self.groups:
            once = [] if group.plain is not None else group.applied_to(tap.uses[group.tapped])
            often = len(inputs) * sum(a[0].numel() // a.shape[-1] for a in once) >= group.head.inp
            found.append(None if not once or often else once[0].new_zeros(0, group.head.inp))
        if all(k is None for k in found):
            return found
        for step in batches(inputs, self.factors.together):
            tap = self._tapped.used(self.prepare(inputs[step]))
            for k, (group, keys) in enumerate(zip(self.groups, found, strict=True)):
                if keys is not None:
                    flat = [a.reshape(-1, a.shape[-1]) for a in group.applied_to(tap.uses[group.tapped])]
                    found[k] = torch.cat([keys, *flat])
        return found

    def matrix(self, d: Array) -> Tensor:
        """Return a flat change of a single linear map as (out, inp)."""
        return torch.from_numpy(d.reshape(self.groups[0].head.out, -1))

    def rows(self, inputs: AnyInputs, criterion: Criterion, point: Tensor, condition: Tensor) -> Rows:
        """Return the gradients of chosen conditions' slacks with respect to the chosen parameters.

        Args:
            inputs, criterion: all points and their conditions.
            point, condition: (m,) which condition of which point each row is.
        """
        if len(point) == 0:  # of one row, to know the shapes, none
            first = torch.zeros(1, dtype=torch.int64)
            return self.rows(inputs, criterion, first, first).take(np.zeros(0, np.int64))
        order = torch.argsort(point, stable=True)
        point, condition = point[order], condition[order]
        unique, local = torch.unique_consecutive(point, return_inverse=True)
        parts: list[Rows] = []
        cuts = range(0, len(unique), self.factors.together) if self.independent else [0]
        for start in cuts:
            stop = start + self.factors.together if self.independent else len(unique)
            mine = (local >= start) & (local < stop)
            chunk = unique[start:stop]
            parts.append(self._rows(inputs, criterion, chunk, local[mine] - start, point[mine], condition[mine]))
        rows = reduce(Rows.joined, parts)
        back = torch.argsort(order)
        return rows.take(back.numpy())

    def _rows(
        self, inputs: AnyInputs, criterion: Criterion, chunk: Tensor, local: Tensor, point: Tensor, condition: Tensor
    ) -> Rows:
        """Rows of the points `chunk`; `local` says where in the chunk each row's point is."""
        if self.groups[0].keyed:
            keys = self._keys.of(inputs[chunk]) if self.independent else self._keys.of(inputs)[chunk]
            cotangents = criterion.rows(point, condition, keys.new_zeros(1, self.groups[0].head.out)).to(keys)
            return Rows((Factored(numpy(cotangents)[:, None], local.numpy(), numpy(keys)[:, None]),))
        sub = self.prepare(inputs[chunk] if self.independent else inputs)
        return self.factors.rows(sub, criterion, local, point, condition)

    def metric(
        self,
        inputs: AnyInputs,
        kind: Kind | None = None,
        check: Callable[[], None] = lambda: None,
        *,
        fisher: bool = False,
    ) -> Metric:
        """Return the drift metric over `inputs`: second moments of each map's inputs, Fisher diagonal elsewhere.

        Args:
            inputs: the points on which drift is measured.
            kind: what outputs stand for, see `fisher_diagonal`; numbers by default.
            check: called now and then; may raise.
            fisher: weigh a map's outputs by what they move behind it.
        """
        kind = Regression() if kind is None else kind
        factors, left = [root(moment) for moment in self.second_moments(inputs, check)], list[Array | None]()
        if self.groups[0].keyed:
            return Metric(factors, [root(self._of_outputs(inputs, kind), SURE)] if fisher else ())
        maps = [g for g in self.groups if g.plain is None]
        plain = [g.plain for g in self.groups if g.plain is not None]
        if maps:
            most = self.factors.together
            if fisher:
                left += [root(m, SURE) for m in gradient_moments(self._tapped, maps, inputs, kind, most, check)]
                left += [None] * len(plain)
        if plain:
            with self._tapped.in_float64():
                known = affordable_diagonal(self.model, plain, self.prepare(inputs), kind)
            for diagonal in (numpy(known[name]).ravel() for name in plain):
                factors.append(np.sqrt(diagonal + RIDGE * max(float(diagonal.mean()), SURE)))
        return Metric(factors, left)

    def second_moments(self, inputs: AnyInputs, check: Callable[[], None] = lambda: None) -> list[Array]:
        """Return, for each map among the groups, the mean over points of the sum of k k^T over its positions."""
        maps, keyed = [g for g in self.groups if g.plain is None], self.groups[0].keyed
        if keyed and positions(inputs) and [g.names for g in self.factors.groups] == [self.groups[0].names]:
            maps, keyed = self.factors.groups, False  # all positions of what the network runs on count
        if keyed:
            k = numpy(self._keys.of(inputs))
            return [k.T @ k / len(k)]
        return second_moments(self._tapped, maps, inputs, self.factors.together, check) if maps else []

    def _of_outputs(self, inputs: AnyInputs, kind: Kind) -> Array:
        """Return (outputs, outputs), the mean over points of the Fisher information of outputs."""
        y, generator = self.outputs_in_batches(inputs), torch.Generator().manual_seed(0)
        total = sum((rows.T @ rows for rows in slopes(kind, y, generator)), y.new_zeros(()))
        return numpy(total / len(y))

    def unit(self, norm: str, kind: Kind) -> str:
        """Say what the drift or the Fisher norm measures, the square root of `metric`."""
        moved = "twice the nats by which decisions move" if kind.decides else "the mean square change of the outputs"
        others = f"root of {moved} on the locality set, to second order and one parameter at a time"
        layers = "root mean square change of the layer's output on the locality set"
        if norm == "fisher":
            layers = f"root of {moved} on the locality set, to second order and nearly (Kronecker factors)"
        plain = [g.plain is not None for g in self.groups]
        return others if all(plain) else f"{layers}; for other parameters, {others}" if any(plain) else layers
