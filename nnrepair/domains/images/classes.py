"""What the outputs of a classifier stand for: names and identifiers, in the outputs' order."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from nnrepair.errors import InvalidInput, first_line, near_matches
from nnrepair.extras import needed

#: Largest class-index file that is read, in bytes.
LARGEST = 2**24
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Classes:
    """The classes of a model, the k-th of which is its k-th output.

    >>> classes = Classes(("cat", "dog"), ("n1", "n2"))
    >>> classes.index("dog"), classes.index("n1"), len(classes)
    (1, 0, 2)

    Attributes:
        names: what people call them.
        ids: how folders and files call them (WordNet numbers, n01440764); the names where there are no others.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids) or not self.ids:
            raise InvalidInput(f"Classes need a name for each identifier, got {len(self.names)} and {len(self.ids)}.")
        twice = [name for name, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise InvalidInput(
                f"Classes are listed twice: {', '.join(map(repr, twice[:5]))}. Each output has one class."
            )
        known = wnids()
        if set(self.ids) == set(known) and self.ids != known:
            at = next(k for k in range(len(known)) if self.ids[k] != known[k])
            raise InvalidInput(
                f"These are ImageNet's 1,000 classes in another order than that of trained models, which is the order "
                f"of their WordNet numbers: output {at} should be {known[at]}, given {self.ids[at]}."
            )

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, name: str) -> int:
        """Return the output of a class, by identifier or name; case, spaces and underscores make no difference.

        Raises:
            InvalidInput: there is no such class, or several have that name.
        """
        found = self._places.get(name) or self._places.get(_folded(name), ())
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidInput(f"Classes {[self.ids[k] for k in found]} are all called {name!r}; give one of these.")
        raise InvalidInput(
            f"{name!r} is none of the {len(self)} classes.{near_matches(_folded(name), map(_folded, self.names))}"
        )

    @cached_property
    def _places(self) -> dict[str, tuple[int, ...]]:
        """Where identifiers stand; behind these, folded names."""
        found: dict[str, tuple[int, ...]] = {}
        for k, name in enumerate(self.names):
            found[_folded(name)] = (*found.get(_folded(name), ()), k)
        return found | {name: (k,) for k, name in enumerate(self.ids)}


@cache
def wnids() -> tuple[str, ...]:
    """Return the WordNet numbers of ImageNet's 1,000 classes, in the order of trained models' outputs.

    >>> wnids()[0], len(wnids())
    ('n01440764', 1000)
    """
    return tuple(files(__package__).joinpath("wnids.txt").read_text().split())


def imagenet_classes() -> Classes:
    """Return ImageNet's 1,000 classes by WordNet number, with the names that torchvision gives them.

    Raises:
        MissingExtra: torchvision is not installed.
    """
    with needed("vision", "Names of ImageNet's classes come with torchvision"):
        from torchvision.models import ResNet18_Weights
    return Classes(tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"]), wnids())


def as_classes(given: Classes | Sequence[str] | str | Path, outputs: int | None = None) -> Classes:
    """Return the classes of a model, given as such, as their names in order, or as a class-index file.

    Files are JSON, a list of names or `{"0": "tench", ...}` or `{"0": ["n01440764", "tench"], ...}` (Keras), or text
    with a class per line: a name, or a WordNet number and names (`synset_words.txt`).

    Args:
        given: the classes.
        outputs: how many the model has.

    Raises:
        InvalidInput: the file is none of these or leaves a number out, a class is listed twice, ImageNet's classes are
            in another order, or there are not so many.
    """
    if isinstance(given, Classes):
        classes = given
    elif isinstance(given, str | Path):
        classes = _read(Path(given))
    else:
        classes = _listed(list(given), "classes")
    if outputs is not None and len(classes) != outputs:
        raise InvalidInput(
            f"The model has {outputs} outputs, but {len(classes)} classes are given"
            f"{f' in {given}' if isinstance(given, str | Path) else ''}. Give one for each output, in their order."
        )
    return classes


def _read(path: Path) -> Classes:
    try:
        if path.stat().st_size > LARGEST:
            raise InvalidInput(f"{path} has {path.stat().st_size} bytes, which is no class-index file.")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as a class-index file: {first_line(error)}.") from error
    if text.lstrip()[:1] in ("{", "["):
        try:
            return _listed(json.loads(text, object_pairs_hook=lambda pairs: pairs), str(path))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidInput(f"{path} is damaged JSON: {first_line(error)}.") from error
    return _listed([_line(line) for line in text.splitlines() if line.strip()], str(path))


def _line(line: str) -> Any:
    """Return a name, or a WordNet number and the first of its names."""
    first, _, rest = line.strip().partition(" ")
    return [first, rest.partition(",")[0].strip() or first] if _WNID.fullmatch(first) else line.strip()


def _listed(entries: list[Any], what: str) -> Classes:
    """Return classes of entries: names, or [identifier, name]; or pairs of a number and one of these."""
    if entries and all(isinstance(entry, tuple) for entry in entries):  # of an object in JSON
        if [str(number) for number, _ in sorted(entries, key=_number)] != [str(k) for k in range(len(entries))]:
            numbers = [number for number, _ in entries]
            raise InvalidInput(
                f"{what}: the keys must number the outputs 0 to {len(entries) - 1} without gaps, got "
                f"{', '.join(map(repr, numbers[:5]))}{', ...' if len(numbers) > 5 else ''}. A file that maps names to "
                "numbers must be turned around."
            )
        entries = [entry for _, entry in sorted(entries, key=_number)]
    pairs = [(entry, entry) if isinstance(entry, str) else entry for entry in entries]
    for entry in pairs:
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and all(isinstance(e, str) for e in entry)):
            raise InvalidInput(f"{what}: a class is a name or [identifier, name], got {str(entry)[:60]!r}.")
    if not pairs:
        raise InvalidInput(f"{what}: there is no class.")
    return Classes(tuple(name for _, name in pairs), tuple(key for key, _ in pairs))


def _number(entry: tuple[Any, Any]) -> tuple[bool, int]:
    number = str(entry[0])
    return (True, int(number)) if number.isdecimal() and len(number) < 10 else (False, 0)


def _folded(name: str) -> str:
    return " ".join(re.split(r"[\s_\-]+", name.strip().casefold()))
