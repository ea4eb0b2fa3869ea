"""Views, transpositions, slices and concatenations: elements keep their values and change their places."""

from __future__ import annotations

from typing import Any

import numpy as np

from symmetry.trace.algebra import broadcast, same_blocks, transpose, view
from symmetry.trace.axes import AxisNode, join, new_concat, new_leaf, new_product, split_concat, split_product
from symmetry.trace.axis_pass import AxisPass, Value
from symmetry.trace.export import Node
from symmetry.trace.gauge_pass import Cell, GaugePass, GaugeValue, cut
from symmetry.trace.rewrite import permuted_places, view_groups
from symmetry.trace.rules import register


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
        # Where no axis is cut or joined, it is still the tensor, perhaps with new axes of size 1.
        uncut = all(len(mine) == len(theirs) == 1 or not mine for mine, theirs in groups)
        origins = {theirs[0]: mine[0] for mine, theirs in groups if mine and theirs}
        places = [origins.get(dim) for dim in range(len(shape))]
        return Value([dims[dim] for dim in range(len(shape))], value.placed(places) if uncut else None, value.part)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        return view(walk, walk.value(node.args[0]), walk.result_dims(node), walk.axes.decisions.get(node.name, []))


class Permute:
    """Dimensions in another order."""

    summary: str = "axes change their order"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value = walk.value(node.args[0])
        places = permuted_places(node, len(value.dims))
        return Value([value.dims[place] for place in places], value.placed(places), value.part)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value = walk.value(node.args[0])
        return transpose(value, permuted_places(node, len(value.dims)))


class Expand:
    """Size-1 dimensions stretched, new dimensions in front."""

    summary: str = "the value is constant along stretched axes"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value, shape = walk.value(node.args[0]), node.shapes[0] or ()
        new = len(shape) - len(value.dims)
        kept = [dim >= new and value.dims[dim - new].size == size for dim, size in enumerate(shape)]
        places = [dim - new if keep else None for dim, keep in enumerate(kept)]
        dims = [value.dims[place] if place is not None else new_leaf(shape[dim]) for dim, place in enumerate(places)]
        return Value(dims, value.placed(places), value.part)

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
        dims, places = list(value.dims), list(range(len(value.dims)))
        if node.operation == "aten.select.int":
            del dims[dim], places[dim]
        else:
            dims[dim] = pieces[mine]
        return Value(dims, value.placed(places), value.part or len(pieces) > 1)

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
            return GaugeValue(tuple(walk.result_dims(node)), cells, value.zero)
        return GaugeValue(tuple(walk.result_dims(node)), _dropped(cells.take(0, axis=dim), dim), value.zero)


class Split:
    """One dimension cut into consecutive parts."""

    summary: str = "the axis becomes a concatenation of the parts"

    def _sizes(self, node: Node, dim: int) -> list[int]:
        if node.operation == "aten.unbind.int":
            return [1] * len(node.shapes)
        return [(shape or ())[dim] for shape in node.shapes]

    def _dim(self, node: Node, ndim: int) -> int:
        place = 1 if node.operation == "aten.unbind.int" else 2
        given = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
        return int(given) % ndim

    def axes(self, walk: AxisPass, node: Node) -> tuple[Value | None, ...] | Value:
        value = walk.value(node.args[0])
        dim = self._dim(node, len(value.dims))
        sizes = self._sizes(node, dim)
        if 0 in sizes:
            return walk.without_rule(node, "makes an empty part, which has no rule")
        pieces = split_concat(value.dims[dim], sizes)
        walk.decisions[node.name] = (dim, pieces)
        gone = node.operation == "aten.unbind.int"
        places = [place for place in range(len(value.dims)) if not gone or place != dim]
        return tuple(
            Value(
                [*value.dims[:dim], *([] if gone else [piece]), *value.dims[dim + 1 :]],
                value.placed(places),
                value.part or len(pieces) > 1,
            )
            for piece in pieces
        )

    def gauge(self, walk: GaugePass, node: Node) -> tuple[GaugeValue | None, ...]:
        value = walk.value(node.args[0])
        dim, pieces = walk.axes.decisions[node.name]
        made = walk.axes.values[node.name]
        dims = [tuple(item.dims) for item in made if item is not None] if isinstance(made, tuple) else []
        if not same_blocks(cut(value.dims[dim]), [block for piece in pieces for block in cut(piece)]):
            walk.kill(value)
            return tuple(walk.constant(axes) for axes in dims)
        found, first = [], 0
        for piece, axes in zip(pieces, dims, strict=True):
            count = len(cut(piece))
            cells = value.cells.take(range(first, first + count), axis=dim)
            first += count
            if len(axes) < len(value.dims):
                cells = _dropped(cells.take(0, axis=dim), dim)
            found.append(GaugeValue(axes, cells, value.zero))
        return tuple(found)


def _dropped(cells: Any, dim: int) -> Any:
    """The cells without the expressions of one dimension."""
    result = np.empty_like(cells)
    for place in np.ndindex(cells.shape):
        result[place] = Cell(cells[place].common, cells[place].units[:dim] + cells[place].units[dim + 1 :])
    return result


class Repeat:
    """A value repeated end to end along dimensions."""

    summary: str = "the axis becomes copies x axis; the value is constant along the copies"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value, times = walk.value(node.args[0]), [int(number) for number in node.args[1]]
        if 0 in times:
            return walk.fresh(node.shapes[0])
        own = [new_leaf(1) for _ in range(len(times) - len(value.dims))] + value.dims
        return Value(
            [
                axis if number == 1 else new_product([new_leaf(number), axis]) if axis.size > 1 else new_leaf(number)
                for axis, number in zip(own, times, strict=True)
            ]
        )

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value, dims = walk.value(node.args[0]), walk.result_dims(node)
        lacking = len(dims) - len(value.dims)
        neutral = walk.constant(dims)
        source = value.cells.reshape((1,) * lacking + value.cells.shape)
        for place in np.ndindex(neutral.cells.shape):
            at = tuple(0 if size == 1 else spot for size, spot in zip(source.shape, place, strict=True))
            cell, blank = source[at], neutral.cells[place]
            units = []
            for dim, empty in enumerate(blank.units):
                mine = cell.units[dim - lacking] if dim >= lacking else ()
                # The copies are the outermost leaf; what follows is the axis itself.
                keep = mine if len(mine) <= len(empty) and value_size(value, dim - lacking) > 1 else ()
                units.append((*empty[: len(empty) - len(keep)], *keep))
            neutral.cells[place] = Cell(cell.common, tuple(units))
        return GaugeValue(neutral.dims, neutral.cells, value.zero)


def value_size(value: GaugeValue, dim: int) -> int:
    """Length of a dimension; 1 for one that the value lacks."""
    return value.dims[dim].size if dim >= 0 else 1


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
        cells = np.concatenate([value.cells for value in values], axis=dim)
        return GaugeValue(tuple(dims), cells, all(value.zero for value in values))


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
register(Split(), "aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.unbind.int")
register(Repeat(), "aten.repeat.default")
register(Concatenation(), "aten.cat.default")
register(Item(), "getitem")
