"""How does a group element change a state?

Each tensor is cut into blocks without concatenation (:func:`symmetry.spaces.blocks`); in a block every leaf is one
array dimension, so a permutation is one ``index_select``, a scaling one broadcast product, a matrix one matrix product.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from symmetry.errors import SpecError
from symmetry.spaces import Atom, Axis, Fixed, blocks

if TYPE_CHECKING:
    from symmetry.elements import GroupElement
    from symmetry.spec import LinearSlot, ShiftStep, Slot, SymmetrySpec

__all__ = ["TensorBlock", "act", "multipliers", "tensor_blocks"]


@dataclass(frozen=True, slots=True, eq=False)
class TensorBlock:
    """A block of a tensor: the leaves that index it, and its positions along each dimension of the tensor.

    Args:
        leaves: the leaves of all dimensions, in order.
        shape: their sizes.
        positions: for each dimension the flat positions of the block.
        whole: whether the block is the whole tensor in its own order.
    """

    leaves: tuple[Fixed | Atom, ...]
    shape: tuple[int, ...]
    positions: tuple[np.ndarray, ...]
    whole: bool

    def read(self, tensor: Tensor) -> Tensor:
        """The block of a tensor, one dimension per leaf."""
        if self.whole:
            return tensor.reshape(self.shape)
        return tensor[_mesh(self.positions)].reshape(self.shape)

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Put the block's values, one dimension per leaf, back into a tensor, in place."""
        if self.whole:
            tensor.copy_(values.reshape(tensor.shape))
        else:
            tensor[_mesh(self.positions)] = values.reshape([len(p) for p in self.positions])


