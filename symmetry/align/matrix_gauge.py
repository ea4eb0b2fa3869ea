"""Which member of its orbit under invertible matrices stands for a network? The balanced one, up to a rotation.

For a space between blocks X (acted on by M) and Y (by the inverse transpose of M), the sum of squares
``|M X|^2 + |M^-T Y|^2`` is smallest where both Gram matrices agree; the minimum is unique up to an orthogonal matrix,
which is then found by matching. In closed form, with ``A = (X X')^-1/2`` and ``B = A^-T Y Y' A^-1``: ``M = B^1/4 A``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from symmetry.action import leaf_name, tensor_blocks
from symmetry.align.arrays import gram, rotate
from symmetry.elements import GroupElement
from symmetry.spec import LinearFactor, SymmetrySpec

__all__ = ["balanced_matrices"]

SWEEPS = 8
SETTLED = 1e-12
NULL = 1e-10
Key = tuple[str, int]


def balanced_matrices(spec: SymmetrySpec, state: Mapping[str, Tensor]) -> GroupElement:
    """The element of matrices that balances every general linear space; orthogonal ones have nothing to balance."""
    neutral = spec.identity()
    factors = [factor for factor in spec.linear if factor.kind == "linear"]
    values: dict[Key, Tensor] = {}
    dims: dict[tuple[str, Key, int], list[int]] = {}
    for factor in factors:
        for slot in factor.slots:
            block, key = tensor_blocks(spec.axes[slot.tensor])[slot.block], (slot.tensor, slot.block)
            if key not in values:
                values[key] = block.read(state[slot.tensor].detach()).to("cpu", torch.float64)
            names = [leaf_name(leaf) for leaf in block.leaves]
            outer = spec.within.get(factor.space, ())
            dims[factor.space, key, slot.leaf] = [*(names.index(name) for name in outer), slot.leaf]
    matrices = dict(neutral.matrices)
    # The first sweep makes every X orthonormal in turn, which forgets where in the orbit the network stood; spaces that
    # share a block (a chain of linear layers) are then balanced together, by sweeps.
    for sweep in range(SWEEPS + 1):
        moved = 0.0
        for factor in factors:
            direct, inverse = (_gram_of(factor, values, dims, side) for side in (False, True))
            step = _whiten(direct, inverse) if sweep == 0 else _balance(direct, inverse)
            if step is None:
                continue
            dual = torch.linalg.inv(step).mT
            for slot in factor.slots:
                key = (slot.tensor, slot.block)
                place = dims[factor.space, key, slot.leaf]
                values[key] = rotate(values[key], dual if slot.inverse else step, place)
            matrices[factor.space] = step @ matrices[factor.space]
            moved = max(moved, float((step - torch.eye(factor.size, dtype=step.dtype)).abs().max()))
        if moved < SETTLED:
            break
    return GroupElement(spec, neutral.permutations, neutral.log_scales, neutral.flips, matrices)


def _gram_of(
    factor: LinearFactor,
    values: Mapping[Key, Tensor],
    dims: Mapping[tuple[str, Key, int], list[int]],
    inverse: bool,
) -> Tensor | None:
    total: Tensor | None = None
    for slot in factor.slots:
        if slot.inverse == inverse:
            key = (slot.tensor, slot.block)
            *outer, dim = dims[factor.space, key, slot.leaf]
            part = gram(values[key], values[key], outer, [dim])
            total = part if total is None else total + part
    return total


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a positive semidefinite matrix; directions without weight get the mean of the others."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    top = eigenvalues[..., -1:].clamp_min(1e-300)
    alive = eigenvalues > NULL * top
    mean = (eigenvalues * alive).sum(-1, keepdim=True) / alive.sum(-1, keepdim=True).clamp_min(1)
    powers = torch.where(alive, eigenvalues, mean.clamp_min(1e-300)).pow(exponent)
    return (vectors * powers.unsqueeze(-2)) @ vectors.mT


def _whiten(direct: Tensor | None, inverse: Tensor | None) -> Tensor | None:
    if direct is not None:
        return _power(direct, -0.5)
    return None if inverse is None else _power(inverse, 0.5)


def _balance(direct: Tensor | None, inverse: Tensor | None) -> Tensor | None:
    if direct is None or inverse is None:
        return None
    whiten, undo = _power(direct, -0.5), _power(direct, 0.5)
    return _power(undo @ inverse @ undo, 0.25) @ whiten
