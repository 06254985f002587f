"""Normalisation by stored statistics, or by those of each point."""

from __future__ import annotations

import torch
from torch import nn

from nnrepair.onnx import modules as ops
from nnrepair.onnx.node import Node, Refused
from nnrepair.onnx.operators.building import Handler, Made, filled, joined, single, spatial


def _batch_norm(node: Node) -> Made:
    if node.get("training_mode", 0) or len([name for name in node.outputs if name]) > 1:
        raise Refused("it is in training mode; export the model in eval mode")
    if not node.get("spatial", 1):
        raise Refused("spatial=0 has statistics for every number of a point, expected one for each channel")
    if not all(node.fixed(index) for index in range(1, 5)):
        return joined(node, ops.RuntimeNorm(node.get("epsilon", single(1e-5))))
    scale, shift, mean, var = (node.weight(index) for index in range(1, 5))
    momentum = round(1 - node.get("momentum", 0.9), 6)  # torch weighs the new value, ONNX the old one
    kind, batches = spatial("BatchNorm", max(node.axes() - 2, 1)), torch.tensor(0)
    layer = kind(len(scale), node.get("epsilon", single(1e-5)), momentum, device="meta")
    return filled(layer, weight=scale, bias=shift, running_mean=mean, running_var=var, num_batches_tracked=batches)


def _layer_norm(node: Node) -> Made:
    """Read LayerNormalization, and RMSNormalization, which does not subtract the mean."""
    centred = node.op == "LayerNormalization"
    if len([name for name in node.outputs[1:] if name]):
        raise Refused("its mean and deviation are read, expected its first output alone")
    if not node.fixed(1) or (node.has(2) and not node.fixed(2)):
        raise Refused("its weights depend on the input")
    axis, eps = node.axis(node.get("axis", -1)), node.get("epsilon", single(1e-5))
    weight, bias = node.weight(1), node.weight(2) if node.has(2) else None
    shape = node.shape()[axis:]
    if [*weight.shape] != shape or (bias is not None and [*bias.shape] != shape) or axis == 0:
        return ops.Normalized(axis, eps, centred, weight, bias)
    if not centred:
        return filled(nn.RMSNorm([*weight.shape], eps, device="meta"), weight=weight)
    layer = nn.LayerNorm([*weight.shape], eps, bias=bias is not None, device="meta")
    return filled(layer, weight=weight, bias=bias)


def _instance_norm(node: Node) -> Made:
    kind = spatial("InstanceNorm", node.axes() - 2)
    scale, shift = node.weight(1), node.weight(2)
    layer = kind(len(scale), node.get("epsilon", single(1e-5)), affine=True, device="meta")
    return filled(layer, weight=scale, bias=shift)


def _group_norm(node: Node) -> Made:
    groups, eps = node.get("num_groups", 1), node.get("epsilon", single(1e-5))
    channels = node.shape()[1]
    if channels is None or groups < 1 or channels % groups:
        raise Refused(f"its {channels} channels are not divided by num_groups={groups}")
    scale, shift = node.weight(1), node.weight(2)
    if len(scale) == channels:
        return filled(nn.GroupNorm(groups, channels, eps, device="meta"), weight=scale, bias=shift)
    if len(scale) != groups:
        raise Refused(f"it has {len(scale)} weights for {groups} groups of {channels} channels")
    return nn.Sequential(nn.GroupNorm(groups, channels, eps, affine=False), ops.GroupScale(scale, shift))


def _lp(node: Node) -> Made:
    return ops.LpNormalize(node.get("p", 2), node.axis(node.get("axis", -1)))


def _standardize(node: Node) -> Made:
    return ops.Standardize([node.axis(axis) for axis in node.get("axes", [0, 2, 3])])


HANDLERS: dict[str, Handler] = {
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LpNormalization": _lp,
    "MeanVarianceNormalization": _standardize,
}
