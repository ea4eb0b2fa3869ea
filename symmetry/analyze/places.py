"""Where does a space occur in the tensors of a network, and does a tensor write its units or read them?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from symmetry.action import TensorBlock, leaf_name, tensor_blocks
from symmetry.spaces import Atom, blocks
from symmetry.spec import SymmetrySpec

__all__ = ["Place", "find_places", "known_roles", "rows", "zero_units"]


@dataclass(frozen=True, slots=True)
class Place:
    """One leaf over a space in one block of a tensor.

    Args:
        tensor: the entry of the state.
        number: which of the tensor's blocks (see :func:`symmetry.action.tensor_blocks`).
        block: that block.
        leaf: which of its leaves.
        role: ``out`` (the tensor writes the units), ``in`` (it reads them), ``unit`` (both), ``none`` or ``position``.
        weight: whether the tensor is a weight: it has units, or inputs, on two sides.
    """

    tensor: str
    number: int
    block: TensorBlock
    leaf: int
    role: str
    weight: bool

    @property
    def key(self) -> tuple[str, int, int]:
        """What a slot of a factor names it by."""
        return self.tensor, self.number, self.leaf


def find_places(spec: SymmetrySpec) -> dict[str, list[Place]]:
    """For every space its places, in the order of the data flow; tied tensors count once."""
    roles = known_roles(spec)
    found: dict[str, list[Place]] = {space.name: [] for space in spec.spaces}
    for name in sorted(spec.tensors, key=lambda name: spec.tensors[name].order):
        if spec.tensors[name].tied_to is not None:
            continue
        weight = _is_weight(spec, name, roles[name])
        choices = itertools.product(*(blocks(axis) for axis in spec.axes[name]))
        for number, (block, choice) in enumerate(zip(tensor_blocks(spec.axes[name]), choices, strict=True)):
            owners = [dim for dim, part in enumerate(choice) for _ in part.leaves]
            for leaf, dim in enumerate(owners):
                if isinstance(block.leaves[leaf], Atom):
                    role = roles[name][dim]
                    found[leaf_name(block.leaves[leaf]) or ""].append(Place(name, number, block, leaf, role, weight))
    return found


def _is_weight(spec: SymmetrySpec, name: str, roles: tuple[str, ...]) -> bool:
    info = spec.tensors[name]
    if info.kind == "norm.weight" or info.kind == "bias":
        return False
    return info.kind.endswith(".weight") or ("in" in roles and "out" in roles)


def known_roles(spec: SymmetrySpec) -> dict[str, tuple[str, ...]]:
    """The roles of all axes; where the spec leaves those of a weight open, from its place in the data flow.

    A weight that meets its input only after a reshape (the output projection of attention) may come without roles. It
    reads the axis whose units were written last before it, or on which a matrix acts inversely to all that write.
    """
    roles = {name: tuple(info.roles) or ("none",) * len(info.shape) for name, info in spec.tensors.items()}
    written: dict[str, int] = {}
    turned: dict[str, set[bool]] = {}
    inverse = {(s.tensor, f.space): s.inverse for f in spec.linear if f.kind == "linear" for s in f.slots}
    for name in sorted(spec.tensors, key=lambda name: spec.tensors[name].order):
        info = spec.tensors[name]
        spaces = [{leaf.space.name for leaf in axis.leaves() if isinstance(leaf, Atom)} for axis in spec.axes[name]]
        wide = [dim for dim, size in enumerate(info.shape) if size > 1]
        if len(wide) > 1 and all(roles[name][dim] == "none" for dim in wide) and any(spaces):
            reading: tuple[float, int] | None = None
            # A batch axis (the experts, beside the units of each) is neither written nor read.
            met = set().union(*spaces)
            batch = [dim for dim in wide if any(spaces[dim] & set(spec.within.get(space, ())) for space in met)]
            batch = [dim for dim in batch if len(spaces[dim]) == 1]
            for dim in wide:
                if dim in batch:
                    continue
                last = max((written.get(space, -1) for space in spaces[dim]), default=-1)
                against = any(
                    turned.get(space) == {not inverse[name, space]} for space in spaces[dim] if (name, space) in inverse
                )
                rank = float("inf") if against else float(last)
                if rank >= 0 and (reading is None or rank > reading[0]):
                    reading = rank, dim
            if reading is not None:
                made = ["out" if dim in wide else "none" for dim in range(len(info.shape))]
                made[reading[1]] = "in"
                for dim in batch:
                    made[dim] = "unit"
                roles[name] = tuple(made)
        for dim, role in enumerate(roles[name]):
            for space in spaces[dim] if role in ("out", "unit") and info.tied_to is None else ():
                written[space] = max(written.get(space, -1), info.order)
                if (name, space) in inverse:
                    turned.setdefault(space, set()).add(inverse[name, space])
    return roles


def rows(
    spec: SymmetrySpec, state: Mapping[str, Tensor], space: str, place: Place, dtype: torch.dtype = torch.float64
) -> Tensor:
    """What a block holds for each unit, an epsilon under a root added.

    Shapes:
        result: ``(copies, units, entries)``; copies: the units of the spaces that the space lies within.
    """
    values, dims = _front(spec, state, space, place)
    values = values.to(dtype)
    offset = spec.tensors[place.tensor].positive_offset
    if offset is not None:
        values = values + offset
    front = values.movedim(dims, list(range(len(dims))))
    return front.reshape(spec.copies(space), front.shape[len(dims) - 1], -1)


def zero_units(spec: SymmetrySpec, state: Mapping[str, Tensor], space: str, place: Place) -> Tensor:
    """For which units a block is exactly zero.

    Shapes:
        result: ``spec.array_shape(space)``, flat.
    """
    values, dims = _front(spec, state, space, place)
    rest = [dim for dim in range(values.ndim) if dim not in dims]
    largest = torch.linalg.vector_norm(values, float("inf"), dim=rest) if rest else values.abs()
    kept = sorted(dims)
    return (largest == 0).permute([kept.index(dim) for dim in dims]).flatten()


def _front(spec: SymmetrySpec, state: Mapping[str, Tensor], space: str, place: Place) -> tuple[Tensor, list[int]]:
    """The block with one dimension per leaf, and the dimensions that index the units of a space."""
    tensor, block = state[place.tensor].detach().to("cpu"), place.block
    names = [leaf_name(leaf) for leaf in block.leaves]
    dims = [*(names.index(outer) for outer in spec.within.get(space, ())), place.leaf]
    starts = [int(positions[0]) for positions in block.positions]
    if all((np.diff(positions) == 1).all() for positions in block.positions):
        # A view: most blocks are whole tensors or runs of rows, and copying by index takes longer than the work itself.
        for dim, (start, positions) in enumerate(zip(starts, block.positions, strict=True)):
            tensor = tensor.narrow(dim, start, len(positions))
        return tensor.reshape(block.shape), dims
    return block.read(tensor), dims
