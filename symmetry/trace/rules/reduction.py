"""Sums, means and extrema over whole dimensions: what is combined must carry one factor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from symmetry.trace.algebra import attach, power, reduce
from symmetry.trace.axes import new_leaf
from symmetry.trace.axis_pass import AxisPass, Value
from symmetry.trace.export import Node
from symmetry.trace.gauge_pass import GaugePass, GaugeValue
from symmetry.trace.rules import register


@dataclass(frozen=True)
class Reduction:
    """A symmetric reduction over dimensions.

    Args:
        extremum: whether it is a maximum or minimum (then a sign is killed).
    """

    extremum: bool

    @property
    def summary(self) -> str:
        """Its row in the table of rules."""
        return "permutations of the reduced axes are absorbed; scales common to them pass" + (
            "; sign killed" if self.extremum else ""
        )

    def _places(self, node: Node, ndim: int) -> tuple[list[int], bool]:
        """The reduced dimensions and whether they stay with size 1."""
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        listed = (given,) if isinstance(given, int) else given
        keep = bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
        return ([place % ndim for place in listed] if listed else list(range(ndim))), keep

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value = walk.value(node.args[0])
        gone, keep = self._places(node, len(value.dims))
        kept = [axis for dim, axis in enumerate(value.dims) if dim not in gone]
        walk.mixes.append(([value.dims[dim] for dim in gone], kept))
        dims = [new_leaf(1) if dim in gone else axis for dim, axis in enumerate(value.dims) if keep or dim not in gone]
        return Value(dims)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value = walk.value(node.args[0])
        gone, keep = self._places(node, len(value.dims))
        if self.extremum and walk.field.binary:
            value = walk.kill(value)
        kept = [dim for dim in range(len(value.dims)) if dim not in gone]
        result = reduce(walk, value, gone)
        return attach(walk, result, walk.result_dims(node), kept) if keep else result


class Norm(Reduction):
    """The root of a sum of squares, a variance or a deviation over dimensions: no sign is left of it."""

    @property
    def summary(self) -> str:
        """Its row in the table of rules."""
        return "as a sum of even powers: scales common to the reduced axes pass (squared for a variance); signs vanish"

    def _places(self, node: Node, ndim: int) -> tuple[list[int], bool]:
        given = node.kwargs.get("dim")
        keep = bool(node.kwargs.get("keepdim", False))
        place = 2 if "norm" in node.operation else 1
        if len(node.args) > place:
            given = node.args[place]
        if "norm" in node.operation and len(node.args) > 3:
            keep = bool(node.args[3])
        listed = (given,) if isinstance(given, int) else given
        return ([place % ndim for place in listed] if listed else list(range(ndim))), keep

    def axes(self, walk: AxisPass, node: Node) -> Any:
        value = super().axes(walk, node)
        return (value, Value(list(value.dims))) if node.several else value

    def gauge(self, walk: GaugePass, node: Node) -> Any:
        value = walk.value(node.args[0])
        gone, keep = self._places(node, len(value.dims))
        kept = [dim for dim in range(len(value.dims)) if dim not in gone]
        made = walk.axes.values[node.name]
        first = made[0] if isinstance(made, tuple) else made
        dims = [] if first is None else first.dims
        counting = "norm" in node.operation and len(node.args) > 1 and node.args[1] == 0
        if walk.kind == "linear" or counting:
            walk.kill(value)
        if counting:
            return walk.constant(dims)
        if walk.kind != "scale" and not node.several:
            return walk.constant(dims)
        mean = reduce(walk, value, gone)
        mean = attach(walk, mean, dims, kept) if keep else mean
        if walk.kind == "scale":
            spread = power(walk, mean, 2) if ".var" in node.operation else mean
        else:
            spread = walk.constant(dims)
        return (spread, mean) if node.several else spread


register(Norm(False), "aten.linalg_vector_norm.default", "aten.var.correction", "aten.std.correction", "aten.var.dim")
register(Norm(False), "aten.var_mean.correction")
register(Reduction(False), "aten.mean.dim", "aten.mean.default", "aten.sum.dim_IntList", "aten.sum.default")
register(Reduction(True), "aten.amax.default", "aten.amin.default")
