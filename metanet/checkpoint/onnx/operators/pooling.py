"""Operators that reduce windows of pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from metanet.checkpoint.onnx.operators.pads import axis_pads
from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator
from metanet.errors import CheckpointError

MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
AVERAGE = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _window(node: Node, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int], bool]:
    kernel = list(node.attributes["kernel_shape"])
    rank = len(kernel)
    if rank not in MAX or x.ndim != rank + 2:
        raise CheckpointError(f"{node} pools {rank} axes of {x.ndim}", hint="pools of 1 to 3 axes are known")
    strides = list(node.attributes.get("strides") or [1] * rank)
    dilations = list(node.attributes.get("dilations") or [1] * rank)
    begin, end = axis_pads(node, list(x.shape[2:]), kernel, strides, dilations)
    return kernel, strides, dilations, begin, end, bool(node.attributes.get("ceil_mode", 0))


def _longer(x: Tensor, window: tuple[Any, ...]) -> list[int]:
    """Elements that rounding up adds behind the end pads; a window that starts only in them is dropped."""
    kernel, strides, dilations, begin, end, _ = window
    more = []
    for size, k, step, d, low, high in zip(x.shape[2:], kernel, strides, dilations, begin, end, strict=True):
        reach = (k - 1) * d + 1
        count = -(-(size + low + high - reach) // step) + 1
        if (count - 1) * step >= size + low:
            count -= 1
        more.append(max((count - 1) * step + reach - (size + low + high), 0))
    return more


def _flat(begin: list[int], end: list[int]) -> list[int]:
    return [side for pair in reversed(list(zip(begin, end, strict=True))) for side in pair]


@operator("MaxPool")
def max_pool(run: Any, node: Node, x: Tensor) -> Tensor:
    if len([name for name in node.outputs if name]) > 1:
        raise CheckpointError(f"{node} also returns indices", hint="export the network without MaxUnpool")
    window = _window(node, x)
    kernel, strides, dilations, begin, end, up = window
    if begin == end and not up and all(2 * low <= k for low, k in zip(begin, kernel, strict=True)):
        return MAX[len(kernel)](x, kernel, strides, begin, dilations)
    extra = _longer(x, window) if up else [0] * len(kernel)
    lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = functional.pad(x, _flat(begin, [a + b for a, b in zip(end, extra, strict=True)]), value=lowest)
    if not x.is_floating_point():
        return MAX[len(kernel)](padded.to(torch.float64), kernel, strides, 0, dilations).to(x.dtype)
    return MAX[len(kernel)](padded, kernel, strides, 0, dilations)


@operator("AveragePool")
def average_pool(run: Any, node: Node, x: Tensor) -> Tensor:
    window = _window(node, x)
    kernel, strides, dilations, begin, end, up = window
    with_pads = bool(node.attributes.get("count_include_pad", 0))
    simple = begin == end and not up and set(dilations) == {1}
    if simple and all(2 * low <= k for low, k in zip(begin, kernel, strict=True)):
        return AVERAGE[len(kernel)](x, kernel, strides, begin, False, with_pads)
    extra = _longer(x, window) if up else [0] * len(kernel)
    counted = torch.ones_like(x[:1, :1])
    if with_pads:
        counted = functional.pad(counted, _flat(begin, end), value=1.0)
        counted = functional.pad(counted, _flat([0] * len(kernel), extra))
    else:
        counted = functional.pad(counted, _flat(begin, [a + b for a, b in zip(end, extra, strict=True)]))
    padded = functional.pad(x, _flat(begin, [a + b for a, b in zip(end, extra, strict=True)]))
    return _window_sum(padded, kernel, strides, dilations) / _window_sum(counted, kernel, strides, dilations)


def _window_sum(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    for i, (k, step, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        axis = i + 2
        count = (x.shape[axis] - (k - 1) * d - 1) // step + 1
        parts = [x.narrow(axis, j * d, (count - 1) * step + 1) for j in range(k)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        x = total[(slice(None),) * axis + (slice(None, None, step),)]
    return x


@operator("LpPool")
def lp_pool(run: Any, node: Node, x: Tensor) -> Tensor:
    p = node.attributes.get("p", 2)
    window = _window(node, x)
    kernel, strides, dilations, begin, end, up = window
    extra = _longer(x, window) if up else [0] * len(kernel)
    padded = functional.pad(x.abs() ** p, _flat(begin, [a + b for a, b in zip(end, extra, strict=True)]))
    return _window_sum(padded, kernel, strides, dilations) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(run: Any, node: Node, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(run: Any, node: Node, x: Tensor) -> Tensor:
    return torch.amax(x, list(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(run: Any, node: Node, x: Tensor) -> Tensor:
    p = node.attributes.get("p", 2)
    return (x.abs() ** p).sum(list(range(2, x.ndim)), keepdim=True) ** (1 / p)
