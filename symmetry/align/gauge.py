"""Which member of its orbit under scalings stands for a network when it is compared with another?

The one that the group itself picks, so that two networks which differ by a scaling are compared as equals. It is found
in two stages. The first makes, unit by unit, as many norms one as there are scalings: running variances first, then
tensors in the order of the data flow; that is exact and does not depend on where in the orbit the network stood. The
second runs a fixed number of sweeps towards the point of the orbit with the smallest sum of squares, where incoming
norm equals outgoing norm, so that a unit weighs in a comparison as much as it does in the network. Directions without
such a point (a scaling in front of a norm, which only ever makes weights smaller) stay where the first stage put them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.linalg import null_space
from scipy.optimize import linprog
from torch import Tensor

from symmetry.action import leaf_name, tensor_blocks
from symmetry.align.arrays import placed
from symmetry.align.matrix_gauge import balanced_matrices
from symmetry.elements import GroupElement
from symmetry.spec import Factor, SymmetrySpec

__all__ = ["balanced_gauge"]

PASSES = 20
SWEEPS = 8
SETTLED = 1e-12


def balanced_gauge(spec: SymmetrySpec, state: Mapping[str, Tensor]) -> GroupElement:
    """The element of scalings, matrices and shifts that brings a state into the balanced gauge.

    Units whose tensors are zero keep their scale. What is left of invertible matrices is a rotation; what is left of a
    bias that may be shifted by whole steps lies within half a step of zero.
    """
    gauge = _balanced_scalings(spec, state)
    if spec.linear:
        gauge = balanced_matrices(spec, spec.act(gauge, state)) @ gauge
    if spec.shifts:
        gauge = _small_shifts(spec, spec.act(gauge, state)) @ gauge
    return gauge


def _small_shifts(spec: SymmetrySpec, state: Mapping[str, Tensor]) -> GroupElement:
    neutral = spec.identity()
    shifts = dict(neutral.shifts)
    for factor in spec.shifts:
        step = factor.steps[0]
        block = tensor_blocks(spec.axes[step.tensor])[step.block]
        names = [leaf_name(leaf) for leaf in block.leaves]
        outer = spec.within.get(factor.space or "", ())
        dims = [] if step.leaf is None else [*(names.index(name) for name in outer), step.leaf]
        if len(dims) == len(names):
            values = block.read(state[step.tensor].detach()).to("cpu", torch.float64).permute(dims)
            # Biases half a step from zero could go either way by rounding; they go the same way for both networks.
            shifts[factor.name] = -torch.ceil(values / step.step - 0.5 - 1e-6).long()
    return GroupElement(spec, neutral.permutations, neutral.log_scales, neutral.flips, neutral.matrices, shifts)


def _balanced_scalings(spec: SymmetrySpec, state: Mapping[str, Tensor]) -> GroupElement:
    neutral = spec.identity()
    scales = [factor for factor in spec.factors if factor.kind == "scale"]
    energies = _Energies(spec, state)
    groups = [
        _Group(spec, energies, list(members))
        # Single values belong together as well; a space's factors stand side by side in a spec, but need not.
        for _, members in itertools.groupby(
            sorted(scales, key=lambda f: _rank(scales, f)), key=lambda factor: factor.space
        )
    ]
    for group in groups:
        group.set_aside()
    for _ in range(PASSES):
        if max((group.pin(everything=True) for group in groups), default=0.0) < SETTLED:
            break
    for _ in range(SWEEPS):
        for group in groups:
            group.pin(everything=False)
            group.balance()
    for group in groups:
        group.take_back()
    logs = {name: value for group in groups for name, value in group.logs().items()}
    return GroupElement(spec, neutral.permutations, {**neutral.log_scales, **logs}, neutral.flips)


def _rank(scales: list[Factor], factor: Factor) -> int:
    """Place of the first factor of the same space: single values last."""
    if factor.space is None:
        return len(scales)
    return next(place for place, other in enumerate(scales) if other.space == factor.space)


@dataclass(slots=True)
class _Place:
    """Where some factors of one space act together: a block, the dimensions of its units, one exponent per factor."""

    key: tuple[str, int]
    dims: tuple[int, ...]
    exponents: np.ndarray
    offset: bool


@dataclass(slots=True)
class _Energies:
    """Squared values of blocks, with all scalings so far as separate vectors: a sum over them is a matrix product."""

    spec: SymmetrySpec
    state: Mapping[str, Tensor]
    squares: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    logs: dict[tuple[str, int], dict[tuple[int, ...], Tensor]] = field(default_factory=dict)
    whole: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def mask(self, place: _Place, units: Tensor) -> None:
        """Leave some units of a block out of every sum, until :meth:`unmask`."""
        self.of(place)
        squares = self.squares[place.key]
        self.whole.setdefault(place.key, squares)
        self.squares[place.key] = torch.where(placed(units, place.dims, squares.ndim), 0.0, squares)

    def unmask(self, place: _Place) -> None:
        """Take them in again."""
        self.squares[place.key] = self.whole.get(place.key, self.squares[place.key])

    def move(self, place: _Place, step: Tensor) -> None:
        known = self.logs.setdefault(place.key, {})
        known[place.dims] = known[place.dims] + step if place.dims in known else step

    def of(self, place: _Place) -> Tensor:
        """Sum of the squares of each unit's entries, in the order of the factors' arrays."""
        if place.key not in self.squares:
            name, number = place.key
            block = tensor_blocks(self.spec.axes[name])[number]
            values = block.read(self.state[name].detach()).to("cpu", torch.float64)
            self.squares[place.key] = (values + (self.spec.tensors[name].positive_offset or 0.0)).square()
        values = self.squares[place.key]
        moved = [(dims, (2 * logs).exp()) for dims, logs in self.logs.get(place.key, {}).items()]
        # What is summed away goes first, so that the first contraction is the only large one.
        moved.sort(key=lambda item: set(item[0]) <= set(place.dims))
        operands: list[Tensor | list[int]] = [values, list(range(values.ndim))]
        for dims, multiplier in moved:
            operands += [multiplier, list(dims)]
        return torch.einsum(*operands, list(place.dims))


class _Group:
    """All scale factors of one space (or all single values), which may act on the same tensors."""

    def __init__(self, spec: SymmetrySpec, energies: _Energies, factors: list[Factor]) -> None:
        self.factors, self.energies = factors, energies
        self.total = [torch.zeros(spec.array_shape(factor.space), dtype=torch.float64) for factor in factors]
        found: dict[tuple[tuple[str, int], tuple[int, ...]], _Place] = {}
        # Norms of a block that matrices act on are no measure of a unit: they depend on the matrices.
        turned = {
            (slot.tensor, slot.block) for matrix in spec.linear for slot in matrix.slots if matrix.kind == "linear"
        }
        for column, factor in enumerate(factors):
            for slot in factor.slots:
                if (slot.tensor, slot.block) in turned:
                    continue
                block = tensor_blocks(spec.axes[slot.tensor])[slot.block]
                names = [leaf_name(leaf) for leaf in block.leaves]
                outer = () if slot.leaf is None else spec.within.get(factor.space or "", ())
                dims = () if slot.leaf is None else (*(names.index(name) for name in outer), slot.leaf)
                key = (slot.tensor, slot.block)
                offset = spec.tensors[slot.tensor].positive_offset is not None
                place = found.setdefault((key, dims), _Place(key, dims, np.zeros(len(factors)), offset))
                place.exponents[column] += float(slot.exponent)
        order = sorted(found.values(), key=lambda p: (not p.offset, spec.tensors[p.key[0]].order, p.key[1], p.dims))
        self.places = [place for place in order if place.exponents.any()]
        rows = np.array([place.exponents for place in self.places]).reshape(-1, len(factors))
        self.pinned = _independent(rows, lambda chosen: not _escapes(rows, _free(rows[chosen], rows.shape[1])))
        self.complete = _independent(rows, lambda chosen: len(chosen) == rows.shape[1], self.pinned)
        self.idle: Tensor | None = None
        self.directions = _free(rows[self.pinned], rows.shape[1])
        # A block that carries the space twice (a recurrent matrix) moves under both of its sides: half a step is safe.
        self.damping = 0.5 if len({place.key for place in self.places}) < len(self.places) else 1.0

    def set_aside(self) -> None:
        """Leave the outgoing weights of units without incoming ones out of every norm.

        Nothing says how large they are: they could be made as small as one likes at no price.
        """
        if len(self.factors) > 1 or not self.places:
            return
        pivot = self.places[0]
        rates = [float(place.exponents[0]) for place in self.places]
        same = [place for place, rate in zip(self.places, rates, strict=True) if rate * rates[0] > 0]
        blank = torch.stack([self.energies.of(place) == 0 for place in same]).all(0)
        if bool(blank.any()) and pivot.dims:
            self.idle = blank
            for place in self.places:
                self.energies.mask(place, blank)

    def take_back(self) -> None:
        """Give the units that were set aside outgoing weights of norm one."""
        if self.idle is None:
            return
        for place in self.places:
            self.energies.unmask(place)
        others = [place for place in self.places if float(place.exponents[0]) * float(self.places[0].exponents[0]) < 0]
        if others:
            energy = sum((self.energies.of(place) for place in others), torch.zeros(()))
            alive = self.idle & (energy > 0)
            step = torch.where(alive, -0.5 * torch.where(alive, energy, 1.0).log() / float(others[0].exponents[0]), 0.0)
            self._move(step[None])

    def pin(self, everything: bool) -> float:
        """Make the norms at the pinned places one; the largest step in logarithms."""
        chosen = self.complete if everything else self.pinned
        if not chosen:
            return 0.0
        energy = torch.stack([self.energies.of(self.places[k]) for k in chosen])
        target = torch.where(energy > 0, -0.5 * energy.clamp_min(1e-300).log(), 0.0)
        inverse = np.linalg.pinv(np.stack([self.places[k].exponents for k in chosen]))
        return self._move(torch.tensordot(torch.from_numpy(inverse), target, 1))

    def balance(self) -> None:
        """One step along each free direction towards the smallest sum of squares; it never steps too far."""
        for direction in self.directions.T:
            rates = np.array([place.exponents @ direction for place in self.places])
            up, down = (
                sum(abs(rates[k]) * self.energies.of(self.places[k]) for k in np.flatnonzero(side))
                for side in (rates > 1e-9, rates < -1e-9)
            )
            if isinstance(up, Tensor) and isinstance(down, Tensor):
                alive = (up > 0) & (down > 0)
                ratio = torch.where(alive, down, 1.0).log() - torch.where(alive, up, 1.0).log()
                step = self.damping * ratio / (2 * (rates.max() - rates.min()))
                self._move(torch.stack([step * float(weight) for weight in direction]))

    def logs(self) -> dict[str, Tensor]:
        return {factor.name: total for factor, total in zip(self.factors, self.total, strict=True)}

    def _move(self, steps: Tensor) -> float:
        self.total = [total + step for total, step in zip(self.total, steps, strict=True)]
        for place in self.places:
            self.energies.move(place, torch.tensordot(torch.from_numpy(place.exponents), steps, 1))
        return float(steps.abs().max()) if steps.numel() else 0.0


def _independent(rows: np.ndarray, enough: object, start: list[int] | None = None) -> list[int]:
    """Rows chosen one after another, each independent of those before, until there are enough."""
    chosen = list(start or [])
    for row in range(len(rows)):
        if enough(chosen):  # type: ignore[operator]  # a callable of one list
            break
        if row not in chosen and np.linalg.matrix_rank(rows[[*chosen, row]]) > len(chosen):
            chosen.append(row)
    return chosen


def _free(rows: np.ndarray, count: int) -> np.ndarray:
    """A basis (columns) of the directions that leave the given rows alone."""
    return null_space(rows) if len(rows) else np.eye(count)


def _escapes(rows: np.ndarray, directions: np.ndarray) -> bool:
    """Whether some direction makes nothing larger and something smaller: then no smallest sum of squares exists."""
    if directions.shape[1] == 0:
        return False
    rates = rows @ directions
    best = linprog(rates.sum(0), A_ub=rates, b_ub=np.zeros(len(rates)), bounds=(-1, 1))
    return bool(best.fun < -1e-9)
