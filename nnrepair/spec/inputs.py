"""What a network runs on: a tensor with one point per row, or an object that knows how its domain calls a model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, NNRepairError, first_line

#: Points per forward pass when nothing but the outputs is needed.
BATCH = 4096
#: And numbers of these points: what layers compute of a photograph is many times its size.
NUMBERS = 4_000_000
#: Numbers of the vector that a token becomes, about.
TOKEN = 500


class Inputs(ABC):
    """How a domain presents n points to a model; a plain tensor needs none of this.

    A subclass must say how many points there are, which are some of them, how they move and how a model runs on them.
    The rest has defaults, and makes a domain's inputs useful to more methods.
    """

    #: Whether one point's output depends on that point alone (not so for the nodes of a graph).
    independent: bool = True
    #: Whether each point is one position of what the network runs on, a token of a text, and layers see all of them.
    positions: bool = False
    #: Points that are in memory at once when nothing but the outputs is needed, where points are independent.
    batch: int = BATCH

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of points."""

    @abstractmethod
    def __getitem__(self, index: Tensor) -> Inputs:
        """Return the points `index`: (k,) int64, or (n,) bool."""

    @abstractmethod
    def to(self, like: Tensor) -> Inputs:
        """Return the same points on `like`'s device, floating tensors in `like`'s dtype."""

    @abstractmethod
    def call(self, model: nn.Module) -> Tensor:
        """Return the outputs (n, ...), one row per point."""

    def own(self) -> Tensor:
        """Return (n, ...) each point's own features, what it is apart from all others: rows of the first argument.

        Raises:
            InvalidInput: the inputs do not say what is a point's own.
        """
        raise InvalidInput(
            f"This method needs every point's own features, and {described(self)} does not say which these are. "
            "Give it a method own() that returns them, one row per point: those rows of the model's first argument."
        )

    def same(self) -> Tensor | None:
        """Return (n,) or (n, ...), equal for two points exactly where they are one; None where that is not known."""
        return None

    def joined(self, other: Any) -> Inputs | None:
        """Return these points and then the other's, where one pass of the domain serves both; else None."""
        return None

    def whole(self) -> Inputs | None:
        """Return all points of a domain in which they influence each other, since one pass computes them all."""
        return None

    def about(self) -> Inputs:
        """Return the points for a look inside the network, at the position that each is about: a text's subject."""
        return self

    def filled(self) -> Tensor | None:
        """Return (n, positions) bool, which of the positions that layers work on are a point's own; None where all."""
        return None

    def hops(self, others: Any, most: int) -> Tensor | None:
        """Return (len(others),) along how many edges each of other points is from the nearest of these, at most so far.

        `most + 1` where it is farther; None where points are no nodes of one graph.
        """
        return None

    def loaded(self) -> AnyInputs:
        """Return the points in memory."""
        return self

    def tensors(self) -> list[Tensor]:
        """Return the caller's tensors that a model could write to."""
        return [value for value in vars(self).values() if isinstance(value, Tensor)]

    def copied(self) -> Inputs:
        """Return the same points in tensors of their own, in the order of `tensors`."""
        twin = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                object.__setattr__(twin, name, value.clone())
        return twin


AnyInputs = Tensor | Inputs


