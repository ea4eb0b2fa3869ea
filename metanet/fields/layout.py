"""Which pieces does a field have to write, and how are they put together to the tensors of a network of some size?

A piece is a block of one tensor without concatenation (:func:`symmetry.action.tensor_blocks`): one gate of an LSTM, the
queries of an attention layer, or simply a whole weight. Each leaf of it runs over one space, whose size may change, or
over a fixed axis, whose entries a field keeps as a table.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from metanet.errors import FieldError
from metanet.morph.resize import resized_spec
from symmetry import Atom, SymmetrySpec
from symmetry.action import TensorBlock, tensor_blocks
from symmetry.spaces import blocks

__all__ = ["Layout", "Piece"]


@dataclass(frozen=True)
class Piece:
    """One block of one tensor.

    Args:
        key: unique among the pieces of a spec; has no dots, so that a module may use it.
        tensor: the entry of the state dict.
        number: of the block in it.
        spaces: for every leaf the space that it runs over, ``None`` for a fixed axis.
        full: for every leaf its size at full width.
        roles: for every leaf the role of its axis (see :class:`symmetry.TensorInfo`).
        reads: for every leaf whether the piece reads units there, so that their shares count.
        kind: of the tensor.
        trained: ``False`` for buffers: running statistics, fixed tables.
    """

    key: str
    tensor: str
    number: int
    spaces: tuple[str | None, ...]
    full: tuple[int, ...]
    roles: tuple[str, ...]
    reads: tuple[bool, ...]
    kind: str
    trained: bool

    @property
    def fan_in(self) -> int:
        """How many numbers each output adds up, at full width."""
        summed = (size for size, role in zip(self.full, self.roles, strict=True) if role in ("in", "position"))
        return math.prod(summed)

    @property
    def weighs(self) -> bool:
        """Whether the piece multiplies what it reads: it is a matrix or a kernel, no bias or gain."""
        return self.trained and "in" in self.roles


class Layout:
    """The pieces of all tensors of an architecture, and what is not written by a field.

    Args:
        spec: of the architecture at full width.

    Raises:
        FieldError: for an integer tensor that runs over a space.
    """

    def __init__(self, spec: SymmetrySpec) -> None:
        self.spec = spec
        self.full = {space.name: space.size for space in spec.spaces}
        found: list[Piece] = []
        constants = []
        for name, info in spec.tensors.items():
            if info.tied_to is not None:
                continue
            floating = getattr(torch, info.dtype).is_floating_point
            leaves = [leaf for axis in spec.axes[name] for leaf in axis.leaves()]
            varies = any(isinstance(leaf, Atom) for leaf in leaves)
            if varies and not floating:
                raise FieldError(f"{name}: holds {info.dtype} for each unit", hint="a field writes real numbers only")
            if not floating or (info.buffer and not varies):
                constants.append(name)
                continue
            found += self._pieces(name, len(found))
        self.pieces: tuple[Piece, ...] = tuple(found)
        self.constants: tuple[str, ...] = tuple(constants)
        # As many sizes as a training run with random widths meets, not all that there ever were.
        self._blocks = functools.lru_cache(maxsize=256)(self._sized_blocks)

    def _pieces(self, name: str, start: int) -> list[Piece]:
        spec, info = self.spec, self.spec.tensors[name]
        axes, roles = spec.axes[name], info.roles or ("none",) * len(spec.axes[name])
        inverse = {
            (slot.block, slot.leaf)
            for factor in spec.linear
            for slot in factor.slots
            if slot.tensor == name and slot.inverse
        }
        found: list[Piece] = []
        for number, choice in enumerate(itertools.product(*(blocks(axis) for axis in axes))):
            leaves = [(leaf, role) for block, role in zip(choice, roles, strict=True) for leaf in block.leaves]
            spaces = tuple(leaf.space.name if isinstance(leaf, Atom) else None for leaf, _ in leaves)
            reads = tuple(
                space is not None and (role == "in" or (number, dim) in inverse)
                for dim, (space, (_, role)) in enumerate(zip(spaces, leaves, strict=True))
            )
            found.append(
                Piece(
                    key=f"{start + len(found):03d}",
                    tensor=name,
                    number=number,
                    spaces=spaces,
                    full=tuple(leaf.size for leaf, _ in leaves),
                    roles=tuple(role for _, role in leaves),
                    reads=reads,
                    kind=info.kind,
                    trained=not info.buffer,
                )
            )
        return found

    def read(self, piece: Piece, state: Mapping[str, Tensor], sizes: Mapping[str, int] | None = None) -> Tensor:
        """The values of a piece in a state, one dimension per leaf; at full width if no sizes are given."""
        blocks_of = tensor_blocks(self.spec.axes[piece.tensor])
        if sizes is not None:
            blocks_of = self._blocks(self._key(sizes))[piece.tensor][1]
        return blocks_of[piece.number].read(state[piece.tensor].detach())

    def _key(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(sizes.get(name, size) for name, size in self.full.items())

    def assemble(
        self, sizes: Mapping[str, int], values: Callable[[Piece], Tensor], constants: Callable[[str], Tensor]
    ) -> dict[str, Tensor]:
        """A state of the given sizes, in the order of the spec.

        Args:
            sizes: of every space.
            values: of a piece, one dimension per leaf.
            constants: what is not written by a field, by its name.
        """
        sized = self._blocks(self._key(sizes))
        written: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            written.setdefault(piece.tensor, []).append(piece)
        state: dict[str, Tensor] = {}
        for name, info in self.spec.tensors.items():
            if info.tied_to is not None:
                continue
            if name not in written:
                state[name] = constants(name)
                continue
            shape, found = sized[name]
            parts = [values(piece) for piece in written[name]]
            if len(parts) == 1 and found[0].whole:
                state[name] = parts[0].reshape(shape)
            else:
                state[name] = parts[0].new_zeros(shape)
                for block, part in zip(found, parts, strict=True):
                    block.write(state[name], part)
        for name, info in self.spec.tensors.items():
            if info.tied_to is not None:
                state[name] = state[info.tied_to]
        return {name: state[name] for name in self.spec.tensors}

    def _sized_blocks(self, sizes: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], tuple[TensorBlock, ...]]]:
        after = resized_spec(self.spec, dict(zip(self.full, sizes, strict=True)))
        found = {}
        for name in {piece.tensor for piece in self.pieces}:
            axes = after.axes[name]
            found[name] = (tuple(axis.size for axis in axes), tensor_blocks(axes))
        return found
