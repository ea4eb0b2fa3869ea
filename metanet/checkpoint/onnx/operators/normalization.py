"""Operators that normalise: batch, layer, group, instance, root mean square, local response."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator
from metanet.errors import CheckpointError


@operator("BatchNormalization", buffers=(3, 4))
def batch_norm(run: Any, node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    if node.attributes.get("training_mode", 0):
        raise CheckpointError(f"{node} is in training mode", hint="export the model in inference mode")
    epsilon = node.attributes.get("epsilon", 1e-5)
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


@operator("InstanceNormalization")
def instance_norm(run: Any, node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.group_norm(x, x.shape[1], scale, bias, node.attributes.get("epsilon", 1e-5))


@operator("GroupNormalization")
def group_norm(run: Any, node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups, epsilon = node.attributes["num_groups"], node.attributes.get("epsilon", 1e-5)
    if scale.shape[0] != x.shape[1]:
        # Opset 18 has one gain for each group, opset 21 one for each channel.
        scale, bias = (value.repeat_interleave(x.shape[1] // groups) for value in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, epsilon)


@operator("LayerNormalization")
def layer_norm(run: Any, node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
    axis = node.attributes.get("axis", -1) % x.ndim
    epsilon = node.attributes.get("epsilon", 1e-5)
    shape = list(x.shape[axis:])
    if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        y = functional.layer_norm(x, shape, scale, bias, epsilon)
    else:
        y = functional.layer_norm(x, shape, None, None, epsilon) * scale
        y = y if bias is None else y + bias
    if len(node.outputs) == 1:
        return y
    axes = list(range(axis, x.ndim))
    mean = x.mean(axes, keepdim=True)
    return y, mean, torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_norm(run: Any, node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axis = node.attributes.get("axis", -1) % x.ndim
    axes = list(range(axis, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + node.attributes.get("epsilon", 1e-5)) * scale


@operator("LRN")
def local_response(run: Any, node: Node, x: Tensor) -> Tensor:
    size = node.attributes["size"]
    alpha, beta = node.attributes.get("alpha", 1e-4), node.attributes.get("beta", 0.75)
    squares = functional.pad(x.square().movedim(1, -1), ((size - 1) // 2, math.ceil((size - 1) / 2)))
    total = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (node.attributes.get("bias", 1.0) + alpha / size * total) ** beta


@operator("LpNormalization")
def lp_norm(run: Any, node: Node, x: Tensor) -> Tensor:
    axis, p = node.attributes.get("axis", -1), node.attributes.get("p", 2)
    size = x.abs().sum(axis, keepdim=True) if p == 1 else x.square().sum(axis, keepdim=True).sqrt()
    return torch.where(size == 0, torch.zeros_like(x), x / size)


@operator("MeanVarianceNormalization")
def mean_variance(run: Any, node: Node, x: Tensor) -> Tensor:
    axes = node.attributes.get("axes") or [0, 2, 3]
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)
