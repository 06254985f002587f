"""Edits of a graph network's last layer that cost the same for a thousand edges and for a hundred million.

What comes before the last layer's weights is frozen by such an edit, and so are the messages that it sums. Each node is
then one key, computed once, and the network is one linear map of it: an edit needs no pass over the graph, and its
effect on all nodes is one matrix product.

    network = cached(model, graph)
    edits, keep = NodeEdits(network, mistakes(network, network, val)), NodeLocality(network, train)
    result = nnrepair.fix(network, edits, keep, method=MinimalNorm(layer=network.layer, norm="drift"))
    repaired = network.restore(result.model)       # a graph network as before, with another last layer
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nnrepair.domains.graphs.checks import as_index
from nnrepair.domains.graphs.large import LargeGraph, chunks
from nnrepair.domains.graphs.layerwise import BLOCK, Convolution, Layer, _checked, take_apart
from nnrepair.domains.graphs.nodes import picked
from nnrepair.errors import InvalidInput
from nnrepair.jacobian.head import AffineHead, beside
from nnrepair.rounding import counted
from nnrepair.spec.hops import hops
from nnrepair.spec.inputs import Inputs
from nnrepair.spec.network import copied


@torch.no_grad()
def cached(model: nn.Module, data: Any, *, block: int = BLOCK) -> CachedNetwork:
    """Return a graph network as a function of node numbers, with all but its last layer computed.

    >>> from nnrepair.domains.graphs.graph import Graph, network
    >>> graph = Graph(torch.eye(3), torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 1, 1]))
    >>> cached(network("GCN", graph), graph)(torch.tensor([2, 0])).shape
    torch.Size([2, 2])

    Args:
        model: a network that `evaluate` understands; it is copied, so later changes of it do not show.
        data: a `LargeGraph`, `Graph` or `torch_geometric.data.Data`.
        block: nodes per block.

    Raises:
        UnsupportedModel: all that is not understood in the model.
    """
    graph = LargeGraph.of(data)
    model = copied(model).eval()
    *before, last = take_apart(model)
    h = graph.x
    for layer in before:
        h = layer(graph.edges, h, _checked(block))
    h = h.to(last.convolution.weights[0].dtype)
    return CachedNetwork(_Frozen(model, graph, last, last.convolution.keys(graph.edges, h, block)))


class _Frozen:
    """What no edit changes; copies of a network share it."""

    def __init__(self, model: nn.Module, graph: LargeGraph, last: Layer, keys: list[Tensor]) -> None:
        self.model, self.graph, self.last, self.keys = model, graph, last, keys

    @cached_property
    def logits(self) -> Tensor:
        """(n, classes) the outputs of all nodes before any edit."""
        return self.outputs(self.last.convolution)

    @torch.no_grad()
    def outputs(self, convolution: Convolution) -> Tensor:
        """Return (n, classes) what a last layer makes of all keys."""
        return torch.cat([self.some(convolution, part) for part in chunks(len(self.graph.x), BLOCK)])

    def some(self, convolution: Convolution, nodes: Tensor | slice) -> Tensor:
        """Return (k, classes) what a last layer makes of some nodes' keys."""
        return convolution.linear([key[nodes].to(convolution.weights[0].dtype) for key in self.keys])

    def __deepcopy__(self, memo: Any) -> _Frozen:
        return self

    def __reduce__(self) -> Any:
        raise InvalidInput(
            "A cached network holds a whole graph and is not written to files: save its patch, or the network that "
            "restore() returns."
        )


