"""Operators that lay out elements anew: reshape, transpose, concatenate, slice, pad, and the shapes themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator
from metanet.errors import CheckpointError


@operator("Shape", either=True)
def shape(run: Any, node: Node, x: Any) -> Any:
    sizes = np.array(tuple(x.shape), np.int64)
    return sizes[slice(node.attributes.get("start", 0), node.attributes.get("end"))]


@operator("Size", either=True)
def size(run: Any, node: Node, x: Any) -> Any:
    return np.array(math.prod(x.shape), np.int64)


@operator("Reshape", static=(1,))
def reshape(run: Any, node: Node, x: Tensor, target: Any = None) -> Tensor:
    wanted = [int(n) for n in (node.attributes["shape"] if target is None else target.tolist())]
    if not node.attributes.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(run: Any, node: Node, x: Tensor) -> Tensor:
    axis = node.attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 1 and x.ndim > 1:
        return torch.flatten(x, 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose")
def transpose(run: Any, node: Node, x: Tensor) -> Tensor:
    return x.permute(node.attributes.get("perm") or list(range(x.ndim))[::-1])


def axes_of(node: Node, given: Any) -> list[int] | None:
    """Axes as an attribute (older opsets) or as an input (newer ones)."""
    if given is not None:
        return [int(axis) for axis in np.asarray(given).reshape(-1)]
    found = node.attributes.get("axes")
    return None if found is None else list(found)


@operator("Squeeze", static=(1,))
def squeeze(run: Any, node: Node, x: Tensor, axes: Any = None) -> Tensor:
    chosen = axes_of(node, axes)
    if chosen is None:
        return x.squeeze()
    gone = {axis % x.ndim for axis in chosen}
    if any(x.shape[axis] != 1 for axis in gone):
        raise CheckpointError(
            f"{node} should drop axes {sorted(gone)} of shape {list(x.shape)}", hint="correct its inputs"
        )
    return x.reshape([n for i, n in enumerate(x.shape) if i not in gone])


@operator("Unsqueeze", static=(1,))
def unsqueeze(run: Any, node: Node, x: Tensor, axes: Any = None) -> Tensor:
    chosen = axes_of(node, axes) or []
    rank = x.ndim + len(chosen)
    for axis in sorted(axis % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(run: Any, node: Node, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, node.attributes.get("axis", 1))


@operator("Split", static=(1,))
def split(run: Any, node: Node, x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
    axis = node.attributes.get("axis", 0)
    chosen = node.attributes.get("split") if sizes is None else sizes.tolist()
    if chosen is None:
        parts = node.attributes.get("num_outputs", len(node.outputs))
        return torch.split(x, -(-x.shape[axis] // parts), axis)
    return torch.split(x, [int(n) for n in chosen], axis)


@operator("Slice", static=(1, 2, 3, 4))
def slice_(
    run: Any, node: Node, x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Any:
    begin: list[int] = node.attributes["starts"] if starts is None else starts.tolist()
    stop: list[int] = node.attributes["ends"] if ends is None else ends.tolist()
    chosen = axes_of(node, axes) or list(range(len(begin)))
    strides = [1] * len(begin) if steps is None else steps.tolist()
    for axis, low, high, step in zip(chosen, begin, stop, strides, strict=True):
        axis %= x.ndim
        places = range(x.shape[axis])[slice(low, high, step)]
        if step < 0:
            x = (
                x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
                if len(places) < x.shape[axis] or step != -1
                else x.flip(axis)
            )
        elif len(places) < x.shape[axis]:
            x = x[(slice(None),) * axis + (slice(places.start, places.start + len(places) * step, step),)]
    return x


@operator("Expand", static=(1,))
def expand(run: Any, node: Node, x: Tensor, target: Any) -> Tensor:
    sizes = torch.broadcast_shapes(tuple(x.shape), tuple(target.tolist()))
    run.check_size(sizes, node)
    return x.expand(sizes)


@operator("Tile", static=(1,))
def tile(run: Any, node: Node, x: Tensor, repeats: Any) -> Tensor:
    run.check_size([size * int(n) for size, n in zip(x.shape, repeats, strict=True)], node)
    return x.repeat([int(n) for n in repeats])


@operator("Pad", static=(1, 2, 3))
def pad(run: Any, node: Node, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    if pads is None:
        amounts = list(node.attributes.get("pads") or node.attributes.get("paddings") or [])
    else:
        amounts = [int(n) for n in pads]
    constant = node.attributes.get("value", 0.0) if value is None or not value.size else value.item()
    mode = node.attributes.get("mode", b"constant")
    half = len(amounts) // 2
    chosen = list(range(x.ndim)) if axes is None else [int(axis) % x.ndim for axis in axes]
    sides = {axis: (amounts[i], amounts[half + i]) for i, axis in enumerate(chosen)}
    run.check_size([n + sum(sides.get(i, (0, 0))) for i, n in enumerate(x.shape)], node)
    if mode == b"constant" or not any(any(pair) for pair in sides.values()):
        flat = [side for axis in reversed(range(x.ndim)) for side in sides.get(axis, (0, 0))]
        return functional.pad(x, flat, value=constant)
    for axis, (low, high) in sides.items():
        if low or high:
            x = _pad_axis(node, x, axis, low, high, mode)
    return x


def _pad_axis(node: Node, x: Tensor, axis: int, low: int, high: int, mode: bytes) -> Tensor:
    """Pads by elements of the axis itself, chosen by place; negative pads cut."""
    kinds = {b"reflect": "reflect", b"edge": "symmetric", b"wrap": "wrap"}
    if mode not in kinds:
        raise CheckpointError(f"{node} pads with mode {mode!r:.40}", hint="known are constant, reflect, edge and wrap")
    places = np.arange(x.shape[axis])[max(-low, 0) : x.shape[axis] - max(-high, 0)]
    low, high = max(low, 0), max(high, 0)
    if mode == b"edge":
        places = np.concatenate((places[:1].repeat(low), places, places[-1:].repeat(high)))
    else:
        places = np.pad(places, (low, high), mode="reflect" if mode == b"reflect" else "wrap")
    native = mode == b"reflect" and x.ndim in (2, 3) and axis == x.ndim - 1 and max(low, high) < x.shape[axis]
    if native and len(places) == x.shape[axis] + low + high:
        return functional.pad(x, (low, high), mode="reflect")
    return x.index_select(axis, torch.tensor(places))


@operator("DepthToSpace")
def depth_to_space(run: Any, node: Node, x: Tensor) -> Tensor:
    block = node.attributes["blocksize"]
    batch, channels, height, width = x.shape
    if node.attributes.get("mode", b"DCR") == b"DCR":
        y = x.reshape(batch, block, block, channels // block**2, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(batch, channels // block**2, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(batch, channels // block**2, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(run: Any, node: Node, x: Tensor) -> Tensor:
    block = node.attributes["blocksize"]
    batch, channels, height, width = x.shape
    y = x.reshape(batch, channels, height // block, block, width // block, block)
    order = (0, 3, 5, 1, 2, 4) if node.attributes.get("mode", b"DCR") == b"DCR" else (0, 1, 3, 5, 2, 4)
    return y.permute(order).reshape(batch, channels * block**2, height // block, width // block)


@operator("ConstantOfShape", static=(0,))
def constant_of_shape(run: Any, node: Node, target: Any) -> Any:
    value = run.attribute_tensor(node, "value")
    filled = np.zeros(1, np.float32) if value is None else value
    return run.static_full(tuple(int(n) for n in target), filled, node)


@operator("Range", static=(0, 1, 2))
def range_(run: Any, node: Node, start: Any, limit: Any, delta: Any) -> Any:
    return run.static_range(start.item(), limit.item(), delta.item(), start.dtype, node)


@operator("EyeLike", either=True)
def eye_like(run: Any, node: Node, x: Any) -> Tensor:
    kind = run.dtype(node.attributes["dtype"], node) if "dtype" in node.attributes else run.as_tensor(x).dtype
    rows, columns = x.shape
    run.check_size([rows, columns], node)
    difference = torch.arange(columns)[None] - torch.arange(rows)[:, None]
    return (difference == node.attributes.get("k", 0)).to(kind)


@operator("Trilu", static=(1,))
def trilu(run: Any, node: Node, x: Tensor, k: Any = None) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return torch.triu(x, diagonal) if node.attributes.get("upper", 1) else torch.tril(x, diagonal)
