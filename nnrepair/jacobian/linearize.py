"""From a network to rows: gradients of chosen conditions with respect to chosen parameters, for any nn.Module.

Every use of a chosen weight in a linear map, a convolution or their exported forms is intercepted while the model
runs; its input and the gradient at its output are the factors of the row. Whatever cannot be factored (normalisation
weights, embeddings, weights used in other ways) gets plain rows by automatic differentiation. The factors are checked
against automatic differentiation before they are trusted. Where the outputs are affine in the chosen parameters without
these being a plain linear map at the network's end (the last layer of a graph network), `keys` finds the linear map.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.jacobian import keys
from nnrepair.jacobian.fisher import Labels, fisher_diagonal
from nnrepair.jacobian.tangents import CUT, InFloat64, gradients, moved_outputs
from nnrepair.solver.rows import Array, Block, Dense, Factored, Metric, Rows, stacked
from nnrepair.spec.criteria import Criterion, flat
from nnrepair.spec.inputs import AnyInputs, batches, independent, to_like, together
from nnrepair.spec.kinds import Kind, Regression
from nnrepair.spec.network import copied
from nnrepair.spec.running import call

_LINEAR = {F.linear, torch.ops.aten.linear.default}
_CONV2D = {F.conv2d, torch.ops.aten.conv2d.default}
#: Points on which the factors are checked.
PROBES = 4
#: Points of each further set on which keys are tested, where points are independent; all of them where they are not.
MORE_PROBES = 32
#: Points whose rows are computed together.
POINTS = 256
#: Entries of the factors that may be computed together.
ENTRIES = 50_000_000
#: Entries of plain (unfactored) rows that may be held at once.
DENSE_LIMIT = 200_000_000
#: Passes with labels drawn anew over which the Fisher diagonal is averaged where points influence each other.
SKETCHES = 32
#: With more gradients than this (points times classes), the Fisher diagonal is that of labels drawn at random.
GRADIENTS = 10_000
#: Relative ridge on feature covariances: dead features would be free to move otherwise.
RIDGE = 1e-3


@dataclass
class _Use:
    """One use of a chosen weight: its input by position (points, P, inp), and its output."""

    inputs: Callable[[], Tensor]
    output: Tensor
    returned: Tensor
    is_image: bool

    def by_position(self, delta: Tensor | None, rows: int) -> Tensor:
        """Return gradients at the output as (rows, P, out); None where there is no effect."""
        if delta is None:
            delta = self.output.new_zeros(()).expand(rows, *self.output.shape[1:])
        return delta.flatten(2).transpose(1, 2) if self.is_image else delta.reshape(rows, -1, delta.shape[-1])


class _Tap(TorchFunctionMode):
    """Record every use of the chosen weights while the model runs."""

    def __init__(self, weights: dict[int, str]) -> None:
        super().__init__()
        self.weights = weights
        self.uses: dict[str, list[_Use]] = {name: [] for name in weights.values()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        if func not in _LINEAR and func not in _CONV2D:
            return y
        weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
        bias = kwargs.get("bias", args[2] if len(args) > 2 else None)
        name = self.weights.get(id(weight)) or self.weights.get(id(bias))
        if name is None or weight is None or not y.requires_grad:
            return y
        x = kwargs.get("input", args[0] if args else None)
        if func in _LINEAR:
            inputs = lambda: x.detach()  # noqa: E731
        else:
            options = dict(zip(("bias", "stride", "padding", "dilation", "groups"), args[2:], strict=False)) | kwargs
            if options.get("groups", 1) != 1 or isinstance(options.get("padding"), str):
                return y
            inputs = lambda: _patches(x.detach(), weight, options)  # noqa: E731
        returned = y.clone()  # an in-place activation after the map must not overwrite what was recorded
        self.uses[name].append(_Use(inputs, y, returned, func in _CONV2D))
        return returned


def _patches(x: Tensor, weight: Tensor, options: dict[str, Any]) -> Tensor:
    unfolded = F.unfold(
        x,
        weight.shape[2:],
        dilation=options.get("dilation", 1),
        padding=options.get("padding", 0),
        stride=options.get("stride", 1),
    )
    return unfolded.transpose(1, 2)


def _numpy(x: Tensor) -> Array:
    return x.detach().to("cpu", torch.float64).numpy()


@dataclass(frozen=True)
class _Group:
    """Parameters that share a block: a linear map's weight, bias or both; one plain parameter; or all, with keys."""

    weight: str | None
    bias: str | None
    plain: str | None = None
    keyed: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [n for n in (self.weight, self.bias, self.plain, *self.keyed) if n is not None]

    @property
    def tapped(self) -> str:
        """The name under which the map's uses are recorded."""
        return self.weight or self.bias or ""