class CachedNetwork(nn.Module):
    """A graph network whose inputs are node numbers and whose parameters are its last layer's, under the same names.

    Called as `network(nodes)` with (k,) integers. Called as `network(x, nodes)`, by networks around it that look at the
    nodes' own features, it ignores these. Copies share the keys.

    Attributes:
        layer: the last layer's name.
    """

    def __init__(self, frozen: _Frozen) -> None:
        super().__init__()
        self.layer, self._frozen = frozen.last.name, frozen
        *path, name = self.layer.split(".")
        parent: nn.Module = self
        for step in path:  # so that parameters are called as they are in the whole network
            parent.add_module(step, nn.Module())
            parent = parent.get_submodule(step)
        parent.add_module(name, copy.deepcopy(frozen.model.get_submodule(self.layer)))
        self.eval()

    def __len__(self) -> int:
        return len(self.graph.x)

    @property
    def graph(self) -> LargeGraph:
        """The graph whose nodes these are."""
        return self._frozen.graph

    @property
    def keys(self) -> list[Tensor]:
        """What the last layer's maps are applied to, each (n, in): messages received and, in GraphSAGE, own states."""
        return self._frozen.keys

    def forward(self, *given: Tensor) -> Tensor:
        """Return the outputs (k, classes) of nodes (k,), the last argument."""
        return self._frozen.some(self._last, self._nodes(given[-1] if given else None))

    def keys_of(self, inputs: Any, names: Sequence[str]) -> Tensor | None:
        """Return (k, inp) what parameters, side by side, are applied to; None where one of them is not a map of keys.

        `MinimalNorm` would find the same by differentiating twice, which takes most of an edit's time.
        """
        if isinstance(inputs, CachedNodes):
            inputs.refuse_strangers(self)
            inputs = inputs.index
        nodes = self._nodes(inputs)
        known = dict(self.named_parameters())
        columns: list[Tensor | None] = []
        for name in names:
            parameter, last = known[name], self._last
            if parameter is last.bias:
                columns.append(None)
                continue
            mine = [key for key, weight in zip(self.keys, last.weights, strict=True) if weight is parameter]
            if not mine:
                return None
            columns.append(mine[0][nodes].to(parameter.dtype))
        return beside(columns, self._last.weights[0].new_empty(len(nodes), 0)).detach()

    def linear(self) -> tuple[LastLayer, Tensor]:
        """Return the last layer as an ordinary network of one linear layer, and the keys (n, in) of all nodes.

        Its repairs are repairs of this network, found on plain tensors, so that they come with certificates. What these
        prove holds for the keys as they were computed.

        >>> from nnrepair.domains.graphs.graph import Graph, network
        >>> graph = Graph(torch.eye(3), torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 1, 1]))
        >>> view = cached(network("GraphSAGE", graph), graph)
        >>> layer, keys = view.linear()
        >>> torch.allclose(layer(keys), view.logits, atol=1e-6)
        True
        """
        layer = LastLayer(self._frozen, self._last)
        return layer, torch.cat([key.to(layer.last.weight.dtype) for key in self.keys], 1)

    def restore(self, repaired: nn.Module | None = None) -> nn.Module:
        """Return the whole graph network with the last layer of a repaired copy, in eval mode.

        Args:
            repaired: this network after a repair, or a network around one, in which it is replaced, or the repaired
                layer of `linear`. None: this one.

        Raises:
            InvalidInput: `repaired` does not come from this network.
        """
        repaired = self if repaired is None else repaired
        if isinstance(repaired, (CachedNetwork, LastLayer)):
            return self._whole(repaired)
        if not any(isinstance(module, CachedNetwork) for module in repaired.modules()):
            raise InvalidInput(f"restore() takes a repaired copy of this network, got {type(repaired).__name__}.")
        around = copied(repaired)
        for name, module in list(around.named_modules()):
            if isinstance(module, CachedNetwork):
                around.set_submodule(name, self._whole(module))
        return around.eval()

    def nodes(self, index: Any) -> CachedNodes:
        """Return some nodes, (k,) numbers or a mask (n,), as inputs that know their own features."""
        return CachedNodes(self._frozen, as_index(index, len(self)))

    @property
    def logits(self) -> Tensor:
        """(n, classes) the outputs of all nodes before any edit."""
        return self._frozen.logits

    def outputs(self, repaired: CachedNetwork | None = None) -> Tensor:
        """Return (n, classes) the outputs of all nodes, of this network or of a repaired copy."""
        return self._frozen.outputs((self if repaired is None else repaired)._last)

    @property
    def _last(self) -> Convolution:
        return type(self._frozen.last.convolution)(self.get_submodule(self.layer))

    def _whole(self, repaired: CachedNetwork | LastLayer) -> nn.Module:
        if repaired._frozen is not self._frozen:
            raise InvalidInput(
                "This network was cached from another model or graph than the one that restore() was called on. Call "
                "restore() of the network that was repaired."
            )
        model = copy.deepcopy(self._frozen.model)
        layer = model.get_submodule(self.layer)
        if isinstance(repaired, CachedNetwork):
            layer.load_state_dict(repaired.get_submodule(self.layer).state_dict())
        else:
            repaired.write(type(self._frozen.last.convolution)(layer))
        return model

    def _nodes(self, nodes: Any) -> Tensor:
        integers = (torch.int64, torch.int32)
        if not isinstance(nodes, Tensor) or nodes.ndim != 1 or nodes.dtype not in integers:
            if isinstance(nodes, Tensor) and nodes.ndim == 2:
                raise InvalidInput(
                    "A cached network takes node numbers, not edges: take nodes from it, NodeEdits(network, ...), and "
                    "not from the graph."
                )
            given = f"{nodes.dtype} {tuple(nodes.shape)}" if isinstance(nodes, Tensor) else type(nodes).__name__
            raise InvalidInput(
                f"A cached network takes node numbers, (k,) integers, got {given}. Of a mask, give "
                "mask.nonzero().flatten()."
            )
        if len(nodes):
            low, high = (int(v) for v in torch.aminmax(nodes))
            if low < 0 or high >= len(self):
                wrong = low if low < 0 else high
                raise InvalidInput(f"Node {wrong} is outside the graph, which has nodes 0..{len(self) - 1}.")
        return nodes

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self._frozen.model).__name__}, {self.graph!r})"


