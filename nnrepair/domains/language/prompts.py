"""Prompts as inputs of a language model, edits of it, and what it says when it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nnrepair.domains.language.knowledge import Statement
from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.spec.criteria import Argmax
from nnrepair.spec.edits import EditScope
from nnrepair.spec.inputs import Inputs
from nnrepair.spec.scores import LOGITS, part

#: The label of positions that nothing is asked of.
FREE = -100
#: Prompts that run together when nothing but the outputs is needed.
BATCH = 256


class Tokenizer(Protocol):
    """What makes numbers of texts: `Words`, or a tokenizer of transformers."""

    def encode(self, text: str, /) -> list[int]:
        """Return the numbers of a text's tokens."""


@dataclass(frozen=True, eq=False)
class Prompts(Inputs):
    """Beginnings of texts, and the positions whose next tokens are asked for.

    A network is called with `ids` alone, and returns scores (n, length, tokens), itself or in `logits`, as models of
    transformers do. Texts are filled up behind their end, where a decoder does not look, so that there is no mask.

    >>> ids = torch.tensor([[1, 5, 0], [1, 5, 6]])
    >>> Prompts(ids, torch.tensor([1, 2])).call(nn.Embedding(7, 4)).shape
    torch.Size([2, 4])

    Args:
        ids: (n, length) integers.
        at: (n,) the position of every prompt's last token, for outputs (n, tokens); or (n, k) the k positions that the
            tokens of answers follow, for outputs (n, k, tokens).
        subject: (n,) the position of the last token of what the text is about, which methods that locate facts ask
            for; None where it is not known.
    """

    ids: Tensor
    at: Tensor
    subject: Tensor | None = None
    batch: int = BATCH

    @property
    def positions(self) -> bool:  # type: ignore[override]  # the same for all of them
        return True

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.dtype.is_floating_point:
            raise InvalidInput(f"ids must be integers (n, length), given {tuple(self.ids.shape)}, {self.ids.dtype}.")
        for name, value in (("at", self.at), ("subject", self.subject)):
            if value is None:
                continue
            shape, dims = tuple(value.shape), (1, 2) if name == "at" else (1,)
            if value.ndim not in dims or len(value) != len(self.ids) or value.dtype.is_floating_point:
                raise InvalidInput(
                    f"{name} must be integers, one row for each of {len(self.ids)} texts, given {shape}."
                )
            if value.numel() and not 0 <= int(value.min()) <= int(value.max()) < self.ids.shape[1]:
                raise InvalidInput(f"{name} must be positions 0..{self.ids.shape[1] - 1} of the texts' tokens.")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor) -> Prompts:
        index = index.to(self.ids.device)
        return self._with(*(None if part is None else part[index] for part in (self.ids, self.at, self.subject)))

    def to(self, like: Tensor) -> Prompts:
        """Return the same on another device; the tokens' numbers stay integers."""
        moved = (None if part is None else part.to(like.device) for part in (self.ids, self.at, self.subject))
        return self._with(*moved)

    def call(self, model: nn.Module) -> Tensor:
        y = model(self.ids)
        scores = y if isinstance(y, Tensor) else part(y, LOGITS)
        if not isinstance(scores, Tensor) or scores.shape[:2] != self.ids.shape:
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise UnsupportedModel(
                f"A language model returns scores (texts, tokens, words) for token numbers {tuple(self.ids.shape)}; "
                f"this one returned {shape}."
            )
        each = torch.arange(len(self), device=scores.device)
        return scores[each if self.at.ndim == 1 else each[:, None], self.at]

    def same(self) -> Tensor:
        """Return (n, length + k): tokens and the positions that are asked for."""
        return torch.cat([self.ids, self.at.reshape(len(self), -1)], 1)

    def about(self) -> Prompts:
        """Return the same texts, with the position of the subject asked for in place of the answer's.

        Raises:
            InvalidInput: the subjects are not known.
        """
        if self.subject is None:
            raise InvalidInput(
                "This method changes what a network knows of a subject, and these prompts do not say where theirs "
                "ends: give Prompts(ids, at, subject)."
            )
        return self._with(self.ids, self.subject, self.subject)

    def filled(self) -> Tensor:
        """Return (n, length) bool: the tokens of the texts, up to the last position that is asked for."""
        last = self.at.reshape(len(self), -1).amax(1)
        return torch.arange(self.ids.shape[1], device=self.ids.device) <= last[:, None]

    def joined(self, other: Any) -> Prompts | None:
        """Return these prompts and then the other's, where they are as long and ask for as many tokens."""
        if not isinstance(other, Prompts) or self.ids.shape[1:] != other.ids.shape[1:]:
            return None
        if self.at.shape[1:] != other.at.shape[1:]:
            return None
        known = self.subject is not None and other.subject is not None
        subject = torch.cat([self.subject, other.subject]) if known else None  # type: ignore[list-item]  # both are
        return Prompts(torch.cat([self.ids, other.ids]), torch.cat([self.at, other.at]), subject, self.batch)

    def _with(self, ids: Tensor | None, at: Tensor | None, subject: Tensor | None) -> Prompts:
        assert ids is not None
        assert at is not None
        return Prompts(ids, at, subject, self.batch)