class Linearization:
    """The chosen parameters' first-order effect on a model's outputs, in float64.

    Args:
        model, names: left alone; and parameters of it.
        example: the points whose rows will be asked for first (the edits).
        probes: further points that will be asked for (the locality set). Whether outputs are affine in the parameters
            is tested on some of them, too, and where the points influence each other on all.

    Attributes:
        model: a float64 copy; `move` changes its chosen parameters.
        names: the chosen parameters.
        ends_affine: whether outputs are affine in the chosen parameters: these are the linear map that is the model's
            last operation, or they pass the tests in `keys`.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], example: AnyInputs, probes: Sequence[AnyInputs] = ()
    ) -> None:
        self.names = list(names)
        self.model = copied(model).double()
        known = dict(self.model.named_parameters(remove_duplicate=False))
        self.parameters = {n: known[n] for n in self.names}
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self._start = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.like = next(iter(self.parameters.values())).detach()
        self.independent = independent(example)
        self._known_keys: dict[int, tuple[AnyInputs, Tensor]] = {}
        self._said = False
        self._entries = 0
        few = self.prepare(_spread(example, PROBES) if self.independent else example)
        self._casts = False
        y, tap = self._first_run(few)
        self.groups = self._plan(y, tap)
        self.channels = isinstance(few, Tensor) and self._channels_agree(y, few)
        uses = [] if len(self.groups) > 1 else tap.uses.get(self.groups[0].tapped, [])
        # A version above 0: the output was changed in place after the map.
        self.ends_affine = len(uses) == 1 and uses[0].returned is y and y._version == 0
        if not self.ends_affine and self._are_keyed(y, few, [example, *probes]):
            self.groups, self.ends_affine = [_Group(None, None, keyed=tuple(self.names))], True

    def prepare(self, inputs: AnyInputs) -> AnyInputs:
        """Return the inputs in float64 on the model's device."""
        return to_like(inputs, self.like)

    def _run(self, inputs: AnyInputs) -> tuple[Tensor, _Tap]:
        weights = {id(p): n for n, p in self.parameters.items()}
        with torch.enable_grad(), self._in_float64(), _Tap(weights) as tap:
            y = call(self.model, inputs)
        return y, tap

    def _in_float64(self) -> AbstractContextManager[object]:
        """Run a model that casts to smaller dtypes in float64 all the same."""
        return InFloat64() if self._casts else nullcontext()

    def _first_run(self, inputs: AnyInputs) -> tuple[Tensor, _Tap]:
        """Run the model, and learn whether it casts."""
        try:
            y, tap = self._run(inputs)
            if y.dtype == torch.float64:
                return y, tap
        except UnsupportedModel:
            pass  # what it says is said below, where casts were not all that failed
        self._casts = True
        try:
            return self._run(inputs)
        except UnsupportedModel as error:
            raise UnsupportedModel(
                f"The model cannot run in float64, in which this method computes: {error} Remove casts such as "
                'x.float() from its forward, or use method="ft", which works in the model\'s own dtype.'
            ) from error

    def _are_keyed(self, y: Tensor, few: AnyInputs, given: Sequence[AnyInputs]) -> bool:
        """Whether the chosen parameters are one linear map, applied to one key per point.

        Args:
            y, few: outputs, with their history, of points of the example.
            given: the example and the probes.
        """
        parameters = list(self.parameters.values())
        if not keys.fits(y, parameters):
            return False
        self._said = self._say(few) is not None
        given = [g for g in given if len(g) and independent(g) == self.independent]
        if self.independent:
            points = [few, *(self.prepare(_spread(g, MORE_PROBES)) for g in given[1:])]
        else:
            points = [self.prepare(g) for g in given]
            if not isinstance(few, Tensor) and (whole := few.whole()) is not None:
                points.append(whole)
        parts = together(points)
        ys, found = [], []
        mine: dict[int, Tensor] = {}
        for inputs, members in parts:
            y = y if inputs is few else self._run(inputs)[0]
            k = self._say(inputs) if self._said else None
            k = keys.keys(y, parameters) if k is None else k
            if k is None:
                return False
            ys.append(y.detach())
            found.append(k)
            mine |= dict(zip(members, torch.split(k, [len(points[m]) for m in members]), strict=True))
        if not mine[0].any():  # nothing would be tested where the repair is to be
            return False

        def run() -> Tensor:
            return torch.cat([self.outputs(inputs) for inputs, _ in parts])

        if not keys.foretell(torch.cat(found), torch.cat(ys), parameters, run):
            return False
        if not self.independent:
            self._known_keys |= {id(g): (g, mine[m].cpu()) for m, g in enumerate(given)}
        return True

    def _say(self, inputs: AnyInputs) -> Tensor | None:
        """Return the keys (points, inp) of a model that knows them; they are tested like those that are found."""
        keys_of = getattr(self.model, "keys_of", None)
        return None if keys_of is None else keys_of(inputs, self.names)

    def _keys(self, inputs: AnyInputs) -> Tensor:
        """Return (points, inp), on the CPU. A whole graph runs for them, so a graph's are kept."""
        if self._said and (said := self._say(inputs)) is not None:
            return said.cpu()
        if id(inputs) in self._known_keys:
            return self._known_keys[id(inputs)][1]
        found = []
        for step in batches(inputs) if self.independent else [None]:
            y, _ = self._run(self.prepare(inputs if step is None else inputs[step]))
            part = keys.keys(y, list(self.parameters.values()))
            assert part is not None  # it could be differentiated twice before
            found.append(part.cpu())
        if not self.independent:
            self._known_keys[id(inputs)] = (inputs, torch.cat(found))
        return torch.cat(found)

    def _channels_agree(self, y: Tensor, few: AnyInputs) -> bool:
        """Whether plain operations give the same first-order change as reverse mode, on a few points."""
        parameters = list(self.parameters.values())
        change = [torch.linspace(-1, 1, p.numel()).to(p).reshape(p.shape) for p in parameters]
        weights = torch.linspace(0.5, 1.5, y.numel()).to(y).reshape(y.shape)
        grads = gradients(y, parameters, weights)
        true = sum(float((g * c).sum()) for g, c in zip(grads, change, strict=True) if g is not None)
        try:
            with torch.no_grad(), self._in_float64():
                moved = moved_outputs(self.model, dict(zip(self.names, change, strict=True)), few) - y
        except UnsupportedModel:
            return False
        ours = float((moved * weights).sum())
        return abs(ours - true) <= 1e-8 * max(abs(true), float((moved * weights).abs().sum()))

    @property
    def _together(self) -> int:
        """How many points run together, or copies of points: fewer where a map is used at many positions."""
        return max(1, min(POINTS, ENTRIES // max(1, self._entries)))

    def _plan(self, y: Tensor, tap: _Tap) -> list[_Group]:
        """Decide which parameters factor, and check every factored row against automatic differentiation."""
        missing = InvalidInput(
            f"The model's output does not depend on {self.names}: {CUT}. Choose another layer, or a method that needs "
            'no gradients of the model (method="egnn").'
        )
        if not y.requires_grad:
            raise missing
        parameters = list(self.parameters.values())
        weights = torch.linspace(0.5, 1.5, y[0].numel(), dtype=y.dtype, device=y.device).reshape(y.shape[1:])

        def true(point: int) -> dict[str, Tensor]:
            grads = gradients(y[point], parameters, weights)
            if all(g is None for g in grads):
                raise missing
            filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
            return dict(zip(self.names, filled, strict=True))

        true(0)
        self._shared = set() if self.independent else self._shared_maps(y, tap, weights, true)
        groups: list[_Group] = []
        done: set[str] = set()
        for name in self.names:
            uses = tap.uses.get(name, [])
            if name in done or not uses or not self.independent or any(len(u.output) != len(y) for u in uses):
                continue
            is_weight = self.parameters[name].ndim >= 2
            bias = name.removesuffix("weight") + "bias" if name.endswith("weight") else None
            bias = bias if bias in self.parameters and bias not in done else None
            group = _Group(name, bias) if is_weight else _Group(None, name)
            seeds = weights.expand_as(y)
            deltas = gradients(y, [u.output for u in uses], seeds)
            parts = [_numpy(u.by_position(d, len(y))) for u, d in zip(uses, deltas, strict=True)]
            delta, inputs = np.concatenate(parts, 1), self._inputs_of(group, uses)
            self._entries += delta[0].size + inputs[0].size
            block = Factored(delta, np.arange(len(y)), inputs).folded()
            for point in range(len(y)):  # one at a time: a row that belongs to another point must show
                want = self._flat(true(point), group)
                got = block.take(np.asarray([point])).rmatvec(np.ones(1))
                if got.shape != want.shape or np.abs(got - want).max() > 1e-8 * max(np.abs(want).max(), 1e-12):
                    break
            else:
                groups.append(group)
                done.update(group.names)
        return groups + [_Group(None, None, n) for n in self.names if n not in done]

    def _shared_maps(self, y: Tensor, tap: _Tap, weights: Tensor, true: Callable[[int], dict[str, Tensor]]) -> set[str]:
        """Return the weights of maps which all of a graph's nodes share, and whose uses account for their gradients.

        Gradients reach few of these nodes, which makes rows much cheaper than automatic differentiation of the weight.
        """
        found = {n for n, uses in tap.uses.items() if uses and self.parameters[n].ndim == 2}
        found = {n for n in found if all(u.output.ndim == 2 for u in tap.uses[n])}
        for point in range(min(len(y), PROBES)):
            if not found:
                break
            names = sorted(found)
            want, got = true(point), self._gradients((y[point] * weights).sum(), names, tap, found)
            for name, g in zip(names, got, strict=True):
                if (g - want[name]).abs().max() > 1e-8 * max(float(want[name].abs().max()), 1e-12):
                    found.discard(name)
        return found

    def _gradients(self, scalar: Tensor, names: list[str], tap: _Tap, shared: set[str]) -> list[Tensor]:
        """Return the gradient of a scalar with respect to each named parameter, zero where it has no effect."""
        uses = [u for n in names if n in shared for u in tap.uses[n]]
        rest = [self.parameters[n] for n in names if n not in shared]
        grads = gradients(scalar, [*(u.output for u in uses), *rest])
        at_use, plain = iter(zip(uses, grads, strict=False)), iter(grads[len(uses) :])
        found = []
        for name in names:
            total = torch.zeros_like(self.parameters[name])
            if name not in shared:
                g = next(plain)
                total = total if g is None else g
            else:
                for use, delta in itertools.islice(at_use, len(tap.uses[name])):
                    if delta is not None:
                        reached = torch.nonzero(delta.abs().amax(1)).flatten()
                        total += delta[reached].T @ use.inputs()[reached]
            found.append(total.detach())
        return found

    def _inputs_of(self, group: _Group, uses: list[_Use]) -> Array:
        """Return (points, P, inp), what a group's map is applied to, with ones for its bias."""
        parts = []
        for use in uses:
            a = use.inputs()
            a = a.reshape(len(a), -1, a.shape[-1])
            parts.append(_numpy(a if group.weight is not None else a[..., :0]))
        inputs = np.concatenate(parts, 1)
        return inputs if group.bias is None else np.concatenate([inputs, np.ones((*inputs.shape[:2], 1))], 2)

    def _flat(self, tensors: dict[str, Tensor], group: _Group) -> Array:
        """Return one group's parameters as the flat vector that its block multiplies."""
        parts = [_numpy(tensors[name]) for name in group.names]
        if group.plain is not None:
            return parts[0].ravel()
        return np.concatenate([part.reshape(len(part), -1) for part in parts], 1).ravel()

    def flatten(self, tensors: dict[str, Tensor]) -> Array:
        """Return a change given by parameter name as a flat vector (n,)."""
        return np.concatenate([self._flat(tensors, g) for g in self.groups])

    def unflatten(self, d: Array) -> dict[str, Tensor]:
        """Return a flat change (n,) by parameter name, float64, shaped like the parameters."""
        out: dict[str, Tensor] = {}
        start = 0
        for group in self.groups:
            shapes = {name: self._start[name].shape for name in group.names}
            size = sum(shape.numel() for shape in shapes.values())
            rows = 1 if group.plain is not None else shapes[group.names[0]][0]
            matrix = d[start : start + size].reshape(rows, -1)
            column = 0
            for name, shape in shapes.items():
                width = shape.numel() // rows
                part = np.ascontiguousarray(matrix[:, column : column + width]).reshape(shape)
                out[name], column = torch.from_numpy(part), column + width
            start += size
        return {n: out[n].to(self.like.device) for n in self.names}

    def move(self, d: Array) -> None:
        """Set the chosen parameters to their start plus the change d."""
        with torch.no_grad():
            for name, change in self.unflatten(d).items():
                self.parameters[name].copy_(self._start[name] + change)

    @torch.no_grad()
    def outputs(self, inputs: AnyInputs, d: Array | None = None) -> Tensor:
        """Return the outputs at the current parameters, plus, when d is given, their first-order change along d."""
        inputs = self.prepare(inputs)
        with self._in_float64():
            if d is None:
                return call(self.model, inputs)
            return moved_outputs(self.model, self.unflatten(d), inputs, self.channels)

    def outputs_in_batches(self, inputs: AnyInputs, d: Array | None = None) -> Tensor:
        """Return `outputs` of any number of points, on the CPU."""
        if not self.independent:
            return self.outputs(inputs, d).cpu()
        return torch.cat([self.outputs(inputs[step], d).cpu() for step in batches(inputs)])

    def features(self, inputs: AnyInputs) -> Tensor | None:
        """Return (points, inp), the last map's inputs, when `ends_affine` and it is applied once per point."""
        group = self.groups[0]
        if group.keyed:
            return self._keys(inputs)
        found = []
        for step in batches(inputs):
            y, tap = self._run(self.prepare(inputs[step]))
            if not self.ends_affine or y.ndim != 2:
                return None
            a = tap.uses[group.tapped][0].inputs()
            a = a if group.weight else a[:, :0]
            found.append(torch.cat([a, a.new_ones(len(a), 1)], 1) if group.bias else a)
        return torch.cat(found).cpu()

    def matrix(self, d: Array) -> Tensor:
        """Return a flat change of a single linear map as (out, inp)."""
        return torch.from_numpy(d.reshape(self._start[self.groups[0].names[0]].shape[0], -1))

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
        cuts = range(0, len(unique), self._together) if self.independent else [0]
        for start in cuts:
            stop = start + self._together if self.independent else len(unique)
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
            found = self._keys(inputs[chunk]) if self.independent else self._keys(inputs)[chunk]
            out = self._start[self.names[0]].shape[0]
            cotangents = criterion.rows(point, condition, found.new_zeros(1, out)).to(found)
            return Rows((Factored(_numpy(cotangents)[:, None], local.numpy(), _numpy(found)[:, None]),))
        sub = self.prepare(inputs[chunk] if self.independent else inputs)
        y, tap = self._run(sub)
        plain = [g.plain for g in self.groups if g.plain is not None]
        blocks = self._factored_rows(sub, y, tap, criterion, local, point, condition)
        if plain:
            cotangents = criterion.rows(point, condition, y[:1].detach()).to(y)
            blocks += self._plain(y, tap, local if self.independent else point, cotangents, plain)
        return Rows(tuple(blocks))

    def _factored_rows(
        self,
        sub: AnyInputs,
        y: Tensor,
        tap: _Tap,
        criterion: Criterion,
        local: Tensor,
        point: Tensor,
        condition: Tensor,
    ) -> list[Block]:
        """Return the rows of every group that factors.

        Args:
            sub, y, tap: points, and how the model ran on them.
            criterion, local, point, condition: the rows: conditions of points, and where in `sub` these are.
        """
        factored = [g for g in self.groups if g.plain is None]
        if not factored:
            return []
        applied_to = [self._inputs_of(g, tap.uses[g.tapped]) for g in factored]
        passes = []
        count = self._together if len(local) > len(y) else len(local)
        for part in torch.split(torch.arange(len(local)), count):
            cotangents = criterion.rows(point[part], condition[part], y[:1].detach()).to(y)
            deltas = self._deltas(sub, y, tap, cotangents, local[part])
            at = local[part].numpy()
            passes.append([Factored(d, at, a).folded() for d, a in zip(deltas, applied_to, strict=True)])
        return [stacked(parts) for parts in zip(*passes, strict=True)]

    def _deltas(self, sub: AnyInputs, y: Tensor, tap: _Tap, cotangents: Tensor, local: Tensor) -> list[Array]:
        """Return, for every group that factors, (rows, P, out): gradients at its map's outputs.

        One backward pass serves one row of every point. For several rows of a point the model runs on copies of it; for
        the map that is the model's last operation no pass is needed.
        """
        if self.ends_affine:
            return [_numpy(tap.uses[self.groups[0].tapped][0].by_position(cotangents, len(local)))]
        if len(torch.unique(local)) < len(local):
            assert self.independent
            y, tap = self._run(sub[local])
            local = torch.arange(len(local))
        seed = torch.zeros_like(y).index_put_((local,), cotangents)
        used = [tap.uses[g.tapped] for g in self.groups if g.plain is None]
        grads = iter(gradients(y, [u.output for uses in used for u in uses], seed))
        found = []
        for uses in used:
            parts = [
                u.by_position(None if d is None else d[local], len(local)) for u, d in zip(uses, grads, strict=False)
            ]
            found.append(np.concatenate([_numpy(part) for part in parts], 1))
        return found

    def _plain(self, y: Tensor, tap: _Tap, where: Tensor, cotangents: Tensor, names: list[str]) -> list[Block]:
        parameters = [self.parameters[n] for n in names]
        size = sum(p.numel() for p in parameters)
        if size * len(where) > DENSE_LIMIT:
            raise UnsupportedModel(
                f"Parameters {names} ({size} numbers) cannot be factored, and {len(where)} plain rows of them "
                "would not fit in memory. Choose a linear or convolution layer, or fewer edits."
            )
        rows: list[list[Array]] = [[] for _ in names]
        for w, cotangent in zip(where.tolist(), cotangents, strict=True):
            for k, g in enumerate(self._gradients((y[w] * cotangent).sum(), names, tap, self._shared)):
                rows[k].append(_numpy(g).ravel())
        return [Dense(np.stack(r)) for r in rows]

    def metric(self, inputs: AnyInputs, kind: Kind | None = None) -> Metric:
        """Return the drift metric over `inputs`: second moments of each map's inputs, Fisher diagonal elsewhere.

        Args:
            inputs: the points on which drift is measured.
            kind: what outputs stand for, see `fisher_diagonal`; numbers by default.
        """
        if self.groups[0].keyed:
            k = _numpy(self._keys(inputs))
            return Metric([_root(k.T @ k / len(k))])
        moments = self._moments(inputs) if any(g.plain is None for g in self.groups) else {}
        plain = [g.plain for g in self.groups if g.plain is not None]
        fisher = self._fisher(inputs, plain, Regression() if kind is None else kind) if plain else {}
        factors: list[Array] = []
        for group in self.groups:
            if group.plain is None:
                factors.append(_root(moments[group.tapped] / len(inputs)))
            else:
                diagonal = fisher[group.plain]
                factors.append(np.sqrt(diagonal + RIDGE * max(float(diagonal.mean()), 1e-12)))
        return Metric(factors)

    def drift_unit(self, kind: Kind) -> str:
        """Say what the drift norm measures, the square root of `metric`."""
        layers = "root mean square change of the layer's output on the locality set"
        nats = "twice the nats by which its decisions move" if kind.decides else "mean square change of the outputs"
        others = f"root of the {nats} there, to second order and one parameter at a time"
        plain = [g.plain is not None for g in self.groups]
        return others if all(plain) else f"{layers}; for other parameters, {others}" if any(plain) else layers

    def _moments(self, inputs: AnyInputs) -> dict[str, Array]:
        """Return the sum of a a^T over all inputs a of each map, at every position, by the map's name."""
        moments: dict[str, Array] = {}
        for start in range(0, len(inputs), POINTS * 4):
            index = torch.arange(start, min(len(inputs), start + POINTS * 4))
            _, tap = self._run(self.prepare(inputs[index] if self.independent else inputs))
            for group in self.groups:
                for use in tap.uses[group.tapped] if group.plain is None else []:
                    a = use.inputs()
                    a = a.reshape(-1, a.shape[-1])
                    a = a if group.weight else a[:, :0]
                    if group.bias is not None:
                        a = torch.cat([a, a.new_ones(len(a), 1)], 1)
                    moments[group.tapped] = moments.get(group.tapped, np.zeros(())) + _numpy(a.T @ a)
            if not self.independent:
                break
        return moments

    def _fisher(self, inputs: AnyInputs, names: list[str], kind: Kind) -> dict[str, Array]:
        """Return the Fisher diagonal of plain parameters, flat, by name."""
        inputs = self.prepare(inputs)
        if not self.independent:
            return self._sketched(inputs, names, kind)
        classes = self.outputs(inputs[torch.tensor([0])])[0].numel()
        draws = -(-GRADIENTS // len(inputs))
        labels: Labels = "exact" if classes <= draws else "sampled"
        found = fisher_diagonal(self.model, names, inputs, kind=kind, labels=labels, draws=draws)
        return {name: _numpy(f).ravel() for name, f in found.items()}

    def _sketched(self, inputs: AnyInputs, names: list[str], kind: Kind) -> dict[str, Array]:
        """Return what is on average the Fisher diagonal: one pass serves all points, each with a label of its own.

        Scores of labels are zero on average, so the products of different points vanish.
        """
        y, _ = self._run(inputs)
        parameters, generator = [self.parameters[n] for n in names], torch.Generator().manual_seed(0)
        total = {n: np.zeros(self.parameters[n].numel()) for n in names}
        for _ in range(SKETCHES):
            score = kind.score(y.detach(), kind.sample(y.detach(), generator))
            scalar = (flat(y) * score.to(y)).sum()
            grads = gradients(scalar, parameters)
            for name, g in zip(names, grads, strict=True):
                total[name] += 0.0 if g is None else _numpy(g).ravel() ** 2 / (SKETCHES * len(y))
        return total


def _spread(inputs: AnyInputs, count: int) -> AnyInputs:
    """Return at most `count` points, evenly spread."""
    return inputs[torch.arange(0, len(inputs), max(1, len(inputs) // count))[:count]]


def _root(C: Array) -> Array:
    """Return the Cholesky factor of a second moment and its ridge."""
    mean = float(np.trace(C)) / len(C)
    if mean < 1e-200:  # keys that are zero throughout tell no change from another
        return np.eye(len(C))
    C[np.diag_indices_from(C)] += RIDGE * mean
    return np.asarray(np.linalg.cholesky(C), np.float64)
