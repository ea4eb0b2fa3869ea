"""Which matrices bring the networks of a bucket to a common gauge?

Along a space of n units with any invertible matrix the blocks that take M form A (n x m), those that take its inverse
transpose form B (k x n); only the product B A is determined by the function. Of its singular value decomposition
``U S V^T``, rank n, the gauge is ``A = S^1/2 V^T`` and ``B = U S^1/2``: balanced, and with the smallest sum of squares
(Baldi and Hornik 1989). With ``B = Q_B R_B`` and ``A^T = Q_A R_A`` only ``R_B R_A^T`` (n x n) is decomposed. Along an
orthogonal space, M holds the left singular vectors of A. The remaining sign of every singular vector is settled by an
odd statistic of its entries: plain sums over hidden units, so that nothing depends on their order.

Matrices are constants for gradients: those of a decomposition grow without bound where singular values meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from metanet.errors import ModelError
from metanet.graph import Topology
from metanet.nn.frames.places import Turn, View, onto, views_of
from metanet.nn.frames.signs import STATISTICS, TOLERANCE, odd_statistics
from symmetry import LinearFactor

__all__ = ["settle_matrices", "spaces_in_order", "without"]

RANK = 1e-10  # smallest singular value of a product, relative to its largest, that counts

NOTHING = 1e-14  # the same for a singular value that is 0 but for rounding


@dataclass(frozen=True, slots=True)
class _Side:
    """Blocks that one space's matrices act on, once, where all other spaces of matrices are settled."""

    direct: tuple[tuple[int, Turn], ...]
    inverse: tuple[tuple[int, Turn], ...]


@lru_cache(maxsize=4096)
def spaces_in_order(topology: Topology) -> tuple[tuple[LinearFactor, _Side], ...]:
    """The spaces of matrices in an order in which each is determined by blocks whose other spaces are settled.

    Raises:
        ModelError: where there is no such order, with the name of the first space that is left.
    """
    spec, views = topology.spec, views_of(topology)
    pending, settled = list(spec.linear), set[str]()
    found: list[tuple[LinearFactor, _Side]] = []
    while pending:
        for factor in pending:
            side = _side(topology, views, factor, settled)
            if side is not None:
                found.append((factor, side))
                settled.add(factor.space)
                pending.remove(factor)
                break
        else:
            raise ModelError(
                f"space {pending[0].space!r} of {pending[0].kind} matrices is not determined by tensors of its own",
                hint="use symmetry='permutation'",
            )
    return tuple(found)


def _side(topology: Topology, views: Sequence[View | None], factor: LinearFactor, settled: set[str]) -> _Side | None:
    direct: list[tuple[int, Turn]] = []
    inverse: list[tuple[int, Turn]] = []
    width = [0, 0]
    copies = topology.spec.copies(factor.space)
    for number, view in enumerate(views):
        mine = [turn for turn in (view.turns if view is not None else ()) if turn.space == factor.space]
        if view is None or len(mine) != 1 or any(turn.space not in settled for turn in view.turns if turn != mine[0]):
            continue
        (inverse if mine[0].inverse else direct).append((number, mine[0]))
        width[mine[0].inverse] += int(torch.tensor(view.sizes).prod()) // (factor.size * copies)
    enough = width[0] + width[1] >= factor.size if factor.kind == "orthogonal" else min(width) >= factor.size
    return _Side(tuple(direct), tuple(inverse)) if enough else None


