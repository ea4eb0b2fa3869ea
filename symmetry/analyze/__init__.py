"""What does a network's symmetry look like in plain words, and which of its units are unread, constant or twins?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from symmetry.analyze.matrices import MatrixReport, matrix_report
from symmetry.analyze.places import Place, find_places, known_roles
from symmetry.analyze.report import SpaceReport, SymmetryReport, describe_conditions
from symmetry.analyze.units import Unit, dead_units, twin_units
from symmetry.analyze.words import describe, listed, unit_names
from symmetry.frames.parts import make_parts
from symmetry.frames.scales import canonical_scales
from symmetry.spec import SymmetrySpec

__all__ = [
    "MatrixReport",
    "SpaceReport",
    "SymmetryReport",
    "analyze",
    "describe_conditions",
    "known_roles",
    "unit_names",
]


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
    broken = tuple(name for name, value in state.items() if not _finite(value))
    gauges = {} if broken else _gauges(spec, state)
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
        tuple(_space(spec, None if broken else state, space.name, places, gauges) for space in spec.spaces),
        tuple(others),
        spec.pinned,
        broken,
    )


def _finite(values: Tensor) -> bool:
    # A finite sum has finite terms, and a sum is ten times as fast; one that overflows says nothing.
    return math.isfinite(float(values.sum())) or bool(values.isfinite().all())


def _gauges(spec: SymmetrySpec, state: Mapping[str, Tensor]) -> dict[str, float]:
    """By space: root mean square of the logarithms of the scalings that lead to the canonical gauge."""
    if not any(factor.kind == "scale" for factor in spec.factors):
        return {}
    small = _scaled_part(spec)
    element = canonical_scales(small, make_parts(small, state), "unit")
    found: dict[str, list[Tensor]] = {}
    for factor in spec.factors:
        if factor.kind == "scale" and factor.space is not None:
            found.setdefault(factor.space, []).append(element[factor.name].flatten())
    return {space: float(torch.cat(logs).square().mean().sqrt()) for space, logs in found.items()}


def _scaled_part(spec: SymmetrySpec) -> SymmetrySpec:
    """The spec of the tensors that scalings touch and of those that share a space of matrices with one of them.

    The others have no say in the gauge, and in a transformer they are nearly all of the weights.
    """
    kept = {slot.tensor for factor in spec.factors if factor.kind == "scale" for slot in factor.slots}
    joined = [{slot.tensor for slot in factor.slots} for factor in spec.linear if factor.kind == "linear"]
    while True:
        grown = kept.union(*(tensors for tensors in joined if tensors & kept))
        if grown == kept:
            break
        kept = grown
    names = [name for name in spec.tensors if name in kept]
    return replace(
        spec,
        axes={name: spec.axes[name] for name in names},
        tensors={name: spec.tensors[name] for name in names},
        factors=tuple(
            replace(factor, slots=tuple(slot for slot in factor.slots if slot.tensor in kept))
            for factor in spec.factors
        ),
        linear=tuple(
            replace(factor, slots=tuple(slot for slot in factor.slots if slot.tensor in kept)) for factor in spec.linear
        ),
    )


def _space(
    spec: SymmetrySpec,
    state: Mapping[str, Tensor] | None,
    space: str,
    places: Mapping[str, list[Place]],
    gauges: Mapping[str, float],
) -> SpaceReport:
    mine, size, copies = places[space], spec.sizes[space], spec.copies(space)
    factor = next((factor for factor in spec.linear if factor.space == space), None)
    inside = tuple(item.name for item in spec.spaces if space in spec.within.get(item.name, ()))
    unread: tuple[Unit, ...] = ()
    constant: tuple[Unit, ...] = ()
    twins: tuple[tuple[Unit, ...], ...] = ()
    if factor is None and state is not None:
        unread, constant = (dead_units(spec, state, space, mine, role) for role in ("in", "out"))
        twins = twin_units(spec, state, space, mine)
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
        matrix=None if factor is None or state is None else matrix_report(spec, state, factor, mine),
        gauge=gauges.get(space),
        words=describe(spec, space, places, inside, found),
    )


def _weights(places: list[Place], role: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(place.tensor for place in places if place.weight and place.role in (role, "unit")))
