"""How well conditioned is each space that matrices act on, measured by what no such matrix changes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from symmetry.analyze.places import Place, rows
from symmetry.spec import LinearFactor, SymmetrySpec

__all__ = ["MatrixReport", "matrix_report"]


@dataclass(frozen=True, slots=True)
class MatrixReport:
    """Condition of one space that matrices act on, one value for each copy (each head).

    Args:
        measured: ``composite``: singular values of A^T B, where A stacks what M acts on and B what its inverse
            transpose acts on (W_Q^T W_K of a head), which no invertible M changes; ``stacked``: of A alone, which no
            orthogonal M changes.
        left, right: the tensors stacked in A and in B (B: empty if stacked).
        full_rank: the most singular values that can be positive.
        ranks: for each copy how many are, above rounding in the dtype of the weights.
        conditions: for each copy largest over smallest of the first ``full_rank``; infinite if ranks are lacking.
    """

    measured: str
    left: tuple[str, ...]
    right: tuple[str, ...]
    full_rank: int
    ranks: tuple[int, ...]
    conditions: tuple[float, ...]


def matrix_report(
    spec: SymmetrySpec, state: Mapping[str, Tensor], factor: LinearFactor, places: Sequence[Place]
) -> MatrixReport | None:
    """Condition numbers of one space; ``None`` if no block holds the space once."""
    at = {place.key: place for place in places}
    sides: tuple[list[Place], list[Place]] = ([], [])
    for slot in factor.slots:
        place = at.get((slot.tensor, slot.block, slot.leaf))
        if place is not None and sum(leaf == place.block.leaves[place.leaf] for leaf in place.block.leaves) == 1:
            sides[slot.inverse and factor.kind == "linear"].append(place)
    # Biases would add a column to a matrix whose singular values people know without it.
    left, right = ([place for place in side if place.weight] or side for side in sides)
    if not left and not right:
        return None
    stacks = [_triangle(spec, state, factor, side) for side in (left, right) if side]
    core = stacks[0] @ stacks[1].mT if len(stacks) == 2 else stacks[0]
    values = torch.linalg.svdvals(core)
    full = min(values.shape[-1], factor.size)
    largest = values[:, :1]
    kinds = [state[place.tensor].dtype for place in (*left, *right)]
    rounding = max(torch.finfo(kind).eps for kind in kinds) * max(core.shape[-2:])
    ranks = (values[:, :full] > rounding * largest).sum(-1)
    conditions = torch.where(ranks == full, largest[:, 0] / values[:, full - 1], float("inf"))
    return MatrixReport(
        "composite" if len(stacks) == 2 else "stacked",
        tuple(dict.fromkeys(place.tensor for place in left or right)),
        tuple(dict.fromkeys(place.tensor for place in right)) if left else (),
        full,
        tuple(ranks.tolist()),
        tuple(conditions.tolist()),
    )


def _triangle(spec: SymmetrySpec, state: Mapping[str, Tensor], factor: LinearFactor, places: Sequence[Place]) -> Tensor:
    """R of the QR decomposition of the stacked blocks (entries x units): at most n rows, the same products."""
    found = torch.empty(spec.copies(factor.space), 0, factor.size, dtype=torch.float64)
    for place in places:
        tall = torch.cat([found, rows(spec, state, factor.space, place).mT], -2)
        found = torch.linalg.qr(tall, mode="r").R if tall.shape[-2] > tall.shape[-1] else tall
    return found
