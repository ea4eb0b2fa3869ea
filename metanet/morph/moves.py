"""Which edits move a network within its group, so that no shape changes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metanet.errors import PlanError
from metanet.morph.edits import StateEdit, units_of
from symmetry import GroupElement, SymmetrySpec

__all__ = ["Permute", "Rescale"]


@dataclass(frozen=True)
class Permute(StateEdit):
    """Bring the units of one space into another order.

    Args:
        space: which.
        order: for each place the old unit that stands there afterwards.
    """

    space: str
    order: Sequence[Any]
    kind = "permute"

    def element(self, spec: SymmetrySpec) -> GroupElement:
        """See :meth:`StateEdit.element`."""
        neutral = spec.identity()
        order = units_of(spec, self.space, self.order)
        if self.space not in neutral.permutations:
            matrix = torch.eye(spec.sizes[self.space], dtype=torch.float64)[order]
            return _element(neutral, matrices={**neutral.matrices, self.space: matrix})
        if order.shape[-1] != spec.sizes[self.space] or any(
            sorted(row) != list(range(len(row))) for row in order.reshape(-1, order.shape[-1]).tolist()
        ):
            raise PlanError(f"permute {self.space!r}: each of its units must occur once in the order")
        return _element(neutral, permutations={**neutral.permutations, self.space: order})

    def __str__(self) -> str:
        return f"permute {self.space}"


@dataclass(frozen=True)
class Rescale(StateEdit):
    """Multiply units by numbers, which their readers take back.

    Args:
        factor: name of a scale factor of the spec.
        scales: positive numbers, one per unit.
    """

    factor: str
    scales: Sequence[Any]
    kind = "rescale"

    def element(self, spec: SymmetrySpec) -> GroupElement:
        """See :meth:`StateEdit.element`."""
        neutral = spec.identity()
        if self.factor not in neutral.log_scales:
            known = ", ".join(list(neutral.log_scales)[:6]) or "none"
            raise PlanError(f"no scale factor {self.factor!r}", hint=f"the network has {known}")
        scales = torch.tensor(self.scales, dtype=torch.float64)
        expected = neutral.log_scales[self.factor].shape
        if scales.shape != expected or not bool((scales > 0).all()) or not bool(scales.isfinite().all()):
            raise PlanError(f"rescale {self.factor!r}: expected {tuple(expected)} positive numbers")
        return _element(neutral, log_scales={**neutral.log_scales, self.factor: scales.log()})

    def __str__(self) -> str:
        return f"rescale {self.factor}"


def _element(neutral: GroupElement, **changed: Any) -> GroupElement:
    return GroupElement(**{**vars(neutral), **changed})
