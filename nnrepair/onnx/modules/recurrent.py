"""Recurrent layers as ONNX lays them out: sequences first, one result for each direction."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """Run torch's LSTM, GRU or RNN on sequences (steps, n, features).

    Returns what ONNX calls Y (steps, directions, n, hidden), Y_h and Y_c (directions, n, hidden), the last for LSTM.

    Attributes:
        layer: torch's layer, with sequences first.
        backward: whether the single direction runs from the end.
        points_first: whether inputs, results and states have the points first (the attribute `layout`).
        states: how many initial states follow the input.
    """

    def __init__(self, layer: nn.RNNBase, backward: bool, points_first: bool, states: int) -> None:
        super().__init__()
        self.layer = layer
        self.backward, self.points_first, self.states = backward, points_first, states

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        x = x.transpose(0, 1) if self.points_first else x
        x = x.flip(0) if self.backward else x
        steps, n = x.shape[:2]
        directions = 2 if self.layer.bidirectional else 1
        first = [self._state(state, n) for state in states]
        lstm = isinstance(self.layer, nn.LSTM)
        if not first:
            y, last = self.layer(x)
        elif lstm:
            zero = torch.zeros_like(first[0])
            y, last = self.layer(x, (first[0], first[1] if len(first) > 1 else zero))
        else:
            y, last = self.layer(x, first[0])
        y = y.flip(0) if self.backward else y
        y = y.reshape(steps, n, directions, -1).transpose(1, 2)
        ends = [*last] if lstm else [last]
        if self.points_first:
            return (y.permute(2, 0, 1, 3), *(end.transpose(0, 1) for end in ends))
        return (y, *ends)

    def _state(self, state: Tensor, n: int) -> Tensor:
        state = state.transpose(0, 1) if self.points_first else state
        return state.expand(-1, n, -1).contiguous()

    def extra_repr(self) -> str:
        return f"backward={self.backward}, points_first={self.points_first}, states={self.states}"


class LinearBeforeReset(nn.Module):
    """A GRU whose reset gate acts before the recurrent matrix (linear_before_reset=0), which torch does not have.

    Attributes:
        weight_ih: (directions, 3 hidden, features) update, reset and hidden gates.
        weight_hh: (directions, 3 hidden, hidden).
        bias: (directions, 6 hidden).
    """

    def __init__(self, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, backward: bool, points_first: bool) -> None:
        super().__init__()
        self.weight_ih, self.weight_hh, self.bias = (nn.Parameter(w) for w in (weight_ih, weight_hh, bias))
        self.backward, self.points_first = backward, points_first

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        x = x.transpose(0, 1) if self.points_first else x
        hidden, n = self.weight_hh.shape[-1], x.shape[1]
        results, ends = [], []
        for k in range(len(self.weight_ih)):
            turned = self.backward or k == 1
            if states:
                state = states[0].transpose(0, 1) if self.points_first else states[0]
                h = state[k].expand(n, hidden)
            else:
                h = x.new_zeros(n, hidden)
            outputs = []
            for step in (x.flip(0) if turned else x).unbind(0):
                h = self._step(step, h, k)
                outputs.append(h)
            y = torch.stack(outputs)
            results.append(y.flip(0) if turned else y)
            ends.append(h)
        y, end = torch.stack(results, 1), torch.stack(ends)
        return (y.permute(2, 0, 1, 3), end.transpose(0, 1)) if self.points_first else (y, end)

    def _step(self, x: Tensor, h: Tensor, k: int) -> Tensor:
        size = h.shape[1]
        wide, recurrent, bias = x @ self.weight_ih[k].T, self.weight_hh[k], self.bias[k]
        gates = wide[:, : 2 * size] + h @ recurrent[: 2 * size].T + bias[: 2 * size] + bias[3 * size : 5 * size]
        update, reset = torch.sigmoid(gates).chunk(2, 1)
        new = wide[:, 2 * size :] + (reset * h) @ recurrent[2 * size :].T + bias[2 * size : 3 * size] + bias[5 * size :]
        state: Tensor = (1 - update) * torch.tanh(new) + update * h
        return state
