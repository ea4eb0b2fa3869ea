"""Which units of a network are unread, constant, or twins up to what the group allows?

Two units are twins if an element of the group that acts on single units (their scales and signs) makes everything equal
that writes them. For each block that writes them this compares directions (up to the signs that the sign factors can
produce together) and norms (up to the scalings that the scale factors can). Candidates come from a tree of a few random
projections, which bring points closer but never apart, so none is missed; each is then checked in full.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from symmetry.analyze.places import Place, rows, zero_units
from symmetry.spec import SymmetrySpec

__all__ = ["CLOSE", "Unit", "dead_units", "twin_units"]

# A unit of a space, or its place in every space that its own lies within, then in its own.
Unit: TypeAlias = int | tuple[int, ...]

CLOSE = 1e-3
PROJECTIONS = 8
_LARGE = 1e15  # beyond it sums of squares may leave the range of float32
MOST_FEATURES = 12
MOST_SIGNS = 12


def dead_units(
    spec: SymmetrySpec, state: Mapping[str, Tensor], space: str, places: Sequence[Place], role: str
) -> tuple[Unit, ...]:
    """Units for which every weight that reads them (role ``in``) or writes them (role ``out``) is exactly zero.

    None if there is no such weight. A unit that a batch norm multiplies by zero counts as not written.
    """
    found: Tensor | None = None
    for place in places:
        if place.weight and place.role == role:
            zero = zero_units(spec, state, space, place)
            found = zero if found is None else found & zero
    if found is None:
        return ()
    gains = [place for place in places if spec.tensors[place.tensor].kind == "norm.weight"]
    variances = [place for place in places if spec.tensors[place.tensor].kind == "norm.running_var"]
    writers = [place for place in places if place.weight and place.role == role]
    if role == "out" and len(gains) == len(variances) == len(writers) == 1:
        found = found | zero_units(spec, state, space, gains[0])
    return _units(spec, space, np.flatnonzero(found.numpy()))


def _units(spec: SymmetrySpec, space: str, flat: Sequence[int] | np.ndarray) -> tuple[Unit, ...]:
    shape = spec.array_shape(space)
    if len(shape) == 1:
        return tuple(int(index) for index in flat)
    return tuple(tuple(int(part) for part in np.unravel_index(int(index), shape)) for index in flat)


def twin_units(
    spec: SymmetrySpec, state: Mapping[str, Tensor], space: str, places: Sequence[Place]
) -> tuple[tuple[Unit, ...], ...]:
    """Groups of units that compute the same up to a factor that the group allows; inside wreaths within one copy.

    Units that nothing drives (all weights zero) are no twins: they are constant.
    """
    copies, size = spec.copies(space), spec.sizes[space]
    writing = [place for place in places if place.role != "in" and state[place.tensor].is_floating_point()]
    if size < 2 or not any(place.weight for place in writing):
        return ()
    comparison = _Comparison(spec, state, space, writing)
    tags = np.repeat(np.arange(copies), size) * 10.0
    groups = []
    for members in _candidates(comparison.features(tags), comparison.radius):
        groups += comparison.check(members)
    return tuple(_units(spec, space, group) for group in sorted(groups))


def _candidates(features: np.ndarray, radius: float) -> list[np.ndarray]:
    """Sets of points that are connected by steps of at most ``radius``."""
    pairs = cKDTree(features).query_pairs(radius, output_type="ndarray")
    if not len(pairs):
        return []
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(len(features), len(features)))
    _, labels = connected_components(graph, directed=False)
    involved = np.unique(pairs)
    order = involved[np.argsort(labels[involved], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


class _Comparison:
    """What is compared between the units of one space: directions, norms and signs of the blocks that write them."""

    def __init__(self, spec: SymmetrySpec, state: Mapping[str, Tensor], space: str, writing: Sequence[Place]) -> None:
        self.spec, self.state, self.space, self.writing = spec, state, space, writing
        self.powers = self._exponents("scale")
        self.parities = self._exponents("sign") % 2
        generator = torch.Generator().manual_seed(0)
        norms, directions = [], []
        for index, place in enumerate(writing):
            values = self._rows(place)
            norm = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)
            norms.append(norm.numpy())
            basis = torch.randn(values.shape[1], PROJECTIONS, generator=generator, dtype=values.dtype)
            # The largest singular value of a Gaussian matrix: points may come closer, not farther apart.
            basis /= math.sqrt(values.shape[1]) + 2 * math.sqrt(PROJECTIONS)
            turned = (values @ basis).to(torch.float64) / norm.clamp_min(1e-300)[:, None]
            directions.append((turned.abs() if self.parities[index].any() else turned).numpy())
        self.norms = np.stack(norms, 1)
        self.directions = np.concatenate(directions, 1)
        # Which blocks are zero must agree, and a unit whose weights are all zero takes no part.
        self.present = self.norms > 0
        self.alive = self.present[:, [place.weight for place in writing]].any(1)
        self.patterns, self.pattern = np.unique(self.present, axis=0, return_inverse=True)
        self.pattern = self.pattern.reshape(-1)
        self.invariants = self._invariants()
        self.allowed = self._sign_patterns()
        self.radius = CLOSE * math.sqrt(2 * len(writing))

    def _rows(self, place: Place) -> Tensor:
        # Enough for a tolerance of 1e-3, and twice as fast as float64 where the weights are of float32.
        tensor = self.state[place.tensor]
        large = tensor.numel() and float(tensor.abs().max()) > _LARGE
        dtype = torch.float64 if large else torch.promote_types(tensor.dtype, torch.float32)
        found = rows(self.spec, self.state, self.space, place, dtype)
        return found.reshape(-1, found.shape[-1])

    def _exponents(self, kind: str) -> np.ndarray:
        """Exponent of each factor of the space's single units on each block; shape (blocks, factors)."""
        factors = [f for f in self.spec.factors if f.kind == kind and f.space == self.space]
        found = np.zeros((len(self.writing), len(factors)))
        index = {place.key: number for number, place in enumerate(self.writing)}
        for column, factor in enumerate(factors):
            for slot in factor.slots:
                if slot.leaf is not None and (slot.tensor, slot.block, slot.leaf) in index:
                    found[index[slot.tensor, slot.block, slot.leaf], column] += float(slot.exponent)
        return found

    def _invariants(self) -> np.ndarray:
        """Logarithms of the norms with the directions that scalings move them in projected out."""
        found = np.zeros_like(self.norms)
        for number, present in enumerate(self.patterns):
            chosen = self.pattern == number
            logs = np.log(self.norms[np.ix_(chosen, present)])
            powers = self.powers[present]
            if powers.any():
                logs = logs - logs @ (powers @ np.linalg.pinv(powers)).T
            found[np.ix_(chosen, present)] = logs
        return found

    def _sign_patterns(self) -> set[tuple[int, ...]]:
        """The signs of all blocks that sign factors produce together."""
        columns = np.unique(self.parities[:, self.parities.any(0)], axis=1).T[:MOST_SIGNS].astype(int)
        found = set()
        for bits in itertools.product((0, 1), repeat=len(columns)):
            total = sum((bit * column for bit, column in zip(bits, columns, strict=True)), np.zeros(len(self.writing)))
            found.add(tuple(int(value) % 2 for value in total))
        return found

    def features(self, tags: np.ndarray) -> np.ndarray:
        """Points that lie within ``radius`` of each other wherever two units are twins."""
        wide = np.concatenate([self.directions, self.invariants], 1)
        if wide.shape[1] > MOST_FEATURES:
            basis = np.random.default_rng(0).standard_normal((wide.shape[1], MOST_FEATURES))
            wide = wide @ np.linalg.qr(basis)[0]
        dead = np.where(self.alive, 0.0, 10.0 + 10.0 * np.arange(len(wide)))
        return np.concatenate([wide, tags[:, None], 10.0 * self.pattern[:, None], dead[:, None]], 1)

    def check(self, members: np.ndarray) -> list[list[int]]:
        """The groups of twins among candidates, by comparing everything."""
        drift = np.abs(self.invariants[members][:, None] - self.invariants[members][None, :]).max(2)
        same, signs = drift <= CLOSE, []
        present = self.present[members[0]]
        for index, place in enumerate(self.writing):
            if not present[index]:
                continue
            values = self._rows(place)[torch.from_numpy(members)]
            unit = values.to(torch.float64)
            unit = unit / unit.norm(dim=1, keepdim=True)
            cosines = (unit @ unit.T).numpy()
            same &= np.abs(cosines) >= 1 - CLOSE**2 / 2
            signs.append(cosines < 0)
        allowed = {tuple(bit for bit, here in zip(bits, present, strict=True) if here) for bits in self.allowed}
        flipped = np.stack(signs, -1)
        groups, seen = [], set[int]()
        for first in range(len(members)):
            if first in seen:
                continue
            near = [
                other
                for other in np.flatnonzero(same[first]).tolist()
                if other not in seen and tuple(int(bit) for bit in flipped[first, other]) in allowed
            ]
            seen.update(near)
            if len(near) > 1:
                groups.append([int(members[other]) for other in near])
        return groups
