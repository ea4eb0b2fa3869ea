"""Values chosen by an index or a condition, and values that are made without any parameter."""

from __future__ import annotations

from typing import Any

from symmetry.trace.algebra import add, attach, broadcast, reduce
from symmetry.trace.axes import Reason, new_leaf, pin
from symmetry.trace.axis_pass import AxisPass, Value, references
from symmetry.trace.export import Node, Ref
from symmetry.trace.gauge_pass import GaugePass, GaugeValue
from symmetry.trace.rules import register
from symmetry.trace.rules.reduction import Reduction


class Embedding:
    """A row of a table for every index."""

    summary: str = "the table's rows are fixed and carry one factor; its columns pass"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        table, index = walk.value(node.args[0]), walk.value(node.args[1])
        pin(table.dims[0], Reason("position"))
        walk.note(table, "embedding.weight", {0: "position", 1: "out"})
        return Value([*index.dims, table.dims[1]])

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        table, dims = reduce(walk, walk.value(node.args[0]), [0]), walk.result_dims(node)
        return attach(walk, table, dims, [len(dims) - 1])


class Index:
    """Places of some dimensions looked up; the other dimensions stay."""

    summary: str = "the dimensions looked up are fixed and carry one factor; the others pass"

    def _places(self, node: Node) -> list[int]:
        if node.operation == "aten.index_select.default":
            return [int(node.args[1])]
        return [dim for dim, item in enumerate(node.args[1]) if item is not None]

    def axes(self, walk: AxisPass, node: Node) -> Any:
        value, shape = walk.value(node.args[0]), node.shapes[0] or ()
        places = [place % len(value.dims) for place in self._places(node)]
        if not places or places != list(range(places[0], places[-1] + 1)):
            return walk.without_rule(node, "looks up dimensions that do not stand side by side, which has no rule")
        for reference in references(node)[1:]:
            found = walk.values[reference.name]
            for axis in found.dims if isinstance(found, Value) else ():
                pin(axis, Reason("position"))
        text = "places of this axis are looked up"
        walk.pin_for(node, [value.dims[place] for place in places if not walk.is_fixed(value.dims[place])], text)
        walk.decisions[node.name] = places
        kept = len(value.dims) - len(places)
        made = [new_leaf(size, Reason("position")) for size in shape[places[0] : len(shape) - (kept - places[0])]]
        return Value([*value.dims[: places[0]], *made, *value.dims[places[-1] + 1 :]])

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value, dims, places = walk.value(node.args[0]), walk.result_dims(node), walk.axes.decisions[node.name]
        rest = len(value.dims) - places[-1] - 1
        own = [*range(places[0]), *range(len(dims) - rest, len(dims))]
        return attach(walk, reduce(walk, value, places), dims, own)


class Choice:
    """One of two values, by a condition."""

    summary: str = "axes are joined; nothing scales the condition; both values carry the same factor"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        return Value(walk.broadcast([walk.value(item) for item in node.args if isinstance(item, Ref)]))

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        walk.kill(walk.value(node.args[0]))
        dims = walk.result_dims(node)
        values = [walk.value(item) if isinstance(item, Ref) else None for item in node.args[1:3]]
        for item, value in zip(node.args[1:3], values, strict=True):
            if value is None and item != 0:
                # A number other than zero: the other value is added to a constant.
                return self._constant(walk, [v for v in values if v is not None], dims)
        tensors = [value for value in values if value is not None]
        return add(walk, tensors[0], tensors[1], dims) if len(tensors) == 2 else broadcast(walk, tensors[0], dims)

    def _constant(self, walk: GaugePass, values: list[GaugeValue], dims: Any) -> GaugeValue:
        for value in values:
            walk.kill(value)
        return walk.constant(dims)


class MaskedFill:
    """A number put where a mask is true."""

    summary: str = "axes are joined; filling with 0 passes all, with another number kills scale and sign"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        return Value(walk.broadcast([walk.value(item) for item in node.args[:2]]))

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        walk.kill(walk.value(node.args[1]))
        value = broadcast(walk, walk.value(node.args[0]), walk.result_dims(node))
        return value if not isinstance(node.args[2], Ref) and node.args[2] == 0 else walk.kill(value)


class Condition:
    """Comparisons and logic: the result is true or false."""

    summary: str = "axes are joined; a comparison with 0 ignores positive scale; scale and sign are killed otherwise"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        return Value(walk.broadcast([walk.value(item) for item in references(node)]))

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        with_zero = node.operation.endswith(".Scalar") and node.args[1] == 0
        even = node.operation.startswith(("aten.eq.", "aten.ne."))
        if not (with_zero and (walk.kind == "scale" or (even and walk.kind == "sign"))):
            for item in references(node):
                walk.kill(walk.value(item))
        return walk.constant(walk.result_dims(node))


class Quantifier(Reduction):
    """Whether any or all entries along dimensions are true."""

    @property
    def summary(self) -> str:
        """Its row in the table of rules."""
        return "permutations of the reduced axes are absorbed; scale and sign are killed"

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        walk.kill(walk.value(node.args[0]))
        return walk.constant(walk.result_dims(node))


class Constant:
    """One number everywhere: it is the same under any permutation, and zero carries any factor."""

    summary: str = "axes are free; nothing scales it; zero may be added to anything"

    def _number(self, node: Node) -> Any:
        name = node.operation.split(".")[1]
        if "zeros" in name:
            return 0
        place = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0}.get(name)
        return 1 if place is None else node.args[place]

    def axes(self, walk: AxisPass, node: Node) -> Value:
        return walk.fresh(node.shapes[0])

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        neutral = walk.constant(walk.result_dims(node))
        return GaugeValue(neutral.dims, neutral.cells, self._number(node) == 0)


class Counter:
    """Numbers that differ from place to place, the same at every run."""

    summary: str = "axes are fixed"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        return walk.fresh(node.shapes[0], Reason("constant"))

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        return walk.constant(walk.result_dims(node))


register(Embedding(), "aten.embedding.default")
register(Index(), "aten.index.Tensor", "aten._unsafe_index.Tensor", "aten.index_select.default")
register(Choice(), "aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf")
register(MaskedFill(), "aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
register(
    Condition(),
    *(f"aten.{name}.{form}" for name in ("eq", "ne", "lt", "le", "gt", "ge") for form in ("Scalar", "Tensor")),
    *(f"aten.{name}.default" for name in ("logical_and", "logical_or", "logical_not", "logical_xor", "bitwise_not")),
    *(f"aten.{name}.Tensor" for name in ("bitwise_and", "bitwise_or", "bitwise_xor")),
    "aten.isnan.default",
    "aten.isinf.default",
)
register(Quantifier(False), *(f"aten.{name}.{form}" for name in ("any", "all") for form in ("dim", "dims", "default")))
register(
    Constant(),
    *(
        f"aten.{name}.default"
        for name in ("full", "full_like", "zeros", "zeros_like", "ones", "ones_like", "new_zeros")
    ),
    *(f"aten.{name}.default" for name in ("new_full", "new_ones", "scalar_tensor")),
)
register(Counter(), "aten.arange.default", "aten.arange.start", "aten.arange.start_step", "aten.eye.default")
