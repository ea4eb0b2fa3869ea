"""Least-squares and Newton systems in the log-scales of all factors: how large, how dense, how solved?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from symmetry.frames.parts import Part, PartSlot, onto, reduce_to
from symmetry.spec import Factor, SymmetrySpec

__all__ = ["Reduced", "Subspace", "System", "Unknowns", "reduced"]

DENSE = 400
MOST_DENSE_WORK = 4_000_000
NOTHING = 1e-11


class Unknowns:
    """The log-scales of all factors, one vector."""

    def __init__(self, spec: SymmetrySpec, factors: Sequence[Factor]) -> None:
        self.shapes = {factor.name: spec.array_shape(factor.space) for factor in factors}
        self.offsets: dict[str, tuple[int, int]] = {}
        start = 0
        for name, shape in self.shapes.items():
            size = int(np.prod(shape, dtype=np.int64))
            self.offsets[name] = (start, start + size)
            start += size
        self.size = start

    def zeros(self) -> Tensor:
        return torch.zeros(self.size, dtype=torch.float64)

    def view(self, x: Tensor, name: str) -> Tensor:
        start, stop = self.offsets[name]
        return x[start:stop].view(self.shapes[name])


@dataclass(eq=False)
class Reduced:
    """A part summed over the dimensions that no scaling indexes.

    Args:
        part: what it is from.
        shape: sizes of the remaining dimensions.
        slots: where scalings act, in the remaining dimensions.
        counts: how many weights that are not zero each place has; a number where all places have equally many.
        logs: summed logarithms of those.
        squares: summed squares.
        weight: so that each part weighs the same.
    """

    part: Part
    shape: tuple[int, ...]
    slots: tuple[PartSlot, ...]
    counts: Tensor
    logs: Tensor
    squares: Tensor
    weight: float
    _indices: list[Tensor] | None = None

    def free_logs(self) -> None:
        """Forget what only the root needs."""
        self.logs = self.counts = torch.zeros(())

    @cached_property
    def groups(self) -> set[str | None]:
        """The spaces whose factors act here."""
        return {slot.factor.space for slot in self.slots}

    def spread(self, unknowns: Unknowns, x: Tensor) -> list[Tensor]:
        """The summand of each slot, broadcastable against the part."""
        return [
            slot.exponent * onto(unknowns.view(x, slot.factor.name), slot.dims, len(self.shape)) for slot in self.slots
        ]

    def scaled_squares(self, unknowns: Unknowns, x: Tensor) -> Tensor:
        """The summed squares after scaling."""
        found = self.squares
        for summand in self.spread(unknowns, x):
            found = found * (2 * summand).exp()
        return found

    def gather(self, unknowns: Unknowns, values: Tensor, into: Tensor) -> None:
        """Add the transpose of ``spread``: for each slot the sums of values over all other dimensions."""
        for slot in self.slots:
            unknowns.view(into, slot.factor.name).add_(slot.exponent * reduce_to(values, slot.dims, self.shape))

    def indices(self, unknowns: Unknowns) -> list[Tensor]:
        """For each slot the places of its unknowns in the vector, broadcastable against the part."""
        if self._indices is None:
            numbers = torch.arange(unknowns.size)
            self._indices = [
                onto(unknowns.view(numbers, slot.factor.name), slot.dims, len(self.shape)) for slot in self.slots
            ]
        return self._indices


def reduced(part: Part) -> Reduced:
    used = sorted({dim for slot in part.scales for dim in slot.dims})
    place = {dim: index for index, dim in enumerate(used)}
    shape = tuple(part.values.shape[dim] for dim in used)
    slots = tuple(PartSlot(s.factor, tuple(place[dim] for dim in s.dims), s.exponent) for s in part.scales)
    magnitudes = part.values.abs()
    alive = magnitudes > 0
    counts = reduce_to(alive.to(torch.float64), used)
    if counts.numel() and bool((counts == counts.flatten()[0]).all()):
        counts = counts.flatten()[0].reshape([1] * len(shape))
    logs = reduce_to(torch.where(alive, magnitudes, 1.0).log(), used)
    squares = reduce_to(part.values.square(), used)
    return Reduced(part, shape, slots, counts, logs, squares, 1.0 / max(part.values.numel(), 1))


@dataclass(frozen=True, eq=False)
class Subspace:
    """Log-scales along which some combinations of each unit's factors stay as they are.

    Args:
        unknowns: all log-scales.
        projections: for the factors of a space, the projection of a unit's log-scales; shape (factors, factors).
    """

    unknowns: Unknowns
    projections: Sequence[tuple[tuple[str, ...], Tensor]] = ()

    def project(self, vector: Tensor) -> Tensor:
        """The nearest vector of the subspace."""
        vector = vector.clone()
        for names, matrix in self.projections:
            stacked = torch.tensordot(matrix, torch.stack([self.unknowns.view(vector, name) for name in names]), 1)
            for name, values in zip(names, stacked, strict=True):
                self.unknowns.view(vector, name).copy_(values)
        return vector

    @cached_property
    def basis(self) -> Tensor | None:
        """Orthonormal columns that span the subspace; ``None`` if it is everything."""
        if not self.projections:
            return None
        matrix, numbers = torch.eye(self.unknowns.size, dtype=torch.float64), torch.arange(self.unknowns.size)
        for names, projection in self.projections:
            places = [self.unknowns.view(numbers, name).flatten() for name in names]
            for row, one in enumerate(places):
                for column, other in enumerate(places):
                    matrix[one, other] = projection[row, column]
        values, vectors = torch.linalg.eigh(matrix)
        return vectors[:, values > 0.5]


@dataclass(frozen=True, eq=False)
class System:
    """``x -> sum over parts of A^T diag(values) A x``, positive semi-definite; small ones are solved as matrices.

    Args:
        unknowns: all log-scales.
        parts: the parts; A is their ``spread``.
        values: for each part one value per place, or a single one for all of them.
        subspace: where the solution is sought.
    """

    unknowns: Unknowns
    parts: Sequence[Reduced]
    values: Sequence[Tensor]
    subspace: Subspace

    def __call__(self, x: Tensor) -> Tensor:
        result = self.unknowns.zeros()
        for part, values in zip(self.parts, self.values, strict=True):
            if values.numel() == 1:
                # Each summand is a broadcast vector, and sums of it need no full array.
                for summand in part.spread(self.unknowns, x):
                    part.gather(self.unknowns, values * summand, result)
            else:
                total = sum(part.spread(self.unknowns, x), torch.zeros([1] * len(part.shape), dtype=torch.float64))
                part.gather(self.unknowns, values * total, result)
        return result

    def solve(self, right: Tensor, tolerance: float = 1e-15, most: int = 2000) -> Tensor:
        """A solution within the subspace that has nothing of the null space.

        Args:
            right: the right side, in the range of the system.
            tolerance: of the iteration on a large system, relative.
            most: its steps.
        """
        right = self.subspace.project(right)
        work = sum(int(np.prod(part.shape)) * len(part.slots) ** 2 for part in self.parts)
        if self.unknowns.size <= DENSE and work <= MOST_DENSE_WORK:
            return self._solve_dense(right)
        diagonal = self.unknowns.zeros()
        for part, values in zip(self.parts, self.values, strict=True):
            for slot in part.slots:
                mine = slot.exponent**2 * reduce_to(values, slot.dims, part.shape)
                self.unknowns.view(diagonal, slot.factor.name).add_(mine)
        return _conjugate_gradients(self, right, diagonal, self.subspace.project, tolerance, most)

    def _solve_dense(self, right: Tensor) -> Tensor:
        size = self.unknowns.size
        matrix = torch.zeros(size * size, dtype=torch.float64)
        for part, values in zip(self.parts, self.values, strict=True):
            for one, first in zip(part.slots, part.indices(self.unknowns), strict=True):
                for other, second in zip(part.slots, part.indices(self.unknowns), strict=True):
                    places = (first * size + second).expand(part.shape).reshape(-1)
                    products = (one.exponent * other.exponent * values).expand(part.shape).reshape(-1)
                    matrix.index_add_(0, places, products)
        matrix = matrix.view(size, size)
        basis = self.subspace.basis
        if basis is not None:
            matrix, right = basis.T @ matrix @ basis, basis.T @ right
        # Unknowns of very different weight are brought to one size, so that one bound tells what is zero.
        size_of = matrix.diagonal().clamp_min(0).sqrt()
        scale = torch.where(size_of > 0, 1 / size_of.clamp_min(1e-150), 0.0)
        values, vectors = torch.linalg.eigh(scale[:, None] * matrix * scale)
        inverse = torch.where(values > NOTHING, 1 / values.clamp_min(NOTHING), 0.0)
        x = scale * (vectors @ (inverse * (vectors.T @ (scale * right))))
        return x if basis is None else basis @ x


def _conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    diagonal: Tensor,
    project: Callable[[Tensor], Tensor],
    tolerance: float,
    most: int,
) -> Tensor:
    """Solve a positive semi-definite system whose right side lies in its range; nothing of the null space is added.

    Args:
        product: the system.
        right: its right side.
        diagonal: its diagonal, as preconditioner.
        project: onto the subspace that the solution is sought in.
        tolerance: on the residual, relative to the right side.
        most: steps.
    """
    inverse = torch.where(diagonal > 0, 1 / diagonal.clamp_min(1e-300), 0.0)

    def precondition(vector: Tensor) -> Tensor:
        return project(inverse * project(vector))

    x, residual = torch.zeros_like(right), right * (diagonal > 0)
    direction = precondition(residual)
    size = float(residual @ direction)
    goal, best, stale = tolerance**2 * size, size, 0
    for _ in range(most):
        if size <= goal or stale > 20:
            break
        image = project(product(direction))
        curvature = float(direction @ image)
        # What rounding leaves of a direction that changes nothing must not be divided by.
        if curvature <= 1e-13 * float(direction.square() @ diagonal):
            break
        step = size / curvature
        x = x + step * direction
        residual = residual - step * image
        preconditioned = precondition(residual)
        before, size = size, float(residual @ preconditioned)
        direction = preconditioned + size / before * direction
        stale = 0 if size < 0.5 * best else stale + 1
        best = min(best, size)
    return x
