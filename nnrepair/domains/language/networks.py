"""Two decoder-only transformers in plain torch, in the forms of GPT-2 and of Llama.

Parameters have the names, shapes and meaning of `GPT2LMHeadModel` and `LlamaForCausalLM` in transformers, so that state
dictionaries go from one to the other. After Radford et al., "Language models are unsupervised multitask learners"
(2019), and Touvron et al., "LLaMA" (2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnrepair.errors import InvalidInput


@dataclass(frozen=True)
class Size:
    """How large a transformer is.

    Attributes:
        words: of the vocabulary.
        width: of the vectors; a multiple of `heads`.
        layers, heads: how many.
        inner: units of every hidden layer.
        length: the longest text, in tokens.
        tied: whether the last map's matrix is that of the words' vectors.
    """

    words: int
    width: int = 96
    layers: int = 4
    heads: int = 4
    inner: int = 384
    length: int = 64
    tied: bool = True

    def __post_init__(self) -> None:
        if min(self.words, self.width, self.layers, self.heads, self.inner, self.length) < 1:
            raise InvalidInput(f"All sizes must be positive, given {self}.")
        if self.width % (2 * self.heads):
            raise InvalidInput(f"width must be a multiple of 2 * heads, given {self.width} and {self.heads} heads.")


class Conv1D(nn.Module):
    """An affine map whose weight is (inputs, outputs), the transpose of `nn.Linear`'s, as GPT-2 has it."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.02)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return y.reshape(*x.shape[:-1], y.shape[-1])


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return (n, tokens, width) of (n, tokens, heads, width / heads) each: every token looks at itself and before."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def _check(ids: Tensor, length: int) -> None:
    if ids.ndim != 2 or ids.dtype.is_floating_point or ids.shape[1] > length:
        raise InvalidInput(
            f"Token numbers must be integers (texts, tokens) of at most {length} tokens, given {tuple(ids.shape)}, "
            f"{ids.dtype}."
        )


class GPT2(nn.Module):
    """GPT-2: learned positions, layer norm before every part, maps of kind `Conv1D`.

    >>> GPT2(Size(10, 8, 1, 2, 16))(torch.zeros(3, 5, dtype=torch.int64)).shape
    torch.Size([3, 5, 10])

    Args:
        size: of all parts.
        seed: of the weights; the global random state stays as it was.
    """

    def __init__(self, size: Size, seed: int = 0) -> None:
        super().__init__()
        self.size = size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.transformer = _Blocks(size)
            self.lm_head = nn.Linear(size.width, size.words, bias=False)
            for module in (self.transformer.wte, self.transformer.wpe, self.lm_head):
                nn.init.normal_(module.weight, std=0.02)
        if size.tied:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return (texts, tokens, words) the scores of every next word, of (texts, tokens) integers."""
        _check(input_ids, self.size.length)
        scores: Tensor = self.lm_head(self.transformer(input_ids))
        return scores


class _Blocks(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(size.words, size.width), nn.Embedding(size.length, size.width)
        self.h = nn.ModuleList(_Block(size) for _ in range(size.layers))
        self.ln_f = nn.LayerNorm(size.width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        y: Tensor = self.ln_f(x)
        return y


class _Block(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.attn = _Attention(size)
        self.mlp = _MLP(size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class _Attention(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.c_attn, self.c_proj = Conv1D(3 * size.width, size.width), Conv1D(size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c_proj(_attention(*self.c_attn(x).unflatten(2, (3, self.heads, -1)).unbind(2)))
        return y


class _MLP(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(size.inner, size.width), Conv1D(size.width, size.inner)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return y


class Llama(nn.Module):
    """Llama: rotary positions, root-mean-square norm before every part, gated hidden layers, no biases.

    >>> Llama(Size(10, 8, 1, 2, 16))(torch.zeros(3, 5, dtype=torch.int64)).shape
    torch.Size([3, 5, 10])

    Args:
        size: of all parts.
        seed: of the weights; the global random state stays as it was.
    """

    def __init__(self, size: Size, seed: int = 0) -> None:
        super().__init__()
        self.size = size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = _Layers(size)
            self.lm_head = nn.Linear(size.width, size.words, bias=False)
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=0.02)
        if size.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return (texts, tokens, words) the scores of every next word, of (texts, tokens) integers."""
        _check(input_ids, self.size.length)
        scores: Tensor = self.lm_head(self.model(input_ids))
        return scores


class _Layers(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(size.words, size.width)
        self.layers = nn.ModuleList(_Layer(size) for _ in range(size.layers))
        self.norm, self.turned = _RMSNorm(size.width), size.width // size.heads

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        turns = _turns(ids.shape[1], self.turned, x)
        for layer in self.layers:
            x = layer(x, turns)
        y: Tensor = self.norm(x)
        return y


def _turns(tokens: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return (tokens, 1, width) cosines and sines of the angles by which positions turn pairs of numbers."""
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angles = torch.arange(tokens, device=like.device, dtype=torch.float32)[:, None] * rates
    both = torch.cat([angles, angles], 1)[:, None]
    return both.cos().to(like.dtype), both.sin().to(like.dtype)


class _Layer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = _RMSNorm(size.width), _RMSNorm(size.width)
        self.self_attn, self.mlp = _Rotary(size), _Gated(size)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turns)
        y: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return y


class _RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class _Rotary(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(size.width, size.width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (part(x).unflatten(2, (self.heads, -1)) for part in (self.q_proj, self.k_proj, self.v_proj))
        y: Tensor = self.o_proj(_attention(_turned(q, turns), _turned(k, turns), v))
        return y


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * turns[0] + torch.cat([-second, first], -1) * turns[1]


class _Gated(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(size.width, size.inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(size.inner, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


#: The forms by name.
FORMS: dict[str, type[GPT2] | type[Llama]] = {"gpt2": GPT2, "llama": Llama}
