"""Where does each generator of an architecture's group act, in the layout of a bucket's blocks?

The same facts as ``spec.factors``, ``spec.linear`` and ``spec.shifts``, told by dimension of the blocks of a parameter
graph. A block's value ``(B, target, source, features)`` is viewed as ``(B, *sizes)`` with one dimension per leaf of its
axes; that view copies nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from torch import Tensor

from metanet.errors import ModelError
from metanet.graph import Block, Topology
from symmetry import SymmetrySpec
from symmetry.action import TensorBlock, leaf_name, tensor_blocks

__all__ = ["Place", "Shift", "Turn", "View", "gains_of", "onto", "views_of"]


@dataclass(frozen=True, slots=True)
class Place:
    """One factor on one block: along ``dims`` (in the order of its array; none: a single value), to a power.

    Args:
        factor: name of the scale or sign factor, or of the shift whose odd numbers flip the block.
        dims: dimensions of the view that the factor's array runs along.
        exponent: power of a scale; signs have none.
    """

    factor: str
    dims: tuple[int, ...]
    exponent: float = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One space of matrices on one block.

    Args:
        space: the space.
        dims: dimensions of the spaces that it lies within, then its own.
        inverse: by the inverse transpose (never for orthogonal matrices, which are their own).
        gain: number of the block whose values are multiplied in before and divided out after.
    """

    space: str
    dims: tuple[int, ...]
    inverse: bool
    gain: int | None


@dataclass(frozen=True, slots=True)
class Shift:
    """One shift on one block of a bias: adds ``step`` times the integers along ``dims``."""

    factor: str
    dims: tuple[int, ...]
    step: float


@dataclass(frozen=True, slots=True)
class View:
    """One block by leaves, and all that acts on it.

    Args:
        sizes: sizes of the leaves, in the order in which the block's layout runs over them.
        names: their spaces or named fixed axes; ``None`` for a fixed axis without a name.
        scales: where positive scalings act.
        signs: where signs act.
        odd: where odd numbers of shifts flip.
        turns: where matrices act.
        shifts: where shifts add.
        offset: eps of a variance: scalings act on value + eps.
    """

    sizes: tuple[int, ...]
    names: tuple[str | None, ...]
    scales: tuple[Place, ...]
    signs: tuple[Place, ...]
    odd: tuple[Place, ...]
    turns: tuple[Turn, ...]
    shifts: tuple[Shift, ...]
    offset: float | None

    @property
    def touched(self) -> bool:
        """Whether anything acts on it."""
        return bool(self.scales or self.signs or self.odd or self.turns or self.shifts)


def onto(array: Tensor, dims: tuple[int, ...], ndim: int) -> Tensor:
    """View an array so that it broadcasts against ``ndim`` dimensions behind the batch.

    Shapes:
        array: ``(B, *sizes of dims)``; returns ``(B, ...)`` with ``1 + ndim`` dimensions.
    """
    by_dim = sorted(range(len(dims)), key=lambda k: dims[k])
    shape = [1] * ndim
    for k in by_dim:
        shape[dims[k]] = array.shape[1 + k]
    return array.permute(0, *(1 + k for k in by_dim)).reshape(array.shape[0], *shape)


@lru_cache(maxsize=4096)
def views_of(topology: Topology) -> tuple[View | None, ...]:
    """One view per block of a topology, ``None`` for raw blocks.

    Raises:
        ModelError: for a tied tensor that is laid out in another way than the tensor that it is tied to, and for
            matrices behind a gain that the graph does not hold.
    """
    slots = _Slots.of(topology.spec)
    return tuple(None if block.level == "raw" else _view(topology, block, slots) for block in topology.blocks)


def gains_of(topology: Topology) -> tuple[int, ...]:
    """Numbers of the blocks through which matrices act."""
    turns = (turn for view in views_of(topology) if view is not None for turn in view.turns)
    return tuple(dict.fromkeys(turn.gain for turn in turns if turn.gain is not None))


Key: TypeAlias = tuple[str, int]
_Slot: TypeAlias = tuple[str, str | None, int | None, float]


