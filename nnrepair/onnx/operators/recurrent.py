"""LSTM, GRU and RNN as torch's layers: the order of their gates differs, and what they can be told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnrepair.onnx import modules as ops
from nnrepair.onnx.node import Node, Refused, Use
from nnrepair.onnx.operators.building import Handler, Made, filled

#: Gates in the order of ONNX and in torch's: input, output, forget, cell; update, reset, hidden.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _recurrent(node: Node) -> Made:
    kind, direction = node.op, node.text("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise Refused(f"direction={direction} is not known")
    directions = 2 if direction == "bidirectional" else 1
    weights, recurrent = node.weight(1), node.weight(2)
    hidden = recurrent.shape[-1]
    gates = len(_ORDER[kind])
    if weights.shape[:2] != (directions, gates * hidden) or recurrent.shape[:2] != (directions, gates * hidden):
        raise Refused(f"its weights have the shapes {tuple(weights.shape)} and {tuple(recurrent.shape)}")
    functions = [word.decode().capitalize() for word in node.get("activations", [])] or _USUAL[kind] * directions
    relu = kind == "RNN" and functions == ["Relu"] * directions
    if functions != _USUAL[kind] * directions and not relu:
        raise Refused(f"its activations are {', '.join(functions)}, expected {', '.join(_USUAL[kind])}")
    if "clip" in node.attributes or node.get("input_forget", 0) or node.has(7):
        raise Refused("clip, input_forget and peepholes are not supported")
    bias = node.weight(3) if node.has(3) else None
    if bias is not None and tuple(bias.shape) != (directions, 2 * gates * hidden):
        raise Refused(f"its bias has shape {tuple(bias.shape)}")
    first = bool(node.get("layout", 0))
    _check_lengths(node, first)
    states = [k for k in (5, 6) if node.has(k) and (k == 5 or kind == "LSTM")]
    if states == [6]:
        raise Refused("it has an initial cell, and no initial state")
    backward = direction == "reverse"
    if kind == "GRU" and not node.get("linear_before_reset", 0):
        bias = weights.new_zeros(directions, 6 * hidden) if bias is None else bias
        layer: nn.Module = ops.LinearBeforeReset(weights, recurrent, bias, backward, first)
        return Use(layer, [0, *states], several=True)
    made = _layer(kind, weights, recurrent, bias, relu)
    return Use(ops.Recurrent(made, backward, first, len(states)), [0, *states], several=True)


def _check_lengths(node: Node, points_first: bool) -> None:
    """Refuse sequences of different lengths."""
    if not node.has(4):
        return
    steps = node.shape()[1 if points_first else 0]
    if not node.fixed(4) or any(int(length) != steps for length in node.constant(4).ravel()):
        raise Refused("its sequences have lengths of their own")


def _layer(kind: str, weights: Tensor, recurrent: Tensor, bias: Tensor | None, relu: bool) -> nn.RNNBase:
    directions, _, features = weights.shape
    hidden = recurrent.shape[-1]
    options = {"bias": bias is not None, "bidirectional": directions == 2, "device": "meta"}
    if kind == "RNN":
        options["nonlinearity"] = "relu" if relu else "tanh"
    layer = getattr(nn, kind)(features, hidden, 1, **options)
    state: dict[str, Tensor] = {}
    for k in range(directions):
        end = "_reverse" if k else ""
        state[f"weight_ih_l0{end}"] = _ordered(weights[k], kind)
        state[f"weight_hh_l0{end}"] = _ordered(recurrent[k], kind)
        if bias is not None:
            half = bias.shape[1] // 2
            state[f"bias_ih_l0{end}"] = _ordered(bias[k, :half], kind)
            state[f"bias_hh_l0{end}"] = _ordered(bias[k, half:], kind)
    made = filled(layer, **state)
    assert isinstance(made, nn.RNNBase)
    made._init_flat_weights()
    return made


def _ordered(rows: Tensor, kind: str) -> Tensor:
    """Put the gates in torch's order."""
    order: Sequence[int] = _ORDER[kind]
    parts = rows.chunk(len(order))
    return torch.cat([parts[k] for k in order])


HANDLERS: dict[str, Handler] = dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent)
