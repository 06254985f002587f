"""A network cut where chosen parameters begin to matter: what comes before them is computed once per point.

A repair runs the network hundreds of times with other values of a few parameters; only the part behind them changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from nnrepair.jacobian.tangents import canonical
from nnrepair.spec.inputs import AnyInputs, Arguments, Inputs, batches, independent, to_like
from nnrepair.spec.running import call, call_with, named

#: Points on which cut and network are compared.
PROBES = 3
#: Numbers that may be stored for one set of points, and that run together.
STORED, RUNNING = 200_000_000, 16_000_000
#: How far a cut may be from the network, in roundings of its largest output: batches of other sizes round otherwise.
ROUNDINGS = 64


@dataclass(frozen=True)
class Suffix:
    """The part of a network that depends on chosen parameters, which runs on what the other part computes.

    Attributes:
        module: the part behind; it takes what `values` returns. Its parameters are the network's own, and have their
            names.
        prefix: the part before, which returns a tuple of tensors; None where the network could not be taken apart, and
            `module` is the whole of it.
    """

    module: nn.Module
    prefix: nn.Module | None

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, names: Sequence[str], example: AnyInputs) -> Suffix:
        """Cut a network, or take it whole where it cannot be traced, or the parts are not what it is.

        Args:
            model: in eval mode.
            names: of the chosen parameters.
            example: points on which the cut is tried.
        """
        whole = cls(model, None)
        if len(example) == 0 or not independent(example):
            return whole
        some = example[torch.arange(PROBES) % len(example)], example[torch.zeros(1, dtype=torch.int64)]
        ways: list[Callable[[], Suffix | None]] = [partial(_head, model, names, home) for home in _homes(model, names)]
        if isinstance(example, (Tensor, Arguments)):
            ways.insert(0, partial(_cut, model, names))
        for way in ways:
            try:
                cut = way()
                if (
                    cut is not None
                    and all(cut._agrees(model, few) for few in some)
                    and cut._stays(model, names, some[0])
                ):
                    return cut
            except Exception:  # tracing, and parts that run on their own, raise what the user's forward raises
                continue
        return whole

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in."""
        return next(p.dtype for p in self.module.parameters() if p.dtype.is_floating_point)

    def values(self, inputs: AnyInputs, check: Callable[[], None] = lambda: None) -> AnyInputs:
        """Return what `module` runs on for these points: in memory, or computed when needed where that is too much.

        Args:
            inputs: the points, in any floating dtype where there is a part before.
            check: called before each batch; may raise.
        """
        if self.prefix is None or len(inputs) == 0:
            return inputs
        later = Values(self, inputs)
        if len(inputs) * later.size > STORED:
            return later
        parts = []
        for index in batches(inputs, later.batch):
            check()
            parts.append(self.now(inputs[index]).positional)
        return Arguments(tuple(torch.cat(part) for part in zip(*parts, strict=True)))

    @torch.no_grad()
    def now(self, inputs: AnyInputs) -> Arguments:
        """Return the values of one batch."""
        assert self.prefix is not None
        loaded = inputs if isinstance(inputs, Tensor) else inputs.loaded()
        loaded = to_like(loaded, next(p for p in self.module.parameters() if p.dtype.is_floating_point))
        with named("The model failed on some of the points", "It ran on others."):
            return Arguments(self.prefix(loaded) if isinstance(loaded, Tensor) else loaded.call(self.prefix))  # type: ignore[arg-type]  # the traced part returns a tuple

    def _agrees(self, model: nn.Module, few: AnyInputs) -> bool:
        """Whether cut and network are the same on some points, and nothing that was stored is written to."""
        y, values = call(model, few), self.now(few)
        if any(not isinstance(part, Tensor) or part.shape[:1] != (len(few),) for part in values.positional):
            return False
        before = values.copied()
        again = call(self.module, values)
        untouched = [torch.equal(a, b) for a, b in zip(values.positional, before.positional, strict=True)]
        if not all(untouched):
            return False
        unit = torch.finfo(y.dtype).eps * float(y.abs().max())
        return bool(again.shape == y.shape and float((again - y).abs().max()) <= ROUNDINGS * unit)

    def _stays(self, model: nn.Module, names: Sequence[str], few: AnyInputs) -> bool:
        """Whether the part before is the same with other values of the parameters, and the rest is the network."""
        if not isinstance(self.prefix, _Before):  # the network's operations say so
            return True
        parameters = dict(model.named_parameters(remove_duplicate=False))
        other = {name: parameters[name] * 1.5 + 0.5 for name in names}
        values, moved = self.now(few), replace(self, prefix=self.prefix.moved(other)).now(few)
        y, again = call_with(model, other, few), call_with(self.module, other, values)
        unit = torch.finfo(y.dtype).eps * float(y.abs().max())
        same = torch.equal(values.positional[0], moved.positional[0])
        return same and float((again - y).abs().max()) <= ROUNDINGS * unit


