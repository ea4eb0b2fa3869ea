"""What generates the group of an architecture, and where does each generator act?"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Factor", "LinearFactor", "LinearSlot", "ShiftFactor", "ShiftStep", "Slot"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a factor acts: one block of one tensor, along one leaf of it (``None``: the whole block).

    The block's entries are multiplied by the factor's value to the power ``exponent``.
    """

    tensor: str
    block: int
    leaf: int | None
    exponent: Fraction


@dataclass(frozen=True, slots=True)
class Factor:
    """One generator of positive scalings or signs.

    Args:
        name: unique within the spec and kind.
        kind: ``scale`` (a positive number) or ``sign`` (plus or minus one).
        space: the space or fixed axis it has one value per unit of; ``None`` for a single value.
        size: number of units of that axis, 1 for a single value.
        slots: where it acts, and with which exponent.
    """

    name: str
    kind: str
    space: str | None
    size: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class LinearSlot:
    """Where a matrix acts: along one leaf of one block of a tensor, as M or (``inverse``) as its inverse transpose.

    With a ``gain`` (the gain g of an RMSNorm between the units and this tensor, which stays as it is) the entries are
    multiplied by g before and divided by g after.
    """

    tensor: str
    block: int
    leaf: int
    inverse: bool
    gain: str | None = None


@dataclass(frozen=True, slots=True)
class LinearFactor:
    """Any invertible matrix (or any orthogonal one) on the units of a space that meets linear operations only.

    Args:
        kind: ``linear`` (GL: any invertible matrix) or ``orthogonal`` (O: the matrix is its own inverse transpose).
        space: the space it acts on, which is not permuted besides: the group holds its permutations, and its scalings
            and signs (O: signs) that are common to a unit.
        size: number of units n; the matrix is n x n.
        slots: where it acts.

    The factor is known by the name of its space.
    """

    kind: str
    space: str
    size: int
    slots: tuple[LinearSlot, ...]

    @property
    def name(self) -> str:
        """The name of its space."""
        return self.space

    @property
    def dimension(self) -> int:
        """Dimension of the group of one matrix: n^2, or n (n - 1) / 2."""
        return self.size**2 if self.kind == "linear" else self.size * (self.size - 1) // 2


@dataclass(frozen=True, slots=True)
class ShiftStep:
    """Where a shift adds ``step`` to a block of a bias, times the integers along one leaf (``None``: one integer)."""

    tensor: str
    block: int
    leaf: int | None
    step: float


@dataclass(frozen=True, slots=True)
class ShiftFactor:
    """Whole numbers of half periods (or periods) added to the biases of sines and cosines: sin(x + pi) = -sin x.

    Args:
        name: unique within the spec.
        space: the space or fixed axis it has one integer per unit of; ``None`` for a single integer.
        size: number of units of that axis, 1 for a single integer.
        steps: what one unit of the integer adds, and to which biases: pi over the frequency behind the bias, or twice
            that where nothing behind the sine can take up a sign.
        flips: what changes its sign where the integer is odd; nothing if a step is a whole period.
    """

    name: str
    space: str | None
    size: int
    steps: tuple[ShiftStep, ...]
    flips: tuple[Slot, ...]
