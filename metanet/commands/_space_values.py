"""Which spaces of a network became how wide, which units went, and what stands in for them? As plain values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metanet.morph import Edit, Keep, Morph
    from metanet.morph.rebuilding import Rebuilding
    from symmetry import SymmetrySpec

__all__ = ["space_values", "unit_values"]

# Rows of the page; what is beyond them is counted.
MOST_UNITS, MOST_SOURCES, MOST_SPACES = 512, 3, 60


def space_values(before: SymmetrySpec, morph: Morph) -> list[dict[str, Any]]:
    """Every space of either network in the order of the data, with its size in both.

    Repeated blocks of one shape are told once where there are many spaces.
    """
    from metanet.morph import ModuleEdit

    old, new = _Layout(before), _Layout(morph.spec)
    sizes = _resized(before, morph)
    if not any(isinstance(edit, ModuleEdit) for edit in morph.plan):
        # The same spaces. Their names in the new network may be others: a single head is no space.
        names, after = list(old.names), sizes
    else:
        after = {
            name: size for name, size in new.sizes.items() if new.kind(name) == old.kind(name) or name not in sizes
        }
        names, place = list(old.names), 0
        for name in new.names:
            if name in names:
                place = names.index(name) + 1
            else:
                names.insert(place, name)
                place += 1
    rows: list[dict[str, Any]] = []
    for name in names:
        layout = old if name in old.names else new
        inside = [other for other in names if layout.first[name] <= layout.first.get(other, -1) <= layout.last[name]]
        rows.append(
            {
                "name": name,
                "before": old.sizes.get(name),
                "after": after.get(name),
                "kind": layout.kind(name),
                "within": next(iter(layout.spec.within.get(name, ())), None),
                "until": inside[-1] if inside else name,
                "last": None,
                "times": 1,
            }
        )
    return _repeated(rows) if len(rows) > MOST_SPACES else rows


def _resized(before: SymmetrySpec, morph: Morph) -> dict[str, int]:
    """The sizes of the old spaces after all edits of spaces."""
    sizes = {space.name: space.size for space in before.spaces}
    for edit in morph.plan:
        sizes |= _size(edit)
    return sizes


def _size(edit: Edit) -> dict[str, int]:
    """What an edit makes of the size of its space."""
    from metanet.morph import Keep, Merge, Widen, Written

    if isinstance(edit, Written):
        return {edit.space: edit.size}
    if isinstance(edit, Merge):
        return {edit.space: len(edit.groups)}
    if isinstance(edit, Keep | Widen):
        return {edit.space: len(next(_rows(edit.units if isinstance(edit, Keep) else edit.source)))}
    return {}


class _Layout:
    """The spaces of one network, in the order in which they are first written."""

    def __init__(self, spec: SymmetrySpec) -> None:
        from symmetry import Atom
        from symmetry.analyze import known_roles

        self.spec = spec
        self.sizes = {space.name: space.size for space in spec.spaces}
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.writers: dict[str, set[str]] = {}
        roles = known_roles(spec)
        for name in sorted(spec.tensors, key=lambda name: spec.tensors[name].order):
            info = spec.tensors[name]
            for axis, role in zip(spec.axes[name], roles[name], strict=True):
                for leaf in axis.leaves():
                    if not isinstance(leaf, Atom):
                        continue
                    self.first.setdefault(leaf.space.name, info.order)
                    self.last[leaf.space.name] = info.order
                    reads = any(size > 1 and other == "in" for size, other in zip(info.shape, roles[name], strict=True))
                    if role == "out" and reads:
                        self.writers.setdefault(leaf.space.name, set()).add(name.rpartition(".")[0])
        outer = {space: spec.within.get(space, ()) for space in self.sizes}
        self.names = sorted(self.first, key=lambda name: (self.first[name], len(outer[name])))

    def kind(self, name: str) -> str:
        """``heads``, around others; ``matrix``, where matrices act; ``stream``, to which modules add; or ``units``."""
        if any(name in outer for outer in self.spec.within.values()):
            return "heads"
        if any(factor.space == name for factor in self.spec.linear):
            return "matrix"
        return "stream" if len(self.writers.get(name, ())) > 1 else "units"


def _repeated(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that differ by the numbers in their names only, told once, at the place of the first."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    stands: dict[str, str] = {}
    for row in rows:
        key = (re.sub(r"\d+", "#", row["name"]), row["before"], row["after"], row["kind"])
        first = kept.setdefault(key, row)
        stands[row["name"]] = first["name"]
        if first is not row:
            kept[key] = first | {"times": first["times"] + 1, "last": row["name"]}
    return [row | {"until": stands[row["until"]], "within": stands.get(row["within"])} for row in kept.values()]


def unit_values(before: SymmetrySpec, morph: Morph) -> list[dict[str, Any]]:
    """For each edit that dropped units which went, which stayed, and what those that went were rebuilt from."""
    from metanet.morph import Keep, Merge

    found = []
    sizes = {space.name: space.size for space in before.spaces}
    for record in morph.records:
        for edit in record.edits:
            if isinstance(edit, Merge):
                groups = [" and ".join(map(str, group)) for group in edit.groups if len(group) > 1]
                told = {"merged": groups[:MOST_UNITS], "more": max(len(groups) - MOST_UNITS, 0)}
                found.append({"space": edit.space, "before": sizes.get(edit.space), "kept": len(edit.groups), **told})
            elif isinstance(edit, Keep):
                found.append(_dropped(edit, sizes.get(edit.space), record.rebuilt))
            sizes |= _size(edit)
    return found


def _dropped(edit: Keep, size: int | None, rebuilt: Sequence[Rebuilding]) -> dict[str, Any]:
    # Nested lists name units inside heads or groups, one list for each.
    rows = list(_rows(edit.units))
    gone = [ranges(sorted(set(range(size or 0)) - set(row))) for row in rows]
    if len(set(gone)) > 1:
        told = "; ".join(f"{number}: {text}" for number, text in enumerate(gone))
    else:
        told = gone[0]
    sources = _sources(edit.space, rebuilt)
    return {
        "space": edit.space,
        "before": size,
        "kept": len(rows[0]),
        "gone": told,
        "rebuilt": sources[:MOST_UNITS],
        "more": max(len(sources) - MOST_UNITS, 0),
        "readers": len({each.reader for each in rebuilt if _touches(each, edit.space)}),
    }


def _rows(units: Sequence[Any]) -> Iterator[Sequence[int]]:
    if isinstance(units[0], Sequence):
        for row in units:
            yield from _rows(row)
    else:
        yield units


def _touches(rebuilt: Rebuilding, space: str) -> bool:
    from symmetry import Atom

    return any(isinstance(leaf, Atom) and leaf.space.name == space for leaf in rebuilt.axis.leaves())


def _sources(space: str, rebuilt: Sequence[Rebuilding]) -> list[dict[str, Any]]:
    """For each dropped unit the units that add most to what it is rebuilt from, over all readers of the space."""
    coefficients: dict[str, dict[str, list[float]]] = {}
    parts: dict[str, dict[str, float]] = {}
    for each in rebuilt:
        if not _touches(each, space):
            continue
        for row, place in enumerate(each.dropped.tolist()):
            units = each.units(place)
            if space not in dict(units):
                continue  # another part of a concatenation
            told, mine = coefficients.setdefault(_unit(units), {}), parts.setdefault(_unit(units), {})
            for column, source in enumerate(each.sources[row].tolist()):
                name, value = _unit(each.units(source)), float(each.coefficients[row, column])
                told.setdefault(name, []).append(value)
                mine[name] = mine.get(name, 0.0) + value * float(each.spreads[row, column])
    found = []
    for unit, told in coefficients.items():
        best = sorted(told, key=lambda name: -abs(parts[unit][name]))[:MOST_SOURCES]
        means = [{"unit": name, "coefficient": sum(told[name]) / len(told[name])} for name in best]
        found.append({"unit": unit, "sources": means})
    return found


def _unit(units: Sequence[tuple[str, int]]) -> str:
    """A unit's number, or that of its head and its own."""
    return ".".join(str(index) for _, index in units)


def ranges(numbers: Sequence[int]) -> str:
    """Numbers in a few words.

    >>> ranges([1, 2, 3, 7, 9, 10])
    '1 to 3, 7, 9, 10'
    """
    parts = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        inside = [number for _, number in run]
        parts += [f"{inside[0]} to {inside[-1]}"] if len(inside) > 2 else [str(number) for number in inside]
    return ", ".join(parts)
