"""Which units of a narrow network correspond to which of a wide one? A matching of pairs; the rest stays alone.

The same steps as between equals, on rectangular matrices of inner products: each space is a rectangular assignment
problem, and a block is compared on the units that are paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from symmetry.align.arrays import gram
from symmetry.align.assignment import Assignment
from symmetry.align.descent import best_matching
from symmetry.align.gauge import balanced_gauge
from symmetry.align.pair import readable
from symmetry.align.problem import Problem, weight_terms
from symmetry.errors import SpecError
from symmetry.spaces import Atom, Axis, Concat, Fixed, Product
from symmetry.spec import SymmetrySpec

__all__ = ["WidthMatching", "match_widths"]


@dataclass(frozen=True, eq=False)
class WidthMatching:
    """Pairs of corresponding units of two networks of one kind and different widths.

    Args:
        pairs: for every permuted space, pairs (unit of a, unit of b), sorted by the unit of a; a space that lies within
            others has one list per pair of those, in front. As many pairs as the narrower space has units.
        similarity: for every permuted space, the cosine of each pair's weights in the balanced gauge, as far as they
            lie between paired units.
        flips: for every sign factor of a space, whether the unit of b has the opposite sign, by pair.

    Shapes:
        pairs: (*outer, min(n, m), 2); similarity and flips: (*outer, min(n, m)).
    """

    pairs: Mapping[str, Tensor]
    similarity: Mapping[str, Tensor]
    flips: Mapping[str, Tensor]

    def __str__(self) -> str:
        lines = [
            f"{name}: {value.shape[-2]} pairs, cosine {float(self.similarity[name].mean()):.3f} on average"
            for name, value in self.pairs.items()
        ]
        return "\n".join(lines)


def match_widths(
    spec_a: SymmetrySpec,
    a: Mapping[str, Tensor],
    spec_b: SymmetrySpec,
    b: Mapping[str, Tensor],
    starts: int = 2,
    generator: torch.Generator | None = None,
) -> WidthMatching:
    """Match the units of two networks that differ in widths only, by their weights.

    Args:
        spec_a: of one network.
        a: its state.
        spec_b: of the other: the same tensors over the same spaces, of any sizes. Inputs, outputs and spaces under
            matrices must be of equal size.
        b: its state.
        starts: descents from different orders of the spaces; the most similar pair of networks is kept.
        generator: of those orders; a fresh one with seed 0 if ``None``.

    Raises:
        SpecError: if the networks differ in more than the sizes of spaces; the first difference is named. Also for
            values that are not finite.
    """
    spec_a.check(a)
    spec_b.check(b)
    _check_kin(spec_a, spec_b)
    a, b = readable(a, "the first"), readable(b, "the second")
    left, right = (spec.act(balanced_gauge(spec, state), state) for spec, state in ((spec_a, a), (spec_b, b)))
    problem = weight_terms(spec_a, left, right, spec_b)
    found, _ = best_matching(problem, starts, generator or torch.Generator().manual_seed(0))
    pairs, similarity = {}, {}
    for space in problem.spaces:
        second = found.right[space]
        first = found.left.get(space, torch.arange(second.shape[-1]).expand(second.shape))
        pairs[space] = torch.stack([first, second], -1)
        similarity[space] = _cosines(problem, found, space)
    flips = {name: value for name, value in found.flips.items() if problem.signs[name] in problem.spaces}
    return WidthMatching(pairs, similarity, flips)


def _cosines(problem: Problem, found: Assignment, space: str) -> Tensor:
    products = [torch.zeros(()) for _ in range(3)]
    for term, dim in problem.occurrences[space]:
        left, right = found.moved(term)
        dims = found.dims(term, space, dim)
        for place, (one, other) in enumerate(((left, right), (left, left), (right, right))):
            products[place] = products[place] + gram(one, other, dims, [])[..., 0, 0]
    cross, first, second = products
    return cross / (first * second).sqrt().clamp_min(1e-30)


def _check_kin(spec_a: SymmetrySpec, spec_b: SymmetrySpec) -> None:
    """Refuse two specs that differ in more than the sizes of permuted spaces."""
    if list(spec_a.axes) != list(spec_b.axes):
        odd = sorted(set(spec_a.axes) ^ set(spec_b.axes)) or ["their order"]
        raise SpecError(
            f"match_widths: the networks have other tensors ({odd[0]}); expected one architecture, two widths"
        )
    for name, axes in spec_a.axes.items():
        first, second = ([_form(spec, axis) for axis in spec.axes[name]] for spec in (spec_a, spec_b))
        if first != second:
            raise SpecError(
                f"match_widths: {name} lies over {[str(axis) for axis in axes]} and over "
                f"{[str(axis) for axis in spec_b.axes[name]]}; expected the same spaces, of any sizes"
            )
    if dict(spec_a.within) != dict(spec_b.within) or [f.name for f in spec_a.factors] != [
        f.name for f in spec_b.factors
    ]:
        raise SpecError("match_widths: the groups differ in more than widths; expected one architecture, two widths")


def _form(spec: SymmetrySpec, axis: Axis) -> object:
    """An axis without the sizes of permuted spaces."""
    match axis:
        case Atom(space):
            return space.name if space in spec.permuted else (space.name, space.size)
        case Fixed(size, name):
            return size, name
        case Product(outer, inner):
            return "product", _form(spec, outer), _form(spec, inner)
        case Concat(parts):
            return "concat", tuple(_form(spec, part) for part in parts)
