"""Where do the values of one block lie in their tensor, and how are they laid out in the block?

A tensor is cut at its concatenations (:func:`symmetry.spaces.blocks`); what is left is a regular array over leaves.
Leaves that are units become unit axes, the rest (kernel positions, pixels behind a flatten) become features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Region", "Span"]


@dataclass(frozen=True, slots=True)
class Span:
    """The positions of a block along one axis of the tensor.

    Args:
        start: first position; size: how many.
        index: the positions where they are not ``start, start + 1, ...``, else ``None``.
        whole: the block takes the whole axis in its own order.
    """

    start: int
    size: int
    index: tuple[int, ...] | None
    whole: bool

    @classmethod
    def of(cls, positions: np.ndarray, length: int) -> Span:
        """The span of flat positions on an axis of this length."""
        flat = positions.reshape(-1)
        start = int(flat[0]) if flat.size else 0
        regular = bool(np.array_equal(flat, np.arange(start, start + flat.size)))
        index = None if regular else tuple(int(i) for i in flat)
        return cls(start, int(flat.size), index, regular and flat.size == length)

    def indices(self, device: torch.device) -> Tensor:
        """The positions as a tensor."""
        if self.index is None:
            return torch.arange(self.start, self.start + self.size, device=device)
        return torch.tensor(self.index, device=device)


@dataclass(frozen=True, slots=True)
class Region:
    """A block's place in its tensor.

    Args:
        spans: one per axis of the tensor.
        leaves: sizes of all leaves, in the order of the tensor's axes.
        order: permutation of the leaves: those of the first unit axis, of the second, then the features.
        shape: shape of the block: the sizes of its unit axes, then the number of features.
    """

    spans: tuple[Span, ...]
    leaves: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def read(self, tensor: Tensor) -> Tensor:
        """The block's own copy of its values, bit by bit.

        Shapes:
            tensor: the tensor's shape; returns ``shape``.
        """
        for axis, span in enumerate(self.spans):
            if span.index is not None:
                tensor = tensor.index_select(axis, span.indices(tensor.device))
            elif not span.whole:
                tensor = tensor.narrow(axis, span.start, span.size)
        block = tensor.reshape(self.leaves).permute(self.order).reshape(self.shape)
        return block.clone(memory_format=torch.contiguous_format)

    def restore(self, block: Tensor) -> Tensor:
        """The block's values in the order of its tensor's axes.

        Shapes:
            block: ``shape``; returns the sizes of the spans.
        """
        values = block.reshape([self.leaves[i] for i in self.order])
        values = values.permute(_inverse(self.order)) if self.order else values
        return values.reshape([span.size for span in self.spans])

    def write(self, block: Tensor, tensor: Tensor) -> None:
        """Copy a block's values to their place in ``tensor``, in place.

        Shapes:
            block: ``shape``. tensor: the tensor's shape.
        """
        values = self.restore(block)
        if any(span.index is not None for span in self.spans):
            grid = torch.meshgrid(*(span.indices(tensor.device) for span in self.spans), indexing="ij")
            tensor.index_put_(grid, values)
            return
        for axis, span in enumerate(self.spans):
            tensor = tensor.narrow(axis, span.start, span.size)
        tensor.copy_(values)

    def batched(self, size: int) -> Region:
        """The same region in every one of ``size`` tensors that are stacked along a new first axis."""
        return Region(
            (Span(0, size, None, True), *self.spans),
            (size, *self.leaves),
            (0, *(leaf + 1 for leaf in self.order)),
            (size, *self.shape),
        )

    @property
    def whole(self) -> bool:
        """Whether the block is the whole tensor."""
        return all(span.whole for span in self.spans)


def _inverse(order: Sequence[int]) -> list[int]:
    inverse = [0] * len(order)
    for place, leaf in enumerate(order):
        inverse[leaf] = place
    return inverse
