"""In which order do a network's units stand in its canonical form?

Units are sorted by features that do not depend on their numbering (:mod:`symmetry.frames.colours`). Where two units
have the same features, one of them is singled out and the features are refined again (McKay and Piperno 2014), so that
ties in several spaces are broken consistently. Units with equal weights throughout need no breaking: any order of them
gives the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from symmetry.elements import GroupElement
from symmetry.frames.colours import classes, refine
from symmetry.frames.parts import Part
from symmetry.spec import SymmetrySpec

__all__ = ["canonical_permutations"]

MOST_MARKS = 64


def canonical_permutations(spec: SymmetrySpec, parts: Sequence[Part], tolerance: float) -> dict[str, Tensor]:
    """Permutations of all spaces that sort a state's units canonically; scales and signs must be canonical already.

    Args:
        spec: the spec.
        parts: the state's parts.
        tolerance: units whose features differ by less are alike.
    """
    if not spec.permuted:
        return {}
    marks = {space.name: torch.zeros(spec.array_shape(space.name), dtype=torch.float64) for space in spec.permuted}
    for number in range(MOST_MARKS + 1):
        features = refine(spec, parts, marks, tolerance=tolerance)
        labels = {name: classes(value, tolerance) for name, value in features.items()}
        tie = _first_tie(spec, parts, labels, tolerance) if number < MOST_MARKS else None
        if tie is None:
            break
        space, place = tie
        marks[space].view(-1)[place] = 1.0 + number / MOST_MARKS
    element = spec.identity()
    found = dict(element.permutations)
    for name in sorted(found, key=lambda space: len(spec.within.get(space, ()))):
        order = labels[name].argsort(stable=True, dim=-1)
        # The units inside are sorted where they are now; their outer units have new places by then.
        found[name] = GroupElement(spec, found, element.log_scales, element.flips).carry(name, order)
    return found


def _first_tie(
    spec: SymmetrySpec, parts: Sequence[Part], labels: dict[str, Tensor], tolerance: float
) -> tuple[str, int] | None:
    """A unit that looks like another one of its space but is not interchangeable with it alone: (space, flat place)."""
    outers = {outer for within in spec.within.values() for outer in within}
    for name in sorted(labels, key=lambda space: len(spec.within.get(space, ()))):
        found = labels[name]
        rows = found.reshape(-1, found.shape[-1])
        ordered = rows.sort(-1).values
        tied = [ordered[k, 1:][ordered[k].diff() == 0].unique() for k in range(len(ordered))]
        for label in torch.cat(tied).unique().tolist():
            copy = next(k for k, some in enumerate(tied) if label in some)
            members = (rows[copy] == label).nonzero().flatten()
            simple = name not in outers and not spec.within.get(name)
            if not (simple and _twins(parts, name, members, tolerance)):
                return name, copy * found.shape[-1] + int(members[0])
    return None


def _twins(parts: Sequence[Part], space: str, members: Tensor, tolerance: float) -> bool:
    """Whether all weights of some units are equal, so that exchanging them changes nothing."""
    for part in parts:
        places = [dim for dim, name in enumerate(part.names) if name == space]
        if len(places) > 1:
            return False
        for dim in places:
            mine = part.values.index_select(dim, members)
            if float((mine - mine.narrow(dim, 0, 1)).abs().max()) > tolerance * float(part.values.abs().max()):
                return False
    return True
