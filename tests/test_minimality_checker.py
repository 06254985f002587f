"""The checker of repair certificates accepts what solvers prove and refuses what was tampered with."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import nnrepair.onnx as nonnx  # noqa: E402

FILE = Path(__file__).parent.parent / "verification" / "minimality.py"
spec = importlib.util.spec_from_file_location("minimality", FILE)
assert spec is not None and spec.loader is not None
minimality = importlib.util.module_from_spec(spec)
sys.modules["minimality"] = minimality
spec.loader.exec_module(minimality)

NORMS = ["l1", "linf", "l2", "mean+max", "drift", "nuclear"]
MARGIN = 1e-3


class Residual(nn.Module):
    """Every operator that the checker knows, the layers `first` and `second` among them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, stride=(1, 2), padding=(1, 2))
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 3, (3, 2), padding=(2, 1), dilation=(2, 2))
        self.largest = nn.MaxPool2d(3, 2, 1)
        self.average = nn.AvgPool2d(2, 1, 1, count_include_pad=False)
        self.padded = nn.AvgPool2d((2, 1), padding=(1, 0))
        self.global_average = nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(3, 3, bias=False)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.normal_(self.norm.bias)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(torch.relu(self.first(x)))
        y = self.average(y - torch.relu(self.second(y)))
        y = self.padded(self.largest(y + 0.5))
        return self.last(self.global_average(y).reshape(y.shape[0], -1) + y.mean((2, 3)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))


def cnn() -> nn.Module:
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 2 * 2, 3))
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.ReLU(), *head)


def affine() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Flatten(1), nn.Linear(8, 3))


# Name: model, input shape, layer, architecture.
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str, str]] = {
    "last layer": (mlp, (4,), "4", "same"),
    "hidden layer": (mlp, (4,), "2", "decoupled"),
    "convolution": (cnn, (1, 6, 6), "0", "decoupled"),
    "affine tail": (affine, (1, 6, 6), "0", "same"),
    "residual": (Residual, (1, 7, 8), "second", "decoupled"),
}


