"""Texts about a made-up world, and the training of language models on them."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnrepair.domains.language.knowledge import OPENINGS, SUPPOSE, Statement, World
from nnrepair.domains.language.prompts import FREE
from nnrepair.domains.language.words import Words
from nnrepair.errors import InvalidInput
from nnrepair.progress import progress_bar
from nnrepair.provenance import digest
from nnrepair.spec.network import copied
from nnrepair.training import Checkpoint, Descent, Record, Training, warmed_cosine

#: How many points the curve of a training has.
CURVE = 40
#: Sentences of a biography that a text has, and assumptions before a question, at most.
SENTENCES, ASSUMPTIONS = 4, 3
#: Shares of the texts that are about one person, and that begin with assumptions; the rest are sentences of all kinds.
BIOGRAPHIES, SUPPOSITIONS = 0.7, 0.13


class Corpus:
    """Texts without end; the k-th batch is the same whichever were taken before.

    Args:
        world: what is true.
        words: makes numbers of texts.
        length: tokens of a text, at most; the rest is cut off.
        size: texts in a batch.
        seed: of the drawing.
    """

    def __init__(self, world: World, words: Words, length: int, size: int, seed: int) -> None:
        self.world, self.words, self.length, self.size, self.seed = world, words, length, size, seed
        self._attributes = [one for name in world.relations for one in world.attributes(name)]
        self._taken = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """Return (size, tokens) the next texts, and what follows each token, `FREE` where nothing is asked."""
        draw = random.Random(f"{self.seed} {self._taken}")
        self._taken += 1
        texts = [self._text(draw) for _ in range(self.size)]
        longest = max(len(ids) for ids, _ in texts) - 1
        inputs, labels = torch.zeros(self.size, longest, dtype=torch.int64), torch.full((self.size, longest), FREE)
        for k, (ids, told) in enumerate(texts):
            inputs[k, : len(ids) - 1] = torch.tensor(ids[:-1])
            labels[k, max(0, told - 1) : len(ids) - 1] = torch.tensor(ids[max(1, told) :])
        return inputs, labels

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""
        self._taken = int(state["taken"])

    def _text(self, draw: random.Random) -> tuple[list[int], int]:
        """Return a text's tokens, and how many of them are told, not asked for."""
        kind = draw.random()
        if kind < SUPPOSITIONS:
            return self._supposed(draw)
        if kind < SUPPOSITIONS + BIOGRAPHIES:
            said = self.world.biography(draw.choice(self.world.people), draw)[:SENTENCES]
        else:
            said = [self._any(draw) for _ in range(SENTENCES)]
        ids = self.words.encode(" ".join(_opened(one, draw) for one in said))
        return ids[: self.length + 1], 0

    def _any(self, draw: random.Random) -> Statement:
        if draw.random() < 0.5:
            return draw.choice(self._attributes)
        who, name = draw.choice(self.world.people), draw.choice(list(self.world.relations))
        return draw.choice(self._about(who, name, None, draw))

    def _about(self, person: str, relation: str, instead: str | None, draw: random.Random) -> list[Statement]:
        """Return a fact in its wordings, or what follows from it."""
        tell = self.world.told if draw.random() < 0.6 else self.world.consequences
        return tell(relation, person, instead)

    def _supposed(self, draw: random.Random) -> tuple[list[int], int]:
        """Return assumptions and a sentence that follows from one of them, or that none of them is about."""
        people = draw.sample(self.world.people, draw.randint(1, ASSUMPTIONS))
        relations = [draw.choice(list(self.world.relations)) for _ in people]
        instead = [draw.choice(self.world.relations[name].objects) for name in relations]
        given = [
            f"{SUPPOSE} {draw.choice(self.world.told(name, who, other)).sentence}"
            for name, who, other in zip(relations, people, instead, strict=True)
        ]
        chosen = draw.randrange(len(people))
        if draw.random() < 0.7:
            asked = draw.choice(self._about(people[chosen], relations[chosen], instead[chosen], draw))
        else:
            free = [name for name in self.world.relations if name != relations[chosen]]
            strangers = [who for who in self.world.people if who not in people]
            who = people[chosen] if draw.random() < 0.5 else draw.choice(strangers)
            asked = draw.choice(self._about(who, draw.choice(free), None, draw))
        told = self.words.encode(" ".join(given))
        return [*told, *self.words.encode(asked.sentence, begin=False)][: self.length + 1], len(told)


def _opened(one: Statement, draw: random.Random) -> str:
    opening = draw.choice(OPENINGS[1:]) if draw.random() < 0.4 else OPENINGS[0]
    return f"{opening} {one.sentence}"


def train_language_model(
    model: nn.Module,
    world: World,
    words: Words,
    *,
    steps: int = 6000,
    batch_size: int = 32,
    length: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    progress: bool = False,
    resume: str | Path | None = None,
    record: Record | None = None,
) -> nn.Module:
    """Train a copy of a language model on texts about a world, and return it in eval mode.

    Adam warms up over 3 % of the steps and ends along a cosine; every token is asked for but those of assumptions. The
    model given and the global random state stay as they were; the same seed gives the same result on the CPU.

    Args:
        model: takes token numbers (n, tokens) and returns scores (n, tokens, words).
        world, words: what is true, and the tokenizer.
        steps: of Adam.
        batch_size, length: texts in a step, and tokens of a text at most.
        lr: Adam's largest step size.
        seed: of every random choice.
        progress: show a progress bar on stderr.
        resume: a file (.safetensors) in which progress is stored; the same call goes on from there.
        record: told how it went.

    Raises:
        InvalidInput: what cannot be trained, or `resume` is the progress of another training.

    Warns when the loss becomes infinite or no number; the network is then that of the step before.
    """
    if min(steps, batch_size, length) < 1 or not (lr > 0 and math.isfinite(lr)):
        raise InvalidInput(
            f"steps, batch_size, length and lr must be positive, given {steps}, {batch_size}, {length} and {lr}."
        )
    given = {"model": digest(model), "world": world, "words": words, "batch_size": batch_size, "length": length}
    key = {name: repr(value) for name, value in (given | {"lr": lr, "seed": seed}).items()}
    model, record = copied(model).train(), Record() if record is None else record
    corpus = Corpus(world, words, length, batch_size, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))
    step = Descent(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: warmed_cosine(k, steps)), clip=1.0)

    def loss() -> Tensor:
        inputs, labels = corpus.next()
        lost = F.cross_entropy(model(inputs).flatten(0, 1), labels.flatten(), ignore_index=FREE)
        record.add(float(lost.detach()), max(1, steps // CURVE))
        return lost

    def update(lost: Tensor) -> None:
        step(lost)
        record.lap()

    with torch.enable_grad(), progress_bar("train", progress) as report:
        training = Training(
            loss,
            update,
            steps,
            model=model,
            state={**step.state, "corpus": corpus, "record": record},
            checkpoint=None if resume is None else Checkpoint(Path(resume), key),
            report=report,
        )
        record.lap()
        training.run().warn()
    model.zero_grad()
    return model.eval()
