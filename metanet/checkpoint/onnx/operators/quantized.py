"""Operators on numbers of few bits: quantise, restore, and products of integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metanet.checkpoint.onnx.operators.contraction import convolution
from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator
from metanet.errors import CheckpointError

WHOLE = (torch.uint8, torch.int8, torch.uint16, torch.int16)


def _along(value: Tensor, x: Tensor, node: Node) -> Tensor:
    """A scale or zero point laid along its axis: one for all, one for each slice, or one for each block."""
    if value.numel() == 1:
        return value.reshape(())
    axis = node.attributes.get("axis", 1) % x.ndim
    block = node.attributes.get("block_size", 0)
    if block:
        return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return value.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


@operator("DequantizeLinear")
def dequantize(run: Any, node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    y = x.to(scale.dtype)
    if zero is not None:
        y = y - _along(zero.to(scale.dtype), x, node)
    return y * _along(scale, x, node)


@operator("QuantizeLinear")
def quantize(run: Any, node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    kind = torch.uint8 if zero is None else zero.dtype
    if zero is None and node.attributes.get("output_dtype"):
        kind = run.file_dtype(node.attributes["output_dtype"], node)
    if kind not in WHOLE:
        raise CheckpointError(f"{node} quantises to {kind}", hint="known are integers of 8 and 16 bits")
    limits = torch.iinfo(kind)
    y = torch.round(x / _along(scale, x, node).to(x.dtype))
    if zero is not None:
        y = y + _along(zero.to(x.dtype), x, node)
    return y.clamp(limits.min, limits.max).to(kind)


@operator("DynamicQuantizeLinear")
def quantize_dynamically(run: Any, node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round((-low / scale).clamp(0, 255))
    y = (torch.round(x / scale) + zero).clamp(0, 255)
    return y.to(torch.uint8), scale, zero.to(torch.uint8)


def _centred(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    wide = x.to(torch.int32)
    if zero is None:
        return wide
    if zero.numel() == 1:
        return wide - zero.to(torch.int32).reshape(())
    return wide - zero.to(torch.int32).unsqueeze(axis) if axis == -1 else wide - zero.to(torch.int32)


@operator("MatMulInteger")
def matmul_integer(
    run: Any, node: Node, a: Tensor, b: Tensor, za: Tensor | None = None, zb: Tensor | None = None
) -> Tensor:
    # The zero point of the first has one entry for each row, that of the second one for each column.
    return torch.matmul(_centred(a, za, -1), _centred(b, zb, 0))


@operator("ConvInteger")
def convolution_integer(
    run: Any, node: Node, x: Tensor, w: Tensor, zx: Tensor | None = None, zw: Tensor | None = None
) -> Tensor:
    # Products of 8 bits summed over any honest kernel are exact in float64.
    weight = w.to(torch.float64)
    if zw is not None:
        weight = weight - zw.to(torch.float64).reshape([-1, *[1] * (w.ndim - 1)] if zw.numel() > 1 else ())
    y: Tensor = convolution(run, node, _centred(x, zx, 0).to(torch.float64), weight)
    return y.to(torch.int32)
