"""Operators that sum over units: matrix products, convolutions, einsum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metanet.checkpoint.onnx.operators.pads import axis_pads, same_pads
from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator
from metanet.errors import CheckpointError

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@operator("MatMul")
def matmul(run: Any, node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm")
def gemm(run: Any, node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    if node.attributes.get("transA", 0):
        a = a.t()
    transposed = bool(node.attributes.get("transB", 0))
    if transposed and alpha == 1 and beta == 1 and (c is None or c.ndim == 1):
        return functional.linear(a, b, c)
    product = a @ (b.t() if transposed else b)
    product = product * alpha if alpha != 1 else product
    if c is None:
        return product
    return product + (c * beta if beta != 1 else c)


@operator("Einsum")
def einsum(run: Any, node: Node, *tensors: Tensor) -> Tensor:
    return torch.einsum(node.attributes["equation"].decode().replace(" ", ""), *tensors)


def _spatial(node: Node, x: Tensor, table: dict[int, Any]) -> int:
    rank = x.ndim - 2
    if rank not in table:
        raise CheckpointError(f"{node} has {rank} spatial axes, expected 1 to 3", hint="reshape its input")
    return rank


@operator("Conv")
def convolution(run: Any, node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = _spatial(node, x, CONVOLUTIONS)
    kernel = list(weight.shape[2:])
    strides = node.attributes.get("strides") or [1] * rank
    dilations = node.attributes.get("dilations") or [1] * rank
    begin, end = axis_pads(node, list(x.shape[2:]), kernel, strides, dilations)
    if begin != end:
        x = functional.pad(x, [side for pair in reversed(list(zip(begin, end, strict=True))) for side in pair])
        begin = [0] * rank
    group = node.attributes.get("group", 1)
    return CONVOLUTIONS[rank](x, weight, bias, strides, begin, dilations, group)


@operator("ConvTranspose")
def transposed_convolution(run: Any, node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = _spatial(node, x, TRANSPOSED)
    kernel = list(weight.shape[2:])
    strides = node.attributes.get("strides") or [1] * rank
    dilations = node.attributes.get("dilations") or [1] * rank
    extra = node.attributes.get("output_padding") or [0] * rank
    begin, end = ([0] * rank, [0] * rank)
    pads = node.attributes.get("pads")
    auto = node.attributes.get("auto_pad", b"NOTSET")
    whole = [
        (size - 1) * step + (k - 1) * d + 1 + more
        for size, step, k, d, more in zip(x.shape[2:], strides, kernel, dilations, extra, strict=True)
    ]
    if "output_shape" in node.attributes or auto in (b"SAME_UPPER", b"SAME_LOWER"):
        wanted = node.attributes.get("output_shape") or [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        for i, (size, target) in enumerate(zip(whole, wanted[-rank:], strict=True)):
            begin[i], end[i] = same_pads(size - target, lower=auto != b"SAME_UPPER")
            end[i] -= max(target - size, 0)
    elif pads:
        begin, end = pads[:rank], pads[rank:]
    group = node.attributes.get("group", 1)
    if begin == end and all(more < max(s, d) for more, s, d in zip(extra, strides, dilations, strict=True)):
        return TRANSPOSED[rank](x, weight, bias, strides, begin, extra, group, dilations)
    y = TRANSPOSED[rank](x, weight, bias, strides, [0] * rank, [0] * rank, group, dilations)
    # Pads of a transposed convolution cut its output; output padding lengthens it with nothing but the bias.
    sides = [(-low, more - high) for low, high, more in zip(begin, end, extra, strict=True)]
    longer = [side for pair in reversed(sides) for side in pair]
    if bias is None or all(high <= 0 for _, high in sides):
        return functional.pad(y, longer)
    shape = [1, -1, *[1] * rank]
    return functional.pad(y - bias.reshape(shape), longer) + bias.reshape(shape)
