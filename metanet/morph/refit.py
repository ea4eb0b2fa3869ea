"""How is one weight refitted so that it reads what is left as it read what was there, from data or from moments?

What it read, ``x``, is rebuilt from what is left, ``x'``, by ridge least squares: ``x ~ R^T x' + c``; the rebuilt units
are folded into the weight and its bias: ``W' = W R^T``, ``b' = b + W c``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import PlanError
from metanet.morph.edits import SpaceEdit
from metanet.morph.moments import Moments, joint_moments
from metanet.morph.resize import Resizing, resize, resized_spec
from symmetry import Atom, Concat, Fixed, LinearFactor, Product, SymmetrySpec
from symmetry.spaces import Axis

__all__ = [
    "Compensation",
    "Steps",
    "bias_of",
    "folded",
    "mixtures",
    "moved",
    "read_moments",
    "rebuilding_matrix",
    "ridge_levels",
    "steps_of",
    "without_positions",
    "written",
]

# The edits of one plan as changes, each with the spec that it is done on.
Steps = Sequence[tuple[SymmetrySpec, Resizing]]


@dataclass(frozen=True, eq=False)
class Compensation:
    """From what, and how, readers are refitted.

    Args:
        batches: argument lists of ``forward``: data, or inputs that are made up.
        moments: in place of batches: mean and covariance of what readers read, by the name of a weight or by that of a
            space (for heads: of all units in all of them, under the name of the heads), for instance predicted from
            weights alone. Shapes: (n,), (n, n). For weights behind a block that is dropped, of what they read without
            the block and with it, one after the other: (2n,), (2n, 2n).
        ridge: weight of the shrinkage, in units of each feature's variance.
        sequential: measure what is left in the network edited so far, so that later readers make up for what earlier
            ones could not; otherwise in the old network. Needs batches.
        rounds: of Gauss-Newton on all weights that are left, when everything else is done, down the divergence of the
            class probabilities on the batches; see :func:`metanet.morph.refine.refine`. Needs batches; for outputs
            that are logits of classes.
        more: further argument lists that rounds look at beside the batches.
    """

    batches: Sequence[Sequence[Any]] | None = None
    moments: Mapping[str, tuple[Tensor, Tensor]] | None = None
    ridge: float = 1e-3
    sequential: bool = True
    rounds: int = 0
    more: Sequence[Sequence[Any]] = ()

    def __post_init__(self) -> None:
        if self.rounds < 0 or (self.rounds and self.batches is None):
            raise PlanError(f"{self.rounds} rounds, expected none or more, and batches to go down on")
        if (self.batches is None) == (self.moments is None):
            raise PlanError("compensation takes batches or moments", hint="give one of them")
        if not 0 <= self.ridge < float("inf"):
            raise PlanError(f"ridge {self.ridge}, expected a number of at least 0")
        if self.batches is not None and not len(self.batches):
            raise PlanError("compensation from no batches", hint="give at least one")


def steps_of(spec: SymmetrySpec, edits: Sequence[SpaceEdit]) -> Steps:
    """Edits of spaces as changes, each on what those before it have made of the spec."""
    found, here = [], spec
    for edit in edits:
        change = edit.resizing(here)
        found.append((here, change))
        here = resized_spec(here, {change.space: change.size})
    return found


def without_positions(axis: Axis) -> Axis:
    """An axis without the positions that each of its features has besides; see :func:`moments.features`."""
    while isinstance(axis, Product) and isinstance(axis.inner, Fixed):
        axis = axis.outer
    return axis


def moved(
    tensor: Tensor, axes: tuple[Axis, ...], roles: tuple[str, ...], steps: Steps, linear: tuple[LinearFactor, ...] = ()
) -> Tensor:
    """A tensor with these axes after some changes of spaces.

    Args:
        tensor: any.
        axes: over which it runs.
        roles: of the axes, as in :class:`symmetry.spec.TensorInfo`.
        steps: what changes.
        linear: matrices that act on it, under the name ``x``.
    """
    spec = steps[0][0]
    info = replace(next(iter(spec.tensors.values())), shape=tuple(tensor.shape), roles=roles, tied_to=None)
    small = replace(spec, axes={"x": axes}, tensors={"x": info}, factors=(), linear=linear, shifts=())
    state: Mapping[str, Tensor] = {"x": tensor}
    for _, change in steps:
        state = resize(small, state, change)
        small = resized_spec(small, {change.space: change.size})
    return state["x"]


def mixtures(axis: Axis, steps: Steps) -> tuple[Tensor, Tensor]:
    """What the features that are left are made of, and what they stand for in a reader that is not refitted.

    For units that are mixed where they are written, what comes out is taken for the same mixture of what came out: so
    it is of units that are multiples of each other, and of linear ones.

    Shapes:
        -> (m, n), (m, n): the features of an axis that are left by those that were there
    """
    bare = without_positions(axis)
    eye, still = torch.eye(bare.size, dtype=torch.float64), Fixed(bare.size)
    return moved(eye, (bare, still), ("out", "none"), steps), moved(eye, (still, bare), ("none", "in"), steps).mT


def written(name: str, weight: Tensor, dim: int, spec: SymmetrySpec, steps: Steps) -> Tensor:
    """A weight whose other axes have changed, and that reads by axis ``dim`` what it read before."""
    axes, roles = list(spec.axes[name]), list(spec.tensors[name].roles)
    axes[dim], roles[dim] = Fixed(axes[dim].size), "none"
    # Its name in there is x.
    linear = tuple(
        replace(factor, slots=tuple(replace(slot, tensor="x") for slot in factor.slots if slot.tensor == name))
        for factor in spec.linear
    )
    return moved(weight.detach().double(), tuple(axes), tuple(roles), steps, linear)


def read_moments(
    name: str,
    old: nn.Module,
    new: nn.Module,
    axes: tuple[Axis, Axis],
    take: Tensor,
    compensation: Compensation,
) -> Moments:
    """What a weight read in the old network and reads now.

    Args:
        name: of the weight.
        old: the network before.
        new: the network edited so far.
        axes: by which it read, and reads.
        take: the features that are left as mixtures of those that were there.
        compensation: where moments come from.

    Raises:
        PlanError: if the weight cannot be watched, or moments are missing or of another shape.
    """
    if compensation.batches is not None and compensation.sequential:
        return joint_moments(old, new, compensation.batches, {name: axes})[name]
    if compensation.batches is not None:
        whole = joint_moments(old, old, compensation.batches, {name: (axes[0], axes[0])})[name]
        mean, covariance = whole.mean, whole.within
    else:
        mean, covariance = _given(name, without_positions(axes[0]), compensation.moments or {})
    return Moments(1, take @ mean, mean, take @ covariance @ take.mT, take @ covariance)


def _given(name: str, axis: Axis, moments: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Moments of what a weight reads, by its name, or put together from those of spaces."""
    if name in moments:
        return _checked(name, name, axis.size, moments[name])
    parts = axis.parts if isinstance(axis, Concat) else (axis,)
    found = []
    for part in parts:
        spaces = [leaf.space.name for leaf in part.leaves() if isinstance(leaf, Atom)]
        key = next((space for space in spaces if space in moments), spaces[0] if spaces else name)
        found.append(_checked(key, name, part.size, moments.get(key)))
    # Nothing is known of how units of different spaces move together.
    return torch.cat([mean for mean, _ in found]), torch.block_diag(*(covariance for _, covariance in found))


