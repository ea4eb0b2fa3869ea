"""What becomes of a state and its spec when the units of a space are selected, copied or mixed?

A :class:`Resizing` says, for every new unit of one space, which old units it is made of (``writer``) and what every
reader of the space multiplies its weights by (``reader``). Every tensor that runs over the space is rewritten with it,
leaf by leaf of the spec's axes: residual streams, heads, gates of recurrent cells, concatenations, flattened maps,
grouped and depthwise kernels change together because they run over the same space.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metanet.errors import PlanError, clean
from symmetry import Atom, Axis, Concat, Fixed, NeuronSpace, Product, SymmetrySpec
from symmetry.action import leaf_name, tensor_blocks
from symmetry.spaces import blocks

__all__ = ["Resizing", "resize", "resized_spec", "size_of"]


@dataclass(frozen=True, eq=False)
class Resizing:
    r"""How one space changes from n to m units. ``outer`` are the sizes of the spaces that it lies within.

    Args:
        space: its name.
        source: for each new unit the old unit that it copies.
        writer: rows of weights that write a new unit, as a mixture of old ones; ``None``: copies of ``source``. What
            belongs to the unit itself (norms, running statistics, depthwise kernels) follows it too.
        reader: what the weights that read the units are multiplied by from the right; ``None``: each reader sees the
            copy of ``source``, times ``share``.
        share: see ``reader``; ``None`` stands for ones.

    Shapes:
        source, share: (\*outer, m). writer: (\*outer, m, n). reader: (\*outer, n, m).
    """

    space: str
    source: Tensor
    share: Tensor | None = None
    writer: Tensor | None = None
    reader: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of new units m."""
        return int(self.source.shape[-1])


def resize(spec: SymmetrySpec, state: Mapping[str, Tensor], change: Resizing) -> dict[str, Tensor]:
    """The state with one space changed; tensors that do not run over it are returned as they are.

    Args:
        spec: of the state.
        state: names and shapes of the spec.
        change: which units become which.

    Raises:
        PlanError: if the space does not exist or the change does not fit it.
    """
    _check(spec, change)
    sizes = {change.space: change.size}
    done: dict[str, Tensor] = {}
    result = {}
    for name, tensor in state.items():
        source = spec.tensors[name].tied_to or name
        if source not in done:
            done[source] = _resize_tensor(spec, source, tensor, change, sizes)
        result[name] = done[source]
    return result


def _resize_tensor(spec: SymmetrySpec, name: str, tensor: Tensor, change: Resizing, sizes: Mapping[str, int]) -> Tensor:
    axes, roles = spec.axes[name], spec.tensors[name].roles
    inverse = _inverse_slots(spec, name, change.space)
    if not any(change.space == leaf_name(leaf) for axis in axes for leaf in axis.leaves()):
        return tensor
    after = tuple(_resized_axis(axis, sizes) for axis in axes)
    result = tensor.new_empty([axis.size for axis in after])
    # A concatenation may hold the space several times: the blocks before and after correspond one to one.
    found = zip(tensor_blocks(axes), tensor_blocks(after), _leaf_roles(axes, roles), strict=True)
    for number, (old, new, leaf_roles) in enumerate(found):
        values = old.read(tensor.detach())
        for dim, role in enumerate(leaf_roles):
            if leaf_name(old.leaves[dim]) == change.space:
                names = [leaf_name(leaf) for leaf in old.leaves]
                outer = [names.index(space) for space in spec.within.get(change.space, ())]
                values = _along(values, outer, dim, change, role == "in" or (number, dim) in inverse)
        new.write(result, values.to(tensor.dtype))
    return result


def _inverse_slots(spec: SymmetrySpec, name: str, space: str) -> set[tuple[int, int]]:
    """Blocks and leaves that read a space though their role does not say so.

    Queries and keys both write a space that only their product reads: one of them has to stand for the reader, the one
    on which a matrix of the space acts by its inverse transpose. Contractions of stacked weights (experts) have no
    roles: there what is divided when the units are scaled reads them.
    """
    slots = {
        (slot.block, slot.leaf)
        for factor in spec.linear
        for slot in factor.slots
        if factor.space == space and slot.tensor == name and slot.inverse
    }
    if set(spec.tensors[name].roles) == {"none"} and len(spec.axes[name]) > 1:
        slots |= {
            (slot.block, slot.leaf)
            for factor in spec.factors
            for slot in factor.slots
            if slot.leaf is not None and factor.space == space and factor.kind == "scale"
            if slot.tensor == name and slot.exponent < 0
        }
    return slots


