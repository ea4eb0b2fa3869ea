"""What does a network's symmetry look like in plain words, and which of its units are unread, constant or twins?"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from symmetry.analyze.matrices import MatrixReport, matrix_report
from symmetry.analyze.places import Place, find_places, known_roles
from symmetry.analyze.report import SpaceReport, SymmetryReport, describe_conditions
from symmetry.analyze.units import dead_units, twin_units
from symmetry.analyze.words import describe, listed, unit_names
from symmetry.spec import SymmetrySpec

__all__ = ["MatrixReport", "SpaceReport", "SymmetryReport", "analyze", "describe_conditions", "known_roles"]


def analyze(spec: SymmetrySpec, state: Mapping[str, Tensor]) -> SymmetryReport:
    """Describe the group of a network and the units that it does not use fully.

    Args:
        spec: the spec of the architecture.
        state: the network.

    Raises:
        SpecError: if the state has other names or shapes.
    """
    spec.check(state)
    places = find_places(spec)
    spaces = {space.name for space in spec.spaces}
    others = [
        f"{factor.kind} {factor.name}: {factor.size if factor.space else 1} free, on "
        + listed([slot.tensor for slot in factor.slots], most=6)
        for factor in spec.factors
        if factor.space not in spaces
    ]
    return SymmetryReport(
        spec.permutation_order,
        spec.sign_bits,
        spec.scale_dimension,
        spec.linear_dimension,
        spec.orthogonal_dimension,
        sum(math.prod(info.shape) for info in spec.tensors.values() if info.tied_to is None and not info.buffer),
        tuple(_space(spec, state, space.name, places) for space in spec.spaces),
        tuple(others),
        spec.pinned,
    )


def _space(
    spec: SymmetrySpec, state: Mapping[str, Tensor], space: str, places: Mapping[str, list[Place]]
) -> SpaceReport:
    mine, size, copies = places[space], spec.sizes[space], spec.copies(space)
    factor = next((factor for factor in spec.linear if factor.space == space), None)
    inside = tuple(item.name for item in spec.spaces if space in spec.within.get(item.name, ()))
    unread = dead_units(spec, state, space, mine, "in") if factor is None else ()
    constant = dead_units(spec, state, space, mine, "out") if factor is None else ()
    twins = twin_units(spec, state, space, mine) if factor is None else ()
    found = "".join(
        f"; {len(units)} {label} ({unit_names(units)})"
        for units, label in ((unread, "unread"), (constant, "constant"))
        if units
    )
    if twins:
        shown = "; ".join(" = ".join(unit_names(group).split(", ")) for group in twins[:4])
        found += f"; {len(twins)} group{'s' * (len(twins) > 1)} of twins ({shown}{'; ...' if len(twins) > 4 else ''})"
    return SpaceReport(
        name=space,
        size=size,
        within=spec.within.get(space, ()),
        inside=inside,
        group="permutation" if factor is None else factor.kind,
        copies=copies,
        permutations=math.factorial(size) ** copies if factor is None else 1,
        dimension=0 if factor is None else factor.dimension * copies,
        scales=sum(f.kind == "scale" and f.space == space for f in spec.factors),
        signs=sum(f.kind == "sign" and f.space == space for f in spec.factors),
        activations=tuple(spec.activations.get(space, ())),
        writes=_weights(mine, "out"),
        reads=_weights(mine, "in"),
        unread=unread,
        constant=constant,
        twins=twins,
        matrix=None if factor is None else matrix_report(spec, state, factor, mine),
        gauge=None,
        words=describe(spec, space, places, inside, found),
    )


def _weights(places: list[Place], role: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(place.tensor for place in places if place.weight and place.role in (role, "unit")))
