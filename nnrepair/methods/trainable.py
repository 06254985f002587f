"""Methods that are trained for one network first, and the editors that come of it.

A `Trainable` is a frozen dataclass of hyper-parameters, as every method is. It says what is learned (`begin`), what an
exercise teaches (`loss`), and how what was learned repairs (`edit`). All else is here: training, which can be resumed,
and the `Editor`, which is a `Method`, can be saved, and knows the network that it belongs to.
"""

from __future__ import annotations

import dataclasses
import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnrepair.deadline import Deadline
from nnrepair.errors import InvalidInput, PatchError, first_line, near_matches, printable
from nnrepair.fingerprint import fingerprint
from nnrepair.jacobian.tangents import plain_attention
from nnrepair.methods.base import REGISTRY, Capabilities, Proposal
from nnrepair.methods.episodes import Episodes, EpisodeStream, posed
from nnrepair.network import private_copy
from nnrepair.progress import progress_bar
from nnrepair.provenance import digest
from nnrepair.spec.network import unwrapped
from nnrepair.spec.problem import Problem, check_model
from nnrepair.spec.running import undisturbed
from nnrepair.spec.scores import Output, Scores, scored
from nnrepair.spec.state import read_json, read_tensors, reading, write_tensors
from nnrepair.training import Checkpoint, Descent, Training, ranks
from nnrepair.training.checkpoint import packed, random_numbers, unpacked

FORMAT = "nnrepair-editor-1"


