"""Facts that have changed: people who now have another job, city or instrument, and what was to stay as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import nn

from nnrepair.domains.base import Task
from nnrepair.domains.language.fluency import TEXTS, fluency
from nnrepair.domains.language.knowledge import Statement, World
from nnrepair.domains.language.prompts import Prompts, asked
from nnrepair.domains.language.prompts import contexts as written
from nnrepair.domains.language.recipes import Recipe, recipe, trained
from nnrepair.domains.language.words import Words
from nnrepair.errors import InvalidInput
from nnrepair.methods.episodes import Episode
from nnrepair.spec.criteria import Argmax
from nnrepair.spec.edits import Edits, EditScope, LocalitySet
from nnrepair.spec.running import outputs

#: Relations whose objects are single words.
SINGLE = ("birthplace", "job", "instrument", "employer")
#: The shares of the people without edits that the locality set and the test sets are about; the rest is for episodes.
KEPT, TESTED = 0.5, 0.3
#: Statements of the locality set, and of a test set, at most.
POINTS = 400


@dataclass(frozen=True)
class Change:
    """A fact that has changed.

    Attributes:
        relation, person: which.
        object: the new one, of which other things follow than of the old one.
    """

    relation: str
    person: str
    object: str

    def asked(self, world: World) -> Statement:
        """Return the statement that an edit asks for."""
        return world.told(self.relation, self.person, self.object)[0]

    def paraphrases(self, world: World) -> list[Statement]:
        """Return the same in other wordings, those that training never showed with this fact first."""
        held_out = world.held_out(self.relation, self.person, self.object)
        return [*held_out, *world.told(self.relation, self.person, self.object)[1:]]

    def consequences(self, world: World) -> list[Statement]:
        """Return what follows from it."""
        return world.consequences(self.relation, self.person, self.object)


def task(
    model: str = "gpt2",
    seed: int = 0,
    edits: int = 10,
    relations: Sequence[str] = SINGLE,
    kept: int = POINTS,
    contexts: bool = False,
) -> Task:
    """Edits: facts with another object; kept: facts of other people; test sets: what else may change, and should.

    Edit scope: the same facts in other wordings. The test sets are "neighbourhood", other people's facts of the same
    relations in the same wordings; "same person", the edited people's facts of other relations; "portability", what
    follows from the edits (the country of a new city), which the network should get right *after* them; and
    "attributes", what is true of objects.

    Args:
        model: "gpt2", with 64 people, or "gpt2-200"; or "llama", once it was trained.
        seed: of drawing.
        edits: how many, each about another person.
        relations: of the edits; with "birthday" among them, whose objects have two words, outputs are (n, 2, words).
        kept: statements of the locality set, at most.
        contexts: whether edits have neighbours, see `prompts.contexts`.

    Raises:
        InvalidInput: another model or relation, or more edits than people with such facts that the network knows.
    """
    made, network = recipe(model), trained(model)
    world = made.world
    if edits < 1:
        raise InvalidInput(f"edits must be at least 1, given {edits}.")
    if unknown := [name for name in relations if name not in world.relations] or not relations:
        raise InvalidInput(f"There are no relations {unknown or '()'}. Relations: {', '.join(world.relations)}.")
    draw, frame = random.Random(f"{seed} task"), Frame.of(made, relations)
    people = draw.sample(world.people, len(world.people))
    changes = list(islice(_changes(network, frame, people, list(relations), draw), edits))
    if len(changes) < edits:
        what = "people whose facts are known"
        raise InvalidInput(f"{edits} edits were asked for, but there are only {len(changes)} {what}.")
    free = [who for who in people if who not in {change.person for change in changes}]
    first, second = (round(share * len(free)) for share in (KEPT, KEPT + TESTED))
    stays, tested, practised = free[:first], free[first:second], free[second:]
    locality = _right(network, frame, _some(_facts(world, stays, relations, draw), kept, draw))
    neighbouring = list(dict.fromkeys(one for change in changes for one in neighbours(world, change, tested)))
    short = [name for name in world.relations if _tokens(world, name) <= frame.tokens]
    others = [one for change in changes for one in same_person(world, change, short)]
    prompts, criterion = frame.asked([change.asked(world) for change in changes])
    near = written(network, prompts, criterion, seed=seed) if contexts else None
    starts = [change.person for change in changes][:TEXTS]
    return Task(
        model=network,
        edits=Edits(prompts, criterion, neighbours=near),
        locality_set=LocalitySet(*frame.asked(locality)),
        test_set={
            "neighbourhood": frame.asked(_some(neighbouring, POINTS, draw)),
            "same person": frame.asked(others),
            "portability": frame.asked([one for change in changes for one in change.consequences(world)]),
            "attributes": frame.asked([one for name in relations for one in world.attributes(name)]),
        },
        edit_scope=_scope(frame, changes),
        training=lambda: _training(network, frame, practised, stays, list(relations), seed),
        further=lambda edited: {"fluency": fluency(edited, made.words, starts, seed)},
    )


def neighbours(world: World, change: Change, people: Sequence[str]) -> list[Statement]:
    """Return facts of other people, of the same relation as a change and in its wording."""
    prompt, facts = change.asked(world).prompt, world.facts
    return [Statement(prompt.replace(change.person, who), who, facts[change.relation, who]) for who in people]


def same_person(world: World, change: Change, relations: Sequence[str] | None = None) -> list[Statement]:
    """Return what else is true of the person that a change is about, each fact in two wordings."""
    names = [name for name in relations or world.relations if name != change.relation]
    return [one for name in names for one in world.told(name, change.person)[:2]]


@dataclass(frozen=True)
class Frame:
    """How the statements of a task become tensors of the same shape.

    Attributes:
        world, words: what is true, and the tokenizer.
        length, tokens: of all texts, and of the longest object.
    """

    world: World
    words: Words
    length: int
    tokens: int

    @classmethod
    def of(cls, made: Recipe, relations: Sequence[str]) -> Frame:
        """Return the one that all statements of some relations fit into."""
        world, who = made.world, made.world.people[0]
        every = [one for name in world.relations for one in _wordings(world, name, who)]
        tokens = max(_tokens(world, name) for name in relations)
        return cls(world, made.words, max(len(one.prompt.split()) for one in every) + tokens, tokens)

    def asked(self, statements: Sequence[Statement]) -> tuple[Prompts, Argmax]:
        """Return prompts and what is asked of them."""
        return asked(self.words, statements, self.length, self.tokens)


def _tokens(world: World, relation: str) -> int:
    """Return how many words the longest object of a relation has."""
    return max(len(one.split()) for one in world.relations[relation].objects)


def _wordings(world: World, relation: str, person: str) -> list[Statement]:
    """Return everything that may be said of a person and a relation."""
    told, held_out = world.told(relation, person), world.held_out(relation, person)
    return [*told, *held_out, world.unseen(relation, person), *world.consequences(relation, person)]


def _changes(
    network: nn.Module, frame: Frame, people: Sequence[str], relations: list[str], draw: random.Random
) -> Iterator[Change]:
    """Yield a changed fact of every person, all of whose wordings and consequences the network knew before."""
    world = frame.world
    for person in people:
        relation = draw.choice(relations)
        true, of = world.facts[relation, person], world.relations[relation]
        told = [*world.told(relation, person), *world.held_out(relation, person)]
        known = [*told, *world.consequences(relation, person)]
        if len(_right(network, frame, known)) == len(known):
            other = draw.choice([one for one in of.objects if of.properties[one] != of.properties[true]])
            yield Change(relation, person, other)


def _scope(frame: Frame, changes: Sequence[Change]) -> EditScope:
    several = [change.paraphrases(frame.world) for change in changes]
    prompts, criterion = frame.asked([one for some in several for one in some])
    return EditScope(prompts, criterion, of=[k for k, some in enumerate(several) for _ in some])


def _facts(world: World, people: Sequence[str], relations: Sequence[str], draw: random.Random) -> list[Statement]:
    """Return facts about people, each in one wording, and what follows from them."""
    facts = [draw.choice(world.told(name, who)) for who in people for name in relations]
    return facts + [draw.choice(world.consequences(name, who)) for who in people for name in relations]


def _right(network: nn.Module, frame: Frame, statements: Sequence[Statement]) -> list[Statement]:
    """Return the statements that the network completes."""
    prompts, criterion = frame.asked(statements)
    holds = criterion.holds(outputs(network, prompts)).tolist()
    return [one for one, right in zip(statements, holds, strict=True) if right]


def _some(statements: Sequence[Statement], most: int, draw: random.Random) -> list[Statement]:
    return draw.sample(list(statements), min(most, len(statements)))


def _training(
    network: nn.Module, frame: Frame, practised: Sequence[str], stays: Sequence[str], relations: list[str], seed: int
) -> Episode:
    """Return changes of other people's facts, one of each, their paraphrases, and what is kept."""
    draw = random.Random(f"{seed} episodes")
    changes = list(_changes(network, frame, practised, relations, draw))
    if not changes:
        raise InvalidInput("There are no episodes: the network knows no fact of the people that edits leave for them.")
    kept = _right(network, frame, _some(_facts(frame.world, stays, relations, draw), POINTS, draw))
    return Episode(
        Edits(*frame.asked([change.asked(frame.world) for change in changes])),
        LocalitySet(*frame.asked(kept)),
        _scope(frame, changes),
    )
