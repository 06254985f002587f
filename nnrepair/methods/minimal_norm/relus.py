"""ReLUs that are others while a network runs, for descent that they would stop.

Below zero a ReLU has no gradient, and at zero it has two: leaky ones tell what a unit that is off would do, smooth ones
have no kinks at which descent ends (Chen & Mangasarian, "A class of smoothing functions for nonlinear and mixed
complementarity problems", 1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nnrepair.jacobian.relus import RELUS


class _Instead(TorchFunctionMode):
    """Run something in place of every ReLU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RELUS:
            return self.instead(args[0] if args else kwargs["input"])
        return func(*args, **(kwargs or {}))

    def instead(self, x: Tensor) -> Tensor:
        """Return what takes the place of a ReLU of x."""
        raise NotImplementedError


class Leaky(_Instead):
    """Let a share of what is below zero through."""

    def __init__(self, leak: float) -> None:
        super().__init__()
        self.leak = leak

    def instead(self, x: Tensor) -> Tensor:
        """Return x where it is positive, else a share of it."""
        return F.leaky_relu(x, self.leak)


class Sizes(_Instead):
    """Note how large what ReLUs are applied to is: `found`, the root mean square of each in the order of their use."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def instead(self, x: Tensor) -> Tensor:
        """Return the ReLU."""
        self.found.append(float(x.double().square().mean().sqrt()) or 1.0)
        return torch.relu(x)


class Smooth(_Instead):
    """Round the kink of every ReLU off, by half a width at zero: (x + root of x^2 + width^2) / 2.

    Args:
        width: in units of sizes.
        sizes: of what ReLUs are applied to, in the order of their use, see `Sizes`.
    """

    def __init__(self, width: float, sizes: Sequence[float]) -> None:
        super().__init__()
        self.width, self.sizes, self._used = width, sizes, 0

    def instead(self, x: Tensor) -> Tensor:
        """Return a smooth function that is nearly x where it is positive, else nearly zero."""
        width = self.width * self.sizes[self._used % len(self.sizes)]
        self._used += 1
        return (x + (x.square() + width**2).sqrt()) / 2
