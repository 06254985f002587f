"""The door: everything that a method gets to see, checked once, so that the rooms behind it can trust it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel, first_line
from nnrepair.spec import accepted
from nnrepair.spec.criteria import (
    AnyOf,
    Argmax,
    Argmin,
    Chosen,
    Criterion,
    Threshold,
    flat,
)
from nnrepair.spec.edits import AnyInputs, Edits, EditScope, LocalitySet
from nnrepair.spec.kinds import (
    Binary,
    Classes,
    Kind,
    is_mixed,
    kind_of,
    leaves,
)
from nnrepair.spec.network import refuse_kinds
from nnrepair.spec.running import call

#: Points per forward pass when nothing but the outputs is needed.
BATCH = 4096
#: Points on which the model is tried first.
FEW = 4
#: Inputs other than tensors are copied for their first pass where they hold no more numbers than this.
COPIED = 100_000_000
WRITES = (
    "The model writes into its inputs, so running it changes your data. Some operation works in place (such as "
    "nn.ReLU(inplace=True) as the first layer): let it make a new tensor."
)
#: Operations of automatic differentiation that move numbers and change none.
RESHAPES = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "Index", "Permute", "Transpose")
#: By how much two passes may differ on a GPU, relative to the largest output.
ROUNDINGS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def own(inputs: AnyInputs) -> Tensor:
    """Return (n, features): each point's own features, flat; what it is apart from all other points.

    A tensor's are its rows. An `Inputs` object has a method `own()`, which returns (n, ...).

    Raises:
        InvalidInput: the inputs do not say what is a point's own.
    """
    if isinstance(inputs, Tensor):
        if not inputs.dtype.is_floating_point:
            raise InvalidInput(
                f"This method needs every point's own features, got {inputs.dtype}: numbers of points or tokens are no "
                "features. Give an Inputs object with a method own() that returns them."
            )
        x = inputs
    elif callable(given := getattr(inputs, "own", None)):
        x = given()
    else:
        raise InvalidInput(
            f"This method needs every point's own features, and {type(inputs).__name__} does not say which these are. "
            "Give it a method own() that returns them, one row per point: those rows of the model's first argument."
        )
    if len(x) != len(inputs):
        raise InvalidInput(f"own() must return one row for each of {len(inputs)} points, got {tuple(x.shape)}.")
    return x.reshape(len(x), -1)


def to_like(inputs: AnyInputs, like: Tensor) -> AnyInputs:
    """Move inputs to the device and floating dtype of `like`."""
    if isinstance(inputs, Tensor):
        inputs = inputs.clone() if inputs.is_inference() else inputs
        return inputs.to(like) if inputs.dtype.is_floating_point else inputs.to(like.device)
    return inputs.to(like)


def batches(count: int) -> list[Tensor]:
    """Return the indices 0..count-1 in batches."""
    return list(torch.split(torch.arange(count), BATCH))


@torch.no_grad()
def outputs(model: nn.Module, inputs: AnyInputs) -> Tensor:
    """Return the outputs (n, ...) of all points, in batches."""
    if not isinstance(inputs, Tensor) and not inputs.independent:
        return call(model, inputs)
    if len(inputs) <= BATCH:
        return call(model, inputs)
    return torch.cat([call(model, inputs[step]) for step in batches(len(inputs))])


def outputs_of(model: nn.Module, several: Sequence[AnyInputs]) -> list[Tensor]:
    """Return the outputs of several sets of points; those that can be joined (nodes of one graph) run together."""
    found: dict[int, Tensor] = {}
    for inputs, members in together(several):
        sizes = [len(several[k]) for k in members]
        found |= dict(zip(members, torch.split(outputs(model, inputs), sizes), strict=True))
    return [found[k] for k in range(len(several))]


def together(several: Sequence[AnyInputs]) -> list[tuple[AnyInputs, list[int]]]:
    """Return the points in as few parts as run in one pass each, and which of the given sets each part holds."""
    joined: list[tuple[AnyInputs, list[int]]] = []
    for k, inputs in enumerate(several):
        for place, (some, members) in enumerate(joined):
            if (both := join(some, inputs)) is not None:
                joined[place] = (both, [*members, k])
                break
        else:
            joined.append((inputs, [k]))
    return joined


def join(first: AnyInputs, second: AnyInputs) -> AnyInputs | None:
    """Return points that run in one pass of a whole domain (`Inputs.joined`), or None where that saves nothing."""
    joined: Callable[[AnyInputs], AnyInputs | None] | None = getattr(first, "joined", None)
    return None if joined is None else joined(second)


def has_choice(criterion: Criterion) -> bool:
    """Whether the criterion holds a disjunction, of which a linear program takes one branch per point."""
    return isinstance(criterion, (AnyOf, Chosen)) or any(has_choice(p) for p in getattr(criterion, "parts", ()))


@dataclass(frozen=True)
class Problem:
    """A repair task: the model, its edits, and what must stay. Methods read it; `fix` judges against it.

    Attributes:
        model: a private copy in eval mode; a method may not change it.
        edits: what must hold afterwards.
        locality: points to keep, or None.
        keep: the criterion that keeps them, aligned with `locality` (made from today's decisions where the user gave
            none), and `kept`: bool (points,), which of them it binds.
        scope: the edit scope, or None.
        kind: what outputs stand for, as the edits (or else the locality set) say: decisions, or numbers.
        seed: for every random choice.
        progress: whether to show a progress bar.
    """

    model: nn.Module
    edits: Edits
    locality: LocalitySet | None
    keep: Criterion | None
    kept: Tensor | None
    scope: EditScope | None
    kind: Kind
    seed: int
    progress: bool = False

    @property
    def lowest(self) -> bool:
        """Whether outputs are scores of classes of which the lowest wins."""
        return isinstance(self.kind, Classes) and self.kind.lowest


def build(
    model: nn.Module,
    edits: Any,
    locality_set: Any = None,
    edit_scope: Any = None,
    *,
    seed: int | None = None,
    progress: bool = False,
) -> Problem:
    """Check everything and return the problem.

    Raises:
        InvalidInput: edits, labels, locality set or model that cannot be used; the message says which and why.
        UnsupportedModel: a model that is random in eval mode, or whose points influence each other.
    """
    like = check_model(model)
    edits = Edits.coerce(edits)
    inputs = to_like(edits.inputs, like)
    y = first_look(model, inputs, "the edits")
    edits = Edits(inputs, fitted(edits.criterion, y))
    edits.criterion.check(y)
    _refuse_probabilities(model, edits)
    _refuse_contradictions(edits)
    locality = keep = kept = None
    kind = kind_of(edits.criterion)
    if locality_set is not None:
        locality = LocalitySet.coerce(locality_set)
        if len(locality) == 0:
            raise InvalidInput("The locality set is empty; leave it out, or give points that must stay.")
        locality, keep, kept = _keep(model, LocalitySet(to_like(locality.inputs, like), locality.criterion), edits)
        kind = kind_of(edits.criterion, keep)
    scope = None
    if edit_scope is not None:
        scope = EditScope.coerce(edit_scope)
        if len(scope) == 0:
            raise InvalidInput("The edit scope is empty; leave it out, or give points that the edits should reach.")
        inputs = to_like(scope.inputs, like)
        y = first_look(model, inputs, "the edit scope")
        scope = EditScope(inputs, fitted(scope.criterion, y, edits.criterion), scope.of)
        scope.criterion.check(y)
        _refuse_strangers(scope, len(edits))
    return Problem(model, edits, locality, keep, kept, scope, kind, 0 if seed is None else seed, progress)


def held_out(problem: Problem, points: Any, name: str) -> tuple[LocalitySet, Criterion]:
    """Return points that no method sees, where the model is, and the criterion that keeps them.

    Raises:
        InvalidInput: there are none, or the model does not accept them.
    """
    points = LocalitySet.coerce(points)
    if len(points) == 0:
        raise InvalidInput(f"{name} is empty; leave it out, or give points to measure on.")
    points = LocalitySet(to_like(points.inputs, check_model(problem.model)), points.criterion)
    points, keep, _ = _keep(problem.model, points, problem.edits, problem.kind, name)
    return points, keep


def _refuse_strangers(scope: EditScope, edits: int) -> None:
    if scope.of is not None and (int(scope.of.min()) < 0 or int(scope.of.max()) >= edits):
        raise InvalidInput(
            f"EditScope: `of` must name edits 0..{edits - 1}, got {int(scope.of.min())}..{int(scope.of.max())}."
        )


@torch.no_grad()
def check_model(model: Any) -> Tensor:
    """Refuse what is no network with finite weights; return one of its parameters."""
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    refuse_kinds(model)
    like = next((p for p in model.parameters() if p.dtype.is_floating_point), None)
    if like is None:
        raise InvalidInput(
            "The model has no floating-point parameters, so there is nothing that could be changed; integers and "
            "complex numbers are not."
        )
    bad = [name for name, p in model.named_parameters() if p.dtype.is_floating_point and not torch.isfinite(p).all()]
    if bad:
        raise InvalidInput(f"The model's parameters {bad[:5]} contain NaN or infinity.")
    return like


def fitted(criterion: Criterion, y: Tensor, beside: Criterion | None = None) -> Criterion:
    """Read labels as the model's outputs, and the edits beside them, make them; other criteria stay as they are.

    Integers for a model with a single output are its sign. Beside `Argmin` edits, a label is the lowest score's class;
    beside `Threshold` edits it is about their threshold.

    Args:
        criterion: as made from labels, or any other.
        y: (n, ...) outputs.
        beside: the edits' criterion, for other points.
    """
    kind = kind_of(beside)
    if criterion.plain and isinstance(criterion, Argmax) and flat(y).shape[1] == 1:
        criterion = Threshold(criterion.labels)
        criterion.plain = True
    if criterion.plain and isinstance(criterion, Threshold) and isinstance(kind, Binary):
        return Threshold(criterion.labels, kind.threshold)
    if type(criterion) is Argmax and criterion.margin_ == 0 and isinstance(kind, Classes) and kind.lowest:
        return Argmin(criterion.labels)
    return criterion


def _refuse_probabilities(model: nn.Module, edits: Edits) -> None:
    """Refuse a threshold of 0 where the model's last operation is a sigmoid: every output lies above it."""
    if not any(isinstance(part, Threshold) and (part.threshold <= 0).any() for part in leaves(edits.criterion)):
        return
    with torch.enable_grad():
        node: Any = call(model, edits.inputs[torch.tensor([0])]).grad_fn
    while node is not None and node.name().startswith(RESHAPES):
        node = node.next_functions[0][0]
    if node is not None and node.name().startswith(("Sigmoid", "Softmax")):
        raise InvalidInput(
            "The model ends in a sigmoid or softmax: its outputs are probabilities, and none lies below the threshold "
            "0. Say where yes begins: Threshold(labels, threshold=0.5)."
        )


