"""Networks that end in a convolution over many positions: only those of its channels that are in play are computed.

Behind its last convolution SqueezeNet rectifies and averages every channel alone, and has a thousand of them; what is
asked of a point is about its label and few other classes. Which operations work on each channel alone is known by name;
that the outputs are those of the network is tested on a few points, with other weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from nnrepair.jacobian.suffix import PROBES, ROUNDINGS, Values
from nnrepair.spec.inputs import AnyInputs, Arguments
from nnrepair.spec.running import call, call_with

#: Channels from which on it is worth while to leave some out.
MANY = 64
#: How many channels are computed in the test, and how far parameters are moved for it, relative to their size.
TRIED, MOVED = 5, 0.5

_MODULES = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh),
    *(nn.Identity, nn.Dropout, nn.Dropout2d, nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    nn.Flatten,
}
_FUNCTIONS = {
    *(F.relu, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, torch.sigmoid, torch.tanh),
    *(F.softplus, F.hardtanh, F.dropout, F.dropout2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    *(torch.flatten, torch.mean, torch.sum, torch.amax, torch.squeeze),
}
_METHODS = {"relu", "relu_", "sigmoid", "tanh", "flatten", "mean", "sum", "amax", "squeeze", "contiguous"}


class Channels:
    """A network on some points, of whose outputs any are computed alone.

    Attributes:
        shape: of one point's outputs.
        count: how many outputs a point has.
    """

    def __init__(self, module: nn.Module, count: int) -> None:
        self._module, self.count, self.shape = module, count, torch.Size([count])

    @classmethod
    @torch.no_grad()
    def of(cls, module: nn.Module, names: Sequence[str], example: AnyInputs) -> Channels | None:
        """Return the network as one of chosen outputs, or None where it is not known to be made of channels.

        Args:
            module: in eval mode, left alone.
            names: of parameters that will change.
            example: points on which outputs are compared.
        """
        if not isinstance(example, (Tensor, Arguments, Values)) or len(example) == 0:
            return None
        try:
            made = _made(module)
            few = example[torch.arange(PROBES) % len(example)]
            moved = moved_a_little(module, names)
            y = call_with(module, moved, few)
            if made is None or y.ndim != 2 or y.shape[1] < MANY:
                return None
            found = cls(made, y.shape[1])
            return found if found._agrees(moved, few, y) else None
        except Exception:  # tracing raises what the user's forward raises
            return None

    def outputs(self, parameters: Mapping[str, Tensor], inputs: AnyInputs, chosen: Tensor) -> Tensor:
        """Return (n, c) the outputs `chosen`, (n, c) int64, of each point, with these parameters; differentiable."""
        return call(_Chosen(self._module, dict(parameters), chosen), inputs)

    def _agrees(self, parameters: Mapping[str, Tensor], few: AnyInputs, y: Tensor) -> bool:
        """Whether chosen outputs are those of the network, y (n, outputs)."""
        unit = torch.finfo(y.dtype).eps * float(y.abs().max())
        for step in range(TRIED):
            start = torch.arange(len(few), device=y.device)[:, None] + step
            chosen = (start + torch.arange(2 + step, device=y.device) * (self.count // TRIED)) % self.count
            found = self.outputs(parameters, few, chosen)
            if found.shape != chosen.shape or not (found - y.gather(1, chosen)).abs().max() <= ROUNDINGS * unit:
                return False
        return True


class _Chosen(nn.Module):
    def __init__(self, module: nn.Module, parameters: dict[str, Tensor], chosen: Tensor) -> None:
        super().__init__()
        self.__dict__["parts"] = module, parameters, chosen  # not registered: it owns nothing

    def forward(self, *args: Any, **keywords: Any) -> Any:
        module, parameters, chosen = self.__dict__["parts"]
        return torch.func.functional_call(module, parameters, args, {**keywords, "chosen_outputs": chosen})


def moved_a_little(module: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return other values of some parameters, at which two ways of computing outputs are compared."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {n: parameters[n] * (1 + MOVED * torch.cos(_count(parameters[n]))) for n in names}


def _count(like: Tensor) -> Tensor:
    return torch.arange(like.numel(), dtype=like.dtype, device=like.device).reshape(like.shape)


def _made(module: nn.Module) -> nn.Module | None:
    """Return a network that takes `chosen_outputs` too, and computes no others; None without a last convolution."""
    traced = module.graph if isinstance(module, torch.fx.GraphModule) else torch.fx.Tracer().trace(module)
    graph = copy.deepcopy(traced)
    (last,) = (node for node in graph.nodes if node.op == "output")
    node = last.args[0]
    while isinstance(node, torch.fx.Node) and len(node.users) == 1 and _alone(module, node):
        node = node.args[0] if node.args else None
    layer = module.get_submodule(str(node.target)) if isinstance(node, torch.fx.Node) and _called(node) else None
    if type(layer) is not nn.Conv2d or layer.groups != 1 or len(node.users) != 1:
        return None
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or _hooked(layer):
        return None
    with graph.inserting_before(next(iter(graph.nodes))):
        chosen = graph.placeholder("chosen_outputs", default_value=None)
    first, *others = (other for other in graph.nodes if other.op == "placeholder" and other is not chosen)
    (others[-1] if others else first).append(chosen)
    with graph.inserting_before(node):
        weight = graph.get_attr(f"{node.target}.weight")
        bias = None if layer.bias is None else graph.get_attr(f"{node.target}.bias")
        given = (node.args[0], weight, bias, chosen, layer.stride, layer.padding, layer.dilation)
        node.replace_all_uses_with(graph.call_function(_some, given))
    graph.erase_node(node)
    return torch.fx.GraphModule(module, graph)


def _alone(module: nn.Module, node: torch.fx.Node) -> bool:
    """Whether an operation works on each channel alone, and on nothing else that is computed."""
    if len(node.all_input_nodes) != 1:
        return False
    if _called(node):
        layer = module.get_submodule(str(node.target))
        return type(layer) in _MODULES and not layer.training and not _hooked(layer)
    return (node.op == "call_function" and node.target in _FUNCTIONS) or (
        node.op == "call_method" and node.target in _METHODS
    )


def _called(node: torch.fx.Node) -> bool:
    return node.op == "call_module"


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _some(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    chosen: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Return (n, c, height, width): of a convolution of x, the channels chosen (n, c) of each point."""
    kernel = weight.shape[2:]
    if (*kernel, *stride, *padding) == (1, 1, 1, 1, 0, 0):
        size, keys = list(x.shape[2:]), x.flatten(2)
    else:
        pairs = zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
        size = [(n + 2 * pad - gap * (k - 1) - 1) // step + 1 for n, k, step, pad, gap in pairs]
        keys = F.unfold(x, kernel, dilation, padding, stride)
    rows = weight.flatten(1).index_select(0, chosen.flatten()).reshape(*chosen.shape, -1)
    y = torch.bmm(rows, keys)
    y = y if bias is None else y + bias[chosen][:, :, None]
    return y.reshape(*chosen.shape, *size)
