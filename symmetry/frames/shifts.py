"""By how many half periods are the biases of sines moved to a canonical gauge?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from symmetry.action import leaf_name, tensor_blocks
from symmetry.factors import ShiftFactor
from symmetry.spec import SymmetrySpec

__all__ = ["canonical_shifts"]


def canonical_shifts(spec: SymmetrySpec, state: Mapping[str, Tensor], shift: ShiftFactor) -> Tensor:
    """The integers of one factor that bring the first bias it moves to within half a step of 0.

    That interval is its own mirror image, so signs, which are settled later, do not leave it.

    Args:
        spec: the spec.
        state: a finite state, float64.
        shift: the factor.
    """
    step = shift.steps[0]
    block = tensor_blocks(spec.axes[step.tensor])[step.block]
    values = block.read(state[step.tensor]) / step.step
    names = [leaf_name(leaf) for leaf in block.leaves]
    dims: list[int] = []
    if step.leaf is not None:
        dims = [*(names.index(outer) for outer in spec.within.get(shift.space or "", ())), step.leaf]
    rest = [dim for dim in range(values.ndim) if dim not in dims]
    mean = values.mean(rest, keepdim=True) if rest else values
    nearest = mean.permute((*dims, *rest)).reshape(spec.array_shape(shift.space)).round().to(torch.long)
    if sum((slot.tensor, slot.block) == (step.tensor, step.block) for slot in shift.flips) % 2:
        # An odd number of steps turns the bias round before it is moved: sin(pi - z) = sin(z).
        return torch.where(nearest % 2 == 1, nearest, -nearest)
    return -nearest
