"""What happens to expressions when values are broadcast, added, multiplied, contracted and cut? Shared by the rules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from symmetry.trace.axes import AxisNode, root
from symmetry.trace.expressions import Expression
from symmetry.trace.gauge_pass import Cell, GaugePass, GaugeValue, Leaves, cut

__all__ = ["add", "attach", "broadcast", "contract", "multiply", "power", "reduce", "same_blocks", "transpose", "view"]


def power(walk: GaugePass, value: GaugeValue, exponent: int | Fraction) -> GaugeValue:
    """The value to a power: every expression times the exponent."""
    if walk.kind == "linear":
        return value if exponent == 1 else walk.kill(value)

    def scaled(cell: Cell) -> Cell:
        units = tuple(tuple(walk.field.scaled(e, exponent) for e in row) for row in cell.units)
        return Cell(walk.field.scaled(cell.common, exponent), units)

    return _each(value, scaled)


def _each(value: GaugeValue, change: Callable[[Cell], Cell]) -> GaugeValue:
    cells = np.empty_like(value.cells)
    for place in np.ndindex(cells.shape):
        cells[place] = change(value.cells[place])
    return GaugeValue(value.dims, cells, value.zero)


def broadcast(walk: GaugePass, value: GaugeValue, dims: Sequence[AxisNode]) -> GaugeValue:
    """The value stretched to the axes of an element-by-element result: constant along what it lacks."""
    lacking = len(dims) - len(value.dims)
    source = value.cells.reshape((1,) * lacking + value.cells.shape)
    own: list[AxisNode | None] = [None] * lacking + list(value.dims)
    stretched = [axis is None or axis.size != dim.size for axis, dim in zip(own, dims, strict=True)]
    neutral = walk.constant(dims)
    cells = neutral.cells
    for place in np.ndindex(cells.shape):
        cell = source[tuple(0 if wide else number for wide, number in zip(stretched, place, strict=True))]
        units = ((),) * lacking + cell.units
        cells[place] = Cell(
            cell.common,
            tuple(
                zero if wide else mine for wide, zero, mine in zip(stretched, cells[place].units, units, strict=True)
            ),
        )
    return GaugeValue(neutral.dims, cells, value.zero)


def add(walk: GaugePass, first: GaugeValue, second: GaugeValue, dims: Sequence[AxisNode]) -> GaugeValue:
    """A sum: both sides must carry the same factor, unless one is zero."""
    one, two = broadcast(walk, first, dims), broadcast(walk, second, dims)
    if one.zero or two.zero:
        return two if one.zero else one
    for place in np.ndindex(one.cells.shape):
        walk.equal(one.dims, place, one.cells[place], two.cells[place])
    return one


def multiply(
    walk: GaugePass, first: GaugeValue, second: GaugeValue, dims: Sequence[AxisNode], exponent: int | Fraction = 1
) -> GaugeValue:
    """A product (``exponent=-1``: a quotient): expressions add (subtract)."""
    one, two = broadcast(walk, first, dims), broadcast(walk, second, dims)
    cells = np.empty_like(one.cells)
    for place in np.ndindex(cells.shape):
        a, b, leaves = one.cells[place], two.cells[place], walk.choice(one.dims, place)
        cells[place] = Cell(
            walk.field.combine(a.common, b.common, exponent),
            tuple(
                tuple(walk.merge(leaf, x, y, exponent) for leaf, x, y in zip(row, mine, other, strict=True))
                for row, mine, other in zip(leaves, a.units, b.units, strict=True)
            ),
        )
    return GaugeValue(one.dims, cells, one.zero or (two.zero and exponent == 1))


def reduce(walk: GaugePass, value: GaugeValue, places: Sequence[int]) -> GaugeValue:
    """A sum, mean or maximum over dimensions: what is combined must carry one factor. The dimensions are dropped."""
    gone = {place % len(value.dims) for place in places}
    kept = [dim for dim in range(len(value.dims)) if dim not in gone]
    cells = np.empty([value.cells.shape[dim] for dim in kept], dtype=object)
    dims = tuple(value.dims[dim] for dim in kept)
    for place in np.ndindex(value.cells.shape):
        cell, target = value.cells[place], tuple(place[dim] for dim in kept)
        leaves = walk.choice(value.dims, place)
        for dim in gone:
            walk.zero_units(leaves[dim], cell.units[dim])
        rest = Cell(cell.common, tuple(cell.units[dim] for dim in kept))
        if cells[target] is None:
            cells[target] = rest
        else:
            walk.equal(dims, target, cells[target], rest)
    return GaugeValue(dims, cells, value.zero)


def attach(walk: GaugePass, value: GaugeValue, dims: Sequence[AxisNode], own: Sequence[int]) -> GaugeValue:
    """The value laid over ``dims``; its own dimensions go to the places ``own``, it is constant along the others."""
    neutral = walk.constant(dims)
    for place in np.ndindex(neutral.cells.shape):
        cell = value.cells[tuple(place[dim] for dim in own)]
        units = list(neutral.cells[place].units)
        for mine, dim in zip(cell.units, own, strict=True):
            units[dim] = mine
        neutral.cells[place] = Cell(cell.common, tuple(units))
    return GaugeValue(neutral.dims, neutral.cells, value.zero)


def transpose(value: GaugeValue, places: Sequence[int]) -> GaugeValue:
    """The value with its dimensions in another order."""
    moved = _each(value, lambda cell: Cell(cell.common, tuple(cell.units[place] for place in places)))
    return GaugeValue(tuple(value.dims[place] for place in places), moved.cells.transpose(places), value.zero)


def contract(
    walk: GaugePass, first: GaugeValue, first_labels: str, second: GaugeValue, second_labels: str, labels: str
) -> GaugeValue:
    """A sum of products, labelled as by ``einsum``: over a contracted leaf both differences must cancel.

    Labels in both operands and in the result are batch dimensions: their expressions add.
    """
    axes = dict(zip(first_labels, first.dims, strict=True)) | dict(zip(second_labels, second.dims, strict=True))
    summed = sorted(set(axes) - set(labels))
    counts = {label: len(cut(axis)) for label, axis in axes.items()}
    dims = tuple(axes[label] for label in labels)
    if first.zero or second.zero:
        return GaugeValue(dims, walk.constant(dims).cells, True)
    cells: Any = np.empty([counts[label] for label in labels], dtype=object)
    for place in np.ndindex(cells.shape):
        for inner in itertools.product(*(range(counts[label]) for label in summed)):
            at = dict(zip(labels, place, strict=True)) | dict(zip(summed, inner, strict=True))
            a = first.cells[tuple(at[label] for label in first_labels)]
            b = second.cells[tuple(at[label] for label in second_labels)]
            units = dict(zip(first_labels, a.units, strict=True))
            others = dict(zip(second_labels, b.units, strict=True))
            for label, row in others.items():
                leaves, mine = cut(axes[label])[at[label]], units.get(label)
                if mine is None:
                    units[label] = row
                elif label in labels:
                    units[label] = tuple(walk.merge(*item) for item in zip(leaves, mine, row, strict=True))
                else:
                    for leaf, x, y in zip(leaves, mine, row, strict=True):
                        walk.cancel(leaf, x, y)
            cell = Cell(walk.field.combine(a.common, b.common), tuple(units[label] for label in labels))
            if cells[place] is None:
                cells[place] = cell
            else:
                walk.equal(dims, place, cells[place], cell)
    return GaugeValue(dims, cells)


def view(
    walk: GaugePass, value: GaugeValue, dims: Sequence[AxisNode], groups: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> GaugeValue:
    """The value under other dimensions of the same elements.

    Args:
        walk: the second walk.
        value: the value.
        dims: the new axes.
        groups: which old dimensions hold the same elements as which new ones, both in order.
    """
    target = walk.constant(dims)
    flat = value.cells.reshape(-1)
    if not _same_layout(value.dims, dims, groups):
        # Layouts that did not nest were pinned in the first walk; nothing may scale them either.
        walk.kill(value)
        return target
    # The first walk refined both sides to the same leaves, so blocks stand in the same row-major order on both sides.
    source_places = list(np.ndindex(value.cells.shape))
    for number, place in enumerate(np.ndindex(target.cells.shape)):
        cell, old = flat[number], walk.choice(value.dims, source_places[number])
        new = walk.choice(target.dims, place)
        units: list[tuple[Expression, ...]] = [()] * len(new)
        for old_dims, new_dims in groups:
            have = [
                (leaf, e)
                for dim in old_dims
                for leaf, e in zip(old[dim], cell.units[dim], strict=True)
                if leaf.size > 1
            ]
            for dim in new_dims:
                row = []
                for leaf in new[dim]:
                    row.append(have.pop(0)[1] if leaf.size > 1 else {})
                units[dim] = tuple(row)
        target.cells[place] = Cell(cell.common, tuple(units))
    return GaugeValue(tuple(root(dim) for dim in dims), target.cells, value.zero)


def same_blocks(first: Sequence[Leaves], second: Sequence[Leaves]) -> bool:
    """Whether two cuts have the same blocks over the same leaves, leaves of size 1 apart."""

    def large(blocks: Sequence[Leaves]) -> list[Leaves]:
        return [tuple(leaf for leaf in block if leaf.size > 1) for block in blocks]

    return large(first) == large(second)


def _same_layout(
    old: Sequence[AxisNode], new: Sequence[AxisNode], groups: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> bool:
    def joint(dims: Sequence[AxisNode], places: Sequence[int]) -> list[Leaves]:
        return [sum(choice, ()) for choice in itertools.product(*(cut(dims[place]) for place in places))]

    return all(same_blocks(joint(old, mine), joint(new, theirs)) for mine, theirs in groups)
