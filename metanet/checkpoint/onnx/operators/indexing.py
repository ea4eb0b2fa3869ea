"""Operators that pick and place elements by index: gather, scatter, one-hot, top-k."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from metanet.checkpoint.onnx.operators.pointwise import in_type
from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator
from metanet.errors import CheckpointError


def _wrapped(index: Tensor, size: int) -> Tensor:
    """Negative indices count from the end."""
    index = in_type(index, torch.int64)
    return torch.where(index < 0, index + size, index)


@operator("Gather", either=True)
def gather(run: Any, node: Node, x: Any, index: Any) -> Any:
    x = run.as_tensor(x)
    axis = node.attributes.get("axis", 0) % x.ndim
    if isinstance(index, np.ndarray):
        if index.ndim == 0:
            return x.select(axis, int(index))
        wrapped = np.where(index < 0, index + x.shape[axis], index)
        places = torch.tensor(wrapped)
    else:
        places = _wrapped(index, x.shape[axis])
        if axis == 0 and x.ndim == 2 and x.is_floating_point():
            # Rows of a table: an embedding.
            return functional.embedding(places, x)
    picked = x.index_select(axis, places.reshape(-1))
    return picked.reshape(*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def gather_elements(run: Any, node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.attributes.get("axis", 0) % x.ndim
    return torch.gather(x, axis, _wrapped(index, x.shape[axis]))


@operator("GatherND")
def gather_nd(run: Any, node: Node, x: Tensor, index: Tensor) -> Tensor:
    batch = node.attributes.get("batch_dims", 0)
    depth = index.shape[-1]
    parts = [_wrapped(index[..., i], x.shape[batch + i]) for i in range(depth)]
    fixed = []
    for i in range(batch):
        view = [1] * (index.ndim - 1)
        view[i] = x.shape[i]
        fixed.append(torch.arange(x.shape[i]).reshape(view))
    return x[(*fixed, *parts)]


REDUCTIONS = {b"add": "sum", b"mul": "prod", b"max": "amax", b"min": "amin"}


@operator("ScatterElements", "Scatter")
def scatter_elements(run: Any, node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    axis = node.attributes.get("axis", 0) % x.ndim
    places = _wrapped(index, x.shape[axis])
    kind = node.attributes.get("reduction", b"none")
    if kind == b"none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, REDUCTIONS[kind])


@operator("ScatterND")
def scatter_nd(run: Any, node: Node, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    depth = index.shape[-1]
    flat = x.reshape(int(np.prod(x.shape[:depth])), *x.shape[depth:])
    place = torch.zeros(index.shape[:-1], dtype=torch.int64)
    for i in range(depth):
        place = place * x.shape[i] + _wrapped(index[..., i], x.shape[i])
    place = place.reshape(-1)
    values = updates.reshape(-1, *x.shape[depth:])
    kind = node.attributes.get("reduction", b"none")
    if kind == b"none":
        return flat.index_put((place,), values).reshape(x.shape)
    if kind == b"add":
        return flat.index_add(0, place, values).reshape(x.shape)
    places = place.reshape(-1, *[1] * (values.ndim - 1)).expand(values.shape)
    return flat.scatter_reduce(0, places, values, REDUCTIONS[kind]).reshape(x.shape)


@operator("OneHot", static=(1, 2))
def one_hot(run: Any, node: Node, index: Tensor, depth: Any, values: Any) -> Tensor:
    count = int(depth.reshape(-1)[0])
    run.check_size([*index.shape, count], node)
    off, on = run.as_tensor(values)
    axis = node.attributes.get("axis", -1)
    places = _wrapped(index, count).unsqueeze(axis if axis >= 0 else index.ndim + 1 + axis)
    shape = [1] * places.ndim
    shape[axis] = count
    return torch.where(places == torch.arange(count).reshape(shape), on, off)


@operator("TopK", static=(1,))
def top_k(run: Any, node: Node, x: Tensor, k: Any = None) -> tuple[Tensor, Tensor]:
    count = node.attributes["k"] if k is None else int(k.reshape(-1)[0])
    axis = node.attributes.get("axis", -1)
    largest = bool(node.attributes.get("largest", 1))
    # Of equal elements the one with the lower index comes first, which torch promises for a stable sort only.
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@operator("NonZero")
def non_zero(run: Any, node: Node, x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


@operator("Compress")
def compress(run: Any, node: Node, x: Tensor, condition: Tensor) -> Tensor:
    axis = node.attributes.get("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, torch.nonzero(condition).reshape(-1))


@operator("ReverseSequence")
def reverse_sequence(run: Any, node: Node, x: Tensor, lengths: Tensor) -> Tensor:
    batch, time = node.attributes.get("batch_axis", 1), node.attributes.get("time_axis", 0)
    steps = torch.arange(x.shape[time]).reshape([-1 if i == time else 1 for i in range(x.ndim)])
    limit = lengths.reshape([-1 if i == batch else 1 for i in range(x.ndim)])
    places = torch.where(steps < limit, limit - 1 - steps, steps)
    return torch.gather(x, time, places.expand(x.shape))


@operator("GridSample")
def grid_sample(run: Any, node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = node.attributes.get("mode", b"linear").decode()
    names = {"linear": "bilinear", "cubic": "bicubic"}
    padding = node.attributes.get("padding_mode", b"zeros").decode()
    aligned = bool(node.attributes.get("align_corners", 0))
    if x.ndim != 4 and mode == "cubic":
        raise CheckpointError(f"{node} samples {x.ndim - 2} axes by cubic curves", hint="use linear or nearest")
    return functional.grid_sample(x, grid, names.get(mode, mode), padding, aligned)
