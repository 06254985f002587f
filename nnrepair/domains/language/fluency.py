"""Whether a language model still writes as it did: the n-gram entropy of texts.

After Zhang et al., "Generating informative and diverse conversational responses via adversarial information
maximization" (NeurIPS 2018), as Meng et al., "Locating and editing factual associations in GPT" (NeurIPS 2022), use it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from nnrepair.domains.language.prompts import generated
from nnrepair.domains.language.words import Words

#: Tokens of a text whose fluency is measured, and texts of which the mean is taken.
TOKENS, TEXTS = 40, 10


def fluency(model: nn.Module, words: Words, starts: Sequence[str], seed: int = 0) -> float:
    """Return the mean n-gram entropy, in bits, of one text for each of some beginnings, drawn word by word.

    Args:
        model: in eval mode; texts are cut to what it takes.
        words: its tokenizer.
        starts: the beginnings.
        seed: of the drawing.
    """
    generator = torch.Generator().manual_seed(seed)
    texts = generated(model, [words.encode(start) for start in starts], TOKENS, generator)
    return sum(entropy(words.decode(text).split()) for text in texts) / len(texts)


def entropy(tokens: Sequence[object]) -> float:
    """Return the entropy of a text's pairs and triples of tokens, in bits: their mean with weights 2/3 and 4/3.

    >>> entropy("a b a b a b".split()) < entropy("a b c d e f".split())
    True
    """
    found = 0.0
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        grams = Counter(zip(*(tokens[k:] for k in range(n)), strict=False))
        count = sum(grams.values())
        found += weight * -sum(times / count * math.log2(times / count) for times in grams.values())
    return found / 2
