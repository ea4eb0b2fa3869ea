"""How are attention scores kept when units inside heads, which only products of queries and keys read, are dropped?

Both sides are rebuilt from their units that are left, ``q ~ Q^T q' + c`` and ``k ~ K^T k'`` (what is constant in a key
adds the same to all scores of a query, which the softmax does not see). Then ``q . k ~ (K Q^T q' + K c) . k'``: both
matrices are folded into the queries' weights and bias. Over all pairs of a query and a key this is least squares.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metanet.errors import PlanError
from metanet.morph.function import TOLERANCE, Function
from metanet.morph.modules import put_tensors
from metanet.morph.moments import Moments
from metanet.morph.refit import (
    Compensation,
    Steps,
    bias_of,
    mixtures,
    moved,
    read_moments,
    rebuilding_matrix,
    without_positions,
)
from metanet.morph.resize import resize, resized_spec
from metanet.morph.undo import inverse
from symmetry import SymmetrySpec
from symmetry.action import leaf_name, tensor_blocks

__all__ = ["ScorePair", "keep_scale", "refit_scores", "score_pairs"]


@dataclass(frozen=True)
class ScorePair:
    """Two weights that write a space which nothing but the product of both reads.

    Args:
        space: its name.
        queries: the weight and the block of it that write the queries.
        keys: those that write the keys; one for all queries of a group.
    """

    space: str
    queries: tuple[str, int]
    keys: tuple[str, int]

    @property
    def weights(self) -> list[str]:
        """The names of both, once each."""
        return list(dict.fromkeys((self.queries[0], self.keys[0])))


@dataclass(frozen=True, eq=False)
class _Side:
    """Queries or keys, group by group and (queries that share keys) one of a group after the other.

    Args:
        places: of the units that are left, along the axis by which the edited weight writes.
        moments: of the units, before and now.
        priors: which old unit each one that is left is.
        bias: of the weight.

    Shapes:
        places (groups, extra, m); priors (m, n) each
    """

    places: Tensor
    moments: list[list[Moments]]
    priors: list[list[Tensor]]
    bias: str | None


def score_pairs(spec: SymmetrySpec, spaces: Collection[str]) -> list[ScorePair]:
    """The pairs of queries and keys whose units some spaces are."""
    found = []
    for factor in spec.linear:
        if factor.space not in spaces:
            continue
        sides: list[list[tuple[str, int]]] = [[], []]
        read = False
        for slot in factor.slots:
            axes, roles = spec.axes[slot.tensor], spec.tensors[slot.tensor].roles
            block = tensor_blocks(axes)[slot.block]
            writes = len(roles) == 2 and leaf_name(block.leaves[slot.leaf]) == factor.space
            if len(axes) == 2 and writes and _writing(spec, slot.tensor, factor.space) is not None:
                sides[slot.inverse].append((slot.tensor, slot.block))
            read = read or (len(axes) > 1 and _writing(spec, slot.tensor, factor.space) is None)
        if not read and len(sides[0]) == len(sides[1]) == 1:
            pair = ScorePair(factor.space, sides[0][0], sides[1][0])
            # Several queries may share a key, and then it is the keys that stand alone.
            if _rows(spec, pair.space, pair.keys).shape[1] > 1:
                pair = ScorePair(pair.space, pair.keys, pair.queries)
            if _rows(spec, pair.space, pair.keys).shape[1] == 1:
                found.append(pair)
    return found


def _writing(spec: SymmetrySpec, name: str, space: str) -> int | None:
    """The axis by which a weight writes a space, if it does."""
    for dim, (axis, role) in enumerate(zip(spec.axes[name], spec.tensors[name].roles, strict=False)):
        if role == "out" and space in {leaf_name(leaf) for leaf in axis.leaves()}:
            return dim
    return None


def _rows(spec: SymmetrySpec, space: str, side: tuple[str, int]) -> Tensor:
    """Places of the units along the writing axis. Shapes: -> (groups, extra, units)."""
    name, number = side
    axes = spec.axes[name]
    dim = _writing(spec, name, space) or 0
    block = tensor_blocks(axes)[number]
    # A block has the leaves of its axes one after the other; the other axis is one block of its own.
    others = len(axes[1 - dim].leaves())
    leaves = block.leaves[: len(block.leaves) - others] if dim == 0 else block.leaves[others:]
    names = [leaf_name(leaf) for leaf in leaves]
    rows = torch.from_numpy(np.ascontiguousarray(block.positions[dim])).reshape([leaf.size for leaf in leaves])
    outer = [names.index(one) for one in spec.within.get(space, ())]
    unit = names.index(space)
    extra = [at for at in range(rows.ndim) if at not in outer and at != unit]
    groups = [rows.shape[at] for at in outer]
    return rows.permute(*outer, *extra, unit).reshape(int(np.prod(groups, dtype=int)), -1, rows.shape[unit])


def refit_scores(
    pair: ScorePair,
    old: nn.Module,
    new: nn.Module,
    before: SymmetrySpec,
    after: SymmetrySpec,
    steps: Steps,
    compensation: Compensation,
    scale: float = 1.0,
) -> None:
    """Refit the queries of an edited network, in place.

    Args:
        pair: whose scores.
        old: the network before.
        new: the edited one.
        before: layout of the old one.
        after: layout of the edited one.
        steps: what was done.
        compensation: how.
        scale: what :func:`keep_scale` has multiplied queries by.

    Raises:
        PlanError: as :func:`metanet.morph.refit.read_moments`.
    """
    queries = _side(pair.space, pair.queries, old, new, before, after, steps, compensation)
    keys = _side(pair.space, pair.keys, old, new, before, after, steps, compensation)
    target = new.state_dict(keep_vars=True)
    name = pair.queries[0]
    weight, bias = target[name], None if queries.bias is None else target[queries.bias]
    across = _writing(before, name, pair.space) or 0
    with torch.no_grad():
        front = weight if across == 0 else weight.mT
        for group in range(queries.places.shape[0]):
            k = rebuilding_matrix(keys.moments[group][0], keys.priors[group][0], compensation.ridge)
            for extra in range(queries.places.shape[1]):
                moments, places = queries.moments[group][extra], queries.places[group, extra]
                moments = moments.about_zero() if bias is None else moments
                q = rebuilding_matrix(moments, queries.priors[group][extra], compensation.ridge)
                both = scale * k @ q.mT
                front[places] = (both @ front[places].double()).to(front)
                if bias is not None:
                    constant = scale * k @ (moments.other - q.mT @ moments.mean)
                    bias[places] = (both @ bias[places].double() + constant).to(bias)


def keep_scale(
    old: nn.Module, new: nn.Module, before: SymmetrySpec, steps: Steps, inputs: Sequence[Any]
) -> dict[str, float]:
    """Undo what a module does to its scores by dividing them by the root of a head's size, in place.

    The edited network is held against the old one without the units that were dropped; queries are multiplied by the
    root of the ratio of sizes if that brings it nearer.

    Args:
        old: the network before.
        new: the edited one.
        before: layout of the old one.
        steps: what was done.
        inputs: one entry per argument of ``forward``.

    Returns:
        What queries were multiplied by, by space.
    """
    last, change = steps[-1]
    after = resized_spec(last, {change.space: change.size})
    pairs = [
        pair
        for pair in score_pairs(before, {change.space for _, change in steps})
        if before.sizes[pair.space] != after.sizes[pair.space]
    ]
    if not pairs:
        return {}
    state: Mapping[str, Tensor] = {name: tensor.detach() for name, tensor in new.state_dict(keep_vars=True).items()}
    state = {name: state[after.tensors[name].tied_to or name] for name in state}
    here = after
    for spec, change in reversed(steps):
        state, here = resize(here, state, inverse(spec, change)), spec
    whole = copy.deepcopy(old)
    put_tensors(whole, state)
    function = Function(whole, inputs, before)
    plain = function.error(new)
    if plain <= TOLERANCE:
        return {}
    ratios = {pair: (after.sizes[pair.space] / before.sizes[pair.space]) ** 0.5 for pair in pairs}
    _scale(new, after, ratios)
    if function.error(new) < plain:
        return {pair.space: ratio for pair, ratio in ratios.items()}
    _scale(new, after, {pair: 1 / ratio for pair, ratio in ratios.items()})
    return {}


def _scale(model: nn.Module, spec: SymmetrySpec, ratios: Mapping[ScorePair, float]) -> None:
    """Multiply queries, in place."""
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for pair, ratio in ratios.items():
            name, rows = pair.queries[0], _rows(spec, pair.space, pair.queries).reshape(-1)
            bias = bias_of(name, state)
            weight = state[name] if _writing(spec, name, pair.space) == 0 else state[name].mT
            weight[rows] *= ratio
            if bias is not None:
                state[bias][rows] *= ratio


def _side(
    space: str,
    side: tuple[str, int],
    old: nn.Module,
    new: nn.Module,
    before: SymmetrySpec,
    after: SymmetrySpec,
    steps: Steps,
    compensation: Compensation,
) -> _Side:
    """Moments of queries or keys: those of what their weight reads, through the weight."""
    name, _ = side
    across = _writing(before, name, space) or 0
    axes = before.axes[name][1 - across], after.axes[name][1 - across]
    if without_positions(axes[0]) != axes[0]:
        raise PlanError(f"{name}: nothing was seen that it reads", hint="positions are mixed with features")
    read = read_moments(name, old, new, axes, mixtures(axes[0], steps)[0], compensation)
    states = old.state_dict(keep_vars=True), new.state_dict(keep_vars=True)
    bias = bias_of(name, states[0])
    (a, p), (b, s) = (_affine(state, name, bias, across) for state in states)
    rows, left = _rows(before, space, side), _rows(after, space, side)
    # Which head, and which unit in it, stood where each new unit stands.
    length = before.axes[name][across].size
    came = moved(torch.arange(length), (before.axes[name][across],), ("out",), steps)
    where = torch.zeros(length, dtype=torch.long)
    where[rows.reshape(-1)] = torch.arange(rows.numel())
    units = rows.shape[-1]
    moments: list[list[Moments]] = []
    priors: list[list[Tensor]] = []
    for group in left:
        moments.append([])
        priors.append([])
        for places in group:
            flat = where[came[places]]
            own = rows.reshape(-1, units)[int(flat[0]) // units]
            prior = torch.zeros(len(places), units, dtype=torch.float64)
            priors[-1].append(prior.scatter_(1, (flat % units)[:, None], 1.0))
            moments[-1].append(
                Moments(
                    read.count,
                    b[places] @ read.mean + s[places],
                    a[own] @ read.other + p[own],
                    b[places] @ read.within @ b[places].mT,
                    b[places] @ read.across @ a[own].mT,
                )
            )
    return _Side(left, moments, priors, bias)


def _affine(state: dict[str, Tensor], name: str, bias: str | None, across: int) -> tuple[Tensor, Tensor]:
    """A weight that writes by its first axis, and its bias, in float64."""
    weight = state[name].detach().double()
    weight = weight if across == 0 else weight.mT
    return weight, weight.new_zeros(len(weight)) if bias is None else state[bias].detach().double()
