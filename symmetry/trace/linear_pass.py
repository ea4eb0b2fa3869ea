"""The second walk once more: along which leaves may any invertible or orthogonal matrix act?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from dataclasses import field as default
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from symmetry.trace.axes import AxisNode, leaves
from symmetry.trace.expressions import Expression, Variable
from symmetry.trace.gauge_pass import Cell, GaugePass, GaugeValue

__all__ = ["LinearPass", "MatrixGroup"]


class MatrixGroup(NamedTuple):
    """The matrices that may act along a leaf.

    Args:
        kind: ``linear``, or ``orthogonal`` where an odd cycle ties M to its own inverse transpose.
        parities: for each tensor's variable whether it carries the inverse transpose.
        gains: for those behind the gain of an RMSNorm, that gain.
    """

    kind: str
    parities: dict[Variable, int]
    gains: dict[Variable, str]


@dataclass(slots=True)
class LinearPass(GaugePass):
    """The same walk, asking along which leaves any invertible matrix M may act.

    An expression along a leaf is one variable here, or nothing where a value is constant along it. The variable says
    whether its tensor carries M (0) or its inverse transpose (1): tensors that are added carry the same, tensors that
    are contracted along the leaf the opposite. Whatever is not linear along a leaf breaks it.
    """

    broken: set[AxisNode] = default(default_factory=set)
    ties: dict[AxisNode, list[tuple[Variable, Variable, int]]] = default(default_factory=dict)
    crossings: dict[AxisNode, list[tuple[Variable, Variable]]] = default(default_factory=dict)
    gains: dict[Variable, str] = default(default_factory=dict)
    norms: dict[str, int] = default(default_factory=dict)

    def _variables(self, tensor: str, used: bool) -> GaugeValue:
        walk, dims = self.axes, tuple(self.axes.tensors[tensor])
        frozen = self.frozen_buffers and tensor in walk.graph.buffers
        if used and (frozen or tensor not in walk.floating or tensor in walk.offsets):
            self.broken.update(leaf for axis in dims for leaf in leaves(axis))
        # Both classes are dataclasses with slots, for which super() without arguments does not work.
        value = GaugePass._variables(self, tensor, used)
        for place in np.ndindex(value.cells.shape):
            value.cells[place] = Cell({}, value.cells[place].units)
        self.common_variables.clear()
        return value

    def vanish(self, leaf: AxisNode, expression: Expression) -> None:
        """What is not linear happens along the leaf."""
        if expression:
            self.broken.add(leaf)

    def same(self, leaf: AxisNode, first: Expression, second: Expression) -> None:
        """Two values that are added carry the same matrix; a constant cannot be added to what carries one."""
        self._tie(leaf, first, second, 0)

    def cancel(self, leaf: AxisNode, first: Expression, second: Expression) -> None:
        """Of two values that are contracted, one carries M and one its inverse transpose."""
        self._tie(leaf, first, second, 1)

    def merge(self, leaf: AxisNode, first: Expression, second: Expression, exponent: int | Fraction = 1) -> Expression:
        """A product keeps the matrix of one side if the other is constant along the leaf."""
        if second and (first or exponent != 1):
            self.broken.add(leaf)
        return first or second

    def _tie(self, leaf: AxisNode, first: Expression, second: Expression, parity: int) -> None:
        if first and second:
            self.ties.setdefault(leaf, []).append((next(iter(first)), next(iter(second)), parity))
        elif first or second:
            self.broken.add(leaf)

    def normed(self, value: GaugeValue, gain: str | None) -> GaugeValue:
        """A value over its root mean square along the last dimension, times a gain.

        Only an orthogonal M leaves the root mean square alone. Behind the gain g a tensor carries M between 1/g and g;
        its variable is tied to those that carry the same.
        """
        last = len(value.dims) - 1
        cells = value.cells.copy()
        if gain is not None:
            self.norms[gain] = self.norms.get(gain, 0) + 1
        for place in np.ndindex(cells.shape):
            leaves_of, units = self.choice(value.dims, place), list(cells[place].units)
            for dim in range(last):
                self.zero_units(leaves_of[dim], units[dim])
            row = []
            for leaf, expression in zip(leaves_of[last], units[last], strict=True):
                if not expression:
                    self.broken.add(leaf)
                    row.append(expression)
                    continue
                variable = next(iter(expression))
                self.ties.setdefault(leaf, []).append((variable, variable, 1))
                if gain is not None:
                    behind = Variable(f"gain\0{gain}", len(self.gains))
                    self.gains[behind] = gain
                    self.crossings.setdefault(leaf, []).append((variable, behind))
                    expression = {behind: Fraction(1)}
                row.append(expression)
            units[last] = tuple(row)
            cells[place] = Cell({}, tuple(units))
        return replace(value, cells=cells)

    def solve(self, leaf: AxisNode) -> MatrixGroup | None:
        """The group of a leaf and how each variable's tensor carries it; ``None`` if something breaks the leaf."""
        crossings, graph = self.crossings.get(leaf, []), self.axes.graph
        used = {self.gains[behind] for _, behind in crossings}
        if any(self._uses(gain) != self.norms[gain] or gain in graph.buffers for gain in used):
            return None
        variables = [item for item in self.unit_variables.get(leaf, []) if item.tensor not in used]
        if leaf in self.broken or leaf.size < 2 or not variables:
            return None
        neighbours: dict[Variable, list[tuple[Variable, int]]] = {}
        for one, two, parity in self.ties.get(leaf, []):
            neighbours.setdefault(one, []).append((two, parity))
            neighbours.setdefault(two, []).append((one, parity))
        found: dict[Variable, int] = {}
        gains: dict[Variable, str] = {}
        before = {variable for variable, _ in crossings}
        odd = False
        for start in [*(behind for _, behind in crossings), *variables]:
            if start in found:
                continue
            found[start], reached, pending = 0, [start], [start]
            while pending:
                variable = pending.pop()
                for other, parity in neighbours.get(variable, []):
                    value = found[variable] ^ parity
                    if other not in found:
                        found[other] = value
                        reached.append(other)
                        pending.append(other)
                    odd |= found[other] != value
            labels = {self.gains[variable] for variable in reached if variable in self.gains}
            if len(labels) > 1 or (labels and before & set(reached)):
                # Behind two gains at once, or normed again: no one matrix fits all.
                return None
            if labels:
                gains.update(dict.fromkeys(reached, labels.pop()))
        parities = {variable: 0 if odd else found[variable] for variable in variables}
        return MatrixGroup(
            "orthogonal" if odd else "linear",
            parities,
            {variable: gain for variable, gain in gains.items() if variable in parities},
        )
