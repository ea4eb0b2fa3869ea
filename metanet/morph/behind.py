"""How do the weights behind a block that was dropped, or a layer that was changed, make up for it?

Each weight read ``x`` before and reads ``x'`` now; it is refitted as in :mod:`metanet.morph.refit`, shrunk to what it
was. Sequentially: all weights behind, one after the other, each on what those in front of it have made of the network.
Otherwise only those that the block reached without passing another weight (the readers of its residual stream), each
on its own, everything else being as it was.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metanet.errors import PlanError
from metanet.morph.moments import Moments, joint_moments
from metanet.morph.refit import Compensation, bias_of, folded, rebuilding_matrix, without_positions
from symmetry import SymmetrySpec
from symmetry.spaces import Axis

__all__ = ["refit_behind"]

# Below this share of its spread, what a weight reads has not changed.
UNCHANGED = 1e-12


def refit_behind(
    old: nn.Module, new: nn.Module, before: SymmetrySpec, after: SymmetrySpec, compensation: Compensation
) -> tuple[str, ...]:
    """Refit what reads otherwise than before, in place.

    Args:
        old: the network before a module of it was changed.
        new: the network after that; changed.
        before: layout of ``old``.
        after: layout of ``new``.
        compensation: how.

    Returns:
        The weights that were refitted.

    Raises:
        PlanError: for moments of other shapes, or inputs on which a network is not finite.
    """
    axes = _common(before, after)
    order = sorted(axes, key=lambda name: after.tensors[name].order)
    if compensation.moments is not None:
        given = {name: _joint(name, axes[name][1], compensation.moments) for name in order}
        known = {name: moments for name, moments in given.items() if moments is not None}
        for name, moments in known.items():
            _refit(name, new, axes[name], moments, compensation.ridge)
        return tuple(known)
    batches = compensation.batches or ()
    pairs = {name: (axis, axis) for name, (_, axis) in axes.items()}
    seen = joint_moments(old, new, batches, pairs, missing_ok=True, forced=not compensation.sequential)
    done: list[str] = []
    for name in order:
        if name not in seen or not _changed(seen[name]):
            continue
        if compensation.sequential and done:
            # What stands in front of it has been refitted since.
            seen[name] = joint_moments(old, new, batches, {name: pairs[name]})[name]
        _refit(name, new, axes[name], seen[name], compensation.ridge)
        done.append(name)
    return tuple(done)


def _common(before: SymmetrySpec, after: SymmetrySpec) -> dict[str, tuple[int, Axis]]:
    """The weights that both networks have, with the axis by which each reads."""
    found = {}
    for name, info in before.tensors.items():
        other = after.tensors.get(name)
        dims = [dim for dim, role in enumerate(info.roles) if role == "in"]
        if other is not None and info.tied_to is None and len(dims) == 1 and other.shape == info.shape:
            found[name] = dims[0], before.axes[name][dims[0]]
    return found


def _joint(name: str, axis: Axis, moments: Mapping[str, tuple[Tensor, Tensor]]) -> Moments | None:
    """What a weight reads now and read before, from moments of both together; ``None`` where they were not given."""
    size = without_positions(axis).size
    if name not in moments or tuple(moments[name][0].shape) == (size,):
        return None
    mean, covariance = (value.double() for value in moments[name])
    if tuple(mean.shape) != (2 * size,) or tuple(covariance.shape) != (2 * size, 2 * size):
        raise PlanError(
            f"moments of {name!r}: shapes {tuple(mean.shape)} and {tuple(covariance.shape)}, expected ({2 * size},) "
            f"and ({2 * size}, {2 * size})",
            hint="give those of what it reads without the block and with it, one after the other",
        )
    return Moments(1, mean[:size], mean[size:], covariance[:size, :size], covariance[:size, size:])


def _changed(moments: Moments) -> bool:
    """Whether a weight reads something else than before."""
    spread = moments.within.diagonal().clamp_min(0).sqrt()
    scale = float(torch.maximum(spread, moments.mean.abs()).max().clamp_min(1e-300))
    far = float((moments.mean - moments.other).abs().max()) / scale
    return far > UNCHANGED or float((moments.within - moments.across).abs().max()) / scale**2 > UNCHANGED


def _refit(name: str, model: nn.Module, reading: tuple[int, Axis], moments: Moments, ridge: float) -> None:
    """One weight, in place; it stands for itself where there is no reason for another value."""
    dim, axis = reading
    target = model.state_dict(keep_vars=True)
    bias = bias_of(name, target)
    prior = torch.eye(len(moments.mean), dtype=torch.float64)
    moments = moments.about_zero() if bias is None else moments
    rebuilt = rebuilding_matrix(moments, prior, ridge)
    left, shift = folded(target[name].detach(), dim, axis, rebuilt, moments)
    with torch.no_grad():
        target[name].copy_(left.to(target[name]))
        if bias is not None:
            target[bias].add_(shift.to(target[bias]))
