"""The repair problem that a method gets. All inputs are checked here, once, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput
from nnrepair.rounding import first
from nnrepair.spec.accepted import first_look
from nnrepair.spec.criteria import (
    Argmax,
    Argmin,
    Criterion,
    Threshold,
    flat,
)
from nnrepair.spec.duplicates import refuse_contradictions
from nnrepair.spec.edits import Edits, EditScope, Locality, LocalitySet
from nnrepair.spec.inputs import to_like
from nnrepair.spec.kinds import (
    Binary,
    Classes,
    Kind,
    is_mixed,
    kind_of,
    leaves,
)
from nnrepair.spec.network import refuse_kinds
from nnrepair.spec.regions import Regions
from nnrepair.spec.running import call, outputs

#: The label of positions without one, as in torch.
IGNORED = -100
#: Operations of automatic differentiation that move numbers and change none.
RESHAPES = ("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "Index", "Permute", "Transpose")


T = TypeVar("T")


def has_choice(criterion: Criterion) -> bool:
    """Whether the criterion holds a disjunction, of which a linear program takes one branch per point."""
    return criterion.chooses or any(has_choice(p) for p in getattr(criterion, "parts", ()))


class Known:
    """What was worked out last of a network and its points to keep alone; the problems of one sequence share it."""

    def __init__(self) -> None:
        self._of: tuple[object, ...] = ()
        self._key: Hashable = None
        self._value: Any = None

    def once(self, of: tuple[object, ...], key: Hashable, make: Callable[[], T]) -> T:
        """Return what is known, or make it: of the very same objects, and by the same key."""
        same = len(of) == len(self._of) and all(a is b for a, b in zip(of, self._of, strict=True))
        if not same or key != self._key:
            self._of, self._key, self._value = of, key, make()
        found: T = self._value
        return found


@dataclass(frozen=True)
class Problem:
    """A repair task: the model, its edits, and what must stay. Methods read it; `fix` judges against it.

    Attributes:
        model: a private copy in eval mode; a method may not change it.
        edits: what must hold afterwards.
        locality: points to keep, or None.
        scope: the edit scope, or None.
        kind: what outputs stand for, as the edits (or else the locality set) say: decisions, or numbers.
        seed: for every random choice.
        progress: whether to show a progress bar.
        known: see `once`.
    """

    model: nn.Module
    edits: Edits
    locality: Locality | None
    scope: EditScope | None
    kind: Kind
    seed: int
    progress: bool = False
    known: Known = field(default_factory=Known, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` works out of the network, the points to keep and the kind of outputs alone.

        Independent edits of one sequence have these in common, and what was made last is made once for all of them.

        Args:
            key: says what is made.
            make: makes it; it may raise.
        """
        return self.known.once((self.model, self.locality and self.locality.inputs, self.kind), key, make)

    @cached_property
    def before(self) -> Tensor:
        """(points, ...) the model's outputs on the locality set."""
        assert self.locality is not None
        known = self.locality.before
        return outputs(self.model, self.locality.inputs) if known is None else known

    @cached_property
    def answers(self) -> Tensor:
        """(points, ...) the model's outputs on the edits."""
        return outputs(self.model, self.edits.inputs)

    @property
    def lowest_wins(self) -> bool:
        """Whether outputs are scores of classes of which the lowest wins."""
        return isinstance(self.kind, Classes) and self.kind.lowest_wins


def pose(
    model: nn.Module,
    edits: Any,
    locality_set: Any = None,
    edit_scope: Any = None,
    *,
    count: int | None = None,
    seed: int | None = None,
    progress: bool = False,
    known: bool = False,
) -> Problem:
    """Check everything and return the problem, in which every point of an edit is an edit of its own.

    Args:
        model: in eval mode.
        edits, locality_set, edit_scope, seed, progress: see `nnrepair.fix`.
        count: how many edits the points stand for, where that is not how many the edits say.
        known: whether a problem like this was posed of the same model before, which is then not tried out again.

    Raises:
        InvalidInput: edits, labels, locality set or model that cannot be used; the message says which and why.
        UnsupportedModel: a model that is random in eval mode, or whose points influence each other.
    """
    like = check_model(model)
    edits = Edits.coerce(edits)
    inputs = to_like(edits.inputs, like)
    y = answers = first_look(model, inputs, "the edits", known)
    count, criterion = len(edits) if count is None else count, fitted(edits.criterion, y)
    criterion.check(y)
    near = edits.neighbours
    near = None if near is None else _scope(model, near, like, criterion, count, "neighbours", known)
    edits = Edits(inputs, criterion, edits.of, near)
    _refuse_probabilities(model, edits)
    refuse_contradictions(edits)
    edits = edits.points()
    locality, kind = None, kind_of(edits.criterion)
    if locality_set is not None:
        points = LocalitySet.coerce(locality_set)
        if len(points) == 0:
            raise InvalidInput("The locality set is empty; leave it out, or give points that must stay.")
        locality = _locality(model, points.to(like), edits, answers, known=known)
        kind = kind_of(edits.criterion, locality.criterion)
    scope = None
    if edit_scope is not None:
        scope = _scope(model, EditScope.coerce(edit_scope), like, edits.criterion, count, "edit scope", known)
    posed = Problem(model, edits, locality, scope, kind, 0 if seed is None else seed, progress)
    vars(posed)["answers"] = answers  # computed already; a copy with other edits or another model computes its own
    return posed


