"""The checker of repair certificates accepts what solvers prove and refuses what was tampered with."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
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
sys.path.insert(0, str(FILE.parent))  # as python does when it runs the file
spec.loader.exec_module(minimality)


@pytest.fixture(autouse=True)
def _all_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the bound printed as it was proved; how it is rounded is another test's subject."""
    monkeypatch.setattr(minimality, "DIGITS", 15)


NORMS = ["l1", "linf", "l2", "mean+max", "drift", "nuclear"]
MARGIN = 1e-3


class Residual(nn.Module):
    """Every operator that the checker knows, the layers `first` and `second` among them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, stride=(1, 2), padding=(1, 2))
        self.norm = nn.BatchNorm2d(3, eps=float(np.float32(1e-5)))  # the file stores it in float32
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
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.ReLU(), *head
    )


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
    """Give outputs (n, outputs) and gradients (n, outputs, *layer's matrix), by plain autograd in float64."""
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


@functools.cache
def exported(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> bytes:
    """Export a model once; other weights are put into this file."""
    with tempfile.TemporaryDirectory() as folder:
        nonnx.save(build().eval(), torch.zeros(1, *shape), Path(folder) / "exported.onnx")
        return (Path(folder) / "exported.onnx").read_bytes()


def write_onnx(model: nn.Module, build: Callable[[], nn.Module], shape: tuple[int, ...], path: Path) -> None:
    proto = onnx.ModelProto.FromString(exported(build, shape))
    state = model.state_dict()
    for tensor in proto.graph.initializer:
        if tensor.name in state:
            tensor.CopyFrom(numpy_helper.from_array(state[tensor.name].numpy(), tensor.name))
    path.write_bytes(proto.SerializeToString())


@dataclass
class Repair:
    """A repaired model, and its certificate as a dictionary of arrays."""

    case: str
    model: nn.Module
    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    repaired: nn.Module | None
    optimum: float

    def write(self, folder: Path) -> list[str]:
        """Write all files and give the command line's arguments."""
        build, shape, *_ = CASES[self.case]
        meta = np.frombuffer(json.dumps(self.meta).encode(), np.uint8)
        np.savez(folder / "cert.npz", meta=meta, **self.arrays)
        write_onnx(self.model, build, shape, folder / "base.onnx")
        arguments = [str(folder / "cert.npz"), str(folder / "base.onnx")]
        if self.repaired is not None:
            write_onnx(self.repaired, build, shape, folder / "repaired.onnx")
            arguments += ["--repaired", str(folder / "repaired.onnx")]
        return arguments


@functools.cache
def solved(case: str, norm: str = "l1", seed: int = 0, edits: int = 3) -> Repair:
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
    return Repair(case, model, meta, arrays, repaired, optimum)


def repair(case: str, norm: str = "l1", seed: int = 0, edits: int = 3) -> Repair:
    """Give a repair that the caller may spoil."""
    return copy.deepcopy(solved(case, norm, seed, edits))


def run(made: Repair, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = minimality.main(made.write(folder))
    return code, capsys.readouterr().out


def bound_in(text: str) -> float:
    return float(text.split("norm >= ")[1].split()[0].rstrip("."))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", CASES)
def test_what_a_solver_proves_is_accepted(
    tmp_path: Path, case: str, norm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = repair(case, norm)
    code, text = run(made, tmp_path, capsys)
    assert code == 0, text
    assert "All 3 edits hold" in text and f"has {norm} norm >= " in text
    assert ("about the network itself" in text) == (case in ("last layer", "affine tail"))
    assert made.optimum * (1 - 1e-6) <= bound_in(text) <= made.optimum * (1 + 1e-9)


def test_the_command_line_needs_neither_torch_nor_the_library(tmp_path: Path) -> None:
    made = repair("last layer")
    arguments = made.write(tmp_path)
    shape = CASES["last layer"][1]
    nonnx.save(made.model, torch.zeros(1, *shape), tmp_path / "base.onnx")  # a fresh export is the same graph
    checked = (
        "import os, sys, runpy; sys.argv[0] = sys.argv.pop(1); sys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    checked += "finally: assert not {'torch', 'nnrepair'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", checked, str(FILE), *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("ACCEPTED"), done.stdout + done.stderr
    made.meta["lower_bound"] *= 1.001
    done = subprocess.run([sys.executable, str(FILE), *made.write(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1 and "REJECTED\nThe bound claimed is" in done.stdout


# Each makes a claim false, or contradicts the rest of the certificate ------------------------------------------------


def strongest(made: Repair) -> int:
    return int(made.arrays["row_multiplier"].argmax())


def negate_a_multiplier(made: Repair) -> None:
    made.arrays["row_multiplier"][strongest(made)] *= -1


def lose_a_multiplier(made: Repair) -> None:
    made.arrays["row_multiplier"][strongest(made)] = np.nan


def raise_the_bound(made: Repair) -> None:
    made.meta["lower_bound"] *= 1.001


def lower_the_objective(made: Repair) -> None:
    made.meta["objective"] *= 0.99


def favour_the_label(made: Repair, step: float = 0.1) -> None:
    """Change the base's last bias: the strongest condition gets easier, and the bound too high."""
    row = made.arrays["row_A"][strongest(made)]
    *_, last = (p for name, p in made.model.named_parameters() if name.endswith("bias"))
    with torch.no_grad():
        last += step * torch.from_numpy(row)


def hinder_the_label(made: Repair) -> None:
    favour_the_label(made, -0.1)


def ask_for_the_old_label(made: Repair) -> None:
    values, _ = gradients(made.model, CASES[made.case][2], torch.from_numpy(made.arrays["points"][:1]))
    made.arrays["edit_label"][0] = values[0].argmax()


def raise_a_condition(made: Repair) -> None:
    made.arrays["row_b"][strongest(made)] += 0.1


def shrink_the_change(made: Repair) -> None:
    for name in ("delta_weight", "delta_bias"):
        made.arrays[name] *= 0.9


def enlarge_the_change(made: Repair) -> None:
    for name in ("delta_weight", "delta_bias"):
        made.arrays[name] *= 1.1


MUTATIONS = [negate_a_multiplier, lose_a_multiplier, raise_the_bound, lower_the_objective, favour_the_label]
MUTATIONS += [hinder_the_label, ask_for_the_old_label, raise_a_condition, shrink_the_change, enlarge_the_change]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
@pytest.mark.parametrize("case", ["last layer", "hidden layer", "convolution"])
def test_a_tampered_certificate_is_rejected(
    tmp_path: Path, case: str, mutate: Callable[[Repair], None], capsys: pytest.CaptureFixture[str]
) -> None:
    made = repair(case)
    mutate(made)
    code, text = run(made, tmp_path, capsys)
    assert code == 1, text


@pytest.mark.parametrize("case", ["last layer", "hidden layer", "convolution"])
def test_a_point_at_which_the_edit_fails_is_named(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = repair(case)
    _, shape, layer, _ = CASES[case]
    change = np.column_stack([a.reshape(len(a), -1) for a in (made.arrays["delta_weight"], made.arrays["delta_bias"])])
    torch.manual_seed(7)
    points = torch.cat([torch.randn(50, *shape), torch.from_numpy(made.arrays["points"])])
    y, g = gradients(made.model, layer, points)
    wrong = (y + np.einsum("noij,ij->no", g, change)).argmax(1) != made.arrays["edit_label"][0]
    made.arrays["points"][0] = points[int(wrong.argmax())]
    assert wrong.any() and not wrong[50]
    code, text = run(made, tmp_path, capsys)
    assert code == 1 and "Edit 0 (point 0) could not be proved" in text


@pytest.mark.parametrize("step", [1e-3, 1e-8])
def test_another_layer_of_the_repaired_file_may_not_differ(
    tmp_path: Path, step: float, capsys: pytest.CaptureFixture[str]
) -> None:
    made = repair("last layer")
    assert made.repaired is not None
    with torch.no_grad():
        weight = made.repaired.get_submodule("2").weight
        weight[weight.abs().argmin() // 7, weight.abs().argmin() % 7] += step
    code, text = run(made, tmp_path, capsys)
    assert code == 1 and "2.weight differs" in text


def test_the_repaired_graph_may_not_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = repair("last layer").write(tmp_path)
    proto = onnx.load(arguments[3])
    next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Identity"
    onnx.save(proto, arguments[3])
    assert minimality.main(arguments) == 1
    assert "graph differs" in capsys.readouterr().out


def test_an_indefinite_metric_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = repair("last layer", "drift")
    values, vectors = np.linalg.eigh(made.arrays["metric"])
    metric = vectors @ np.diag([-1e-3, *values[1:]]) @ vectors.T
    made.arrays["metric"] = (metric + metric.T) / 2
    made.meta |= {"lower_bound": 0.0, "objective": 1e9}
    code, text = run(made, tmp_path, capsys)
    assert code == 1 and "not positive definite" in text


@pytest.mark.parametrize("file", [0, 1, 3])
def test_a_truncated_file_is_unusable(tmp_path: Path, file: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = repair("last layer").write(tmp_path)
    path = Path(arguments[file])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert minimality.main(arguments) == 2
    assert path.name in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"row_A": None}, "row_A"),
        ({"edit_label": None}, "edit_label"),
        ({"row_b": np.zeros(2)}, "row_b"),
        ({"row_A": np.zeros((6, 4))}, "row_A"),
        ({"edit_point": np.array([0, 1, 3])}, "edit_point"),
        ({"edit_label": np.array([0, 1, 3])}, "edit_label"),
        ({"points": np.zeros((3, 5), np.float32)}, "points has shape (3, 5)"),
        ({"points": np.array([[None] * 4] * 3)}, "pickle"),
        ({"delta_bias": None}, "shapes"),
        ({"delta_weight": np.zeros((6, 3))}, "shapes"),
        ({"metric": np.eye(7)}, "metric"),
        ({"norm": "l3"}, "l3"),
        ({"weight": "9.weight"}, "9.weight"),
        ({"bias": "2.bias"}, "2.bias"),
        ({"format": "other"}, "other"),
    ],
)
def test_malformed_input_is_explained(
    tmp_path: Path, change: dict[str, Any], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = repair("last layer")
    for name, value in change.items():
        if isinstance(value, str):
            made.meta[name] = value
        elif value is None:
            del made.arrays[name]
        else:
            made.arrays[name] = value
    code, text = run(made, tmp_path, capsys)
    assert code == 2 and word in text


def test_unsupported_operators_are_listed_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 3), nn.Tanh())
    arguments = repair("last layer").write(tmp_path)
    nonnx.save(model, torch.zeros(1, 4), arguments[1])
    assert minimality.main(arguments) == 2
    text = capsys.readouterr().out
    assert "Sigmoid" in text and "Tanh" in text


# What is left out is said, and what is weaker is weaker ---------------------------------------------------------------


def test_parts_that_were_not_checked_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = repair("last layer")
    arguments = made.write(tmp_path)[:2]
    assert minimality.main(arguments) == 0
    assert "edits hold was not checked" in capsys.readouterr().out
    for name in ("row_point", "row_A", "row_b", "row_multiplier"):
        made.arrays[name] = made.arrays[name][:0]
    code, text = run(made, tmp_path, capsys)
    assert code == 0 and "minimality was not checked" in text


def test_edits_can_be_conditions_or_smallest_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = repair("hidden layer")
    made.arrays["edit_A"] = made.arrays["row_A"].reshape(3, 2, 3)
    made.arrays["edit_b"] = made.arrays["row_b"].reshape(3, 2) - MARGIN / 2
    labels = made.arrays.pop("edit_label")
    assert run(made, tmp_path, capsys)[0] == 0
    made.arrays["edit_b"] += MARGIN
    assert run(made, tmp_path, capsys)[0] == 1
    del made.arrays["edit_A"], made.arrays["edit_b"]
    made.arrays["edit_label"] = labels
    made.meta["lowest"] = True
    assert run(made, tmp_path, capsys)[0] == 1


def test_a_tie_is_no_strict_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = repair("last layer")
    assert made.repaired is not None
    for model in (made.model, made.repaired):
        last = model.get_submodule("4")
        with torch.no_grad():
            last.weight[:] = last.weight[:1]
            last.bias[:] = last.bias[:1]
    for name in ("delta_weight", "delta_bias"):
        del made.arrays[name]
    code, text = run(made, tmp_path, capsys)
    assert code == 1 and "Edit 0" in text


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=st.sampled_from(["last layer", "hidden layer", "convolution"]),
    norm=st.sampled_from(NORMS),
    scale=st.lists(st.sampled_from([0.0, 0.5, 0.99, 1.0, 1.01, 3.0]), min_size=6, max_size=6),
)
def test_no_multipliers_prove_more_than_the_optimum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str, norm: str, scale: list[float]
) -> None:
    made = repair(case, norm)
    made.arrays["row_multiplier"] *= np.array(scale)
    made.meta["lower_bound"] = 0.0
    code, text = run(made, tmp_path, capsys)
    assert code == 0, text
    assert bound_in(text) <= made.optimum * (1 + 1e-9)


# The arithmetic -------------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.floats(-4, 4),
    st.sampled_from([0.0, 1.0, -1.0, 0.1, 1 / 3, 1e-30, 1e30, 2.0**-53, 1e-141, 1e-200, 5e-324]),
)
radii = st.one_of(st.just(0.0), st.floats(0, 1), st.sampled_from([1e-200, 5e-324, 1e-17]))
entries = st.lists(st.tuples(numbers, radii, st.sampled_from([-1, 0, 1])), min_size=6, max_size=6)


@settings(max_examples=200, deadline=None)
@given(first=entries, second=entries)
def test_balls_contain_exact_results(
    first: list[tuple[float, float, int]], second: list[tuple[float, float, int]]
) -> None:
    """Rational arithmetic on members of the operands gives members of the result."""

    def ball(part: list[tuple[float, float, int]], shape: tuple[int, int]) -> Any:
        mid, rad = (np.array([entry[i] for entry in part]).reshape(shape) for i in (0, 1))
        return minimality.enclose(mid, rad, 0.0, 0)

    def member(part: list[tuple[float, float, int]], shape: tuple[int, int]) -> np.ndarray:
        return np.array([Fraction(mid) + side * Fraction(rad) for mid, rad, side in part], object).reshape(shape)

    def check(found: Any, true: np.ndarray) -> None:
        for mid, rad, value in zip(found.mid.flat, found.rad.flat, np.asarray(true, object).flat, strict=True):
            assert abs(Fraction(float(mid)) - value) <= Fraction(float(rad))

    a, b, c = ball(first, (2, 3)), ball(second, (3, 2)), ball(second, (2, 3))
    x, y, z = member(first, (2, 3)), member(second, (3, 2)), member(second, (2, 3))
    check(minimality.product(a, b), x @ y)
    check(minimality.times(a, c), x * z)
    check(minimality.add(a, c), x + z)
    check(minimality.add(a, c, -1), x - z)
    check(minimality.total(a, (1,)), x.sum(1))
    lower, upper = np.minimum(a.mid, c.mid), np.maximum(a.mid, c.mid)
    hull = minimality.between(lower, upper)
    check(hull, np.vectorize(Fraction, otypes=[object])(lower))
    check(hull, np.vectorize(Fraction, otypes=[object])(upper))


@settings(max_examples=60, deadline=None)
@given(norm=st.sampled_from(NORMS), rows=st.integers(1, 5), columns=st.integers(1, 5), seed=st.integers(0, 999))
def test_norms_are_bounded_from_above_and_closely(norm: str, rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, d = rng.normal(size=(2, rows, columns))
    root = rng.normal(size=(columns, columns))
    metric = root @ root.T + 1e-3 * np.eye(columns)
    metric = (metric + metric.T) / 2
    size = {
        "l1": np.abs(d).sum(),
        "linf": np.abs(d).max(),
        "l2": np.linalg.norm(d),
        "mean+max": np.abs(d).mean() + np.abs(d).max(),
        "drift": np.sqrt(np.trace(d @ metric @ d.T)),
        "nuclear": np.linalg.norm(d, "nuc"),
    }[norm]
    exact = minimality.exact
    assert size * (1 - 1e-13) <= minimality.norm_of(norm, exact(d), metric) <= size * (1 + 1e-9)
    dual = dual_norm(norm, z, metric)
    assert dual * (1 - 1e-9) <= minimality.dual_of(norm, exact(z), metric) <= dual * (1 + 1e-9)
    assert abs((z * d).sum()) <= size * dual * (1 + 1e-12)  # it is a dual norm
    wide = minimality.enclose(z, np.full(z.shape, 0.1), 0.0, 0)
    inside = z + 0.1 * np.sign(d)
    assert dual_norm(norm, inside, metric) <= minimality.dual_of(norm, wide, metric) * (1 + 1e-12)


# From `first`, equal entries reach the pooling through an average, where their equality is no longer known.
@pytest.mark.parametrize(("layer", "width"), [("first", 1.0), ("second", 1e-12)])
def test_enclosures_contain_what_autograd_finds(tmp_path: Path, layer: str, width: float) -> None:
    torch.manual_seed(1)
    build, shape, *_ = CASES["residual"]
    model = build().eval()
    x = torch.randn(5, *shape)
    write_onnx(model, build, shape, tmp_path / "base.onnx")
    network = minimality.Network.at(tmp_path / "base.onnx")
    known = set(minimality.OPERATORS) - {"MatMul", "Flatten", "Identity", "Transpose"}
    assert {node.op for node in network.nodes} >= known - {"GlobalAveragePool"}
    values, pullbacks = network.run(x.numpy().astype(np.float64))
    y, g = gradients(model, layer, x)
    output = values[network.output]
    assert (np.abs(output.mid - y) <= output.rad + 1e-13).all() and output.rad.max() < 1e-11
    for i in range(y.shape[1]):
        found = minimality.Layer(network, f"{layer}.weight", f"{layer}.bias")
        p, inputs = found.slopes(values, pullbacks, np.eye(y.shape[1])[[i] * len(x)])
        for n in range(len(x)):
            one = minimality.product(p.map(lambda a, n=n: a[n].T), inputs.map(lambda a, n=n: a[n]))
            assert (np.abs(one.mid - g[n, i]) <= one.rad + 1e-12).all() and one.rad.max() < width


@pytest.mark.parametrize("background", [0.0, -0.42])
def test_equal_entries_of_a_plain_background_do_not_blur_a_pooling(tmp_path: Path, background: float) -> None:
    torch.manual_seed(2)
    build, shape, *_ = CASES["convolution"]
    model = build().eval()
    with torch.no_grad():
        model.get_submodule("0").bias += 0.5  # the background is active
    x = torch.full((2, *shape), background)
    x[:, :, 4:, 4:] = torch.rand(2, 1, 2, 2)
    write_onnx(model, build, shape, tmp_path / "base.onnx")
    network = minimality.Network.at(tmp_path / "base.onnx")
    values, pullbacks = network.run(x.numpy().astype(np.float64))
    p, inputs = minimality.Layer(network, "0.weight", "0.bias").slopes(values, pullbacks, np.eye(3)[[0, 0]])
    _, g = gradients(model, "0", x)
    one = minimality.product(p.map(lambda a: a[0].T), inputs.map(lambda a: a[0]))
    assert one.rad.max() < 1e-12 and np.allclose(one.mid, g[0, 0])


@pytest.mark.parametrize("form", ["Gemm", "MatMul"])
def test_transposed_weights_and_separate_biases(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = repair("last layer")
    paths = made.write(tmp_path)
    for model, path in ((made.model, paths[1]), (made.repaired, paths[3])):
        assert model is not None
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        nodes, tensors, value = [], [], "x"
        for i in (0, 2, 4):
            names = [f"{i}.weight", f"{i}.bias"]
            tensors += [numpy_helper.from_array(np.ascontiguousarray(state[names[0]].T), names[0])]
            tensors += [numpy_helper.from_array(state[names[1]], names[1])]
            if form == "Gemm":
                nodes += [helper.make_node("Gemm", [value, *names], [f"z{i}"])]
            else:
                nodes += [helper.make_node("MatMul", [value, names[0]], [f"m{i}"])]
                nodes += [helper.make_node("Add", [names[1], f"m{i}"], [f"z{i}"])]
            nodes += [helper.make_node("Relu", [f"z{i}"], [value := f"r{i}"])] if i < 4 else []
        given, wanted = (
            helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 4), ("z4", 3))
        )
        graph = helper.make_graph(nodes, "graph", [given], [wanted], tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    code = minimality.main(paths)
    text = capsys.readouterr().out
    assert code == 0, text
    assert made.optimum * (1 - 1e-6) <= bound_in(text) <= made.optimum * (1 + 1e-9)
