"""How are arrays with one value per unit laid along the dimensions of a block, and blocks compared unit by unit?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["assign", "gram", "nuclear", "placed", "polar", "rotate", "take"]

# Smallest matrices for which prices pay, and how many sweeps of them.
WORTHWHILE = 128
SWEEPS = 6


def placed(array: Tensor, dims: Sequence[int], ndim: int) -> Tensor:
    """View an array whose dimensions belong at ``dims`` so that it broadcasts against ``ndim`` dimensions."""
    order = sorted(range(len(dims)), key=lambda k: dims[k])
    shape = [1] * ndim
    for k in order:
        shape[dims[k]] = array.shape[k]
    return array.permute(order).reshape(shape)


def take(values: Tensor, index: Tensor, dims: Sequence[int]) -> Tensor:
    """Take ``values`` along the last of ``dims``, in an order that may differ for each index of the first ones."""
    if len(dims) == 1:
        return values.index_select(dims[0], index)
    return torch.take_along_dim(values, placed(index, dims, values.ndim), dim=dims[-1])


def rotate(values: Tensor, matrices: Tensor, dims: Sequence[int]) -> Tensor:
    """Multiply ``values`` along the last of ``dims`` by a matrix that may differ for each index of the first ones."""
    *outer, dim = dims
    rest = [k for k in range(values.ndim) if k not in dims]
    order = [*outer, *rest, dim]
    shape = [values.shape[k] for k in order]
    flat = values.permute(order).reshape(*shape[: len(outer)], -1, shape[-1])
    turned = flat @ matrices.to(values.dtype).transpose(-1, -2)
    return turned.reshape(shape).permute([order.index(k) for k in range(values.ndim)])


def gram(left: Tensor, right: Tensor, batch: Sequence[int], units: Sequence[int]) -> Tensor:
    """Inner products of the units of two blocks over all other dimensions.

    Shapes:
        result: (*batch sizes, product of left unit sizes, product of right unit sizes).
    """

    def rows(values: Tensor) -> Tensor:
        rest = [dim for dim in range(values.ndim) if dim not in batch and dim not in units]
        lead = [values.shape[dim] for dim in batch]
        count = 1
        for dim in units:
            count *= values.shape[dim]
        return values.permute([*batch, *units, *rest]).reshape(*lead, count, -1)

    return rows(left) @ rows(right).transpose(-1, -2)


def assign(scores: Tensor, near: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The assignment of the largest sum for every matrix of a batch: left and right units of each pair, left sorted.

    Args:
        scores: what each pair is worth.
        near: right units of an assignment thought to be near the best one; it saves time and changes nothing else.

    Shapes:
        scores: (..., n, m); near: (..., n), only where n = m; result: two of (..., min(n, m)).
    """
    lead, pairs = scores.shape[:-2], min(scores.shape[-2:])
    if near is not None and pairs >= WORTHWHILE and scores.shape[-1] == scores.shape[-2]:
        scores = scores - _prices(scores, near).unsqueeze(-2)
    flat = scores.reshape(-1, *scores.shape[-2:]).double().numpy()
    left, right = torch.empty(len(flat), pairs, dtype=torch.long), torch.empty(len(flat), pairs, dtype=torch.long)
    for number, matrix in enumerate(flat):
        rows, columns = linear_sum_assignment(matrix, maximize=True)
        left[number], right[number] = torch.from_numpy(rows), torch.from_numpy(columns)
    return left.reshape(*lead, pairs), right.reshape(*lead, pairs)


def _prices(scores: Tensor, near: Tensor) -> Tensor:
    """A number per column which, subtracted, leaves fewer rows that want the same one; the best assignment stays.

    Sweeps of Bellman and Ford's algorithm towards the dual prices of an assignment near the best one: every row bids
    for each column what it would gain over its own. The solver then has short paths to search.
    """
    gain = scores.gather(-1, near.unsqueeze(-2).expand(scores.shape))
    gain -= scores.gather(-1, near.unsqueeze(-1))
    prices = torch.zeros_like(gain[..., 0, :])
    for _ in range(SWEEPS):
        prices = torch.maximum(prices, (gain + prices.unsqueeze(-1)).amax(-2))
    return torch.empty_like(prices).scatter_(-1, near, prices)


def polar(products: Tensor) -> Tensor:
    """The orthogonal matrices R of the largest ``trace(R' products)`` (Procrustes; Schoenemann 1966)."""
    u, _, vh = torch.linalg.svd(products.double())
    return u @ vh


def nuclear(products: Tensor) -> Tensor:
    """That largest trace: the sum of the singular values."""
    return torch.linalg.svdvals(products.double()).sum(-1)
