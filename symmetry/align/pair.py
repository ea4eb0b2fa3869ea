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
from symmetry.spec import SymmetrySpec

__all__ = ["METHODS", "align"]

METHODS = ("weights", "activations", "frank_wolfe")


def align(
    spec: SymmetrySpec,
    reference: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    method: str = "weights",
    starts: int = 3,
    generator: torch.Generator | None = None,
    model: nn.Module | None = None,
    inputs: Sequence[Any] | None = None,
) -> GroupElement:
    """The element g of the group for which ``act(g, state)`` is close to the reference."""
    if method not in METHODS:
        raise SpecError(f"method={method!r}: unknown; expected one of {', '.join(METHODS)}")
    spec.check(reference)
    spec.check(state)
    generator = generator or torch.Generator().manual_seed(0)
    left, right = balanced_gauge(spec, reference), balanced_gauge(spec, state)
    problem = weight_terms(spec, spec.act(left, reference), spec.act(right, state))
    if method == "activations":
        if model is None or inputs is None:
            raise SpecError("method='activations' needs model and inputs: the module, and a tuple of its arguments")
        units = activation_matching(spec, reference, state, model, inputs, starts, generator)
        found = complete_matching(problem, units)
    elif method == "frank_wolfe":
        found, _ = frank_wolfe_matching(problem, starts, generator)
    else:
        found, _ = best_matching(problem, starts, generator)
    return ~left @ as_element(spec, found) @ right


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
