"""What a repair method is, and the table of those that exist.

A method is a frozen dataclass of hyper-parameters with one verb, `repair`. It may change its copy of the model in
any way; `fix` measures the proposal itself. One that is trained for a network first is a `Trainable`: its `prepare`
returns an editor, which is a `Method`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from torch import nn

from nnrepair.errors import InvalidInput, near_matches
from nnrepair.results.certificate import Certificate
from nnrepair.spec.problem import Problem

#: What a method returns: the same network with other weights; the decoupled one, whose activations are the original's;
#: or another `nnrepair.wrappers.Wrapper`, the original network with edits beside it.
Returns = Literal["same", "decoupled", "wrapped"]


@dataclass(frozen=True)
class Capabilities:
    """The columns of the survey's Table 3 (Mazzia et al. 2023) for one method, and more that `fix` asks.

    Attributes:
        regions: whether edits may be about regions.
        rehearsal: what mode="successive" asks each step to hold of past edits where its caller says nothing.
        neighbours: whether the method works towards neighbours of the edits, which are wanted but not demanded.
    """

    family: str
    extra_training: bool
    returns: Returns
    only_edit_pair: bool
    batch: bool
    successive: bool
    regions: bool = True
    rehearsal: bool | int = True
    neighbours: bool = False

    def __post_init__(self) -> None:
        if self.returns not in get_args(Returns):
            raise InvalidInput(f"returns must be one of {', '.join(get_args(Returns))}, got {self.returns!r}.")

    @property
    def keeps_architecture(self) -> bool:
        """Whether the repaired network is of the same class as the original."""
        return self.returns == "same"

    @property
    def modes(self) -> dict[str, bool]:
        """The survey's four settings, see `LEGEND`."""
        return {"SNS": True, "BNS": self.batch, "SSE": self.successive, "BSE": self.batch and self.successive}


#: What the columns of `table` mean.
LEGEND = """\
SNS  one edit, from the original network           BNS  several edits at once
SSE  one edit after another, each from the last    BSE  several at once, after others"""


@dataclass
class Proposal:
    """What a method returns; `judge` measures it.

    Attributes:
        model: the changed model, in the original's dtype.
        stats: whatever the method measured about its own work.
        notes: sentences for the report (which claim holds, what was tried).
        certificate: a proof that the change is minimal, where there is one.
        keeps_locality: whether every kept point of the locality set was a constraint, so that a lost one is a failure.
        advice: what to try when some edits do not hold, after the word "Try".
        conflict, layers: when no change of the chosen parameters can satisfy the edits, see `Outcome`;
            `with_locality` when it is the locality set that forbids them, `with_constraints` when it is constraints of
            the caller's own; `untried` are layers of which it is not known, for lack of time.
    """

    model: nn.Module
    stats: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    certificate: Certificate | None = None
    keeps_locality: bool = False
    infeasible: bool = False
    conflict: list[int] = field(default_factory=list)
    with_locality: bool = False
    with_constraints: bool = False
    layers: list[str] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    advice: str = "another layer, several layers, or another method"


@runtime_checkable
class Method(Protocol):
    """A way to repair a network."""

    @property
    def capabilities(self) -> Capabilities:
        """What the method needs and keeps."""

    def repair(self, problem: Problem) -> Proposal:
        """Propose a repaired copy of `problem.model`, which itself must stay as it is."""


#: Short names from the command line and `fix(method=...)` -> what makes the method with default hyper-parameters: a
#: `Method`, or a `Trainable`, from which one is prepared.
REGISTRY: dict[str, Callable[[], Any]] = {}


def register(name: str, make: Callable[[], Any]) -> None:
    """Give a method a short name.

    Args:
        name: for `fix(method=...)` and the command line.
        make: the class, or a function that returns an object with other hyper-parameters.
    """
    REGISTRY[name] = make


def entry(name: str) -> Callable[[], Any]:
    """Return what makes the method called `name`.

    Raises:
        InvalidInput: an unknown name; near matches are listed.
    """
    if name not in REGISTRY:
        raise InvalidInput(f"Unknown method {name!r}.{near_matches(name, REGISTRY)} Methods: {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def named(method: str | Method) -> Method:
    """Return the method called `method`, or `method` itself.

    Raises:
        InvalidInput: an unknown name (near matches are listed), a method that is trained first, or an object without
            `repair`.
    """
    if isinstance(method, str):
        method = entry(method)()
    if callable(getattr(method, "prepare", None)) and not isinstance(method, type):
        name = type(method).__name__
        raise InvalidInput(
            f"{name} is trained first: editor = {name}(...).prepare(model, episodes), or nnrepair prepare on the "
            "command line; then give the editor as the method."
        )
    if isinstance(method, type) or not isinstance(method, Method):
        raise InvalidInput(
            f"method must be a name or a Method, got {method if isinstance(method, type) else type(method).__name__}."
        )
    return method


def distinct() -> dict[str, Callable[[], Any]]:
    """Return what makes every registered method once; several names of one method are joined by commas."""
    names: dict[Callable[[], Any], list[str]] = {}
    for name, make in REGISTRY.items():
        names.setdefault(make, []).append(name)
    return {", ".join(listed): make for make, listed in names.items()}


def capabilities_of(make: Callable[[], Any]) -> Capabilities:
    """Return what a method declares: its class, or where hyper-parameters decide an object of it."""
    declared = getattr(make, "capabilities", None)
    able: Capabilities = declared if isinstance(declared, Capabilities) else make().capabilities
    return able


def kind_of(make: Callable[[], Any]) -> type:
    """Return the class of a registered method."""
    return make if isinstance(make, type) else type(make())


def sentence(make: Callable[[], Any]) -> str:
    """Return what a registered method does, in the first line of the docstring of what makes it, else of its class."""
    return (make.__doc__ or kind_of(make).__doc__ or "").strip().partition("\n")[0]


def table() -> list[list[str]]:
    """Return a table of all methods, header first: the columns of the survey's Table 3, from their own declarations."""
    header = ["method", "family", "extra training", "keeps architecture", "needs the edits only"]
    rows = []
    for name, make in distinct().items():
        able = capabilities_of(make)
        flags = [able.extra_training, able.keeps_architecture, able.only_edit_pair, *able.modes.values()]
        rows.append([name, able.family, *("yes" if flag else "no" for flag in flags)])
    return [[*header, *Capabilities("", False, "same", False, False, False).modes], *rows]
