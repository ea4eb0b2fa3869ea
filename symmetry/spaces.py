"""What are the units of a network, and how is one axis of a tensor laid out over them?

A :class:`NeuronSpace` is a set of interchangeable units. An :data:`Axis` says how the indices of one tensor axis run
over
spaces: a fixed axis, one space, a row-major product (channels x pixels) or a concatenation (the gates of an LSTM).
All are immutable values that compare, hash, print and go to and from JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from symmetry.errors import SpecError

__all__ = ["Atom", "Axis", "Block", "Concat", "Fixed", "NeuronSpace", "Product", "axis_from_json", "blocks"]


@dataclass(frozen=True, slots=True)
class NeuronSpace:
    """A named set of ``size`` interchangeable units.

    Args:
        name: unique within one spec.
        size: number of units, at least 1.
    """

    name: str
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SpecError(f"space {self.name!r}: size {self.size}, expected at least 1")

    def __str__(self) -> str:
        return f"{self.name}[{self.size}]"


@dataclass(frozen=True, slots=True)
class Fixed:
    """An axis that nothing permutes: inputs, outputs, kernel positions, whatever was pinned.

    Args:
        size: length of the axis.
        name: identity of the axis where several tensors share it (two layers that read the same input), else ``None``.
    """

    size: int
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.name or 'fixed'}({self.size})"

    def leaves(self) -> tuple[Fixed | Atom, ...]:
        """The single leaf of this axis: itself."""
        return (self,)

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :func:`axis_from_json` reads back."""
        return {"fixed": self.size, "name": self.name}


@dataclass(frozen=True, slots=True)
class Atom:
    """An axis that runs over the units of one space, in order."""

    space: NeuronSpace

    @property
    def size(self) -> int:
        """Number of units of the space."""
        return self.space.size

    def __str__(self) -> str:
        return str(self.space)

    def leaves(self) -> tuple[Fixed | Atom, ...]:
        """The single leaf of this axis: itself."""
        return (self,)

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :func:`axis_from_json` reads back."""
        return {"space": self.space.name, "size": self.space.size}


@dataclass(frozen=True, slots=True)
class Product:
    """A row-major product: position ``i * inner.size + j`` is (outer ``i``, inner ``j``)."""

    outer: Axis
    inner: Axis

    @property
    def size(self) -> int:
        """Product of both sizes."""
        return self.outer.size * self.inner.size

    def __str__(self) -> str:
        return f"({self.outer} x {self.inner})"

    def leaves(self) -> tuple[Fixed | Atom, ...]:
        """Leaves of both factors, outer first."""
        return self.outer.leaves() + self.inner.leaves()

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :func:`axis_from_json` reads back."""
        return {"product": [self.outer.to_json(), self.inner.to_json()]}


@dataclass(frozen=True, slots=True)
class Concat:
    """Parts laid end to end."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """Sum of the sizes of the parts."""
        return sum(part.size for part in self.parts)

    def __str__(self) -> str:
        return "[" + " + ".join(str(part) for part in self.parts) + "]"

    def leaves(self) -> tuple[Fixed | Atom, ...]:
        """Leaves of all parts in order."""
        return tuple(leaf for part in self.parts for leaf in part.leaves())

    def to_json(self) -> dict[str, Any]:
        """A JSON value that :func:`axis_from_json` reads back."""
        return {"concat": [part.to_json() for part in self.parts]}


Axis: TypeAlias = Fixed | Atom | Product | Concat


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One part of an axis without any concatenation in it.

    Args:
        leaves: the spaces and fixed axes that index it, slowest first.
        positions: where each combination of leaf indices stands on the axis; shape: the sizes of the leaves.
    """

    leaves: tuple[Fixed | Atom, ...]
    positions: np.ndarray


@lru_cache(maxsize=16384)
def blocks(axis: Axis) -> tuple[Block, ...]:
    """The concatenation-free parts of an axis, in order; together they cover every position once."""
    if isinstance(axis, Fixed | Atom):
        return (Block((axis,), np.arange(axis.size)),)
    if isinstance(axis, Product):
        return tuple(
            Block(
                outer.leaves + inner.leaves,
                np.add.outer(outer.positions * axis.inner.size, inner.positions),
            )
            for outer in blocks(axis.outer)
            for inner in blocks(axis.inner)
        )
    parts, offset = [], 0
    for part in axis.parts:
        parts += [Block(block.leaves, block.positions + offset) for block in blocks(part)]
        offset += part.size
    return tuple(parts)


def axis_from_json(value: Mapping[str, Any]) -> Axis:
    """Read back what ``axis.to_json()`` wrote.

    Raises:
        SpecError: if the value is not the JSON of an axis.
    """
    match value:
        case {"fixed": int(size), "name": None | str() as name}:
            return Fixed(size, name)
        case {"space": str(name), "size": int(size)}:
            return Atom(NeuronSpace(name, size))
        case {"product": [outer, inner]}:
            return Product(axis_from_json(outer), axis_from_json(inner))
        case {"concat": [*parts]}:
            return Concat(tuple(axis_from_json(part) for part in parts))
    raise SpecError(
        f"not the JSON of an axis: {str(value)[:80]}; expected one of the keys fixed, space, product, concat"
    )
