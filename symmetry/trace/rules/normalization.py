"""Normalisations: batch norm's running statistics act like parameters; the others mix what they normalise."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from symmetry.trace.algebra import add, attach, multiply, power, reduce, view
from symmetry.trace.axes import Reason, join, split_product
from symmetry.trace.axis_pass import AxisPass, Value
from symmetry.trace.export import Node
from symmetry.trace.gauge_pass import GaugePass, GaugeValue
from symmetry.trace.linear_pass import LinearPass
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
        if variance is not None and variance.origin is not None and not variance.part:
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
            if walk.kind != "sign":
                value = multiply(walk, value, power(walk, variance, Fraction(1, 2)), dims, -1)
        if weight is not None:
            value = multiply(walk, value, weight, dims)
        if bias is not None:
            value = add(walk, value, bias, dims)
        return (value, *(None for _ in node.shapes[1:]))


class LayerNorm:
    """Mean and variance over the last dimensions, then a gain and an offset."""

    summary: str = (
        "the normalised axes are mixed; a sign of the whole passes; scale is killed; gain and offset as usual"
    )

    def _count(self, node: Node) -> int:
        return len(node.args[1])

    def axes(self, walk: AxisPass, node: Node) -> tuple[Value | None, ...]:
        value, count = walk.value(node.args[0]), self._count(node)
        kept = len(value.dims) - count
        walk.mixes.append((value.dims[kept:], value.dims[:kept]))
        for kind, item in zip(("norm.weight", "norm.bias"), node.args[2:4], strict=True):
            if item is not None:
                tensor = walk.value(item)
                walk.note(tensor, kind, dict.fromkeys(range(count), "out"))
                for mine, other in zip(tensor.dims, value.dims[kept:], strict=True):
                    join(mine, other)
        return (Value(value.dims), *(walk.fresh(shape, Reason("constant")) for shape in node.shapes[1:]))

    def gauge(self, walk: GaugePass, node: Node) -> tuple[GaugeValue | None, ...]:
        value = walk.value(node.args[0])
        own = list(range(len(value.dims) - self._count(node), len(value.dims)))
        value = normalised(walk, value, own)
        for place, item in enumerate(node.args[2:4]):
            if item is not None:
                tensor = attach(walk, walk.value(item), value.dims, own)
                value = (multiply if place == 0 else add)(walk, value, tensor, value.dims)
        return (value, *(None for _ in node.shapes[1:]))


class GroupNorm:
    """Mean and variance over the channels of a group and all positions, then a gain and an offset per channel."""

    summary: str = "channels are groups x units; units are mixed; each group's sign passes; scale is killed"

    def axes(self, walk: AxisPass, node: Node) -> tuple[Value | None, ...]:
        value, groups = walk.value(node.args[0]), int(node.args[6])
        channels = value.dims[1]
        cut = split_product(channels, [groups, channels.size // groups])
        walk.decisions[node.name] = cut
        walk.mixes.append(([cut[1], *value.dims[2:]], [value.dims[0], cut[0]]))
        for kind, item in zip(("norm.weight", "norm.bias"), node.args[1:3], strict=True):
            if item is not None:
                tensor = walk.value(item)
                walk.note(tensor, kind, {0: "out"})
                join(tensor.dims[0], channels)
        return (Value(value.dims), *(walk.fresh(shape, Reason("constant")) for shape in node.shapes[1:]))

    def gauge(self, walk: GaugePass, node: Node) -> tuple[GaugeValue | None, ...]:
        value, (group, unit) = walk.value(node.args[0]), walk.axes.decisions[node.name]
        dims, last = value.dims, len(value.dims)
        places = [([dim], [dim + (dim > 1)]) for dim in range(last) if dim != 1]
        there = [([0], [0]), ([1], [1, 2]), *places[1:]]
        back = [(new, old) for old, new in there]
        value = view(walk, value, [dims[0], group, unit, *dims[2:]], there)
        value = view(walk, normalised(walk, value, list(range(2, last + 1))), dims, back)
        for place, item in enumerate(node.args[1:3]):
            if item is not None:
                tensor = attach(walk, walk.value(item), dims, [1])
                value = (multiply if place == 0 else add)(walk, value, tensor, dims)
        return (value, *(None for _ in node.shapes[1:]))


class InstanceNorm:
    """Batch norm by the statistics of the batch at hand, as instance norm uses it on one row of images."""

    summary: str = "positions are mixed; each channel's sign passes; scale is killed; gain and offset as usual"

    def axes(self, walk: AxisPass, node: Node) -> tuple[Value | None, ...]:
        value = walk.value(node.args[0])
        walk.mixes.append(([value.dims[0], *value.dims[2:]], [value.dims[1]]))
        for kind, item in zip(("norm.weight", "norm.bias"), node.args[1:3], strict=True):
            if item is not None:
                tensor = walk.value(item)
                walk.note(tensor, kind, {0: "out"})
                join(tensor.dims[0], value.dims[1])
        return (Value(value.dims), *(walk.fresh(shape, Reason("constant")) for shape in node.shapes[1:]))

    def gauge(self, walk: GaugePass, node: Node) -> tuple[GaugeValue | None, ...]:
        value = walk.value(node.args[0])
        value = normalised(walk, value, [0, *range(2, len(value.dims))])
        for place, item in enumerate(node.args[1:3]):
            if item is not None:
                tensor = attach(walk, walk.value(item), value.dims, [1])
                value = (multiply if place == 0 else add)(walk, value, tensor, value.dims)
        return (value, *(None for _ in node.shapes[1:]))


class RMSNorm:
    """``x / sqrt(mean(x^2) + eps)`` over the last dimension, times a gain; only where gains are folded."""

    summary: str = "the axis is mixed; signs of units pass; orthogonal matrices pass, conjugated by the gain behind it"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value = walk.value(node.args[0])
        walk.mixes.append((value.dims[-1:], value.dims[:-1]))
        if node.args[1] is not None:
            gain = walk.value(node.args[1])
            walk.note(gain, "norm.weight", {0: "out"})
            join(gain.dims[0], value.dims[-1])
        return Value(value.dims)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value = walk.value(node.args[0])
        gain = None if node.args[1] is None else walk.axes.graph.tensors[node.args[1].name]
        if isinstance(walk, LinearPass):
            return walk.normed(value, gain)
        value = walk.kill(value) if walk.kind == "scale" else value
        if node.args[1] is None:
            return value
        own = attach(walk, walk.value(node.args[1]), value.dims, [len(value.dims) - 1])
        return multiply(walk, value, own, value.dims)


class Softmax:
    """Exponentials that sum to one along a dimension."""

    summary: str = "the axis is mixed; permutations pass; scale and sign are killed"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value = walk.value(node.args[0])
        dim = int(node.args[1]) % len(value.dims)
        walk.mixes.append(([value.dims[dim]], [axis for place, axis in enumerate(value.dims) if place != dim]))
        walk.activations.append(("softmax", [value.dims[dim]]))
        return Value(value.dims)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        return walk.kill(walk.value(node.args[0]))


def normalised(walk: GaugePass, value: GaugeValue, places: Sequence[int]) -> GaugeValue:
    """A value less its mean and over its deviation along dimensions: only a sign common to them passes."""
    if walk.kind != "sign":
        return walk.kill(value)
    kept = [dim for dim in range(len(value.dims)) if dim not in places]
    return attach(walk, reduce(walk, value, places), value.dims, kept)


register(BatchNorm(), "aten._native_batch_norm_legit_no_training.default")
register(InstanceNorm(), "aten._native_batch_norm_legit.no_stats")
register(RMSNorm(), "symmetry.rms_norm")
register(LayerNorm(), "aten.native_layer_norm.default")
register(GroupNorm(), "aten.native_group_norm.default")
register(Softmax(), "aten._softmax.default", "aten._log_softmax.default", "aten._safe_softmax.default")
