"""How are many networks brought into one basis, so that going round any cycle of them leads back exactly?

Every network gets one element that carries it to a common reference (the universe of Crisostomi et al., C2M3, 2024),
and every pair goes by way of it: a cycle is the identity by construction, which pairwise matchings are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from symmetry.align.assignment import Assignment
from symmetry.align.descent import best_matching, descend
from symmetry.align.gauge import balanced_gauge
from symmetry.align.pair import as_element, readable
from symmetry.align.problem import Problem, weight_terms
from symmetry.elements import GroupElement
from symmetry.errors import SpecError
from symmetry.spec import SymmetrySpec

__all__ = ["Universe", "align_many"]

MOST_ROUNDS = 20


@dataclass(frozen=True)
class Universe:
    """Elements that carry each of several networks to a common basis, that of the first network.

    Args:
        elements: one per network; the first is the identity.
        rounds: how often every network was matched to the mean of the others.
    """

    elements: tuple[GroupElement, ...]
    rounds: int

    def between(self, target: int, source: int) -> GroupElement:
        """The element that carries network ``source`` to the places of network ``target``.

        ``between(i, j) @ between(j, k) == between(i, k)``, hence every cycle is the identity.
        """
        return ~self.elements[target] @ self.elements[source]

    def __len__(self) -> int:
        return len(self.elements)


def align_many(
    spec: SymmetrySpec,
    states: Sequence[Mapping[str, Tensor]],
    starts: int = 2,
    generator: torch.Generator | None = None,
) -> Universe:
    """Carry several networks to one basis, by weights.

    All are matched to the first; then each in turn to the mean of all others, until nothing changes. The similarity
    between all pairs never falls.

    Args:
        spec: of all of them.
        states: two or more.
        starts: descents for the first matching of each, from different orders of the spaces.
        generator: of those orders; a fresh one with seed 0 if ``None``.

    Raises:
        SpecError: if there are fewer than two states, or one does not belong to the spec or holds values that are not
            finite.
    """
    if isinstance(states, Mapping) or len(states) < 2:
        raise SpecError("align_many: expected a list of two or more states")
    generator = generator or torch.Generator().manual_seed(0)
    for state in states:
        spec.check(state)
    states = [readable(state, f"network {number}") for number, state in enumerate(states)]
    gauges = [balanced_gauge(spec, state) for state in states]
    even = [spec.act(gauge, state) for gauge, state in zip(gauges, states, strict=True)]
    found = [best_matching(weight_terms(spec, even[0], state), starts, generator)[0] for state in even]
    found[0] = _identity(found[0])
    moved = [_blocks(matching) for matching in found]
    rounds, changed = 0, True
    while changed and rounds < MOST_ROUNDS and len(states) > 2:
        rounds, changed = rounds + 1, False
        for number, matching in enumerate(found):
            others = [moved[k] for k in range(len(found)) if k != number]
            # Summed over the others: the similarity to their sum is the sum of similarities to each.
            terms = tuple(
                replace(term, left=torch.stack([blocks[place] for blocks in others]).sum(0))
                for place, term in enumerate(matching.problem.terms)
            )
            problem = replace(matching.problem, terms=terms)
            trial = replace(matching.copy(), problem=problem)
            before = trial.similarity()
            descend(trial)
            if trial.similarity() > before + 1e-6 * problem.scale:
                changed = True
                found[number] = replace(trial, problem=matching.problem)
                moved[number] = _blocks(found[number])
    elements = [as_element(spec, matching) @ gauge for matching, gauge in zip(found, gauges, strict=True)]
    home = ~elements[0]
    return Universe((spec.identity(), *(home @ element for element in elements[1:])), rounds)


def _identity(matching: Assignment) -> Assignment:
    """The first network's matching with itself; twins among its units must not confuse it."""
    return Assignment(
        matching.problem,
        {name: torch.arange(value.shape[-1]).expand(value.shape) for name, value in matching.right.items()},
        {},
        {name: torch.zeros_like(value) for name, value in matching.flips.items()},
        {
            name: torch.eye(value.shape[-1], dtype=value.dtype).expand(value.shape)
            for name, value in matching.rotations.items()
        },
    )


def _blocks(matching: Assignment) -> list[Tensor]:
    """The blocks of a network in the places that its matching gives them."""
    problem: Problem = matching.problem
    return [matching.moved(term)[1] for term in problem.terms]
