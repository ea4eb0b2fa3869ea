"""What happens when features travel through a network's own weights, in the order of its data flow?

The order of the flow is read from the parameter graph (:mod:`metanet.nn.steps`). For plain chains of linear layers this
is the network itself; for convolutions it is its response to constant or plane-wave images away from the border. It
only uses sums over units and functions shared by all units of a group, so it is exactly permutation-equivariant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from metanet.graph import Bucket, Topology
from metanet.nn.steps import Step, endings, schedule

__all__ = [
    "LIMIT", "Measure", "POINTWISE", "SLOPES", "activation", "advance", "distinct", "measured", "propagate",
    "retreat", "slope", "total",
]  # fmt: skip

LIMIT = 1e6
"""Features are cut at this size when they settle: networks of any size have finite answers."""

Measure: TypeAlias = Literal["value", "absolute", "square"]

POINTWISE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "sin": torch.sin,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "softplus": functional.softplus,
    "abs": torch.abs,
}
"""Activations that the flow applies; where a group meets several the first counts, any other acts as the identity."""


def _gelu_slope(x: Tensor) -> Tensor:
    return torch.special.ndtr(x) + x * (-x.square() / 2).exp() / math.sqrt(2 * math.pi)


def _silu_slope(x: Tensor) -> Tensor:
    share = torch.sigmoid(x)
    return share * (1 + x * (1 - share))


SLOPES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: (x > 0).to(x),
    "tanh": lambda x: 1 - torch.tanh(x).square(),
    "gelu": _gelu_slope,
    "sin": torch.cos,
    "sigmoid": lambda x: torch.sigmoid(x) * (1 - torch.sigmoid(x)),
    "silu": _silu_slope,
    "leaky_relu": lambda x: torch.where(x > 0, 1.0, 0.01).to(x),
    "elu": lambda x: x.clamp(max=0).exp(),
    "softplus": torch.sigmoid,
    "abs": torch.sign,
}
"""Their derivatives."""


def propagate(
    bucket: Bucket,
    inputs: Callable[[int, int], Tensor],
    kernel: Callable[[int], Tensor],
    measure: Measure = "value",
    settled: Callable[[int, Tensor], Tensor] | None = None,
) -> dict[int, Tensor]:
    """Send features through the networks of a bucket.

    Args:
        bucket: networks of one architecture.
        inputs: number and size of an input group -> its features ``(size, k)``; the size is 1 where the units are
            interchangeable.
        kernel: number of a block -> the weight of each of its kernel positions in every channel, ``(features, k)``.
        measure: "value" runs the network; "absolute" and "square" carry non-negative features through absolute or
            squared weights, without biases and activations: sums over paths (Neyshabur et al. 2015, "Norm-based
            capacity control").
        settled: called with each group and its features when they are complete; returns what travels on.

    Shapes:
        returns ``(B, units, k)`` by group, for every group that was reached.
    """
    topology = bucket.topology
    like = next((value for value in bucket.values if value is not None), None)
    if like is None:
        return {}
    slots: list[Tensor] = []
    for step in schedule(topology):
        if step.sort == "input":
            x = inputs(step.group, distinct(topology, step.group)).to(like)
            x = x.expand(len(bucket), topology.groups[step.group].size, -1)
        elif step.sort == "settle":
            x = total([slots[i] for i in step.reads])
            if measure == "value":
                x = activation(topology.groups[step.group].activations)(x).clamp(-LIMIT, LIMIT)
            x = settled(step.group, x) if settled is not None else x
        else:
            x = advance(step, bucket, [slots[i] for i in step.reads], kernel, measure)
        slots.append(x)
    return {group: slots[slot] for group, slot in endings(topology).items()}


def distinct(topology: Topology, group: int) -> int:
    """How many units of a group can be told apart: all of a fixed axis, one of a space.

    A space is read but never written where operations join others in it (a value for all heads): its units start alike.
    """
    one = topology.groups[group]
    return one.size if one.fixed else 1


def total(entries: Sequence[Tensor]) -> Tensor:
    """The sum of what was written to a group."""
    return functools.reduce(torch.add, entries)


def measured(value: Tensor, measure: Measure) -> Tensor:
    """Weights as they are, absolute or squared."""
    return value if measure == "value" else value.abs() if measure == "absolute" else value.square()


def advance(
    step: Step,
    bucket: Bucket,
    reads: Sequence[Tensor],
    kernel: Callable[[int], Tensor],
    measure: Measure = "value",
    weight: Tensor | None = None,
) -> Tensor:
    """What a step other than "input" and "settle" makes of the slots it reads.

    Args:
        step: the step.
        bucket: networks of one architecture.
        reads: the features in ``step.reads``.
        kernel: see :func:`propagate`.
        measure: see :func:`propagate`.
        weight: the measured weights of an "edge", if at hand.

    Shapes:
        reads: ``(B, units, k)`` each; returns ``(B, units, k)``.
    """
    x = reads[0]
    if step.sort == "norm":
        return _normalise(step, bucket, x, measure)
    if step.sort == "bias":
        return x + bucket.value(step.block)[..., :1] if measure == "value" else x
    if weight is None:
        weight = measured(bucket.value(step.block), measure)
    if step.sort == "edge":
        sent = _send(weight, x, kernel(step.block).to(x))
    else:
        sent = x * (weight @ kernel(step.block).to(x))
    return sent if len(reads) == 1 else reads[1] + sent


def retreat(
    step: Step,
    bucket: Bucket,
    reads: Sequence[Tensor],
    change: Tensor,
    kernel: Callable[[int], Tensor],
    measure: Measure = "value",
    weight: Tensor | None = None,
) -> list[Tensor]:
    """:func:`advance` in the other direction: its vector-Jacobian product at ``reads``, through the transposes.

    Args:
        step: the step.
        bucket: networks of one architecture.
        reads: the features that it read.
        change: what stands in the slot that the step made.
        kernel: see :func:`propagate`.
        measure: see :func:`propagate`.
        weight: the measured weights of an "edge", if at hand.

    Shapes:
        change: ``(B, units, k)``; returns one tensor per slot read.
    """
    if step.sort == "norm":
        return [_renormalise(step, bucket, reads[0], change, measure)]
    if step.sort == "bias":
        return [change]
    if weight is None:
        weight = measured(bucket.value(step.block), measure)
    if step.sort == "edge":
        back = _send_back(weight, change, kernel(step.block).to(change))
    else:
        back = change * (weight @ kernel(step.block).to(change))
    return [back] if len(reads) == 1 else [back, change]


def _send(weight: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    """``sum_s sum_p w[t, s, p] a[p, k] x[s, k]``, as one product of matrices per network."""
    if weight.shape[-1] == 1:
        return torch.bmm(weight.squeeze(-1), x) * kernel[0]
    spread = (x.unsqueeze(2) * kernel).flatten(1, 2)
    return torch.bmm(weight.flatten(2), spread)


def _send_back(weight: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    """``sum_p a[p, k] sum_t w[t, s, p] x[t, k]``."""
    back = torch.bmm(weight.flatten(2).transpose(1, 2), x)
    if weight.shape[-1] == 1:
        return back * kernel[0]
    return (back.unflatten(1, weight.shape[2:]) * kernel).sum(2)


def activation(names: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
    """The function that the flow applies where these activations are met; a new tensor or the one it is given."""
    known = [name for name in names if name in POINTWISE]
    return POINTWISE[known[0]] if known else _same


def slope(names: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
    """The derivative of :func:`activation`."""
    known = [name for name in names if name in POINTWISE]
    return SLOPES[known[0]] if known else torch.ones_like


def _same(x: Tensor) -> Tensor:
    return x


def _factors(step: Step, bucket: Bucket) -> tuple[Tensor | None, Tensor | None]:
    """Gain of a norm, and one over its running deviation."""
    blocks = step.blocks
    gain = bucket.value(blocks["norm.weight"])[..., :1] if "norm.weight" in blocks else None
    if "norm.running_var" not in blocks:
        return gain, None
    eps = bucket.topology.blocks[blocks["norm.running_var"]].offset or 1e-5
    return gain, (bucket.value(blocks["norm.running_var"])[..., :1].clamp(min=0) + eps).rsqrt()


def _normalise(step: Step, bucket: Bucket, x: Tensor, measure: Measure) -> Tensor:
    """Batch norm by its running statistics; without them, over the units (LayerNorm)."""
    blocks = step.blocks
    gain, scale = _factors(step, bucket)
    if measure != "value":
        for factor in (gain, scale):
            if factor is not None:
                x = x * measured(factor, measure)
        return x
    offset = bucket.value(blocks["norm.bias"])[..., :1] if "norm.bias" in blocks else None
    if scale is not None:
        mean = bucket.value(blocks["norm.running_mean"])[..., :1] if "norm.running_mean" in blocks else 0.0
        x = (x - mean) * scale
    else:
        x = functional.layer_norm(x.transpose(1, 2), (x.shape[1],)).transpose(1, 2)
    x = x * gain if gain is not None else x
    return x + offset if offset is not None else x


def _renormalise(step: Step, bucket: Bucket, x: Tensor, change: Tensor, measure: Measure) -> Tensor:
    """The vector-Jacobian product of :func:`_normalise` at ``x``."""
    gain, scale = _factors(step, bucket)
    if gain is not None:
        change = change * measured(gain, measure)
    if scale is not None:
        return change * measured(scale, measure)
    if measure != "value":
        return change
    centred = x - x.mean(1, keepdim=True)
    size = (centred.square().mean(1, keepdim=True) + 1e-5).rsqrt()
    unit = centred * size
    return (change - change.mean(1, keepdim=True) - unit * (change * unit).mean(1, keepdim=True)) * size