def asked(
    tokenizer: Tokenizer, statements: Sequence[Statement], length: int | None = None, tokens: int | None = None
) -> tuple[Prompts, Argmax]:
    """Return statements as prompts, and that each goes on with its object: the pair that `Edits(*pair)` takes.

    Objects of several tokens are teacher forced: each of their tokens must be the likeliest after those before it.

    Args:
        tokenizer: makes numbers of texts; a prompt's tokens must be the beginning of the whole text's.
        statements: see `Statement`.
        length: tokens of the texts, filled up; as many as the longest needs by default.
        tokens: of the objects. With 1 outputs are (n, words), otherwise (n, tokens, words), of which those behind
            shorter objects are free. As many as the longest object has by default.

    Raises:
        InvalidInput: no statements, or some longer than they may be, or whose subject is not found in them.
    """
    if not statements:
        raise InvalidInput("There are no statements; give at least one.")
    found = [_tokens(tokenizer, one) for one in statements]
    most = max(len(answer) for _, answer, _ in found)
    longest = max(len(prompt) + len(answer) - 1 for prompt, answer, _ in found)
    tokens, length = tokens or most, length or longest
    if most > tokens or longest > length:
        raise InvalidInput(
            f"The longest object has {most} tokens, the longest text {longest}; {tokens} and {length} were allowed. "
            "Leave tokens and length out, or raise them."
        )
    ids = torch.zeros(len(found), length, dtype=torch.int64)
    at, labels = torch.zeros(len(found), tokens, dtype=torch.int64), torch.full((len(found), tokens), FREE)
    for k, (prompt, answer, _) in enumerate(found):
        text = torch.tensor(prompt + answer[:-1])
        ids[k, : len(text)] = text
        at[k, : len(answer)] = len(prompt) - 1 + torch.arange(len(answer))
        labels[k, : len(answer)] = torch.tensor(answer)
    subject = torch.tensor([place for _, _, place in found])
    if tokens == 1:
        return Prompts(ids, at[:, 0], subject), Argmax(labels[:, 0])
    return Prompts(ids, at, subject), Argmax(labels, axis=-1, ignore=FREE)


def _tokens(tokenizer: Tokenizer, statement: Statement) -> tuple[list[int], list[int], int]:
    """Return the tokens of the prompt and of the object, and where the subject ends."""
    prompt = tokenizer.encode(statement.prompt)
    whole = tokenizer.encode(f"{statement.prompt} {statement.object}")
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise InvalidInput(
            f"The tokens of {statement.prompt!r} are not the beginning of those with {statement.object!r}; end the "
            "prompt where a token ends."
        )
    place = statement.prompt.find(statement.subject)
    if place < 0 or not statement.subject:
        raise InvalidInput(f"The subject {statement.subject!r} is not in {statement.prompt!r}.")
    upto = tokenizer.encode(statement.prompt[: place + len(statement.subject)])
    if prompt[: len(upto)] != upto:
        raise InvalidInput(f"No token ends where the subject {statement.subject!r} does in {statement.prompt!r}.")
    return prompt, whole[len(prompt) :], len(upto) - 1