@dataclass(frozen=True, eq=False)
class Adapted(Inputs):
    """An object that can do what `Inputs` asks for, without being a subclass.

    Attributes:
        given: has `independent`, a length, indexing, `to` and `call`; other methods of `Inputs` if it has them.
    """

    given: Any

    @staticmethod
    def fits(given: Any) -> bool:
        """Whether an object has all that is needed."""
        needed = ("independent", "__len__", "__getitem__", "to", "call")
        return not isinstance(given, type) and all(hasattr(given, name) for name in needed)

    @property
    def independent(self) -> bool:  # type: ignore[override]  # read from the object, which decides
        return bool(self.given.independent)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, index: Tensor) -> Adapted:
        return Adapted(self.given[index])

    def to(self, like: Tensor) -> Adapted:
        return Adapted(self.given.to(like))

    def call(self, model: nn.Module) -> Tensor:
        y: Tensor = self.given.call(model)
        return y

    def own(self) -> Tensor:
        found: Tensor = self._offered("own", super().own)()
        return found

    def same(self) -> Tensor | None:
        found: Tensor | None = self._offered("same", super().same)()
        return found

    def joined(self, other: Any) -> Inputs | None:
        if not isinstance(other, Adapted) or not isinstance(other.given, type(self.given)):
            return None
        both = self._offered("joined", super().joined)(other.given)
        return None if both is None else Adapted(both)

    def whole(self) -> Inputs | None:
        every = self._offered("whole", super().whole)()
        return None if every is None else Adapted(every)

    @property
    def positions(self) -> bool:  # type: ignore[override]  # likewise
        return bool(getattr(self.given, "positions", False))

    def about(self) -> Inputs:
        return Adapted(self.given.about()) if hasattr(self.given, "about") else self

    def filled(self) -> Tensor | None:
        found: Tensor | None = self._offered("filled", super().filled)()
        return found

    def hops(self, others: Any, most: int) -> Tensor | None:
        given = others.given if isinstance(others, Adapted) else others
        found: Tensor | None = self._offered("hops", super().hops)(given, most)
        return found

    def tensors(self) -> list[Tensor]:
        return [value for value in getattr(self.given, "__dict__", {}).values() if isinstance(value, Tensor)]

    def copied(self) -> Adapted:
        twin = copy.copy(self.given)
        for name, value in getattr(self.given, "__dict__", {}).items():
            if isinstance(value, Tensor):
                object.__setattr__(twin, name, value.clone())
        return Adapted(twin)

    def _offered(self, name: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
        """Return the object's own method where it has one."""
        method: Callable[..., Any] | None = getattr(self.given, name, None)
        return otherwise if method is None else method

    def __repr__(self) -> str:
        return repr(self.given)


@dataclass(frozen=True, eq=False)
class Arguments(Inputs):
    """What a model takes as several arguments, `model(*positional, **keywords)`: one row per point in each of them.

    >>> ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    >>> inputs = Arguments((), {"input_ids": ids, "attention_mask": ids > 2})
    >>> len(inputs), inputs[torch.tensor([1])].keywords["input_ids"]
    (3, tensor([[3, 4]]))

    Attributes:
        positional: tensors (n, ...).
        keywords: tensors (n, ...), by name.
    """

    positional: tuple[Any, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tensors()[0])

    def __getitem__(self, index: Tensor) -> Arguments:
        return self._each(lambda part: part[index.to(part.device)])

    def to(self, like: Tensor) -> Arguments:
        return self._each(lambda part: tensor_like(part, like))

    def call(self, model: nn.Module) -> Tensor:
        y: Tensor = model(*self.positional, **self.keywords)
        return y

    def own(self) -> Tensor:
        """Return (n, ...) the first argument."""
        if not self.positional:
            raise InvalidInput(
                f"This method adds to the network what depends on its first argument alone, and {self!r} is given by "
                "keywords: give a tuple of tensors, model(*tuple), with the features first."
            )
        first: Tensor = self.positional[0]
        return first

    def same(self) -> Tensor:
        """Return (n, words) the numbers of all arguments, bit by bit."""
        return torch.cat([torch.from_numpy(words(part).view("int32")) for part in self.tensors()], 1)

    def tensors(self) -> list[Tensor]:
        return [*self.positional, *self.keywords.values()]

    def copied(self) -> Arguments:
        return self._each(torch.clone)

    def appended(self, other: Arguments) -> Arguments | None:
        """Return these points and then the other's, or None where they are no arguments of one call."""
        if len(self.positional) != len(other.positional) or self.keywords.keys() != other.keywords.keys():
            return None
        positional = tuple(appended(a, b) for a, b in zip(self.positional, other.positional, strict=True))
        keywords = {name: appended(part, other.keywords[name]) for name, part in self.keywords.items()}
        both = Arguments(positional, keywords)
        return None if any(part is None for part in (*positional, *keywords.values())) else both

    def __repr__(self) -> str:
        named = {f"argument {k + 1}": part for k, part in enumerate(self.positional)} | dict(self.keywords)
        return ", ".join(f"{name} {tuple(part.shape)} {part.dtype}" for name, part in named.items())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Arguments:
        return Arguments(tuple(map(change, self.positional)), {k: change(part) for k, part in self.keywords.items()})


def described(inputs: AnyInputs) -> str:
    """Say what inputs are, for a message."""
    if isinstance(inputs, Tensor):
        return f"shape {tuple(inputs.shape)}, {inputs.dtype}"
    if isinstance(inputs, Arguments):
        return repr(inputs)
    return type(inputs.given if isinstance(inputs, Adapted) else inputs).__name__


def independent(inputs: AnyInputs) -> bool:
    """Whether each point's output depends on that point alone."""
    return isinstance(inputs, Tensor) or inputs.independent


def positions(inputs: AnyInputs) -> bool:
    """Whether each point is one position of what the network runs on, see `Inputs.positions`."""
    return not isinstance(inputs, Tensor) and inputs.positions


def about(inputs: AnyInputs) -> AnyInputs:
    """Return points for a look inside the network, see `Inputs.about`."""
    return inputs if isinstance(inputs, Tensor) else inputs.about()


def own(inputs: AnyInputs) -> Tensor:
    """Return (n, features): each point's own features, flat; what it is apart from all other points.

    A tensor's are its rows; of other inputs, `Inputs.own` says what they are.

    Raises:
        InvalidInput: the inputs do not say what is a point's own, or it is no floating-point numbers.
    """
    x = inputs if isinstance(inputs, Tensor) else inputs.own()
    if not x.dtype.is_floating_point:
        raise InvalidInput(
            f"This method needs every point's own features, got {x.dtype}: numbers of points or tokens are no "
            "features. Give an Inputs object with a method own() that returns them."
        )
    if len(x) != len(inputs):
        raise InvalidInput(f"own() must return one row for each of {len(inputs)} points, got {tuple(x.shape)}.")
    return x.reshape(len(x), -1)


def to_like(inputs: AnyInputs, like: Tensor) -> AnyInputs:
    """Move inputs to the device and floating dtype of `like`."""
    return tensor_like(inputs, like) if isinstance(inputs, Tensor) else _answer(inputs, "to()", lambda: inputs.to(like))


def some_of(inputs: Inputs, index: Tensor) -> Inputs:
    """Return the points `index`, (k,) int64, of inputs that nothing was asked of before.

    Raises:
        InvalidInput: they are no inputs, or not as many; a user's own class may do anything.
    """
    found = _answer(inputs, "indexing by a tensor", lambda: inputs[index])
    if len(found) != len(index):
        raise InvalidInput(f"Inputs {described(inputs)}: indexing by {len(index)} numbers gave {len(found)} points.")
    return found


def _answer(inputs: Inputs, what: str, ask: Callable[[], Any]) -> Inputs:
    """Return the inputs that others make of themselves, or say what they made instead."""
    try:
        found = ask()
        if isinstance(found, Adapted):
            len(found), found.independent
    except NNRepairError:
        raise
    except Exception as error:  # a user's class may raise anything
        raise InvalidInput(
            f"Inputs {described(inputs)}: {what} raised {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(found, Inputs):
        raise InvalidInput(f"Inputs {described(inputs)}: {what} must return such inputs, got {type(found).__name__}.")
    return found


def tensor_like(x: Tensor, like: Tensor) -> Tensor:
    """Move a tensor to the device of `like`, and to its dtype where it is floating."""
    x = x.clone() if x.is_inference() else x
    return x.to(like) if x.dtype.is_floating_point else x.to(like.device)


def batches(inputs: AnyInputs, most: int | None = None) -> list[Tensor]:
    """Return the indices of all points in batches of at most so many, by default what one pass without gradients takes.

    No batch has more points than the inputs hold in memory at once, or more than `NUMBERS` numbers.
    """
    most = BATCH if most is None else most
    size = most if isinstance(inputs, Tensor) else min(most, inputs.batch)
    parts = [inputs] if isinstance(inputs, Tensor) else inputs.tensors() if isinstance(inputs, Arguments) else []
    if len(inputs):
        size = max(1, min(size, NUMBERS // max(1, sum(numbers(part[0]) for part in parts))))
    return list(torch.split(torch.arange(len(inputs)), size))


def numbers(one: Tensor) -> int:
    """Return how many numbers a network takes for one point: tokens become vectors first.

    >>> numbers(torch.zeros(3, 8, 8)), numbers(torch.zeros(10, dtype=torch.int64))
    (192, 5000)
    """
    return one.numel() * (TOKEN if one.dtype in (torch.int64, torch.int32) else 1)


def together(several: Sequence[AnyInputs]) -> list[tuple[AnyInputs, list[int]]]:
    """Return the points in as few parts as run in one pass each, and which of the given sets each part holds."""
    joined: list[tuple[AnyInputs, list[int]]] = []
    for k, inputs in enumerate(several):
        for place, (some, members) in enumerate(joined):
            both = None if isinstance(some, Tensor) else some.joined(inputs)
            if both is not None:
                joined[place] = (both, [*members, k])
                break
        else:
            joined.append((inputs, [k]))
    return joined


def appended(first: AnyInputs, second: AnyInputs) -> AnyInputs | None:
    """Return points and then others, in memory, for one pass; None where they do not fit one."""
    first, second = (inputs if isinstance(inputs, Tensor) else inputs.loaded() for inputs in (first, second))
    if isinstance(first, Tensor):
        fits = isinstance(second, Tensor) and first.shape[1:] == second.shape[1:] and first.dtype == second.dtype
        return torch.cat([first, second]) if fits and isinstance(second, Tensor) else None
    if isinstance(first, Arguments):
        return first.appended(second) if isinstance(second, Arguments) else None
    return first.joined(second)


def words(rows: Tensor) -> NDArray[np.uint32]:
    """Return (n, words): the numbers of each row bit by bit, equal for equal rows (-0.0 is 0.0)."""
    rows = rows.detach().reshape(len(rows), -1)
    if rows.element_size() < 4:
        rows = rows.float() if rows.dtype.is_floating_point else rows.int()
    return np.ascontiguousarray(rows.cpu().numpy() + 0).view(np.uint32).reshape(len(rows), -1)
