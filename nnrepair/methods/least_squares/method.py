"""Edits as keys and values that are inserted in a layer's weights, in closed form: ROME and its relatives.

After Meng et al., "Locating and editing factual associations in GPT" (ROME, NeurIPS 2022) and "Mass-editing memory in a
transformer" (MEMIT, ICLR 2023); Gupta et al., "A unified framework for model editing" (EMMET, 2024); Li et al., "PMET:
precise model editing in a transformer" (AAAI 2024); Fang et al., "AlphaEdit: null-space constrained knowledge editing"
(ICLR 2025). A layer is read as a memory: at the key of an edit, what the layer is applied to, it is to return a value
with which the edit holds, and at the keys of the points to keep what it returned before.

What differs from the published codes, which are for language models:

* Any linear layer, convolution or layer of a graph network whose outputs are linear in its weights. A bias is part of
  the map, by a one in every key. Where a layer inside has several positions for an edit, its key is their mean.
* At the network's end values are found in closed form; inside they come by descent that stops when the edits hold, and
  that runs the network with the exact insertion of what was found so far: of one edit with one position this is the
  network with the value put in; of several, and of nodes of a graph, also what they do to each other is seen.
* An edit's key inside is the mean of its own and those of its neighbours, and its value is sought for all of them, as
  the codes do it with random texts before a prompt.
* Keys to keep are those of the locality set, not of an encyclopedia; without one all directions count alike.
* Whether the edits hold is measured after the insertion, and what is missing is inserted again, at most `rounds` times.
* With several layers, which need no residual stream here, each writes its share of what is missing at its own outputs.
* Weights of ridges, and what counts as null space, are relative to the keys' sizes, which differ between networks.
* PMET's other half, targets optimised for attention and feed-forward outputs together, is about transformers alone.
* AlphaEdit's sum over the keys of past edits is `fix(mode="successive", rehearsal=True)`, which gives them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.files import as_path
from nnrepair.jacobian.layers import modules, moved
from nnrepair.jacobian.moments import root
from nnrepair.methods import options
from nnrepair.methods.base import Capabilities, Proposal, register
from nnrepair.methods.least_squares import insertion, targets
from nnrepair.methods.least_squares import stored as moments
from nnrepair.methods.least_squares.linear_map import LinearMap
from nnrepair.rounding import that_hold
from nnrepair.spec.criteria import Criterion
from nnrepair.spec.edits import Edits
from nnrepair.spec.inputs import AnyInputs, about
from nnrepair.spec.network import plain
from nnrepair.spec.problem import Problem
from nnrepair.spec.running import call_with, outputs
from nnrepair.wrappers.codebook import Seen

Constraint = Literal["exact", "ridge", "null-space"]
Share = Literal["even", "root"]
#: Outputs aim this far beyond the margin asked for, relative to the typical one, and so many roundings; with a ridge,
#: which writes a part of what is missing in each round, farther.
BEYOND, WITH_RIDGE, ROUNDINGS = 1e-4, 0.05, 8
ADVICE = "a larger margin, more rounds or steps, a smaller ridge, another layer (layers=...), or another method"


@dataclass(frozen=True)
class LeastSquares:
    """Give the keys of the edits new values in a layer's weights, in closed form, so that those of others stay.

    Example:
        >>> LeastSquares(layers="fc3").capabilities.keeps_architecture
        True

    Args:
        layers: the name of a layer, or of several, of which each writes its share; "auto" takes the last.
        constraint: "exact" gives every key its value, with the smallest mean square change of the others' (ROME, and
            for several edits EMMET); "ridge" weighs both against each other (MEMIT, PMET); "null-space" moves nothing
            in the directions of the others' keys (AlphaEdit).
        share: of several layers, a layer with k after it writes 1 / (k + 1) of what is missing ("even", MEMIT), or
            1 / sqrt(k + 1) ("root", PMET).
        ridge: the weight of what is to stay: in points for each input of the layer (MEMIT has about 1); for
            "null-space" of the change itself, relative to the keys' mean square.
        null: directions that have together at most this share of the kept keys' mean square are "null-space".
        margin: by how much every edit must hold, in output units.
        rounds: of insertions, at most; none is made once all edits hold.
        steps, lr, longest: of values inside the network: Adam's steps and step size, relative to the typical output of
            the layer; and how many times the layer's output they gain in a round, at most.
        moments: a file of the second moments of keys to keep, which takes the place of the locality set's where it has
            them of this very network and layer; else they are computed and written there. So the keys of a large set
            are read once for all repairs of a network.

    Raises:
        InvalidInput: hyper-parameters that cannot be, or layers that are not there or no linear maps.
        PatchError: the file of moments is damaged.
    """

    layers: str | Sequence[str] = field(default="auto", metadata={"flag": "layer"})
    constraint: Constraint = "exact"
    share: Share = "even"
    ridge: float = 1.0
    null: float = 0.01
    margin: float = 0.0
    rounds: int = 50
    steps: int = 200
    lr: float = 0.1
    longest: float = 4.0
    moments: str | None = None

    def __post_init__(self) -> None:
        options.one_of(self, constraint=get_args(Constraint), share=get_args(Share))
        options.whole(self, "rounds", "steps")
        options.number(self, "ridge", "lr", "longest")
        options.number(self, "null", "margin", zero=True)
        if self.null > 1:
            raise InvalidInput(f"null is a share, at most 1, got {self.null!r}.")
        if self.moments is not None:
            object.__setattr__(self, "moments", str(as_path(self.moments, "moments")))
        names = self.layers if isinstance(self.layers, str) else tuple(self.layers)
        if not names or not all(isinstance(name, str) for name in ([names] if isinstance(names, str) else names)):
            raise InvalidInput(f"layers must be a name or several names, got {self.layers!r}.")
        object.__setattr__(self, "layers", names)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("direct", False, "same", False, True, True, regions=False, neighbours=True)

    def repair(self, problem: Problem) -> Proposal:
        """Propose the network with the edits' keys and values inserted, see the class."""
        names = modules(problem.model, self.layers)
        task = _Task(self, problem, names)
        with torch.enable_grad():
            model, rounds = task.inserted()
        stats = {"layers": [plain(name) for name in names], "rounds": rounds}
        return Proposal(model, stats, task.notes, advice=ADVICE)