@dataclass(frozen=True, slots=True)
class _Slots:
    """All slots of a spec by tensor and block: what acts, and along which leaf."""

    scales: Mapping[Key, list[_Slot]]
    signs: Mapping[Key, list[_Slot]]
    odd: Mapping[Key, list[_Slot]]
    shifts: Mapping[Key, list[_Slot]]
    turns: Mapping[Key, list[tuple[str, int, bool, str | None]]]

    @classmethod
    def of(cls, spec: SymmetrySpec) -> _Slots:
        scales: dict[Key, list[_Slot]] = {}
        signs: dict[Key, list[_Slot]] = {}
        odd: dict[Key, list[_Slot]] = {}
        shifts: dict[Key, list[_Slot]] = {}
        turns: dict[Key, list[tuple[str, int, bool, str | None]]] = {}
        for factor in spec.factors:
            kind = scales if factor.kind == "scale" else signs
            for slot in factor.slots:
                item = (factor.name, factor.space, slot.leaf, float(slot.exponent))
                kind.setdefault((slot.tensor, slot.block), []).append(item)
        for shift in spec.shifts:
            for slot in shift.flips:
                odd.setdefault((slot.tensor, slot.block), []).append((shift.name, shift.space, slot.leaf, 1.0))
            for step in shift.steps:
                item = (shift.name, shift.space, step.leaf, step.step)
                shifts.setdefault((step.tensor, step.block), []).append(item)
        for linear in spec.linear:
            for place in linear.slots:
                inverse = place.inverse and linear.kind == "linear"
                turns.setdefault((place.tensor, place.block), []).append(
                    (linear.space, place.leaf, inverse, place.gain)
                )
        return cls(scales, signs, odd, shifts, turns)

    def any(self, tensor: str) -> bool:
        """Whether anything acts on a tensor."""
        kinds = (self.scales, self.signs, self.odd, self.shifts, self.turns)
        return any(key[0] == tensor for kind in kinds for key in kind)


def _view(topology: Topology, block: Block, slots: _Slots) -> View:
    spec, name = topology.spec, block.tensor
    source = spec.tensors[name].tied_to or name
    if source != name and slots.any(source):
        raise ModelError(
            f"tensor {name!r} is tied to {source!r} but laid out in another way: its group action cannot be followed",
            hint="use symmetry='permutation'",
        )
    cuts = [tensor_blocks((axis,)) for axis in spec.axes[name]]
    numbers = itertools.product(*(range(len(cut)) for cut in cuts))
    number = next(i for i, part in enumerate(numbers) if part == block.part)
    whole: TensorBlock = tensor_blocks(spec.axes[name])[number]
    order = block.region.order
    names = tuple(leaf_name(whole.leaves[leaf]) for leaf in order)

    def dims(space: str | None, leaf: int | None) -> tuple[int, ...]:
        if leaf is None:
            return ()
        return (*(names.index(outer) for outer in spec.within.get(space or "", ())), order.index(leaf))

    key = (name, number)
    return View(
        sizes=tuple(whole.shape[leaf] for leaf in order),
        names=names,
        scales=tuple(Place(f, dims(s, leaf), power) for f, s, leaf, power in slots.scales.get(key, ())),
        signs=tuple(Place(f, dims(s, leaf)) for f, s, leaf, _ in slots.signs.get(key, ())),
        odd=tuple(Place(f, dims(s, leaf)) for f, s, leaf, _ in slots.odd.get(key, ())),
        turns=tuple(
            Turn(space, dims(space, leaf), inverse, None if gain is None else _gain(topology, gain, space))
            for space, leaf, inverse, gain in slots.turns.get(key, ())
        ),
        shifts=tuple(Shift(f, dims(s, leaf), step) for f, s, leaf, step in slots.shifts.get(key, ())),
        offset=spec.tensors[name].positive_offset,
    )


def _gain(topology: Topology, name: str, space: str) -> int:
    owner = topology.owners.get(name, name)
    for number, block in enumerate(topology.blocks):
        if block.tensor == owner and block.level == "node" and topology.groups[block.groups[0]].spaces == (space,):
            return number
    raise ModelError(
        f"the gain {name!r} of space {space!r} is not part of the graph, so its matrices cannot act",
        hint="use symmetry='permutation'",
    )
