"""Pooling over image positions: positions are fixed, channels pass."""

from __future__ import annotations

from dataclasses import dataclass

from symmetry.trace.algebra import attach, reduce
from symmetry.trace.axes import Reason, leaves, new_leaf
from symmetry.trace.axis_pass import AxisPass, Value
from symmetry.trace.export import Node
from symmetry.trace.gauge_pass import GaugePass, GaugeValue
from symmetry.trace.rules import register


@dataclass(frozen=True)
class Pooling:
    """Pooling over the last ``spatial`` dimensions.

    Args:
        spatial: number of pooled dimensions.
        maximum: whether the maximum is taken (then a sign is killed).
    """

    spatial: int
    maximum: bool

    @property
    def summary(self) -> str:
        """Its row in the table of rules."""
        return "channels pass; positions are fixed; positive scale passes; sign " + (
            "killed" if self.maximum else "passes"
        )

    def axes(self, walk: AxisPass, node: Node) -> Value | tuple[Value | None, ...]:
        source = walk.value(node.args[0])
        kept = len(source.dims) - self.spatial
        for axis in source.dims[kept:]:
            if any(not leaf.reasons and leaf.size > 1 for leaf in leaves(axis)):
                walk.pin_for(node, [axis], "pooling slides over this axis")
        shape = node.shapes[0] or ()
        value = Value([*source.dims[:kept], *(new_leaf(size, Reason("position")) for size in shape[kept:])])
        return (value, *(walk.fresh(shape, Reason("constant")) for shape in node.shapes[1:])) if node.several else value

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue | tuple[GaugeValue | None, ...]:
        value = walk.value(node.args[0])
        made = walk.axes.values[node.name]
        first = made[0] if isinstance(made, tuple) else made
        if first is None:
            return walk.kill(value)
        if self.maximum and walk.field.binary:
            value = walk.kill(value)
        kept = len(value.dims) - self.spatial
        value = reduce(walk, value, list(range(kept, len(value.dims))))
        value = attach(walk, value, first.dims, list(range(kept)))
        return (value, *(None for _ in node.shapes[1:])) if node.several else value


for _spatial in (1, 2, 3):
    register(
        Pooling(_spatial, False), f"aten.avg_pool{_spatial}d.default", f"aten._adaptive_avg_pool{_spatial}d.default"
    )
    register(Pooling(_spatial, True), f"aten.max_pool{_spatial}d_with_indices.default")
