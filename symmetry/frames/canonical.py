"""Which element of the group brings a network to its canonical form?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from symmetry.elements import GroupElement
from symmetry.errors import SpecError
from symmetry.frames.colours import refine
from symmetry.frames.matrices import canonical_matrix
from symmetry.frames.parts import check_finite, make_parts
from symmetry.frames.permutations import canonical_permutations
from symmetry.frames.scales import canonical_scales
from symmetry.frames.shifts import canonical_shifts
from symmetry.frames.signs import canonical_signs
from symmetry.spec import SymmetrySpec

__all__ = ["GAUGES", "canonicalize", "gauge_distance"]

GAUGES = ("unit", "balanced")


def canonicalize(spec: SymmetrySpec, state: Mapping[str, Tensor], gauge: str = "unit") -> GroupElement:
    """The element g that brings a state to its canonical form ``spec.act(g, state)``.

    All states of one orbit, ``spec.act(h, state)`` for any h, have the same canonical form, up to rounding. The steps,
    each on what the one before has left: shifts of sines' biases (to the period around 0), scalings
    (:mod:`symmetry.frames.scales`), signs, the order of units, and matrices. Computed in float64 on the CPU, whatever
    the dtype of the state.

    Limits. Where two units that are not interchangeable have the same features up to rounding, or a statistic vanishes
    up to rounding, the form may jump. Along spaces of matrices, blocks that are zero where others are read through
    further open spaces (dead value heads of grouped-query attention) leave a part undetermined. At reduced precision a
    state that was moved by scalings or matrices lies near its orbit, not on it; the forms agree to that precision.

    Args:
        spec: the spec of the architecture.
        state: the network.
        gauge: of the scalings: ``unit`` (incoming norms 1) or ``balanced`` (incoming norm = outgoing norm).

    Raises:
        SpecError: if the state has other names or shapes or holds values that are not finite, or for an unknown gauge.
    """
    spec.check(state)
    if gauge not in GAUGES:
        raise SpecError(f"gauge={gauge!r}: unknown; expected one of {', '.join(GAUGES)}")
    check_finite(state)
    coarse = any(value.is_floating_point() and torch.finfo(value.dtype).bits < 64 for value in state.values())
    tolerance = 1e-4 if coarse else 1e-8
    at = {
        name: value.detach().to("cpu", torch.float64 if value.is_floating_point() else value.dtype)
        for name, value in state.items()
    }
    total = neutral = spec.identity()

    def then(element: GroupElement) -> None:
        nonlocal at, total
        at, total = spec.act(element, at), element @ total

    for shift in spec.shifts:
        then(replace(neutral, shifts={**neutral.shifts, shift.name: canonical_shifts(spec, at, shift)}))
    scales = canonical_scales(spec, make_parts(spec, at), gauge)
    if scales:
        then(replace(neutral, log_scales=scales))
    if spec.sign_bits:
        parts = make_parts(spec, at)
        features = refine(spec, parts, squares=True, tolerance=tolerance)
        then(replace(neutral, flips=canonical_signs(spec, parts, features, tolerance)))
    if spec.permuted:
        then(replace(neutral, permutations=canonical_permutations(spec, make_parts(spec, at), tolerance)))
    settled: set[str] = set()
    pending = list(spec.linear)
    while pending:
        # First what its blocks determine; settled spaces then help to determine the others.
        parts = make_parts(spec, at, matrices_only=True)
        for factor in pending:
            matrix, determined = canonical_matrix(spec, parts, factor, settled, gauge, 1e-2 * tolerance)
            if determined:
                break
        else:
            factor = pending[0]
            matrix, _ = canonical_matrix(spec, parts, factor, settled, gauge, 1e-2 * tolerance)
        then(replace(neutral, matrices={**neutral.matrices, factor.space: matrix}))
        settled.add(factor.space)
        pending.remove(factor)
    return total


def gauge_distance(spec: SymmetrySpec, state: Mapping[str, Tensor], gauge: str = "unit") -> dict[str, float]:
    """How far a state is from its canonical form, one number per factor: 0 where it stands in the canonical gauge.

    Returns:
        By ``"kind name"``: for ``scale`` the root mean square of the log-scales that lead there, for ``sign`` the share
        of flips, for ``permutation`` the share of units that move, for ``shift`` the mean number of steps, for
        ``linear`` and ``orthogonal`` the Frobenius norm of M - 1 over the square root of n (root mean square over
        copies).

    Args:
        spec: the spec of the architecture.
        state: the network.
        gauge: see :func:`canonicalize`.

    Raises:
        SpecError: as :func:`canonicalize`.
    """
    element = canonicalize(spec, state, gauge)
    found: dict[str, float] = {}
    for space in spec.permuted:
        moved = element.permutations[space.name] != torch.arange(space.size)
        found[f"permutation {space.name}"] = float(moved.to(torch.float64).mean())
    for factor in spec.factors:
        if factor.kind == "scale":
            distance = element.log_scales[factor.name].square().mean().sqrt()
        else:
            distance = element.flips[factor.name].to(torch.float64).mean()
        found[f"{factor.kind} {factor.name}"] = float(distance)
    for shift in spec.shifts:
        found[f"shift {shift.name}"] = float(element.shifts[shift.name].abs().to(torch.float64).mean())
    for linear in spec.linear:
        off = element.matrices[linear.space] - torch.eye(linear.size, dtype=torch.float64)
        found[f"{linear.kind} {linear.space}"] = float((off.square().sum((-2, -1)) / linear.size).mean().sqrt())
    return found
