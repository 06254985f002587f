"""Words as numbers: a tokenizer whose tokens are the words of a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from nnrepair.errors import InvalidInput, near_matches

#: What fills up shorter texts, and what every text begins with.
PAD, BEGIN = "<pad>", "<begin>"


@dataclass(frozen=True)
class Words:
    """A tokenizer: words, split at blanks.

    >>> words = Words(("here", "we", "are"))
    >>> words.encode("here we are"), words.decode([1, 2, 3])
    ([1, 2, 3, 4], 'here we')

    Args:
        known: the words, whose numbers begin behind those of `PAD` and `BEGIN`.
    """

    known: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.known)) < len(self.known) or any(len(word.split()) != 1 for word in self.known):
            raise InvalidInput("Words must differ from each other, and be without blanks.")

    def __len__(self) -> int:
        return len(self.known) + 2

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: k for k, word in enumerate((PAD, BEGIN, *self.known))}

    def encode(self, text: str, begin: bool = True) -> list[int]:
        """Return the numbers of a text's words.

        Args:
            text: words with blanks between them.
            begin: whether the number of `BEGIN` comes first.

        Raises:
            InvalidInput: a word that is not known.
        """
        found = text.split()
        for word in found:
            if word not in self._number:
                hint = near_matches(word, self.known)
                raise InvalidInput(f"The word {word!r} is not known.{hint} {len(self.known)} words are.")
        return [1] * begin + [self._number[word] for word in found]

    def decode(self, numbers: Sequence[int]) -> str:
        """Return the words of numbers, without `PAD` and `BEGIN`."""
        every = (PAD, BEGIN, *self.known)
        bad = [k for k in numbers if not 0 <= k < len(every)]
        if bad:
            raise InvalidInput(f"{bad[0]} is the number of no word; there are {len(every)}.")
        return " ".join(every[k] for k in numbers if k > 1)
