"""How is one piece of a state written from coordinates by knots: a table, or a product of two tables?

Knots stand at ``(k + 1/2) / K`` on the unit interval and are interpolated linearly, so that a table with one knot per
unit of the full width holds the weights themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metanet.fields.layout import Piece
from metanet.fields.places import Places

__all__ = ["Product", "Table", "interpolate", "to_knots"]


def interpolate(values: Tensor, dim: int, places: Places) -> Tensor:
    """Values at knots, read at the places of units, along one dimension."""
    knots = values.shape[dim]
    if knots == places.full and places.prefix:
        return values if places.size == knots else values.narrow(dim, 0, places.size)
    weights = places.hats(knots).to(values)
    return torch.tensordot(weights, values, dims=([1], [dim])).movedim(0, dim)


def to_knots(values: Tensor, dim: int, places: Places, knots: int) -> Tensor:
    """Knots from which interpolation comes closest to the values, in least squares, along one dimension.

    Of all that come equally close it takes those nearest to the values interpolated at the knots: knots that no unit
    reads, or few read together, are like their neighbours.
    """
    if knots == places.full and places.prefix and places.size == knots:
        return values
    reads = places.hats(knots)
    near = _lines(places.positions, (torch.arange(knots, dtype=torch.float64) + 0.5) / knots)
    inverse = torch.linalg.pinv(reads)
    whole = (near + inverse @ (torch.eye(places.size, dtype=torch.float64) - reads @ near)).to(values)
    return torch.tensordot(whole, values, dims=([1], [dim])).movedim(0, dim)


def _lines(nodes: Tensor, at: Tensor) -> Tensor:
    """Weights of linear interpolation from rising nodes, constant outside. Shapes: (n,), (m,) -> (m, n)."""
    if len(nodes) == 1:
        return torch.ones(len(at), 1, dtype=nodes.dtype)
    above = torch.searchsorted(nodes, at).clamp(1, len(nodes) - 1)
    share = ((at - nodes[above - 1]) / (nodes[above] - nodes[above - 1]).clamp_min(1e-12)).clamp(0, 1)
    found = torch.zeros(len(at), len(nodes), dtype=nodes.dtype)
    rows = torch.arange(len(at))
    found[rows, above - 1] = 1 - share
    found[rows, above] = share
    return found


class Table(nn.Module):
    """A table of knots, one axis per leaf; tables of several widths are mixed from the two nearest ones.

    Args:
        values: at the knots.
        scale: what the stored numbers are multiplied by.
        width_knots: at how many widths it has values of its own.
        widths: the lowest and highest of them.
        trained: ``False`` for running statistics.

    Shapes:
        values: knots of each leaf, or entries of a fixed one.
    """

    def __init__(
        self,
        values: Tensor,
        scale: float = 1.0,
        width_knots: int = 1,
        widths: tuple[float, float] = (0.25, 1.0),
        trained: bool = True,
    ) -> None:
        super().__init__()
        self.widths = widths
        stored = (values / scale).clone()
        if width_knots > 1:
            stored = stored.expand(width_knots, *values.shape).clone()
        self.varies, self.scale = width_knots > 1, float(scale)
        if trained:
            self.table = nn.Parameter(stored)
        else:
            self.register_buffer("table", stored)

    def forward(self, places: Sequence[Places | None], width: float) -> Tensor:
        """The values of a piece; ``places`` has one entry per leaf."""
        values: Tensor = self.table
        if self.varies:
            values = mixed(values, self.widths, width)
        for dim, here in enumerate(places):
            if here is not None:
                values = interpolate(values, dim, here)
        return values if self.scale == 1 else values * self.scale


def mixed(values: Tensor, widths: tuple[float, float], width: float) -> Tensor:
    """Tables of several widths, interpolated at one; at the ends outside."""
    low, high = widths
    place = (width - low) / (high - low) * (len(values) - 1)
    place = min(max(place, 0.0), len(values) - 1.0)
    below = min(int(place), len(values) - 2)
    return torch.lerp(values[below], values[below + 1], place - below)


class Product(nn.Module):
    """``<A(s), B(t)> / sqrt(R)`` for the leaves that are written (s) and all others (t).

    Args:
        piece: which.
        knots: of every leaf, or the size of a fixed one.
        rank: R.
        scale: what the product is multiplied by.
        normalised: whether features are scaled to root mean square 1, for each unit.
        generator: of the start: standard normal numbers.
        dtype: of the tables.
    """

    def __init__(
        self,
        piece: Piece,
        knots: Sequence[int],
        rank: int,
        scale: float,
        normalised: bool,
        generator: torch.Generator | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.normalised = normalised
        self.written = [dim for dim, role in enumerate(piece.roles) if role == "out"]
        self.others = [dim for dim in range(len(piece.roles)) if dim not in self.written]
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(float(scale), dtype=dtype))
        self.a, self.b = (
            nn.Parameter(torch.randn(*(knots[dim] for dim in dims), rank, generator=generator, dtype=dtype))
            for dims in (self.written, self.others)
        )

    def fit(self, values: Tensor, places: Sequence[Places | None]) -> None:
        """Start from the best product of this rank to the values of full width (singular value decomposition)."""
        moved = values.permute(*self.written, *self.others) / self.scale
        split = len(self.written)
        shape = moved.shape
        matrix = moved.reshape(math.prod(shape[:split]), -1)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        rank = self.a.shape[-1]
        kept = min(rank, len(s))
        root = s[:kept].sqrt() * rank**0.25
        with torch.no_grad():
            for table, side, sizes, dims in (
                (self.a, u[:, :kept], shape[:split], self.written),
                (self.b, v[:kept].mT, shape[split:], self.others),
            ):
                found = (side * root).reshape(*sizes, kept)
                for number, dim in enumerate(dims):
                    here = places[dim]
                    if here is not None:
                        found = to_knots(found, number, here, table.shape[number])
                table.zero_()
                table[..., :kept] = found

    def forward(self, places: Sequence[Places | None], width: float) -> Tensor:
        """The values of a piece; ``places`` has one entry per leaf."""
        a, b = self._side(self.a, self.written, places), self._side(self.b, self.others, places)
        product = a.flatten(0, -2) @ b.flatten(0, -2).mT
        product = product.view(*a.shape[:-1], *b.shape[:-1]) * (self.scale / math.sqrt(a.shape[-1]))
        order = [*self.written, *self.others]
        return product.permute([order.index(dim) for dim in range(len(order))])

    def _side(self, table: Tensor, dims: Sequence[int], places: Sequence[Places | None]) -> Tensor:
        for number, dim in enumerate(dims):
            here = places[dim]
            if here is not None:
                table = interpolate(table, number, here)
        if self.normalised:
            table = table * (table.square().mean(-1, keepdim=True) + 1e-8).rsqrt()
        return table
