"""What do the first weights of networks say of their data: where they vary, and how smoothly?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from metanet.morph.compensate import bias_of, readers
from symmetry import Atom, Fixed, SymmetrySpec

__all__ = ["CHANNELS", "first_weight", "weight_correlations"]

_SHIFTS = ((0, 0), (0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (2, 1), (1, 2), (2, 2), (0, 3), (3, 0))
CHANNELS = 2 * len(_SHIFTS) + 2
"""Maps that :func:`weight_correlations` gives for each channel of an image."""


def first_weight(spec: SymmetrySpec, shape: Sequence[int]) -> tuple[str, str] | None:
    """The weight that reads all values of an input, or its channels, and the space it writes; None if no such is there.

    Args:
        spec: of the networks.
        shape: of an image: channels, rows, columns.
    """
    for name, info in sorted(spec.tensors.items(), key=lambda item: item[1].order):
        axes = spec.axes[name]
        if len(axes) < 2 or info.roles[:2] != ("out", "in") or not isinstance(axes[0], Atom):
            continue
        if not isinstance(axes[1], Fixed):
            continue
        if (len(axes) == 2 and axes[1].size == math.prod(shape)) or (len(axes) == 4 and axes[1].size == shape[0]):
            return name, axes[0].space.name
    return None


def weight_correlations(spec: SymmetrySpec, states: Mapping[str, Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
    """Correlations of the first weights between places, over units; zero where no weight reads all of an input.

    Units are of size one with their bias, and count alike or by what they give: nothing here changes with their
    order, scale or sign.

    Args:
        spec: of the networks.
        states: their weights.
        shape: of an image: channels, rows, columns.
        like: a tensor of the dtype that is wanted.

    Shapes:
        states (B, ...) -> (B, channels * statistics, rows, columns)
    """
    channels, height, width = shape
    batch = len(next(iter(states.values())))
    found = first_weight(spec, shape)
    if found is None:
        return like.new_zeros(batch, channels * CHANNELS, height, width)
    name, space = found
    weight = states[name].to(like)
    flat, bias_name = weight.flatten(2), bias_of(name, states.keys())
    bias = states[bias_name].to(like) if bias_name else torch.zeros_like(flat[:, :, 0])
    size = (flat.square().sum(2) + bias.square()).sqrt().clamp_min(1e-12)
    given = torch.zeros_like(size)
    for reader, axis in readers(spec, space).items():
        wide = states[reader].to(like).movedim(spec.axes[reader].index(axis) + 1, 1)
        if wide.shape[1] % size.shape[1] == 0:
            read = wide.reshape(*size.shape, -1) * size.unsqueeze(-1)
            # Every output counts alike: its own scale says nothing.
            read = read / read.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
            given = given + read.square().sum(2)
    given = given.sqrt()
    given = given / given.mean(1, keepdim=True).clamp_min(1e-12)
    bias = bias / size * math.sqrt(flat.shape[2])
    kernel = weight.ndim == 5
    picture = (weight if kernel else flat.unflatten(2, shape)) / size[:, :, None, None, None]
    energy = picture.square().mean((1, 2, 3, 4))[:, None, None, None].clamp_min(1e-12)
    told = [
        _correlation(picture, each, shift) / energy
        for each in (torch.ones_like(given), given.square())
        for shift in _SHIFTS
    ]
    for each in (bias, bias * given):
        told.append((picture * each[:, :, None, None, None]).mean(1) / energy.sqrt())
    # A kernel is the same at every place: its correlations are told by their mean.
    maps = [one.mean((2, 3), keepdim=True).expand(-1, -1, height, width) if kernel else one for one in told]
    return torch.cat(maps, 1)


def _correlation(picture: Tensor, share: Tensor, shift: tuple[int, int]) -> Tensor:
    """Mean over units of the product of two places. Shapes: (B, units, C, h, w), (B, units) -> (B, C, h, w)."""
    down, right = shift
    moved = functional.pad(picture, (max(-right, 0), max(right, 0), 0, down))
    height, width = picture.shape[-2:]
    moved = moved[..., down : down + height, (right if right > 0 else 0) : (right if right > 0 else 0) + width]
    return (picture * moved * share[:, :, None, None, None]).mean(1)