class Trainable(ABC):
    """A method that is trained for one network first; subclasses are frozen dataclasses."""

    #: What its editors need and keep; `extra_training` is True. A property where hyper-parameters decide.
    capabilities: ClassVar[Capabilities]

    @abstractmethod
    def begin(self, model: nn.Module, generator: torch.Generator) -> nn.Module:
        """Return what is learned, untrained, for a network: its parameters and buffers are what an editor stores.

        It is called again before every repair, and then takes the learned values over; so its names and shapes must
        depend on the shapes of the network alone.
        """

    @abstractmethod
    def loss(self, learned: nn.Module, problem: Problem) -> Tensor:
        """Return the loss of an exercise, through which gradients flow to the parameters of `learned`."""

    @abstractmethod
    def edit(self, learned: nn.Module, problem: Problem) -> Proposal:
        """Propose a repaired copy of `problem.model`: the network of the training, or one that was edited before."""

    def descent(self, learned: nn.Module, steps: int) -> Descent:
        """Return how training takes a step, of so many in all."""
        return Descent(torch.optim.Adam(learned.parameters(), lr=1e-3), clip=10.0)

    def prepare(
        self,
        model: nn.Module,
        episodes: Episodes,
        *,
        steps: int = 300,
        seed: int = 0,
        progress: bool = False,
        resume: str | Path | None = None,
        seconds: float | None = None,
        output: Output | None = None,
    ) -> Editor:
        """Train for a network and return an editor of it; the network and all random state stay as they are.

        Where torch.distributed is set up, a step takes one exercise for each process, and all return the same editor.

        Warns when the loss became infinite or no number: what was learned until then is kept, and reports of repairs
        say so.

        Args:
            model: the network.
            episodes: exercises, see `nnrepair.methods.Episodes`; one for each step.
            steps: of the training.
            seed: of everything that is drawn, also of the episodes where these are made for a seed.
            progress: show a progress bar on stderr.
            resume: a file (.safetensors) in which progress is stored, atomically; the same call goes on from there.
            seconds: when to stop, with what was learned until then.
            output: which part of what the model returns are the scores, see `nnrepair.fix`.

        Raises:
            InvalidInput: model, episodes or numbers cannot be used, or `resume` is the progress of another training.
            PatchError: `resume` is damaged.
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InvalidInput(f"steps must be a whole number >= 1, got {steps!r}.")
        if seconds is not None and not seconds > 0:
            raise InvalidInput(f"seconds must be a number > 0, or None for no limit, got {seconds!r}.")
        deadline = Deadline(seconds)
        with progress_bar("prepare", progress) as report, undisturbed(seed):
            check_model(model)
            base, network = fingerprint(unwrapped(model)), private_copy(model)
            stream = EpisodeStream(episodes, seed)
            if output is not None:
                network = Scores(network, output)
            elif stream.repeatable:
                network = scored(network, EpisodeStream(episodes, seed).next().edits.inputs)
            learned = self.begin(network, torch.Generator().manual_seed(seed)).train()
            descent = self.descent(learned, steps)
            tried = False  # the network, by the first exercise

            def loss() -> Tensor:
                nonlocal tried
                problem = posed(network, stream.next_of(ranks.rank(), ranks.count()), seed, known=tried)
                tried = True
                return self.loss(learned, problem)

            training = Training(
                loss,
                descent,
                steps,
                model=learned,
                state={**descent.state, "episodes": stream, **random_numbers()},
                checkpoint=None if resume is None else Checkpoint(Path(resume), self._key(base, episodes, seed)),
                report=report,
                deadline=deadline,
            )
            with plain_attention():  # an exercise may differentiate gradients
                trained = training.run()
        if not deadline.passed:
            trained.warn()
        state = {name: value.detach().clone() for name, value in learned.state_dict().items()}
        return Editor(self, state, base, trained.steps, trained.stopped)

    def _key(self, base: str, episodes: Episodes, seed: int) -> dict[str, str]:
        """Return what must be equal for a stored training to be this one; of the episodes the first one."""
        key = {"method": repr(self), "method's values": digest(self), "network": base, "seed": str(seed)}
        stream = EpisodeStream(episodes, seed)
        if stream.repeatable:
            first = stream.next()
            key["first episode"] = digest([first.edits, first.locality_set, first.edit_scope])
        return key


@dataclass(frozen=True, eq=False, repr=False)
class Editor:
    """What was learned for one network: a `Method` for it, and for what it made of it before.

    Attributes:
        method: what was trained, with its hyper-parameters.
        learned: by name, what it learned.
        base: the fingerprint of the network that it belongs to.
        steps: of the training.
        stopped: why the training ended early; empty where it did not.
    """

    method: Trainable
    learned: dict[str, Tensor]
    base: str
    steps: int
    stopped: str = ""

    @property
    def capabilities(self) -> Capabilities:
        """What the method needs and keeps."""
        return self.method.capabilities

    @cached_property
    def fingerprint(self) -> str:
        """What tells it from all other editors."""
        return digest([_name(type(self.method)), self.method, self.learned, self.base])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Editor) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        name = _name(type(self.method)) or type(self.method).__name__
        return f"<editor {self.fingerprint[:12]}: {name}, {self.steps} steps, for network {self.base[:12]}>"

    def refuse_another(self, model: nn.Module) -> None:
        """Refuse a network that it was not trained for.

        Raises:
            InvalidInput: the message names both.
        """
        given = fingerprint(model)
        if given != self.base:
            raise InvalidInput(
                f"{self!r} belongs to another network: this one has the fingerprint {given[:12]}. Give the network "
                'that it was trained for, unchanged and in the same dtype (with mode="successive" for edits one after '
                "another), or train an editor for this one with prepare()."
            )

    def restored(self, model: nn.Module) -> nn.Module:
        """Return what was learned, as the method trained it.

        Raises:
            InvalidInput: it does not fit the network.
        """
        learned = self.method.begin(model, torch.Generator().manual_seed(0))
        try:
            learned.load_state_dict(self.learned)
        except Exception as error:  # torch raises several kinds where names or shapes differ
            why = printable(" ".join(str(error).split()))
            raise InvalidInput(
                f"{self!r} does not fit this network ({why}). Train one for it with prepare()."
            ) from error
        return learned.eval().requires_grad_(False)

    def repair(self, problem: Problem) -> Proposal:
        """Propose what the method does with what it learned."""
        proposal = self.method.edit(self.restored(problem.model), problem)
        if self.stopped:
            proposal.notes.append(f"the editor's training {self.stopped}.")
        return proposal

    # Files -----------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the editor as one safetensors file, atomically.

        Raises:
            InvalidInput: its method has no name (`nnrepair.methods.register`), or values that are no plain ones.
            OSError: it cannot be written; a file that was there before is there still.
        """
        name = _name(type(self.method))
        if name is None:
            raise InvalidInput(
                f"{type(self.method).__name__} has no name under which it could be found when the file is read. Give "
                f"it one: nnrepair.methods.register('my-method', {type(self.method).__name__})."
            )
        tensors: dict[str, Tensor] = {}
        values = {field.name: getattr(self.method, field.name) for field in dataclasses.fields(self.method)}  # type: ignore[arg-type]
        about = {"values": values, "learned": self.learned, "steps": self.steps, "stopped": self.stopped}
        texts = {"method": name, "network": self.base, "about": json.dumps(packed(about, tensors))}
        return write_tensors(path, FORMAT, tensors, texts, "trained editor")

    @classmethod
    def load(cls, path: str | Path) -> Editor:
        """Read an editor; nothing in the file is run.

        Raises:
            FileNotFoundError: no such file.
            PatchError: it is truncated, damaged, or no editor.
            InvalidInput: its method is not known here, or knows no such values.
        """
        with reading(path, "trained editor"):
            _, tensors, texts = read_tensors(path, "trained editor", {FORMAT: ("method", "network", "about")})
            about = dict(unpacked(read_json(texts["about"]), tensors))
            values, learned, steps, stopped = (about[name] for name in ("values", "learned", "steps", "stopped"))
            if not isinstance(values, dict) or not isinstance(learned, dict) or not isinstance(stopped, str):
                raise PatchError("what it tells about itself is of another kind.")
            if type(steps) is not int or not re.fullmatch("[0-9a-f]{64}", texts["network"]):
                raise PatchError("it names no number of steps, or no network.")
            for name, value in learned.items():
                if not isinstance(value, Tensor) or not bool(torch.isfinite(value).all()):
                    raise PatchError(f"{name!r} holds no finite numbers.")
        return cls(_made(texts["method"], values, path), learned, texts["network"], steps, stopped)


def _name(kind: type) -> str | None:
    """Return the name under which a class of methods is registered."""
    return next((name for name, make in REGISTRY.items() if make is kind), None)


def _made(name: str, values: dict[str, Any], path: str | Path) -> Trainable:
    """Return the method of this name with these hyper-parameters."""
    make = REGISTRY.get(name)
    if not (isinstance(make, type) and issubclass(make, Trainable)):
        known = [n for n, m in REGISTRY.items() if isinstance(m, type) and issubclass(m, Trainable)]
        raise InvalidInput(
            f"{path} was made by the method {printable(name)!r}, which is not known here.{near_matches(name, known)} "
            f"Methods that are trained first: {', '.join(known)}. Import the module that registers it."
        )
    try:
        return make(**values)
    except Exception as error:  # a file may hold any values
        raise InvalidInput(
            f"{path} has values that {name!r} does not take ({printable(first_line(error))}). It was made by another "
            "version, or is damaged; train an editor anew."
        ) from error
