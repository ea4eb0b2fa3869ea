"""How are the readers of dropped units refitted so that the network still computes nearly the same?

What a reader read, ``x``, is rebuilt from what is left of it, ``x'``, by ridge least squares: ``x ~ R^T x' + c``,
shrunk to "every kept unit stands for itself"; the rebuilt units are folded into its weights: ``W' = W R^T``,
``b' = b + W c``.
Covariances come from inputs (data, or made up) or are given (predicted). For linear layers, convolutions (channels are
mixed, each position a sample), attention (heads and units), and recurrent layers' readers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import PlanError
from metanet.morph.edits import SpaceEdit
from metanet.morph.moments import Moments, features, joint_moments
from metanet.morph.rebuilding import Rebuilding, rebuilding
from metanet.morph.resize import Resizing, resize, resized_spec, size_of
from symmetry import Atom, Fixed, Product, SymmetrySpec
from symmetry.action import leaf_name
from symmetry.spaces import Axis

__all__ = ["Compensation", "compensate", "bias_of", "obs_order", "readers", "reads_alone"]


@dataclass(frozen=True, eq=False)
class Compensation:
    """From what, and how, readers are refitted.

    Args:
        batches: argument lists of ``forward``: data, or inputs that are made up.
        moments: in place of batches: mean and covariance of the units of a space as its readers see them, by space, for
            instance predicted from weights alone. Shapes: (n,), (n, n).
        ridge: weight of the shrinkage, in units of each feature's variance.
        sequential: measure what is left in the network edited so far, so that later readers make up for what earlier
            ones could not; otherwise in the old network. Needs batches.
    """

    batches: Sequence[Sequence[Any]] | None = None
    moments: Mapping[str, tuple[Tensor, Tensor]] | None = None
    ridge: float = 1e-3
    sequential: bool = True

    def __post_init__(self) -> None:
        if (self.batches is None) == (self.moments is None):
            raise PlanError("compensation takes batches or moments", hint="give one of them")
        if not 0 <= self.ridge < float("inf"):
            raise PlanError(f"ridge {self.ridge}, expected a number of at least 0")
        if self.batches is not None and not len(self.batches):
            raise PlanError("compensation from no batches", hint="give at least one")


def readers(spec: SymmetrySpec, space: str) -> dict[str, Axis]:
    """The weights that read a space, with the axis by which each does. Tied weights are named once.

    Raises:
        PlanError: if the space does not exist.
    """
    size_of(spec, space)
    found = {}
    for name, info in spec.tensors.items():
        for axis, role in zip(spec.axes[name], info.roles, strict=False):
            if role == "in" and info.tied_to is None and space in {leaf_name(leaf) for leaf in axis.leaves()}:
                found[name] = axis
    return found


def reads_alone(axis: Axis) -> bool:
    """Whether an axis runs over the units of one space, and over nothing but positions besides."""
    while isinstance(axis, Product) and isinstance(axis.inner, Fixed):
        axis = axis.outer
    return isinstance(axis, Atom)


def compensate(
    old: nn.Module,
    new: nn.Module,
    before: SymmetrySpec,
    edits: Sequence[SpaceEdit],
    compensation: Compensation,
) -> tuple[list[Rebuilding], list[str]]:
    """Refit the readers of all spaces from which units were dropped, in place, in the order of the data.

    Args:
        old: the network before the edits.
        new: the network after them; changed.
        before: layout of ``old``.
        edits: what was done.
        compensation: how.

    Returns:
        What dropped units were rebuilt from, for each reader, and the weights that could not be refitted, because what
        they read cannot be watched.

    Raises:
        PlanError: for moments of other shapes, or edits that mix units.
    """
    changes = [edit.resizing(before) for edit in edits]
    if any(change.writer is not None for change in changes) or len({c.space for c in changes}) != len(changes):
        raise PlanError("compensation is for units that are kept or dropped, each space once", hint="compensate keep")
    after = resized_spec(before, {change.space: change.size for change in changes})
    narrowed = {c.space for c in changes if c.size < before.sizes[c.space]}
    names = {name: axis for space in narrowed for name, axis in readers(before, space).items()}
    order = sorted(names, key=lambda name: before.tensors[name].order)
    state = {name: tensor.detach() for name, tensor in old.state_dict(keep_vars=True).items()}
    target = new.state_dict(keep_vars=True)
    found: list[Rebuilding] = []
    skipped = []
    for name in order:
        axis, dim = names[name], before.axes[name].index(names[name])
        axes = axis, after.axes[name][dim]
        index = _moved_index(axis, changes, before)
        selection = _selection(axes, index)
        try:
            moments = _moments(name, old, new, before, axes, selection, compensation)
        except PlanError as error:
            if "nothing was seen" not in error.reason:
                raise
            skipped.append(name)
            continue
        rebuilt = _rebuild(moments, selection, compensation.ridge)
        found.append(rebuilding(name, axis, rebuilt, selection, moments.within))
        bias = bias_of(name, target)
        outer = 1 - dim  # a weight reads by one of its first two axes and writes by the other
        rows = _moved_index(before.axes[name][outer], changes, before)
        weight = state[name].double().index_select(outer, rows)
        moved, shift = _folded(weight, dim, axis, rebuilt, moments, bias is not None)
        with torch.no_grad():
            target[name].copy_(moved.to(target[name]))
            if bias is not None:
                target[bias].add_(shift.to(target[bias]))
    return found, skipped


def _moments(
    name: str,
    old: nn.Module,
    new: nn.Module,
    before: SymmetrySpec,
    axes: tuple[Axis, Axis],
    selection: Tensor,
    compensation: Compensation,
) -> Moments:
    if compensation.batches is not None and compensation.sequential:
        return joint_moments(old, new, compensation.batches, {name: axes})[name]
    if compensation.batches is not None:
        whole = joint_moments(old, old, compensation.batches, {name: (axes[0], axes[0])})[name]
        mean, covariance = whole.mean, whole.within
    else:
        space = leaf_name(axes[0].leaves()[0]) or ""
        given = (compensation.moments or {}).get(space)
        size = selection.shape[1]
        if given is None or tuple(given[0].shape) != (size,) or tuple(given[1].shape) != (size, size):
            shown = "nothing" if given is None else f"shapes {tuple(given[0].shape)} and {tuple(given[1].shape)}"
            raise PlanError(f"moments of {space!r}, read by {name}: {shown}, expected ({size},) and ({size}, {size})")
        mean, covariance = (value.double() for value in given)
    return Moments(1, selection @ mean, mean, selection @ covariance @ selection.mT, selection @ covariance)


def _selection(axes: tuple[Axis, Axis], index: Tensor) -> Tensor:
    """For each feature that is left the old one that it is, as a matrix. Shapes: -> (m, n)."""
    # Positions share their features: each place of an axis is told by the feature that it belongs to.
    feature = features(torch.arange(axes[0].size).reshape(1, -1), axes[0])
    place = torch.empty(axes[0].size, dtype=torch.long)
    place[feature] = torch.arange(feature.shape[-1]).expand(feature.shape)
    rows = features(place[index].reshape(1, -1), axes[1])[0]
    return torch.zeros(len(rows), feature.shape[-1], dtype=torch.float64).scatter_(1, rows[:, None], 1.0)


def _moved_index(axis: Axis, changes: Sequence[Resizing], spec: SymmetrySpec) -> Tensor:
    """Which old place of an axis stands at each new one. Shapes: -> (new size,)."""
    info = replace(next(iter(spec.tensors.values())), shape=(axis.size,), roles=("out",), tied_to=None)
    small = replace(spec, axes={"x": (axis,)}, tensors={"x": info}, factors=(), linear=(), shifts=())
    state = {"x": torch.arange(axis.size)}
    for change in changes:
        state = resize(small, state, Resizing(change.space, change.source))
        small = resized_spec(small, {change.space: change.size})
    return state["x"]


def _rebuild(moments: Moments, selection: Tensor, ridge: float) -> Tensor:
    """R with x ~ R^T x' + c. Shapes: -> (m, n)."""
    level = _level(moments.within, ridge)
    return torch.linalg.solve(moments.within + torch.diag(level), moments.across + level[:, None] * selection)


