"""Two values combined element by element: sums need equal factors, products add them."""

from __future__ import annotations

from typing import Any

from symmetry.trace.algebra import add, multiply, power
from symmetry.trace.axis_pass import AxisPass, Value
from symmetry.trace.export import Node, Ref
from symmetry.trace.gauge_pass import GaugePass, GaugeValue
from symmetry.trace.rules import register


def _tensors(node: Node) -> list[Any]:
    return [argument for argument in node.args[:2] if isinstance(argument, Ref)]


def _joined(walk: AxisPass, node: Node, kind: str) -> Value:
    """Join the axes of both operands and note what a parameter among them is for."""
    values = [walk.value(reference) for reference in _tensors(node)]
    for value in values:
        walk.note(value, kind, dict.fromkeys(range(len(value.dims)), "out"))
    return Value(walk.broadcast(values))


class Sum:
    """Addition and subtraction (a residual connection is one)."""

    summary: str = (
        "axes are joined; both sides carry the same scale and sign; adding a constant other than 0 kills both"
    )

    def axes(self, walk: AxisPass, node: Node) -> Value:
        return _joined(walk, node, "bias")

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        values, dims = [walk.value(reference) for reference in _tensors(node)], walk.result_dims(node)
        if len(values) == 2:
            return add(walk, values[0], values[1], dims)
        number = next(argument for argument in node.args[:2] if not isinstance(argument, Ref))
        return values[0] if number == 0 else walk.kill(values[0])


class ProductOf:
    """Multiplication and division."""

    summary: str = "axes are joined; scales and signs multiply (divide)"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        return _joined(walk, node, "parameter")

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        sign = -1 if ".div." in node.operation else 1
        values, dims = [walk.value(reference) for reference in _tensors(node)], walk.result_dims(node)
        if len(values) == 2:
            return multiply(walk, values[0], values[1], dims, sign)
        return values[0] if isinstance(node.args[0], Ref) else power(walk, values[0], sign)


class Extremum:
    """The larger or smaller of two values."""

    summary: str = "axes are joined; both sides carry the same positive scale; a sign is killed"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        return _joined(walk, node, "parameter")

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        first, second = (walk.value(reference) for reference in _tensors(node))
        if walk.field.binary:
            first, second = walk.kill(first), walk.kill(second)
        return add(walk, first, second, walk.result_dims(node))


register(Sum(), "aten.add.Tensor", "aten.sub.Tensor", "aten.add.Scalar", "aten.sub.Scalar", "aten.rsub.Scalar")
register(ProductOf(), "aten.mul.Tensor", "aten.div.Tensor", "aten.mul.Scalar", "aten.div.Scalar")
register(Extremum(), "aten.maximum.default", "aten.minimum.default")
