"""What is compared when two networks are matched: which blocks of numbers, and which coordinates move them?

A :class:`Term` is one block of the two networks (weights, or activations), one array dimension per leaf. The
similarity of two networks is the sum over terms of the inner product of the left block with the right one after its
units were moved; where the group only permutes and flips, the most similar pair is the closest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from symmetry.action import leaf_name, tensor_blocks
from symmetry.spec import SymmetrySpec

__all__ = ["Problem", "Term", "weight_terms"]


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """One block of both networks.

    Args:
        left, right: the numbers, one dimension per leaf; sizes may differ where the spaces do.
        leaves: the name of the space or fixed axis of each dimension, ``None`` where it has none.
        signs: sign factors that act on it: (name, dimension of its units, or ``None`` for the whole block).
    """

    left: Tensor
    right: Tensor
    leaves: tuple[str | None, ...]
    signs: tuple[tuple[str, int | None], ...] = ()


@dataclass(frozen=True, eq=False)
class Problem:
    """Terms and the coordinates that move the right network.

    Args:
        terms: what is compared.
        spaces: the permuted spaces, in the order of the data flow.
        within: for a space inside others, those.
        signs: for every sign factor the space or fixed axis it has one value per unit of, or ``None``.
        rotations: the spaces that are rotated (by an orthogonal matrix) instead of permuted.
    """

    terms: tuple[Term, ...]
    spaces: tuple[str, ...]
    within: Mapping[str, tuple[str, ...]]
    signs: Mapping[str, str | None]
    rotations: frozenset[str] = field(default_factory=frozenset)

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """For each space those directly inside it: they are solved with it."""
        return {
            space: tuple(name for name in self.inside if self.within.get(name, ())[-1:] == (space,))
            for space in self.spaces
        }

    @cached_property
    def inside(self) -> tuple[str, ...]:
        """All coordinates with units: permuted and rotated spaces."""
        return (*self.spaces, *sorted(self.rotations))

    @cached_property
    def occurrences(self) -> dict[str, tuple[tuple[Term, int], ...]]:
        """For each space the terms it indexes, and at which dimension."""
        found: dict[str, list[tuple[Term, int]]] = {name: [] for name in self.inside}
        for term in self.terms:
            for dim, name in enumerate(term.leaves):
                if name in found:
                    found[name].append((term, dim))
        return {name: tuple(items) for name, items in found.items()}

    @cached_property
    def unit_signs(self) -> dict[str, tuple[str, ...]]:
        """For each space its sign factors, one value per unit."""
        return {name: tuple(f for f, space in self.signs.items() if space == name) for name in self.inside}

    @cached_property
    def other_signs(self) -> tuple[str, ...]:
        """Sign factors that belong to no space: single values, and those of fixed axes."""
        acting = {name for term in self.terms for name, _ in term.signs}
        return tuple(f for f, space in self.signs.items() if space not in self.inside and f in acting)

    def sizes(self, name: str) -> tuple[int, int]:
        """Number of units of a space in the left and in the right network."""
        term, dim = self.occurrences[name][0]
        return term.left.shape[dim], term.right.shape[dim]

    @cached_property
    def scale(self) -> float:
        """Sum over terms of the product of norms: the similarity of a perfect match is at most this."""
        return sum(float(term.left.norm() * term.right.norm()) for term in self.terms)


def weight_terms(
    spec: SymmetrySpec,
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    right_spec: SymmetrySpec | None = None,
) -> Problem:
    """The problem of matching the weights of two networks whose gauges were removed.

    Args:
        spec: of the left network, and of the right one unless ``right_spec`` is given.
        left: state of the left network, without its gauge.
        right: of the right one.
        right_spec: of the right network, where widths differ; blocks and leaves correspond by position.
    """
    spaces = {space.name for space in spec.spaces}
    slots: dict[tuple[str, int], list[tuple[str, int | None]]] = {}
    for factor in spec.factors:
        if factor.kind == "sign":
            for slot in factor.slots:
                slots.setdefault((slot.tensor, slot.block), []).append((factor.name, slot.leaf))
    dtype = torch.float32
    for name in spec.tensors:
        if left[name].dtype == torch.float64 or right[name].dtype == torch.float64:
            dtype = torch.float64
    terms = []
    for name, axes in spec.axes.items():
        info = spec.tensors[name]
        if info.tied_to is not None or info.kind == "unused" or not left[name].is_floating_point():
            continue
        pairs = zip(tensor_blocks(axes), tensor_blocks((right_spec or spec).axes[name]), strict=True)
        for number, (block, other) in enumerate(pairs):
            names = tuple(leaf_name(leaf) for leaf in block.leaves)
            signs = tuple(slots.get((name, number), ()))
            if signs or spaces.intersection(name for name in names if name):
                first = block.read(left[name].detach()).to("cpu", dtype)
                second = other.read(right[name].detach()).to("cpu", dtype)
                terms.append(Term(first, second, names, signs))
    acting = {name for term in terms for name in term.leaves}
    return Problem(
        tuple(terms),
        tuple(space.name for space in spec.permuted if space.name in acting),
        {name: outer for name, outer in spec.within.items() if name in acting},
        {factor.name: factor.space for factor in spec.factors if factor.kind == "sign"},
        frozenset(factor.space for factor in spec.linear if factor.space in acting),
    )
