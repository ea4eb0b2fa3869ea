"""Which of the units that are left stand in for one that was dropped, as compensation rebuilt it?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metanet.errors import PlanError
from symmetry import Atom
from symmetry.spaces import Axis, Fixed, Product, blocks

__all__ = ["Rebuilding", "rebuilding"]

# A whole matrix is as large as the weights that it is folded into, and a search tries many networks.
MOST = 8


@dataclass(frozen=True, eq=False)
class Rebuilding:
    """How one reader's dropped features are put together from those that are left.

    Args:
        reader: the weight that reads them.
        axis: over which it read before, without positions, each of which is a sample.
        dropped: the features that are gone, as places on the axis.
        sources: for each, the features that add most to it, the first the most: by coefficient times spread.
        coefficients: of these in the least-squares rebuilding.
        spreads: their standard deviations as the reader sees them.

    Shapes:
        dropped (d,); sources, coefficients, spreads (d, k)
    """

    reader: str
    axis: Axis
    dropped: Tensor
    sources: Tensor
    coefficients: Tensor
    spreads: Tensor

    def units(self, place: int) -> tuple[tuple[str, int], ...]:
        """What stands at a place on the axis: a unit of a space, or for heads the head and the unit in it."""
        for block in blocks(self.axis):
            found = (block.positions == place).nonzero()
            if len(found[0]):
                return tuple(
                    (leaf.space.name, int(index[0]))
                    for leaf, index in zip(block.leaves, found, strict=True)
                    if isinstance(leaf, Atom)
                )
        raise PlanError(f"place {place} on {self.axis}", hint=f"it has places 0 to {self.axis.size - 1}")


def rebuilding(reader: str, axis: Axis, matrix: Tensor, selection: Tensor, within: Tensor) -> Rebuilding:
    """What a rebuilding says of the dropped features.

    Args:
        reader: the weight.
        axis: over which it read.
        matrix: R with x ~ R^T x' + c.
        selection: which old feature each one that is left is.
        within: covariance of what is left.

    Shapes:
        matrix (m, n), selection (m, n), within (m, m)
    """
    while isinstance(axis, Product) and isinstance(axis.inner, Fixed):
        axis = axis.outer
    spread = within.diagonal().clamp_min(0).sqrt()
    dropped = (selection.sum(0) == 0).nonzero()[:, 0]
    share = (matrix[:, dropped] * spread[:, None]).abs().mT
    best = share.topk(min(MOST, share.shape[1]), dim=1).indices
    return Rebuilding(
        reader,
        axis,
        dropped,
        selection.argmax(1)[best],
        matrix.mT[dropped].gather(1, best),
        spread[best],
    )