def _mesh(positions: tuple[np.ndarray, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in np.ix_(*positions))


@lru_cache(maxsize=4096)
def tensor_blocks(axes: tuple[Axis, ...]) -> tuple[TensorBlock, ...]:
    """The blocks of a tensor with these axes, in row-major order over the blocks of each axis."""
    found = []
    for choice in itertools.product(*(blocks(axis) for axis in axes)):
        leaves = tuple(leaf for block in choice for leaf in block.leaves)
        positions = tuple(block.positions.ravel() for block in choice)
        whole = all(
            len(flat) == axis.size and bool((flat == np.arange(axis.size)).all())
            for flat, axis in zip(positions, axes, strict=True)
        )
        found.append(TensorBlock(leaves, tuple(leaf.size for leaf in leaves), positions, whole))
    return tuple(found)


def leaf_name(leaf: Fixed | Atom) -> str | None:
    """The name that factors and permutations know a leaf by."""
    return leaf.space.name if isinstance(leaf, Atom) else leaf.name


def act(spec: SymmetrySpec, element: GroupElement, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under a group element; see :meth:`symmetry.SymmetrySpec.act`.

    Tensors that the element does not touch are returned as they are, without a copy. Entries that were one tensor stay
    one.

    Raises:
        SpecError: if the state has other names or shapes, or the element belongs to another spec.
    """
    if element.spec != spec:
        raise SpecError("act: the element belongs to another spec; expected one made by spec.sample or for this spec")
    spec.check(state)
    slots = _active_slots(element)
    moved = {
        name
        for name, permutation in element.permutations.items()
        if not bool((permutation == torch.arange(permutation.shape[-1])).all())
    }
    turns, shifts = _active_matrices(element), _active_shifts(element)
    done: dict[tuple[int, str], Tensor] = {}
    result = {}
    for name, tensor in state.items():
        source = spec.tensors[name].tied_to or name
        key = (id(tensor), source)
        if key not in done:
            mine = [
                (turn, space, matrix, None if turn.gain is None else _gain(spec, turn.gain, space, state))
                for turn, space, matrix in turns.get(source, [])
            ]
            tensor = _act_on(spec, element, source, tensor, slots.get(source, []), mine, moved)
            done[key] = _shift(spec, source, tensor, shifts.get(source, []))
        result[name] = done[key]
    return result


def _active_slots(element: GroupElement) -> dict[str, list[tuple[Slot, str | None, Tensor, bool]]]:
    """The slots of all factors that are not neutral, by tensor: (slot, space, values, whether it is a sign)."""
    found: dict[str, list[tuple[Slot, str | None, Tensor, bool]]] = {}
    for factor in element.spec.factors:
        sign = factor.kind == "sign"
        values = (element.flips if sign else element.log_scales)[factor.name]
        if bool((values != 0).any()):
            for slot in factor.slots:
                found.setdefault(slot.tensor, []).append((slot, factor.space, values, sign))
    for shift in element.spec.shifts:
        odd = element.shifts[shift.name] % 2 == 1
        if bool(odd.any()):
            for slot in shift.flips:
                found.setdefault(slot.tensor, []).append((slot, shift.space, odd, True))
    return found


def _active_shifts(element: GroupElement) -> dict[str, list[tuple[ShiftStep, str | None, Tensor]]]:
    """What is added to each tensor: (step, space, integers)."""
    found: dict[str, list[tuple[ShiftStep, str | None, Tensor]]] = {}
    for shift in element.spec.shifts:
        values = element.shifts[shift.name]
        if bool((values != 0).any()):
            for step in shift.steps:
                found.setdefault(step.tensor, []).append((step, shift.space, values))
    return found


def bias_flips(element: GroupElement, tensor: str, block: int, space: str | None) -> Tensor:
    """Which entries of a block of a bias change their sign, in the order of ``spec.array_shape(space)``."""
    spec = element.spec
    there = tensor_blocks(spec.axes[tensor])[block]
    slots = [item for item in _active_slots(element).get(tensor, []) if item[0].block == block]
    _, flips = _multiplier(spec, there, slots)
    if space is None:
        return flips.reshape(-1)[0]
    names = [leaf_name(leaf) for leaf in there.leaves]
    dims = [names.index(name) for name in (*spec.within.get(space, ()), space)]
    rest = [dim for dim in range(len(names)) if dim not in dims]
    full = flips.expand(there.shape).permute(*dims, *rest)
    return full.reshape(*spec.array_shape(space), -1)[..., 0]


def _active_matrices(element: GroupElement) -> dict[str, list[tuple[LinearSlot, str, Tensor]]]:
    """The slots of all matrices that are not the identity, by tensor: (slot, space, what multiplies from the left)."""
    found: dict[str, list[tuple[LinearSlot, str, Tensor]]] = {}
    for factor in element.spec.linear:
        matrix = element.matrices[factor.space]
        if not bool((matrix == torch.eye(factor.size, dtype=matrix.dtype)).all()):
            dual = torch.linalg.inv(matrix).mT if factor.kind == "linear" else matrix
            for slot in factor.slots:
                found.setdefault(slot.tensor, []).append((slot, factor.space, dual if slot.inverse else matrix))
    return found


def _gain(spec: SymmetrySpec, name: str, space: str, state: Mapping[str, Tensor]) -> Tensor:
    """The gains of a space's units, float64, from the state as it was before anything acted.

    Raises:
        SpecError: if a gain is zero: nothing of that unit passes, and there is nothing to divide by.
    """
    block = next(b for b in tensor_blocks(spec.axes[name]) if space in map(leaf_name, b.leaves))
    values = block.read(state[name].detach()).reshape(-1).to(torch.float64)
    if bool((values == 0).any()):
        raise SpecError(f"{name}: a gain of zero, which cannot be folded; expected gains other than 0")
    return values


def _act_on(
    spec: SymmetrySpec,
    element: GroupElement,
    name: str,
    tensor: Tensor,
    slots: list[tuple[Slot, str | None, Tensor, bool]],
    turns: list[tuple[LinearSlot, str, Tensor, Tensor | None]],
    moved: set[str],
) -> Tensor:
    axes, offset = spec.axes[name], spec.tensors[name].positive_offset
    touched = [
        leaf.space.name
        for axis in axes
        for leaf in axis.leaves()
        if isinstance(leaf, Atom) and leaf.space.name in moved
    ]
    if not touched and not slots and not turns:
        return tensor
    if (slots or turns) and not tensor.is_floating_point():
        raise SpecError(f"{name}: dtype {tensor.dtype} cannot be scaled; expected a floating point tensor")
    result = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    for number, block in enumerate(tensor_blocks(axes)):
        values = _permute(spec, element, block, block.read(tensor), moved)
        for turn, space, matrix, gain in turns:
            if turn.block == number:
                shape = [-1 if dim == turn.leaf else 1 for dim in range(len(block.leaves))]
                values = values if gain is None else values * gain.to(values.device).reshape(shape)
                values = _turn(spec, block, values, turn.leaf, space, matrix)
                values = values if gain is None else values / gain.to(values.device).reshape(shape)
        mine = [item for item in slots if item[0].block == number]
        if mine:
            logs, flips = _multiplier(spec, block, mine)
            factor = torch.where(flips, -logs.exp(), logs.exp()).to(tensor.device)
            if offset is None:
                # One rounding of the factor and one of the product: no better in float64, and half as fast.
                wide = torch.promote_types(values.dtype, torch.float32)
                values = values.to(wide) * factor.to(wide)
            else:
                values = (values.to(torch.float64) + offset) * factor - offset
        block.write(result, values.to(tensor.dtype))
    return result


def _shift(spec: SymmetrySpec, name: str, tensor: Tensor, steps: list[tuple[ShiftStep, str | None, Tensor]]) -> Tensor:
    """Add whole numbers of steps along leaves."""
    if not steps:
        return tensor
    result = tensor.clone(memory_format=torch.contiguous_format)
    for step, space, values in steps:
        block = tensor_blocks(spec.axes[name])[step.block]
        ndim, names = len(block.leaves), [leaf_name(leaf) for leaf in block.leaves]
        dims = [] if step.leaf is None else [*(names.index(n) for n in spec.within.get(space or "", ())), step.leaf]
        placed = _place(values.to(torch.float64) * step.step, dims, ndim)
        block.write(result, (block.read(result).to(torch.float64) + placed).to(tensor.dtype))
    return result


def _turn(spec: SymmetrySpec, block: TensorBlock, values: Tensor, leaf: int, space: str, matrix: Tensor) -> Tensor:
    """Multiply a block by matrices along one leaf, one matrix per unit of the spaces that the leaf lies within."""
    names = [leaf_name(item) for item in block.leaves]
    dims = [*(names.index(outer) for outer in spec.within.get(space, ())), leaf]
    places = list(range(len(dims)))
    front = values.to(torch.promote_types(values.dtype, torch.float64)).movedim(dims, places)
    flat = front.reshape(*(front.shape[place] for place in places), -1)
    return (matrix.to(flat.device) @ flat).reshape(front.shape).movedim(places, dims)


def _permute(spec: SymmetrySpec, element: GroupElement, block: TensorBlock, values: Tensor, moved: set[str]) -> Tensor:
    """Permute every leaf of a block; outer spaces first, so that the new outer place chooses the inner permutation."""
    names = [leaf_name(leaf) for leaf in block.leaves]
    order = sorted(range(len(names)), key=lambda dim: len(spec.within.get(names[dim] or "", ())))
    for dim in order:
        name = names[dim]
        if name is None or name not in moved or not isinstance(block.leaves[dim], Atom):
            continue
        permutation = element.permutations[name].to(values.device)
        outer = spec.within.get(name, ())
        if not outer:
            values = values.index_select(dim, permutation)
        else:
            dims = [names.index(space) for space in outer] + [dim]
            values = torch.take_along_dim(values, _place(permutation, dims, values.ndim), dim=dim)
    return values


def _place(array: Tensor, dims: list[int], ndim: int) -> Tensor:
    """View an array whose dimensions belong at ``dims`` so that it broadcasts against ``ndim`` dimensions."""
    by_dim = sorted(range(len(dims)), key=lambda k: dims[k])
    shape = [1] * ndim
    for k in by_dim:
        shape[dims[k]] = array.shape[k]
    return array.permute(by_dim).reshape(shape)


def _multiplier(
    spec: SymmetrySpec, block: TensorBlock, slots: list[tuple[Slot, str | None, Tensor, bool]]
) -> tuple[Tensor, Tensor]:
    """Summed logarithms and parity of all slots on a block, broadcastable against it."""
    ndim, names = len(block.leaves), [leaf_name(leaf) for leaf in block.leaves]
    logs = torch.zeros([1] * ndim, dtype=torch.float64)
    flips = torch.zeros([1] * ndim, dtype=torch.bool)
    for slot, space, values, sign in slots:
        placed = (
            values.reshape([1] * ndim)
            if slot.leaf is None
            else _place(values, [names.index(outer) for outer in spec.within.get(space or "", ())] + [slot.leaf], ndim)
        )
        if sign:
            flips = flips ^ placed
        else:
            logs = logs + float(slot.exponent) * placed
    return logs, flips


def multipliers(element: GroupElement) -> Iterator[tuple[Tensor, Tensor]]:
    """For every block of every tensor: the logarithms and flips that an element multiplies it by, at full shape."""
    spec, neutral = element.spec, torch.zeros((), dtype=torch.float64)
    slots = _active_slots(element)
    for name, axes in spec.axes.items():
        if spec.tensors[name].tied_to is None:
            for number, block in enumerate(tensor_blocks(axes)):
                logs, flips = _multiplier(
                    spec, block, [item for item in slots.get(name, []) if item[0].block == number]
                )
                yield (logs + neutral).expand(block.shape), flips.expand(block.shape)
