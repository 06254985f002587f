"""The training loop: it reports progress, ends at a deadline, and continues after a kill with the same result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.deadline import NEVER, Deadline
from nnrepair.errors import PatchError
from nnrepair.spec.running import named
from nnrepair.training import ranks
from nnrepair.training.checkpoint import Checkpoint, State


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Attributes:
        steps: how many were taken, with those before an interruption.
        loss: of the last step; nan where there was none.
        stopped: why it ended early; empty where it did not.
        note: what else there is to say: progress that could not be stored.
    """

    steps: int
    loss: float
    stopped: str = ""
    note: str = ""

    def warn(self) -> None:
        """Warn where there is something to say; for functions that return nothing but a network."""
        for text in (self.stopped, self.note):
            if text:
                warnings.warn(f"Training: {text}.", stacklevel=3)


@dataclass
class Descent:
    """One step of gradient descent.

    Args:
        optimizer: of the parameters.
        schedule: of its step sizes.
        clip: the largest norm of all gradients together.
    """

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    clip: float | None = None

    def __call__(self, loss: Tensor) -> None:
        """Take a step.

        Raises:
            UnsupportedModel: the loss cannot be differentiated.
        """
        self.optimizer.zero_grad()
        with named("The model cannot be differentiated", "All that it does must have derivatives."):
            torch.autograd.backward(loss)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if ranks.count() > 1:  # all of them have gradients, in the same order
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in parameters:
            if parameter.grad is not None and parameter.grad.layout != torch.strided:  # most optimizers take no others
                parameter.grad = parameter.grad.to_dense()
        ranks.average([parameter.grad for parameter in parameters if parameter.grad is not None])
        if self.clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()

    @property
    def state(self) -> State:
        """What a checkpoint stores of it."""
        return {"optimizer": self.optimizer} | ({} if self.schedule is None else {"schedule": self.schedule})


@dataclass
class Training:
    """A training to run.

    A loss that is infinite or no number ends it; `model` then has the weights of the last step whose loss was finite.

    Args:
        loss: computes the loss of the next step; None says that no step is needed any more.
        update: takes a step, from the loss, see `Descent`.
        steps: at most.
        model: what is trained, where its last good weights are to be kept.
        state: all else that a step depends on, by name, for the checkpoint: optimizer, generators, place in the data.
        checkpoint: where to store progress, and to go on from.
        report: told at every step how far it is.
        deadline: when to stop, with the weights of that moment.
    """

    loss: Callable[[], Tensor | None]
    update: Callable[[Tensor], object]
    steps: int
    model: nn.Module | None = None
    state: State = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    report: Callable[[str], None] = lambda text: None
    deadline: Deadline = NEVER

    def __post_init__(self) -> None:
        self._done, self._loss = 0, math.nan
        self._good = _LastGood([] if self.model is None else [*self.model.parameters(), *self.model.buffers()])

    def run(self) -> Trained:
        """Train, from the start or from where a checkpoint ends."""
        if self.checkpoint is not None:
            self.checkpoint.key = {**self.checkpoint.key, "steps": str(self.steps)}
            self.checkpoint.load(self._everything())
            ranks.require_same(self._done, f"How far {self.checkpoint.path} is, which all must see,")
        start, stopped = self._done, self._steps()
        if stopped is None and not self._good.is_finite():
            stopped = self._broken("some weights became infinite or no number")
        elif self._done > start and not self._good.used:
            self._store()
        note = "" if self.checkpoint is None else self.checkpoint.not_stored
        return Trained(self._done, self._loss, stopped or "", note)

    def _steps(self) -> str | None:
        """Take the steps; return why they ended early, None where they did not."""
        for _ in range(self._done, self.steps):
            if ranks.most(self.deadline.passed):
                return f"stopped at step {self._done} of {self.steps}: the time limit passed"
            self._good.look()
            loss = self.loss()
            if ranks.most(loss is None) or loss is None:
                return None
            self._loss = float(loss.detach())
            if ranks.most(not math.isfinite(self._loss)):
                return self._broken(f"the loss became {self._loss}")
            self._good.confirm()
            self.report(f"step {self._done + 1}/{self.steps}, loss {self._loss:.3g}")
            self.update(loss)
            self._done += 1
            if self.checkpoint is not None and self.checkpoint.due:
                self._store()
        return None

    def _broken(self, why: str) -> str:
        self._good.restore()
        return f"stopped at step {self._done}: {why}"

    def _store(self) -> None:
        if self.checkpoint is not None and self._good.is_finite():
            self.checkpoint.save(self._everything())

    def state_dict(self) -> dict[str, Any]:
        """Return how far it is."""
        return {"done": self._done, "loss": self._loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over how far it was."""
        done, loss = state["done"], state["loss"]
        if type(done) is not int or not 0 <= done <= self.steps or not isinstance(loss, float):
            raise PatchError(f"{done!r} steps of {self.steps} with a loss of {loss!r} make no sense")
        self._done, self._loss = done, loss

    def _everything(self) -> State:
        """Return all that a checkpoint holds."""
        parts: State = {"position": self, "good": self._good, **self.state}
        return parts if self.model is None else {**parts, "model": self.model}


class _LastGood:
    """The tensors of a network as they were when its loss was finite last; `used` once it was put back to them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [tensor.detach() for tensor in tensors]
        self._good, self._candidate = self._copies(), self._copies()
        self.used = False

    def _copies(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self._tensors]

    @torch.no_grad()
    def look(self) -> None:
        """Remember the tensors, whose loss is about to be computed."""
        for copy, tensor in zip(self._candidate, self._tensors, strict=True):
            copy.copy_(tensor)

    def confirm(self) -> None:
        """Say that this loss was finite."""
        self._good, self._candidate = self._candidate, self._good

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the last tensors whose loss was finite, or to those of the start."""
        for copy, tensor in zip(self._good, self._tensors, strict=True):
            tensor.copy_(copy)
        self.used = True

    def is_finite(self) -> bool:
        """Whether all tensors are."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self._tensors)

    def state_dict(self) -> dict[str, Any]:
        """Return the last good tensors."""
        return {"good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over."""
        for copy, tensor in zip(self._good, state["good"], strict=True):
            copy.copy_(tensor)