def held_out(problem: Problem, points: Any, name: str) -> Locality:
    """Return points that no method sees, where the model is, with the criterion that keeps them.

    Raises:
        InvalidInput: there are none, or the model does not accept them.
    """
    points = LocalitySet.coerce(points)
    if len(points) == 0:
        raise InvalidInput(f"{name} is empty; leave it out, or give points to measure on.")
    like = check_model(problem.model)
    return _locality(problem.model, points.to(like), problem.edits, problem.answers, problem.kind, name)


def _scope(
    model: nn.Module, given: EditScope, like: Tensor, beside: Criterion, edits: int, what: str, known: bool = False
) -> EditScope:
    """Return an edit scope, or neighbours, as a model runs on it, with its labels read as those of the edits."""
    if len(given) == 0:
        raise InvalidInput(f"The {what} is empty; leave it out, or give points that the edits should reach.")
    inputs = to_like(given.inputs, like)
    y = first_look(model, inputs, f"the {what}", known)
    criterion = fitted(given.criterion, y, beside)
    criterion.check(y)
    if given.of is not None and (int(given.of.min()) < 0 or int(given.of.max()) >= edits):
        named = f"{int(given.of.min())}..{int(given.of.max())}"
        raise InvalidInput(f"EditScope: `of` must name edits 0..{edits - 1}, got {named}.")
    return EditScope(inputs, criterion, given.of)


@torch.no_grad()
def check_model(model: Any) -> Tensor:
    """Refuse a model without finite weights; return one of its parameters."""
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
        raise InvalidInput(f"The model's parameters must be finite; NaN or infinity in {first(bad, 5)}.")
    return like


def fitted(criterion: Criterion, y: Tensor, beside: Criterion | None = None) -> Criterion:
    """Read labels as the model's outputs, and the edits beside them, make them; other criteria stay as they are.

    Integers for a model with a single output are its sign. Beside `Argmin` edits, a label is the lowest score's class;
    beside `Threshold` edits it is about their threshold.

    Args:
        criterion: as made from labels, or any other.
        y: (n, ...) outputs.
        beside: the edits' criterion, for other points.

    Raises:
        InvalidInput: the labels number other classes than the model has outputs.
    """
    refuse_other_classes(criterion.numbered, y)
    kind = kind_of(beside)
    if criterion.plain and isinstance(criterion, Argmax) and flat(y).shape[1] == 1:
        criterion = Threshold(criterion.labels)
        criterion.plain = True
    if criterion.plain and isinstance(criterion, Threshold) and _of_positions(criterion.labels, y):
        criterion = Argmax(torch.where(criterion.labels < 0, IGNORED, criterion.labels))
        criterion.plain = True
    if criterion.plain and isinstance(criterion, Threshold) and isinstance(kind, Binary):
        return Threshold(criterion.labels, kind.threshold)
    if type(criterion) is Argmax and criterion.margin_ == 0 and isinstance(kind, Classes) and kind.lowest_wins:
        return Argmin(criterion.labels, axis=criterion.axis, ignore=criterion.ignore)
    return criterion


def _of_positions(labels: Tensor, y: Tensor) -> bool:
    """Whether labels 0 and 1 (n, ...) number two classes of every position, in outputs that have these on one axis."""
    shapes = [tuple(s for k, s in enumerate(y.shape) if k != axis) for axis in range(1, y.ndim) if y.shape[axis] > 1]
    return labels.ndim > 1 and y.ndim == labels.ndim + 1 and tuple(labels.shape) in shapes


def refuse_other_classes(numbered: int | None, y: Tensor) -> None:
    """Refuse labels that number other classes than a model has outputs: folders are numbered as they are found.

    Args:
        numbered: how many classes a data set's labels number, or None.
        y: (n, ...) outputs.
    """
    outputs = flat(y).shape[1]
    if numbered not in (None, outputs, 1 + (outputs == 1)):
        raise InvalidInput(
            f"A data set's labels number {numbered} folders of images, but the model has {outputs} outputs: they are "
            "not its classes. nnrepair.domains.images.folder.Folder(root, transform, classes) finds the output that "
            "each folder stands for; or give a target_transform that does."
        )


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
    if is_mixed(criterion) and problem.locality is not None and problem.locality.points.criterion is None:
        notes.append(
            "the edits ask for decisions and bound numbers; points to keep without a criterion of their own keep their "
            "decisions only. Give LocalitySet(inputs, criterion) to keep more."
        )
    return notes


def _locality(
    model: nn.Module,
    points: LocalitySet,
    edits: Edits,
    answers: Tensor,
    kind: Kind | None = None,
    what: str = "the locality set",
    known: bool = False,
) -> Locality:
    """Return points with their labels read, what keeps them, and where it holds now.

    Args:
        model, points, edits: what is asked of which network.
        answers: (points, ...) its outputs on the edits.
        kind: what they stand for; None for what the edits say.
        what: how messages call the points.
        known: see `pose`.
    """
    if isinstance(points.inputs, Regions):
        raise InvalidInput(
            f"{what} is {points.inputs!r}: only what nnrepair.fix keeps can be whole regions. Give points."
        )
    y = first_look(model, points.inputs, what, known)
    if points.criterion is not None:
        criterion = fitted(points.criterion, y, edits.criterion)
        criterion.check(y)
        return Locality(LocalitySet(points.inputs, criterion), criterion, criterion.holds(y.double()), y)
    tol = edits.criterion.typical_slack(answers.double())
    criterion = (kind or kind_of(edits.criterion)).unchanged(y, tol or 1e-3 * float(y.abs().max()) or 1e-6)
    criterion.check(y)
    return Locality(points, criterion, criterion.holds(y), y)
