"""Where do the units of a space stand at a given size, and how much does each of them count for those that read it?

A field is a function of continuous coordinates; this page says at which coordinates a network of some size reads it.
Two ways of making a space of N units narrower are known:

- ``spread``: unit i of n at ``(i + 1/2) / n``. All sizes run over the whole interval, the narrow ones more coarsely,
  and each unit stands for N / n units of the full width (NeuMeta: Yang, Zhou and Wang 2024, sections 3.1 and 3.4).
- ``cut``: unit i of n at ``(i + 1/2) / N``. Narrow networks run over a shorter interval with the spacing of the full
  width; where the field is a table with one entry per unit, this is slimmable training (Yu et al. 2019, shared prefix).

Beyond the full width units stand more densely on the whole interval. With ``copies`` they stand where units of the full
width stand, and share what these counted for: then every field gives the same function at every larger size, exactly.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metanet.errors import FieldError

__all__ = ["BEYOND", "WAYS", "Places", "Sampling"]

WAYS = ("spread", "cut")
BEYOND = ("between", "copies")


@dataclass(frozen=True, eq=False)
class Places:
    """The units of one space at one size.

    Args:
        positions: their coordinates, from 0 to 1, rising.
        shares: what the weights that read each unit are multiplied by.
        full: number of units at full width.
        moved: whether noise was added.
        kept: weights of interpolation, by number of knots.

    Shapes:
        positions, shares: (n,) float64
    """

    positions: Tensor
    shares: Tensor
    full: int
    moved: bool = False
    kept: dict[int, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of units n."""
        return len(self.positions)

    @functools.cached_property
    def prefix(self) -> bool:
        """Whether the units are the first n of the full width."""
        if self.moved or self.size > self.full:
            return False
        return torch.equal(self.positions, (torch.arange(self.size, dtype=torch.float64) + 0.5) / self.full)

    @functools.cached_property
    def plain(self) -> bool:
        """Whether all shares are 1."""
        return bool((self.shares == 1).all())

    def hats(self, knots: int) -> Tensor:
        """Weights of linear interpolation between knots at ``(k + 1/2) / K``, constant outside them.

        Shapes:
            -> (n, knots) float64
        """
        if knots not in self.kept:
            place = (self.positions * knots - 0.5).clamp(0, knots - 1)
            below = place.floor().clamp(max=max(knots - 2, 0))
            found = torch.zeros(self.size, knots, dtype=torch.float64)
            rows = torch.arange(self.size)
            found[rows, below.long()] = 1 - (place - below)
            if knots > 1:
                found[rows, below.long() + 1] = place - below
            self.kept[knots] = found
        return self.kept[knots]


@dataclass(frozen=True)
class Sampling:
    """How coordinates are laid out; see the first lines of this module.

    Args:
        way: ``spread`` or ``cut``.
        beyond: what larger sizes than the full width are: ``between`` (new coordinates) or ``copies``.

    Raises:
        FieldError: for other words.
    """

    way: str = "spread"
    beyond: str = "between"

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise FieldError(f"way of sampling {self.way!r}", hint=f"expected one of {', '.join(WAYS)}")
        if self.beyond not in BEYOND:
            raise FieldError(f"sampling beyond the full width {self.beyond!r}", hint=f"expected {' or '.join(BEYOND)}")

    def places(self, size: int, full: int, noise: float = 0.0, generator: torch.Generator | None = None) -> Places:
        """Where ``size`` units of a space of ``full`` stand.

        Args:
            size: number of units, at least 1.
            full: number of units at full width.
            noise: how far units stray, in spacings between neighbours: each moves by a uniform number within plus and
                minus half of it (NeuMeta, section 3.3, draws from the whole spacing: 1).
            generator: of the noise.
        """
        index = torch.arange(size, dtype=torch.float64)
        if size > full and self.beyond == "copies":
            source = (index * full / size).floor()
            copies = torch.bincount(source.long(), minlength=full)
            positions, shares = (source + 0.5) / full, 1.0 / copies[source.long()].double()
        elif self.way == "spread" or size >= full:
            positions, shares = (index + 0.5) / size, torch.full((size,), full / size, dtype=torch.float64)
        else:
            positions, shares = (index + 0.5) / full, torch.ones(size, dtype=torch.float64)
        if noise:
            spacing = 1.0 / (max(size, full) if self.way == "cut" else size)
            drawn = torch.rand(size, generator=generator, dtype=torch.float64) - 0.5
            positions = (positions + noise * spacing * drawn).clamp(0.0, 1.0)
        return Places(positions, shares, full, bool(noise))
