"""Operators that act on each element alone: activations, arithmetic, comparisons, casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator
from metanet.errors import CheckpointError

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Neg": torch.neg, "Ceil": torch.ceil, "Floor": torch.floor, "Round": torch.round,
    "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Sin": torch.sin,
    "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan,
    "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh,
    "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Erf": torch.erf, "Sign": torch.sign, "Relu": torch.relu,
    "Not": torch.logical_not, "IsNaN": torch.isnan, "Softplus": functional.softplus, "Softsign": functional.softsign,
    "HardSwish": functional.hardswish, "Mish": functional.mish, "BitwiseNot": torch.bitwise_not,
}  # fmt: skip


def _enter_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    operator(name)(lambda run, node, x: function(x))


for _name, _function in UNARY.items():
    _enter_unary(_name, _function)


@operator("Identity", either=True)
def identity(run: Any, node: Node, x: Any) -> Any:
    return x


@operator("Dropout", static=(1, 2))
def dropout(run: Any, node: Node, x: Tensor, ratio: Any = None, training: Any = None) -> Any:
    if training is not None and training.any() and (ratio is None or ratio.any()):
        raise CheckpointError(f"{node} is in training mode", hint="export the model in inference mode")
    # In inference nothing is dropped; the mask is all true.
    return (x, torch.ones_like(x, dtype=torch.bool)) if len(node.outputs) > 1 else x


@operator("LeakyRelu")
def leaky_relu(run: Any, node: Node, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, node.attributes.get("alpha", 0.01))


@operator("Elu")
def elu(run: Any, node: Node, x: Tensor) -> Tensor:
    return functional.elu(x, node.attributes.get("alpha", 1.0))


@operator("Selu")
def selu(run: Any, node: Node, x: Tensor) -> Tensor:
    alpha = node.attributes.get("alpha", 1.67326319217681884765625)
    gamma = node.attributes.get("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@operator("Celu")
def celu(run: Any, node: Node, x: Tensor) -> Tensor:
    return functional.celu(x, node.attributes.get("alpha", 1.0))


@operator("HardSigmoid")
def hard_sigmoid(run: Any, node: Node, x: Tensor) -> Tensor:
    return (x * node.attributes.get("alpha", 0.2) + node.attributes.get("beta", 0.5)).clamp(0, 1)


@operator("ThresholdedRelu")
def thresholded_relu(run: Any, node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.attributes.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("Gelu")
def gelu(run: Any, node: Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=node.attributes.get("approximate", b"none").decode())


@operator("Swish")
def swish(run: Any, node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.attributes.get("alpha", 1.0) * x)


@operator("Shrink")
def shrink(run: Any, node: Node, x: Tensor) -> Tensor:
    limit, bias = node.attributes.get("lambd", 0.5), node.attributes.get("bias", 0.0)
    return torch.where(x > limit, x - bias, torch.where(x < -limit, x + bias, torch.zeros_like(x))).to(x.dtype)


@operator("IsInf")
def is_inf(run: Any, node: Node, x: Tensor) -> Tensor:
    found = torch.isinf(x)
    if not node.attributes.get("detect_positive", 1):
        found = found & (x < 0)
    if not node.attributes.get("detect_negative", 1):
        found = found & (x > 0)
    return found


@operator("PRelu")
def prelu(run: Any, node: Node, x: Tensor, slope: Tensor) -> Tensor:
    if run.opset < 7 and slope.numel() in (1, x.shape[1]):
        # One slope, or one for each channel, whatever the number of axes.
        return functional.prelu(x, slope.reshape(-1))
    if slope.ndim and slope.shape[0] == slope.numel() == x.shape[1] and slope.ndim == x.ndim - 1:
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x > 0, x, slope * x)


@operator("Clip", static=(1, 2))
def clip(run: Any, node: Node, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    least = node.attributes.get("min") if low is None else low.item()
    most = node.attributes.get("max") if high is None else high.item()
    if least is None and most is None:
        return x
    # Where the bounds cross, ONNX returns the upper one, as torch does.
    return x.clamp(least, most)


def _binary(name: str, function: Callable[[Any, Any], Any]) -> None:
    @operator(name, pointwise=True)
    def compute(run: Any, node: Node, a: Any, b: Any) -> Any:
        if run.opset < 7 and "axis" in node.attributes and isinstance(b, Tensor):
            # Before opset 7 the second operand was laid along an axis of the first.
            b = b.reshape(*b.shape, *[1] * (a.ndim - node.attributes["axis"] - b.ndim))
        return function(a, b)


def _divide(a: Any, b: Any) -> Any:
    whole = all(not x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, int) for x in (a, b))
    return torch.div(_tensor(a, b), b, rounding_mode="trunc") if whole else a / b


def in_type(x: Tensor, kind: torch.dtype) -> Tensor:
    """``x`` in a type; where it has it already, no operation is recorded."""
    return x if x.dtype == kind else x.to(kind)


def _tensor(value: Any, like: Any) -> Tensor:
    """``value`` as a tensor, in the type of ``like``."""
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=like.dtype)


for _name, _pair in {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _divide,
    "Equal": lambda a, b: a == b,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "And": lambda a, b: a & b,
    "Or": lambda a, b: a | b,
    "Xor": lambda a, b: a ^ b,
    "BitwiseAnd": lambda a, b: a & b,
    "BitwiseOr": lambda a, b: a | b,
    "BitwiseXor": lambda a, b: a ^ b,
}.items():
    _binary(_name, _pair)


@operator("Pow", pointwise=True)
def power(run: Any, node: Node, a: Any, b: Any) -> Tensor:
    result = torch.pow(a, b)
    # The result has the type of the base, whatever that of the exponent.
    return in_type(result, a.dtype) if isinstance(a, Tensor) else result


@operator("Mod", pointwise=True)
def modulo(run: Any, node: Node, a: Any, b: Any) -> Tensor:
    a = _tensor(a, b)
    return torch.fmod(a, b) if node.attributes.get("fmod", 0) else torch.remainder(a, b)


def _variadic(name: str, pair: Callable[[Any, Any], Any]) -> None:
    @operator(name, pointwise=name != "Mean")
    def compute(run: Any, node: Node, first: Any, *others: Any) -> Any:
        result = first
        for other in others:
            result = pair(result, other)
        return result / (1 + len(others)) if name == "Mean" else result


def _largest(a: Any, b: Any) -> Tensor:
    if not isinstance(b, Tensor):
        return a.clamp(min=b)
    return torch.maximum(a, b) if isinstance(a, Tensor) else b.clamp(min=a)


def _smallest(a: Any, b: Any) -> Tensor:
    if not isinstance(b, Tensor):
        return a.clamp(max=b)
    return torch.minimum(a, b) if isinstance(a, Tensor) else b.clamp(max=a)


_variadic("Max", _largest)
_variadic("Min", _smallest)
_variadic("Sum", lambda a, b: a + b)
_variadic("Mean", lambda a, b: a + b)


@operator("Where")
def where(run: Any, node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@operator("Cast", "CastLike", either=True)
def cast(run: Any, node: Node, x: Any, like: Any = None) -> Any:
    if like is not None:
        kind = run.as_tensor(like).dtype
        return in_type(run.as_tensor(x), kind)
    kind = run.dtype(node.attributes["to"], node)
    if isinstance(x, np.ndarray):
        return run.static_cast(x, kind)
    if x.is_floating_point() and kind == torch.uint8:
        # What lies outside the range is not defined by ONNX; through int64 it is at least the same everywhere.
        return x.to(torch.int64).to(kind)
    return in_type(x, kind)
