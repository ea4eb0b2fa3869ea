"""Which signs bring a network to a canonical gauge?

Along the data flow, each unit's sign is chosen so that a fixed odd statistic of its weights is positive: their sum
against generic numbers that belong to the other end of each weight (its position on a fixed axis, or what tells its
unit apart whatever the signs are). A weight counts only once the signs at its other ends are settled, so the statistic
depends on nothing that is still free. Each unit has as many free signs as the group gives it; a statistic settles one
combination of them. Statistics that are zero, as those of dead units, are passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from symmetry.frames.colours import Features, Vectors, contract, vectors
from symmetry.frames.parts import Groups, Part, onto
from symmetry.spec import SymmetrySpec

__all__ = ["canonical_signs"]

Place = tuple[str | None, tuple[int, ...], int]


def canonical_signs(
    spec: SymmetrySpec, parts: Sequence[Part], features: Features, tolerance: float
) -> dict[str, Tensor]:
    """Flips of every sign factor that bring a state to the canonical gauge; scales must be canonical already.

    Args:
        spec: the spec.
        parts: the state's parts.
        features: of the units, the same whatever the signs are.
        tolerance: statistics smaller than this, relative to the same sum of magnitudes, count as zero.
    """
    factors = [factor for factor in spec.factors if factor.kind == "sign"]
    if not factors:
        return {}
    solver = _Solver(spec, parts, features, tolerance)
    while True:
        while solver.sweep():
            pass
        if not solver.choose_root():
            return solver.flips()


class _Settled:
    """Linear equations over two elements, for every unit of one space: which combinations of its signs are settled."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.rows = torch.zeros(count, *shape, dtype=torch.long)
        self.values = torch.zeros(count, *shape, dtype=torch.bool)

    def reduce(self, row: int) -> tuple[Tensor, Tensor]:
        """What is left of a combination (bits; 0 if it is settled), and the flip that settled ones give."""
        rest = torch.full(self.rows.shape[1:], row, dtype=torch.long)
        flip = torch.zeros(self.rows.shape[1:], dtype=torch.bool)
        for bit in reversed(range(len(self.rows))):
            hit = (rest >> bit & 1).bool() & (self.rows[bit] != 0)
            rest = torch.where(hit, rest ^ self.rows[bit], rest)
            flip = flip ^ (hit & self.values[bit])
        return rest, flip

    def settle(self, row: int, wanted: Tensor, where: Tensor) -> None:
        """Add the equation "this combination flips as wanted" for some units; it must not be settled there yet."""
        rest, flip = self.reduce(row)
        free = where & (rest != 0)
        for bit in reversed(range(len(self.rows))):
            leads = free & (rest >> bit & 1).bool()
            self.rows[bit] = torch.where(leads, rest, self.rows[bit])
            self.values[bit] = torch.where(leads, wanted ^ flip, self.values[bit])
            free = free & ~leads

    def solve(self) -> list[Tensor]:
        """A flip for every factor; what is not settled does not flip."""
        found: list[Tensor] = []
        for bit in range(len(self.rows)):
            value = self.values[bit].clone()
            for lower in range(bit):
                value = value ^ ((self.rows[bit] >> lower & 1).bool() & found[lower])
            found.append(value & (self.rows[bit] != 0))
        return found


