"""How are the readers of dropped units refitted so that the network still computes nearly the same?

See :mod:`metanet.morph.refit` for how one reader is. Rebuilt units are shrunk to what they are without: a kept unit
stands for itself, a merged one for those that it was made of. Covariances come from inputs (data, or made up) or are
given (predicted). For linear layers, convolutions (channels are mixed, each position a sample), attention (heads, and
units inside them), and recurrent layers' readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from metanet.errors import PlanError
from metanet.morph.edits import SpaceEdit
from metanet.morph.moments import reader_inputs, watched
from metanet.morph.rebuilding import Rebuilding, rebuilding
from metanet.morph.refit import (
    Compensation,
    Steps,
    bias_of,
    folded,
    mixtures,
    read_moments,
    rebuilding_matrix,
    ridge_levels,
    steps_of,
    without_positions,
    written,
)
from metanet.morph.resize import resized_spec, size_of
from metanet.morph.running import doubled
from metanet.morph.scores import ScorePair, refit_scores, score_pairs
from symmetry import Atom, SymmetrySpec
from symmetry.action import leaf_name
from symmetry.spaces import Axis

__all__ = ["Compensation", "bias_of", "compensate", "obs_order", "readers", "reading_dim", "reads_alone"]


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


def reading_dim(spec: SymmetrySpec, name: str, axis: Axis) -> int:
    """Which axis of a weight reads; a square weight of one space writes it by another that is equal."""
    roles = spec.tensors[name].roles
    return next(dim for dim, found in enumerate(spec.axes[name]) if found == axis and roles[dim] == "in")


def reads_alone(axis: Axis) -> bool:
    """Whether an axis runs over the units of one space, and over nothing but positions besides."""
    return isinstance(without_positions(axis), Atom)


def compensate(
    old: nn.Module,
    new: nn.Module,
    before: SymmetrySpec,
    edits: Sequence[SpaceEdit],
    compensation: Compensation,
    scales: Mapping[str, float] | None = None,
) -> tuple[list[Rebuilding], list[str]]:
    """Refit the readers of all spaces from which units were dropped, in place, in the order of the data.

    Args:
        old: the network before the edits.
        new: the network after them; changed.
        before: layout of ``old``.
        edits: what was done.
        compensation: how.
        scales: what :func:`metanet.morph.scores.keep_scale` has multiplied queries by.

    Returns:
        What dropped units were rebuilt from, for each reader, and the weights that could not be refitted, because what
        they read cannot be watched.

    Raises:
        PlanError: for moments of other shapes, or inputs on which the network is not finite.
    """
    steps = steps_of(before, edits)
    narrowed = {change.space for spec, change in steps if change.size < spec.sizes[change.space]}
    if not narrowed:
        return [], []
    work = _Work(old, new, before, steps, {name: axis for s in narrowed for name, axis in readers(before, s).items()})
    pairs = score_pairs(before, narrowed)
    # A weight reads before what it writes is refitted in its turn.
    items: list[str | ScorePair] = [*work.axes, *pairs]
    order = sorted(items, key=lambda item: (_place(before, item), isinstance(item, ScorePair)))
    if compensation.batches is not None and compensation.sequential:
        # What reads what it has written starts from what the old network says: else it is fitted to its own errors.
        calls = reader_inputs(watched(old), doubled(compensation.batches[0]))
        for name in (name for name in order if isinstance(name, str) and len(calls.get(name, ())) > 1):
            work.refit(name, replace(compensation, sequential=False))
    found: list[Rebuilding] = []
    skipped: list[str] = []
    for item in order:
        try:
            if isinstance(item, ScorePair):
                refit_scores(
                    item, old, new, before, work.after, steps, compensation, (scales or {}).get(item.space, 1.0)
                )
            else:
                found.append(work.refit(item, compensation))
        except PlanError as error:
            if "nothing was seen" not in error.reason:
                raise
            skipped += item.weights if isinstance(item, ScorePair) else [item]
    return found, skipped


class _Work:
    """The readers of one network, refitted in place, as often as it takes."""

    def __init__(
        self, old: nn.Module, new: nn.Module, before: SymmetrySpec, steps: Steps, axes: Mapping[str, Axis]
    ) -> None:
        last, change = steps[-1]
        self.old, self.new, self.before, self.steps, self.axes = old, new, before, steps, axes
        self.after = resized_spec(last, {change.space: change.size})
        self.state = old.state_dict(keep_vars=True)
        self.target = new.state_dict(keep_vars=True)
        self.shifts: dict[str, Tensor] = {}

    def refit(self, name: str, compensation: Compensation) -> Rebuilding:
        """One reader, from the weight that it was."""
        axis, target = self.axes[name], self.target[name]
        spaces = {leaf.space.name for leaf in axis.leaves() if isinstance(leaf, Atom)}
        if any(not set(self.before.within.get(space, ())) <= spaces for space in spaces):
            # The groups of a convolution each read units of their own: one matrix cannot mix them.
            raise PlanError(f"{name}: nothing was seen that it reads as a whole")
        dim = reading_dim(self.before, name, axis)
        take, prior = mixtures(axis, self.steps)
        both = axis, self.after.axes[name][dim]
        moments = read_moments(name, self.old, self.new, both, take, compensation)
        bias = bias_of(name, self.target)
        moments = moments.about_zero() if bias is None else moments
        rebuilt = rebuilding_matrix(moments, prior, compensation.ridge)
        weight = written(name, self.state[name], dim, self.before, self.steps)
        left, shift = folded(weight, dim, axis, rebuilt, moments)
        with torch.no_grad():
            target.copy_(left.to(target))
            if bias is not None:
                self.target[bias].add_((shift - self.shifts.get(name, 0)).to(self.target[bias]))
        self.shifts[name] = shift
        return rebuilding(name, axis, rebuilt, take, moments.within)


def _place(spec: SymmetrySpec, item: str | ScorePair) -> int:
    """When something is read in the order of the data."""
    return max(spec.tensors[name].order for name in (item.weights if isinstance(item, ScorePair) else [item]))


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
    inverse = torch.linalg.inv(covariance.double() + torch.diag(ridge_levels(covariance, ridge)))
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
