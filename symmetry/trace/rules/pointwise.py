"""Functions of one value, element by element: which of scalings and signs do they let through?"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from symmetry.trace.algebra import power
from symmetry.trace.axis_pass import AxisPass, Value
from symmetry.trace.export import Node
from symmetry.trace.gauge_pass import GaugePass, GaugeValue
from symmetry.trace.rules import register


@dataclass(frozen=True)
class Pointwise:
    """One pointwise function.

    Args:
        name: as it is recorded in ``spec.activations``; an empty string (the value as it is) is not recorded.
        scale: ``pass`` (f(ax) = a f(x) for a > 0) or ``kill``.
        sign: ``pass`` (odd), ``drop`` (even: the sign vanishes without harm) or ``kill``.
    """

    name: str
    scale: str
    sign: str

    @property
    def summary(self) -> str:
        """Its row in the table of rules."""
        return f"permutations pass; positive scale: {self.scale}; sign: {self.sign}"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value = walk.value(node.args[0])
        if self.name:
            walk.activations.append((self.name, value.dims))
        return Value(value.dims, value.origin if self.name == "" else None, value.part)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value = walk.value(node.args[0])
        if walk.kind == "linear":
            return value if not self.name else walk.kill(value)
        what = self.sign if walk.kind == "sign" else self.scale
        if what == "kill":
            return walk.kill(value)
        value = walk.constant(value.dims) if what == "drop" else value
        return walk.turned(node, value) if self.name in ("sin", "cos") else value


class Cast:
    """Another dtype or layout: the value as it is, if floating point stays floating point."""

    summary: str = "passes everything between floating point types; kills scale and sign otherwise"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value = walk.value(node.args[0])
        return Value(value.dims, value.origin, value.part)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value, dtype = walk.value(node.args[0]), node.kwargs.get("dtype")
        return walk.kill(value) if dtype is not None and not dtype.is_floating_point else value


class Power:
    """Powers with a fixed exponent, roots and reciprocals."""

    summary: str = "permutations pass; exponents multiply; a sign passes through odd powers and vanishes in even ones"

    def _exponent(self, node: Node) -> Fraction | None:
        fixed = {"sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2), "reciprocal": Fraction(-1), "square": Fraction(2)}
        name = node.operation.split(".")[1]
        if name in fixed:
            return fixed[name]
        exponent = node.args[1]
        return Fraction(exponent).limit_denominator(1 << 20) if isinstance(exponent, int | float) else None

    def axes(self, walk: AxisPass, node: Node) -> Value:
        return Value(walk.value(node.args[0]).dims)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value, exponent = walk.value(node.args[0]), self._exponent(node)
        if exponent is None or (walk.field.binary and exponent.denominator != 1):
            return walk.kill(value)
        return power(walk, value, exponent)


class Clamp:
    """Clamping to bounds: only a bound at zero lets scalings through."""

    summary: str = "permutations pass; a bound at 0 alone passes scale, any other kills scale and sign"

    def axes(self, walk: AxisPass, node: Node) -> Value:
        value = walk.value(node.args[0])
        walk.activations.append(("clamp", value.dims))
        return Value(value.dims)

    def gauge(self, walk: GaugePass, node: Node) -> GaugeValue:
        value = walk.value(node.args[0])
        bounds = [bound for bound in (*node.args[1:], *node.kwargs.values()) if bound is not None]
        if walk.field.binary or any(bound != 0 for bound in bounds):
            return walk.kill(value)
        return value


_FUNCTIONS = {
    ("pass", "pass"): ("clone", "alias", "detach", "contiguous", "lift_fresh_copy", "neg"),
    ("pass", "kill"): ("relu", "leaky_relu"),
    ("pass", "drop"): ("abs",),
    ("kill", "pass"): ("tanh", "sin", "erf", "asinh", "atan", "tan", "sinh", "asin"),
    ("kill", "drop"): ("cos", "cosh"),
    ("kill", "kill"): (
        "gelu", "silu", "sigmoid", "exp", "log", "log1p", "expm1", "elu", "celu", "selu", "softplus", "mish",
        "hardtanh", "hardswish", "hardsigmoid", "relu6", "logit", "erfc", "floor", "ceil", "round",
    ),
}  # fmt: skip

for (_scale, _sign), _names in _FUNCTIONS.items():
    for _name in _names:
        _label = "" if (_scale, _sign) == ("pass", "pass") else _name
        register(Pointwise(_label, _scale, _sign), f"aten.{_name}.default")
register(Cast(), "aten._to_copy.default", "aten.to.dtype")
register(
    Power(),
    "aten.pow.Tensor_Scalar",
    "aten.sqrt.default",
    "aten.rsqrt.default",
    "aten.reciprocal.default",
    "aten.square.default",
)
register(Clamp(), "aten.clamp.default", "aten.clamp_min.default", "aten.clamp_max.default")
