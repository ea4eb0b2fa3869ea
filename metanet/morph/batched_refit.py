"""How are stacks of networks narrowed from inputs: measured at once, or layer by layer in the networks edited so far?

What :func:`metanet.morph.compensate.compensate` does for one network, on the masked stacks of
:class:`metanet.morph.batched.Masked`. Gradients flow through all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from metanet.morph.batched import Masked, Reading, State, refitted
from metanet.morph.orders import ridge_level

__all__ = ["input_moments", "masked_only", "narrowed_in_turn"]


def input_moments(
    masked: Masked, states: State, inputs: Sequence[Tensor], chunk: int | None = None, own: bool = False
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and covariance of what each weight of all networks reads on the same inputs.

    Args:
        masked: the architecture.
        states: of all networks.
        inputs: arguments of ``forward``.
        chunk: inputs that are run at once; all of them by default.
        own: whether each network has inputs of its own, along a first axis.

    Shapes:
        (B, units) and (B, units, units) by weight, float64
    """
    sums: dict[str, tuple[float, Tensor, Tensor]] = {}
    for part in _parts(inputs, chunk, own):
        for name, value in masked.samples(states, part, own).items():
            x = value.flatten(1, 2).double()
            count, first, second = sums.get(name, (0.0, torch.zeros(()), torch.zeros(())))
            sums[name] = count + x.shape[1], first + x.sum(1), second + x.mT @ x
    means = {name: (first / count, second / count) for name, (count, first, second) in sums.items()}
    return {name: (mean, square - mean.unsqueeze(-1) * mean.unsqueeze(-2)) for name, (mean, square) in means.items()}


def masked_only(masked: Masked, states: State, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stacks without their masked units, and nothing that makes up for them.

    Args:
        masked: the architecture.
        states: of all networks.
        masks: by space, 1 for units that stay.

    Shapes:
        masks (B, units)
    """
    made = dict(states)
    for space, mask in masks.items():
        for reading in masked.readings[space]:
            kept = mask.to(states[reading.weight].dtype)
            made |= refitted(made, reading, torch.diag_embed(kept), torch.zeros_like(kept))
    return made


def narrowed_in_turn(
    masked: Masked,
    states: State,
    inputs: Sequence[Tensor],
    masks: Mapping[str, Tensor],
    ridge: Tensor | float = 1e-3,
    chunk: int | None = None,
    own: bool = False,
) -> dict[str, Tensor]:
    """The stacks with masked units rebuilt, reader after reader in the order of the data.

    Each reader is fitted to what it read in the old network from what is left of that in the network edited so far, so
    that it also makes up for what readers before it could not.

    Args:
        masked: the architecture.
        states: of all networks.
        inputs: arguments of ``forward``.
        masks: by space, 1 for units that stay.
        ridge: see :class:`metanet.morph.Compensation`.
        chunk: inputs that are run at once; all of them by default.
        own: whether each network has inputs of its own, along a first axis.

    Shapes:
        masks (B, units)
    """
    readings = [reading for space in masks for reading in masked.readings[space]]
    made = masked_only(masked, states, masks)
    for reading in sorted(readings, key=lambda one: masked.spec.tensors[one.weight].order):
        mask = masks[reading.space].double()
        mean, other, within, across = _joint(masked, states, made, inputs, reading, chunk, own)
        if not reading.bias:
            # Nothing takes a constant: means are rebuilt like the rest.
            within = within + mean.unsqueeze(2) * mean.unsqueeze(1)
            across = across + mean.unsqueeze(2) * other.unsqueeze(1)
        level = ridge_level(within, ridge)
        both = mask.unsqueeze(-1) * mask.unsqueeze(-2)
        left = within * both + torch.diag_embed(torch.where(mask > 0, level, torch.ones_like(level)))
        rebuilt = torch.linalg.solve(left, (across + torch.diag_embed(level)) * mask.unsqueeze(-1))
        constant = other - torch.einsum("bmu,bm->bu", rebuilt, mean * mask)
        dtype = states[reading.weight].dtype
        # The weight is the old one; its bias may have changed with another weight beside it.
        found = {**made, reading.weight: states[reading.weight]}
        made |= refitted(found, reading, rebuilt.to(dtype), constant.to(dtype))
    return made


def _joint(
    masked: Masked, old: State, new: State, inputs: Sequence[Tensor], reading: Reading, chunk: int | None, own: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means of what a weight reads in edited and old networks, the covariance of the first, and with the second.

    Shapes:
        -> (B, units), (B, units), (B, units, units), (B, units, units), float64
    """
    count, sums = 0, [torch.zeros((), dtype=torch.float64)] * 4
    for part in _parts(inputs, chunk, own):
        x, y = (masked.samples(run, part, own)[reading.weight].flatten(1, 2).double() for run in (new, old))
        sums = [a + b for a, b in zip(sums, (x.sum(1), y.sum(1), x.mT @ x, x.mT @ y), strict=True)]
        count += x.shape[1]
    mean, other, within, across = (total / count for total in sums)
    return mean, other, within - mean.unsqueeze(2) * mean.unsqueeze(1), across - mean.unsqueeze(2) * other.unsqueeze(1)


def _parts(inputs: Sequence[Tensor], chunk: int | None, own: bool) -> Iterator[tuple[Tensor, ...]]:
    along = 1 if own else 0
    yield from zip(*(item.split(chunk or item.shape[along], along) for item in inputs), strict=True)
