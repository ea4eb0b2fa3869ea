"""What does a network's symmetry look like in plain words, and which of its units are unread, constant or twins?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from symmetry.action import TensorBlock, leaf_name, tensor_blocks
from symmetry.spec import SymmetrySpec, approximate, digits

__all__ = ["SpaceReport", "SymmetryReport", "analyze"]

SAME = 1e-6
MOST_UNITS = 8192


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """One space of a network.

    Args:
        name, size: of the space.
        within: spaces that it has its own permutation for each unit of.
        group: ``permutation``; ``linear`` or ``orthogonal`` where matrices act.
        copies: how many permutations or matrices it has: one per unit of the spaces in ``within``.
        permutations: number of permutations, as an exact integer (1 where matrices act).
        scales, signs: how many positive scalings and sign flips each unit has.
        activations: pointwise functions applied to it.
        writes, reads: the weight tensors that write and that read its units.
        unread: units whose outgoing weights are all zero: they do not reach the output through any of ``reads``.
        constant: units whose incoming weights are all zero.
        twins: groups of units that compute the same up to a factor that the group allows.
        words: the group in plain words.
    """

    name: str
    size: int
    within: tuple[str, ...]
    group: str
    copies: int
    permutations: int
    scales: int
    signs: int
    activations: tuple[str, ...]
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    unread: tuple[int, ...]
    constant: tuple[int, ...]
    twins: tuple[tuple[int, ...], ...]
    words: str


@dataclass(frozen=True, slots=True)
class SymmetryReport:
    """The outcome of :func:`analyze`: exact order and dimensions, one row per space, and what was pinned."""

    permutation_order: int
    sign_bits: int
    scale_dimension: int
    linear_dimension: int
    orthogonal_dimension: int
    parameters: int
    spaces: tuple[SpaceReport, ...]
    other_factors: tuple[str, ...]
    pinned: tuple[str, ...]

    def text(self) -> str:
        """The report for people, one line per space."""
        lines = [
            f"{self.parameters:,} parameters; permutations {approximate(self.permutation_order)}, "
            f"scale dimensions {self.scale_dimension}, sign bits {self.sign_bits}, "
            f"linear dimensions {self.linear_dimension}, orthogonal dimensions {self.orthogonal_dimension}"
        ]
        lines += [f"  {space.name} [{space.size}]: {space.words}" for space in self.spaces]
        if not self.spaces:
            lines.append("  no hidden units: nothing can be permuted")
        lines += [f"  also: {factor}" for factor in self.other_factors]
        lines += [f"  pinned: {pin}" for pin in self.pinned]
        return "\n".join(lines)

    __str__ = text

    def to_json(self) -> dict[str, Any]:
        """A JSON value; the orders of permutation groups are strings, since they do not fit a double."""
        found = asdict(self)
        found["permutation_order"] = digits(self.permutation_order)
        for space in found["spaces"]:
            space["permutations"] = digits(space["permutations"])
        return found


def analyze(spec: SymmetrySpec, state: Mapping[str, Tensor]) -> SymmetryReport:
    """Describe the group of a network and the units that it does not use fully.

    Args:
        spec: the spec of the architecture.
        state: the network.

    Raises:
        SpecError: if the state has other names or shapes.
    """
    spec.check(state)
    groups = {factor.space: factor.kind for factor in spec.linear}
    reports = []
    for space in spec.spaces:
        within = spec.within.get(space.name, ())
        mine = [factor for factor in spec.factors if factor.space == space.name]
        scales, signs = (sum(factor.kind == kind for factor in mine) for kind in ("scale", "sign"))
        writes, reads = (_users(spec, space.name, role) for role in ("out", "in"))
        unread = _zero_units(spec, state, space.name, space.size, reads)
        constant = _zero_units(spec, state, space.name, space.size, writes)
        group, copies = groups.get(space.name, "permutation"), spec.copies(space.name)
        twins = () if within or group != "permutation" else _twins(spec, state, space.name, scales, signs)
        order = math.factorial(space.size) ** copies if group == "permutation" else 1
        activations = tuple(spec.activations.get(space.name, ()))
        words = _words(
            group, (*writes, *reads), space.size, within, scales, signs, activations, unread, constant, twins
        )
        reports.append(
            SpaceReport(
                space.name,
                space.size,
                within,
                group,
                copies,
                order,
                scales,
                signs,
                activations,
                writes,
                reads,
                unread,
                constant,
                twins,
                words,
            )
        )
    spaces = {space.name for space in spec.spaces}
    others = [
        f"{factor.kind} {factor.name}: {factor.size if factor.space else 1} free, on "
        + ", ".join(dict.fromkeys(s.tensor for s in factor.slots))
        for factor in spec.factors
        if factor.space not in spaces
    ]
    return SymmetryReport(
        spec.permutation_order,
        spec.sign_bits,
        spec.scale_dimension,
        spec.linear_dimension,
        spec.orthogonal_dimension,
        sum(math.prod(info.shape) for info in spec.tensors.values() if info.tied_to is None and not info.buffer),
        tuple(reports),
        tuple(others),
        tuple(str(pin) for pin in spec.pinned),
    )


def _words(
    group: str,
    tensors: tuple[str, ...],
    size: int,
    within: tuple[str, ...],
    scales: int,
    signs: int,
    activations: tuple[str, ...],
    unread: tuple[int, ...],
    constant: tuple[int, ...],
    twins: tuple[tuple[int, ...], ...],
) -> str:
    what = f"{size} interchangeable units" if size > 1 else "1 unit"
    if group != "permutation":
        shape = f"{'invertible' if group == 'linear' else 'orthogonal'} {size}x{size} matrix"
        what = f"any {shape} between " + " and ".join(tensors)
    if within:
        what += " inside each unit of " + " and ".join(within)
    if scales:
        what += ", each with a free positive scale" if scales == 1 else f", each with {scales} free positive scales"
    if signs:
        what += (" and" if scales else ", each with") + (" a free sign" if signs == 1 else f" {signs} free signs")
    if activations:
        what += f" ({', '.join(activations)})"
    for found, label in ((unread, "unread"), (constant, "constant")):
        if found:
            listed = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
            what += f"; {len(found)} {label} ({listed})"
    if twins:
        what += f"; {len(twins)} groups of twins ({', '.join(str(group) for group in twins[:4])})"
    return what


def _blocks(spec: SymmetrySpec, tensor: str, space: str, role: str) -> list[tuple[TensorBlock, int]]:
    """Blocks of a tensor with a leaf over the space on an axis of the given role, and which leaf it is."""
    info, found = spec.tensors[tensor], []
    owners = [dim for dim, axis in enumerate(spec.axes[tensor])]
    for block in tensor_blocks(spec.axes[tensor]):
        place = 0
        for dim in owners:
            count = len(block.leaves) if len(owners) == 1 else _leaf_count(block, dim)
            for leaf in range(place, place + count):
                if leaf_name(block.leaves[leaf]) == space and info.roles[dim] in (role, "unit"):
                    found.append((block, leaf))
            place += count
    return found


def _leaf_count(block: TensorBlock, dim: int) -> int:
    """How many of a block's leaves belong to one dimension of the tensor."""
    place, counts = 0, []
    for positions in block.positions:
        size, count = 1, 0
        while place + count < len(block.leaves) and (size < len(positions) or (count == 0)):
            size *= block.leaves[place + count].size
            count += 1
        counts.append(count)
        place += count
    return counts[dim]


