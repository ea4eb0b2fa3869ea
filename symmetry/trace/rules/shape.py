"""Views, transpositions, slices and concatenations: elements keep their values and change their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from symmetry.trace.algebra import broadcast, same_blocks, transpose, view
from symmetry.trace.axes import AxisNode, join, new_concat, new_leaf, new_product, split_concat, split_product
from symmetry.trace.axis_pass import AxisPass, Value
from symmetry.trace.export import Node
from symmetry.trace.gauge_pass import Cell, GaugePass, GaugeValue, cut
from symmetry.trace.rules import register

Groups = list[tuple[list[int], list[int]]]


def view_groups(old: Sequence[int], new: Sequence[int]) -> Groups:
    """Which old dimensions hold the same elements as which new ones, cut as finely as the sizes allow.

    Size-1 dimensions pair with each other where they stand in line and otherwise join the group beside them.
    """
    groups: Groups = []
    i = j = 0
    while i < len(old) or j < len(new):
        mine, theirs = [], []
        if i < len(old) and j < len(new) and old[i] == new[j]:
            mine, theirs, i, j = [i], [j], i + 1, j + 1
        elif i < len(old) and old[i] == 1:
            mine, i = [i], i + 1
        elif j < len(new) and new[j] == 1:
            theirs, j = [j], j + 1
        else:
            mine, theirs, a, b = [i], [j], old[i], new[j]
            i, j = i + 1, j + 1
            while a != b:
                if a < b:
                    mine.append(i)
                    a, i = a * old[i], i + 1
                else:
                    theirs.append(j)
                    b, j = b * new[j], j + 1
        groups.append((mine, theirs))
    return groups


class View:
    """Any reshaping of elements in row-major order."""

    summary: str = "axes are cut into or joined to row-major products; scales and signs follow their elements"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value, shape = walk.value(node.args[0]), node.shapes[0] or ()
        if 0 in shape:
            return walk.fresh(shape)
        groups = view_groups([axis.size for axis in value.dims], shape)
        walk.decisions[node.name] = groups
        dims: dict[int, AxisNode] = {}
        for mine, theirs in groups:
            if mine and theirs:
                whole = new_product([value.dims[dim] for dim in mine])
                dims |= dict(zip(theirs, split_product(whole, [shape[dim] for dim in theirs]), strict=True))
                if len(mine) == len(theirs) == 1:
                    dims[theirs[0]] = value.dims[mine[0]]
            else:
                dims |= {dim: new_leaf(1) for dim in theirs}
        origin = value.origin if all(len(m) == len(t) == 1 for m, t in groups) else None
        return Value([dims[dim] for dim in range(len(shape))], origin)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        return view(walk, walk.value(node.args[0]), walk.result_dims(node), walk.axes.decisions.get(node.name, []))


class Permute:
    """Dimensions in another order."""

    summary: str = "axes change their order"

    def _places(self, node: Node, ndim: int) -> list[int]:
        if node.operation == "aten.permute.default":
            return [place % ndim for place in node.args[1]]
        places = list(range(ndim))
        if node.operation == "aten.transpose.int":
            first, second = (place % ndim for place in node.args[1:3])
            places[first], places[second] = second, first
        elif ndim == 2:
            places = [1, 0]
        return places

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value = walk.value(node.args[0])
        places = self._places(node, len(value.dims))
        origin = None if value.origin is None else (value.origin[0], tuple(value.origin[1][place] for place in places))
        return Value([value.dims[place] for place in places], origin)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value = walk.value(node.args[0])
        return transpose(value, self._places(node, len(value.dims)))


class Expand:
    """Size-1 dimensions stretched, new dimensions in front."""

    summary: str = "the value is constant along stretched axes"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value, shape = walk.value(node.args[0]), node.shapes[0] or ()
        own = [None] * (len(shape) - len(value.dims)) + list(value.dims)
        return Value(
            [
                axis if axis is not None and axis.size == size else new_leaf(size)
                for axis, size in zip(own, shape, strict=True)
            ]
        )

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        return broadcast(walk, walk.value(node.args[0]), walk.result_dims(node))


class Slice:
    """A run of consecutive places, or one place, of one dimension."""

    summary: str = "the axis becomes a concatenation of what is before, inside and behind; steps other than 1 pin it"

    def _bounds(self, node: Node, size: int) -> tuple[int, int, int] | None:
        if node.operation == "aten.select.int":
            start = int(node.args[2]) % size
            return start, start + 1, 1
        args = (*node.args[1:], *(None,) * 4)
        start = 0 if args[1] is None else int(args[1])
        stop = size if args[2] is None else int(args[2])
        start, stop = (max(0, min(size, bound + size if bound < 0 else bound)) for bound in (start, stop))
        return start, stop, 1 if args[3] is None else int(args[3])

    def _dim(self, node: Node, ndim: int) -> int:
        return (int(node.args[1]) if len(node.args) > 1 else 0) % ndim

    def axes(self, walk: AxisPass, node: Node) -> Any:
        value = walk.value(node.args[0])
        dim = self._dim(node, len(value.dims))
        axis = value.dims[dim]
        start, stop, step = self._bounds(node, axis.size) or (0, 0, 0)
        if step != 1 or stop <= start:
            return walk.without_rule(node, "takes a strided or empty slice, which has no rule")
        sizes = [size for size in (start, stop - start, axis.size - stop) if size]
        pieces = split_concat(axis, sizes)
        mine = 1 if start else 0
        walk.decisions[node.name] = (dim, pieces, mine)
        dims = list(value.dims)
        if node.operation == "aten.select.int":
            del dims[dim]
        else:
            dims[dim] = pieces[mine]
        return Value(dims)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value = walk.value(node.args[0])
        dim, pieces, mine = walk.axes.decisions[node.name]
        counts = [len(cut(piece)) for piece in pieces]
        if not same_blocks(cut(value.dims[dim]), [block for piece in pieces for block in cut(piece)]):
            walk.kill(value)
            return walk.constant(walk.result_dims(node))
        first = sum(counts[:mine])
        cells = value.cells.take(range(first, first + counts[mine]), axis=dim)
        if node.operation != "aten.select.int":
            return GaugeValue(tuple(walk.result_dims(node)), cells)
        flat = cells.take(0, axis=dim)
        result = np.empty_like(flat)
        for place in np.ndindex(flat.shape):
            cell = flat[place]
            result[place] = Cell(cell.common, cell.units[:dim] + cell.units[dim + 1 :])
        return GaugeValue(tuple(walk.result_dims(node)), result)


class Concatenation:
    """Values laid end to end along one dimension."""

    summary: str = "the axis becomes a concatenation; the other axes are joined"

    def _dim(self, node: Node, ndim: int) -> int:
        return (int(node.args[1]) if len(node.args) > 1 else int(node.kwargs.get("dim", 0))) % ndim

    def axes(self, walk: AxisPass, node: Node) -> Value:
        values = [walk.value(reference) for reference in node.args[0]]
        dim = self._dim(node, len(values[0].dims))
        dims = list(values[0].dims)
        for value in values[1:]:
            for place, axis in enumerate(value.dims):
                if place != dim:
                    join(dims[place], axis)
        dims[dim] = new_concat([value.dims[dim] for value in values])
        return Value(dims)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        values = [walk.value(reference) for reference in node.args[0]]
        dims = walk.result_dims(node)
        dim = self._dim(node, len(dims))
        if not same_blocks(cut(dims[dim]), [block for value in values for block in cut(value.dims[dim])]):
            for value in values:
                walk.kill(value)
            return walk.constant(dims)
        return GaugeValue(tuple(dims), np.concatenate([value.cells for value in values], axis=dim))


class Item:
    """One entry of a tuple."""

    summary: str = "the entry as it is"

    def axes(self, walk: AxisPass, node: Node) -> Any:
        found = walk.values[node.args[0].name]
        item = found[node.args[1]] if isinstance(found, tuple) else found
        return item if item is not None else Value([])

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        found = walk.values[node.args[0].name]
        item = found[node.args[1]] if isinstance(found, tuple) else found
        return item if item is not None else walk.constant(walk.result_dims(node))


register(
    View(), "aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.unsqueeze.default",
    "aten.squeeze.dims", "aten.squeeze.dim", "aten.squeeze.default", "aten.flatten.using_ints",
)  # fmt: skip
register(Permute(), "aten.permute.default", "aten.transpose.int", "aten.t.default")
register(Expand(), "aten.expand.default")
register(Slice(), "aten.slice.Tensor", "aten.select.int")
register(Concatenation(), "aten.cat.default")
register(Item(), "getitem")