def settle_matrices(
    topology: Topology,
    values: Sequence[Tensor | None],
    factor: LinearFactor,
    side: _Side,
    signs: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """The matrices of one space that bring the networks to the gauge, and which of its new units count.

    Where the product has less than full rank (a head that is zero, dead units, directions lost to training) so many of
    the new units do not reach the function. They are the last ones, their basis is not unique, and nothing of them
    should be read: see :func:`without`.

    Args:
        topology: the architecture.
        values: the block values, all earlier factors settled.
        factor: the space.
        side: its blocks.
        signs: the values with entries of open sign set to zero, for odd statistics.

    Shapes:
        returns ``(B, *spec.array_shape(space), n)`` and booleans ``(B, *spec.array_shape(space))``.
    """
    direct = [_columns(topology, values, factor, *item) for item in side.direct]
    inverse = [_columns(topology, values, factor, *item) for item in side.inverse]
    if factor.kind == "orthogonal":
        left, size, _ = torch.linalg.svd(torch.cat([*direct, *inverse], dim=-1), full_matrices=False)
        matrix = left.mT
        alive = size > RANK * size[..., :1]
    else:
        a, b = torch.cat(direct, dim=-1), torch.cat(inverse, dim=-1)
        first, second = (torch.linalg.qr(side.mT, mode="r").R for side in (a, b))
        left, size, right = torch.linalg.svd(second @ first.mT)
        alive = size > RANK * size[..., :1]
        root = torch.where(alive, size, 1.0).sqrt()
        matrix = torch.where(alive[..., None], left.mT @ second / root[..., None], 0.0)
        if not bool(alive.all()):
            matrix = matrix + _rest_of(torch.where(alive[..., None], right @ first / root[..., None], 0.0))
    return matrix * _signs(topology, signs, factor, side, matrix)[..., None], alive


def _rest_of(dual: Tensor) -> Tensor:
    """Rows for the units that do not count, so that the matrix is invertible and its inverse is right for the others.

    The rows that count of M and of its inverse transpose are given, ``L = S^-1/2 U^T R_B`` and ``S^-1/2 V^T R_A``. What
    completes M has to be orthogonal to the latter, and any such basis will do.

    Args:
        dual: the rows of the inverse transpose, zero where a unit does not count.
    """
    left, size, right = torch.linalg.svd(dual)
    nothing = size <= NOTHING * size[..., :1]
    return left @ (nothing[..., None] * right)


def without(
    topology: Topology, values: Sequence[Tensor | None], factor: LinearFactor, alive: Tensor
) -> tuple[Tensor | None, ...]:
    """The values with zeros at the units of a space of matrices that do not reach the function.

    Shapes:
        alive: ``(B, *spec.array_shape(space))``.
    """
    found = list(values)
    for number, (value, view) in enumerate(zip(values, views_of(topology), strict=True)):
        for turn in view.turns if value is not None and view is not None else ():
            if turn.space == factor.space and value is not None and view is not None:
                kept = onto(alive, turn.dims, len(view.sizes))
                wide = value.reshape(len(value), *view.sizes)
                found[number] = torch.where(kept, wide, 0.0).reshape(value.shape)
    return tuple(found)


def _columns(
    topology: Topology, values: Sequence[Tensor | None], factor: LinearFactor, number: int, turn: Turn
) -> Tensor:
    """A block as columns of one space: ``(B, *outer, n, rest)``, in float64 and without gradient."""
    front = _front(topology, values, number, turn)[0]
    return front.reshape(*front.shape[: 1 + len(turn.dims)], -1)


def _front(
    topology: Topology, values: Sequence[Tensor | None], number: int, turn: Turn
) -> tuple[Tensor, list[str | None]]:
    """A block with the dimensions of a space in front, and the names of all its dimensions."""
    view, value = views_of(topology)[number], values[number]
    if view is None or value is None:
        raise ModelError(f"block {topology.blocks[number].label} has no values")
    wide = value.detach().to(torch.float64).reshape(len(value), *view.sizes)
    for one in view.turns:
        gain = values[one.gain] if one.gain is not None else None
        if gain is not None:
            wide = wide * onto(gain.detach().to(wide).reshape(len(value), -1), one.dims[-1:], len(view.sizes))
    rest = [dim for dim in range(len(view.sizes)) if dim not in turn.dims]
    order = [*turn.dims, *rest]
    return wide.permute(0, *(1 + dim for dim in order)), [view.names[dim] for dim in order]


def _signs(
    topology: Topology, values: Sequence[Tensor | None], factor: LinearFactor, side: _Side, matrix: Tensor
) -> Tensor:
    """A sign for every row of the matrices: of the first odd statistic of the turned blocks that does not vanish.

    Shapes:
        matrix: ``(B, *outer, n, n)``; returns ``(B, *outer, n)``.
    """
    spaces = {space.name for space in topology.spec.spaces}
    found = torch.zeros_like(matrix[..., 0])
    dual = torch.linalg.inv(matrix).mT if factor.kind == "linear" else matrix
    for which in range(STATISTICS):
        for number, turn in (*side.direct, *side.inverse):
            if bool((found != 0).all()):
                return found
            value, names = _front(topology, values, number, turn)
            depth = len(turn.dims)
            columns = value.reshape(*value.shape[: 1 + depth], -1)
            turned = ((dual if turn.inverse else matrix) @ columns).reshape(value.shape)
            statistic, size = odd_statistics(turned, names, spaces, tuple(range(depth)), which)
            sure = (found == 0) & (statistic.abs() > TOLERANCE * size)
            found = torch.where(sure, statistic.sign(), found)
    return torch.where(found == 0, torch.ones_like(found), found)
