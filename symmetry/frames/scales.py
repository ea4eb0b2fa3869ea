"""Which positive scalings bring a network to a canonical gauge?

A scaling adds to the logarithms of the weights' magnitudes: ``log|g theta| = log|theta| + A x``, exactly, with ``x``
the log-scales of all factors and A known. This gives two steps.

1. *Root.* The least-squares solution of ``log|theta| + A x = 0`` over all weights that are not zero (each block weighs
   the same). It is linear, needs no order among factors that overlap, and takes every point of an orbit to one point:
   ``x(g theta) = x(theta) - x_g`` up to log-scales that change nothing. Zeros stay zeros under scalings, so leaving
   them out is exact, and a unit without a weight keeps ``x = 0``.
2. *Gauge.* From that one point on, anything deterministic keeps the result canonical. ``unit``: in the order of the
   data flow each factor makes the norm of the first weight that it touches 1 (of each unit: its incoming norm),
   running variances plus epsilon 1 before that. ``balanced``: the smallest sum of squares on the orbit, which makes
   incoming and outgoing norms equal (Kempf and Ness 1979; the balanced networks of Du, Hu and Lee 2018); where it could
   vanish, as for a unit that nothing reads, the remaining norms are kept at 1, or, where they cannot all be 1, at the
   root. Units whose norm is zero stay at the root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, eye_array, hstack, vstack
from torch import Tensor

from symmetry.frames.parts import Groups, Part, invariant_parts, reduce_to
from symmetry.frames.systems import Reduced, Subspace, System, Unknowns, reduced
from symmetry.spec import Factor, SymmetrySpec

__all__ = ["canonical_scales"]

SETTLED = 1e-13
MOST_SWEEPS = 50
MOST_STEPS = 100
LONGEST_STEP = 2.0
MOST_ROWS = 100_000


def canonical_scales(spec: SymmetrySpec, parts: Sequence[Part], gauge: str) -> dict[str, Tensor]:
    """Log-scales for every scale factor that bring a state to the canonical gauge.

    Args:
        spec: the spec.
        parts: the state's parts.
        gauge: ``unit`` or ``balanced``.
    """
    factors = [factor for factor in spec.factors if factor.kind == "scale"]
    if not factors:
        return {}
    unknowns = Unknowns(spec, factors)
    touched = [reduced(part) for part in invariant_parts(parts)]
    x = _root(unknowns, touched)
    for part in touched:
        part.free_logs()
    pivots = _Pivots(unknowns, touched, factors)
    x = pivots.normalise(x) if gauge == "unit" else _balance(unknowns, touched, pivots, x)
    return {factor.name: unknowns.view(x, factor.name).clone() for factor in factors}


def _root(unknowns: Unknowns, parts: Sequence[Reduced]) -> Tensor:
    right = unknowns.zeros()
    for part in parts:
        part.gather(unknowns, -part.weight * part.logs, right)
    system = System(unknowns, parts, [part.weight * part.counts for part in parts], Subspace(unknowns))
    # A second solve on what is left makes up for digits lost in the first.
    x = system.solve(right)
    return x + system.solve(right - system(x))


@dataclass(frozen=True)
class _Pivot:
    """The factors of one space, and for as many of them as can be: whose norm is made 1.

    Args:
        factors: names of the factors.
        places: for each pivot its part and the dimensions that index the units.
        exponents: for each pivot the exponents of all factors there; shape (pivots, factors).
        fixed: how many of the pivots, the first ones, are running variances.
    """

    factors: tuple[str, ...]
    places: tuple[tuple[Reduced, tuple[int, ...]], ...]
    exponents: np.ndarray
    fixed: int


class _Pivots:
    """For every space, which norms its factors make 1."""

    def __init__(self, unknowns: Unknowns, parts: Sequence[Reduced], factors: Sequence[Factor]) -> None:
        self.unknowns = unknowns
        self.groups = Groups.of(factors, "scale")
        self.parts = sorted(parts, key=_priority)
        chosen = [(self._choose(space), space) for space in self.groups.members]
        chosen.sort(key=lambda item: min((part.part.rank for part, _ in item[0].places), default=()))
        self.chosen = [pivot for pivot, _ in chosen]
        self.spaces = [space for _, space in chosen]

    def _choose(self, space: str | None) -> _Pivot:
        members = tuple(factor.name for factor in self.groups.members[space])
        places: list[tuple[Reduced, tuple[int, ...]]] = []
        rows: list[list[float]] = []
        fixed = 0
        for part in self.parts:
            if len(places) == len(members):
                break
            if space not in part.groups:
                continue
            for dims, row in self.groups.rows(space, part.slots).items():
                if np.linalg.matrix_rank(np.array([*rows, row])) > len(rows):
                    places.append((part, dims))
                    rows.append(row)
                    fixed += part.part.offset
        return _Pivot(members, tuple(places), np.array(rows).reshape(len(rows), len(members)), fixed)

    def normalise(self, x: Tensor, only_fixed: bool = False) -> Tensor:
        """Make all pivots' norms 1, space by space along the data flow, again until nothing moves."""
        for _ in range(MOST_SWEEPS):
            largest = 0.0
            for pivot in self.chosen:
                places = pivot.places[: pivot.fixed] if only_fixed else pivot.places
                if not places:
                    continue
                logs = torch.stack(
                    [_log_norms(part.scaled_squares(self.unknowns, x), dims, part.shape) for part, dims in places]
                )
                solution = torch.from_numpy(np.linalg.pinv(pivot.exponents[: len(places)]))
                step = -torch.tensordot(solution, logs, 1)
                x = x.clone()
                for name, change in zip(pivot.factors, step, strict=True):
                    self.unknowns.view(x, name).add_(change)
                largest = max(largest, float(step.abs().max()))
            if largest < SETTLED:
                break
        return x


