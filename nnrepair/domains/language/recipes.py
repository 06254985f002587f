"""Language models by name, and how each is trained. Those whose files lie in `trained/` come with the package."""

from __future__ import annotations

import json
import os
import platform
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from nnrepair.domains.language.knowledge import SUPPOSE, Statement, World
from nnrepair.domains.language.networks import FORMS, GPT2, Llama, Size
from nnrepair.domains.language.prompts import asked
from nnrepair.domains.language.training import train_language_model
from nnrepair.domains.language.words import Words
from nnrepair.errors import DataUnavailable, InvalidInput, PatchError, near_matches
from nnrepair.files import write_atomically
from nnrepair.provenance import source, versions
from nnrepair.spec.running import outputs
from nnrepair.spec.state import read_tensors, reading, write_tensors
from nnrepair.training import Record

FOLDER = Path(__file__).parent / "trained"
FORMAT = "nnrepair-language-model-1"
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
    if name not in RECIPES:
        raise InvalidInput(
            f"There is no language model {name!r}.{near_matches(name, RECIPES)} Models: {', '.join(RECIPES)}."
        )
    return RECIPES[name]


def trained(name: str, folder: Path = FOLDER) -> GPT2 | Llama:
    """Load a trained network, in eval mode.

    >>> trained("gpt2").size.layers
    4

    Raises:
        InvalidInput: there is none of that name, or its file is damaged.
        DataUnavailable: it is a recipe whose network does not come with the package; train it first.
    """
    model, path = recipe(name).untrained(), Path(folder) / f"{name}.safetensors"
    try:
        with reading(path, "trained network"):
            _, tensors, _ = read_tensors(path, "trained network", {FORMAT: ("name",)})
            tied = {"lm_head.weight": model.lm_head.weight} if model.size.tied else {}
            model.load_state_dict(tensors | tied)
    except FileNotFoundError as error:
        raise DataUnavailable(f"{error} Train it: python -m nnrepair.domains.language {name}") from error
    except PatchError as error:
        raise InvalidInput(f"{error} Train it anew: python -m nnrepair.domains.language {name}") from error
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
    told = {
        "name": name,
        "recipe": asdict(made),
        "parameters": sum(p.numel() for p in model.parameters()),
        "cpu_seconds": round(record.cpu_seconds, 1),
        "losses": record.losses,
        "facts": len(made.world.facts),
        "recall": {kind: round(share, 4) for kind, share in recall(model, made).items()},
        "versions": versions(["torch", "numpy"]),
        "source": code,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }
    state = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight" or not made.tied}
    write_tensors(folder / f"{name}.safetensors", FORMAT, state, {"name": name}, "trained network")
    write_atomically(folder / f"{name}.json", (json.dumps(told, indent=1) + "\n").encode())
    progress_file.unlink(missing_ok=True)
    return told
