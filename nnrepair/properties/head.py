"""The last linear map of a network: outputs are affine in its weights, whatever the layers before it do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnrepair.errors import UnsupportedModel
from nnrepair.jacobian.head import AffineHead, beside
from nnrepair.jacobian.layers import candidates, layers, moved, trainable
from nnrepair.verify.reading.affine import Dense
from nnrepair.verify.reading.graph import Graph, Node
from nnrepair.verify.reading.lowering import lower


@dataclass(frozen=True)
class Head:
    """A network seen as keys, which its hidden layers compute, times the weights of its last map.

    Attributes:
        model: the network.
        graph: the same as the checker reads it.
        shape: of one input.
        parameters: the last map's: its weight, and its bias if it has one.
        weight: (outputs, width) their values side by side, float64.
    """

    model: nn.Module
    graph: Graph
    shape: tuple[int, ...]
    parameters: AffineHead
    weight: Tensor

    @classmethod
    def of(cls, model: nn.Module, shape: tuple[int, ...]) -> Head:
        """Return the head of a model.

        Raises:
            UnsupportedModel: its last operation is not a linear layer with weights of its own.
        """
        graph = lower(model, shape)
        last, names = graph.nodes[-1], candidates(model)
        for layer in reversed(names):
            own = layers(model)[layer]
            if own != trainable(model, layer):
                continue
            values = {n: p.detach().double().cpu() for n, p in model.named_parameters() if n in own}
            weight, *bias = values.values()
            if not isinstance(last.affine, Dense) or not torch.equal(last.affine.weight.cpu(), weight):
                continue
            if torch.equal(last.affine.bias.cpu(), bias[0] if bias else torch.zeros_like(last.affine.bias)):
                parameters = AffineHead.of(values)
                head = cls(model, graph, shape, parameters, parameters.matrix(values))
                if head._is_alone():
                    return head
        raise UnsupportedModel(
            "Property repair changes the network's last operation, which must be a linear layer that is trainable as a "
            "whole and shares its weights with no other. The layers "
            f"are: {', '.join(names) or 'none'}. End the model with nn.Linear, or repair points with nnrepair.fix."
        )

    def _is_alone(self) -> bool:
        """Tell whether these parameters act as the last map and nowhere else: not so where weights are shared."""
        generator = torch.Generator().manual_seed(0)
        change = self.weight.abs().mean().clamp(min=1e-3) * torch.randn(
            self.weight.shape, generator=generator, dtype=torch.float64
        )
        model, hidden = self.moved(change), self.graph.nodes[self.source].size
        now = self.parameters.matrix({n: p.detach().double().cpu() for n, p in model.named_parameters()})
        again = lower(model, self.shape)
        last = again.nodes[-1].affine
        if not isinstance(last, Dense) or not torch.equal(last.weight, now[:, :hidden]):
            return False
        x = torch.randn(4, self.graph.inputs, generator=generator, dtype=torch.float64)
        return torch.equal(again.values(x)[again.nodes[-1].sources[0]], self.graph.values(x)[self.source])

    @property
    def names(self) -> tuple[str, ...]:
        """The last map's parameters."""
        return tuple(self.parameters.shapes)

    @property
    def source(self) -> int:
        """The node whose value the last map reads."""
        return self.graph.nodes[-1].sources[0]

    def keys(self, x: Tensor) -> Tensor:
        """Return (n, width), what the last weights are multiplied with, for inputs (n, inputs)."""
        return self.extended(self.graph.values(x)[self.source])

    def extended(self, hidden: Tensor) -> Tensor:
        """Return hidden values with a one at the end for the bias, if there is a bias."""
        return beside([hidden] + [None] * (len(self.names) - 1), hidden)

    def changed(self, change: Tensor) -> Graph:
        """Return the graph with `change` (outputs, width) added to the last weights."""
        weight, last = self.weight + change, self.graph.nodes[-1]
        hidden = self.graph.nodes[self.source].size
        bias = weight[:, hidden] if len(self.names) == 2 else None
        return Graph([*self.graph.nodes[:-1], Node(last.sources, last.size, Dense(weight[:, :hidden], bias))])

    def moved(self, change: Tensor) -> nn.Module:
        """Return a copy of the model, in its own precision, with `change` (outputs, width) added."""
        return moved(self.model, self.parameters.apart(change))
