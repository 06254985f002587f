"""Draw a random call of `nnrepair.fix`: a small network, edits, points to keep, a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from nnrepair import Argmax, Argmin, Criterion, Edits, Linear, LocalitySet, Near, Polygons, Segments, Threshold
from nnrepair.methods import EGNN, FineTune, Method, MinimalNorm
from nnrepair.methods.fine_tune.penalties import EWC, KL, L2, LInf

#: Sizes of weights and inputs.
SCALES = (1e-20, 1e-12, 1e-6, 1e-3, 1e3, 1e6, 1e12, 1e20)
NORMS = ("l1", "linf", "l2", "mean+max", "nuclear", "drift", "auto")
OUTPUTS = (1, 2, 3, 5)


@dataclass
class Call:
    """One call of `fix`.

    Attributes:
        model: the network in eval mode.
        edits, locality, method: what `fix` is given.
        options: its other arguments.
        about: words for each choice, for the counts.
    """

    model: nn.Module
    edits: Edits
    locality: LocalitySet | None
    method: Method
    options: dict[str, Any] = field(default_factory=dict)
    about: list[str] = field(default_factory=list)


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(features, features), nn.Linear(features, features)
        self.b.weight = self.a.weight
        self.head = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.b(torch.relu(self.a(x)))))
        return y


class Residual(nn.Module):
    """A sum of two ways through the network, and a normalisation."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(features, features), nn.LayerNorm(features)
        self.head = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(x + torch.relu(self.a(self.norm(x))))
        return y


class Casts(nn.Module):
    """A network that reads its inputs as float32, whatever they are."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(features, 6), nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.a(x.to(torch.float32))))
        return y


def _mlp(rng: np.random.Generator, features: int, outputs: int) -> nn.Sequential:
    kinds = (nn.ReLU, nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU)
    activation = kinds[int(rng.integers(len(kinds)))]
    sizes = [features, *(int(s) for s in rng.integers(2, 9, int(rng.integers(0, 3)))), outputs]
    parts: list[nn.Module] = []
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b, bias=bool(rng.random() < 0.8)), activation()]
    return nn.Sequential(*parts[:-1])


def _dead(rng: np.random.Generator, features: int, outputs: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(features, 6), nn.ReLU(), nn.Linear(6, outputs))
    with torch.no_grad():
        if rng.random() < 0.5:
            model[0].bias[: int(rng.integers(1, 7))] = -1e4
        else:
            model[2].weight.zero_()
    return model


def _normalised(rng: np.random.Generator, features: int, outputs: int) -> nn.Module:
    norm = nn.BatchNorm1d(6, affine=bool(rng.random() < 0.8))
    assert norm.running_var is not None and norm.running_mean is not None
    norm.running_var.uniform_(0.0 if rng.random() < 0.3 else 0.5, 2.0)
    norm.running_mean.normal_()
    return nn.Sequential(nn.Linear(features, 6), norm, nn.ReLU(), nn.Linear(6, outputs))


def _pruned(rng: np.random.Generator, features: int, outputs: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(features, 6), nn.ReLU(), nn.Linear(6, outputs))
    prune.l1_unstructured(model[0 if rng.random() < 0.5 else 2], "weight", 0.5)  # type: ignore[no-untyped-call]
    return model


def _weight_norm(rng: np.random.Generator, features: int, outputs: int) -> nn.Module:
    first, last = (parametrizations.weight_norm(nn.Linear(*sizes)) for sizes in ((features, 6), (6, outputs)))
    return nn.Sequential(first, nn.ReLU(), last)


def _convolution(rng: np.random.Generator, features: int, outputs: int) -> nn.Module:
    groups = 2 if rng.random() < 0.3 else 1
    end: list[nn.Module] = [nn.Flatten(), nn.Linear(4 * 9, outputs)]
    if rng.random() < 0.3:
        end = [nn.Conv2d(4, outputs, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=groups), nn.ReLU(), nn.MaxPool2d(2), *end)


def _tokens(rng: np.random.Generator, features: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(4 * 3, outputs))


NETWORKS: dict[str, Callable[[np.random.Generator, int, int], nn.Module]] = {
    "layers": _mlp,
    "dead units": _dead,
    "batch normalisation": _normalised,
    "tied": lambda rng, features, outputs: Tied(features, outputs),
    "residual": lambda rng, features, outputs: Residual(features, outputs),
    "casts": lambda rng, features, outputs: Casts(features, outputs),
    "pruned": _pruned,
    "weight norm": _weight_norm,
    "convolution": _convolution,
    "tokens": _tokens,
}

#: Of these, edits may be about regions.
STRAIGHT = ("layers", "dead units", "batch normalisation", "pruned")


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _points(rng: np.random.Generator, kind: str, features: int, count: int, scale: float) -> Tensor:
    if kind == "tokens":
        return torch.from_numpy(rng.integers(0, 7, (count, 3)))
    shape = (count, 2, 6, 6) if kind == "convolution" else (count, features)
    x = rng.normal(size=shape) * scale
    if rng.random() < 0.15:
        x[-1] = x[0]  # the same point twice
    if rng.random() < 0.1:
        x[0] = 0.0
    if rng.random() < 0.1 and count > 1:
        x[-1] = x[0] * (1 + 1e-9)
    return torch.from_numpy(x)


def _in(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return points in a floating dtype, cut to its range; numbers of tokens as they are."""
    return torch.nan_to_num(x.to(dtype)) if x.is_floating_point() else x


