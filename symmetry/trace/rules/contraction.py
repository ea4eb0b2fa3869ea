"""Matrix products and convolutions: contracted axes are joined, and what scales them must cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from symmetry.trace.algebra import add, attach, contract, reduce, view
from symmetry.trace.axes import AxisNode, Reason, join, new_leaf, new_product, pin, split_product
from symmetry.trace.axis_pass import AxisPass, Value
from symmetry.trace.export import Node
from symmetry.trace.gauge_pass import GaugePass, GaugeValue
from symmetry.trace.rules import register


class MatrixProduct:
    """``A B``, batched or with an added bias."""

    summary: str = "contracted axes are one space; their scalings cancel; batch axes are shared"

    def _operands(self, node: Node) -> tuple[Any, Any, Any]:
        """Bias (or None), left and right operand."""
        if "addmm" in node.operation or "baddbmm" in node.operation:
            return node.args[0], node.args[1], node.args[2]
        return None, node.args[0], node.args[1]

    def axes(self, walk: AxisPass, node: Node) -> Value:
        bias, *operands = self._operands(node)
        left, right = (walk.value(operand) for operand in operands)
        batch = len(left.dims) - 2
        for dim in range(batch):
            join(left.dims[dim], right.dims[dim])
        join(left.dims[-1], right.dims[-2])
        shared = dict.fromkeys(range(batch), "unit")
        walk.note(left, "linear.weight", {**shared, batch: "out", batch + 1: "in"})
        walk.note(right, "linear.weight", {**shared, batch: "in", batch + 1: "out"})
        dims = [*left.dims[:-1], right.dims[-1]]
        if bias is not None:
            added = walk.value(bias)
            walk.note(added, "bias", dict.fromkeys(range(len(added.dims)), "out"))
            dims = walk.broadcast([Value(dims), added])
        return Value(dims)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        bias, *operands = self._operands(node)
        left, right = (walk.value(operand) for operand in operands)
        batch = "abcd"[: len(left.dims) - 2]
        value = contract(walk, left, batch + "ik", right, batch + "kj", batch + "ij")
        return value if bias is None else add(walk, value, walk.value(bias), walk.result_dims(node))


class Convolution:
    """Convolutions of any dimension, grouped or transposed."""

    summary: str = "input channels are contracted, groups shared; kernel and image positions are fixed"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        source, kernel, bias = walk.value(node.args[0]), walk.value(node.args[1]), node.args[2]
        transposed, groups = bool(node.args[6]), int(node.args[8])
        shape = node.shapes[0] or ()
        if len(source.dims) != len(kernel.dims):
            return _as_value(walk.without_rule(node, "takes an input without a batch axis, which has no rule"))
        text = "a convolution slides over this axis"
        walk.pin_for(node, [axis for axis in source.dims[2:] if not walk.is_fixed(axis)], text)
        for axis in kernel.dims[2:]:
            pin(axis, Reason("position"))
        into, out = (0, 1) if transposed else (1, 0)
        inner, shared, units = self._channels(source.dims[1], kernel.dims, into, out, groups, transposed)
        walk.decisions[node.name] = (inner, shared, units)
        depthwise = groups > 1 and inner[1].size == 1 and units[1].size == 1
        roles = {into: "none", out: "unit"} if depthwise else {into: "in", out: "out"}
        walk.note(kernel, "conv.weight", roles | dict.fromkeys(range(2, len(shape)), "position"))
        channels = new_product([shared, units[1]]) if groups > 1 else kernel.dims[out]
        if bias is not None:
            added = walk.value(bias)
            walk.note(added, "bias", {0: "out"})
            join(added.dims[0], channels)
        return Value([source.dims[0], channels, *(new_leaf(size, Reason("position")) for size in shape[2:])])

    def _channels(
        self, channels: AxisNode, kernel: Sequence[AxisNode], into: int, out: int, groups: int, transposed: bool
    ) -> tuple[list[AxisNode], AxisNode, list[AxisNode]]:
        """Cut channels into groups x units and join both sides.

        Returns the cut of the input channels, the shared groups, and the cut of the output side of the kernel.
        """
        inner = split_product(channels, [groups, channels.size // groups])
        if transposed:
            grouped = split_product(kernel[into], [groups, kernel[into].size // groups])
            join(inner[0], grouped[0])
            join(inner[1], grouped[1])
            return inner, inner[0], [inner[0], kernel[out]]
        grouped = split_product(kernel[out], [groups, kernel[out].size // groups])
        join(inner[0], grouped[0])
        join(inner[1], kernel[into])
        return inner, inner[0], grouped

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        source, kernel, bias = walk.value(node.args[0]), walk.value(node.args[1]), node.args[2]
        transposed, spatial = bool(node.args[6]), range(2, len(node.shapes[0] or ()))
        source, kernel = reduce(walk, source, list(spatial)), reduce(walk, kernel, list(spatial))
        inner, shared, units = walk.axes.decisions[node.name]
        wide = view(walk, source, [source.dims[0], shared, inner[1]], [([0], [0]), ([1], [1, 2])])
        if transposed:
            deep = view(walk, kernel, [shared, inner[1], units[1]], [([0], [0, 1]), ([1], [2])])
            value = contract(walk, wide, "bgi", deep, "gio", "bgo")
        else:
            deep = view(walk, kernel, [shared, units[1], inner[1]], [([0], [0, 1]), ([1], [2])])
            value = contract(walk, wide, "bgi", deep, "goi", "bgo")
        dims = walk.result_dims(node)
        value = view(walk, value, dims[:2], [([0], [0]), ([1, 2], [1])])
        value = attach(walk, value, dims, [0, 1])
        if bias is None:
            return value
        return add(walk, value, attach(walk, walk.value(bias), dims, [1]), dims)


def _as_value(found: Value | tuple[Value | None, ...]) -> Value:
    return found if isinstance(found, Value) else next(value for value in found if value is not None)


register(MatrixProduct(), "aten.mm.default", "aten.addmm.default", "aten.bmm.default", "aten.baddbmm.default")
register(Convolution(), "aten.convolution.default")
