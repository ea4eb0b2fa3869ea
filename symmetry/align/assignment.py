"""Which unit of the right network stands at each place of the left one? The running answer, and what it does to terms.

A coordinate that has no answer yet is unknown: terms it moves cannot be compared along other coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from symmetry.align.arrays import placed, rotate, take
from symmetry.align.problem import Problem, Term

__all__ = ["Assignment"]


@dataclass(slots=True)
class Assignment:
    """The matched units of every space, with signs and rotations, all indexed by the places of the matched pairs.

    Args:
        problem: what is matched.
        right: for every known space the right network's unit of each pair; spaces it lies within in front.
        left: the left network's, where sizes differ; in order where they do not.
        flips: for every known sign factor booleans.
        rotations: for every known rotated space orthogonal matrices.
    """

    problem: Problem
    right: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, Tensor] = field(default_factory=dict)
    flips: dict[str, Tensor] = field(default_factory=dict)
    rotations: dict[str, Tensor] = field(default_factory=dict)

    def copy(self) -> Assignment:
        """A copy whose entries can be replaced without changing this one (tensors are never written in place)."""
        return Assignment(self.problem, dict(self.right), dict(self.left), dict(self.flips), dict(self.rotations))

    def knows(self, name: str | None) -> bool:
        """Whether a leaf is fixed or has an answer."""
        return name not in self.problem.occurrences or name in self.right or name in self.rotations

    def dims(self, term: Term, name: str, dim: int) -> list[int]:
        """The dimensions of a unit array of a space: those of the spaces it lies within, then its own."""
        return [*(term.leaves.index(outer) for outer in self.problem.within.get(name, ())), dim]

    def moved(self, term: Term, skip: Iterable[int] = ()) -> tuple[Tensor, Tensor]:
        """Both blocks of a term in the places of the matched pairs, but for the dimensions to skip and their signs."""
        left, right, skipped = term.left, term.right, set(skip)
        within = self.problem.within
        for dim in sorted(range(len(term.leaves)), key=lambda k: len(within.get(term.leaves[k] or "", ()))):
            name = term.leaves[dim]
            if name is None or dim in skipped:
                continue
            if name in self.left:
                left = take(left, self.left[name], self.dims(term, name, dim))
            if name in self.right:
                right = take(right, self.right[name], self.dims(term, name, dim))
            elif name in self.rotations:
                right = rotate(right, self.rotations[name], self.dims(term, name, dim))
        for factor, place in term.signs:
            if factor in self.flips and (place is None or place not in skipped):
                right = torch.where(self.flip_at(term, factor, place), -right, right)
        return left, right

    def flip_at(self, term: Term, factor: str, place: int | None) -> Tensor:
        """The flips of a sign factor, as they broadcast against a term."""
        flips, space = self.flips[factor], self.problem.signs[factor]
        if place is None or space is None:
            return flips.reshape([1] * len(term.leaves))
        return placed(flips, self.dims(term, space, place), len(term.leaves))

    def similarity(self, terms: Iterable[Term] | None = None) -> float:
        """Sum of the inner products of all (or some) terms, as matched."""
        total = 0.0
        for term in self.problem.terms if terms is None else terms:
            left, right = self.moved(term)
            total += float(torch.dot(left.reshape(-1), right.reshape(-1)))
        return total
