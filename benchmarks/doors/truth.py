"""What is false about what `fix` returned: everything is run, compared or solved again, by other means than its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.optimize
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.doors.draw import Call
from nnrepair import Argmax, Argmin, Criterion, Linear, Near, Threshold
from nnrepair.jacobian.tangents import InFloat64
from nnrepair.methods import MinimalNorm
from nnrepair.results.history import History
from nnrepair.results.result import RepairResult
from nnrepair.spec.criteria import AllOf, AnyOf
from nnrepair.spec.network import copied
from nnrepair.spec.problem import pose
from nnrepair.spec.regions import Regions

Array = NDArray[np.float64]
#: By this share of the largest output, a border counts as either side.
ROUNDING = 1e-12
#: Programs of more numbers are not solved again.
NUMBERS = 60_000
#: Relative accuracy of the programs that are solved again.
SOLVED = 1e-5


def bits(model: nn.Module) -> dict[str, bytes]:
    """Return the bytes of all parameters and buffers."""
    return {n: t.contiguous().flatten().view(torch.uint8).numpy().tobytes() for n, t in model.state_dict().items()}


def slack(criterion: Criterion, y: Array) -> Array:
    """Return (n,): by how much each point holds, read from what the criteria say in words."""
    n, size = y.shape
    if isinstance(criterion, AllOf | AnyOf):
        parts = np.stack([slack(part, y) for part in criterion.parts])
        return np.asarray(parts.min(0) if isinstance(criterion, AllOf) else parts.max(0))
    found = np.empty(n)
    for k in range(n):
        if isinstance(criterion, Argmax | Argmin):
            label, signed = int(criterion.labels[k]), -y[k] if isinstance(criterion, Argmin) else y[k]
            found[k] = signed[label] - max(signed[j] for j in range(size) if j != label) - criterion.margin_
        elif isinstance(criterion, Threshold):
            labels = criterion.labels.reshape(n, -1)[k].numpy()
            at = np.broadcast_to(criterion.threshold.numpy(), size)
            found[k] = min((y[k, j] - at[j]) * (1 if labels[j] else -1) for j in range(size) if labels[j] >= 0)
            found[k] -= criterion.margin_
        elif isinstance(criterion, Linear):
            found[k] = (criterion.A[k].double().numpy() @ y[k] - criterion.b[k].double().numpy()).min()
        elif isinstance(criterion, Near):
            target, tol = (t.double().reshape(n, -1)[k].numpy() for t in (criterion.target, criterion.tol))
            found[k] = (tol - np.abs(y[k] - target)).min()
        else:
            raise TypeError(type(criterion).__name__)
    return found


def _strict(criterion: Criterion) -> bool:
    return criterion.strict or any(_strict(part) for part in getattr(criterion, "parts", ()))


def _unlike(said: list[bool], criterion: Criterion, y: Tensor) -> list[int]:
    """Return the points of which it was said that they hold, or do not, and the outputs show otherwise."""
    numbers = y.double().numpy().reshape(len(y), -1)
    if not np.isfinite(numbers).all():
        return [k for k, holds in enumerate(said) if holds and not np.isfinite(numbers[k]).all()]
    found = slack(criterion, numbers)
    near = np.abs(found) <= ROUNDING * (np.abs(numbers).max() + np.abs(found).max()) + 1e-300
    holds = found > 0 if _strict(criterion) else found >= 0
    return [k for k in range(len(said)) if said[k] != holds[k] and not near[k]]


def false(call: Call, result: RepairResult | History, before: dict[str, bytes]) -> list[str]:
    """Return what is false, in words."""
    found = list(untouched(call, before))
    if isinstance(result, History):
        if result.outcome.ok and result.mode == "successive":
            found += _edits(call, result.model, [True] * len(call.edits))
        return found
    found += _edits(call, result.model, result.report.held_after)
    if result.outcome.ok != all(result.report.held_after) and result.outcome.status != "partly repaired":
        found.append(f"the outcome is {result.outcome.status}, although edits {result.report.held_after} hold")
    if result.outcome.status == "nothing to do" and bits(result.model) != before:
        found.append("nothing was to do, but the network changed")
    if result.patch is not None and bits(result.patch.apply(call.model)) != bits(result.model):
        found.append("the patch makes another network")
    if isinstance(call.method, MinimalNorm) and call.method.locality == "hard" and result.outcome.ok:
        found += _kept(call, result)
    if isinstance(call.method, MinimalNorm) and not isinstance(call.edits.inputs, Regions):
        found += _program(call, result)
    return found


def untouched(call: Call, before: dict[str, bytes]) -> Iterator[str]:
    """Say what happened to the user's network."""
    if bits(call.model) != before:
        yield "the user's network has changed"
    if call.model.training or not all(p.requires_grad for p in call.model.parameters()):
        yield "the user's network has another mode or other flags"


