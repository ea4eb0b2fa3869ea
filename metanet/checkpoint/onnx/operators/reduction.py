"""Operators that take an axis away or along: sums, means, extremes, cumulative sums, softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metanet.checkpoint.onnx.operators.pointwise import in_type
from metanet.checkpoint.onnx.operators.shape import axes_of
from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: torch.amax(x, axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: torch.amin(x, axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


def _enter(name: str, reduce: Reduction) -> None:
    @operator(name, static=(1,))
    def compute(run: Any, node: Node, x: Tensor, axes: Any = None) -> Tensor:
        chosen = axes_of(node, axes)
        keep = bool(node.attributes.get("keepdims", 1))
        if not chosen and (x.ndim == 0 or node.attributes.get("noop_with_empty_axes", 0)):
            # No axis at all: each element is reduced alone.
            return reduce(x.unsqueeze(-1), [-1], False)
        along = sorted({axis % x.ndim for axis in chosen or range(x.ndim)})
        if x.dtype == torch.bool:
            return (x.any if name == "ReduceMax" else x.all)(dim=tuple(along), keepdim=keep)
        return in_type(reduce(x, along, keep), x.dtype)


for _name, _reduction in REDUCTIONS.items():
    _enter(_name, _reduction)


def _enter_place(name: str, function: Callable[..., Tensor]) -> None:
    @operator(name)
    def compute(run: Any, node: Node, x: Tensor) -> Tensor:
        axis = node.attributes.get("axis", 0) % x.ndim
        keep = bool(node.attributes.get("keepdims", 1))
        if node.attributes.get("select_last_index", 0):
            return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
        # torch returns the first of equal elements where the axis comes last in memory; a stable way is to ask for it.
        best = function(x, dim=axis, keepdim=True)
        value = torch.gather(x, axis, best)
        places = torch.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        first = torch.where(x == value, places, x.shape[axis]).amin(axis, keepdim=keep)
        return torch.clamp(first, max=x.shape[axis] - 1)


_enter_place("ArgMax", torch.argmax)
_enter_place("ArgMin", torch.argmin)


@operator("CumSum", static=(1,))
def cumulative_sum(run: Any, node: Node, x: Tensor, axis: Any) -> Tensor:
    along = int(axis.item())
    if node.attributes.get("reverse", 0):
        x = x.flip(along)
    y = torch.cumsum(x, along, dtype=x.dtype)
    if node.attributes.get("exclusive", 0):
        y = y - x
    return y.flip(along) if node.attributes.get("reverse", 0) else y


def _softmax(run: Any, node: Node, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    if run.opset >= 13:
        return function(x, dim=node.attributes.get("axis", -1))
    # Before opset 13 all axes from this one on were taken together.
    axis = node.attributes.get("axis", 1) % x.ndim
    if axis == x.ndim - 1:
        return function(x, dim=-1)
    return function(x.flatten(axis), dim=-1).reshape(x.shape)


@operator("Softmax")
def softmax(run: Any, node: Node, x: Tensor) -> Tensor:
    return _softmax(run, node, x, torch.softmax)


@operator("LogSoftmax")
def log_softmax(run: Any, node: Node, x: Tensor) -> Tensor:
    return _softmax(run, node, x, torch.log_softmax)


def _hard(x: Tensor, dim: int) -> Tensor:
    size = x.shape[dim]
    places = torch.arange(size).reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    first = torch.where(x == x.amax(dim, keepdim=True), places, size).amin(dim, keepdim=True)
    return (places == first).to(x.dtype)


@operator("Hardmax")
def hardmax(run: Any, node: Node, x: Tensor) -> Tensor:
    return _softmax(run, node, x, _hard)
