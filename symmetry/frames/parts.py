"""What does each block of a network look like to the factors of its group?

Every frame is computed from :class:`Part` s: the blocks of the state with, for each factor, where it multiplies them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from symmetry.action import leaf_name, tensor_blocks
from symmetry.errors import SpecError
from symmetry.spec import Factor, SymmetrySpec

__all__ = [
    "Groups",
    "Part",
    "PartSlot",
    "check_finite",
    "invariant_parts",
    "make_parts",
    "onto",
    "product",
    "reduce_to",
]


_LISTED = 8  # so many tensors are named in a message


@dataclass(frozen=True, slots=True)
class PartSlot:
    """Where one factor multiplies a part: along ``dims`` (its array's dimensions in order), to the power ``exponent``.

    No dimensions: the whole part is multiplied by a single value.
    """

    factor: Factor
    dims: tuple[int, ...]
    exponent: float


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A block of the state, or the product of some over spaces that matrices act on.

    Args:
        tensor: the (first) tensor it is from.
        rank: its place along the data flow, unique in a list of parts.
        names: for each dimension its space or fixed axis; ``None`` for a fixed axis without a name.
        values: float64, one dimension per leaf; a running variance with its epsilon added, a weight behind a gain that
            is folded into it with that gain.
        outer: for each dimension, the dimensions of the spaces that its own space lies within.
        scales: where scalings act.
        signs: where signs act.
        matrices: for each dimension that matrices act on, whether by the inverse transpose; ``None`` if orthogonal.
        kind: kind of the tensor.
        buffer: whether it is one.
        offset: whether an epsilon was added.
    """

    tensor: str
    rank: tuple[int, ...]
    names: tuple[str | None, ...]
    values: Tensor
    outer: tuple[tuple[int, ...], ...]
    scales: tuple[PartSlot, ...]
    signs: tuple[PartSlot, ...]
    matrices: Mapping[int, bool | None]
    kind: str
    buffer: bool
    offset: bool

    def dims(self, leaf: int) -> tuple[int, ...]:
        """The dimensions that index the units of a leaf: those of the spaces it lies within, then its own."""
        return (*self.outer[leaf], leaf)


def check_finite(state: Mapping[str, Tensor], need: str = "a canonical gauge needs a finite state") -> None:
    """Refuse values that are not finite.

    Args:
        state: the tensors.
        need: what needs them finite, for the message.

    Raises:
        SpecError: with the names of the tensors that hold one, and how many.
    """
    counts = {
        name: int((~tensor.isfinite()).sum())
        for name, tensor in state.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    }
    if counts:
        told = [f"{name} ({count:,} of {state[name].numel():,})" for name, count in counts.items()]
        more = f" and {len(told) - _LISTED} more tensors" if len(told) > _LISTED else ""
        raise SpecError(f"{', '.join(told[:_LISTED])}{more}: values that are not finite; {need}")


def make_parts(spec: SymmetrySpec, state: Mapping[str, Tensor], matrices_only: bool = False) -> list[Part]:
    """The parts of a state in the order of the data flow; what no unit or factor touches is left out.

    Args:
        spec: the spec.
        state: a finite state.
        matrices_only: leave out tensors that no matrix acts on.
    """
    slots: dict[tuple[str, int], list[tuple[Factor, int | None, float]]] = {}
    for factor in spec.factors:
        for slot in factor.slots:
            slots.setdefault((slot.tensor, slot.block), []).append((factor, slot.leaf, float(slot.exponent)))
    turned: dict[tuple[str, int], dict[int, bool | None]] = {}
    gains: dict[tuple[str, int], list[tuple[int, str]]] = {}
    for linear in spec.linear:
        for place in linear.slots:
            flag = None if linear.kind == "orthogonal" else place.inverse
            turned.setdefault((place.tensor, place.block), {})[place.leaf] = flag
            if place.gain is not None:
                gains.setdefault((place.tensor, place.block), []).append((place.leaf, place.gain))
    spaces = {space.name for space in spec.spaces}
    wanted = {tensor for tensor, _ in turned} if matrices_only else set(spec.tensors)
    found = []
    for index, (name, info) in enumerate(spec.tensors.items()):
        tensor = state[name]
        if info.tied_to is not None or not tensor.is_floating_point() or name not in wanted:
            continue
        wide = tensor.detach().to("cpu", torch.float64)
        if info.positive_offset is not None:
            wide = wide + info.positive_offset
        for number, block in enumerate(tensor_blocks(spec.axes[name])):
            names = tuple(leaf_name(leaf) for leaf in block.leaves)
            mine = slots.get((name, number), [])
            if not mine and not spaces & set(names):
                continue
            outer = tuple(tuple(names.index(space) for space in spec.within.get(leaf or "", ())) for leaf in names)
            placed = [
                PartSlot(factor, () if leaf is None else (*outer[leaf], leaf), exponent)
                for factor, leaf, exponent in mine
            ]
            values = block.read(wide)
            for leaf, gain in gains.get((name, number), []):
                # Matrices act on a weight together with the gain before it; so do the gain's own factors.
                values = values * onto(state[gain].detach().to("cpu", torch.float64).reshape(-1), (leaf,), len(names))
                placed += [
                    PartSlot(factor, () if theirs is None else (*outer[leaf], leaf), exponent)
                    for factor, theirs, exponent in slots.get((gain, 0), [])
                ]
            found.append(
                Part(
                    tensor=name,
                    rank=(info.order, index, number),
                    names=names,
                    values=values,
                    outer=outer,
                    scales=_merged(placed, "scale"),
                    signs=_merged(placed, "sign"),
                    matrices=turned.get((name, number), {}),
                    kind=info.kind,
                    buffer=info.buffer,
                    offset=info.positive_offset is not None,
                )
            )
    return sorted(found, key=lambda part: part.rank)


def _merged(slots: Iterable[PartSlot], kind: str) -> tuple[PartSlot, ...]:
    """The slots of one kind, exponents of one place added up (signs: modulo two), without those that do nothing."""
    totals: dict[tuple[str, tuple[int, ...]], float] = {}
    factors: dict[str, Factor] = {}
    for slot in slots:
        if slot.factor.kind == kind:
            factors[slot.factor.name] = slot.factor
            key = (slot.factor.name, slot.dims)
            totals[key] = totals.get(key, 0.0) + (slot.exponent if kind == "scale" else 1.0)
    if kind == "sign":
        totals = {key: total % 2 for key, total in totals.items()}
    return tuple(PartSlot(factors[name], dims, total) for (name, dims), total in totals.items() if total)


@dataclass(frozen=True, slots=True)
class Groups:
    """The factors of one kind by the space they belong to (``None``: single values), in the order of the spec."""

    members: Mapping[str | None, tuple[Factor, ...]]

    @classmethod
    def of(cls, factors: Iterable[Factor], kind: str) -> Groups:
        """Group the factors of one kind."""
        members: dict[str | None, list[Factor]] = {}
        for factor in factors:
            if factor.kind == kind:
                members.setdefault(factor.space, []).append(factor)
        return cls({space: tuple(found) for space, found in members.items()})

    def rows(self, space: str | None, slots: Sequence[PartSlot]) -> dict[tuple[int, ...], list[float]]:
        """For each place of a part where factors of a space act, the exponents of all of them."""
        members = [factor.name for factor in self.members.get(space, ())]
        found: dict[tuple[int, ...], list[float]] = {}
        for slot in slots:
            if slot.factor.space == space and slot.factor.name in members:
                row = found.setdefault(slot.dims, [0.0] * len(members))
                row[members.index(slot.factor.name)] += slot.exponent
        return found


def onto(array: Tensor, dims: Sequence[int], ndim: int) -> Tensor:
    """View an array whose dimensions belong at ``dims`` so that it broadcasts against ``ndim`` dimensions."""
    by_dim = sorted(range(len(dims)), key=lambda k: dims[k])
    shape = [1] * ndim
    for k in by_dim:
        shape[dims[k]] = array.shape[k]
    return array.permute(tuple(by_dim)).reshape(shape)


def reduce_to(values: Tensor, dims: Sequence[int], shape: Sequence[int] | None = None) -> Tensor:
    """Sum over all dimensions but ``dims``, and put those in that order.

    With ``shape``, ``values`` only broadcasts to it: a dimension that it lacks counts as often as its size.
    """
    times = 1
    if shape is not None:
        missing = [dim for dim, size in enumerate(shape) if values.shape[dim] != size]
        for dim in missing:
            if dim not in dims:
                times *= shape[dim]
        values = values.expand([shape[dim] if dim in dims else values.shape[dim] for dim in range(values.ndim)])
    rest = [dim for dim in range(values.ndim) if dim not in dims]
    summed = values.sum(rest, keepdim=True) if rest else values
    kept = summed.permute((*dims, *rest)).reshape([summed.shape[dim] for dim in dims])
    return kept * times if times != 1 else kept


def invariant_parts(parts: Sequence[Part]) -> list[Part]:
    """Parts that no matrix changes and on which scalings act as before.

    Along a space of invertible matrices one block takes M and another its inverse transpose: their product is what no
    matrix changes, such as ``W_Q^T W_K`` of each head. Along an orthogonal space it is the norm. Only what scalings
    touch is kept; a block that has one such space twice (a recurrent linear layer) is left out.
    """
    found = _connected(parts)
    while True:
        space = next(
            (part.names[dim] for part in found for dim, flag in part.matrices.items() if flag is not None), None
        )
        if space is None:
            return [_norm(part) for part in found if part.scales]
        here = {id(part): [dim for dim in part.matrices if part.names[dim] == space] for part in found}
        single = [(part, here[id(part)][0]) for part in found if len(here[id(part)]) == 1]
        found = [part for part in found if not here[id(part)]]
        found += [
            product(one, first, other, second)
            for one, first in single
            for other, second in single
            if (one.matrices[first], other.matrices[second]) == (False, True)
        ]


def _connected(parts: Sequence[Part]) -> list[Part]:
    """The parts with scalings, and those that share a space of invertible matrices with one, perhaps through others."""
    spaces: set[str | None] = set()
    kept = {id(part) for part in parts if part.scales}
    while True:
        for part in parts:
            mine = _linear_spaces(part)
            if id(part) in kept or mine & spaces:
                kept.add(id(part))
                spaces |= mine
        if all(id(part) in kept or not _linear_spaces(part) & spaces for part in parts):
            return [part for part in parts if id(part) in kept]


def _linear_spaces(part: Part) -> set[str | None]:
    return {part.names[dim] for dim, flag in part.matrices.items() if flag is not None}


def _norm(part: Part) -> Part:
    """The Euclidean norm over the dimensions that orthogonal matrices act on."""
    gone = sorted(part.matrices)
    if not gone:
        return part
    kept = [dim for dim in range(part.values.ndim) if dim not in gone]
    place = {dim: index for index, dim in enumerate(kept)}
    slots = tuple(replace(slot, dims=tuple(place[dim] for dim in slot.dims)) for slot in part.scales)
    return replace(
        part,
        names=tuple(part.names[dim] for dim in kept),
        values=part.values.square().sum(gone).sqrt(),
        outer=tuple(tuple(place[outer] for outer in part.outer[dim]) for dim in kept),
        scales=slots,
        signs=(),
        matrices={},
    )


def product(one: Part, first: int, other: Part, second: int) -> Part:
    """Sum over a shared space; the spaces that it lies within stay, once."""
    letters = [chr(ord("a") + dim) for dim in range(len(one.names))]
    theirs = [chr(ord("A") + dim) for dim in range(len(other.names))]
    theirs[second] = letters[first]
    for mine, yours in zip(one.outer[first], other.outer[second], strict=True):
        theirs[yours] = letters[mine]
    shared = {*one.outer[first], first}
    output = [letters[dim] for dim in range(len(letters)) if dim != first]
    output += [letter for letter in theirs if letter not in {letters[dim] for dim in shared}]
    values = torch.einsum(f"{''.join(letters)},{''.join(theirs)}->{''.join(output)}", one.values, other.values)
    place = {letter: dim for dim, letter in enumerate(output)}

    def moved(slots: Iterable[PartSlot], names: Sequence[str]) -> list[PartSlot]:
        return [
            PartSlot(slot.factor, tuple(place[names[dim]] for dim in slot.dims), slot.exponent)
            for slot in slots
            if all(names[dim] in place for dim in slot.dims)
        ]

    names: list[str | None] = [None] * len(output)
    outer: list[tuple[int, ...]] = [()] * len(output)
    matrices: dict[int, bool | None] = {}
    for part, used in ((one, letters), (other, theirs)):
        for dim, letter in enumerate(used):
            if letter in place:
                names[place[letter]] = part.names[dim]
                outer[place[letter]] = tuple(place[used[k]] for k in part.outer[dim])
                if dim in part.matrices:
                    matrices[place[letter]] = part.matrices[dim]
    return Part(
        tensor=one.tensor,
        rank=(*one.rank, *other.rank),
        names=tuple(names),
        values=values,
        outer=tuple(outer),
        scales=tuple(moved(one.scales, letters) + moved(other.scales, theirs)),
        signs=tuple(moved(one.signs, letters) + moved(other.signs, theirs)),
        matrices=matrices,
        kind="product",
        buffer=one.buffer and other.buffer,
        offset=False,
    )
