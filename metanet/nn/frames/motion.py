"""How do group elements without permutations act on a whole bucket of networks at once?

The batched, differentiable form of :class:`symmetry.GroupElement` and ``spec.act``: one element per network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from metanet.errors import ModelError
from metanet.graph import Bucket, Topology
from metanet.nn.frames.places import Place, Turn, View, onto, views_of
from symmetry import GroupElement

__all__ = ["Motion", "Values"]

Values: TypeAlias = Sequence[Tensor | None]


@dataclass(frozen=True, eq=False, repr=False)
class Motion:
    """One group element without a permutation for each of B networks of one architecture.

    What a mapping leaves out is neutral. ``a @ b`` composes (``b`` acts first), ``~a`` inverts. Gradients flow through
    ``log_scales`` and ``matrices``; nothing is changed in place.

    Args:
        topology: the architecture.
        size: number of networks B.
        log_scales: by scale factor, logarithms of its values.
        flips: by sign factor, booleans; ``True`` flips.
        matrices: by space of a linear or orthogonal factor.
        shifts: by shift factor, integers.

    Shapes:
        log_scales, flips, shifts: ``(B, *spec.array_shape(factor.space))``. matrices: ``(B,
        *spec.array_shape(space), n)``, that is ``(B, *outer, n, n)``.

    Raises:
        ModelError: for a name that the spec does not have, or another shape.
    """

    topology: Topology
    size: int
    log_scales: Mapping[str, Tensor] = field(default_factory=dict)
    flips: Mapping[str, Tensor] = field(default_factory=dict)
    matrices: Mapping[str, Tensor] = field(default_factory=dict)
    shifts: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = self.topology.spec
        scales = {f.name: spec.array_shape(f.space) for f in spec.factors if f.kind == "scale"}
        signs = {f.name: spec.array_shape(f.space) for f in spec.factors if f.kind == "sign"}
        self._check("log_scales", self.log_scales, scales)
        self._check("flips", self.flips, signs)
        self._check("matrices", self.matrices, {f.space: (*spec.array_shape(f.space), f.size) for f in spec.linear})
        self._check("shifts", self.shifts, {f.name: spec.array_shape(f.space) for f in spec.shifts})

    def _check(self, what: str, given: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
        for name, value in given.items():
            if name not in expected:
                raise ModelError(f"{what}[{name!r}] is unknown to the spec, expected some of {', '.join(expected)}")
            if tuple(value.shape) != (self.size, *expected[name]):
                raise ModelError(
                    f"{what}[{name!r}] has shape {tuple(value.shape)}, expected {(self.size, *expected[name])}"
                )

    @classmethod
    def identity(cls, bucket: Bucket) -> Motion:
        """The neutral elements of a bucket's networks."""
        return cls(bucket.topology, len(bucket))

    @classmethod
    def of(cls, topology: Topology, elements: Sequence[GroupElement], like: Tensor) -> Motion:
        """A motion from one element per network; their permutations must be neutral.

        Args:
            topology: the architecture.
            elements: one per network.
            like: a tensor whose dtype and device the motion's numbers get.

        Raises:
            ModelError: if an element moves a unit.
        """
        for element in elements:
            for name, value in element.permutations.items():
                if not bool((value == torch.arange(value.shape[-1])).all()):
                    raise ModelError(f"an element permutes {name!r}; a motion holds elements without permutations")

        def stack(kind: str, floating: bool) -> dict[str, Tensor]:
            names = getattr(elements[0], kind) if elements else ()
            rows = {name: torch.stack([getattr(element, kind)[name] for element in elements]) for name in names}
            return {name: row.to(like) if floating else row.to(like.device) for name, row in rows.items()}

        return cls(
            topology,
            len(elements),
            stack("log_scales", True),
            stack("flips", False),
            stack("matrices", True),
            stack("shifts", False),
        )

    @cached_property
    def duals(self) -> dict[str, Tensor]:
        """Inverse transposes of the matrices (of orthogonal ones: themselves), by space."""
        linear = {factor.space for factor in self.topology.spec.linear if factor.kind == "linear"}
        return {name: torch.linalg.inv(value).mT if name in linear else value for name, value in self.matrices.items()}

    def act(self, values: Values) -> tuple[Tensor | None, ...]:
        """The block values of the networks after their elements have acted; the same tensor where nothing acts.

        Shapes:
            values: as ``Bucket.values``; returns the same.
        """
        return self._move(values, values, affine=True)

    def carry(self, changes: Values, at: Values | None = None) -> tuple[Tensor | None, ...]:
        """What changes of the values become: the linear part of :meth:`act`, without shifts and offsets.

        ``act(values + changes) = act(values) + carry(changes)`` exactly, as long as gains that matrices act through
        (``symmetry.LinearSlot.gain``) do not change.

        Args:
            changes: changes of the block values; ``None`` where there are none.
            at: the values that are changed; needed only where matrices act through a gain.

        Shapes:
            changes: ``(B, *block shape)``, or ``(B, k, *block shape)`` for k changes of each; returns the same.

        Raises:
            ModelError: where ``at`` is needed and missing.
        """
        return self._move(changes, at, affine=False)

    def apply(self, bucket: Bucket) -> Bucket:
        """The bucket with its networks moved, without what was remembered of them."""
        return replace(bucket, values=self.act(bucket.values), origin=None, cache={})

    def _move(self, values: Values, at: Values | None, affine: bool) -> tuple[Tensor | None, ...]:
        views = views_of(self.topology)
        if len(values) != len(views):
            raise ModelError(f"{len(values)} blocks, expected the {len(views)} of the topology")
        return tuple(
            value if value is None or view is None or not view.touched else self._block(view, value, at, affine)
            for view, value in zip(views, values, strict=True)
        )

    def _block(self, view: View, value: Tensor, at: Values | None, affine: bool) -> Tensor:
        factors = self._factors(view, value)
        turns = [turn for turn in view.turns if turn.space in self.matrices]
        steps = [shift for shift in view.shifts if shift.factor in self.shifts] if affine else []
        if not factors and not turns and not steps:
            return value
        ndim = len(view.sizes)
        count = value[0].numel() // max(_product(view.sizes), 1) if len(value) else 1
        moved = value.reshape(len(value), count, *view.sizes)
        for turn in turns:
            moved = self._turn(turn, moved, ndim, at)
        if view.offset is not None and affine and factors:
            moved = moved + view.offset
        if len(factors) == 2 and factors[0].ndim > 2:
            factors = [factors[0] * factors[1]]  # together they are no larger than the weights without kernel positions
        for factor in factors:
            moved = moved * factor.unsqueeze(1)
        if view.offset is not None and affine and factors:
            moved = moved - view.offset
        for step in steps:
            moved = moved + onto(self.shifts[step.factor].to(moved) * step.step, step.dims, ndim).unsqueeze(1)
        return moved.reshape(value.shape)

    def _factors(self, view: View, like: Tensor) -> list[Tensor]:
        """What a block is multiplied by, one array per set of dimensions: ``(B, ...)`` with one dimension per leaf."""
        ndim = len(view.sizes)
        logs: dict[tuple[int, ...], Tensor] = {}
        for place in view.scales:
            if place.factor in self.log_scales:
                placed = onto(self.log_scales[place.factor].to(like.device), place.dims, ndim) * place.exponent
                key = tuple(sorted(place.dims))
                logs[key] = logs[key] + placed if key in logs else placed
        found = _exponentials(logs, like.dtype)
        for key, flip in self._flips(view).items():
            sign = 1 - 2 * flip.to(like)
            found[key] = found[key] * sign if key in found else sign
        return list(found.values())

    def _flips(self, view: View) -> dict[tuple[int, ...], Tensor]:
        """The parity of all signs on a block, by the dimensions they run along."""
        found: dict[tuple[int, ...], Tensor] = {}

        def add(place: Place, flip: Tensor) -> None:
            placed = onto(flip, place.dims, len(view.sizes))
            key = tuple(sorted(place.dims))
            found[key] = found[key] ^ placed if key in found else placed

        for place in view.signs:
            if place.factor in self.flips:
                add(place, self.flips[place.factor])
        for place in view.odd:
            if place.factor in self.shifts:
                add(place, self.shifts[place.factor] % 2 == 1)
        return found

    def _turn(self, turn: Turn, value: Tensor, ndim: int, at: Values | None) -> Tensor:
        matrix = (self.duals if turn.inverse else self.matrices)[turn.space]
        dims, places = [2 + dim for dim in turn.dims], list(range(1, 1 + len(turn.dims)))
        gain = None
        if turn.gain is not None:
            found = at[turn.gain] if at is not None else None
            if found is None:
                raise ModelError("these matrices act through a gain", hint="pass the values that are changed as at=")
            gain = onto(found.reshape(len(value), -1), turn.dims[-1:], ndim).unsqueeze(1)
            value = value * gain
        wide = torch.promote_types(value.dtype, matrix.dtype)
        front = value.to(wide).movedim(dims, places)
        flat = front.reshape(*front.shape[: 1 + len(dims)], -1)
        turned = (matrix.to(wide) @ flat).reshape(front.shape).movedim(places, dims).to(value.dtype)
        return turned if gain is None else turned / gain

    def __matmul__(self, other: Motion) -> Motion:
        if not isinstance(other, Motion):
            return NotImplemented
        if other.topology.fingerprint != self.topology.fingerprint or other.size != self.size:
            raise ModelError("a @ b: the motions belong to different architectures or numbers of networks")
        turned = {
            name: self._bias_signs(name) * value if self.shifts or self.flips else value
            for name, value in other.shifts.items()
        }
        return replace(
            self,
            log_scales=_union(self.log_scales, other.log_scales, torch.add),
            flips=_union(self.flips, other.flips, torch.logical_xor),
            matrices=_union(self.matrices, other.matrices, torch.matmul),
            shifts=_union(self.shifts, turned, torch.add),
        )

    def __invert__(self) -> Motion:
        linear = {factor.space for factor in self.topology.spec.linear if factor.kind == "linear"}
        return replace(
            self,
            log_scales={name: -value for name, value in self.log_scales.items()},
            matrices={
                name: torch.linalg.inv(value) if name in linear else value.mT for name, value in self.matrices.items()
            },
            shifts={name: -self._bias_signs(name) * value for name, value in self.shifts.items()},
        )

    def _bias_signs(self, name: str) -> Tensor:
        """The signs by which the motion multiplies the bias that a factor shifts, one per integer of that factor."""
        spec = self.topology.spec
        factor = next(shift for shift in spec.shifts if shift.name == name)
        view, dims = next(
            (view, shift.dims)
            for view in views_of(self.topology)
            if view is not None
            for shift in view.shifts
            if shift.factor == name
        )
        flips = self._flips(view)
        shape = spec.array_shape(factor.space)
        like = next(iter((*self.flips.values(), *self.shifts.values())))
        total = torch.zeros(1, *[1] * len(view.sizes), dtype=torch.bool, device=like.device)
        for flip in flips.values():
            total = total ^ flip
        full = total.expand(self.size, *view.sizes)
        rest = [dim for dim in range(len(view.sizes)) if dim not in dims]
        kept = full.permute(0, *(1 + dim for dim in dims), *(1 + dim for dim in rest))
        return 1 - 2 * kept.reshape(self.size, *shape, -1)[..., 0].long()

    def select(self, rows: Tensor) -> Motion:
        """The motions of some of the networks."""
        kinds = {
            kind: {name: value.index_select(0, rows) for name, value in getattr(self, kind).items()}
            for kind in ("log_scales", "flips", "matrices", "shifts")
        }
        return Motion(self.topology, int(rows.numel()), **kinds)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Motion:
        """The motions on another device, their logarithms and matrices in another dtype."""
        return replace(
            self,
            log_scales={name: value.to(device, dtype) for name, value in self.log_scales.items()},
            flips={name: value.to(device) for name, value in self.flips.items()},
            matrices={name: value.to(device, dtype) for name, value in self.matrices.items()},
            shifts={name: value.to(device) for name, value in self.shifts.items()},
        )

    def element(self, row: int) -> GroupElement:
        """The element of one network, as a value of :mod:`symmetry`."""
        neutral = self.topology.spec.identity()

        def filled(default: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: mine[name][row].detach().to("cpu", value.dtype) if name in mine else value
                for name, value in default.items()
            }

        return GroupElement(
            neutral.spec,
            neutral.permutations,
            filled(neutral.log_scales, self.log_scales),
            filled(neutral.flips, self.flips),
            filled(neutral.matrices, self.matrices),
            filled(neutral.shifts, self.shifts),
        )

    def __repr__(self) -> str:
        return (
            f"Motion({self.size} networks; {len(self.log_scales)} scales, {len(self.flips)} signs, "
            f"{len(self.matrices)} spaces of matrices, {len(self.shifts)} shifts)"
        )


def _exponentials(logs: dict[tuple[int, ...], Tensor], dtype: torch.dtype) -> dict[tuple[int, ...], Tensor]:
    """Factors of a dtype from their logarithms, added up first where one alone would leave its range."""
    if not logs:
        return {}
    most = max(float(value.detach().abs().amax()) if value.numel() else 0.0 for value in logs.values())
    bound = math.log(torch.finfo(dtype).max) * 0.45
    if most < bound:
        return {key: value.exp().to(dtype) for key, value in logs.items()}
    total = sum(logs.values(), start=torch.zeros_like(next(iter(logs.values()))))
    return {tuple(sorted({dim for key in logs for dim in key})): total.clamp(-2 * bound, 2 * bound).exp().to(dtype)}


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _union(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], both: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Both mappings, entries of one name combined, in the wider of their dtypes."""

    def combined(name: str) -> Tensor:
        wide = torch.promote_types(a[name].dtype, b[name].dtype)
        return both(a[name].to(wide), b[name].to(wide))

    return {**a, **b, **{name: combined(name) for name in a if name in b}}
