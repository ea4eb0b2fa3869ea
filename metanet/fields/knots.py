"""How does a table of knots, interpolated in the coordinates of units, write weights of any size?

Two forms. ``grid``: a piece has one value per combination of knots, ``W(s, t) = sum_kl p_k(s) p_l(t) G_kl`` with hat
functions p. Separable (with a ``rank``): ``W(s, t) = <A(s), B(t)> / sqrt(R)`` with A and B interpolated, features of
each unit scaled to root mean square 1; fixed axes are free tables on the side of B.

Small tables may vary with the width as well (``width_knots``): biases, gains and statistics have values for several
widths, interpolated, and every unit that is written has a gain of its own for each, unless a batch norm behind it would
undo that. The network that comes out is an ordinary one all the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import FieldError
from metanet.fields.field import Field, start_scale
from metanet.fields.layout import Piece
from metanet.fields.parts import Product, Table, to_knots
from metanet.fields.places import Places, Sampling
from symmetry import SymmetrySpec

__all__ = ["KnotsField"]


class KnotsField(Field):
    """A field of interpolated knots.

    Args:
        spec: of the architecture at full width.
        state: a network of full width: scales, constants, biases and gains start from it.
        sampling: how coordinates are laid out.
        knots: how many knots each space has; one per unit of the full width if ``None``, and never more.
        rank: R of the separable form, which is used for pieces that it saves numbers for; the grid form if ``None``.
        width_knots: at how many widths, evenly spaced, small tables have their own values; 1: they do not vary.
        widths: the lowest and the highest of these widths; outside them the tables stay as they are at the ends.
        start: ``random`` weights of the size of those of ``state``, or ``fit``: the weights of ``state`` as close as
            the knots allow (least squares; separable form: singular value decomposition first).
        normalised: whether features of the separable form are scaled to root mean square 1; cannot be with ``fit``.
        generator: of the random start.

    Raises:
        FieldError: for an impossible option.
    """

    kind = "knots"

    def __init__(
        self,
        spec: SymmetrySpec,
        state: Mapping[str, Tensor],
        sampling: Sampling | None = None,
        *,
        knots: int | None = None,
        rank: int | None = None,
        width_knots: int = 1,
        widths: tuple[float, float] = (0.25, 1.0),
        start: str = "random",
        normalised: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(spec, state, sampling or Sampling())
        for name, value in (("knots", knots), ("rank", rank), ("width_knots", width_knots)):
            if value is not None and value < 1:
                raise FieldError(f"{name}={value}", hint="expected 1 or more")
        if start not in ("random", "fit"):
            raise FieldError(f"start={start!r}", hint="expected random or fit")
        if not 0 < widths[0] < widths[1]:
            raise FieldError(f"widths={widths}", hint="expected two rising positive numbers")
        self.knots, self.rank, self.width_knots, self.widths, self.start = knots, rank, width_knots, widths, start
        self.normalised = start == "random" if normalised is None else normalised
        if self.normalised and start == "fit" and rank is not None:
            raise FieldError("features of norm 1 cannot start from given weights", hint="use normalised=False")
        self.gains = nn.ModuleDict()
        for piece in self.layout.pieces:
            values = self.start_values(piece, state)
            self.parts[piece.key] = (
                self._weight(piece, values, generator) if piece.weighs else self._small(piece, values)
            )

    def count(self, piece: Piece) -> list[int]:
        """Knots of every leaf of a piece, or the size of a fixed one."""
        most = self.knots or max(piece.full, default=1)
        return [
            size if space is None else min(most, size) for space, size in zip(piece.spaces, piece.full, strict=True)
        ]

    def _small(self, piece: Piece, values: Tensor) -> Table:
        counts, places = self.count(piece), self.places(piece)
        for dim, here in enumerate(places):
            if here is not None:
                values = to_knots(values, dim, here, counts[dim])
        return Table(values, 1.0, self.width_knots, self.widths, piece.trained)

    def _weight(self, piece: Piece, values: Tensor, generator: torch.Generator | None) -> nn.Module:
        counts, places, scale = self.count(piece), self.places(piece), start_scale(piece, values)
        if self.width_knots > 1 and not self._undone(piece):
            written = [size for size, role in zip(counts, piece.roles, strict=True) if role == "out"]
            self.gains[piece.key] = Table(torch.zeros(written, dtype=values.dtype), 1.0, self.width_knots, self.widths)
        if self.rank is not None and self._saves(piece, counts):
            product = Product(piece, counts, self.rank, scale, self.normalised, generator, values.dtype)
            if self.start == "fit":
                product.fit(values, places)
            return product
        if self.start == "fit":
            for dim, here in enumerate(places):
                if here is not None:
                    values = to_knots(values, dim, here, counts[dim])
            return Table(values, scale)
        return Table(torch.randn(counts, generator=generator, dtype=values.dtype) * scale, scale)

    def _undone(self, piece: Piece) -> bool:
        """Whether gains on what is written would do nothing, since a batch norm follows, perhaps after a bias."""
        written = [dim for dim, role in enumerate(piece.roles) if role == "out"]
        units = math.prod(piece.full[dim] for dim in written)
        return any(
            factor.kind == "scale"
            and factor.size == units
            and any(self.spec.tensors[slot.tensor].kind == "norm.running_var" for slot in factor.slots)
            and all(
                (slot.block == piece.number and slot.leaf in written)
                if slot.tensor == piece.tensor
                else self.spec.tensors[slot.tensor].kind in ("bias", "norm.running_mean", "norm.running_var")
                for slot in factor.slots
            )
            for factor in self.spec.factors
        )

    def _saves(self, piece: Piece, counts: list[int]) -> bool:
        """Whether a product of the rank holds fewer numbers than a table."""
        sides = [
            math.prod(size for size, role in zip(counts, piece.roles, strict=True) if (role == "out") == written)
            for written in (True, False)
        ]
        return (self.rank or 0) * sum(sides) < math.prod(counts)

    def values(self, piece: Piece, places: Mapping[str, Places], width: float) -> Tensor:
        here = [None if space is None else places[space] for space in piece.spaces]
        values: Tensor = self.parts[piece.key](here, width)
        if piece.key in self.gains:
            written = [dim for dim, role in enumerate(piece.roles) if role == "out"]
            gain = self.gains[piece.key]([here[dim] for dim in written], width)
            shape = [size if dim in written else 1 for dim, size in enumerate(values.shape)]
            values = values * (1 + gain.view(shape))
        return values

    def options(self) -> dict[str, Any]:
        return {
            "knots": self.knots,
            "rank": self.rank,
            "width_knots": self.width_knots,
            "widths": list(self.widths),
            "normalised": self.normalised,
        }
