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
from symmetry.frames.parts import make_parts
from symmetry.frames.permutations import canonical_permutations
from symmetry.frames.scales import canonical_scales
from symmetry.frames.signs import canonical_signs
from symmetry.spec import SymmetrySpec

__all__ = ["GAUGES", "canonicalize"]

GAUGES = ("unit", "balanced")


def canonicalize(spec: SymmetrySpec, state: Mapping[str, Tensor], gauge: str = "unit") -> GroupElement:
    """The element g that brings a state to its canonical form ``spec.act(g, state)``.

    All states of one orbit, ``spec.act(h, state)`` for any h, have the same canonical form, up to rounding. The steps,
    each on what the one before has left: scalings (:mod:`symmetry.frames.scales`), signs, the order of units, and
    matrices. Computed in float64 on the CPU, whatever the dtype of the state.

    Limits: where two units that are not interchangeable have the same features to rounding, or a statistic vanishes to
    rounding, the form may jump. Weights below 16 bits of precision, moved by a scaling, no longer lie on one orbit.

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
    for factor in spec.linear:
        matrix = canonical_matrix(spec, make_parts(spec, at), factor, settled, gauge, 1e-2 * tolerance)
        then(replace(neutral, matrices={**neutral.matrices, factor.space: matrix}))
        settled.add(factor.space)
    return total