def gradients(model: nn.Module, layer: str, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Give outputs (n, outputs) and gradients (n, outputs, layer's outputs, inputs + 1), by plain autograd in float64."""
    model = copy.deepcopy(model).double().eval()
    module = model.get_submodule(layer)
    parameters = [module.weight] if module.bias is None else [module.weight, module.bias]
    values, rows = [], []
    for point in x.double():
        y = model(point[None])[0]
        values.append(y.detach().numpy())
        grads = [torch.autograd.grad(part, parameters, retain_graph=True) for part in y]
        rows.append([np.column_stack([g.reshape(len(g), -1).numpy() for g in grad]) for grad in grads])
    return np.array(values), np.array(rows)


def dual_norm(norm: str, z: np.ndarray, metric: np.ndarray) -> float:
    size = np.sort(np.abs(z).ravel())[::-1]
    match norm:
        case "l1":
            return float(size[0])
        case "linf":
            return float(size.sum())
        case "l2":
            return float(np.linalg.norm(size))
        case "drift":
            return float(np.sqrt(np.trace(z @ np.linalg.inv(metric) @ z.T)))
        case "nuclear":
            return float(np.linalg.norm(z, 2))
    return float((size.cumsum() / (1 + np.arange(1, size.size + 1) / size.size)).max())


def solve(norm: str, g: np.ndarray, h: np.ndarray, metric: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Give the smallest d with <g_r, d> >= h_r, the multipliers and the norm of d; None if there is no such d."""
    flat = g.reshape(len(g), -1)
    if norm == "l1":
        result = linprog(np.ones(2 * flat.shape[1]), np.hstack([-flat, flat]), -h)
        if result.status != 0:
            return None
        plus, minus = np.split(result.x, 2)
        return (plus - minus).reshape(g.shape[1:]), np.maximum(-result.ineqlin.marginals, 0), float(result.fun)
    cvxpy = pytest.importorskip("cvxpy")
    d = cvxpy.Variable(g.shape[1:])
    vector = cvxpy.vec(d, order="C")
    size = {
        "linf": lambda: cvxpy.max(cvxpy.abs(d)),
        "l2": lambda: cvxpy.norm(vector),
        "mean+max": lambda: cvxpy.sum(cvxpy.abs(d)) / d.size + cvxpy.max(cvxpy.abs(d)),
        "drift": lambda: cvxpy.norm(cvxpy.vec(d @ np.linalg.cholesky(metric), order="C")),
        "nuclear": lambda: cvxpy.normNuc(d),
    }[norm]()
    condition = flat @ vector >= h
    problem = cvxpy.Problem(cvxpy.Minimize(size), [condition])
    problem.solve(solver="CLARABEL", tol_gap_rel=1e-10, tol_gap_abs=1e-10, tol_feas=1e-10)
    if problem.status not in ("optimal", "optimal_inaccurate"):
        return None
    return d.value, np.maximum(condition.dual_value, 0), float(problem.value)


@dataclass
class Repair:
    """A repaired model, and its certificate as a dictionary of arrays."""

    model: nn.Module
    layer: str
    shape: tuple[int, ...]
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    folder: Path
    repaired: nn.Module | None = None
    optimum: float = 0.0
    more: dict[str, Any] = field(default_factory=dict)

    def write(self) -> list[str]:
        """Write all files and give the command line's arguments."""
        self.folder.mkdir(exist_ok=True)
        example = torch.zeros(1, *self.shape)
        meta = np.frombuffer(json.dumps(self.meta).encode(), np.uint8)
        np.savez(self.folder / "cert.npz", meta=meta, **self.arrays)
        nonnx.save(self.model, example, self.folder / "base.onnx")
        arguments = [str(self.folder / "cert.npz"), str(self.folder / "base.onnx")]
        if self.repaired is not None:
            nonnx.save(self.repaired, example, self.folder / "repaired.onnx")
            arguments += ["--repaired", str(self.folder / "repaired.onnx")]
        return arguments


def repair(folder: Path, case: str, norm: str = "l1", seed: int = 0, edits: int = 3) -> Repair:
    """Build a network, ask for each point's second best label, and solve for the smallest change that gives it."""
    build, shape, layer, architecture = CASES[case]
    for attempt in range(20):  # a random layer cannot always mend everything
        torch.manual_seed(1000 * seed + attempt)
        rng = np.random.default_rng(seed)
        model = build().eval()
        x = torch.randn(edits, *shape)
        y, g = gradients(model, layer, x)
        labels = y.argsort(1)[:, -2]
        point = np.repeat(np.arange(edits), y.shape[1] - 1)
        eye = np.eye(y.shape[1])
        rows = np.concatenate([eye[label] - np.delete(eye, label, 0) for label in labels])
        bounds = np.full(len(rows), MARGIN)
        root = rng.normal(size=(g.shape[-1], g.shape[-1]))
        metric = root @ root.T + 0.1 * np.eye(len(root))
        metric = (metric + metric.T) / 2
        h = bounds - (rows * y[point]).sum(1)
        sums = np.einsum("ro,roij->rij", rows, g[point])
        if (solution := solve(norm, sums, h, metric)) is not None:
            break
    else:
        pytest.fail(f"no repairable network for {case}")
    d, u, optimum = solution
    lower = float(h @ u / dual_norm(norm, np.einsum("r,rij->ij", u, sums), metric))
    module = model.get_submodule(layer)
    width = module.weight[0].numel()
    arrays = {
        "points": x.numpy(),
        "row_point": point,
        "row_A": rows,
        "row_b": bounds,
        "row_multiplier": u,
        "delta_weight": d[:, :width].reshape(module.weight.shape),
        "delta_bias": d[:, width],
        "edit_point": np.arange(edits),
        "edit_label": labels,
        **({"metric": metric} if norm == "drift" else {}),
    }
    meta = {
        "format": "nnrepair-minimality-1",
        "weight": f"{layer}.weight",
        "bias": f"{layer}.bias",
        "norm": norm,
        "architecture": architecture,
        "lower_bound": lower,
        "objective": optimum * (1 + 1e-8),
        "margin": MARGIN,
        "lowest": False,
    }
    repaired = None
    if architecture == "same":
        repaired = copy.deepcopy(model)
        target = repaired.get_submodule(layer)
        with torch.no_grad():
            target.weight += torch.from_numpy(arrays["delta_weight"])
            target.bias += torch.from_numpy(arrays["delta_bias"])
    return Repair(model, layer, shape, meta, arrays, folder, repaired, optimum)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", CASES)
def test_what_a_solver_proves_is_accepted(
    tmp_path: Path, case: str, norm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = repair(tmp_path, case, norm)
    code = minimality.main(made.write())
    text = capsys.readouterr().out
    assert code == 0, text
    assert "All 3 edits hold" in text and f"has {norm} norm >= " in text
    assert ("about the network itself" in text) == (case in ("last layer", "affine tail"))
    bound = float(text.split("norm >= ")[1].split()[0].rstrip("."))
    assert made.optimum * (1 - 1e-6) <= bound <= made.optimum * (1 + 1e-9)