def _level(covariance: Tensor, ridge: float) -> Tensor:
    """What is added to the variance of each unit: in units of its own, so that scaling a unit changes nothing.

    Shapes: (n, n) -> (n,)
    """
    variance = covariance.diagonal().double()
    # A unit that never moves has no scale of its own.
    return ridge * torch.where(variance > 1e-12 * variance.mean(), variance, variance.mean().clamp_min(1e-12))


def _folded(
    weight: Tensor, dim: int, axis: Axis, rebuilt: Tensor, moments: Moments, shifted: bool
) -> tuple[Tensor, Tensor]:
    """The weight that reads what is left, and what its bias gains. Shapes: as the weight; (outputs,)."""
    front = weight.double().movedim(dim, -1)
    constant = moments.other - rebuilt.mT @ moments.mean if shifted else torch.zeros_like(moments.other)
    units = rebuilt.shape[1]
    positions = axis.size // units
    wide = front.unflatten(-1, (units, positions))
    moved = torch.einsum("...up,mu->...mp", wide, rebuilt).flatten(-2)
    per_output = torch.einsum("...up,u->...", wide, constant)
    # What is left over beside the outputs are positions of a kernel, each of which adds the constant.
    shift = per_output.reshape(per_output.shape[0], -1).sum(1)
    return moved.movedim(-1, dim), shift


