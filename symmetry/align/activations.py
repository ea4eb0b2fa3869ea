"""Which units of two networks answer alike to the same inputs? Matching by the correlation of activations.

Li et al., Convergent learning (2015); Ainsworth et al., Git Re-Basin (2023), section 3.1. The values that units are
read from are found in the exported graph of any model (:mod:`symmetry.align.values`); standardised, they are terms like
weights are, so that signs, heads and units inside heads are matched by the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from symmetry.align.assignment import Assignment
from symmetry.align.descent import best_matching
from symmetry.align.problem import Problem, Term
from symmetry.align.values import Probe, blocks_of
from symmetry.spec import SymmetrySpec

__all__ = ["activation_matching"]

DEAD = 1e-9


def activation_matching(
    spec: SymmetrySpec,
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    model: nn.Module,
    inputs: Sequence[Any],
    starts: int,
    generator: torch.Generator,
) -> tuple[Assignment, dict[str, Tensor]]:
    """Match the units of every space that is seen at some value.

    Returns:
        The matching, whose signs mean nothing, and for each space which of the left units these inputs never move:
        nothing is known of them.
    """
    probe = Probe(model, spec, inputs)
    sights = {sight.node: sight for sight in probe.sights(left, generator)}
    first = probe.run(left, set(sights))
    terms: list[Term] = []
    signs: dict[str, str | None] = {}
    second = probe.run(right, set(sights))
    for node, sight in sights.items():
        pairs = zip(blocks_of(sight, first[node]), blocks_of(sight, second[node]), strict=True)
        for (names, mine), (_, other) in pairs:
            seen = [name for name in names if name is not None]
            if not seen:
                continue
            # Which sign a unit has is settled by the weights; until then a unit may as well be the negative of another.
            innermost = max(seen, key=lambda name: len(spec.within.get(name, ())))
            acting: tuple[tuple[str, int | None], ...] = ()
            if sight.odd:
                signs[f"sign of {innermost}"] = innermost
                acting = ((f"sign of {innermost}", names.index(innermost)),)
            terms.append(Term(_standard(mine, names), _standard(other, names), names, acting))
    acting_spaces = {name for term in terms for name in term.leaves if name is not None}
    problem = Problem(
        tuple(terms),
        tuple(space.name for space in spec.permuted if space.name in acting_spaces),
        {name: outer for name, outer in spec.within.items() if name in acting_spaces},
        signs,
    )
    if not terms:
        return Assignment(problem), {}
    found = best_matching(problem, starts, generator)[0]
    silent = {
        space: torch.stack([_still(term.left, dim) for term, dim in problem.occurrences[space]]).all(0)
        for space in problem.spaces
    }
    return found, silent


def _still(value: Tensor, dim: int) -> Tensor:
    return (value.movedim(dim, 0).reshape(value.shape[dim], -1) == 0).all(1)


def _standard(value: Tensor, names: tuple[str | None, ...]) -> Tensor:
    """Centred and of norm one for every unit; a unit that never changes is zero."""
    fixed = [dim for dim, name in enumerate(names) if name is None]
    if not fixed:
        return value / value.norm().clamp_min(1e-300)
    centred = value - value.mean(fixed, keepdim=True)
    norm = centred.square().sum(fixed, keepdim=True).sqrt()
    size = float(norm.max()) if norm.numel() else 0.0
    return torch.where(norm > DEAD * size, centred / norm.clamp_min(1e-300), 0.0)
