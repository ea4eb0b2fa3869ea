"""Given everything else, how is one space matched best? By one assignment, with its signs and what lies inside it.

The similarity is linear in one space's matching, so the best one is an assignment problem on the matrix of inner
products of units: exact. A unit's sign is free where a sign factor says so: then a pair is worth the best of its signs.
A space with others inside it (heads, with units) is matched with them: each pair of outer units is worth its best inner
matching.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from symmetry.align.arrays import assign, nuclear, polar
from symmetry.align.assignment import Assignment
from symmetry.align.totals import Totals, collect, patterns

__all__ = ["solve_family", "solve_sign", "solve_some", "solve_space"]


def solve_space(state: Assignment, space: str, frozen: bool = False) -> float | None:
    """Match one space given all others, its inner spaces in the order they are; returns the gain, ``None`` if unknown.

    Args:
        state: changed in place, if it gets better.
        space: which.
        frozen: keep the units where they are and choose signs only.
    """
    totals = collect(state, (space,))
    if not totals.sums:
        return None
    bits = state.problem.unit_signs[space]
    loose = [bit for bit in totals.bits if bit not in bits]
    rotated = space in state.problem.rotations
    best: tuple[float, Assignment] = -math.inf, state
    for values in patterns(len(loose)):
        fixed = dict(zip(loose, values, strict=True))
        choices = totals.choices(bits, fixed)
        scores, choice = choices.max(0) if len(choices) > 1 else (choices[0], torch.zeros(()))
        trial = state.copy()
        for bit, value in fixed.items():
            trial.flips[bit] = torch.tensor(value)
        if rotated:
            trial.rotations[space] = polar(scores)
            worth = float(nuclear(scores).sum())
        else:
            left, right = _current(state, space) if frozen else assign(scores, state.right.get(space))
            trial.right[space] = right
            if scores.shape[-1] != scores.shape[-2]:
                trial.left[space] = left
            worth = float(_pick(scores, left, right).double().sum())
            _set_flips(trial, bits, choice, left, right)
        if worth > best[0]:
            best = worth, trial
    before = _value_now(state, space, totals)
    if before is None or best[0] > before:
        _replace(state, best[1])
    return float("inf") if before is None else best[0] - before


def solve_some(state: Assignment, space: str, rows: Tensor) -> bool:
    """Match some left units of a space again, among the right units they now have; whether anything changed.

    Args:
        state: changed in place.
        space: one that lies within no other.
        rows: which units, booleans.
    """
    chosen = rows.nonzero().flatten()
    if len(chosen) < 2 or state.problem.within.get(space) or space in state.left:
        return False
    totals = collect(state, (space,))
    if not totals.sums:
        return False
    loose = {bit: bool(state.flips[bit]) for bit in totals.bits if bit not in state.problem.unit_signs[space]}
    scores = totals.choices(state.problem.unit_signs[space], loose).amax(0)
    old = state.right[space]
    _, order = assign(scores[chosen][:, old[chosen]])
    new = old.clone()
    new[chosen] = old[chosen][order]
    state.right[space] = new
    return not torch.equal(new, old)


def solve_family(state: Assignment, space: str, children: Sequence[str]) -> bool:
    """Match a space together with those directly inside it; whether there was anything to compare.

    Terms that two inner spaces share are left out of the worth of a pair: the caller compares before and after.
    """
    problem = state.problem
    own = collect(state, (space,), without=children)
    inner = {child: collect(state, (space, child), without=children) for child in children}
    inner = {child: totals for child, totals in inner.items() if totals.sums}
    if not own.sums and not inner:
        return False
    bits = problem.unit_signs[space]
    everything = dict.fromkeys((*own.bits, *(bit for totals in inner.values() for bit in totals.bits)))
    inside = {bit for child in children for bit in problem.unit_signs[child]}
    loose = [bit for bit in everything if bit not in bits and bit not in inside]
    sizes = problem.sizes(space)
    best: tuple[float, Assignment] = -math.inf, state
    for values in patterns(len(loose)):
        fixed = dict(zip(loose, values, strict=True))
        scores = torch.stack(
            [
                _family_scores(state, own, inner, {**fixed, **dict(zip(bits, own_values, strict=True))}, sizes)
                for own_values in patterns(len(bits))
            ]
        )
        top, choice = scores.max(0)
        left, right = assign(top)
        value = float(_pick(top, left, right).double().sum())
        if value > best[0]:
            trial = state.copy()
            trial.right[space] = right
            if sizes[0] != sizes[1]:
                trial.left[space] = left
            for bit, given in fixed.items():
                trial.flips[bit] = torch.tensor(given)
            _set_flips(trial, bits, choice, left, right)
            for child, totals in inner.items():
                _solve_inside(trial, space, child, totals, fixed, sizes, left, right)
            best = value, trial
    _replace(state, best[1])
    return True


def solve_sign(state: Assignment, factor: str) -> float | None:
    """Choose the values of a sign factor that belongs to no space; returns the gain, ``None`` if nothing is known."""
    problem = state.problem
    space = problem.signs[factor]
    odd: Tensor | None = None
    for term in problem.terms:
        places = [place for name, place in term.signs if name == factor]
        known = all(state.knows(name) for name in term.leaves) and all(
            name in state.flips or name == factor for name, _ in term.signs
        )
        if len(places) % 2 == 0 or not known:
            continue
        trial = state.copy()
        trial.flips.pop(factor, None)
        left, right = trial.moved(term)
        rest = [dim for dim in range(len(term.leaves)) if space is None or dim != places[0]]
        part = (left * right).sum(rest) if rest else left * right
        odd = part if odd is None else odd + part
    if odd is None:
        return None
    flips = odd < 0
    if factor in state.flips:
        old = torch.where(state.flips[factor], -odd, odd).sum()
        gain = float(odd.abs().sum() - old)
    else:
        gain = float("inf")
    if gain > 0:
        state.flips[factor] = flips
    return gain


def _family_scores(
    state: Assignment, own: Totals, inner: dict[str, Totals], fixed: dict[str, bool], sizes: tuple[int, int]
) -> Tensor:
    """For every pair of outer units what they share by themselves, plus the best matching of what lies inside them."""
    parts = [own.under(fixed).double()] if own.sums else []
    for child, totals in inner.items():
        pairs = _inner_products(state, child, totals, fixed, sizes)
        if child in state.problem.rotations:
            parts.append(nuclear(pairs))
        else:
            parts.append(_pick(pairs, *assign(pairs)).double().sum(-1))
    return reduce(torch.add, parts)


def _inner_products(
    state: Assignment, child: str, totals: Totals, fixed: dict[str, bool], sizes: tuple[int, int]
) -> Tensor:
    """(batch..., left outer, right outer, left inner, right inner), each at its best sign."""
    flat, _ = totals.choices(state.problem.unit_signs[child], fixed).max(0)
    return _unfold(flat, sizes)


def _unfold(flat: Tensor, sizes: tuple[int, int]) -> Tensor:
    lead = flat.shape[:-2]
    split = flat.reshape(*lead, sizes[0], flat.shape[-2] // sizes[0], sizes[1], flat.shape[-1] // sizes[1])
    return split.transpose(-2, -3)


def _solve_inside(
    state: Assignment,
    space: str,
    child: str,
    totals: Totals,
    fixed: dict[str, bool],
    sizes: tuple[int, int],
    left: Tensor,
    right: Tensor,
) -> None:
    """Match one inner space for the pairs of outer units that were chosen."""
    problem = state.problem
    bits = problem.unit_signs[child]
    # The outer units' own signs are known by now and differ from pair to pair: apply them where they act.
    outer = [bit for bit in totals.bits if bit in problem.unit_signs[space]]
    choices = []
    for values in patterns(len(bits)):
        under = dict(zip(bits, values, strict=True))
        stack = torch.stack(
            [
                _chosen(
                    _unfold(totals.under({**fixed, **dict(zip(outer, own, strict=True)), **under}), sizes), left, right
                )
                for own in patterns(len(outer))
            ]
        )
        code = torch.zeros(left.shape, dtype=torch.long)
        for bit in outer:
            code = 2 * code + state.flips[bit].long()
        choices.append(torch.take_along_dim(stack, code[None, ..., None, None], 0)[0])
    scores, choice = torch.stack(choices).max(0)
    if child in problem.rotations:
        state.rotations[child] = polar(scores)
        return
    first, second = assign(scores)
    state.right[child] = second
    if scores.shape[-1] != scores.shape[-2]:
        state.left[child] = first
    _set_flips(state, bits, choice, first, second)


def _chosen(pairs: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The matrices of the chosen pairs of outer units: (batch..., pairs, left inner, right inner)."""
    lead = pairs.shape[:-4]
    rows = left.reshape(*lead, -1, 1, 1, 1).expand(*lead, left.shape[-1], *pairs.shape[-3:])
    kept = pairs.gather(-4, rows)
    columns = right.reshape(*lead, -1, 1, 1, 1).expand(*lead, right.shape[-1], 1, *pairs.shape[-2:])
    return kept.gather(-3, columns).squeeze(-3)


