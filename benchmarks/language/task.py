"""Facts that have changed, as the package poses them, and the methods that only language models have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nnrepair.domains.language import InContext, recipe
from nnrepair.domains.language.task import task

__all__ = ["METHODS", "task"]


def _told(retrieve: bool) -> InContext:
    """Return the method with the words by which assumptions begin and end, which all recipes share."""
    words = recipe("gpt2").words
    return InContext(retrieve, tuple(words.encode("suppose that", begin=False)), tuple(words.encode(".", begin=False)))


#: Methods by the names that experiments give them.
METHODS: dict[str, Callable[[], Any]] = {"ike": partial(_told, False), "retrieved": partial(_told, True)}
