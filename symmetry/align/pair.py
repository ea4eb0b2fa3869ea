"""Which element of the group brings one network closest to another?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from symmetry.align.activations import activation_matching
from symmetry.align.assignment import Assignment
from symmetry.align.descent import best_matching, complete_matching
from symmetry.align.frank_wolfe import frank_wolfe_matching
from symmetry.align.gauge import balanced_gauge
from symmetry.align.problem import weight_terms
from symmetry.elements import GroupElement
from symmetry.errors import SpecError
from symmetry.frames.parts import check_finite
from symmetry.spec import SymmetrySpec

__all__ = ["METHODS", "align", "as_element", "readable"]

METHODS = ("weights", "activations", "frank_wolfe")
_LARGE = 1e15


def align(
    spec: SymmetrySpec,
    reference: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    method: str = "weights",
    starts: int = 2,
    generator: torch.Generator | None = None,
    model: nn.Module | None = None,
    inputs: Sequence[Any] | None = None,
) -> GroupElement:
    """The element g of the group for which ``act(g, state)`` is close to the reference.

    Scalings, invertible matrices and shifts are removed first (both networks are brought into one balanced gauge), then
    units, signs and rotations are matched, then the matched network is carried into the gauge of the reference: ``g``
    does all of it. What a random element did to a network is undone exactly.

    Methods:
        ``weights``: coordinate descent over spaces, each an exact assignment problem (Git Re-Basin, 2023). The default.
        ``frank_wolfe``: all spaces at once on relaxed permutations (C2M3, 2024), rounded, then coordinate descent.
            Slower; sometimes more similar.
        ``activations``: units that answer alike to the same inputs; needs ``model`` and ``inputs``. Signs, rotations
            and units that the inputs never move are matched by weights.

    Args:
        spec: the spec of both networks.
        reference: the state to come close to.
        state: the state to be carried there.
        method: see above.
        starts: how many times to start: along the data flow, against it, then in turn from random matchings and from
            random orders of the spaces; the most similar result is kept.
        generator: source of randomness from the third start on; a fresh one with seed 0 if ``None``.
        model: the module, for activations; it is not changed.
        inputs: one entry per argument of ``forward``, for activations; a few hundred rows.

    Raises:
        SpecError: if a state does not belong to the spec or holds values that are not finite (told by tensor), the
            method is unknown, or activations lack model or inputs.
        TraceError: if the model cannot be exported on these inputs.
    """
    if method not in METHODS:
        raise SpecError(f"method={method!r}: unknown; expected one of {', '.join(METHODS)}")
    spec.check(reference)
    spec.check(state)
    reference, state = readable(reference, "the reference"), readable(state, "the state to be carried there")
    generator = generator or torch.Generator().manual_seed(0)
    left, right = balanced_gauge(spec, reference), balanced_gauge(spec, state)
    problem = weight_terms(spec, spec.act(left, reference), spec.act(right, state))
    if method == "activations":
        if model is None or inputs is None:
            raise SpecError("method='activations' needs model and inputs: the module, and a tuple of its arguments")
        units, silent = activation_matching(spec, reference, state, model, inputs, starts, generator)
        found = complete_matching(problem, units, silent)
    elif method == "frank_wolfe":
        found, _ = frank_wolfe_matching(problem, starts, generator)
    else:
        found, _ = best_matching(problem, starts, generator)
    return ~left @ as_element(spec, found) @ right


def readable(state: Mapping[str, Tensor], name: str) -> Mapping[str, Tensor]:
    """A state that can be compared: finite, and in float64 where sums of its squares could leave the range of float32.

    Args:
        state: the tensors.
        name: what it is, for the message.

    Raises:
        SpecError: for values that are not finite, by tensor.
    """
    check_finite(state, f"alignment needs finite networks, this is {name}")
    large = any(value.is_floating_point() and value.numel() and value.abs().max() > _LARGE for value in state.values())
    if not large:
        return state
    return {name: value.double() if value.is_floating_point() else value for name, value in state.items()}


def as_element(spec: SymmetrySpec, found: Assignment) -> GroupElement:
    """A matching of equal sizes as an element that only permutes, flips and rotates."""
    neutral = spec.identity()
    return GroupElement(
        spec,
        {name: found.right.get(name, value).clone() for name, value in neutral.permutations.items()},
        neutral.log_scales,
        {name: found.flips.get(name, value).clone() for name, value in neutral.flips.items()},
        {name: found.rotations.get(name, value).clone() for name, value in neutral.matrices.items()},
    )