def _pick(scores: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The scores of the pairs of an assignment."""
    rows = scores.gather(-2, left[..., None].expand(*left.shape, scores.shape[-1]))
    return rows.gather(-1, right[..., None])[..., 0]


def _set_flips(state: Assignment, bits: Sequence[str], choice: Tensor, left: Tensor, right: Tensor) -> None:
    """Read each bit of the choices at the pairs of an assignment (the first bit is the slowest)."""
    if bits:
        chosen = _pick(choice, left, right) if choice.ndim else torch.zeros(right.shape, dtype=torch.long)
        for number, bit in enumerate(bits):
            state.flips[bit] = (chosen >> (len(bits) - 1 - number)) % 2 == 1


def _current(state: Assignment, space: str) -> tuple[Tensor, Tensor]:
    right = state.right[space]
    return state.left.get(space, torch.arange(right.shape[-1]).expand(right.shape)), right


def _value_now(state: Assignment, space: str, totals: Totals) -> float | None:
    """The similarity of the terms of the totals as things stand; ``None`` if that is not known."""
    bits = state.problem.unit_signs[space]
    if any(bit not in state.flips for bit in totals.bits):
        return None
    if space in state.rotations:
        return float((state.rotations[space] * totals.under({}).double()).sum())
    if space not in state.right:
        return None
    left, right = _current(state, space)
    code = torch.zeros(right.shape, dtype=torch.long)
    for bit in bits:
        code = 2 * code + state.flips[bit].long()
    loose = {bit: bool(state.flips[bit]) for bit in totals.bits if bit not in bits}
    values = torch.stack([_pick(choice, left, right) for choice in totals.choices(bits, loose)])
    return float(values.gather(0, code[None])[0].double().sum())


def _replace(state: Assignment, other: Assignment) -> None:
    state.right, state.left, state.flips, state.rotations = other.right, other.left, other.flips, other.rotations
