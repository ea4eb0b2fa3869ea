"""In which order do the units of a trained network go along the coordinates of a field?

- ``smooth``: neighbours alike: a short Hamiltonian path through the units of each space, over all tensors coupled by it
  (:func:`symmetry.smooth`; NeuMeta, section 3.3). For coordinates that are ``spread``.
- ``importance``: units that matter most first, by the norm of all weights that write or read them
  (:func:`metanet.morph.importance`). For coordinates that are ``cut``.
- ``none``: as they are.

All three leave the function of the network alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import symmetry
from metanet.errors import FieldError
from metanet.morph import importance
from symmetry import GroupElement, SymmetrySpec

__all__ = ["ORDERS", "Ordered", "ordered"]

ORDERS = ("none", "smooth", "importance")


@dataclass(frozen=True, eq=False)
class Ordered:
    """A state in a chosen order.

    Args:
        state: the network, its units permuted.
        before: total variation before (:func:`symmetry.total_variation`).
        after: and after.
    """

    state: dict[str, Tensor]
    before: float
    after: float


def ordered(spec: SymmetrySpec, state: Mapping[str, Tensor], order: str) -> Ordered:
    """The same network with its units in another order.

    Args:
        spec: of the network.
        state: its weights.
        order: ``none``, ``smooth`` or ``importance``.

    Raises:
        FieldError: for another word.
    """
    if order not in ORDERS:
        raise FieldError(f"order {order!r}", hint=f"expected one of {', '.join(ORDERS)}")
    before = symmetry.total_variation(spec, state)
    if order == "none":
        return Ordered(dict(state), before, before)
    element = symmetry.smooth(spec, state) if order == "smooth" else _by_importance(spec, state)
    moved = spec.act(element, state)
    return Ordered(moved, before, symmetry.total_variation(spec, moved))


def _by_importance(spec: SymmetrySpec, state: Mapping[str, Tensor]) -> GroupElement:
    element = spec.identity()
    for space in spec.permuted:
        scores = importance(spec, spec.act(element, state), space.name, "group_l2")
        order = torch.argsort(scores, dim=-1, descending=True, stable=True)
        permutations = {**spec.identity().permutations, space.name: order}
        arrays = {name: value for name, value in vars(spec.identity()).items() if name != "spec"}
        element = GroupElement(spec, **{**arrays, "permutations": permutations}) @ element
    return element
