"""What a network computes before it meets some chosen parameters, stored so that it runs once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.spec.inputs import AnyInputs
from nnrepair.spec.running import call_with

_Run = Callable[..., Any]


class Prefix:
    """A network on some points, for several values of the chosen parameters.

    The first run stores what modules return that end before the first module that owns a chosen parameter begins; later
    runs take it from there. Networks that use their modules' parameters without calling the modules store less.

    Args:
        model: the network; only the chosen parameters get gradients.
        weights: by name, the chosen parameters' values in the first run.
        inputs: the points.

    Attributes:
        first: (n, ...) outputs of the first run, without gradients.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.ones(4, 2)
        >>> prefix = Prefix(net, {"2.bias": torch.zeros(1)}, x)
        >>> torch.equal(prefix.outputs({"2.bias": torch.ones(1)}), prefix.first + 1)
        True
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor], inputs: AnyInputs) -> None:
        self.model, self.inputs = model, inputs
        known = dict(model.named_parameters())
        self._rest = {name: p.detach() for name, p in known.items() if name not in weights}
        chosen = {id(known[name]) for name in weights}
        #: Modules that have a chosen parameter themselves, and those with one somewhere below.
        self._owners = {m for m in model.modules() if any(id(p) in chosen for p in m.parameters(recurse=False))}
        self._holders = {m for m in model.modules() if any(id(p) in chosen for p in m.parameters())}
        self._calls: list[tuple[nn.Module, Tensor | None]] = []
        self._before = True
        with self._instead(self._recorded):
            # Outputs with gradients are those that the chosen parameters decide.
            self.first = self._run({name: w.detach().requires_grad_(True) for name, w in weights.items()}).detach()
        self._left: dict[nn.Module, Iterator[Tensor | None]] = {}

    def outputs(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs (n, ...) with these values of the chosen parameters."""
        stored: dict[nn.Module, list[Tensor | None]] = {}
        for module, y in self._calls:
            stored.setdefault(module, []).append(y)
        self._left = {module: iter(ys) for module, ys in stored.items()}
        with self._instead(self._replayed):
            return self._run(weights)

    def _run(self, weights: Mapping[str, Tensor]) -> Tensor:
        with torch.enable_grad():  # without gradients a data set would run in other batches
            return call_with(self.model, {**self._rest, **weights}, self.inputs)

    @contextmanager
    def _instead(self, run: _Run) -> Iterator[None]:
        """Have modules call `run`, with the module and its own forward, in place of their forward."""
        plain = [m for m in self.model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        own = [(m, m.__dict__.get("forward")) for m in plain]
        for module in plain:
            module.__dict__["forward"] = partial(run, module, module.forward)
        try:
            yield
        finally:
            for module, forward in own:
                if forward is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = forward

    def _recorded(self, module: nn.Module, forward: _Run, *args: Any, **kwargs: Any) -> Any:
        if module is self.model:
            self._before = True
        if module in self._owners:
            self._before = False
        place = len(self._calls)
        y = forward(*args, **kwargs)
        if module in self._holders or (isinstance(y, Tensor) and y.requires_grad):
            self._before = False
        elif self._before and isinstance(y, Tensor):
            self._calls[place:] = [(module, y.detach().clone())]  # what follows may change y in place
            return y
        self._calls.append((module, None))
        return y

    def _replayed(self, module: nn.Module, forward: _Run, *args: Any, **kwargs: Any) -> Any:
        stored = next(self._left.get(module, iter(())), None)
        return forward(*args, **kwargs) if stored is None else stored.clone()
