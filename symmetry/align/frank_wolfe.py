"""Which matching makes two networks most similar, if all spaces move at once? Frank-Wolfe on relaxed permutations.

Crisostomi et al., C2M3: Cycle-consistent multi-model merging (2024), section 3. Permutations are relaxed to doubly
stochastic matrices, signed ones to their signed counterpart: the gradient of the similarity is one matrix of inner
products per space, its best vertex one assignment problem per space, and along the way to that vertex the similarity is
a polynomial, so that the step is exact. The end is rounded to a matching and descends from there. Spaces inside others
(and around them), rotations and signs of whole tensors stay as they were first matched until that descent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from symmetry.align.arrays import assign, gram, rotate
from symmetry.align.assignment import Assignment
from symmetry.align.descent import best_of, descend, first_matching, sites_of
from symmetry.align.problem import Problem, Term
from symmetry.align.totals import Totals, patterns

__all__ = ["frank_wolfe_matching"]

MOST_ITERATIONS = 100
GAP = 1e-4

# For every space one matrix per pattern of its sign factors: what a term with these signs sees of the relaxed matching.
Relaxed = dict[str, dict[tuple[bool, ...], Tensor]]


def frank_wolfe_matching(problem: Problem, starts: int, generator: torch.Generator) -> tuple[Assignment, list[float]]:
    """The most similar of several runs, and the similarity of each.

    The first starts at the barycentre, where every unit is matched to all alike; the others halfway from there to a
    matching that visits the spaces in random order.
    """
    soft = [name for name in problem.spaces if not problem.within.get(name) and not problem.children.get(name)]
    sites = sites_of(problem)
    hard = first_matching(problem, sites)
    descend(hard)

    def started(number: int) -> Assignment:
        point = _barycentre(problem, soft)
        if number:
            order = [sites[k] for k in torch.randperm(len(sites), generator=generator).tolist()]
            point = _between(point, _vertex(first_matching(problem, order), soft), 0.5)
        state = hard.copy()
        _round(state, _ascend(state, point, soft))
        descend(state)
        return state

    return best_of(map(started, range(max(starts, 1))))


def _ascend(state: Assignment, point: Relaxed, soft: Sequence[str]) -> Relaxed:
    problem = state.problem
    terms = [term for term in problem.terms if any(name in soft for name in term.leaves)]
    degree = max((sum(name in soft for name in term.leaves) for term in terms), default=0)
    if degree == 0:
        return point
    steps = np.linspace(0.0, 1.0, degree + 1)
    for _ in range(MOST_ITERATIONS):
        goal: Relaxed = {}
        gap = 0.0
        for space in soft:
            slope = _gradient(state, point, terms, space)
            goal[space] = _best_vertex(slope)
            gap += sum(float((slope.sums[key] * (goal[space][key] - point[space][key])).sum()) for key in slope.sums)
        if gap <= GAP * problem.scale:
            break
        values = [_value(state, _between(point, goal, float(step)), terms) for step in steps]
        step = _highest(np.polynomial.Polynomial.fit(steps, values, degree))
        if step <= 0.0:
            break
        point = _between(point, goal, step)
    return point


def _highest(polynomial: np.polynomial.Polynomial) -> float:
    """Where on [0, 1] a polynomial is largest."""
    roots = polynomial.deriv().roots()
    inside = [float(root.real) for root in np.atleast_1d(roots) if abs(root.imag) < 1e-9 and 0 < root.real < 1]
    return max([0.0, 1.0, *inside], key=lambda at: float(polynomial(at)))


def _gradient(state: Assignment, point: Relaxed, terms: Sequence[Term], space: str) -> Totals:
    """The derivative of the similarity by each matrix of one space."""
    bits = state.problem.unit_signs[space]
    sums: dict[tuple[bool, ...], Tensor] = {}
    for term in terms:
        for dim, name in enumerate(term.leaves):
            if name == space:
                left, right = _applied(state, point, term, skip=dim)
                part, key = gram(left, right, (), (dim,)), _pattern(term, dim, bits)
                sums[key] = sums[key] + part if key in sums else part
    return Totals(bits, sums)


def _applied(state: Assignment, point: Relaxed, term: Term, skip: int | None = None) -> tuple[Tensor, Tensor]:
    """Both blocks of a term, the right one under the relaxed matching of every soft space but one occurrence."""
    relaxed = [(dim, name) for dim, name in enumerate(term.leaves) if name is not None and name in point]
    left, right = state.moved(term, [dim for dim, _ in relaxed])
    for dim, name in relaxed:
        if dim != skip:
            key = _pattern(term, dim, state.problem.unit_signs[name])
            right = rotate(right, point[name][key], [dim])
    return left, right


def _value(state: Assignment, point: Relaxed, terms: Sequence[Term]) -> float:
    total = 0.0
    for term in terms:
        left, right = _applied(state, point, term)
        total += float(torch.dot(left.reshape(-1), right.reshape(-1)))
    return total


def _pattern(term: Term, dim: int, bits: Sequence[str]) -> tuple[bool, ...]:
    acting = [factor for factor, place in term.signs if place == dim]
    return tuple(acting.count(bit) % 2 == 1 for bit in bits)


def _best_vertex(totals: Totals) -> dict[tuple[bool, ...], Tensor]:
    """The signed matching of the largest inner product, as one matrix for each pattern."""
    scores, choice = totals.choices(totals.bits, {}).max(0)
    _, right = assign(scores)
    chosen = choice.gather(-1, right[:, None])[:, 0]
    count = len(totals.bits)
    return _matrices(right, [(chosen >> (count - 1 - number)) % 2 == 1 for number in range(count)], scores.dtype)


def _vertex(state: Assignment, soft: Sequence[str]) -> Relaxed:
    dtype = state.problem.terms[0].left.dtype
    return {
        space: _matrices(state.right[space], [state.flips[bit] for bit in state.problem.unit_signs[space]], dtype)
        for space in soft
    }


def _matrices(right: Tensor, flips: Sequence[Tensor], dtype: torch.dtype) -> dict[tuple[bool, ...], Tensor]:
    rows = torch.arange(len(right))
    result = {}
    for key in patterns(len(flips)):
        sign = torch.ones(len(right), dtype=dtype)
        for acts, flip in zip(key, flips, strict=True):
            if acts:
                sign = torch.where(flip, -sign, sign)
        matrix = torch.zeros(len(right), len(right), dtype=dtype)
        matrix[rows, right] = sign
        result[key] = matrix
    return result


def _barycentre(problem: Problem, soft: Sequence[str]) -> Relaxed:
    result: Relaxed = {}
    for space in soft:
        size = problem.sizes(space)[0]
        result[space] = {
            key: torch.full((size, size), 0.0 if any(key) else 1.0 / size, dtype=problem.terms[0].left.dtype)
            for key in patterns(len(problem.unit_signs[space]))
        }
    return result


def _between(start: Relaxed, end: Relaxed, step: float) -> Relaxed:
    return {
        space: {key: start[space][key].lerp(end[space][key], step) for key in matrices}
        for space, matrices in start.items()
    }


def _round(state: Assignment, point: Relaxed) -> None:
    """The matching nearest to a relaxed one."""
    for space, sums in point.items():
        bits = state.problem.unit_signs[space]
        scores, choice = Totals(bits, sums).choices(bits, {}).max(0)
        _, right = assign(scores)
        chosen = choice.gather(-1, right[:, None])[:, 0]
        state.right[space] = right
        for number, bit in enumerate(bits):
            state.flips[bit] = (chosen >> (len(bits) - 1 - number)) % 2 == 1
