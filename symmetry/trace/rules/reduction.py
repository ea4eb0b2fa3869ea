"""Sums, means and extrema over whole dimensions: what is combined must carry one factor."""

from __future__ import annotations

from dataclasses import dataclass

from symmetry.trace.algebra import attach, reduce
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


register(Reduction(False), "aten.mean.dim", "aten.mean.default", "aten.sum.dim_IntList", "aten.sum.default")
register(Reduction(True), "aten.amax.default", "aten.amin.default")
