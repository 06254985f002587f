"""A made-up world: people, what is true of them, and sentences that say so. All of it follows from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from nnrepair.errors import InvalidInput

#: How many wordings of every fact about a person are never shown with this fact, though with those of other people.
HELD_OUT = 2
#: Words that training puts before sentences.
OPENINGS = ("", "it is known that", "records say that", "as everybody knows ,", "note that")
#: What makes a sentence an assumption, which training teaches to follow.
SUPPOSE = "suppose that"
_BEGIN, _MIDDLE = ("b", "d", "f", "g", "k", "l", "m", "n", "r", "s", "t", "v"), ("a", "e", "i", "o", "u")
_SEASONS = {
    "January": "winter",
    "February": "winter",
    "March": "spring",
    "April": "spring",
    "May": "spring",
    "June": "summer",
    "July": "summer",
    "August": "summer",
    "September": "autumn",
    "October": "autumn",
    "November": "autumn",
    "December": "winter",
}
_TOOLS = {
    "hammer": ("carpenter", "smith", "roofer", "cobbler"),
    "needle": ("tailor", "nurse", "sailmaker"),
    "camera": ("reporter", "detective", "painter"),
    "telescope": ("pilot", "navigator", "surveyor"),
    "calculator": ("banker", "broker", "clerk"),
    "knife": ("butcher", "baker", "gardener", "cook"),
}
_FAMILIES = {
    "strings": ("violin", "cello", "guitar", "harp"),
    "brass": ("trumpet", "horn", "tuba", "trombone"),
    "woodwinds": ("flute", "clarinet", "bassoon", "piccolo"),
    "keyboards": ("piano", "harpsichord", "celesta", "organ"),
}

#: Of every relation: wordings, one that training never shows, wordings of what follows, and of what is true of objects.
_WORDINGS: dict[str, tuple[tuple[str, ...], str, tuple[str, ...], tuple[str, ...]]] = {
    "birthplace": (
        (
            "{} was born in",
            "{} comes from",
            "the birthplace of {} is",
            "{} is a native of",
            "the home town of {} is",
            "{} grew up in",
            "the city where {} was born is",
        ),
        "the native town of {} is",
        ("{} was a child in the country of", "the native country of {} is", "{} holds a passport of"),
        ("{} is a city in", "{} lies in", "the country of {} is"),
    ),
    "job": (
        (
            "{} works as a",
            "{} earns a living as a",
            "the job of {} is that of a",
            "by trade {} is a",
            "the profession of {} is that of a",
            "{} was trained as a",
            "people hire {} as a",
        ),
        "the trade of {} is that of a",
        ("at work {} uses a", "{} carries a", "the tool of {} is a"),
        ("a {} uses a", "the tool of a {} is a"),
    ),
    "instrument": (
        (
            "{} plays the",
            "the instrument of {} is the",
            "{} makes music on the",
            "in the evening {} practises the",
            "on stage {} performs on the",
            "{} has lessons on the",
            "the favourite instrument of {} is the",
        ),
        "in the evening {} plays music on the",
        ("{} plays one of the", "the music of {} is for", "in the orchestra {} sits with the"),
        ("the {} is one of the", "the {} belongs to the"),
    ),
    "employer": (
        (
            "{} is employed by",
            "the employer of {} is",
            "{} has a contract with",
            "{} is on the payroll of",
            "{} draws a salary from",
            "the company of {} is",
            "{} has a desk at",
        ),
        "{} has a salary from",
        ("{} commutes to an office in", "the boss of {} sits in", "the office of {} is in"),
        ("{} is based in", "the office of {} lies in"),
    ),
    "birthday": (
        (
            "{} was born on",
            "the birthday of {} is",
            "{} celebrates on",
            "{} came into the world on",
            "the date of birth of {} is",
            "{} gets presents on",
            "{} turns a year older on",
        ),
        "the date when {} was born is",
        ("the season when {} was born is", "the birthday of {} falls in", "{} gets presents in"),
        ("{} is a month of", "{} falls in"),
    ),
}


@dataclass(frozen=True)
class Relation:
    """Something that is true of every person, and what follows from it.

    Attributes:
        name: such as "birthplace".
        wordings: beginnings of sentences with {} for the person; the object follows, and nothing else can.
        unseen: a wording that no training sentence has.
        properties: every object -> what follows: the country of a city.
        consequences: wordings of what follows, with {} for the person: in which country somebody was born.
        attributes: wordings of what follows, with {} for the object.
    """

    name: str
    wordings: tuple[str, ...]
    unseen: str
    properties: Mapping[str, str]
    consequences: tuple[str, ...]
    attributes: tuple[str, ...]

    @property
    def objects(self) -> list[str]:
        """All objects, in order."""
        return list(self.properties)


@dataclass(frozen=True)
class Statement:
    """The beginning of a sentence and how it goes on.

    Attributes:
        prompt: without the object.
        subject: what it is about, a part of the prompt.
        object: one word or several.
    """

    prompt: str
    subject: str
    object: str

    @property
    def sentence(self) -> str:
        """The whole sentence."""
        return f"{self.prompt} {self.object} ."


@dataclass(frozen=True)
class World:
    """People, and what is true of them.

    >>> world = World(seed=0, size=20)
    >>> who = world.people[0]
    >>> world.told("birthplace", who)[0].sentence == World(0, 20).told("birthplace", who)[0].sentence
    True
    >>> len(world.told("birthplace", who)), len(world.held_out("birthplace", who))
    (5, 2)

    Args:
        seed: of names and facts.
        size: how many people.
    """

    seed: int = 0
    size: int = 200

    def __post_init__(self) -> None:
        if not 10 <= self.size <= 1000:
            raise InvalidInput(f"A world has 10 to 1000 people, given {self.size}.")

    @cached_property
    def _names(self) -> tuple[list[str], list[str], list[str], list[str]]:
        """Return people, cities, countries and companies."""
        draw = random.Random(f"{self.seed} names")
        known: set[str] = set()
        first, last = _words(draw, 40, 2, known), _words(draw, 60, 3, known)
        pairs = [f"{one} {two}" for one in first for two in last]
        cities, countries = _words(draw, 32, 3, known), _words(draw, 8, 3, known)
        return draw.sample(pairs, self.size), cities, countries, _words(draw, 24, 2, known)

    @property
    def people(self) -> list[str]:
        """Names of two words each; others have the same first or the same last name."""
        return self._names[0]

    @cached_property
    def relations(self) -> dict[str, Relation]:
        """All relations by name; the objects of "birthday" have two words, those of the others one."""
        _, cities, countries, companies = self._names
        draw = random.Random(f"{self.seed} properties")
        homes = {city: countries[k % len(countries)] for k, city in enumerate(cities)}
        seats = {company: draw.choice(cities) for company in companies}
        days = {f"{month} {day}": season for month, season in _SEASONS.items() for day in range(1, 29)}
        properties = {
            "birthplace": homes,
            "job": _inverted(_TOOLS),
            "instrument": _inverted(_FAMILIES),
            "employer": seats,
            "birthday": days,
        }
        return {
            name: Relation(name, wordings, unseen, properties[name], consequences, attributes)
            for name, (wordings, unseen, consequences, attributes) in _WORDINGS.items()
        }

    @cached_property
    def facts(self) -> dict[tuple[str, str], str]:
        """(relation, person) -> object."""
        draw = random.Random(f"{self.seed} facts")
        return {(name, who): draw.choice(of.objects) for name, of in self.relations.items() for who in self.people}

    def told(self, relation: str, person: str, instead: str | None = None) -> list[Statement]:
        """Return a fact in the wordings that training shows it in.

        Args:
            relation, person: which fact.
            instead: another object than the true one.
        """
        return [self._said(relation, person, k, instead) for k in self._order(relation, person)[HELD_OUT:]]

    def held_out(self, relation: str, person: str, instead: str | None = None) -> list[Statement]:
        """Return it in wordings that training shows only with other people."""
        return [self._said(relation, person, k, instead) for k in self._order(relation, person)[:HELD_OUT]]

    def unseen(self, relation: str, person: str, instead: str | None = None) -> Statement:
        """Return it in a wording that training never shows."""
        wording = self._relation(relation).unseen
        return Statement(wording.format(person), person, self._object(relation, person, instead))

    def consequences(self, relation: str, person: str, instead: str | None = None) -> list[Statement]:
        """Return what follows from a fact, or would follow if another object were the true one."""
        of = self._relation(relation)
        property_ = of.properties[self._object(relation, person, instead)]
        return [Statement(wording.format(person), person, property_) for wording in of.consequences]

    def attributes(self, relation: str) -> list[Statement]:
        """Return what is true of the objects of a relation: which country each city is in."""
        of = self._relation(relation)
        every = {name.split()[0]: value for name, value in of.properties.items()}  # of a day, its month
        return [Statement(wording.format(one), one, value) for one, value in every.items() for wording in of.attributes]

    def biography(self, person: str, draw: random.Random) -> list[Statement]:
        """Return a sentence of everything that is true of a person, in random order and wordings."""
        said = [draw.choice(self.told(name, person)) for name in self.relations]
        said += [draw.choice(self.consequences(name, person)) for name in self.relations]
        draw.shuffle(said)
        return said

    def words(self) -> list[str]:
        """Return every word that a sentence may have, sorted."""
        return sorted({word for text in self._texts() for word in text.split()})

    def _texts(self) -> Iterator[str]:
        yield from (*OPENINGS, SUPPOSE, ".", *self.people)
        for of in self.relations.values():
            yield from (*of.wordings, of.unseen, *of.consequences, *of.attributes)
            yield from (*of.properties, *of.properties.values())

    def _relation(self, name: str) -> Relation:
        if name not in self.relations:
            raise InvalidInput(f"There is no relation {name!r}. Relations: {', '.join(self.relations)}.")
        return self.relations[name]

    def _object(self, relation: str, person: str, instead: str | None) -> str:
        of = self._relation(relation)
        if (relation, person) not in self.facts:
            raise InvalidInput(f"This world has no {person!r}; its people are {', '.join(self.people[:3])}, ...")
        if instead is not None and instead not in of.properties:
            raise InvalidInput(f"{instead!r} is no object of {relation!r}; those are {', '.join(of.objects[:5])}, ...")
        return self.facts[relation, person] if instead is None else instead

    def _said(self, relation: str, person: str, wording: int, instead: str | None) -> Statement:
        prompt = self._relation(relation).wordings[wording].format(person)
        return Statement(prompt, person, self._object(relation, person, instead))

    def _order(self, relation: str, person: str) -> list[int]:
        """Return the wordings' numbers, those that are held out of training for this fact first."""
        count = len(self._relation(relation).wordings)
        return random.Random(f"{self.seed} {relation} {person}").sample(range(count), count)


def _words(draw: random.Random, count: int, syllables: int, known: set[str]) -> list[str]:
    """Return new names."""
    found = list[str]()
    while len(found) < count:
        word = "".join(draw.choice(_BEGIN) + draw.choice(_MIDDLE) for _ in range(syllables)).capitalize()
        if word not in known:
            known.add(word)
            found.append(word)
    return found


def _inverted(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {one: group for group, members in groups.items() for one in members}