def _users(spec: SymmetrySpec, space: str, role: str) -> tuple[str, ...]:
    return tuple(
        sorted(
            (
                name
                for name, info in spec.tensors.items()
                if info.tied_to is None
                and info.kind.endswith(".weight")
                and info.kind != "norm.weight"
                and _blocks(spec, name, space, role)
            ),
            key=lambda name: spec.tensors[name].order,
        )
    )


def _rows(block: TensorBlock, leaf: int, tensor: Tensor) -> Tensor:
    """The block as one row per unit of a leaf, float64."""
    values = block.read(tensor.detach().to("cpu", torch.float64))
    return values.movedim(leaf, 0).reshape(block.shape[leaf], -1)


def _zero_units(
    spec: SymmetrySpec, state: Mapping[str, Tensor], space: str, size: int, tensors: tuple[str, ...]
) -> tuple[int, ...]:
    """Units for which every listed tensor is zero; none if no tensor is listed."""
    role_blocks = [
        (name, block, leaf)
        for name in tensors
        for role in ("in", "out")
        for block, leaf in _blocks(spec, name, space, role)
    ]
    if not role_blocks or spec.within.get(space):
        return ()
    zero = torch.ones(size, dtype=torch.bool)
    for name, block, leaf in role_blocks:
        zero &= (_rows(block, leaf, state[name]) == 0).all(1)
    return tuple(zero.nonzero().flatten().tolist())


def _twins(
    spec: SymmetrySpec, state: Mapping[str, Tensor], space: str, scales: int, signs: int
) -> tuple[tuple[int, ...], ...]:
    """Groups of units with the same incoming weights, up to what the group allows for each unit."""
    rows = _incoming(spec, state, space)
    if rows is None or len(rows) < 2 or len(rows) > MOST_UNITS:
        return ()
    norms = rows.norm(dim=1, keepdim=True)
    alive = norms.flatten() > 0
    unit = rows / norms.clamp_min(torch.finfo(torch.float64).tiny)
    same = unit @ unit.T > 1 - SAME
    if signs:
        same |= unit @ unit.T < SAME - 1
    if not scales:
        same &= (norms - norms.T).abs() <= SAME * torch.maximum(norms, norms.T)
    same &= alive[:, None] & alive[None, :]
    groups, seen = [], set[int]()
    for first in range(len(rows)):
        if first not in seen:
            group = tuple(same[first].nonzero().flatten().tolist())
            seen.update(group)
            if len(group) > 1:
                groups.append(group)
    return tuple(groups)


def _incoming(spec: SymmetrySpec, state: Mapping[str, Tensor], space: str) -> Tensor | None:
    """What each unit computes from: incoming weights and offsets, a batch norm folded into them.

    ``None`` where several weights write into one space (a residual stream): its units are sums, not functions of one
    row.
    """
    found: dict[str, list[Tensor]] = {}
    offset = 0.0
    for name, info in spec.tensors.items():
        if info.tied_to is None:
            for block, leaf in _blocks(spec, name, space, "out"):
                found.setdefault(info.kind, []).append(_rows(block, leaf, state[name]))
                offset = info.positive_offset if info.positive_offset is not None else offset
    weights = found.get("linear.weight", []) + found.get("conv.weight", [])
    others = [
        kind for kind in found if not kind.endswith(".weight") and kind != "bias" and not kind.startswith("norm.")
    ]
    if len(weights) != 1 or others or any(len(rows) > 1 for rows in found.values()):
        return None
    weight, bias = weights[0], found["bias"][0] if "bias" in found else weights[0].new_zeros(len(weights[0]), 1)
    if "norm.running_var" in found:
        gain = found["norm.weight"][0] if "norm.weight" in found else torch.ones_like(bias)
        shift = found["norm.bias"][0] if "norm.bias" in found else torch.zeros_like(bias)
        factor = gain / (found["norm.running_var"][0] + offset).sqrt()
        weight, bias = weight * factor, (bias - found["norm.running_mean"][0]) * factor + shift
    return torch.cat([weight, bias], dim=1)
