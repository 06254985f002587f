"""Networks whose last layers work on each of many positions alone: only positions that are in play are computed.

A network that completes images decodes every pixel for itself, and what is asked of an image may be about few of its
pixels. That positions do not influence each other is not read off the network, but tested on a few points, with other
weights and other choices of positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from nnrepair.jacobian.channels import moved_a_little
from nnrepair.jacobian.suffix import PROBES, ROUNDINGS, Values
from nnrepair.spec.criteria import flat
from nnrepair.spec.inputs import AnyInputs, Arguments
from nnrepair.spec.running import call, call_with

#: Positions from which on it is worth while to leave some out.
MANY = 32
#: How many choices of positions are compared in the test.
TRIED = 3

#: Operations that put numbers elsewhere and compute nothing.
_FUNCTIONS = {torch.unflatten, torch.flatten, torch.transpose, torch.permute, torch.reshape, torch.movedim}
_METHODS = {"unflatten", "flatten", "transpose", "permute", "reshape", "view", "contiguous", "movedim"}
_MODULES = {nn.Flatten, nn.Unflatten}


class Positions:
    """A network on some points, of whose outputs those at any positions are computed alone.

    Args:
        body: what the network computes, (points, positions, numbers), before these are put in their places.
        place: (outputs,) which of a point's positions * numbers each output is.
        shape: of one point's outputs, and `body_shape`: (positions, numbers).

    Attributes:
        shape: of one point's outputs.
        count: how many outputs a point has.
    """

    def __init__(self, body: nn.Module, place: Tensor, shape: torch.Size, body_shape: torch.Size) -> None:
        self._body, self._positions, self._numbers = body, *body_shape
        self._at, self._number = place // self._numbers, place % self._numbers
        self.shape, self.count = shape, len(place)

    @classmethod
    @torch.no_grad()
    def of(cls, module: nn.Module, names: Sequence[str], example: AnyInputs) -> Positions | None:
        """Return the network as one of chosen positions, or None where it is not known to be one.

        Args:
            module: in eval mode, left alone.
            names: of parameters that will change.
            example: points on which outputs are compared.
        """
        if not isinstance(example, (Tensor, Arguments, Values)) or len(example) == 0:
            return None
        try:
            few = example[torch.arange(PROBES) % len(example)]
            moved = moved_a_little(module, names)
            y, (body, tail) = call_with(module, moved, few), _apart(module)
            before = call_with(body, moved, few)
            if before.ndim != 3 or before.shape[1] < MANY or len(y) != len(before) or y.numel() != before.numel():
                return None
            size = before[0].numel()
            index = torch.arange(before.numel(), dtype=torch.float64, device=y.device).reshape(before.shape)
            place = flat(tail(index)).long()
            if not torch.equal(place, place[0] + size * torch.arange(len(place), device=y.device)[:, None]):
                return None
            found = cls(body, place[0], y.shape[1:], before.shape[1:])
            return found if found._agrees(moved, few, flat(y)) else None
        except Exception:  # tracing, and parts that run on their own, raise what the user's forward raises
            return None

    def outputs(self, parameters: Mapping[str, Tensor], inputs: AnyInputs, chosen: Tensor) -> Tensor:
        """Return (n, c) the outputs `chosen`, (n, c) int64, of each point, with these parameters; differentiable."""
        wanted = chosen.new_zeros(len(chosen), self._positions).scatter(1, self._at[chosen], 1)
        most = int(wanted.sum(1).max())
        positions = wanted.topk(most, dim=1, sorted=False).indices
        rank = wanted.scatter(1, positions, torch.arange(most, device=chosen.device).expand(len(chosen), -1))
        y = call(_Chosen(self._body, dict(parameters), positions, self._positions), inputs).flatten(1)
        return y.gather(1, rank.gather(1, self._at[chosen]) * self._numbers + self._number[chosen])

    def _agrees(self, parameters: Mapping[str, Tensor], few: AnyInputs, y: Tensor) -> bool:
        """Whether chosen outputs are those of the network, y (n, outputs)."""
        unit = torch.finfo(y.dtype).eps * float(y.abs().max())
        for step in range(TRIED):
            start = 7 * step + torch.arange(len(few), device=y.device)[:, None]
            chosen = (start + torch.arange(2 + 3 * step, device=y.device) * (self.count // 13)) % self.count
            found = self.outputs(parameters, few, chosen)
            if found.shape != chosen.shape or not (found - y.gather(1, chosen)).abs().max() <= ROUNDINGS * unit:
                return False
        return True


class _Chosen(nn.Module):
    """A network on some positions of what it is given: of all tensors that have as many in their second dimension."""

    def __init__(self, module: nn.Module, parameters: dict[str, Tensor], positions: Tensor, many: int) -> None:
        super().__init__()
        self.__dict__["parts"] = module, parameters, positions, many  # not registered: it owns nothing

    def forward(self, *args: Any) -> Any:
        module, parameters, positions, many = self.__dict__["parts"]
        some = tuple(_some(x, positions) if x.ndim > 1 and x.shape[1] == many else x for x in args)
        return torch.func.functional_call(module, parameters, some)


def _some(x: Tensor, positions: Tensor) -> Tensor:
    """Return (n, k, ...) of x (n, positions, ...) the positions (n, k) of each point."""
    index = positions.reshape(*positions.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
    return x.gather(1, index)


def _apart(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return a network without the operations at its end that only put numbers elsewhere, and these."""
    traced = module.graph if isinstance(module, torch.fx.GraphModule) else torch.fx.Tracer().trace(module)
    (end,) = (node for node in traced.nodes if node.op == "output")
    moves: list[torch.fx.Node] = []
    node = end.args[0]
    while isinstance(node, torch.fx.Node) and len(node.users) == 1 and _moves(module, node):
        moves.append(node)
        node = node.all_input_nodes[0]
    assert isinstance(node, torch.fx.Node)
    body, tail = torch.fx.Graph(), torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for other in traced.nodes:
        if other is not end and other not in moves:
            copies[other] = body.node_copy(other, copies.__getitem__)
    body.output(copies[node])
    network = torch.fx.GraphModule(module, body)
    network.graph.eliminate_dead_code()  # what only other outputs needed
    network.recompile()
    copies = {node: tail.placeholder("computed")}
    for move in reversed(moves):
        copies[move] = tail.node_copy(move, copies.__getitem__)
    tail.output(copies[moves[0]] if moves else copies[node])
    return network, torch.fx.GraphModule(module, tail)


def _moves(module: nn.Module, node: torch.fx.Node) -> bool:
    """Whether an operation puts the numbers of one tensor elsewhere, and depends on nothing else."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))) in _MODULES
    known = node.target in _FUNCTIONS if node.op == "call_function" else node.target in _METHODS
    return node.op in ("call_function", "call_method") and known and len(node.all_input_nodes) == 1
