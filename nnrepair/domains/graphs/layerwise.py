"""A graph network on all nodes of a large graph: layer by layer, in blocks of nodes, with bounded memory.

One layer of all nodes is held at a time: (n, width) before and after, and once more where a layer's map comes before
its messages (whichever order sums fewer numbers is taken). For PyTorch Geometric's `GCN` and `GraphSAGE`, and what else
has the forward of its `BasicGNN` and is made of `GCNConv` and `SAGEConv`. Outputs equal the network's to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnrepair.domains.graphs.graph import _pyg, evaluating
from nnrepair.domains.graphs.large import Csr, LargeGraph, chunks
from nnrepair.errors import InvalidInput, UnsupportedModel

#: Target nodes per block.
BLOCK = 8192


@torch.no_grad()
def evaluate(model: nn.Module, data: Any, *, block: int = BLOCK, whole: bool = False) -> Tensor:
    """Return the outputs (n, classes) of all nodes of a graph.

    >>> from nnrepair.domains.graphs.graph import Graph, network
    >>> graph = Graph(torch.eye(3), torch.tensor([[0, 1], [1, 2]]), torch.tensor([0, 1, 1]))
    >>> evaluate(network("GCN", graph), graph).shape
    torch.Size([3, 2])

    Args:
        model: run in eval mode, whatever its mode is.
        data: a `LargeGraph`, `Graph` or `torch_geometric.data.Data`.
        block: nodes per block; temporary arrays have so many rows.
        whole: run a model that cannot be taken apart as it is, on the whole list of edges at once: that takes about
            4 bytes per edge and hidden unit.

    Raises:
        UnsupportedModel: all that is not understood in the model, unless `whole` is set.
    """
    graph = LargeGraph.of(data)
    try:
        layers = take_apart(model)
    except UnsupportedModel:
        if not whole:
            raise
        return _at_once(model, graph)
    h = graph.x
    for layer in layers:
        h = layer(graph.edges, h, _checked(block))
    return h


def _checked(block: int) -> int:
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        raise InvalidInput(f"block must be a positive number of nodes, got {block!r}.")
    return block


def _at_once(model: nn.Module, graph: LargeGraph) -> Tensor:
    like = next(model.parameters(), graph.x)
    with evaluating(model):
        y: Tensor = model(graph.x.to(like), graph.edge_index.to(like.device))
    return y


class Convolution:
    """What a graph convolution does: a linear map of keys, each a sum of messages (or the node's own state).

    Attributes:
        conv: PyTorch Geometric's module.
        weights: one matrix (out, in) per kind of key.
        bias: (out,) or None.
    """

    weights: list[Tensor]
    bias: Tensor | None

    def __init__(self, conv: Any) -> None:
        self.conv = conv

    @staticmethod
    def problems(conv: Any) -> list[str]:
        """Return what the convolution does that this class does not."""
        raise NotImplementedError

    def send(self, edges: Csr, h: Tensor, spare: bool) -> Tensor:
        """Return (n, d) what each node sends, given its state h (n, d), which may be overwritten if it is spare."""
        return h

    def receive(self, edges: Csr, sent: Tensor, targets: slice) -> Tensor:
        """Return (targets, d) what some nodes make of all that was sent."""
        raise NotImplementedError

    def linear(self, keys: list[Tensor]) -> Tensor:
        """Return the outputs (k, out) that keys stand for, each (k, in)."""
        y = F.linear(keys[0], self.weights[0], self.bias)
        for key, weight in zip(keys[1:], self.weights[1:], strict=True):
            y = y + F.linear(key, weight)
        return y

    def keys(self, edges: Csr, h: Tensor, block: int) -> list[Tensor]:
        """Return the keys of all nodes, each (n, in), given their states h (n, in), of which one key may be part."""
        sent = self.send(edges, h, spare=False)
        received = torch.empty_like(h)
        for part in chunks(len(h), block):
            received[part] = self.receive(edges, sent, part)
        return [received, h][: len(self.weights)]


class GCN(Convolution):
    """Sum of the neighbours' states, weighted by one over the root of both degrees; then a map."""

    def __init__(self, conv: Any) -> None:
        super().__init__(conv)
        self.weights, self.bias = [conv.lin.weight], conv.bias

    @staticmethod
    def problems(conv: Any) -> list[str]:
        found = [] if conv.aggr == "add" else [f"aggr={conv.aggr!r}"]
        return found + (["cached=True (it remembers the edges of one graph)"] if conv.cached else [])

    def send(self, edges: Csr, h: Tensor, spare: bool) -> Tensor:
        if not self.conv.normalize:
            return h
        scale = self._scale(edges, h)[:, None]
        return h.mul_(scale) if spare else h * scale

    def receive(self, edges: Csr, sent: Tensor, targets: slice) -> Tensor:
        y = edges.gather(sent, targets)
        if self.conv.add_self_loops:  # every node has exactly one in the end, however many there were
            y.addcmul_(sent[targets], (1 - edges.loops[targets])[:, None].to(sent))
        return y.mul_(self._scale(edges, sent)[targets, None]) if self.conv.normalize else y

    def _scale(self, edges: Csr, like: Tensor) -> Tensor:
        degrees = edges.degrees - edges.loops + 1 if self.conv.add_self_loops else edges.degrees
        scale = degrees.to(like).pow(-0.5)
        return scale.masked_fill_(degrees == 0, 0.0)


class SAGE(Convolution):
    """Mean (or sum) of the neighbours' states, then a map; and another map of the node's own state."""

    def __init__(self, conv: Any) -> None:
        super().__init__(conv)
        self.weights = [conv.lin_l.weight, *([conv.lin_r.weight] if conv.root_weight else [])]
        self.bias = conv.lin_l.bias

    @staticmethod
    def problems(conv: Any) -> list[str]:
        found = [] if conv.aggr in ("mean", "add", "sum") else [f"aggr={conv.aggr!r}"]
        found += ["project=True"] if conv.project else []
        return found + (["normalize=True"] if conv.normalize else [])

    def receive(self, edges: Csr, sent: Tensor, targets: slice) -> Tensor:
        return edges.gather(sent, targets, mean=self.conv.aggr == "mean")


@dataclass(frozen=True)
class Layer:
    """One layer of a network, and how to compute it for all nodes.

    Attributes:
        name: of its convolution in the network.
        convolution: what it does.
        after: what is applied to each node by itself afterwards.
    """

    name: str
    convolution: Convolution
    after: tuple[Any, ...]

    def __call__(self, edges: Csr, h: Tensor, block: int) -> Tensor:
        """Return the states (n, out) after this layer, given those before it (n, in)."""
        convolution = self.convolution
        first = convolution.weights[0]
        narrower = first.shape[0] < first.shape[1]
        if narrower:  # fewer numbers are summed when the map comes first
            sent = h.new_empty(len(h), first.shape[0], dtype=first.dtype)
            for part in chunks(len(h), block):
                sent[part] = F.linear(h[part].to(first.dtype), first)
        else:
            sent = h.to(first.dtype)
        sent = convolution.send(edges, sent, spare=sent is not h)
        out = h.new_empty(len(h), first.shape[0], dtype=first.dtype)
        for part in chunks(len(h), block):
            y = convolution.receive(edges, sent, part)
            if not narrower:
                y = F.linear(y, first)
            for own in convolution.weights[1:]:
                y += F.linear(h[part].to(first.dtype), own)
            if convolution.bias is not None:
                y += convolution.bias
            for step in self.after:
                y = step(y)
            out[part] = y
        return out


def take_apart(model: nn.Module) -> list[Layer]:
    """Return a network's layers.

    Raises:
        UnsupportedModel: all that is not understood in it.
    """
    with _pyg("Only PyTorch Geometric's networks can be run layer by layer"):
        from torch_geometric.nn import GCNConv, SAGEConv
        from torch_geometric.nn.models.basic_gnn import BasicGNN
    kinds: dict[type, type[Convolution]] = {GCNConv: GCN, SAGEConv: SAGE}
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(model, BasicGNN) or type(model).forward is not BasicGNN.forward:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be run layer by layer: only torch_geometric.nn.GCN and GraphSAGE (and what "
            "has their forward) can. To repair it, give fix the model itself and NodeEdits(data, ...). To run it on "
            "all edges at once, evaluate(..., whole=True): that takes about 4 bytes per edge and hidden unit."
        )
    problems = [] if model.jk_mode is None else [f"jk={model.jk_mode!r}"]
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            problems.append(f"{name or 'the model'}: forward hooks")
    for name, p in model.named_parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            problems.append(f"{name}: not initialised (run the model once)")
        elif p.device.type != "cpu":
            problems.append(f"{name}: on {p.device} (move the model to the CPU)")
    act = [] if model.act is None else [model.act]
    if act and not _pointwise(act[0]):
        problems.append(f"act={act[0]!r}")
    layers = []
    for i, (conv, norm) in enumerate(zip(model.convs, model.norms, strict=True)):
        name = f"convs.{i}"
        kind = kinds.get(type(conv))
        if kind is None:
            problems.append(f"{name}: {type(conv).__name__}")
            continue
        flow = [] if conv.flow == "source_to_target" else [f"flow={conv.flow!r}"]
        problems += [f"{name}: {problem}" for problem in kind.problems(conv) + flow]
        last = i == len(model.convs) - 1
        norms = [] if isinstance(norm, nn.Identity) else [_normalisation(norm)]
        if not last and norms == [None]:
            problems.append(f"norms.{i}: {norm!r} (looks at other nodes)")
        after = () if last else tuple(act + norms if model.act_first else norms + act)
        layers.append((name, kind, conv, after))
    if problems:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be run layer by layer, because of {'; '.join(problems)}. "
            "evaluate(..., whole=True) runs it on the whole list of edges at once, if that fits in memory."
        )
    return [Layer(name, kind(conv), after) for name, kind, conv, after in layers]


def _pointwise(act: Any) -> bool:
    """Whether an activation is one that treats every node by itself."""
    if isinstance(act, nn.Module):
        where = type(act).__module__ == "torch.nn.modules.activation"
        own = getattr(act, "dim", 1) in (1, -1)  # softmax over nodes is not
        return where and own and not isinstance(act, (nn.MultiheadAttention, nn.RReLU, nn.Softmax2d))
    return act in (torch.relu, F.relu, torch.tanh, torch.sigmoid, F.elu, F.leaky_relu, F.gelu, F.silu, F.selu)


def _normalisation(norm: Any) -> Any:
    """Return a function of (k, d) that normalises every node by itself, or None where other nodes have a say."""
    inner = getattr(norm, "module", norm)  # PyTorch Geometric wraps PyTorch's
    if isinstance(inner, nn.BatchNorm1d) and inner.running_mean is not None:
        return lambda h: F.batch_norm(h, inner.running_mean, inner.running_var, inner.weight, inner.bias, eps=inner.eps)
    if isinstance(inner, nn.LayerNorm) or (type(norm).__name__ == "LayerNorm" and norm.mode == "node"):
        return norm
    return None
