"""Batch norm in eval mode: its running statistics take part in the action like parameters."""

from __future__ import annotations

from fractions import Fraction

from symmetry.trace.algebra import add, attach, multiply, power
from symmetry.trace.axes import join
from symmetry.trace.axis_pass import AxisPass, Value
from symmetry.trace.export import Node
from symmetry.trace.gauge_pass import GaugePass, GaugeValue
from symmetry.trace.rules import register


class BatchNorm:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` with running statistics."""

    summary: str = "channels are joined; mean follows the input, var + eps its square, bias the output"

    def axes(self, walk: AxisPass, node: Node) -> tuple[Value | None, ...]:
        source, *tensors = (None if item is None else walk.value(item) for item in node.args[:5])
        if source is None:
            raise ValueError(f"{node.name}: batch norm without an input")
        kinds = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
        for kind, value in zip(kinds, tensors, strict=True):
            if value is not None:
                join(value.dims[0], source.dims[1])
                walk.note(value, kind, {0: "out"})
        variance = tensors[3]
        if variance is not None and variance.origin is not None:
            walk.offsets.setdefault(variance.origin[0], []).append(float(node.args[-1]))
        return (Value(source.dims), *(walk.fresh(shape) for shape in node.shapes[1:]))

    def gauge(self, walk: GaugePass, node: Node) -> tuple[GaugeValue | None, ...]:
        value = walk.value(node.args[0])
        dims = value.dims
        weight, bias, mean, variance = (
            None if item is None else attach(walk, walk.value(item), dims, [1]) for item in node.args[1:5]
        )
        if mean is not None and variance is not None:
            # The variance's own expression is that of var + eps, which is exact: see TensorInfo.positive_offset.
            value = add(walk, value, mean, dims)
            if not walk.field.binary:
                value = multiply(walk, value, power(walk, variance, Fraction(1, 2)), dims, -1)
        if weight is not None:
            value = multiply(walk, value, weight, dims)
        if bias is not None:
            value = add(walk, value, bias, dims)
        return (value, *(None for _ in node.shapes[1:]))


register(BatchNorm(), "aten._native_batch_norm_legit_no_training.default")
