"""Edits one after another: each from the original network (independent), or each from the last one (successive).

One implementation for every method. Without rehearsal successive editors forget: each step only knows its own edit.
With it, every later step is asked for the past edits too, which is what SEED-GNN (Zhong et al., ICML 2024) does for
node classification.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nnrepair.errors import InvalidInput, NNRepairError, printable
from nnrepair.files import require_writable
from nnrepair.judge import Watched, like, measure, outcome_of, patch_of, propose
from nnrepair.methods.base import Method, Proposal
from nnrepair.provenance import digest, versions
from nnrepair.request import Posed, Request
from nnrepair.results import metrics
from nnrepair.results.changes import weight_change
from nnrepair.results.history import History, Mode, Step
from nnrepair.results.outcome import Outcome
from nnrepair.results.patch import Patch
from nnrepair.spec.edits import Edits, EditScope, LocalitySet
from nnrepair.spec.regions import Regions
from nnrepair.spec.running import outputs
from nnrepair.spec.scores import bare
from nnrepair.training import ranks

#: Seconds of work that a kill may cost, at most (and one step).
SAVE_EVERY = 5.0
#: Packages whose versions decide what a step makes.
PACKAGES = ("nnrepair", "torch", "numpy", "scipy", "highspy")


def check(method: Method, mode: str, edits: int, batch_size: int, rehearsal: bool | int, resume: object) -> None:
    """Refuse what the method declares that it cannot do, before the long computation.

    Raises:
        InvalidInput: an unknown mode, sizes that make no sense, a mode that the method's capabilities exclude, or
            progress that could not be stored.
    """
    if mode not in ("batch", "independent", "successive"):
        raise InvalidInput(f"Unknown mode {mode!r}; choose batch, independent or successive.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidInput(f"batch_size must be a whole number >= 1 of edits per step, got {batch_size!r}.")
    if not isinstance(rehearsal, int) or rehearsal < 0:
        raise InvalidInput(
            f"rehearsal must be True (all past edits), False (none) or how many of them at most, got {rehearsal!r}."
        )
    if mode == "batch" and (batch_size != 1 or resume is not None):
        what = "batch_size" if batch_size != 1 else "resume"
        raise InvalidInput(f'{what} is for mode="independent" or "successive"; mode="batch" repairs all edits at once.')
    able, name = method.capabilities, type(method).__name__
    if mode == "successive" and not able.successive:
        raise InvalidInput(
            f'{name} cannot repair a network that it repaired before (successive=False): use mode="independent"'
            + (' or "batch".' if able.batch else ".")
        )
    together = edits if mode == "batch" else batch_size
    if mode == "successive" and rehearsal:
        together = max(together, min(2, edits))
    if together > 1 and not able.batch:
        raise InvalidInput(
            f'{name} repairs one edit at a time (batch=False): use mode="independent"'
            + (' or mode="successive" with rehearsal=False,' if able.successive else ",")
            + " and batch_size=1."
        )
    if resume is not None:
        if not isinstance(resume, str | os.PathLike):
            raise InvalidInput(f"resume must be the name of a file, got {resume!r}.")
        require_writable(Path(resume))


@dataclass
class Sequence:
    """A sequence of repairs in progress.

    Attributes:
        original: the user's model, and `private`: a copy in eval mode.
        request: what poses the problem of some of the edits for another network.
        whole: the problem of all edits at once, already checked.
        watched: the points to compare after every step.
        seeded: keeps the random state as it was and seeds it, for one step.
        mode, batch_size, rehearsal, resume, progress: see `fix`.
    """

    original: nn.Module
    private: nn.Module
    request: Request
    whole: Posed
    watched: dict[str, Watched]
    seeded: Callable[[], Any]
    mode: Mode
    batch_size: int
    rehearsal: bool | int
    resume: Path | None
    progress: bool
    _steps: list[Step] = field(default_factory=list)
    _advice: str = Proposal.advice
    _holds: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    _not_stored: str = ""

    def run(self) -> History:
        """Repair step by step and return the history."""
        steps = torch.split(torch.arange(len(self.whole.edits)), self.batch_size)
        network = self._resumed([step.tolist() for step in steps])
        self._holds = self.whole.holds(network)
        done, saved = len(self._steps), time.monotonic()
        with tqdm(total=len(steps), initial=done, desc=self.mode, leave=False, disable=not self.progress) as bar:
            for number in range(done, len(steps)):
                with self.seeded():
                    repaired = self._step(network, steps[number], number)
                if self.mode == "successive":
                    network = repaired
                bar.update()
                if self.resume is not None and time.monotonic() - saved > SAVE_EVERY:
                    self._store(network)
                    saved = time.monotonic()
        if self.resume is not None and done < len(steps):
            self._store(network)
        return self._history(network)

    def _step(self, network: nn.Module, new: Tensor, number: int) -> nn.Module:
        asked = torch.cat([self._rehearsed(new, number), new])
        before = self._holds[asked]
        # Another seed each time: what a method draws would be the same points at every step of a sequence.
        seed = self._seed + (number if self.mode == "successive" else 0)
        proposal, seconds = propose(
            self.request.pose_again(self.whole, network, asked, seed), self.request.method, before
        )
        repaired = like(self.private, proposal.model)
        found = measure(repaired, self.whole, self.watched, new)
        now, so_far = found.holds, int(new[-1]) + 1
        failing = torch.nonzero(~now[asked]).flatten().tolist()
        self._advice = proposal.advice if failing else self._advice
        if self.mode == "successive":
            self._holds = now
        self._steps.append(
            Step(
                edits=new.tolist(),
                held=now[new].tolist(),
                status=outcome_of(proposal, before, failing, 0).status,
                generalization=[found.generalization[k] for k in new.tolist()],
                retained=float(now[:so_far].double().mean()),
                side_effects=found.side_effects,
                seconds=seconds,
                notes=proposal.notes,
                rehearsed=len(asked) - len(new),
            )
        )
        return repaired

    def _rehearsed(self, new: Tensor, number: int) -> Tensor:
        """Return the past edits that this step is asked for too."""
        past = torch.arange(int(new[0]) if self.mode == "successive" and self.rehearsal else 0)
        if self.rehearsal is True or len(past) <= self.rehearsal:
            return past
        generator = torch.Generator().manual_seed(self._seed + number)
        return past[torch.randperm(len(past), generator=generator)[: int(self.rehearsal)]].sort().values

    def _history(self, network: nn.Module) -> History:
        after = [held for step in self._steps for held in step.held]
        finally_: list[bool] | None = None
        patch = last = retained = change = None
        if self.mode == "successive":
            found = measure(network, self.whole, {})
            finally_, retained = found.holds.tolist(), metrics.mean_rate(found.generalization)
            last = like(self.original, network)
            change = weight_change(self.original, last)
            patch = patch_of(self.original, last, change, {"method": repr(self.request.method), "mode": self.mode})
        return History(
            mode=self.mode,
            steps=self._steps,
            outcome=self._outcome(after if finally_ is None else finally_),
            held_after=after,
            held_finally=finally_,
            generalization_retain_rate=retained,
            patch=patch,
            method=repr(self.request.method),
            last=None if last is None else bare(last),
            weight_change=change,
            notes=[
                *([self._not_stored] if self._not_stored else []),
                *self.whole.notes_on_labels(),
            ],
        )

    def _outcome(self, holds: list[bool]) -> Outcome:
        failing = [index for index, held in enumerate(holds) if not held]
        alone = len(holds) == 1
        their = "its" if alone else "their"
        where = "in the last network" if self.mode == "successive" else f"right after {their} own step"
        if all(step.status == "nothing to do" for step in self._steps):
            return Outcome("nothing to do", "every edit already held when its turn came; nothing was changed.")
        if not failing:
            return Outcome("repaired", f"{'the edit holds' if alone else f'all {len(holds)} edits hold'} {where}.")
        these = "the edit does" if alone else f"{len(failing)} of {len(holds)} edits do"
        advice = f"{these} not hold {where}: {failing[:20]}. "
        forgets = self.mode == "successive" and not self.rehearsal
        advice += f"Try {'rehearsal=True' if forgets else 'mode=' + repr('batch')}, {self._advice}."
        return Outcome("partly repaired", advice, failing)

    # Resuming --------------------------------------------------------------------------------------------------------

    @property
    def _seed(self) -> int:
        return self.whole.problem.seed

    @cached_property
    def _key(self) -> dict[str, str]:
        """What must be equal for a stored sequence to be this one; the network is compared by the patch."""
        points: dict[str, Edits | EditScope | LocalitySet] = {"edits": self.whole.edits}
        points |= {name: watched.points for name, watched in self.watched.items()}
        if self.whole.problem.scope is not None:
            points["edit scope"] = self.whole.problem.scope
        device = next((p.device.type for p in self.private.parameters()), "cpu")
        return {
            "method": repr(self.request.method),
            "method's values": digest(self.request.method),
            "mode": self.mode,
            "batch_size": str(self.batch_size),
            "rehearsal": repr(self.rehearsal),
            "seed": str(self._seed),
            "device": device,
            "versions": ", ".join(f"{name} {number}" for name, number in versions(PACKAGES).items()),
            **{f"points: {name}": self._digest(some) for name, some in points.items()},
        }

    def _digest(self, points: Edits | EditScope | LocalitySet) -> str:
        """Return a hash of points, and of what the original network says of them: more may decide than inputs show."""
        whole = isinstance(points.inputs, Regions)
        return digest([points, None if whole else outputs(self.private, points.inputs)])

    def _store(self, network: nn.Module) -> None:
        """Store progress. Where that fails the sequence goes on, and says at its end that it could not."""
        assert self.resume is not None
        if ranks.rank():
            return
        try:
            patch = Patch.between(self.private, network)
            about: dict[str, Any] = {"sequence": self._key, "steps": [step.as_dict() for step in self._steps]}
            about |= {"advice": self._advice}
            replace(patch, about=about).save(self.resume)
        except (OSError, NNRepairError) as error:
            reason = getattr(error, "strerror", None) or error
            self._not_stored = f"progress could not be stored in {self.resume} ({reason}); a kill would have lost it."
        else:
            self._not_stored = ""

    def _resumed(self, steps: list[list[int]]) -> nn.Module:
        """Return the network of the last stored step; the private copy when there is none."""
        if self.resume is None:
            return self.private
        mine = self._key  # now, as the steps could change the objects that it describes
        try:
            stored = Patch.load(self.resume)
            self._refuse_another(stored, mine)
            network = stored.apply(self.private)
            self._steps, self._advice = self._told(stored, steps)
        except FileNotFoundError:
            return self.private
        except NNRepairError as error:
            raise type(error)(
                f"{self.resume} cannot be resumed from: {str(error).rstrip('.')}. Name another file, or delete it to "
                "start anew."
            ) from error
        return network

    def _refuse_another(self, stored: Patch, mine: dict[str, str]) -> None:
        theirs = stored.about.get("sequence")
        if not isinstance(theirs, dict):
            raise InvalidInput("it is a patch, but not one that a sequence of repairs can resume from.")
        other = [name for name in mine | theirs if theirs.get(name) != mine.get(name)]
        if other:
            pairs = [f"{name}: {_short(theirs.get(name))} there, {_short(mine.get(name))} now" for name in other[:9]]
            raise InvalidInput(f"it belongs to another sequence ({printable('; '.join(pairs))}).")

    def _told(self, stored: Patch, steps: list[list[int]]) -> tuple[list[Step], str]:
        """Return the stored steps, which must be the first of this sequence, and the last advice."""
        told, advice = stored.about.get("steps"), stored.about.get("advice")
        done = [Step.from_dict(step) for step in told] if isinstance(told, list) else []
        changes = bool(stored.new or stored.added or stored.removed)
        fits = [step.edits for step in done] == steps[: len(done)] and (self.mode == "successive" or not changes)
        fits &= all(step.side_effects.keys() == self.watched.keys() for step in done)
        if not done or not fits or not isinstance(advice, str):
            raise InvalidInput("it is damaged: its steps are not those of this sequence.")
        return done, advice


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:80]}...{text[-80:]}"