class Behind:
    """A network on some points, at any values of chosen parameters; what comes before these runs once.

    Args:
        model: in eval mode.
        names: of the chosen parameters.
        inputs: the points.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.ones(4, 2)
        >>> behind = Behind(net, ["2.bias"], x)
        >>> torch.allclose(behind.outputs({"2.bias": net[2].bias + 1}), net(x) + 1)
        True
    """

    def __init__(self, model: nn.Module, names: Sequence[str], inputs: AnyInputs) -> None:
        cut = Suffix.of(model, names, inputs)
        self._module, self._values = cut.module, cut.values(inputs)

    def outputs(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs (n, ...) with these values of the chosen parameters, differentiable."""
        return call_with(self._module, dict(parameters), self._values)


class Values(Inputs):
    """What a suffix runs on, computed batch by batch whenever it runs.

    Args:
        suffix, inputs: what runs, and the points.
        like: a tensor of the dtype and device of the values; None for their own.

    Attributes:
        size: how many numbers the values of one point are.
    """

    def __init__(self, suffix: Suffix, inputs: AnyInputs, like: Tensor | None = None, size: int | None = None) -> None:
        self._suffix, self._inputs, self._like = suffix, inputs, like
        one = None if size is not None else suffix.now(inputs[torch.zeros(1, dtype=torch.int64)])
        self.size: int = sum(part.numel() for part in one.positional) if one is not None else size or 0
        most = len(batches(inputs)[0]) if len(inputs) else 1
        self.batch = max(1, min(most, RUNNING // max(1, self.size)))

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: Tensor) -> Values:
        return Values(self._suffix, self._inputs[index], self._like, self.size)

    def to(self, like: Tensor) -> Values:
        return Values(self._suffix, self._inputs, like, self.size)

    def call(self, model: nn.Module) -> Tensor:
        values = self._suffix.now(self._inputs)
        return (values if self._like is None else values.to(self._like)).call(model)


def _cut(model: nn.Module, names: Sequence[str]) -> Suffix | None:
    """Trace a network and take it apart, or return None where nothing is computed before the parameters."""
    graph = torch.fx.Tracer().trace(model)
    behind = _behind(model, names, graph)
    crossing = [n for n in graph.nodes if n not in behind and n.op != "get_attr" and not behind.isdisjoint(n.users)]
    if all(node.op == "placeholder" for node in crossing):
        return None
    before, after = torch.fx.Graph(), torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in graph.nodes:
        if node not in behind:
            copies[node] = before.node_copy(node, copies.__getitem__)
    before.output(tuple(copies[node] for node in crossing))
    copies = {node: after.placeholder(f"value_{k}") for k, node in enumerate(crossing)}
    for node in graph.nodes:
        if node in behind or (node.op == "get_attr" and not behind.isdisjoint(node.users)):
            copies[node] = after.node_copy(node, copies.__getitem__)
    module = torch.fx.GraphModule(model, after)
    used = dict(module.named_parameters(remove_duplicate=False))
    if not all(name in used for name in names):  # what the forward never uses
        return None
    return Suffix(module, torch.fx.GraphModule(model, before))


def _homes(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the modules that hold all chosen parameters, the smallest first, and nothing else of the same tensors."""
    first = canonical(model)
    chosen = {first[name] for name in names}
    everywhere = [name.rpartition(".")[0].split(".") for name, one in first.items() if one in chosen]
    together = list[str]()
    for step in zip(*everywhere, strict=False):
        if len(set(step)) > 1:
            break
        together.append(step[0])
    return [".".join(together[:k]) for k in range(len(together), 0, -1) if together[0]]


def _head(model: nn.Module, names: Sequence[str], home: str) -> Suffix | None:
    """Return a network as what one of its modules sees, and that module.

    Whether it is the last one, and runs once, is seen when both are compared.
    """
    graph = torch.fx.Graph()
    graph.output(graph.call_module(home, (graph.placeholder("value_0"),)))
    module = torch.fx.GraphModule(model, graph)
    used = dict(module.named_parameters(remove_duplicate=False))
    return Suffix(module, _Before(model, home)) if all(name in used for name in names) else None


class _SeenError(BaseException):
    """A module's input was seen; no error, and no business of whoever catches errors."""


class _Before(nn.Module):
    """A network as far as to one of its modules: what this sees, as a tuple of one tensor."""

    def __init__(self, model: nn.Module, home: str, swapped: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.__dict__.update(inner=model, home=home, swapped=swapped)  # not registered: it owns nothing

    def moved(self, parameters: dict[str, Tensor]) -> _Before:
        """Return the same of the network with other values of some parameters."""
        return _Before(self.__dict__["inner"], self.__dict__["home"], parameters)

    def forward(self, *args: Any, **keywords: Any) -> tuple[Tensor]:
        seen: list[Tensor] = []

        def look(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            if len(given) == 1 and not named:
                seen.append(given[0])
            raise _SeenError

        model, home, swapped = (self.__dict__[name] for name in ("inner", "home", "swapped"))
        handle = model.get_submodule(home).register_forward_pre_hook(look, with_kwargs=True)
        try:
            torch.func.functional_call(model, swapped or {}, args, keywords)
        except _SeenError:
            pass
        finally:
            handle.remove()
        (found,) = seen  # or there is no such cut
        return (found,)


def _behind(model: nn.Module, names: Sequence[str], graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """Return the operations that depend on the parameters, or that ask how many points there are."""
    first, modules = canonical(model), dict(model.named_modules())
    chosen = {first[name] for name in names}
    found: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_module":
            inside = modules[str(node.target)].named_parameters(remove_duplicate=False)
            mine = any(first[f"{node.target}.{name}"] in chosen for name, _ in inside)
        elif node.op == "get_attr":
            mine = first.get(str(node.target)) in chosen
        else:
            mine = node.op == "output" or node.target == "size" or (node.target is getattr and node.args[1] == "shape")
        if mine or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found