class _Solver:
    def __init__(self, spec: SymmetrySpec, parts: Sequence[Part], features: Features, tolerance: float) -> None:
        self.parts, self.features, self.tolerance = parts, features, tolerance
        self.groups = Groups.of(spec.factors, "sign")
        self.settled = {
            space: _Settled(len(members), spec.array_shape(space)) for space, members in self.groups.members.items()
        }
        # Exponents of signs count modulo two: each slot flips once.
        self.places: dict[int, list[Place]] = {}
        for part in parts:
            combined: dict[tuple[str | None, tuple[int, ...]], int] = {}
            for slot in part.signs:
                members = [factor.name for factor in self.groups.members[slot.factor.space]]
                key = (slot.factor.space, slot.dims)
                combined[key] = combined.get(key, 0) ^ 1 << members.index(slot.factor.name)
            self.places[id(part)] = [(space, dims, row) for (space, dims), row in combined.items() if row]

    def sweep(self) -> bool:
        """Settle what can be settled now; says whether anything was."""
        progress = False
        carried = vectors(self.parts, self.features, self._settled_values)
        for part in self.parts:
            for place in self.places[id(part)]:
                space, _, row = place
                state = self.settled[space]
                free = state.reduce(row)[0] != 0
                if bool(free.any()):
                    statistic, size = self._statistic(part, place, carried)
                    sure = free & (statistic.abs() > self.tolerance * size)
                    state.settle(row, statistic < 0, sure)
                    progress |= bool(sure.any())
        return progress

    def _factor(self, part: Part, place: Place) -> Tensor:
        """1 or -1 where a place is settled, 0 where it is free; broadcastable against the part."""
        space, dims, row = place
        rest, flip = self.settled[space].reduce(row)
        sign = torch.where(rest == 0, 1.0 - 2.0 * flip.to(torch.float64), 0.0)
        return onto(sign, dims, part.values.ndim)

    def _settled_values(self, part: Part, but: Place | None = None) -> Tensor:
        values = part.values
        for place in self.places[id(part)]:
            if place is not but:
                values = values * self._factor(part, place)
        return values

    def _statistic(self, part: Part, place: Place, carried: Vectors) -> tuple[Tensor, Tensor]:
        """The odd statistic of each unit, and the sum of magnitudes it is measured by."""
        target = place[1][-1] if place[1] else None
        values = self._settled_values(part, place)
        sums = contract(part, values, target, self.features, carried)
        nothing = torch.zeros(self.settled[place[0]].rows.shape[1:], dtype=torch.float64)
        if sums is None:
            return nothing, nothing
        if part.matrices:
            # Sums of magnitudes would depend on the matrices; the statistic itself does not.
            sizes = sums.square().mean(tuple(range(sums.ndim - 1)), keepdim=True).sqrt().expand(sums.shape)
        else:
            magnitudes = {name: value.abs() for name, value in self.features.items()}
            sizes = contract(part, values.abs(), target, magnitudes) if sums.numel() else sums  # type: ignore[assignment]
        best = torch.where(sizes > 0, sums.abs() / sizes.clamp_min(1e-300), 0.0).argmax(-1, keepdim=True)
        return sums.gather(-1, best).squeeze(-1), sizes.gather(-1, best).squeeze(-1)

    def choose_root(self) -> bool:
        """Keep the sign of one unit where weights have free signs at both ends only; says whether there was one.

        Then all units that hang together may flip at once, so it does not matter which way.
        """
        for space, state in self.settled.items():
            for part in self.parts:
                for place in self.places[id(part)]:
                    if place[0] != space:
                        continue
                    free = state.reduce(place[2])[0] != 0
                    rest = [dim for dim in range(part.values.ndim) if dim not in place[1]]
                    size = part.values.abs().amax(rest) if rest else part.values.abs()
                    dims = sorted(place[1])
                    alive = free & (size.permute([dims.index(dim) for dim in place[1]]) > 0)
                    if bool(alive.any()):
                        key = self.features[space][..., 0] if space and space in self.features else torch.zeros(())
                        root = torch.where(alive, key, -torch.inf).flatten().argmax()
                        where = torch.zeros(alive.numel(), dtype=torch.bool)
                        where[root] = True
                        state.settle(place[2], torch.zeros_like(alive), where.reshape(alive.shape))
                        return True
        return False

    def flips(self) -> dict[str, Tensor]:
        """The flips of every factor."""
        return {
            factor.name: flip
            for space, members in self.groups.members.items()
            for factor, flip in zip(members, self.settled[space].solve(), strict=True)
        }
