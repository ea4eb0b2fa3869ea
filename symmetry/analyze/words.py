"""How is a space's group said in plain words?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from symmetry.analyze.places import Place
from symmetry.spec import LinearFactor, SymmetrySpec

__all__ = ["describe", "listed", "noun", "short_names", "unit_names"]


def describe(
    spec: SymmetrySpec, space: str, places: Mapping[str, Sequence[Place]], inside: Sequence[str], found: str = ""
) -> str:
    """The group of one space in plain words, with what lies inside each of its units, and then what was found."""
    factor = next((factor for factor in spec.linear if factor.space == space), None)
    outer = spec.within.get(space, ())
    size = spec.sizes[space]
    if factor is not None:
        what = _matrix(factor, places[space])
        if outer:
            what += ", one for each " + " and ".join(noun(spec, name)[:-1] for name in outer)
    else:
        what = f"{size} {noun(spec, space)}, interchangeable" if inside else f"{size} interchangeable units"
        what = what if size > 1 else f"1 {noun(spec, space)[:-1]}"
        if outer:
            what += " inside each " + " and ".join(noun(spec, name)[:-1] for name in outer)
    scales, signs = (sum(f.kind == kind and f.space == space for f in spec.factors) for kind in ("scale", "sign"))
    if scales:
        what += ", each with a free positive scale" if scales == 1 else f", each with {scales} free positive scales"
    if signs:
        what += (" and" if scales else ", each with") + (" a free sign" if signs == 1 else f" {signs} free signs")
    activations = spec.activations.get(space, ())
    if activations:
        what += f" ({', '.join(activations)})"
    inner = []
    for name in inside:
        factor = next((f for f in spec.linear if f.space == name), None)
        count = f"{spec.sizes[name]} interchangeable units" if spec.sizes[name] > 1 else "1 unit"
        inner.append(count if factor is None else _matrix(factor, places[name]))
    if inner:
        what += f"; inside each {noun(spec, space)[:-1]} " + ", and ".join(inner)
    return what + found


def noun(spec: SymmetrySpec, space: str) -> str:
    """What the units of a space are called: heads have matrices inside, groups have units."""
    inner = [name for name, outer in spec.within.items() if space in outer]
    if not inner:
        return "units"
    return "heads" if {factor.space for factor in spec.linear} & set(inner) else "groups"


def _matrix(factor: LinearFactor, places: Sequence[Place]) -> str:
    kind = "invertible" if factor.kind == "linear" else "orthogonal"
    at = {place.key: place for place in places}
    slots = [(slot, at[key]) for slot in factor.slots if (key := (slot.tensor, slot.block, slot.leaf)) in at]
    slots = [(slot, place) for slot, place in slots if place.weight] or slots
    if factor.kind == "orthogonal":
        return f"any orthogonal {factor.size}x{factor.size} matrix on {listed(_labels(p for _, p in slots))}"
    names = _labels(place for _, place in slots)
    sides = [
        listed([name for name, (slot, _) in zip(names, slots, strict=True) if slot.inverse is side])
        for side in (False, True)
    ]
    return f"any {kind} {factor.size}x{factor.size} matrix between " + " and ".join(side for side in sides if side)


def _labels(places: Iterable[Place]) -> list[str]:
    """Short names of tensors; of a fused tensor, which part."""
    chosen = list(places)
    short = short_names([place.tensor for place in chosen])
    parts: dict[str, set[int]] = {}
    for place in chosen:
        parts.setdefault(place.tensor, set()).add(place.number)
    return [
        short[place.tensor] + (f" (part {place.number + 1})" if len(parts[place.tensor]) > 1 or place.number else "")
        for place in chosen
    ]


def short_names(tensors: Sequence[str]) -> dict[str, str]:
    """Names without ``.weight`` and without the modules that all of them are in."""
    stems = {name: name.removesuffix(".weight") for name in tensors}
    split = [stem.split(".") for stem in stems.values()]
    common = 0
    while all(len(parts) > common + 1 for parts in split) and len({tuple(parts[: common + 1]) for parts in split}) == 1:
        common += 1
    # A bare number is no name.
    while common and any(parts[common].isdigit() for parts in split):
        common -= 1
    return {name: ".".join(stem.split(".")[common:]) for name, stem in stems.items()}


def listed(items: Sequence[str], most: int = 4) -> str:
    """Items with commas and ``and``; of many, the first and how many more."""
    unique = list(dict.fromkeys(items))
    if len(unique) > most:
        return ", ".join(unique[: most - 1]) + f" and {len(unique) - most + 1} more"
    return " and ".join([", ".join(unique[:-1]), unique[-1]] if len(unique) > 1 else unique)


def unit_names(units: Sequence[int | tuple[int, ...]], most: int = 8) -> str:
    """Numbers of units; inside a wreath the outer unit stands first: ``3/7`` is unit 7 of head 3."""
    names = ["/".join(map(str, unit)) if isinstance(unit, tuple) else str(unit) for unit in units[:most]]
    return ", ".join(names) + (", ..." if len(units) > most else "")


def pattern(text: str) -> str:
    """A text with every number replaced: repeated layers have one pattern."""
    return re.sub(r"\d+", "*", text)
