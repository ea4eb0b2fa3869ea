"""Which signs, and which shifts of sines' biases, bring the networks of a bucket to a common gauge?

A unit's sign is chosen so that a fixed odd statistic of its weights is positive: a plain sum over hidden units, which
no permutation changes, with fixed generic numbers over fixed axes. An entry counts once the signs at its other ends
are settled. A statistic that vanishes up to rounding is passed over, and the next one tried. Signs are constants for
gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache, reduce

import torch
from torch import Tensor

from metanet.graph import Topology
from metanet.nn.frames.places import Place, View, onto, views_of

__all__ = ["STATISTICS", "TOLERANCE", "Signs", "odd_statistics", "settle_shifts"]

STATISTICS = 5
TOLERANCE = 1e-6  # relative to the same sum of magnitudes: what is smaller counts as zero, also in rounded float32


def settle_shifts(topology: Topology, values: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """The integers that bring the first bias of every shift factor to within half a step of 0.

    That interval is its own mirror image, so signs, which are settled later, do not leave it.
    """
    found = {}
    views = views_of(topology)
    for factor in topology.spec.shifts:
        number, shift = next(
            (number, shift)
            for number, view in enumerate(views)
            for shift in (view.shifts if view is not None else ())
            if shift.factor == factor.name
        )
        view, value = views[number], values[number]
        if view is None or value is None:
            continue
        ratio = value.detach().reshape(len(value), *view.sizes) / shift.step
        rest = [1 + dim for dim in range(len(view.sizes)) if dim not in shift.dims]
        mean = ratio.mean(rest, keepdim=True) if rest else ratio
        mean = mean.permute(0, *(1 + dim for dim in shift.dims), *rest)
        shape = (len(value), *topology.spec.array_shape(factor.space))
        nearest = mean.reshape(shape).round().to(torch.int64)
        if sum(place.factor == factor.name for place in view.odd) % 2:
            # An odd number of steps turns the bias round before it is moved: sin(pi - z) = sin(z).
            found[factor.name] = torch.where(nearest % 2 == 1, nearest, -nearest)
        else:
            found[factor.name] = -nearest
    return found


@lru_cache(maxsize=1024)
def _generic(size: int, which: int) -> Tensor:
    """Fixed numbers in general position along a fixed axis."""
    return torch.randn(size, generator=torch.Generator().manual_seed(1009 * which + size), dtype=torch.float64)


def odd_statistics(
    value: Tensor, names: Sequence[str | None], spaces: Collection[str], dims: tuple[int, ...], which: int
) -> tuple[Tensor, Tensor]:
    """One odd statistic of each unit, and the sum of magnitudes that it is measured by.

    Args:
        value: one dimension per leaf behind the batch.
        names: of the leaves.
        spaces: names of hidden spaces, over which sums are plain.
        dims: the dimensions of the units.
        which: 0 and 1: sums with two sets of fixed numbers; 2: sum of squares with their signs; 3: sum of cubes; 4: sum
            weighted by the mean square over the units of the rest, which tells the other ends apart.

    Shapes:
        value: ``(B, *sizes)``; returns ``(B, *sizes of dims)`` twice.
    """
    ndim = value.ndim - 1
    rest = [dim for dim in range(ndim) if dim not in dims]
    if which == 2:
        value = value * value.abs()
    elif which == 3:
        value = value**3
    elif which == 4 and dims:
        value = value * value.square().mean([1 + dim for dim in dims], keepdim=True)
    numbers = [
        _generic(value.shape[1 + dim], int(which == 1) + 2 * dim).to(value).reshape(-1, *[1] * (ndim - 1 - dim))
        for dim in rest
        if names[dim] not in spaces and value.shape[1 + dim] > 1
    ]
    if numbers:
        value = value * reduce(torch.mul, numbers)
    order = (0, *(1 + dim for dim in dims), *(1 + dim for dim in rest))
    flat = value.permute(order).reshape(len(value), *(value.shape[1 + dim] for dim in dims), -1)
    return flat.sum(-1), flat.abs().sum(-1)


class Signs:
    """Signs of the networks of one bucket while they are being settled: 1, -1, or 0 where open.

    Args:
        topology: the architecture.
        size: number of networks.
        like: a tensor of the dtype and on the device of the values.
    """

    def __init__(self, topology: Topology, size: int, like: Tensor) -> None:
        spec = topology.spec
        self.topology, self.size = topology, size
        self.views = views_of(topology)
        self.spaces = {space.name for space in spec.spaces}
        self.signs = {
            factor.name: like.new_zeros(size, *spec.array_shape(factor.space))
            for factor in spec.factors
            if factor.kind == "sign"
        }
        self.places: dict[str, list[tuple[int, Place]]] = {name: [] for name in self.signs}
        for number, view in enumerate(self.views):
            for place in view.signs if view is not None else ():
                self.places[place.factor].append((number, place))
        for found in self.places.values():
            found.sort(key=lambda item: self._rank(*item))
        first = {name: min((self._order(n) for n, _ in found), default=0) for name, found in self.places.items()}
        self.order = sorted(self.signs, key=lambda name: first[name])
        self.complete: set[str] = set()

    def _order(self, number: int) -> int:
        return self.topology.layers[self.topology.blocks[number].layer].order

    def _rank(self, number: int, place: Place) -> tuple[int, int]:
        """Gains first (they hardly ever vanish), then what comes in, then the rest along the data flow."""
        kind = self.topology.blocks[number].kind
        into = 1 if not place.dims or place.dims[-1] == 0 or kind == "bias" else 2
        return (0 if kind == "norm.weight" else into, self._order(number))

    def settle(self, values: Sequence[Tensor | None], closed: Collection[str] = (), last: bool = True) -> None:
        """Settle all that can be settled.

        Args:
            values: block values, before these signs act.
            closed: spaces whose matrices are not settled yet; blocks that they act on do not count.
            last: let units that hold each other, and dead ones, keep their signs.
        """
        blocks = {
            number: (view, value.detach().reshape(self.size, *view.sizes))
            for number, (value, view) in enumerate(zip(values, self.views, strict=True))
            if view is not None and value is not None and view.signs
            if not any(turn.space in closed for turn in view.turns)
        }
        while len(self.complete) < len(self.order):
            if self._pass(blocks) or self._pairs(blocks):
                continue
            if not last:
                return
            name = next(name for name in self.order if name not in self.complete)
            self.signs[name] = torch.where(self.signs[name] == 0, 1.0, self.signs[name])
            self.complete.add(name)

    def _pass(self, blocks: Mapping[int, tuple[View, Tensor]]) -> bool:
        progress = False
        for name in self.order:
            for number, place in self.places[name]:
                if name not in self.complete and number in blocks:
                    progress |= self._try(name, *blocks[number], place)
        return progress

    def _try(self, name: str, view: View, block: Tensor, place: Place) -> bool:
        value = self.turned(view, block, place)
        progress = False
        for which in range(STATISTICS):
            statistic, size = odd_statistics(value, view.names, self.spaces, place.dims, which)
            free = (self.signs[name] == 0) & (statistic.abs() > TOLERANCE * size)
            if bool(free.any()):
                progress = True
                self.signs[name] = torch.where(free, statistic.sign(), self.signs[name])
                if bool((self.signs[name] != 0).all()):
                    self.complete.add(name)
                    break
            elif bool((size == 0).all()):
                break
        return progress

    def _pairs(self, blocks: Mapping[int, tuple[View, Tensor]]) -> bool:
        """Settle a factor that only meets open ones, such as the signs of heads beside those of rotary pairs.

        The statistics of two factors on a block form a matrix whose signs are a product, one of rows and one of
        columns: those of its leading singular vectors, up to both turned round. That is left open only where it
        changes nothing (:meth:`_turns`).
        """
        for view, block in blocks.values():
            places = [place for place in view.signs if not bool((self.signs[place.factor] != 0).any())]
            for one, other in itertools.combinations(places, 2):
                if one.factor == other.factor or set(one.dims) & set(other.dims) or not one.dims or not other.dims:
                    continue
                if not self._turns(one.factor):
                    continue
                value = self.turned(view, block, one, other)
                for which in range(STATISTICS):
                    dims = (*one.dims, *other.dims)
                    statistic, size = odd_statistics(value, view.names, self.spaces, dims, which)
                    shape = statistic.shape[1 : 1 + len(one.dims)]
                    sure = torch.where(statistic.abs() > TOLERANCE * size, statistic, 0.0)
                    matrix = sure.reshape(self.size, shape.numel(), -1)
                    if not bool((matrix != 0).any()):
                        continue
                    vector = torch.linalg.svd(matrix)[0][..., 0]
                    seen = (vector.abs() > TOLERANCE) & (matrix != 0).any(2).any(1, keepdim=True)
                    vector = torch.where(seen, vector, 0.0)
                    self.signs[one.factor] = vector.sign().reshape(self.size, *shape)
                    if bool((vector != 0).all()):
                        self.complete.add(one.factor)
                    return True
        return False

    def _turns(self, name: str) -> bool:
        """Whether all signs of an open factor can be turned round, together with those of other open ones, so that no
        block changes: whether the equations "an even number of them on each block" leave it free (over GF(2)).
        """
        bits = {
            factor: 1 << k
            for k, factor in enumerate(self.order)
            if factor == name or not bool((self.signs[factor] != 0).any())
        }
        rows: dict[int, int] = {}
        for factor, bit in bits.items():
            for number, _ in self.places[factor]:
                rows[number] = rows.get(number, 0) ^ bit
        basis: dict[int, int] = {}

        def reduced(row: int) -> int:
            while row.bit_length() in basis:
                row ^= basis[row.bit_length()]
            return row

        for row in map(reduced, rows.values()):
            if row:
                basis[row.bit_length()] = row
        return reduced(bits[name]) != 0

    def turned(self, view: View, value: Tensor, *but: Place) -> Tensor:
        """A block with its settled signs; entries with an open sign are zero.

        Shapes:
            value: ``(B, *sizes)``; returns the same.
        """
        signs = [
            onto(self.signs[other.factor], other.dims, len(view.sizes)) for other in view.signs if other not in but
        ]
        return value * reduce(torch.mul, signs) if signs else value

    def flips(self) -> dict[str, Tensor]:
        """The flips of every factor; open signs do not flip."""
        return {name: sign < 0 for name, sign in self.signs.items()}
