"""What is every pair of units worth, and how does that depend on signs that are still to be chosen?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from symmetry.align.arrays import gram
from symmetry.align.assignment import Assignment
from symmetry.align.problem import Term

__all__ = ["Pattern", "Totals", "collect", "patterns"]

# Unknown signs of whole tensors double the assignment problems to solve; one at a time becomes known soon.
MOST_UNKNOWN_SIGNS = 2
Pattern = tuple[bool, ...]


@dataclass(slots=True)
class Totals:
    """Inner products of units, summed over terms that the same signs act on.

    Args:
        bits: the sign factors to decide.
        sums: for every pattern (which of the bits flips the term) a matrix (batch..., left units, right units).
    """

    bits: tuple[str, ...]
    sums: dict[Pattern, Tensor]

    def under(self, values: dict[str, bool]) -> Tensor:
        """The inner products if the signs had these values."""
        parts = []
        for pattern, total in self.sums.items():
            odd = sum(values[bit] for bit, acts in zip(self.bits, pattern, strict=True) if acts) % 2
            parts.append(-total if odd else total)
        return reduce(torch.add, parts)

    def choices(self, bits: Sequence[str], fixed: dict[str, bool]) -> Tensor:
        """All sign choices of some bits, the others fixed: (2 ** bits, batch..., left, right)."""
        return torch.stack(
            [self.under({**fixed, **dict(zip(bits, values, strict=True))}) for values in patterns(len(bits))]
        )


def patterns(count: int) -> list[Pattern]:
    return list(itertools.product((False, True), repeat=count))


def collect(state: Assignment, rows: tuple[str, ...], without: Sequence[str] = ()) -> Totals:
    """Inner products of the units of ``rows`` (one space, or a space and one inside it) over all comparable terms.

    Args:
        state: what is known.
        rows: the spaces whose units are compared; terms must be indexed by all of them.
        without: spaces whose terms are left to others.
    """
    problem = state.problem
    batch_names = problem.within.get(rows[0], ())
    bits = [factor for row in rows for factor in problem.unit_signs[row]]
    found: list[tuple[Term, tuple[int, ...]]] = []
    for term, dim in problem.occurrences[rows[-1]]:
        others = [name for place, name in enumerate(term.leaves) if place != dim and name not in rows[:-1]]
        if (
            any(name in without for name in others)
            or not all(state.knows(name) for name in others)
            or not set(rows[:-1]) <= set(term.leaves)
        ):
            continue
        dims = (*(term.leaves.index(row) for row in rows[:-1]), dim)
        unknown = [
            factor
            for factor, place in term.signs
            if factor not in state.flips and factor not in bits and place not in dims
        ]
        if any(problem.signs[factor] is not None for factor in unknown):
            continue
        new = [factor for factor in dict.fromkeys(unknown) if factor not in bits]
        if len([bit for bit in bits if problem.signs[bit] is None]) + len(new) <= MOST_UNKNOWN_SIGNS:
            bits += new
            found.append((term, dims))
    sums: dict[Pattern, Tensor] = {}
    for term, dims in found:
        left, right = state.moved(term, dims)
        batch = [term.leaves.index(name) for name in batch_names]
        part = gram(left, right, batch, dims)
        acting = [factor for factor, place in term.signs if place in dims or (place is None and factor in bits)]
        pattern = tuple(acting.count(bit) % 2 == 1 for bit in bits)
        sums[pattern] = sums[pattern] + part if pattern in sums else part
    return Totals(tuple(bits), sums)