def bias_of(weight: str, names: Collection[str]) -> str | None:
    """The bias that stands beside a weight, by the names that torch gives them."""
    head, _, last = weight.rpartition(".")
    for old, new in (
        ("weight_ih", "bias_ih"),
        ("weight_hh", "bias_hh"),
        ("in_proj_weight", "in_proj_bias"),
        ("weight", "bias"),
    ):
        if last.startswith(old):
            name = f"{head}.{last.replace(old, new, 1)}" if head else last.replace(old, new, 1)
            return name if name in names else None
    return None


def obs_order(covariance: Tensor, sensitivity: Tensor, ridge: float = 1e-3) -> list[int]:
    """The order in which units are best dropped when the rest makes up for each: optimal brain surgeon, one by one.

    Dropping unit d costs ``s_d / [H^-1]_dd`` with H the covariance of what is left and s_d the squared norm of what
    reads d after the others have made up for those dropped before.

    Source: Hassibi and Stork, Optimal Brain Surgeon, 1992, equation 5, for a least-squares reader.

    Args:
        covariance: of the units.
        sensitivity: Gram matrix of the readers' weights, ``W^T W`` over all readers.
        ridge: in units of each unit's variance.

    Shapes:
        (n, n), (n, n) -> n units, the first to be dropped in front
    """
    size = len(covariance)
    inverse = torch.linalg.inv(covariance.double() + torch.diag(_level(covariance, ridge)))
    gram, left, order = sensitivity.double().clone(), list(range(size)), []
    for _ in range(size):
        here = torch.tensor(left)
        saliency = gram.diagonal()[here] / inverse.diagonal()[here].clamp_min(1e-300)
        unit = left[int(saliency.argmin())]
        order.append(unit)
        left.remove(unit)
        # The readers' weights move by -w_d [H^-1]_d. / [H^-1]_dd; their Gram matrix moves on both sides.
        step = inverse[unit] / inverse[unit, unit]
        gram = (
            gram
            - torch.outer(step, gram[unit])
            - torch.outer(gram[:, unit], step)
            + gram[unit, unit] * step.outer(step)
        )
        inverse = inverse - torch.outer(inverse[:, unit], inverse[unit]) / inverse[unit, unit]
    return order
