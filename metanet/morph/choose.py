"""Which units are copied or dropped, and what plan brings a network to other widths?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import PlanError
from metanet.morph.compensate import bias_of, obs_order, readers, reading_dim, reads_alone
from metanet.morph.edits import Keep, SpaceEdit, Widen
from metanet.morph.group_obs import Read, features_of, obs_group_order
from metanet.morph.moments import joint_moments
from metanet.morph.plan import Plan, fingerprint
from metanet.morph.refit import without_positions
from metanet.morph.resize import size_of
from symmetry import SymmetrySpec
from symmetry.action import leaf_name, tensor_blocks
from symmetry.spaces import Axis

__all__ = [
    "CRITERIA",
    "importance",
    "narrow",
    "narrow_by_obs",
    "normed_spaces",
    "resizable",
    "to_sizes",
    "widen",
]

CRITERIA = ("l2", "l1", "group_l2", "random", "first")


def resizable(spec: SymmetrySpec) -> tuple[str, ...]:
    """The spaces that a plan for other widths changes: all but the units inside heads, on which matrices act."""
    matrices = {factor.space for factor in spec.linear if spec.within.get(factor.space)}
    return tuple(space.name for space in spec.spaces if space.name not in matrices and space.size > 1)


def importance(
    spec: SymmetrySpec,
    state: Mapping[str, Tensor],
    space: str,
    criterion: str = "l2",
    generator: torch.Generator | None = None,
) -> Tensor:
    """How much each unit of a space matters, told from weights.

    Args:
        spec: of the state.
        state: the weights.
        space: whose units.
        criterion: ``l2`` or ``l1`` of all weights that write a unit; ``group_l2`` of all that write or read it, as in
            Fang et al., DepGraph, 2023; ``random``; ``first`` (earlier units matter more).
        generator: for ``random``; a fresh one with seed 0 if ``None``.

    Shapes:
        -> spec.array_shape(space), float64

    Raises:
        PlanError: for a criterion or space that does not exist.
    """
    if criterion not in CRITERIA:
        raise PlanError(f"unknown criterion {criterion!r:.60}", hint="known: " + ", ".join(CRITERIA))
    size_of(spec, space)
    shape = spec.array_shape(space)
    if criterion == "random":
        generator = generator or torch.Generator().manual_seed(0)
        return torch.rand(shape, generator=generator, dtype=torch.float64)
    if criterion == "first":
        return -torch.arange(shape[-1], dtype=torch.float64).expand(shape)
    total, power = torch.zeros(shape, dtype=torch.float64), 1 if criterion == "l1" else 2
    keep = [*spec.within.get(space, ()), space]
    for name, info in spec.tensors.items():
        # What lies in buffers is no weight: running statistics say how large inputs were.
        if info.tied_to or info.buffer or not state[name].is_floating_point():
            continue
        for block in tensor_blocks(spec.axes[name]):
            names = [leaf_name(leaf) for leaf in block.leaves]
            role = info.roles[_axis_of(spec, name, names, space)] if space in names and info.roles else ""
            if role and (criterion == "group_l2" or role != "in"):
                values = block.read(state[name].detach()).double().abs().pow(power)
                # A square matrix of one space meets it twice; the rows are those that are written.
                dims = [names.index(one) for one in keep]
                rest = [dim for dim in range(values.ndim) if dim not in dims]
                total += values.permute(*dims, *rest).reshape(*shape, -1).sum(-1).to(total.device)
    return total.pow(1 / power)


def _axis_of(spec: SymmetrySpec, name: str, names: list[str | None], space: str) -> int:
    """The first axis of a tensor that runs over a space."""
    for number, axis in enumerate(spec.axes[name]):
        if space in {leaf_name(leaf) for leaf in axis.leaves()}:
            return number
    raise PlanError(f"{name}: no axis over {space!r} among {names}")


def narrow(
    spec: SymmetrySpec,
    state: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    criterion: str = "l2",
    generator: torch.Generator | None = None,
) -> Plan:
    """A plan that keeps the units that matter most, in their old order.

    Args:
        spec: of the state.
        state: the weights.
        sizes: units to keep, by space.
        criterion: see :func:`importance`.
        generator: for ``random``.

    Raises:
        PlanError: for sizes below 1 or above what is there.
    """
    edits: list[SpaceEdit] = []
    for space, size in sizes.items():
        _check_size(spec, space, size)
        scores = importance(spec, state, space, criterion, generator)
        if size < scores.shape[-1]:
            kept = scores.topk(size, dim=-1).indices.sort(-1).values
            edits.append(Keep(space, kept.tolist()))
    return Plan(_inner_first(spec, edits), fingerprint(spec))


def narrow_by_obs(
    model: nn.Module,
    spec: SymmetrySpec,
    sizes: Mapping[str, int],
    batches: Sequence[Sequence[Any]],
    ridge: float = 1e-3,
) -> Plan:
    """A plan that keeps the units without which compensation loses least; see :func:`obs_order`.

    Units that are several features of a reader (heads) or features beside others (parts of concatenations, units inside
    heads) go by :func:`metanet.morph.group_obs.obs_group_order`. Units that no weight reads which can be watched
    (those inside heads that only products of queries and keys read) fall back to ``group_l2``.

    Args:
        model: the network.
        spec: of the model.
        sizes: units to keep, by space.
        batches: argument lists of ``forward``: data, or inputs that are made up.
        ridge: see :func:`obs_order`.

    Raises:
        PlanError: for sizes below 1 or above what is there, or inputs that are not finite.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items()}
    wanted: dict[str, dict[str, Axis]] = {}
    for space in sizes:
        wanted[space] = readers(spec, space)
    axes = {name: (axis, axis) for found in wanted.values() for name, axis in found.items()}
    seen = joint_moments(model, model, batches, axes, missing_ok=True) if axes else {}
    edits: list[SpaceEdit] = []
    for space, size in sizes.items():
        _check_size(spec, space, size)
        if size == spec.sizes[space]:
            continue
        names = [name for name in wanted.get(space, ()) if name in seen]
        if not names:
            edits += [edit for edit in narrow(spec, state, {space: size}, "group_l2").edits if isinstance(edit, Keep)]
            continue
        read = [seen[name] if bias_of(name, state) else seen[name].about_zero() for name in names]
        grams = [
            _reader_gram(state[name], reading_dim(spec, name, wanted[space][name]), wanted[space][name])
            for name in names
        ]
        if not spec.within.get(space) and all(reads_alone(axis) for axis in wanted[space].values()):
            covariance = torch.stack([moments.within for moments in read]).mean(0)
            kept = sorted(obs_order(covariance, torch.stack(grams).sum(0), ridge)[-size:])
            edits.append(Keep(space, kept))
            continue
        reads = [
            Read(moments.within, gram, features_of(spec, space, wanted[space][name]))
            for name, moments, gram in zip(names, read, grams, strict=True)
        ]
        shape = spec.array_shape(space)
        places = torch.arange(int(torch.tensor(shape).prod())).reshape(-1, shape[-1])
        rows = (places // shape[-1]).reshape(-1).tolist()
        gone = set(obs_group_order(reads, rows, shape[-1] - size, ridge))
        left = [[place % shape[-1] for place in row if place not in gone] for row in places.tolist()]
        edits.append(Keep(space, torch.tensor(left).reshape(*shape[:-1], size).tolist()))
    return Plan(_inner_first(spec, edits), fingerprint(spec))


def _inner_first(spec: SymmetrySpec, edits: Sequence[SpaceEdit]) -> tuple[SpaceEdit, ...]:
    """Units inside heads or groups are chosen for every head or group that is there, so before any of those goes."""
    return tuple(sorted(edits, key=lambda edit: -len(spec.within.get(edit.space, ()))))


def _reader_gram(weight: Tensor, dim: int, axis: Axis) -> Tensor:
    """W^T W over the features that a weight reads. Shapes: -> (n, n)."""
    flat = weight.double().movedim(dim, 0).reshape(without_positions(axis).size, -1)
    return flat @ flat.mT


def _check_size(spec: SymmetrySpec, space: str, size: int) -> None:
    if not 1 <= size <= size_of(spec, space):
        raise PlanError(f"{size} units of {space!r}, expected 1 to {size_of(spec, space)}")


def widen(spec: SymmetrySpec, sizes: Mapping[str, int], generator: torch.Generator | None = None) -> Plan:
    """A plan that copies units; exact.

    Args:
        spec: of the network.
        sizes: new numbers of units, by space.
        generator: which units are copied once more than others is drawn; the first ones without.

    Raises:
        PlanError: for sizes below what is there, or not a multiple of it where a norm runs over the units.
    """
    edits = []
    normed = normed_spaces(spec)
    for space, size in sizes.items():
        old = spec.sizes.get(space, 0)
        if size < old or old == 0:
            raise PlanError(f"widen {space!r} from {old} to {size} units", hint="use narrow for fewer units")
        if space in normed and size % old:
            raise PlanError(
                f"{size} units of {space!r}: a norm runs over its {old} units, so each has to be copied equally often",
                hint=f"take {size // old * old} or {(size // old + 1) * old}",
            )
        if size > old:
            order = torch.randperm(old, generator=generator) if generator is not None else torch.arange(old)
            extra = order.repeat(-(-(size - old) // old))[: size - old]
            edits.append(Widen(space, torch.cat([torch.arange(old), extra]).tolist()))
    return Plan(tuple(edits), fingerprint(spec))


def normed_spaces(spec: SymmetrySpec) -> set[str]:
    """Spaces with a norm over their units, told by a gain beside which there are no running statistics.

    A root-mean-square norm is traced as plain arithmetic with a plain parameter. A slope (PReLU) or scale of the layer
    looks alike, but there each unit may be scaled where it is written, which no norm over units allows.
    """
    running = {name.rpartition(".")[0] for name, info in spec.tensors.items() if info.kind == "norm.running_mean"}
    scaled = {
        factor.space
        for factor in spec.factors
        for slot in factor.slots
        if factor.kind == "scale" and slot.exponent > 0 and len(spec.axes[slot.tensor]) > 1
    }
    found = set()
    for name, info in spec.tensors.items():
        gain = info.kind == "norm.weight" and name.rpartition(".")[0] not in running
        plain = info.kind == "parameter" and info.roles == ("out",)
        leaves = [leaf_name(leaf) for axis in spec.axes[name] for leaf in axis.leaves()]
        # Of channels in groups, only those inside a group are normalised together.
        if leaves and leaves[-1] and (gain or (plain and leaves[-1] not in scaled)):
            found.add(leaves[-1])
    return found


def to_sizes(spec: SymmetrySpec, ratio: float, spaces: tuple[str, ...] | None = None) -> dict[str, int]:
    """Sizes of spaces at a share of their width, at least 1; above 1 whole multiples where a norm asks for it.

    Args:
        spec: of the network.
        ratio: positive; 0.5 for half as many units.
        spaces: which; those of :func:`resizable` by default.

    Raises:
        PlanError: for a ratio that is not positive and finite, or a space that is not there.
    """
    if not 0 < ratio < math.inf:
        raise PlanError(f"width {ratio}, expected a positive number", hint="0.5 halves, 2 doubles")
    chosen = resizable(spec) if spaces is None else spaces
    known, normed = {space: size_of(spec, space) for space in chosen}, normed_spaces(spec)
    found = {}
    for space in chosen:
        size = max(1, round(ratio * known[space]))
        found[space] = max(1, round(ratio)) * known[space] if ratio > 1 and space in normed else size
    return found
