"""Recurrent layers, unrolled, and attention: torch's own functions, step by step on symbols."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nnrepair.verify.reading.builder import Builder, Unreadable
from nnrepair.verify.reading.symbols import Symbol, Table
from nnrepair.verify.reading.tensors.matrices import rows_times

#: The state of a cell: (h,), or (h, c) of an LSTM.
State = tuple[Any, ...]
#: Makes the next state of what the input and the state contribute to the gates, each (n, gates hidden).
Gates = Callable[[Any, Any, State], State]


def _lstm(x: Any, h: Any, state: State) -> State:
    enter, forget, new, out = (x + h).chunk(4, 1)
    cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(cell), cell


def _gru(x: Any, h: Any, state: State) -> State:
    (reset, update, new), (old_reset, old_update, old) = x.chunk(3, 1), h.chunk(3, 1)
    kept = torch.sigmoid(update + old_update)
    fresh = torch.tanh(new + torch.sigmoid(reset + old_reset) * old)
    return (fresh + kept * (state[0] - fresh),)


def _simple(function: Callable[..., Any]) -> Gates:
    return lambda x, h, state: (function(x + h),)


GATES: dict[str, Gates] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _simple(torch.tanh),
    "rnn_relu": _simple(torch.relu),
}


def _linear(b: Builder, x: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """Return x W^T + b along the last axis, for symbols and constants; constants in float64."""
    if isinstance(x, Symbol):
        return rows_times(b, x, weight, bias)
    made = x.double() @ weight.double().T
    return made if bias is None else made + bias.double()


def _layer(
    b: Builder, gates: Gates, steps: Sequence[Any], state: State, weights: Sequence[Any]
) -> tuple[list[Any], State]:
    """Return the outputs of one layer in one direction, and its last state."""
    w_input, w_state, b_input, b_state = (*weights, None, None)[:4]
    made = list[Any]()
    for step in steps:
        state = gates(_linear(b, step, w_input, b_input), _linear(b, state[0], w_state, b_state), state)
        made.append(state[0])
    return made, state


def _recurrent(name: str) -> Callable[..., Any]:
    """Return the reader of torch's function that runs all layers of a recurrent network."""
    gates = GATES[name]

    def read(
        b: Builder,
        x: Any,
        first: Any,
        weights: Any,
        has_biases: bool = True,
        layers: int = 1,
        dropout: float = 0.0,
        training: bool = False,
        bidirectional: bool = False,
        batch_first: bool = False,
    ) -> Any:
        if isinstance(has_biases, Tensor | list | tuple):
            raise Unreadable("its sequences are packed")
        if training and dropout:
            raise Unreadable("it is random in training mode: call model.eval()")
        states = first if name == "lstm" else (first,)
        each, directions = (4 if has_biases else 2), 2 if bidirectional else 1
        if len(weights) != each * layers * directions:
            raise Unreadable("it projects its state, which is not supported")
        steps, ends = list(x.unbind(1 if batch_first else 0)), list[State]()
        for layer in range(layers):
            results = []
            for k in range(layer * directions, (layer + 1) * directions):
                back = k % 2 == 1 and bidirectional
                begin = tuple(part[k] for part in states)
                made, end = _layer(b, gates, steps[::-1] if back else steps, begin, weights[k * each : (k + 1) * each])
                results.append(made[::-1] if back else made)
                ends.append(end)
            steps = results[0] if directions == 1 else [torch.cat(pair, 1) for pair in zip(*results, strict=True)]
        last = [torch.stack(parts) for parts in zip(*ends, strict=True)]
        return (torch.stack(steps, 1 if batch_first else 0), *last)

    return read


def _cell(name: str) -> Callable[..., Any]:
    """Return the reader of torch's function that runs one step."""
    gates = GATES[name]

    def read(
        b: Builder, x: Any, state: Any, w_input: Any, w_state: Any, b_input: Any = None, b_state: Any = None
    ) -> Any:
        state = tuple(state) if name == "lstm" else (state,)
        made = gates(_linear(b, x, w_input, b_input), _linear(b, state[0], w_state, b_state), state)
        return made if name == "lstm" else made[0]

    return read


def _dot_product(
    b: Builder,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Return softmax(query key^T / sqrt(size)) value; masks leave entries out."""
    if enable_gqa or dropout_p or (attn_mask is not None and not isinstance(attn_mask, Tensor)):
        raise Unreadable("with dropout, groups of queries, or a mask that depends on the input")
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * torch.tensor(factor, dtype=torch.float64)) @ key.transpose(-1, -2)
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if is_causal else attn_mask
    if mask is not None and (mask.dtype == torch.bool or bool(torch.isinf(mask).any())):
        raise Unreadable("it masks entries, which is not supported")
    return torch.softmax(scores if mask is None else scores + mask, -1) @ value


def _heads(
    b: Builder,
    query: Any,
    key: Any,
    value: Any,
    size: int,
    heads: int,
    in_weight: Any,
    in_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_weight: Tensor,
    out_bias: Any,
    **more: Any,
) -> Any:
    """Return what torch.nn.MultiheadAttention computes for (length, n, size)."""
    masks = more.get("key_padding_mask"), more.get("attn_mask")
    odd = bias_k is not None or bias_v is not None or add_zero_attn or more.get("static_k") is not None
    if odd or any(mask is not None for mask in masks) or more.get("is_causal") or in_weight is None:
        raise Unreadable("with masks, added keys, or weights that are kept apart")
    if more.get("training", True) and dropout_p:
        raise Unreadable("it is random in training mode: call model.eval()")
    biases = (None, None, None) if in_bias is None else in_bias.chunk(3)
    parts = zip((query, key, value), in_weight.chunk(3), biases, strict=True)
    length, n = query.shape[:2]
    projected = [
        _linear(b, x, w, bias).reshape(x.shape[0], x.shape[1], heads, size // heads).permute(1, 2, 0, 3)
        for x, w, bias in parts
    ]
    made = _dot_product(b, *projected)
    y = _linear(b, made.permute(2, 0, 1, 3).reshape(length, n, size), out_weight, out_bias)
    if not more.get("need_weights", True):
        return y, None
    raise Unreadable("it returns the weights of attention: pass need_weights=False")


RECURRENT: Table = {
    **{name: _recurrent(name) for name in GATES},
    **{f"{name}_cell": _cell(name) for name in GATES},
    "scaled_dot_product_attention": _dot_product,
    "multi_head_attention_forward": _heads,
}
