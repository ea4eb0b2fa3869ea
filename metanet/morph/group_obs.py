"""In which order are units dropped that are several features each, as heads are, or features beside others?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metanet.morph.refit import ridge_levels, without_positions
from symmetry import SymmetrySpec
from symmetry.action import leaf_name
from symmetry.spaces import Axis, blocks

__all__ = ["Read", "features_of", "obs_group_order"]


@dataclass(frozen=True, eq=False)
class Read:
    """What one weight reads.

    Args:
        covariance: of its features, or their second moments where it has no bias.
        sensitivity: Gram matrix of its weights, ``W^T W``.
        groups: for each unit the features that it is there.

    Shapes:
        (n, n), (n, n)
    """

    covariance: Tensor
    sensitivity: Tensor
    groups: Sequence[Sequence[int]]


def features_of(spec: SymmetrySpec, space: str, axis: Axis) -> list[list[int]]:
    """For each unit of a space, those of other heads one after the other, its features on an axis."""
    within = [*spec.within.get(space, ()), space]
    shape = spec.array_shape(space)
    found: list[list[int]] = [[] for _ in range(int(torch.tensor(shape).prod()))]
    for block in blocks(without_positions(axis)):
        names = [leaf_name(leaf) for leaf in block.leaves]
        if space in names:
            places = torch.from_numpy(block.positions.copy()).reshape([leaf.size for leaf in block.leaves])
            rest = [dim for dim, name in enumerate(names) if name not in within]
            rows = places.permute(*(names.index(one) for one in within), *rest).reshape(len(found), -1)
            for unit, row in zip(found, rows.tolist(), strict=True):
                unit += row
    return found


def obs_group_order(reads: Sequence[Read], rows: Sequence[int], drop: int, ridge: float = 1e-3) -> list[int]:
    """The units that are best dropped when the rest makes up for each: optimal brain surgeon, unit by unit.

    Dropping the features g of a unit costs ``tr([H^-1]_gg^-1 S_gg)``, summed over readers, with H the covariance of
    what is left and S the Gram matrix of the readers' weights after they have made up for those dropped before.

    Source: Hassibi and Stork, Optimal Brain Surgeon, 1992, equation 5, for several weights at once.

    Args:
        reads: by every reader.
        rows: which head each unit lies in; zeros for units that lie in none.
        drop: how many units of each row go.
        ridge: in units of each feature's variance.
    """
    inverses = [
        torch.linalg.inv(one.covariance.double() + torch.diag(ridge_levels(one.covariance, ridge))) for one in reads
    ]
    grams = [one.sensitivity.double().clone() for one in reads]
    left, order = list(range(len(rows))), []
    gone = dict.fromkeys(rows, 0)
    while any(gone[rows[unit]] < drop for unit in left):

        def cost(unit: int) -> float:
            total = 0.0
            for one, inverse, gram in zip(reads, inverses, grams, strict=True):
                here = list(one.groups[unit])
                total += float(torch.linalg.solve(inverse[here][:, here], gram[here][:, here]).trace())
            return total

        unit = min((unit for unit in left if gone[rows[unit]] < drop), key=cost)
        for number, one in enumerate(reads):
            here, inverse, gram = list(one.groups[unit]), inverses[number], grams[number]
            step = torch.linalg.solve(inverse[here][:, here], inverse[here])
            half = step.mT @ gram[here]
            grams[number] = gram - half - half.mT + step.mT @ gram[here][:, here] @ step
            inverses[number] = inverse - inverse[:, here] @ step
            # What is gone has no rows any more; a one on the diagonal keeps the matrix regular.
            inverses[number][here, :], inverses[number][:, here] = 0.0, 0.0
            inverses[number][here, here] = 1.0
        order.append(unit)
        left.remove(unit)
        gone[rows[unit]] += 1
    return order