def _priority(part: Reduced) -> tuple[int, tuple[int, ...]]:
    """Running variances, then weights, then vectors; in the order of the data flow."""
    weight = part.part.kind.endswith(".weight") or part.part.kind in ("parameter", "product")
    return (0 if part.part.offset else 1 if weight and not part.part.buffer else 2, part.part.rank)


def _log_norms(squares: Tensor, dims: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    sums = reduce_to(squares, dims, shape)
    return torch.where(sums > 0, 0.5 * sums.clamp_min(1e-300).log(), 0.0)


def _balance(unknowns: Unknowns, parts: Sequence[Reduced], pivots: _Pivots, x: Tensor) -> Tensor:
    """Newton's method on half the sum of squares of the parameters, a convex function of the log-scales."""
    x = pivots.normalise(x, only_fixed=True)
    parts = [part for part in parts if not part.part.buffer]
    # Running variances stay as they are.
    projections = [
        (pivot.factors, torch.from_numpy(np.eye(len(pivot.factors)) - np.linalg.pinv(rows) @ rows))
        for pivot in pivots.chosen
        if pivot.fixed
        for rows in [pivot.exponents[: pivot.fixed]]
    ]
    subspace = Subspace(unknowns, projections)
    pull = subspace.project(_pull(unknowns, parts, pivots, dict(projections)))
    program = _Program.of(unknowns, parts, pivots)
    lone = bool((pull != 0).any())
    if program is None or not lone or program.has_minimum(pull):
        reached, settled = _descend(unknowns, parts, subspace, pull, x)
        if program is None or lone or settled:
            return reached
    # Weights that can shrink together without end cannot all be held by norms of 1: they keep the sizes that they have
    # at the root, which have a minimum together.
    stay = unknowns.zeros()
    for part, held in zip(parts, program.shrinking(parts), strict=True):
        part.gather(unknowns, part.scaled_squares(unknowns, x) * held, stay)
    return _descend(unknowns, parts, subspace, subspace.project(stay), x)[0]


@dataclass(frozen=True, eq=False)
class _Program:
    """How the logarithms of all weights that are not zero depend on the log-scales, for linear programs.

    Args:
        growth: one row per weight (or sum of weights that scale alike): by what each log-scale moves it.
        fixed: rows that log-scales must keep at zero, because running variances stay as they are.
        alive: for each part which of its places have a row.
    """

    growth: csr_matrix
    fixed: csr_matrix
    alive: list[Tensor]

    @classmethod
    def of(cls, unknowns: Unknowns, parts: Sequence[Reduced], pivots: _Pivots) -> _Program | None:
        """The program of some parts; nothing where there are no weights or too many."""
        columns, values, rows, alive, count = [], [], [], [], 0
        if not 0 < sum(int((part.squares > 0).expand(part.shape).sum()) for part in parts) <= MOST_ROWS:
            return None
        for part in parts:
            here = (part.squares > 0).expand(part.shape).reshape(-1)
            numbers = count + torch.arange(int(here.sum()))
            alive.append(here)
            for slot, index in zip(part.slots, part.indices(unknowns), strict=True):
                columns.append(index.expand(part.shape).reshape(-1)[here])
                values.append(torch.full((len(numbers),), float(slot.exponent), dtype=torch.float64))
                rows.append(numbers)
            count += len(numbers)
        entries = [torch.cat(item).numpy() if item else np.zeros(0) for item in (values, rows, columns)]
        growth = csr_matrix((entries[0], (entries[1], entries[2])), shape=(count, unknowns.size))
        return cls(growth, _fixed_rows(unknowns, pivots), alive)

    def has_minimum(self, pull: Tensor) -> bool:
        """Whether positive amounts of all weights balance the pull (then the sum of squares minus it has a minimum).

        The largest t is sought with ``A^T a + F^T m = pull`` and all ``a >= t``.
        """
        count, kept = self.growth.shape[0], self.fixed.shape[0]
        ones = csr_matrix(self.growth.T.sum(1))
        # a = b + t with b >= 0.
        balance = hstack([self.growth.T, self.fixed.T, ones], format="csr")
        found = linprog(
            np.concatenate([np.zeros(count + kept), [-1.0]]),
            A_eq=balance,
            b_eq=pull.numpy(),
            bounds=[(0, None)] * count + [(None, None)] * kept + [(0, 1)],
        )
        return bool(found.status == 0 and found.x[-1] > 1e-6)

    def shrinking(self, parts: Sequence[Reduced]) -> list[Tensor]:
        """Which weights shrink in some direction in which none grows: for each part a mask over its places.

        One program finds all of them: the largest sum of z with ``A x + z <= 0`` and ``0 <= z <= 1``.
        """
        count, size = self.growth.shape
        found = linprog(
            np.concatenate([np.zeros(size), -np.ones(count)]),
            A_ub=hstack([self.growth, eye_array(count, format="csr")], format="csr"),
            b_ub=np.zeros(count),
            A_eq=hstack([self.fixed, csr_matrix((self.fixed.shape[0], count))], format="csr"),
            b_eq=np.zeros(self.fixed.shape[0]),
            bounds=[(None, None)] * size + [(0, 1)] * count,
        )
        shrinks = torch.from_numpy(np.asarray(found.x[size:] > 0.5)).to(torch.float64)
        masks, start = [], 0
        for part, alive in zip(parts, self.alive, strict=True):
            mask, number = torch.zeros(len(alive), dtype=torch.float64), int(alive.sum())
            mask[alive] = shrinks[start : start + number]
            masks.append(mask.reshape(part.shape))
            start += number
        return masks


def _fixed_rows(unknowns: Unknowns, pivots: _Pivots) -> csr_matrix:
    """What log-scales must not do because running variances stay as they are, one row per variance."""
    numbers, found = torch.arange(unknowns.size), []
    for pivot in pivots.chosen:
        for row in pivot.exponents[: pivot.fixed]:
            columns = [unknowns.view(numbers, name).reshape(-1).numpy() for name in pivot.factors]
            units = len(columns[0])
            values = np.repeat(row, units)
            places = (np.tile(np.arange(units), len(row)), np.concatenate(columns))
            found.append(csr_matrix((values, places), shape=(units, unknowns.size)))
    return vstack(found, format="csr") if found else csr_matrix((0, unknowns.size))


def _descend(
    unknowns: Unknowns, parts: Sequence[Reduced], subspace: Subspace, pull: Tensor, x: Tensor
) -> tuple[Tensor, bool]:
    """Newton's method on half the sum of squares minus a linear term; and whether it came to rest."""
    still = torch.zeros([1], dtype=torch.float64)

    def value(at: Tensor) -> float:
        return float(sum((0.5 * p.scaled_squares(unknowns, at).sum() for p in parts), still.sum()) - pull @ at)

    current = value(x)
    for _ in range(MOST_STEPS):
        squares = [part.scaled_squares(unknowns, x) for part in parts]
        gradient = -pull
        for part, scaled in zip(parts, squares, strict=True):
            part.gather(unknowns, scaled, gradient)
        gradient = subspace.project(gradient)
        step = System(unknowns, parts, [2 * scaled for scaled in squares], subspace).solve(-gradient, 1e-3, 200)
        length = float(step.abs().max())
        if not length > SETTLED:
            return x, True
        step = step * min(1.0, LONGEST_STEP / length)
        slope = float(step @ gradient)
        for _ in range(40):
            reached = value(x + step)
            # Rounding decides near the minimum: there the full step is right.
            if reached <= current + 1e-4 * slope or length < 1e-6:
                break
            step, slope = step / 2, slope / 2
        x, current = x + step, reached
    # What still creeps at the level of rounding is at rest; what wanders is not.
    return x, length < 1e-6


def _pull(
    unknowns: Unknowns,
    parts: Sequence[Reduced],
    pivots: _Pivots,
    projections: Mapping[tuple[str, ...], Tensor],
) -> Tensor:
    """A linear term for units whose squares alone have no minimum: it keeps the norms of what touches them at 1."""
    pull = unknowns.zeros()
    for space, pivot in zip(pivots.spaces, pivots.chosen, strict=True):
        free = projections.get(pivot.factors)
        rows: list[np.ndarray] = []
        alive: list[Tensor] = []
        for part in parts:
            for dims, row in pivots.groups.rows(space, part.slots).items():
                rows.append(np.array(row) if free is None else free.numpy() @ np.array(row))
                alive.append(reduce_to(part.squares, dims, part.shape) > 0)
        if not rows:
            continue
        patterns, which = torch.stack(alive).reshape(len(alive), -1).unique(dim=1, return_inverse=True)
        for number, pattern in enumerate(patterns.T.tolist()):
            present = np.array([row for row, is_alive in zip(rows, pattern, strict=True) if is_alive])
            if len(present) and not _bounded(present):
                mine = (which == number).reshape(alive[0].shape).to(torch.float64)
                for name, amount in zip(pivot.factors, present.sum(0), strict=True):
                    unknowns.view(pull, name).add_(amount * mine)
    return pull


def _bounded(rows: np.ndarray) -> bool:
    """Whether no direction shrinks some of the rows and grows none (then a minimum exists: Stiemke's lemma)."""
    directions = rows.shape[1]
    found = linprog(rows.sum(0), A_ub=rows, b_ub=np.zeros(len(rows)), bounds=[(-1, 1)] * directions)
    return bool(found.fun > -1e-9)
