"""Second walk over the graph: which scalings, signs and matrices of the parameters leave the outputs alone?

Every block of a value carries one expression U (the factor common to the whole block) and, for each axis leaf, one
expression V (how much each unit differs from unit 0), linear in the parameters' own variables. Operations combine them
and emit rows that must be zero; the group is the null space (over the rationals for log-scales, over GF(2) for signs).
Splitting U from V keeps factors that survive only when common to a whole space, such as the sign of a residual stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as default
from fractions import Fraction
from typing import Any

import numpy as np

from symmetry.errors import TraceError
from symmetry.trace.axes import AxisNode, root
from symmetry.trace.axis_pass import AxisPass, references
from symmetry.trace.export import Node, Ref
from symmetry.trace.expressions import Expression, Field, Variable
from symmetry.trace.rules import rule_for
from symmetry.trace.sines import virtual

__all__ = ["Cell", "GaugePass", "GaugeValue", "cut"]

Leaves = tuple[AxisNode, ...]


def cut(node: AxisNode, ones: bool = False) -> list[Leaves]:
    """The concatenation-free blocks of a frozen axis, each as its leaves.

    Args:
        node: the axis.
        ones: whether leaves of size 1 are listed: a spec counts them, but nothing differs along them.
    """
    node = root(node)
    if node.kind == "leaf":
        return [(node,)] if ones or node.size > 1 else [()]
    if node.kind == "concat":
        return [block for child in node.children for block in cut(child, ones)]
    return [sum(choice, ()) for choice in itertools.product(*(cut(child, ones) for child in node.children))]


@dataclass(frozen=True, slots=True)
class Cell:
    """One block of a value: the common factor and, per dimension and leaf, the difference from unit 0."""

    common: Expression
    units: tuple[tuple[Expression, ...], ...]


@dataclass(frozen=True, slots=True)
class GaugeValue:
    """A value in the second walk.

    Args:
        dims: its axes, frozen.
        cells: array of :class:`Cell`, one array dimension per axis, one entry per block.
        zero: whether the value is zero everywhere (an initial state): it may carry any factor.
    """

    dims: tuple[AxisNode, ...]
    cells: Any  # an object array; numpy cannot say of what
    zero: bool = False


@dataclass(slots=True)
class GaugePass:
    """Walks the graph with the axes frozen, over one field.

    Args:
        axes: the finished first walk.
        field: rationals for log-scales, GF(2) for signs.
        frozen_buffers: whether buffers keep their values (they are still permuted).
        kind: ``scale``, ``sign`` or ``linear``: what is asked.
        sines: for the outputs of sines, the bias that half a period may be added to; they get a variable for that.

    What it means that two factors are equal, cancel or multiply is said by :meth:`same`, :meth:`cancel` and
    :meth:`merge`; :class:`LinearPass` gives them another meaning, and runs the same rules.
    """

    axes: AxisPass
    field: Field
    frozen_buffers: bool = False
    kind: str = ""
    sines: dict[str, str] = default(default_factory=dict)
    values: dict[str, GaugeValue | tuple[GaugeValue | None, ...]] = default(default_factory=dict)
    common_rows: list[Expression] = default(default_factory=list)
    unit_rows: dict[AxisNode, list[Expression]] = default(default_factory=dict)
    common_variables: list[Variable] = default(default_factory=list)
    unit_variables: dict[AxisNode, list[Variable]] = default(default_factory=dict)

    def __post_init__(self) -> None:
        self.kind = self.kind or self.field.kind

    def run(self) -> None:
        """Walk every node once and collect all rows."""
        graph = self.axes.graph
        made: dict[str, GaugeValue] = {}
        for name, tensor in graph.tensors.items():
            # Tied weights have a placeholder for each of their names, and not every one is read.
            if tensor not in made:
                made[tensor] = self._variables(tensor, self._uses(tensor) > 0)
            self.values[name] = made[tensor]
        for name in itertools.chain(graph.inputs, graph.constants):
            neutral = self.constant(self.axes.value(Ref(name)).dims)
            self.values[name] = replace(neutral, zero=name in graph.zeros)
        for node in graph.nodes:
            rule = rule_for(node.operation)
            if rule is None or node.name in self.axes.ruleless:
                self.values[node.name] = self._without_rule(node)
            else:
                self.values[node.name] = rule.gauge(self, node)
        for reference in graph.outputs:
            found = self.values[reference.name]
            for item in found if isinstance(found, tuple) else (found,):
                if item is not None:
                    self.kill(item)

    def _variables(self, tensor: str, used: bool) -> GaugeValue:
        """One variable for the whole of each block, and one per block and leaf."""
        dims = tuple(self.axes.tensors[tensor])
        frozen = self.frozen_buffers and tensor in self.axes.graph.buffers
        if not used or frozen or tensor not in self.axes.floating:
            return self.constant(dims)
        cells = self.constant(dims).cells
        for number, place in enumerate(np.ndindex(cells.shape)):
            common: Expression = {Variable(tensor, number): Fraction(1)}
            self.common_variables.append(Variable(tensor, number))
            units: list[tuple[Expression, ...]] = []
            position = 0
            for dim, spot in zip(dims, place, strict=True):
                row = []
                for leaf in cut(dim, ones=True)[spot]:
                    if leaf.size > 1:
                        variable = Variable(tensor, number, position)
                        row.append({variable: Fraction(1)})
                        self.unit_variables.setdefault(leaf, []).append(variable)
                    position += 1
                units.append(tuple(row))
            cells[place] = Cell(common, tuple(units))
        value = GaugeValue(dims, cells)
        offsets = self.axes.offsets.get(tensor, [])
        if offsets and (len(offsets) != self._uses(tensor) or len(set(offsets)) > 1 or min(offsets) < 0):
            # The offset makes scalings act on tensor + eps; that is exact for one eps and no other use.
            self.kill(value)
        elif offsets and self.field.binary:
            self.kill(value)
        return value

    def _uses(self, tensor: str) -> int:
        graph = self.axes.graph
        return sum(graph.users[name] for name, target in graph.tensors.items() if target == tensor)

    def value(self, reference: Any) -> GaugeValue:
        """The expressions of an argument that must be a tensor."""
        found = self.values[reference.name]
        if isinstance(found, tuple):
            raise TraceError(f"node {reference.name}: a tuple where a tensor was expected")
        return found

    def choice(self, dims: Sequence[AxisNode], place: Sequence[int]) -> list[Leaves]:
        """For one block of a value, the leaves of each dimension."""
        return [cut(dim)[number] for dim, number in zip(dims, place, strict=True)]

    def constant(self, dims: Iterable[AxisNode]) -> GaugeValue:
        """A value that no parameter scales."""
        dims = tuple(root(dim) for dim in dims)
        cuts = [cut(dim) for dim in dims]
        cells = np.empty([len(blocks) for blocks in cuts], dtype=object)
        for place in np.ndindex(cells.shape):
            units: tuple[tuple[Expression, ...], ...] = tuple(
                tuple({} for _ in blocks[number]) for blocks, number in zip(cuts, place, strict=True)
            )
            cells[place] = Cell({}, units)
        return GaugeValue(dims, cells)

    def vanish(self, leaf: AxisNode, expression: Expression) -> None:
        """Emit: this difference from unit 0 vanishes."""
        if expression and leaf.size > 1:
            self.unit_rows.setdefault(leaf, []).append(expression)

    def same(self, leaf: AxisNode, first: Expression, second: Expression) -> None:
        """Emit: two values that are added differ alike along a leaf."""
        self.vanish(leaf, self.field.combine(first, second, -1))

    def cancel(self, leaf: AxisNode, first: Expression, second: Expression) -> None:
        """Emit: the factors of two values cancel in a sum of their products along a leaf."""
        self.vanish(leaf, self.field.combine(first, second))

    def merge(self, leaf: AxisNode, first: Expression, second: Expression, exponent: int | Fraction = 1) -> Expression:
        """The difference along a leaf of a product (``exponent=-1``: a quotient)."""
        return self.field.combine(first, second, exponent)

    def zero_units(self, leaves: Leaves, units: Sequence[Expression]) -> None:
        """Emit: these differences from unit 0 vanish."""
        for leaf, expression in zip(leaves, units, strict=True):
            self.vanish(leaf, expression)

    def equal(self, dims: Sequence[AxisNode], place: Sequence[int], first: Cell, second: Cell) -> None:
        """Emit: two cells over the same leaves carry the same factor."""
        common = self.field.combine(first.common, second.common, -1)
        if common:
            self.common_rows.append(common)
        for part, mine, other in zip(self.choice(dims, place), first.units, second.units, strict=True):
            for leaf, a, b in zip(part, mine, other, strict=True):
                self.same(leaf, a, b)

    def kill(self, value: GaugeValue) -> GaugeValue:
        """Emit: nothing scales this value. Returns the constant of the same axes."""
        for place in np.ndindex(value.cells.shape):
            cell = value.cells[place]
            if cell.common:
                self.common_rows.append(cell.common)
            for part, units in zip(self.choice(value.dims, place), cell.units, strict=True):
                self.zero_units(part, units)
        return self.constant(value.dims)

    def kill_into(self, value: GaugeValue, dims: Sequence[AxisNode]) -> GaugeValue:
        """Emit: nothing scales this value. Returns the constant of other axes."""
        self.kill(value)
        return self.constant(dims)

    def turned(self, node: Node, value: GaugeValue) -> GaugeValue:
        """The output of a sine, whose sign changes where half a period is added to the bias behind it."""
        bias = self.sines.get(node.name)
        if bias is None or self.kind != "sign":
            return value
        axis = root(self.axes.tensors[bias][0])
        places = [dim for dim, other in enumerate(value.dims) if root(other) is axis]
        if len(places) != 1 or len(self.axes.tensors[bias]) != 1:
            return value
        cells = value.cells.copy()
        for place in np.ndindex(cells.shape):
            cell, block = cells[place], place[places[0]]
            own, name = list(cell.units), virtual(bias)
            row = []
            for position, leaf in enumerate(cut(axis, ones=True)[block]):
                if leaf.size > 1:
                    variable = Variable(name, block, position)
                    known = self.unit_variables.setdefault(leaf, [])
                    if variable not in known:
                        known.append(variable)
                    row.append({variable: Fraction(1)})
            own[places[0]] = tuple(self.field.combine(a, b) for a, b in zip(own[places[0]], row, strict=True))
            whole = Variable(name, block)
            if whole not in self.common_variables:
                self.common_variables.append(whole)
            cells[place] = Cell(self.field.combine(cell.common, {whole: Fraction(1)}), tuple(own))
        return replace(value, cells=cells)

    def _without_rule(self, node: Node) -> GaugeValue | tuple[GaugeValue | None, ...]:
        for reference in references(node):
            found = self.values[reference.name]
            for item in found if isinstance(found, tuple) else (found,):
                if item is not None:
                    self.kill(item)
        made = self.axes.values[node.name]
        if isinstance(made, tuple):
            return tuple(None if item is None else self.constant(item.dims) for item in made)
        return self.constant(made.dims)

    def result_dims(self, node: Node) -> list[AxisNode]:
        """The axes that the first walk gave a node's value."""
        return self.axes.value(Ref(node.name)).dims
