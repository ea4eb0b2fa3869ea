"""Which matching of two networks makes them most similar? Coordinate descent over spaces, from several starts.

Ainsworth, Hayase and Srinivasa, Git Re-Basin (2023), section 3.2, on the blocks of any spec. Two things are different:
the first visit of a space compares only what is already comparable, in the order of the data flow, so that no start is
blurred by units that have not been matched yet; and a space is solved again only when something it is compared along
has changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from symmetry.align.assignment import Assignment
from symmetry.align.problem import Problem, Term
from symmetry.align.steps import solve_family, solve_sign, solve_some, solve_space

__all__ = ["best_matching", "best_of", "complete_matching", "descend", "first_matching", "random_matching"]

MOST_STEPS = 200
# A gain below this share of what a coordinate could be worth is taken, but others are not solved again because of it.
# Two units of n that change places gain about 2 / n.
SMALL = 1e-5


def best_matching(problem: Problem, starts: int, generator: torch.Generator) -> tuple[Assignment, list[float]]:
    """The most similar of several descents, and the similarity of each.

    The first start follows the data flow, the second goes against it; of the others every other one visits the spaces
    in random order, the rest start from random matchings.
    """
    sites = sites_of(problem)

    def started(number: int) -> Assignment:
        if number < 2:
            order = sites if number == 0 else sites[::-1]
        else:
            order = [sites[k] for k in torch.randperm(len(sites), generator=generator).tolist()]
        state = random_matching(problem, generator) if number % 2 == 0 and number else first_matching(problem, order)
        descend(state)
        return state

    return best_of(map(started, range(max(starts, 1))))


def best_of(states: Iterable[Assignment]) -> tuple[Assignment, list[float]]:
    """The most similar of some matchings, the first among equals, and the similarity of each.

    Only the best so far is kept. There is at least one.
    """
    remaining = iter(states)
    best = next(remaining)
    found = [best.similarity()]
    for state in remaining:
        value = state.similarity()
        if value > max(found):
            best = state
        found.append(value)
    return best, found


def sites_of(problem: Problem) -> list[str]:
    """All coordinates: spaces, rotated spaces, signs that belong to no space."""
    return [*problem.inside, *problem.other_signs]


def first_matching(problem: Problem, order: Sequence[str], known: Assignment | None = None) -> Assignment:
    """Visit every coordinate once, as soon as something about it can be compared; the rest keeps its place.

    Args:
        problem: what is matched.
        order: of the visits.
        known: what is matched already and stays.
    """
    state = Assignment(problem) if known is None else replace(known, problem=problem)
    pending = [site for site in order if not _known(state, site)]
    while pending:
        for site in pending:
            if all(state.knows(outer) for outer in problem.within.get(site, ())) and _visit(state, site):
                break
        else:
            site = next(s for s in pending if all(state.knows(outer) for outer in problem.within.get(s, ())))
            _keep(state, site)
        pending = [other for other in pending if not _known(state, other)]
    for factor in problem.signs:
        if factor not in state.flips:
            _keep(state, factor)
    return state


def random_matching(problem: Problem, generator: torch.Generator) -> Assignment:
    """Every space in random order, no signs: a start that owes nothing to the networks.

    One space that meets itself (a recurrent layer) has no order of visits to vary.
    """
    state = Assignment(problem)
    for site in sites_of(problem):
        _keep(state, site)
    for space, value in list(state.right.items()):
        state.right[space] = torch.rand(value.shape, generator=generator, dtype=torch.float64).argsort(-1)
    for factor in problem.signs:
        if factor not in state.flips:
            _keep(state, factor)
    return state


def descend(state: Assignment, frozen: Collection[str] = ()) -> None:
    """Solve coordinate after coordinate until none gets better; the similarity never falls.

    Args:
        state: changed in place.
        frozen: spaces whose units stay where they are; only their signs are chosen.
    """
    problem = state.problem
    tolerance = problem.scale * max((torch.finfo(term.left.dtype).eps for term in problem.terms), default=0.0)
    sites = sites_of(problem)
    touching = {site: [term for term in problem.terms if site in _coordinates(problem, term)] for site in sites}
    near = {
        site: {other for term in terms for other in _coordinates(problem, term)} for site, terms in touching.items()
    }
    worth = {
        site: sum(float(term.left.norm() * term.right.norm()) for term in terms) for site, terms in touching.items()
    }
    dirty = set(sites)
    for _ in range(MOST_STEPS):
        for site in sites:
            if site in dirty:
                dirty.discard(site)
                if _improve(state, site, touching, tolerance, frozen) > max(SMALL * worth[site], tolerance):
                    twice = any(term.leaves.count(site) > 1 for term in touching[site])
                    inside = problem.children.get(site, ())
                    dirty |= (near[site] - {site}).union(*(near[child] for child in inside))
                    if twice:
                        dirty.add(site)
        if not dirty:
            break


def complete_matching(problem: Problem, units: Assignment, silent: Mapping[str, Tensor]) -> Assignment:
    """Units that were matched elsewhere (by their activations) stay; signs, rotations and other spaces fit the weights.

    Args:
        problem: of the weights.
        units: matched units of some spaces.
        silent: for each of these, left units of which nothing was known: they and their partners are matched again,
            among themselves.
    """
    alone = _Apart(problem.terms, problem.spaces, problem.within, problem.signs, problem.rotations)
    known = Assignment(alone, {name: value for name, value in units.right.items() if name in problem.occurrences})
    kept = frozenset(known.right)
    for factor, space in problem.signs.items():
        if space in kept:
            _keep(known, factor)
    state = first_matching(alone, sites_of(alone), known)
    descend(state, kept)
    if any(solve_some(state, space, silent[space]) for space in sorted(kept & set(silent))):
        descend(state, kept)
    state.problem = problem
    return state


class _Apart(Problem):
    """The same problem with every space a coordinate of its own."""

    @property
    def children(self) -> dict[str, tuple[str, ...]]:  # type: ignore[override]
        return {}


def _coordinates(problem: Problem, term: Term) -> set[str]:
    sites = set(problem.inside) | set(problem.other_signs)
    return sites.intersection([*(name for name in term.leaves if name), *(name for name, _ in term.signs)])


def _known(state: Assignment, site: str) -> bool:
    return site in state.flips if site in state.problem.other_signs else state.knows(site)


def _visit(state: Assignment, site: str) -> bool:
    problem = state.problem
    if site in problem.other_signs:
        return solve_sign(state, site) is not None
    if problem.children.get(site):
        return solve_family(state, site, problem.children[site])
    return solve_space(state, site) is not None


def _improve(
    state: Assignment, site: str, touching: dict[str, list[Term]], tolerance: float, frozen: Collection[str]
) -> float:
    """Solve one coordinate; the gain, 0 where there is none."""
    problem = state.problem
    if site in problem.other_signs:
        return solve_sign(state, site) or 0.0
    children = problem.children.get(site, ())
    terms = list({id(term): term for name in (site, *children) for term in touching[name]}.values())
    if not children and not any(term.leaves.count(site) > 1 for term in terms):
        return solve_space(state, site, site in frozen) or 0.0
    # Not linear in this coordinate (it occurs twice in a term, or inner spaces share terms): take the step if it helps.
    before, trial = state.similarity(terms), state.copy()
    if children:
        solve_family(trial, site, children)
    else:
        solve_space(trial, site, site in frozen)
    gain = trial.similarity(terms) - before
    if gain <= tolerance:
        return 0.0
    state.right, state.left, state.flips, state.rotations = trial.right, trial.left, trial.flips, trial.rotations
    return gain


def _keep(state: Assignment, site: str) -> None:
    """Give an unknown coordinate its neutral value: units in order, no flips, no rotation."""
    problem = state.problem
    if site in problem.signs:
        space = problem.signs[site]
        if space is None:
            state.flips[site] = torch.zeros((), dtype=torch.bool)
        elif space in state.right:
            state.flips[site] = torch.zeros(state.right[space].shape, dtype=torch.bool)
        else:
            term, dim = next(
                ((term, place) for term in problem.terms for name, place in term.signs if name == site), (None, None)
            )
            if term is not None and dim is not None:
                state.flips[site] = torch.zeros(term.left.shape[dim], dtype=torch.bool)
        return
    term, dim = problem.occurrences[site][0]
    outer = [state.right[name].shape[-1] for name in problem.within.get(site, ())]
    first, second = problem.sizes(site)
    if site in problem.rotations:
        state.rotations[site] = torch.eye(first, dtype=torch.float64).expand(*outer, first, first)
        return
    order = torch.arange(min(first, second)).expand(*outer, -1)
    state.right[site] = order
    if first != second:
        state.left[site] = order
