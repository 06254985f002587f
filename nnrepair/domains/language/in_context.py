"""Editing by telling: the network's weights stay, and it reads what has changed before the question.

The baselines of the surveys: all edits before every question, as demonstrations are in Zheng et al., "Can we edit
factual knowledge by in-context learning?" (IKE, EMNLP 2023), and the edit alone that a question is about, found by the
words that both share, as the memory of Zhong et al., "MQuAKE" (MeLLo, EMNLP 2023), finds it. Neither of them is more
than that here: there are no demonstrations of other edits, and no question is taken apart into others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnrepair.domains.language.prompts import Prompts
from nnrepair.errors import InvalidInput
from nnrepair.methods.base import Capabilities, Proposal
from nnrepair.rounding import counted
from nnrepair.spec.criteria import Argmax
from nnrepair.spec.network import copied
from nnrepair.spec.problem import Problem
from nnrepair.spec.scores import LOGITS, part
from nnrepair.wrappers.base import Wrapper

#: The weight of a word that all texts to keep have.
SMALL = 1e-3


class Told(Wrapper):
    """A language model that reads facts before every text.

    Scores are those of the text's own tokens. Texts begin with one token, which facts come after.

    Args:
        base: takes token numbers (n, tokens) and returns scores (n, tokens, words), or `logits`.
        facts: (k, length) integers, the tokens of each fact, filled up with -1.
        weights: (k, words) how much every word of each fact says about what the fact is about; without entries, (k, 0),
            all facts are read before every text, otherwise the one alone whose words are most in the text.
        least: the share of a fact's weight that a text must have, below which it is read as it is.
    """

    carries: ClassVar[str] = "the facts that the network reads before every text"
    exports: ClassVar[bool] = False
    facts: Tensor
    weights: Tensor

    def __init__(self, base: nn.Module, facts: Tensor, weights: Tensor, least: float = 0.5) -> None:
        super().__init__(base)
        if facts.ndim != 2 or facts.dtype != torch.int64 or weights.ndim != 2 or len(weights) != len(facts):
            raise InvalidInput(
                f"Told() needs facts (k, length), int64, and weights (k, words), given {tuple(facts.shape)}, "
                f"{facts.dtype} and {tuple(weights.shape)}."
            )
        self.register_buffer("facts", facts.clone())
        self.register_buffer("weights", weights.clone())
        self.least = float(least)

    @property
    def settings(self) -> dict[str, Any]:
        return {"least": self.least}

    @classmethod
    def around(cls, base: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Told:
        return cls(base, tensors["facts"], tensors["weights"], settings["least"])

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return (n, tokens, words) the scores of every next word."""
        y = self._scores(input_ids)
        if self.weights.shape[1] == 0:
            every = self.facts[self.facts >= 0]
            return self._after(every, input_ids) if len(every) else y
        chosen = self.chosen(input_ids)
        for k in torch.unique(chosen[chosen >= 0]).tolist():
            mine = torch.nonzero(chosen == k).flatten()
            y = y.index_copy(0, mine, self._after(self.facts[k][self.facts[k] >= 0], input_ids[mine]))
        return y

    def chosen(self, input_ids: Tensor) -> Tensor:
        """Return (n,) the fact that each text is about, -1 where it is about none."""
        words = self.weights.shape[1]
        there = torch.zeros(len(input_ids), words, dtype=self.weights.dtype, device=input_ids.device)
        there.scatter_(1, input_ids.clamp(0, words - 1), 1.0)
        share = there @ self.weights.T / self.weights.sum(1).clamp(min=1e-30)
        best, fact = share.max(1)
        return torch.where(best >= self.least, fact, -1)

    def _after(self, told: Tensor, ids: Tensor) -> Tensor:
        """Return the scores of texts that are read after some tokens."""
        both = torch.cat([ids[:, :1], told.expand(len(ids), -1), ids[:, 1:]], 1)
        y = self._scores(both)
        return torch.cat([y[:, :1], y[:, 1 + len(told) :]], 1)

    def _scores(self, ids: Tensor) -> Tensor:
        y = self.base(ids)
        scores: Tensor = y if isinstance(y, Tensor) else part(y, LOGITS)
        return scores


@dataclass(frozen=True)
class InContext:
    """Tell the network what has changed before every question; its weights stay as they are.

    Args:
        retrieve: whether the edit that a question is about is told alone, and none where it is about none of them;
            False tells all of them every time.
        before, after: token numbers that come before and after each fact, such as those of "suppose that" and of ".".
        least: with `retrieve`, the share of an edit's words, weighted by how rare they are among the points to keep,
            that a question must have.
    """

    retrieve: bool = True
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    least: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise InvalidInput(f"least is a share, above 0 and at most 1, got {self.least!r}.")
        object.__setattr__(self, "before", tuple(self.before))
        object.__setattr__(self, "after", tuple(self.after))

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("memory", False, "wrapped", not self.retrieve, True, True, regions=False)

    def repair(self, problem: Problem) -> Proposal:
        """Propose the network that reads the edits first."""
        given, criterion = problem.edits.inputs, problem.edits.criterion
        if not isinstance(given, Prompts) or type(criterion) is not Argmax:
            raise InvalidInput(
                "InContext tells a language model what it should answer: give edits as Prompts with the numbers of the "
                "answers' tokens, as nnrepair.domains.language.asked() makes them."
            )
        base, known = problem.model, dict[tuple[int, ...], Tensor]()
        if isinstance(base, Told):
            rows = zip(base.facts, base.weights, strict=True)
            base, known = base.base, {tuple(fact[fact >= 0].tolist()): weight for fact, weight in rows}
        seen, words = self._seen(problem), self._words(problem)
        for k in range(len(given)):
            question, answer = self._fact(given, criterion, k)
            known[(*self.before, *question, *answer, *self.after)] = self._weights(question, seen, words)
        longest = max(map(len, known))
        facts = torch.tensor([[*fact, *[-1] * (longest - len(fact))] for fact in known])
        width = max(map(len, known.values()))
        weights = torch.stack([nn.functional.pad(weight, (0, width - len(weight))) for weight in known.values()])
        made = Told(copied(base), facts, weights, self.least).to(given.ids.device)
        return Proposal(
            made.eval(),
            {"facts": len(known)},
            [f"{counted(len(known), 'fact is', 'facts are')} told."],
            advice="another method",
        )

    def _fact(self, given: Prompts, criterion: Argmax, k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens of an edit's question, without that which texts begin with, and those of its answer."""
        end = int(given.at[k].reshape(-1)[0]) + 1
        labels = criterion.labels[k].reshape(-1)
        return tuple(given.ids[k, 1:end].tolist()), tuple(labels[labels != criterion.ignore].tolist())

    def _seen(self, problem: Problem) -> list[set[int]]:
        """Return the tokens of the texts to keep."""
        kept = None if problem.locality is None else problem.locality.inputs
        return [set(ids.tolist()) for ids in kept.ids] if isinstance(kept, Prompts) else []

    def _words(self, problem: Problem) -> int:
        """Return how many words a weight is kept for: none where all facts are told every time."""
        return problem.answers.shape[-1] if self.retrieve else 0

    def _weights(self, question: Sequence[int], seen: Sequence[set[int]], words: int) -> Tensor:
        """Return (words,): of the question's words, how rare each is among texts that it is not about."""
        weights = torch.zeros(words)
        for token in set(question) if words else ():
            often = sum(token in text for text in seen)
            weights[token] = math.log((1 + len(seen)) / (1 + often)) ** 2 + SMALL  # names count, relations hardly
        return weights
