"""The door: everything that a method gets to see, checked once, so that the rooms behind it can trust it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair import accepted
from nnrepair.criteria import AllOf, AnyOf, Argmax, Argmin, Chosen, Criterion, Near
from nnrepair.errors import InvalidInput, UnsupportedModel, first_line
from nnrepair.forward import call
from nnrepair.spec import AnyInputs, Edits, EditScope, LocalitySet

if TYPE_CHECKING:
    from nnrepair.regions import RegionEdits

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


def is_classifier(criterion: Criterion) -> bool:
    """Whether the criterion speaks of decisions among classes (so that accuracy and drawdown mean something)."""
    if isinstance(criterion, (AllOf, AnyOf, Chosen)):
        return all(is_classifier(part) for part in criterion.parts)
    return isinstance(criterion, Argmax)


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
        seed: for every random choice.
        progress: whether to show a progress bar.
        regions: the whole regions that the edits stand for, or None for plain points; only `fix` looks at them.
    """

    model: nn.Module
    edits: Edits
    locality: LocalitySet | None
    keep: Criterion | None
    kept: Tensor | None
    scope: EditScope | None
    lowest: bool
    seed: int
    progress: bool = False
    regions: RegionEdits | None = None

    def decide(self, y: Tensor) -> Tensor:
        """Return (n,) the decisions that outputs (n, classes) stand for."""
        return y.argmin(1) if self.lowest else y.argmax(1)

    @property
    def classifies(self) -> bool:
        """Whether the edits speak of classes."""
        return is_classifier(self.edits.criterion)


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
    edits = Edits(to_like(edits.inputs, like), edits.criterion)
    y = first_look(model, edits.inputs, "the edits")
    edits.criterion.check(y)
    _refuse_contradictions(edits)
    lowest = _lowest(edits.criterion)
    locality = keep = kept = None
    if locality_set is not None:
        locality = LocalitySet.coerce(locality_set)
        if len(locality) == 0:
            raise InvalidInput("The locality set is empty; leave it out, or give points that must stay.")
        locality = LocalitySet(to_like(locality.inputs, like), _same_sense(locality.criterion, lowest))
        locality, keep, kept = _keep(model, locality, edits, lowest)
    scope = None
    if edit_scope is not None:
        scope = EditScope.coerce(edit_scope)
        if len(scope) == 0:
            raise InvalidInput("The edit scope is empty; leave it out, or give points that the edits should reach.")
        scope = EditScope(to_like(scope.inputs, like), _same_sense(scope.criterion, lowest), scope.of)
        scope.criterion.check(first_look(model, scope.inputs, "the edit scope"))
        _refuse_strangers(scope, len(edits))
    return Problem(model, edits, locality, keep, kept, scope, lowest, 0 if seed is None else seed, progress)


def held_out(problem: Problem, points: Any, name: str) -> tuple[LocalitySet, Criterion]:
    """Return points that no method sees, where the model is, and the criterion that keeps them.

    Raises:
        InvalidInput: there are none, or the model does not accept them.
    """
    points = LocalitySet.coerce(points)
    if len(points) == 0:
        raise InvalidInput(f"{name} is empty; leave it out, or give points to measure on.")
    inputs = to_like(points.inputs, check_model(problem.model))
    points = LocalitySet(inputs, _same_sense(points.criterion, problem.lowest))
    points, keep, _ = _keep(problem.model, points, problem.edits, problem.lowest, name)
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
    accepted.refuse_kinds(model)
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


def _lowest(criterion: Criterion) -> bool:
    parts = getattr(criterion, "parts", None)
    return isinstance(criterion, Argmin) if parts is None else all(_lowest(p) for p in parts)


def _same_sense(criterion: Criterion | None, lowest: bool) -> Criterion | None:
    """Read plain labels as the edits are read: beside Argmin edits, a label is the lowest score's class."""
    plain = type(criterion) is Argmax and criterion.margin_ == 0
    return Argmin(criterion.labels) if lowest and plain and isinstance(criterion, Argmax) else criterion


