"""Which element brings each network of a bucket to the canonical form of its orbit?

The batched companion of :func:`symmetry.canonicalize`, for training: no order of units (the networks that read the
form are permutation-equivariant), differentiable in the scales, and some hundred networks in milliseconds. The steps,
each on what the one before has left: shifts of sines' biases, scalings, signs, matrices. All in float64, whatever the
dtype of the networks: a frame takes differences of large logarithms, and costs little beside what reads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from metanet.errors import ModelError
from metanet.graph import Bucket, Topology
from metanet.nn.features import EXCESS
from metanet.nn.finite import check_finite, finite_networks
from metanet.nn.frames.matrices import settle_matrices, spaces_in_order, without
from metanet.nn.frames.motion import Motion
from metanet.nn.frames.places import views_of
from metanet.nn.frames.scales import settle_scales
from metanet.nn.frames.signs import Signs, settle_shifts

__all__ = ["GAUGES", "canonical", "check_frame", "frame_of"]

GAUGES = ("rms", "unit", "balanced")


def frame_of(bucket: Bucket, gauge: str = "rms") -> Motion:
    """The element for each network that brings it to its canonical form.

    For every element h of the group without permutations, ``frame_of(h . bucket) = frame_of(bucket) @ ~h`` up to
    elements that leave the network as it is; permutations move the frame along with the units.

    Where it is not unique: units that are equal to each other are no difficulty (the frame does not order units). A
    unit without any non-zero entry keeps its gauge: it cannot be seen. A unit whose odd statistics all vanish and equal
    singular values of a head leave the form undetermined: it is one of several, and answers may jump between them.
    Directions of a head that do not reach the function (a product of less than full rank) are zero in the form, and
    have no basis of their own in the frame: answers that are carried back are not unique there.

    Args:
        bucket: networks of one architecture.
        gauge: ``rms`` and ``unit``: incoming norms 1 (the two differ in how a metanetwork reads the result);
            ``balanced``: incoming norm = outgoing norm.

    Raises:
        ModelError: for an unknown gauge, weights that are not finite, and an architecture with a factor that cannot be
            settled.
    """
    check_finite(bucket)
    return _frame(bucket, gauge)[0]


def canonical(bucket: Bucket, gauge: str = "rms") -> tuple[Motion, Bucket]:
    """The frame and the networks in it; kept with the bucket unless gradients are asked for.

    Args:
        bucket: see :func:`frame_of`.
        gauge: see :func:`frame_of`.

    Raises:
        ModelError: as :func:`frame_of`.
    """
    check_finite(bucket)
    return _canonical(bucket, gauge)


def _canonical(bucket: Bucket, gauge: str) -> tuple[Motion, Bucket]:
    if any(value is not None and value.requires_grad for value in bucket.values):
        motion, values = _frame(bucket, gauge)
        return motion, _moved(bucket, values)
    if gauge in GAUGES:
        gauge = "balanced" if gauge == "balanced" else "unit"  # "rms" is another reading of the same form
    kept = _kept.setdefault(bucket, {})
    if gauge not in kept:
        if bucket.origin is None:
            with torch.no_grad():
                motion, values = _frame(bucket, gauge)
            kept[gauge] = motion, _moved(bucket, values)
        else:
            source, rows = bucket.origin
            motion, whole = _canonical(source, gauge)  # of its networks only those selected here have to be finite
            like = next((value for value in bucket.values if value is not None), bucket.index)
            if rows is None:
                kept[gauge] = motion.to(like.device), whole.to(like.device, like.dtype)
            else:
                kept[gauge] = motion.select(rows), whole.select(rows, bucket.index)
    return kept[gauge]


_kept: WeakKeyDictionary[Bucket, dict[str, tuple[Motion, Bucket]]] = WeakKeyDictionary()


def _moved(bucket: Bucket, values: tuple[Tensor | None, ...]) -> Bucket:
    """The bucket with other values in its own dtype, and nothing that was remembered of the old ones."""
    narrow: list[Tensor | None] = []
    logs = torch.zeros(len(bucket), len(values), dtype=torch.float64, device=bucket.index.device)
    for number, (new, old) in enumerate(zip(values, bucket.values, strict=True)):
        if new is None or old is None:
            narrow.append(None)
            continue
        value, logs[:, number] = _within(new, old.dtype, bucket.topology.blocks[number].offset is not None)
        narrow.append(value)
    return replace(bucket, values=tuple(narrow), origin=None, cache={EXCESS: logs} if bool(logs.any()) else {})


def _within(value: Tensor, dtype: torch.dtype, variance: bool) -> tuple[Tensor, Tensor | float]:
    """In another dtype: networks too large for it divided as a whole, so that no ratio is lost; and by what, as a
    logarithm. Variances, which are read as logarithms, are cut instead.

    The gauge leaves all scale to what stands behind the last scaling: products of all sizes of a network, far out of
    range where its weights are large.
    """
    most = torch.finfo(dtype).max ** 0.75  # answers in units of a block, and sums over it, are in range as well
    over = value.detach().abs().flatten(1).amax(1) / most if value.numel() else value.new_zeros(len(value))
    if not bool((over > 1).any()):
        return value.to(dtype), 0.0
    if variance:
        return value.clamp(max=most).to(dtype), 0.0
    over = over.clamp(min=1.0)
    return (value / over.reshape(-1, *[1] * (value.ndim - 1))).to(dtype), over.log()


def _frame(bucket: Bucket, gauge: str) -> tuple[Motion, tuple[Tensor | None, ...]]:
    if gauge not in GAUGES:
        raise ModelError(f"gauge={gauge!r} is unknown, expected one of {', '.join(GAUGES)}")
    check_frame(bucket.topology)
    finite = finite_networks(bucket).all(1)
    if bool(finite.all()):
        return _settle(bucket, bucket.values, gauge)
    # Networks that are not finite do not stop the others; whoever reads them is refused.
    motion, values = _settle(bucket, _filled(bucket.values, ~finite, 1.0), gauge)
    return motion, _filled(values, ~finite, math.nan)


def _filled(values: Sequence[Tensor | None], rows: Tensor, number: float) -> tuple[Tensor | None, ...]:
    return tuple(
        None if value is None else value.masked_fill(rows.reshape(-1, *[1] * (value.ndim - 1)), number)
        for value in values
    )


def _settle(bucket: Bucket, given: Sequence[Tensor | None], gauge: str) -> tuple[Motion, tuple[Tensor | None, ...]]:
    topology, spec = bucket.topology, bucket.topology.spec
    neutral = total = Motion.identity(bucket)
    values = tuple(None if value is None else value.to(torch.float64) for value in given)

    def then(motion: Motion) -> None:
        nonlocal total, values
        total, values = motion @ total, motion.act(values)

    if spec.shifts:
        then(replace(neutral, shifts=settle_shifts(topology, values)))
    scales = settle_scales(topology, values, gauge == "balanced")
    if scales:
        then(replace(neutral, log_scales=scales))
    like = next((value for value in values if value is not None), None)
    if like is None:
        return total, values
    signs = Signs(topology, len(bucket), like)
    open_spaces = [factor.space for factor in spec.linear]
    if signs.signs:
        signs.settle(values, open_spaces, last=not open_spaces)
    for factor, side in spaces_in_order(topology):
        masked = _masked(topology, values, signs)
        matrices, alive = settle_matrices(topology, values, factor, side, masked)
        then(replace(neutral, matrices={factor.space: matrices}))
        if not bool(alive.all()):
            values = without(topology, values, factor, alive)
        open_spaces.remove(factor.space)
        if signs.signs:
            signs.settle(values, open_spaces, last=not open_spaces)
    if signs.signs:
        then(replace(neutral, flips=signs.flips()))
    return total, values


def _masked(topology: Topology, values: Sequence[Tensor | None], signs: Signs) -> tuple[Tensor | None, ...]:
    """The values with their settled signs, and zeros where one is open."""
    found: list[Tensor | None] = []
    for value, view in zip(values, views_of(topology), strict=True):
        if value is None or view is None or not view.signs:
            found.append(value)
        else:
            found.append(signs.turned(view, value.reshape(len(value), *view.sizes)).reshape(value.shape))
    return tuple(found)


@lru_cache(maxsize=4096)
def check_frame(topology: Topology) -> None:
    """Refuse an architecture with a factor that the tensors of the graph do not settle, even for weights in general
    position.

    Raises:
        ModelError: with the kind and name of the factor.
    """
    generator = torch.Generator().manual_seed(0)
    values = tuple(
        None
        if block.level == "raw"
        else torch.randn(1, *block.region.shape, generator=generator, dtype=torch.float64).abs() + 0.5
        if block.offset is not None
        else torch.randn(1, *block.region.shape, generator=generator, dtype=torch.float64)
        for block in topology.blocks
    )
    seen = {place.factor for view in views_of(topology) if view is not None for place in view.signs}
    spaces_in_order(topology)
    if not any(value is not None for value in values):
        return
    signs = Signs(topology, 1, torch.zeros((), dtype=torch.float64))
    open_spaces = [factor.space for factor in topology.spec.linear]
    signs.settle(values, open_spaces, last=False)
    for factor, side in spaces_in_order(topology):
        masked = _masked(topology, values, signs)
        blocks = [masked[number] for number, _ in (*side.direct, *side.inverse)]
        if not any(bool((block != 0).any()) for block in blocks if block is not None):
            raise ModelError(
                f"space {factor.space!r} of {factor.kind} matrices meets only tensors whose signs are open",
                hint="use symmetry='permutation'",
            )
        open_spaces.remove(factor.space)
        signs.settle(values, open_spaces, last=False)
    for name in signs.order:
        if name not in signs.complete and name in seen:
            raise ModelError(
                f"sign factor {name!r} is not settled by the tensors it acts on, so there is no frame",
                hint="use symmetry='permutation'",
            )