class LastLayer(nn.Module):
    """A graph network's last layer as one linear map of keys (k, in), see `CachedNetwork.linear`.

    Attributes:
        last: the weights of all kinds of keys side by side, and the bias.
    """

    def __init__(self, frozen: _Frozen, convolution: Convolution) -> None:
        super().__init__()
        self._frozen = frozen
        weight, bias = torch.cat([w.detach() for w in convolution.weights], 1), convolution.bias
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            self.last = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
            self.last.weight.copy_(weight)
            if bias is not None:
                self.last.bias.copy_(bias)
        self.eval()

    def forward(self, keys: Tensor) -> Tensor:
        """Return the outputs (k, classes) of keys (k, in)."""
        y: Tensor = self.last(keys)
        return y

    @torch.no_grad()
    def write(self, convolution: Convolution) -> None:
        """Give a convolution these weights."""
        weights = {str(k): weight for k, weight in enumerate(convolution.weights)}
        for name, values in AffineHead.of(weights).apart(self.last.weight).items():
            weights[name].copy_(values)
        if convolution.bias is not None:
            convolution.bias.copy_(self.last.bias)


@dataclass(frozen=True, eq=False)
class CachedNodes(Inputs):
    """Nodes as inputs of a cached network, or of a network around it that also looks at each node's own features.

    A network that adds something to frozen outputs (an MLP of the own features) needs nothing else of the graph.

    Args:
        cache: the graph and all that was computed of it, shared, never copied.
        index: (k,) int64, the nodes meant; `CachedNetwork.nodes` makes these from a mask, too, and checks them.
    """

    cache: _Frozen
    index: Tensor

    independent = True

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> CachedNodes:
        return CachedNodes(self.cache, picked(self.index, index))

    def to(self, like: Tensor) -> CachedNodes:
        """Return the same nodes: features are converted where they are looked at, so that all share one array."""
        return self

    def call(self, model: nn.Module) -> Tensor:
        """Return the outputs of these nodes."""
        self.refuse_strangers(model)
        own = self.own()
        dtype = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), own.dtype)
        y: Tensor = model(own.to(dtype), self.index)
        return y

    def refuse_strangers(self, model: nn.Module) -> None:
        """Refuse a network that was cached from another graph or model than these nodes were."""
        cached = [module for module in model.modules() if isinstance(module, CachedNetwork)]
        if not cached:
            raise InvalidInput(
                f"These nodes belong to a cached network, and the model is none: {type(model).__name__}. Repair that "
                "network, or take nodes from the graph: NodeEdits(data, ...)."
            )
        for module in cached:
            if module._frozen is not self.cache:
                raise InvalidInput(
                    "These nodes belong to a network that was cached from another graph or model. Take them from the "
                    "network that is repaired: network.nodes(...), or NodeEdits(network, ...)."
                )

    def own(self) -> Tensor:
        """Return (k, features) the features of these nodes, without their neighbours'."""
        return self.cache.graph.x[self.index]

    def same(self) -> Tensor:
        """Return (k,) what is equal for two points where they are the same node."""
        return self.index

    def hops(self, others: Any, most: int) -> Tensor | None:
        """Return (len(others),) along how many edges other nodes are from the nearest of these, see `Inputs.hops`."""
        if not isinstance(others, CachedNodes) or others.cache is not self.cache:
            return None
        graph = self.cache.graph
        return hops(graph.edge_index, len(graph.x), self.index, most)[others.index]

    def frozen(self) -> Tensor:
        """Return (k, classes) the outputs of these nodes before any edit."""
        return self.cache.logits[self.index]

    def joined(self, other: Any) -> CachedNodes | None:
        """Return these nodes followed by the other's; None when they are of different graphs."""
        if not isinstance(other, CachedNodes) or other.cache is not self.cache:
            return None
        return CachedNodes(self.cache, torch.cat([self.index, other.index]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {counted(len(self.cache.graph.x), 'node')})"