def _leaf_roles(axes: tuple[Axis, ...], roles: tuple[str, ...]) -> Iterator[list[str]]:
    """The role of every leaf, block by block in the order of :func:`symmetry.action.tensor_blocks`."""
    given = roles or ("none",) * len(axes)
    for choice in itertools.product(*(blocks(axis) for axis in axes)):
        yield [role for block, role in zip(choice, given, strict=True) for _ in block.leaves]


def _along(values: Tensor, outer: list[int], dim: int, change: Resizing, reads: bool) -> Tensor:
    """One leaf of a block changed; ``outer`` are the dimensions of the spaces that the space lies within."""
    matrix = None
    if reads and change.reader is not None:
        matrix = change.reader.mT
    elif not reads and change.writer is not None:
        matrix = change.writer
    places = list(range(len(outer) + 1))
    front = values.movedim([*outer, dim], places)
    lead, rest = front.shape[: len(places)], front.shape[len(places) :]
    flat = front.reshape(*lead, -1)
    if matrix is not None:
        wide = torch.promote_types(values.dtype, torch.float64)
        moved = matrix.to(device=values.device, dtype=wide) @ flat.to(wide)
    else:
        source = change.source.to(values.device)
        index = source.reshape(*source.shape, 1).expand(*source.shape, flat.shape[-1])
        moved = torch.take_along_dim(flat, index, dim=-2)
        if reads and change.share is not None:
            moved = moved * change.share.to(device=values.device, dtype=values.dtype).unsqueeze(-1)
    return moved.reshape(*lead[:-1], change.size, *rest).movedim(places, [*outer, dim])


def size_of(spec: SymmetrySpec, space: str) -> int:
    """How many units a space has.

    Raises:
        PlanError: if there is no such space; it names those that there are.
    """
    known = {found.name: found.size for found in spec.spaces}
    if space not in known:
        shown = ", ".join(list(known)[:8]) + (f", ... ({len(known)} in all)" if len(known) > 8 else "")
        raise PlanError(f"no space {clean(repr(space), 80)}", hint=f"the network has {shown or 'none'}")
    return known[space]


def _check(spec: SymmetrySpec, change: Resizing) -> None:
    size = size_of(spec, change.space)
    expected = (*spec.array_shape(change.space)[:-1], change.size)
    if tuple(change.source.shape) != expected or change.size < 1:
        raise PlanError(
            f"units of {change.space!r} given in an array of shape {tuple(change.source.shape)}, expected "
            f"{tuple(expected[:-1])} in front of at least one unit",
            hint="a space inside other spaces (units of heads) takes one list per unit of those",
        )
    bad = (change.source < 0) | (change.source >= size)
    if bool(bad.any()):
        raise PlanError(
            f"unit {int(change.source[bad][0])} of {change.space!r} is out of range",
            hint=f"it has {size} units, 0 to {size - 1}",
        )


def _resized_axis(axis: Axis, sizes: Mapping[str, int]) -> Axis:
    match axis:
        case Fixed():
            return axis
        case Atom(space):
            return Atom(NeuronSpace(space.name, sizes.get(space.name, space.size)))
        case Product(outer, inner):
            return Product(_resized_axis(outer, sizes), _resized_axis(inner, sizes))
        case Concat(parts):
            return Concat(tuple(_resized_axis(part, sizes) for part in parts))


def resized_spec(spec: SymmetrySpec, sizes: Mapping[str, int]) -> SymmetrySpec:
    """The layout of the same architecture with other sizes of some spaces.

    Axes, shapes and sizes of factors are those of the wider or narrower network. The dimensions of the groups are
    those of the old one: trace the new module for them.

    Args:
        spec: of the network before.
        sizes: new numbers of units by space.
    """
    axes = {name: tuple(_resized_axis(axis, sizes) for axis in found) for name, found in spec.axes.items()}
    return replace(
        spec,
        spaces=tuple(NeuronSpace(space.name, sizes.get(space.name, space.size)) for space in spec.spaces),
        axes=axes,
        tensors={
            name: replace(info, shape=tuple(axis.size for axis in axes[name])) for name, info in spec.tensors.items()
        },
        factors=tuple(replace(f, size=sizes.get(f.space or "", f.size)) for f in spec.factors),
        linear=tuple(replace(f, size=sizes.get(f.space, f.size)) for f in spec.linear),
        shifts=tuple(replace(f, size=sizes.get(f.space or "", f.size)) for f in spec.shifts),
    )
