"""Which inputs can a network be asked about when no data are at hand? Random fields, smooth along every axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["KINDS_OF_INPUT", "grid_of", "probe_inputs", "smooth_inputs"]

KINDS_OF_INPUT = ("field", "blob", "stroke", "bright stroke", "moved stroke", "moved blob", "noisy stroke")
"""Fields of two scales, soft blobs and curved strokes; then the same, brighter, moved by one place, with noise."""

_SEED = 0x51E1D


def grid_of(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes along which an input is smooth: rows and columns where the values fill a square, else its own axes.

    Example:
        >>> grid_of((1, 14, 14)), grid_of((196,)), grid_of((5,)), grid_of((3, 8, 8))
        ((14, 14), (14, 14), (5,), (3, 8, 8))
    """
    count = math.prod(shape)
    side = math.isqrt(count)
    if side > 2 and side * side == count:
        return (side, side)
    return tuple(size for size in shape if size > 1) or (1,)


def smooth_inputs(shape: Sequence[int], count: int, scale: float = 1.5, seed: int = 0) -> Tensor:
    """Random fields of root mean square 1: white noise behind a Gaussian filter.

    The same grid gives the same fields, whatever axes of size 1 the shape has or how it is flattened.

    Args:
        shape: of one input.
        count: number of inputs.
        scale: standard deviation of the filter, in places of the grid.
        seed: which fields.

    Shapes:
        returns ``(count, *shape)`` in float64.
    """
    grid = grid_of(shape)
    margin = math.ceil(2 * scale)
    padded = [size + 2 * margin for size in grid]
    key = _SEED + 1009 * seed + sum((7919**axis) * size for axis, size in enumerate(grid))
    generator = torch.Generator().manual_seed(key % 2**31)
    x = torch.randn(count, *padded, generator=generator, dtype=torch.float64)
    for axis, size in enumerate(padded, start=1):
        places = torch.arange(size, dtype=torch.float64)
        kernel = torch.exp(-0.5 * ((places[:, None] - places[None]) / scale) ** 2)
        x = torch.tensordot(x, kernel, dims=([axis], [0])).movedim(-1, axis)
        x = x.narrow(axis, margin, size - 2 * margin)
    flat = x.reshape(count, -1)
    flat = flat / flat.square().mean(1, keepdim=True).sqrt().clamp(min=1e-12)
    return flat.reshape(count, *shape)


@lru_cache(maxsize=64)
def probe_inputs(shape: tuple[int, ...], each: int) -> Tensor:
    """Inputs of every kind of `KINDS_OF_INPUT`, one kind behind the other.

    Shapes:
        returns ``(len(KINDS_OF_INPUT) * each, *shape)`` in float64.
    """
    half = each // 2
    fields = torch.cat([smooth_inputs(shape, each - half, 1.5), smooth_inputs(shape, half, 3.0)])
    blob = torch.sigmoid(4 * (smooth_inputs(shape, each, 2.0, seed=1) - 0.8))
    where = torch.sigmoid(4 * (smooth_inputs(shape, each, 3.5, seed=2) - 0.3))
    stroke = torch.exp(-((smooth_inputs(shape, each, 2.5, seed=3) / 0.25) ** 2)) * where
    generator = torch.Generator().manual_seed(_SEED)
    noise = torch.randn(stroke.shape, generator=generator, dtype=torch.float64)
    return torch.cat([fields, blob, stroke, 2 * stroke, moved(stroke, 1), moved(blob, 0), stroke + 0.1 * noise])


def moved(x: Tensor, axis: int, step: int = 1) -> Tensor:
    """Inputs moved along one axis of their grid; what leaves on one side comes in on the other.

    Shapes:
        x: ``(n, *shape)``; returns the same.
    """
    grid = grid_of(x.shape[1:])
    return torch.roll(x.reshape(len(x), *grid), step, dims=1 + axis % len(grid)).reshape(x.shape)