@torch.no_grad()
def generated(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    count: int,
    generator: torch.Generator | None = None,
    top: int = 5,
    length: int | None = None,
) -> list[list[int]]:
    """Return how a language model goes on, all prompts together: their next `count` tokens.

    Args:
        model: in eval mode.
        prompts: token numbers of each, at least one.
        count: how many tokens.
        generator: draws each token among the `top` likeliest; None takes the likeliest one.
        top: see there.
        length: the network's longest text: of longer ones it sees the end alone.

    Raises:
        InvalidInput: an empty prompt, or no tokens asked for.
    """
    if count < 1 or top < 1 or not prompts or not all(len(prompt) for prompt in prompts):
        raise InvalidInput("Give prompts of at least one token each, and count and top of at least 1.")
    texts = [list(prompt) for prompt in prompts]
    like = next(model.parameters())
    for _ in range(count):
        seen = [text if length is None else text[-length:] for text in texts]
        longest = max(map(len, seen))
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in seen], device=like.device)
        at = torch.tensor([len(text) - 1 for text in seen], device=like.device)
        y = Prompts(ids, at).call(model).double().cpu()
        if generator is None:
            chosen = y.argmax(1)
        else:
            best, tokens = y.topk(min(top, y.shape[1]), 1)
            chosen = tokens.gather(1, torch.multinomial(best.softmax(1), 1, generator=generator))[:, 0]
        for text, token in zip(texts, chosen.tolist(), strict=True):
            text.append(token)
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def contexts(
    model: nn.Module,
    prompts: Prompts,
    criterion: Argmax,
    lengths: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8),
    seed: int = 0,
    begin: int = 1,
) -> EditScope:
    """Return prompts behind texts that the model writes by itself, as neighbours of edits: `Edits(neighbours=...)`.

    After Meng et al. (2022): what a layer is applied to at a subject depends on where it stands and what stands before
    it, and the mean over several such places is what paraphrases have in common.

    Args:
        model: writes the texts, from the beginning of its texts on.
        prompts, criterion: the edits.
        lengths: of the texts, in tokens; one context of every edit for each.
        seed: of the writing.
        begin: how many tokens every prompt begins with that stay at the beginning.

    Raises:
        InvalidInput: prompts of which no token stays at the beginning.
    """
    if begin < 1 or not lengths or min(lengths) < 1:
        raise InvalidInput("Contexts need at least one token at the beginning, and at least one length of at least 1.")
    generator = torch.Generator().manual_seed(seed)
    starts = [prompts.ids[k, :begin].tolist() for k in range(len(prompts)) for _ in lengths]
    texts = generated(model, starts, max(lengths), generator)
    longest = prompts.ids.shape[1] + max(lengths)
    ids = torch.zeros(len(texts), longest, dtype=torch.int64)
    of = torch.arange(len(prompts)).repeat_interleave(len(lengths))
    moved = torch.tensor(list(lengths)).repeat(len(prompts))
    for row, text, k, shift in zip(ids, texts, of.tolist(), moved.tolist(), strict=True):
        whole = [*prompts.ids[k, :begin].tolist(), *text[:shift], *prompts.ids[k, begin:].tolist()]
        row[: len(whole)] = torch.tensor(whole)
    at = prompts.at[of] + (moved if prompts.at.ndim == 1 else moved[:, None])
    subject = None if prompts.subject is None else prompts.subject[of] + moved
    return EditScope(Prompts(ids, at, subject), criterion[of], of=of)
