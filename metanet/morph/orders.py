"""In which order are the units of many networks dropped, where the rest makes up for each?

What :func:`metanet.morph.obs_order` does for one network, for a stack: each step drops one unit of every network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metanet.morph.batched import Reading, State

__all__ = ["batched_obs", "kept_of", "obs_orders", "reader_grams", "ridge_level"]


@torch.no_grad()
def obs_orders(covariance: Tensor, sensitivity: Tensor, count: int | None = None, ridge: float = 1e-3) -> Tensor:
    """The units that are best dropped first, optimal brain surgeon one by one, for all networks at once.

    Args:
        covariance: of the units of each network.
        sensitivity: Gram matrices of the readers' weights, ``W^T W`` over all readers.
        count: how many are dropped; all by default.
        ridge: in units of each unit's variance.

    Shapes:
        (B, n, n), (B, n, n) -> (B, count), whole numbers, the first to be dropped in front
    """
    size = covariance.shape[-1]
    everywhere = torch.arange(len(covariance), device=covariance.device)
    inverse = torch.linalg.inv(covariance.double() + torch.diag_embed(ridge_level(covariance.double(), ridge)))
    gram, gone = sensitivity.double(), torch.zeros(covariance.shape[:2], dtype=torch.bool, device=covariance.device)
    order = []
    for _ in range(size if count is None else count):
        saliency = gram.diagonal(dim1=1, dim2=2) / inverse.diagonal(dim1=1, dim2=2).clamp_min(1e-300)
        unit = saliency.masked_fill(gone, torch.inf).argmin(1)
        order.append(unit)
        gone[everywhere, unit] = True
        row, read = inverse[everywhere, unit], gram[everywhere, unit]
        own = row[everywhere, unit].clamp_min(1e-300)[:, None]
        # W -> W - w_d s^T with s = [H^-1]_d. / [H^-1]_dd: a change of rank two on both sides of the Gram matrix.
        step = row / own
        half = read - step * (read[everywhere, unit] / 2)[:, None]
        gram = gram - step.unsqueeze(2) * half.unsqueeze(1) - half.unsqueeze(2) * step.unsqueeze(1)
        inverse = inverse - row.unsqueeze(2) * step.unsqueeze(1)
    return torch.stack(order, 1) if order else torch.zeros(len(covariance), 0, dtype=torch.long)


def batched_obs(covariance: Tensor, sensitivity: Tensor, keep: int, ridge: float = 1e-3) -> Tensor:
    """Which units stay if all but some are dropped in the order of :func:`obs_orders`.

    Args:
        covariance: of the units of each network.
        sensitivity: Gram matrices of the readers' weights.
        keep: how many units stay.
        ridge: in units of each unit's variance.

    Shapes:
        (B, n, n), (B, n, n) -> (B, n), 1 for units that stay, in the dtype of the covariance
    """
    size = covariance.shape[-1]
    return kept_of(obs_orders(covariance, sensitivity, size - keep, ridge), size, keep).to(covariance.dtype)


def kept_of(orders: Tensor, size: int, keep: int) -> Tensor:
    """The masks that are left once the first of an order are dropped.

    Shapes:
        (B, at least size - keep) -> (B, size), 1 for units that stay
    """
    mask = torch.ones(len(orders), size, dtype=torch.float64, device=orders.device)
    return mask.scatter_(1, orders[:, : size - keep], 0.0)


def reader_grams(states: State, readings: Sequence[Reading], units: int) -> Tensor:
    """``W^T W`` over the units of one space, summed over the weights that read it, for all networks.

    Args:
        states: of all networks.
        readings: of the space; :attr:`metanet.morph.batched.Masked.readings`.
        units: of the space.

    Shapes:
        -> (B, units, units), float64
    """
    flat = [
        states[reading.weight].double().movedim(reading.dim + 1, 1).unflatten(1, (units, -1)).flatten(2)
        for reading in readings
    ]
    return sum((x @ x.mT for x in flat[1:]), flat[0] @ flat[0].mT)


def ridge_level(covariance: Tensor, ridge: Tensor | float) -> Tensor:
    """What is added to the variance of each unit, in units of its own. Shapes: (B, n, n) -> (B, n)."""
    variance = covariance.diagonal(dim1=1, dim2=2)
    mean = variance.mean(1, keepdim=True)
    # A unit that never moves has no scale of its own; rounding may leave it a variance below zero.
    return ridge * torch.where(variance > (1e-12 * mean).clamp_min(0), variance, mean.clamp_min(1e-12))