def _checked(key: str, name: str, size: int, given: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    if given is None or tuple(given[0].shape) != (size,) or tuple(given[1].shape) != (size, size):
        shown = "nothing" if given is None else f"shapes {tuple(given[0].shape)} and {tuple(given[1].shape)}"
        raise PlanError(f"moments of {key!r}, read by {name}: {shown}, expected ({size},) and ({size}, {size})")
    return given[0].double(), given[1].double()


def rebuilding_matrix(moments: Moments, prior: Tensor, ridge: float) -> Tensor:
    """R with x ~ R^T x' + c, shrunk to what an unrefitted reader takes x for.

    Shapes:
        prior (m, n) -> (m, n)
    """
    level = ridge_levels(moments.within, ridge)
    return torch.linalg.solve(moments.within + torch.diag(level), moments.across + level[:, None] * prior)


def ridge_levels(covariance: Tensor, ridge: float) -> Tensor:
    """What is added to the variance of each unit: in units of its own, so that scaling a unit changes nothing.

    Shapes: (n, n) -> (n,)
    """
    variance = covariance.diagonal().double()
    # A unit that never moves has no scale of its own; rounding may leave it a variance below zero.
    return ridge * torch.where(
        variance > 1e-12 * variance.mean().clamp_min(0), variance, variance.mean().clamp_min(1e-12)
    )


def folded(weight: Tensor, dim: int, axis: Axis, rebuilt: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """The weight that reads what is left, and what its bias gains.

    Args:
        weight: that reads what was there.
        dim: by which axis.
        axis: that axis.
        rebuilt: see :func:`rebuilding_matrix`.
        moments: of what it read and reads; about zero where there is no bias to take what is constant.

    Shapes:
        as the weight; (outputs,)
    """
    front = weight.double().movedim(dim, -1)
    constant = moments.other - rebuilt.mT @ moments.mean
    units = rebuilt.shape[1]
    positions = axis.size // units
    wide = front.unflatten(-1, (units, positions))
    left = torch.einsum("...up,mu->...mp", wide, rebuilt).flatten(-2)
    per_output = torch.einsum("...up,u->...", wide, constant)
    # What is left over beside the outputs are positions of a kernel, each of which adds the constant.
    shift = per_output.reshape(per_output.shape[0], -1).sum(1)
    return left.movedim(-1, dim), shift


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