@dataclass(frozen=True)
class _Kept:
    """A layer, and the second moment of its keys at the points to keep, with a little ridge, and a root of it."""

    layer: LinearMap
    moment: Tensor
    root: Tensor
    null: Tensor | None


class _Task:
    """One repair: its layers, and the second moments there."""

    def __init__(self, method: LeastSquares, problem: Problem, names: list[str]) -> None:
        self.method, self.problem, self.names = method, problem, names
        self.notes: list[str] = []
        self._known: tuple[Tensor, Tensor] | None = None
        locality = problem.locality
        if locality is None and method.moments is None:
            self.notes.append("no locality set: all directions of keys count alike.")
        self.near = _owned(problem.edits)
        self.points = [part.inputs for part in (problem.edits, self.near, locality) if part is not None]
        #: What is known of the layers of the network as it was, which all edits of it share.
        key = ("least squares", tuple(names), method.constraint, method.null, method.moments)
        self.kept: dict[str, _Kept] = problem.once(key, lambda: {name: self._kept(name) for name in names})
        if any(kept.null is not None and not bool(kept.null.any()) for kept in self.kept.values()):
            self.notes.append(f"the keys to keep leave no direction free: null={method.null:g} is too small a share.")
        y = problem.answers.double()
        rounding = ROUNDINGS * torch.finfo(problem.answers.dtype).eps * float(y.abs().amax())
        beyond = BEYOND if method.constraint == "exact" else WITH_RIDGE
        self.aim = method.margin + beyond * problem.edits.criterion.typical_slack(y) + rounding

    def inserted(self) -> tuple[nn.Module, int]:
        """Return the network in which most edits hold, and after how many rounds that is."""
        model, best, rounds, count = self.problem.model, self.problem.model, 0, len(self.problem.edits)
        most = self._holding(model)
        for k in range(self.method.rounds):
            if most == (count, count):
                break
            for after, name in reversed(list(enumerate(reversed(self.names)))):
                share = 1 / (after + 1) ** (1.0 if self.method.share == "even" else 0.5)
                model = self._written(model, name, share)
            holding = self._holding(model)
            if holding > most:
                best, most, rounds = model, holding, k + 1
        holds, enough = most
        if holds < count:
            self.notes.append(f"returned the weights under which most edits held: {holds}.")
        elif enough < count:
            only = ("" if holds == 1 else "only ") + that_hold(enough, holds, "edit")
            self.notes.append(f"{only} with the margin asked for, {self.method.margin:g}.")
        return moved(best, {}), rounds

    def _holding(self, model: nn.Module) -> tuple[int, int]:
        """Return how many edits hold, and how many do so with the margin asked for."""
        y = outputs(model, self.problem.edits.inputs).double()
        criterion = self.problem.edits.criterion
        holds = criterion.holds(y)
        return int(holds.sum()), int((holds & (criterion.margin(y) >= self.method.margin)).sum())

    def _written(self, model: nn.Module, name: str, share: float) -> nn.Module:
        """Return the network with a share of what is missing at one layer inserted there."""
        edits, kept, layer = self.problem.edits, self.kept[name], self.kept[name].layer
        last = self._is_last(model, name)
        if len(self.names) > 1:  # earlier layers have changed what this one is applied to
            layer = LinearMap(model, name, [edits.inputs if last else about(edits.inputs)])
        keys, values = self._seen(layer, last)
        if last:
            y = outputs(model, edits.inputs).double()
            missing = layer.by_position(targets.at_outputs(edits.criterion, y, self.aim) - y).cpu()
            K, R = keys.flatten(0, 1), missing.flatten(0, 1)
        else:
            K, R = keys, self._gains(model, layer, keys, values, kept)
        if not bool(torch.isfinite(K).all() and torch.isfinite(R).all()):
            return model
        matrix = self._change(K, share * R, kept)
        return moved(model, layer.change(matrix)) if bool(torch.isfinite(matrix).all()) else model

    def _seen(self, layer: LinearMap, last: bool) -> tuple[Tensor, Tensor]:
        """Return keys and values of the edits at a layer; of the only one that changes they are asked for once.

        (edits, positions, ...) of the last layer; (edits, ...) of one inside, where there is one place to write to.
        """
        if len(self.names) > 1 or self._known is None:
            inputs = self.problem.edits.inputs
            keys, values = layer.seen(inputs if last else about(inputs))
            self._known = (keys, values) if last else (self._with_neighbours(layer, keys.mean(1)), values.mean(1))
        return self._known

    def _gains(self, model: nn.Module, layer: LinearMap, K: Tensor, values: Tensor, kept: _Kept) -> Tensor:
        """Return (edits, out) what a layer inside the network should gain at keys, see `targets.inside`."""
        method, edits = self.method, self.problem.edits
        each = insertion.exact(K, torch.eye(len(K)).to(K), kept.root)  # what a gain of one at each key makes of weights
        weights = dict(model.named_parameters(remove_duplicate=False))
        start = {name: weights[name].detach() for name in layer.names}

        def missed(gains: Tensor) -> tuple[Tensor, Tensor]:
            change = layer.change(gains.T @ each)
            weights = {n: w + change[n].to(w) for n, w in start.items()}
            losses, holds = self._missed(edits, call_with(model, weights, edits.inputs).double())
            if self.near is None:
                return losses, holds
            more, reached = self._missed(self.near, call_with(model, weights, self.near.inputs).double())
            of = self.near.of.to(losses.device)
            return losses.index_add(0, of, more), holds & ~torch.isin(torch.arange(len(edits)), of[~reached])

        return targets.inside(missed, values, steps=method.steps, lr=method.lr, longest=method.longest)

    def _missed(self, points: Edits | _Near, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return every point's loss at outputs y, and whether it holds by what is aimed at."""
        criterion = points.criterion
        return criterion.loss(y, self.aim), criterion.margin(y.detach()) >= self.aim

    def _with_neighbours(self, layer: LinearMap, keys: Tensor) -> Tensor:
        """Return the mean (edits, inp) of every edit's key (edits, inp) and those of its neighbours."""
        if self.near is None:
            return keys
        of, more = self.near.of, layer.seen(about(self.near.inputs))[0].mean(1)
        count = 1 + torch.bincount(of, minlength=len(keys))[:, None]
        return keys.index_add(0, of, more) / count

    def _change(self, K: Tensor, R: Tensor, kept: _Kept) -> Tensor:
        """Return (out, inp) by how much the layer's weights change."""
        if self.method.constraint == "exact":
            return insertion.exact(K, R, kept.root)
        if self.method.constraint == "ridge":
            return insertion.ridge(K, R, kept.moment, self.method.ridge * K.shape[1])
        assert kept.null is not None
        mean = float((K @ kept.null).square().sum(1).mean()) or 1.0
        return insertion.within(K, R, kept.null, self.method.ridge * mean)

    def _is_last(self, model: nn.Module, name: str) -> bool:
        """Whether what the layer returns is what the network returns."""
        a, b = (outputs(net, self.problem.edits.inputs) for net in (Seen(model, name, output=True), model))
        return a.shape == b.shape and torch.equal(a, b)

    def _kept(self, name: str) -> _Kept:
        model = self.problem.model
        last = self._is_last(model, name)
        layer = LinearMap(model, name, self.points if last else [about(points) for points in self.points])
        moment = self._moment(name, layer)
        if moment is None:
            one = torch.eye(layer.inputs, dtype=torch.float64)
            return _Kept(layer, one, one, one)
        null = insertion.null_space(moment, self.method.null) if self.method.constraint == "null-space" else None
        lower = torch.from_numpy(root(moment.numpy().copy()))
        return _Kept(layer, lower @ lower.T, lower, null)

    def _moment(self, name: str, layer: LinearMap) -> Tensor | None:
        """Return the second moment of the keys to keep, as a file has it, or of the locality set; None without both."""
        model, locality, file = self.problem.model, self.problem.locality, self.method.moments
        stored = {} if file is None else moments.read(Path(file), model)
        if stored is not None and name in stored:
            self.notes.append(f"the keys to keep at {plain(name)} are those of {file}.")
            if stored[name].shape != (layer.inputs, layer.inputs):
                raise InvalidInput(
                    f"{file} has a moment {tuple(stored[name].shape)} of {plain(name)}, whose keys have {layer.inputs} "
                    "numbers. Delete the file, and it is made anew."
                )
            return stored[name]
        found = None if locality is None else layer.moment(locality.inputs)
        if file is not None and found is not None and stored is not None:
            moments.write(Path(file), model, stored | {name: found})
        elif file is not None:
            why = "is of another network, and stays as it is" if stored is None else "has no such layer"
            self.notes.append(f"{file} {why}; the keys to keep at {plain(name)} are those of the locality set, if any.")
        return found


@dataclass(frozen=True)
class _Near:
    """Neighbours of edits, and whose each is."""

    inputs: AnyInputs
    criterion: Criterion
    of: Tensor


def _owned(edits: Edits) -> _Near | None:
    """Return the neighbours of edits.

    Raises:
        InvalidInput: they do not say whose they are.
    """
    near = edits.neighbours
    if near is None or len(near) == 0:
        return None
    if near.of is None and len(edits) > 1:
        raise InvalidInput("The edits' neighbours must say whose each is: EditScope(inputs, labels, of=...).")
    of = torch.zeros(len(near), dtype=torch.int64) if near.of is None else near.of.cpu()
    return _Near(near.inputs, near.criterion, of)


def _memit() -> LeastSquares:
    """New values for the edits' keys in a layer's weights or several layers', weighed against those of other keys."""
    return LeastSquares(constraint="ridge")


def _pmet() -> LeastSquares:
    """As memit, with less weight on other keys, and layers before the last that write more."""
    return LeastSquares(constraint="ridge", share="root", ridge=0.4)


def _alphaedit() -> LeastSquares:
    """New values for the edits' keys in a layer's weights, by changes in the null space of the keys to keep."""
    return LeastSquares(constraint="null-space", ridge=0.1)


register("rome", LeastSquares)
register("emmet", LeastSquares)
register("memit", _memit)
register("pmet", _pmet)
register("alphaedit", _alphaedit)
