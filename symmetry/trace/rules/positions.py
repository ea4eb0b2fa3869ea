"""Operations that move or combine the places of images and sequences: places are fixed, channels pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from symmetry.trace.algebra import attach, reduce
from symmetry.trace.axes import Reason, new_leaf
from symmetry.trace.axis_pass import AxisPass, Value
from symmetry.trace.export import Node
from symmetry.trace.gauge_pass import GaugePass, GaugeValue
from symmetry.trace.rules import register


@dataclass(frozen=True)
class Positional:
    """A linear operation along some dimensions.

    Args:
        places: which dimensions, from the node and the number of dimensions; may be negative.
        summary: its row in the table of rules.
    """

    places: Callable[[Node, int], list[int]]
    summary: str = "the places of the dimensions are fixed and carry one factor; all else passes"

    def _touched(self, node: Node, ndim: int) -> list[int]:
        return sorted({place % ndim for place in self.places(node, ndim)})

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value, shape = walk.value(node.args[0]), node.shapes[0] or ()
        touched = self._touched(node, len(value.dims))
        walk.pin_for(
            node,
            [value.dims[dim] for dim in touched if not walk.is_fixed(value.dims[dim])],
            "the operation moves places along this axis",
        )
        return Value(
            [
                new_leaf(shape[dim], Reason("position")) if dim in touched else axis
                for dim, axis in enumerate(value.dims)
            ]
        )

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value = walk.value(node.args[0])
        if "constant_pad" in node.operation and len(node.args) > 2 and node.args[2] != 0:
            return walk.kill_into(value, walk.result_dims(node))
        touched = self._touched(node, len(value.dims))
        kept = [dim for dim in range(len(value.dims)) if dim not in touched]
        return attach(walk, reduce(walk, value, touched), walk.result_dims(node), kept)


def _padded(node: Node, ndim: int) -> list[int]:
    pads = node.args[1]
    return [ndim - 1 - place // 2 for place in range(len(pads)) if pads[place]]


def _listed(node: Node, ndim: int) -> list[int]:
    given: Any = node.args[1] if len(node.args) > 1 else ()
    return [given] if isinstance(given, int) else list(given)


def _rolled(node: Node, ndim: int) -> list[int]:
    return list(node.args[2]) if len(node.args) > 2 and node.args[2] else list(range(ndim))


def _last(spatial: int) -> Callable[[Node, int], list[int]]:
    return lambda node, ndim: list(range(ndim - spatial, ndim))


register(Positional(_padded, "padding with 0 fixes the places; another number kills"), "aten.constant_pad_nd.default")
register(Positional(_listed), "aten.flip.default", "aten.cumsum.default")
register(Positional(_rolled), "aten.roll.default")
for _spatial, _names in (
    (1, ("upsample_nearest1d", "upsample_linear1d", "reflection_pad1d", "replication_pad1d")),
    (2, ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "reflection_pad2d", "replication_pad2d")),
    (3, ("upsample_nearest3d", "upsample_trilinear3d", "reflection_pad3d", "replication_pad3d")),
):
    for _name in _names:
        register(Positional(_last(_spatial)), f"aten.{_name}.default")
        if "upsample" in _name:
            register(Positional(_last(_spatial)), f"aten.{_name}.vec")