@torch.no_grad()
def _edits(call: Call, model: nn.Module, said: list[bool]) -> list[str]:
    inputs = call.edits.inputs
    if isinstance(inputs, Regions):
        return _over_regions(call, model, said)
    wrong = _unlike(said, call.edits.criterion, model(inputs))
    return [f"edits {wrong}: {[said[k] for k in wrong]} was said"] if wrong else []


def _over_regions(call: Call, model: nn.Module, said: list[bool]) -> list[str]:
    """Look for points of a region that is said to hold which do not, in float64."""
    assert isinstance(call.edits.inputs, Regions)
    rng, double = np.random.default_rng(0), copied(model).double()
    for k, corners in enumerate(call.edits.inputs.corners):
        weights = torch.from_numpy(rng.dirichlet(np.full(len(corners), 0.5), 300))
        x = torch.cat([corners, torch.einsum("pk,kf->pf", weights, corners)])
        y = double(x).numpy().reshape(len(x), -1)
        here = slack(call.edits.criterion[torch.full((len(x),), k)], y)
        if said[k] and here.min() < -1e-9 * np.abs(y).max():
            return [f"region {k} was said to hold, but misses by {-here.min():.3g} of {np.abs(y).max():.3g}"]
    return []


@torch.no_grad()
def _kept(call: Call, result: RepairResult) -> list[str]:
    asked = result.asked
    if result.outcome.status != "repaired" or asked is None or asked.locality is None:
        return []
    assert isinstance(asked.locality.inputs, Tensor)
    said = asked.locality.holds.tolist()
    wrong = [
        k for k in _unlike([True] * len(said), asked.locality.criterion, result.model(asked.locality.inputs)) if said[k]
    ]
    return [f"points {wrong} to keep are lost"] if wrong else []


def _program(call: Call, result: RepairResult) -> list[str]:
    """Solve the linear program of a repair again, over the chosen parameters' Jacobian."""
    method, stats = call.method, result.stats
    assert isinstance(method, MinimalNorm)
    claimed = result.outcome.status == "infeasible" or "lower_bound" in stats
    if not claimed or method.locality == "soft" or "layer" not in stats:
        return []
    rows = _rows(call, stats["layer"], float(stats["margin"]), method.locality == "hard")
    if rows is None:
        return []
    G, h = rows
    if result.outcome.status == "infeasible":
        size = _least(G, h, "linf")
        alone = (h / np.maximum(np.linalg.norm(G, axis=1), 1e-300)).max()
        return [f"infeasible, but a change of {size:.3g} does it"] if size is not None and size < 1e3 * alone else []
    least = _least(G, h, stats["norm"])
    if least is None or not stats["objective"]:
        return []
    if stats["lower_bound"] > least * (1 + SOLVED):
        return [f"no change was to be smaller than {stats['lower_bound']:.9g}, but one of {least:.9g} is enough"]
    if stats["gap"] <= 1e-6 and stats["objective"] < least * (1 - SOLVED):
        return [f"a change of {stats['objective']:.9g} was to be enough, but {least:.9g} is needed"]
    return []