def first_look(model: nn.Module, inputs: AnyInputs, what: str) -> Tensor:
    """Return the outputs of all points, after checks that need a look at a few of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = _unwritten(model, inputs)
    except UnsupportedModel as error:
        if error.__cause__ is None:
            raise
        if len(inputs) > FEW and accepted.accepts(model, inputs):
            raise UnsupportedModel(
                f"The model accepts {len(inputs)} points at once, but not {FEW} of them "
                f"({first_line(error.__cause__)}). {accepted.ANY_SIZE}"
            ) from error.__cause__
        given = f"shape {tuple(inputs.shape)}, {inputs.dtype}" if isinstance(inputs, Tensor) else type(inputs).__name__
        parts = (
            " Where a model takes several arguments or keywords, give an nnrepair.Inputs object whose call() runs it."
            if isinstance(error.__cause__, TypeError)
            else ""
        )
        raise InvalidInput(
            f"The model does not accept {what} ({given}): {first_line(error.__cause__)}{parts}"
        ) from error.__cause__
    if not y.dtype.is_floating_point or y.layout != torch.strided:
        kind = str(y.dtype if y.layout == torch.strided else y.layout).removeprefix("torch.")
        raise UnsupportedModel(
            f"The model returns {kind} outputs. A repair needs scores, dense floating-point numbers: no decisions, "
            "counts or complex numbers."
        )
    if y.ndim == 0 or len(y) != len(inputs) or y.numel() == 0:
        raise InvalidInput(
            f"The model returns outputs of shape {tuple(y.shape)} for {len(inputs)} points; the first axis must be the "
            "points. Give inputs with one point per row."
        )
    if not torch.isfinite(y).all():
        bad = torch.nonzero(~torch.isfinite(y.flatten(1)).all(1)).flatten().tolist() if y.ndim > 1 else []
        raise InvalidInput(f"The model's outputs on {what} are not finite, at indices {bad[:10]}.")
    few = torch.arange(len(inputs)).flip(0)[: max(1, min(FEW, len(inputs) // 2))]  # fewer points, in another order
    with torch.no_grad():
        again = call(model, inputs[few])
        twice = call(model, inputs[few])
    # Sums over edges on a GPU add up in another order every time: no randomness, and no more than rounding.
    if not (torch.equal(again, twice) or (again.is_cuda and differ_by_rounding(again, twice))):
        raise UnsupportedModel(
            "Two forward passes in eval mode differ: the model is random (dropout applied by hand, sampling, noise). "
            "A repair could not be confirmed; make it deterministic in eval mode."
        )
    if isinstance(inputs, Tensor) or inputs.independent:
        accepted.refuse_dependence(model, y, [(few, again), (few[:1], accepted.alone(model, inputs[few[:1]]))])
    return y


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


def _refuse_contradictions(edits: Edits) -> None:
    """Refuse equal inputs with different labels: no network can satisfy both."""
    if not isinstance(edits.criterion, Argmax):
        return
    points = _identity(edits.inputs)
    if points is None:
        return
    which, labels = _numbered(points), edits.criterion.labels.tolist()
    first: dict[int, int] = {}
    clashes = []
    for index, group in enumerate(which.tolist()):
        seen = first.setdefault(group, index)
        if labels[seen] != labels[index] and np.array_equal(points[seen], points[index]):
            clashes.append((seen, index))
    if clashes:
        shown = ", ".join(f"{a} and {b} (labels {labels[a]} and {labels[b]})" for a, b in clashes[:5])
        more = f", and {len(clashes) - 5} more pairs" if len(clashes) > 5 else ""
        raise InvalidInput(f"Equal inputs are given different labels: edits {shown}{more}. Remove one of each pair.")


def kept_edits(problem: Problem) -> list[str]:
    """Return a note on edits that are also points to keep, with the decision that is to change; or nothing."""
    edits, locality, keep, kept = problem.edits, problem.locality, problem.keep, problem.kept
    if locality is None or kept is None:
        return []
    asked = edits.criterion
    if not (isinstance(asked, Argmax) and isinstance(keep, Argmax) and type(keep) is type(asked)):
        return []
    points, others = _identity(edits.inputs), _identity(locality.inputs)
    if points is None or others is None or points.shape[1:] != others.shape[1:]:
        return []
    which = _numbered(np.concatenate([points, others]))
    mine, theirs = which[: len(points)], which[len(points) :]
    binding = torch.nonzero(kept).flatten().cpu().numpy()
    place = np.full(which.max() + 1, -1)
    place[theirs[binding]] = binding
    labels, decisions = asked.labels.tolist(), keep.labels.tolist()
    clashes = [
        edit
        for edit, point in enumerate(place[mine].tolist())
        if point >= 0 and labels[edit] != decisions[point] and np.array_equal(points[edit], others[point])
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
    flat = inputs.detach().flatten(1) if inputs.ndim > 1 else inputs.detach()[:, None]
    if flat.element_size() < 4:
        flat = flat.float() if flat.dtype.is_floating_point else flat.int()
    return flat.cpu().numpy()


def _numbered(points: NDArray[Any]) -> NDArray[np.int64]:
    """Return (n,) a number for each point (n, d), the same for equal ones and, all but certainly, no others."""
    words = np.ascontiguousarray(points + 0).view(np.uint32).reshape(len(points), -1)  # -0.0 is 0.0
    factors = np.random.default_rng(0).integers(1, 2**63, words.shape[1], dtype=np.uint64)
    hashed = [(words[s : s + BATCH].astype(np.uint64) * factors).sum(1) for s in range(0, len(words), BATCH)]
    return np.unique(np.concatenate(hashed), return_inverse=True)[1].reshape(-1)


def _keep(
    model: nn.Module, locality: LocalitySet, edits: Edits, lowest: bool, what: str = "the locality set"
) -> tuple[LocalitySet, Criterion, Tensor]:
    y = first_look(model, locality.inputs, what)
    if locality.criterion is not None:
        locality.criterion.check(y)
        return locality, locality.criterion, locality.criterion.holds(y.double())
    everything = torch.ones(len(locality), dtype=torch.bool, device=y.device)
    typical = edits.criterion.typical_slack(outputs(model, edits.inputs).double())
    if is_classifier(edits.criterion):
        keep: Criterion = Argmin(y.argmin(1)) if lowest else Argmax(y.argmax(1))
        return locality, keep, keep.holds(y)
    return locality, Near(y, typical or 1e-3 * float(y.abs().max()) or 1e-6), everything
