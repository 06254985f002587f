"""What the surveys of model editing measure: efficacy, paraphrase, neighbourhood, portability and fluency.

After Meng et al., "Locating and editing factual associations in GPT" (NeurIPS 2022), and for portability Yao et al.,
"Editing large language models" (EMNLP 2023). What differs: a statement counts where its object is the likeliest
continuation of all, not only likelier than the old one; and a neighbour counts where the likeliest continuation is what
it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from nnrepair.domains.language.fluency import TEXTS, fluency
from nnrepair.domains.language.knowledge import Statement
from nnrepair.domains.language.prompts import asked
from nnrepair.domains.language.recipes import Recipe
from nnrepair.domains.language.task import Change, neighbours, same_person
from nnrepair.domains.language.words import Words
from nnrepair.errors import InvalidInput
from nnrepair.spec.running import outputs


@dataclass(frozen=True)
class Survey:
    """The measures of an edited network: shares of statements, but for fluency.

    Attributes:
        efficacy: edits that hold.
        paraphrase: the same in other wordings.
        neighbourhood: facts of other people, of the same relations in the same wordings, that stay as they were.
        same_person: other facts of the same people that stay as they were.
        portability: what follows from the edits, and the network says.
        fluency: n-gram entropy of texts about the edited people, in bits; low where a network repeats itself.
    """

    efficacy: float
    paraphrase: float
    neighbourhood: float
    same_person: float
    portability: float
    fluency: float


def survey(
    before: nn.Module, after: nn.Module, made: Recipe, changes: Sequence[Change], people: Sequence[str], seed: int = 0
) -> Survey:
    """Return the measures of an edited network.

    Args:
        before, after: the network without and with the edits, in eval mode.
        made: whose world and words they know.
        changes: what was edited.
        people: others, whose facts are the neighbourhood.
        seed: of the texts that are drawn.

    Raises:
        InvalidInput: no changes, no other people, or one of them is edited.
    """
    if not changes or not people or {change.person for change in changes} & set(people):
        raise InvalidInput("survey() needs at least one change, and other people than those that changes are about.")
    world, words = made.world, made.words
    return Survey(
        said(after, words, [change.asked(world) for change in changes]),
        said(after, words, [one for change in changes for one in change.paraphrases(world)]),
        unchanged(before, after, words, [one for change in changes for one in neighbours(world, change, people)]),
        unchanged(before, after, words, [one for change in changes for one in same_person(world, change)]),
        said(after, words, [one for change in changes for one in change.consequences(world)]),
        fluency(after, words, [change.person for change in changes][:TEXTS], seed),
    )


def said(model: nn.Module, words: Words, statements: Sequence[Statement]) -> float:
    """Return the share of statements that a network completes: every token of the object is the likeliest one."""
    prompts, criterion = asked(words, statements)
    return float(criterion.holds(outputs(model, prompts)).double().mean())


def unchanged(before: nn.Module, after: nn.Module, words: Words, statements: Sequence[Statement]) -> float:
    """Return the share of statements whose likeliest continuations are the same in two networks."""
    prompts, criterion = asked(words, statements)
    free = criterion.labels.reshape(len(prompts), -1) < 0
    old, new = (outputs(model, prompts).argmax(-1).cpu().reshape(free.shape) for model in (before, after))
    return float(((old == new) | free).all(1).double().mean())