def _rows(call: Call, names: list[str], margin: float, locality: bool) -> tuple[Array, Array] | None:
    """Return G, h: the conditions G d >= h on a change d of the named parameters, from a plain Jacobian."""
    problem = pose(copied(call.model), call.edits, call.locality)
    model = copied(call.model).double()
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = {n: parameters[n] for n in names}
    sets: list[tuple[Any, Criterion, Tensor | None]] = [(problem.edits.inputs, problem.edits.criterion, None)]
    if locality and (keep := problem.locality) is not None:
        some = torch.nonzero(keep.holds).flatten()
        sets.append((keep.inputs[some], keep.criterion[some], some))
    G, h = list[Array](), list[Array]()
    for inputs, criterion, some in sets:
        x = inputs.double() if inputs.is_floating_point() else inputs
        if not len(x) or len(x) * sum(p.numel() for p in chosen.values()) > NUMBERS:
            return None if some is None or len(x) else (np.concatenate(G), np.concatenate(h))
        own = problem.model(inputs).double().detach()  # the branch of a disjunction is chosen in the model's own dtype
        decided = criterion.resolve(own)
        with InFloat64(), torch.enable_grad():
            y, leaves = _run(model, chosen, x)
        J = np.stack([[_gradient(y[p, o], leaves) for o in range(y.shape[1])] for p in range(len(y))])
        y = y.detach()
        has = decided.slack(own)
        need = torch.full_like(has, margin) if some is None else has.clamp(max=margin)
        missing = (need - decided.slack(y)).numpy()
        point, condition = np.nonzero(np.isfinite(missing))
        A = decided.rows(torch.from_numpy(point), torch.from_numpy(condition), y).flatten(1).numpy()
        G.append(np.einsum("ro,ron->rn", A, J[point]))
        h.append(missing[point, condition])
    return np.concatenate(G), np.concatenate(h)


def _run(model: nn.Module, chosen: dict[str, Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the outputs at x, and the named parameters that they depend on."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in chosen.items()}
    return torch.func.functional_call(model, leaves, (x,)), list(leaves.values())


def _gradient(y: Tensor, leaves: list[Tensor]) -> Array:
    found = torch.autograd.grad(y, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
    return np.concatenate([g.flatten().numpy() for g in found])


def _least(G: Array, h: Array, norm: str) -> float | None:
    """Return the smallest norm(d) with G d >= h; None where there is none, or no other solver is at hand."""
    lengths = np.linalg.norm(G, axis=1)
    if not (np.isfinite(lengths).all() and np.isfinite(h).all()) or ((lengths == 0) & (h > 0)).any():
        return None
    G, h = G[lengths > 0] / lengths[lengths > 0, None], h[lengths > 0] / lengths[lengths > 0]
    unit = float(h.max(initial=0.0))
    if unit <= 0:
        return 0.0
    h, (m, n) = h / unit, G.shape
    if norm == "l2":  # least distance programming (Lawson and Hanson)
        u, _ = scipy.optimize.nnls(np.vstack([G.T, h]), np.append(np.zeros(n), 1.0))
        r = np.append(G.T @ u, h @ u - 1.0)
        if np.linalg.norm(r) < 1e-9:
            return None
        d = -r[:-1] / r[-1]
        return unit * float(np.linalg.norm(d)) if (h - G @ d).max() < 1e-9 else None
    if norm not in ("l1", "linf", "mean+max"):
        return None
    price, cap = {"l1": (1.0, 0.0), "linf": (0.0, 1.0), "mean+max": (1.0 / n, 1.0)}[norm]
    eye, ones = np.eye(n), np.ones((n, 1))  # d = p - q, and p + q <= the last variable where that has a price
    A = np.block([[-G, G, np.zeros((m, 1))], [eye, eye, -ones]]) if cap else np.hstack([-G, G, np.zeros((m, 1))])
    b = np.append(-h, np.zeros(n)) if cap else -h
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = scipy.optimize.linprog(np.append(np.full(2 * n, price), cap), A, b, method="highs", options=tight)
    return unit * float(found.fun) if found.status == 0 else None
