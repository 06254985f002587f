"""Language models by name, and how each is trained. Those whose files lie in `trained/` come with the package."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nnrepair.domains import recipes
from nnrepair.domains.language.knowledge import SUPPOSE, Statement, World
from nnrepair.domains.language.networks import FORMS, GPT2, Llama, Size
from nnrepair.domains.language.prompts import asked
from nnrepair.domains.language.training import train_language_model
from nnrepair.domains.language.words import Words
from nnrepair.provenance import source
from nnrepair.spec.running import outputs
from nnrepair.training import Record

FOLDER = Path(__file__).parent / "trained"
FORMAT, COMMAND = "nnrepair-language-model-1", "python -m nnrepair.domains.language"
#: The weights that are those of the words' vectors, where both are tied.
TIED = "lm_head.weight"
#: The files that decide what a trained network is.
CODE = (*(f"domains/language/{name}.py" for name in ("knowledge", "words", "networks", "training")), "training")


@dataclass(frozen=True)
class Recipe:
    """One network, its world and its training.

    Attributes:
        form: "gpt2" or "llama".
        people: of the world.
        steps: of the training.
        width, layers, heads, inner, tied: see `networks.Size`.
        length: the longest text, in tokens.
        batch_size: texts in a step.
        seed: of world, weights and training.
    """

    form: str
    people: int
    steps: int
    width: int
    layers: int
    heads: int
    inner: int
    tied: bool
    length: int = 64
    batch_size: int = 24
    seed: int = 0

    @cached_property
    def world(self) -> World:
        """What the network is told."""
        return World(self.seed, self.people)

    @cached_property
    def words(self) -> Words:
        """The tokenizer."""
        return Words(tuple(self.world.words()))

    def untrained(self) -> GPT2 | Llama:
        """Return the network before its training."""
        size = Size(len(self.words), self.width, self.layers, self.heads, self.inner, self.length, self.tied)
        return FORMS[self.form](size, self.seed)


RECIPES: Mapping[str, Recipe] = {
    "gpt2": Recipe("gpt2", 64, 2000, 96, 4, 4, 384, tied=True),
    "gpt2-200": Recipe("gpt2", 200, 6000, 96, 4, 4, 384, tied=True, batch_size=32),
    "llama": Recipe("llama", 64, 2000, 96, 4, 4, 256, tied=False),
}


def recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        InvalidInput: there is none of that name.
    """
    return recipes.named(name, RECIPES, "language model")


def trained(name: str, folder: Path = FOLDER) -> GPT2 | Llama:
    """Load a trained network, in eval mode.

    >>> trained("gpt2").size.layers
    4

    Raises:
        InvalidInput: there is none of that name, or its file is damaged.
        DataUnavailable: it is a recipe whose network does not come with the package; train it first.
    """
    model = recipe(name).untrained()
    tied = {TIED: model.lm_head.weight} if model.size.tied else {}
    recipes.load(model, folder, name, FORMAT, COMMAND, tied)
    return model.eval()


@torch.no_grad()
def recall(model: GPT2 | Llama, made: Recipe) -> dict[str, float]:
    """Return the shares of statements that a network completes, by kind of statement.

    A statement is completed where every token of its object is the likeliest one. The kinds: facts in wordings of their
    training; in wordings that training had only with other people; in wordings that it never had; what follows from
    them; what is true of the objects; and assumptions, another object for a fact, asked for in a held-out wording.
    """
    world, draw = made.world, random.Random(f"{made.seed} recall")
    facts = list(world.facts)
    kinds = {
        "trained wordings": [one for fact in facts for one in world.told(*fact)],
        "held-out wordings": [one for fact in facts for one in world.held_out(*fact)],
        "new wordings": [world.unseen(*fact) for fact in facts],
        "consequences": [one for fact in facts for one in world.consequences(*fact)],
        "attributes": [one for name in world.relations for one in world.attributes(name)],
        "assumptions": [_supposed(world, fact, draw) for fact in facts],
    }
    found = {}
    for kind, statements in kinds.items():
        prompts, criterion = asked(made.words, statements)
        found[kind] = float(criterion.holds(outputs(model, prompts)).double().mean())
    return found


def _supposed(world: World, fact: tuple[str, str], draw: random.Random) -> Statement:
    instead = draw.choice(world.relations[fact[0]].objects)
    given, question = draw.choice(world.told(*fact, instead)), draw.choice(world.held_out(*fact, instead))
    return Statement(f"{SUPPOSE} {given.sentence} {question.prompt}", question.subject, question.object)


def train(name: str, folder: Path = FOLDER, *, progress: bool = True) -> dict[str, Any]:
    """Train a network by its recipe and write it with its record to a folder; return the record.

    Progress is stored beside them and deleted at the end; the same call goes on after a kill.
    """
    made, record = recipe(name), Record()
    code = source(*CODE)
    folder.mkdir(parents=True, exist_ok=True)
    progress_file = folder / f"{name}.progress.safetensors"
    model = train_language_model(
        made.untrained(),
        made.world,
        made.words,
        steps=made.steps,
        batch_size=made.batch_size,
        length=made.length,
        seed=made.seed,
        progress=progress,
        resume=progress_file,
        record=record,
    )
    assert isinstance(model, GPT2 | Llama)
    shares = {kind: round(share, 4) for kind, share in recall(model, made).items()}
    told = recipes.store(
        model,
        folder,
        name,
        FORMAT,
        made=made,
        record=record,
        code=code,
        figures={"facts": len(made.world.facts), "recall": shares},
        without=(TIED,) if made.tied else (),
    )
    progress_file.unlink(missing_ok=True)
    return told