def first_look(model: nn.Module, inputs: AnyInputs, what: str) -> Tensor:
    """Return the outputs of all points, after checks that need a look at a few of them."""
    y = _first_run(model, inputs, what)
    _refuse_outputs(y, len(inputs), what)
    few = torch.arange(len(inputs)).flip(0)[: max(1, min(FEW, len(inputs) // 2))]  # fewer points, in another order
    again, twice = accepted.some(model, inputs[few]), accepted.some(model, inputs[few])
    # Sums over edges on a GPU add up in another order every time: no randomness, and no more than rounding.
    if not (torch.equal(again, twice) or (again.is_cuda and differ_by_rounding(again, twice))):
        raise UnsupportedModel(
            "Two forward passes in eval mode differ: the model is random (dropout applied by hand, sampling, noise). "
            "A repair could not be confirmed; make it deterministic in eval mode."
        )
    if isinstance(inputs, Tensor) or inputs.independent:
        accepted.refuse_dependence(model, y, [(few, again), (few[:1], accepted.some(model, inputs[few[:1]]))])
    return y


def _first_run(model: nn.Module, inputs: AnyInputs, what: str) -> Tensor:
    """Return the outputs of all points; what the model raises is told as what was wrong with the points."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _unwritten(model, inputs)
    except UnsupportedModel as error:
        if error.__cause__ is None:
            raise
        cause = error.__cause__
    if len(inputs) > FEW and accepted.accepts(model, inputs):
        raise UnsupportedModel(
            f"The model accepts {len(inputs)} points at once, but not {FEW} of them ({first_line(cause)}). "
            f"{accepted.ANY_SIZE}"
        ) from cause
    given = f"shape {tuple(inputs.shape)}, {inputs.dtype}" if isinstance(inputs, Tensor) else type(inputs).__name__
    advice = (
        " Where a model takes several arguments or keywords, give an nnrepair.Inputs object whose call() runs it."
        if isinstance(cause, TypeError)
        else ""
    )
    raise InvalidInput(f"The model does not accept {what} ({given}): {first_line(cause)}{advice}") from cause


def _refuse_outputs(y: Tensor, count: int, what: str) -> None:
    """Refuse outputs that are no finite scores, one row for each of `count` points."""
    if not y.dtype.is_floating_point or y.layout != torch.strided:
        kind = str(y.dtype if y.layout == torch.strided else y.layout).removeprefix("torch.")
        raise UnsupportedModel(
            f"The model returns {kind} outputs. A repair needs scores, dense floating-point numbers: no decisions, "
            "counts or complex numbers."
        )
    if y.ndim == 0 or len(y) != count or y.numel() == 0:
        raise InvalidInput(
            f"The model returns outputs of shape {tuple(y.shape)} for {count} points; the first axis must be the "
            "points. Give inputs with one point per row."
        )
    if not torch.isfinite(y).all():
        bad = torch.nonzero(~torch.isfinite(y.flatten(1)).all(1)).flatten().tolist() if y.ndim > 1 else []
        raise InvalidInput(f"The model's outputs on {what} are not finite, at indices {bad[:10]}.")


@torch.no_grad()
def _unwritten(model: nn.Module, inputs: AnyInputs) -> Tensor:
    """Return the outputs (n, ...), having refused a model that changes its user's tensors.

    Of tensors, some points are tried first; other inputs (graphs) run as a copy, unless they are large: then a write is
    seen once it has happened.
    """
    if isinstance(inputs, Tensor):
        few = inputs[:FEW].clone()
        if len(inputs):
            call(model, few)
        _refuse_written([(few, inputs[:FEW])])
        return outputs(model, inputs)
    parts = {name: value for name, value in getattr(inputs, "__dict__", {}).items() if isinstance(value, Tensor)}
    if sum(value.numel() for value in parts.values()) > COPIED:
        counts = {name: value._version for name, value in parts.items() if not value.is_inference()}
        y = outputs(model, inputs)
        if any(parts[name]._version != count for name, count in counts.items()):
            raise UnsupportedModel(f"{WRITES} It has just done so: load your data again.")
        return y
    copied = copy.copy(inputs)
    for name, value in parts.items():
        object.__setattr__(copied, name, value.clone())
    y = outputs(model, copied)
    _refuse_written([(getattr(copied, name), value) for name, value in parts.items()])
    return y


def _refuse_written(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for now, before in pairs:
        same = before.layout != torch.strided or ((now == before) | ((now != now) & (before != before))).all()  # NaN
        if not same:
            raise UnsupportedModel(WRITES)


def differ_by_rounding(a: Tensor, b: Tensor) -> bool:
    """Whether outputs differ by no more than some roundings, relative to the largest of them."""
    return torch.allclose(a, b, rtol=0, atol=ROUNDINGS.get(a.dtype, 0.0) * float(a.abs().max()))


def differ(a: list[int], b: list[int]) -> bool:
    """Whether two points' labels contradict each other; -1 contradicts nothing."""
    return any(x != y and x >= 0 and y >= 0 for x, y in zip(a, b, strict=True))


def _refuse_contradictions(edits: Edits) -> None:
    """Refuse equal inputs with different labels: no network can satisfy both."""
    if not isinstance(edits.criterion, Argmax | Threshold):
        return
    points = _identity(edits.inputs)
    if points is None:
        return
    which, labels = _numbered(points), flat(edits.criterion.labels).tolist()
    groups: dict[int, list[int]] = {}
    clashes = []
    for index, group in enumerate(which.tolist()):
        others = groups.setdefault(group, [])
        seen = next((seen for seen in others if differ(labels[seen], labels[index])), None)
        if seen is not None and np.array_equal(points[seen], points[index]):
            clashes.append((seen, index))
        elif all(labels[seen] != labels[index] for seen in others):
            others.append(index)
    if clashes:
        one = {k: labels[k][0] if len(labels[k]) == 1 else labels[k] for pair in clashes[:5] for k in pair}
        shown = ", ".join(f"{a} and {b} (labels {one[a]} and {one[b]})" for a, b in clashes[:5])
        more = f", and {len(clashes) - 5} more pairs" if len(clashes) > 5 else ""
        raise InvalidInput(f"Equal inputs are given different labels: edits {shown}{more}. Remove one of each pair.")


def kept_edits(problem: Problem) -> list[str]:
    """Return a note on edits that are also points to keep, with the decision that is to change; or nothing."""
    edits, locality, keep, kept = problem.edits, problem.locality, problem.keep, problem.kept
    if locality is None or kept is None:
        return []
    asked = edits.criterion
    if type(keep) is not type(asked) or kind_of(keep) != kind_of(asked):
        return []
    if not isinstance(asked, Argmax | Threshold) or not isinstance(keep, Argmax | Threshold):
        return []
    points, others = _identity(edits.inputs), _identity(locality.inputs)
    if points is None or others is None or points.shape[1:] != others.shape[1:]:
        return []
    which = _numbered(np.concatenate([points, others]))
    mine, theirs = which[: len(points)], which[len(points) :]
    binding = torch.nonzero(kept).flatten().cpu().numpy()
    place = np.full(which.max() + 1, -1)
    place[theirs[binding]] = binding
    labels, decisions = flat(asked.labels).tolist(), flat(keep.labels).tolist()
    clashes = [
        edit
        for edit, point in enumerate(place[mine].tolist())
        if point >= 0 and differ(labels[edit], decisions[point]) and np.array_equal(points[edit], others[point])
    ]
    if not clashes:
        return []
    more = ", ..." if len(clashes) > 10 else ""
    return [
        f"edits {str(clashes[:10])[1:-1]}{more} are points of the locality set too, which keeps the very decision that "
        "they change; leave them out of it."
    ]


def _identity(inputs: AnyInputs) -> NDArray[Any] | None:
    """Return (n, ...) what is equal where two points are the same, or None where the inputs do not say."""
    if not isinstance(inputs, Tensor):
        same: Callable[[], Tensor] | None = getattr(inputs, "same", None)
        if not callable(same):
            return None
        found = same()
        if len(found) != len(inputs):
            raise InvalidInput(
                f"same() must return one row for each of {len(inputs)} points, got {tuple(found.shape)}."
            )
        inputs = found
    rows = flat(inputs.detach())
    if rows.element_size() < 4:
        rows = rows.float() if rows.dtype.is_floating_point else rows.int()
    return rows.cpu().numpy()


def _numbered(points: NDArray[Any]) -> NDArray[np.int64]:
    """Return (n,) a number for each point (n, d), the same for equal ones and, all but certainly, no others."""
    words = np.ascontiguousarray(points + 0).view(np.uint32).reshape(len(points), -1)  # -0.0 is 0.0
    factors = np.random.default_rng(0).integers(1, 2**63, words.shape[1], dtype=np.uint64)
    hashed = [(words[s : s + BATCH].astype(np.uint64) * factors).sum(1) for s in range(0, len(words), BATCH)]
    return np.unique(np.concatenate(hashed), return_inverse=True)[1].reshape(-1)


def kind_notes(problem: Problem, criterion: Criterion) -> list[str]:
    """Return what the report says of how labels and outputs were read, where that may not be what was meant.

    Args:
        problem: the task.
        criterion: of the edits as the caller gave them.
    """
    notes = list[str]()
    if isinstance(criterion, Threshold) and flat(criterion.labels).shape[1] > 1:
        labels = flat(criterion.labels)
        if bool(((labels == 1).sum(1) == 1).all() & (labels >= 0).all()):
            notes.append(
                "labels (n, outputs) were read as one yes-or-no answer per output; for one class per point give its "
                "number, such as labels.argmax(1)."
            )
    if is_mixed(criterion) and problem.locality is not None and problem.locality.criterion is None:
        notes.append(
            "the edits ask for decisions and bound numbers; points to keep without a criterion of their own keep their "
            "decisions only. Give LocalitySet(inputs, criterion) to keep more."
        )
    return notes


def _keep(
    model: nn.Module, locality: LocalitySet, edits: Edits, kind: Kind | None = None, what: str = "the locality set"
) -> tuple[LocalitySet, Criterion, Tensor]:
    """Return the points with their labels read, the criterion that keeps them, and which of them hold it now."""
    y = first_look(model, locality.inputs, what)
    if locality.criterion is not None:
        criterion = fitted(locality.criterion, y, edits.criterion)
        criterion.check(y)
        return LocalitySet(locality.inputs, criterion), criterion, criterion.holds(y.double())
    tol = edits.criterion.typical_slack(outputs(model, edits.inputs).double())
    keep = (kind or kind_of(edits.criterion)).keep(y, tol or 1e-3 * float(y.abs().max()) or 1e-6)
    keep.check(y)
    return locality, keep, keep.holds(y)