def _criterion(rng: np.random.Generator, y: Tensor, joined: bool = True) -> Criterion:
    """Return a random criterion on outputs y (n, outputs) whose numbers are of their size."""
    n, outputs = y.shape
    size = float(y.abs().max()) or 1.0
    kinds = ["threshold", "linear", "near", *(["argmax", "argmax", "argmin"] if outputs > 1 else [])]
    kind = _pick(rng, kinds + (["and", "or"] if joined else []))
    margin = 0.1 * size if rng.random() < 0.2 else 0.0
    if kind in ("and", "or"):
        first, second = _criterion(rng, y, False), _criterion(rng, y, False)
        return first & second if kind == "and" else first | second
    if kind in ("argmax", "argmin"):
        labels = torch.from_numpy(rng.integers(0, outputs, n))
        return Argmax(labels, margin) if kind == "argmax" else Argmin(labels, margin)
    if kind == "threshold":
        labels = torch.from_numpy(rng.integers(-1, 2, (n, outputs)))
        labels[:, 0] = labels[:, 0].abs()
        return Threshold(labels, float(rng.normal()) * size if rng.random() < 0.5 else 0.0, margin)
    if kind == "linear":
        count = int(rng.integers(1, 4))
        A = torch.from_numpy(rng.normal(size=(n, count, outputs)))
        if rng.random() < 0.15:
            A[:, -1] = -A[:, 0] * (1 + 1e-8)  # nearly a contradiction
        b = torch.einsum("nco,no->nc", A, y.double()) + torch.from_numpy(rng.normal(size=(n, count))) * size
        return Linear(A, b)
    return Near(y.double() + torch.from_numpy(rng.normal(size=(n, outputs))) * size, float(rng.uniform(1e-3, 1)) * size)


def _regions(rng: np.random.Generator, features: int, count: int, scale: float) -> Segments | Polygons:
    a = rng.normal(size=(count, features)) * scale
    b, c = a + rng.normal(size=a.shape) * scale, a + rng.normal(size=a.shape) * scale
    if features == 1 or rng.random() < 0.6:
        return Segments(a, b)
    return Polygons(torch.from_numpy(np.stack([a, b, c], 1)))


def _method(rng: np.random.Generator, model: nn.Module, locality: bool) -> Method:
    drawn = rng.random()
    if drawn < 0.7:
        owners = [n for n, m in model.named_modules() if next(m.parameters(recurse=False), None) is not None]
        layer = "auto" if rng.random() < 0.5 else _pick(rng, owners)
        return MinimalNorm(
            layer=layer if rng.random() < 0.9 else [*dict.fromkeys([layer, owners[-1]])] if layer != "auto" else owners,
            norm=_pick(rng, NORMS if locality else [n for n in NORMS if n != "drift"]),
            margin=None if rng.random() < 0.8 else float(10 ** rng.uniform(-6, 1)),
            architecture="same" if rng.random() < 0.7 else "decoupled",
            locality=_pick(rng, ("hard", "hard", "soft", "none")),
            max_steps=6,
        )
    if drawn < 0.9:
        penalties = [L2(0.1), LInf(0.5), *([KL(0.1), EWC(0.1)] if locality else [])]
        return FineTune(
            lr=0.05,
            steps=25,
            penalties=[p for p in penalties if rng.random() < 0.3],
            interpolate=_pick(rng, ("none", "auto")),
            rehearsal=4 if locality and rng.random() < 0.3 else 0,
        )
    return EGNN(hidden=4, steps=25, lr=0.02, rehearsal=4 if locality else 0)


def _scaled(rng: np.random.Generator, model: nn.Module) -> str:
    """Give some layer weights of another size."""
    if rng.random() < 0.75:
        return "weights as they are"
    scale = _pick(rng, SCALES)
    parameters = [p for p in model.parameters() if p.ndim > 1] or list(model.parameters())
    with torch.no_grad():
        _pick(rng, parameters).mul_(scale)
    return f"weights times {scale:g}"


def call(index: int, seed: int) -> Call:
    """Return the random call number `index`."""
    rng = np.random.default_rng([seed, index])
    torch.manual_seed(int(rng.integers(2**31)))
    kind, features, outputs = _pick(rng, list(NETWORKS)), int(rng.integers(1, 6)), _pick(rng, OUTPUTS)
    model = NETWORKS[kind](rng, features, outputs)
    sized = _scaled(rng, model)
    dtype = torch.float32
    if rng.random() < 0.35 and kind != "casts":
        dtype = _pick(rng, (torch.float64, torch.float16, torch.bfloat16))
    model = model.to(dtype).eval()
    scale = 1.0 if rng.random() < 0.85 else _pick(rng, SCALES)
    count = int(rng.integers(1, 6))
    straight = dtype in (torch.float32, torch.float64) and kind in STRAIGHT
    about = [kind, str(dtype).removeprefix("torch."), sized, f"inputs times {scale:g}", f"{outputs} outputs"]
    x: Any
    if straight and rng.random() < 0.4:
        x = _regions(rng, features, min(count, 3), scale)
        like = torch.stack([corners.mean(0) for corners in x.corners])
    else:
        x = like = _points(rng, kind, features, count, scale)
        x = _in(x, dtype)
    with torch.no_grad():
        y = model(_in(like, dtype)).double()
        edits = Edits(x, _criterion(rng, torch.nan_to_num(y)))
        locality = None
        if rng.random() < 0.6:
            kept = _in(_points(rng, kind, features, int(rng.integers(1, 40)), scale), dtype)
            given = _criterion(rng, torch.nan_to_num(model(kept).double())) if rng.random() < 0.2 else None
            locality = LocalitySet(kept, given)
    method = _method(rng, model, locality is not None)
    options: dict[str, Any] = {}
    if rng.random() < 0.1:
        options = {"mode": _pick(rng, ("independent", "successive"))}
    about += [type(x).__name__, type(edits.criterion).__name__, type(method).__name__, options.get("mode", "batch")]
    return Call(model, edits, locality, method, options, about)
