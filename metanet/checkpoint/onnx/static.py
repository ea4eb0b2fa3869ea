"""How is arithmetic on shapes and other known numbers done, so that it leaves no trace in an exported graph?

With NumPy, outside of torch. An operator that is missing here, given known numbers only, is run with torch instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from metanet.checkpoint.onnx.operators.shape import axes_of
from metanet.checkpoint.onnx.proto import Node

__all__ = ["STATIC"]

Array = np.ndarray[Any, Any]


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu" and b.dtype.kind in "iu":
        quotient = np.floor_divide(np.abs(a), np.abs(b))
        signed: Array = np.asarray(quotient * np.sign(a) * np.sign(b)).astype(a.dtype)
        return signed
    return np.asarray(a / b)


def _power(a: Array, b: Array) -> Array:
    return np.asarray(np.power(a.astype(np.float64), b) if a.dtype.kind in "iu" and (b < 0).any() else np.power(a, b))


PAIRS: dict[str, Callable[[Array, Array], Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide, "Pow": _power, "Max": np.maximum,
    "Min": np.minimum, "Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal, "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal, "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
}  # fmt: skip
SINGLES: dict[str, Callable[[Array], Any]] = {
    "Neg": np.negative, "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil, "Round": np.round, "Sqrt": np.sqrt,
    "Exp": np.exp, "Log": np.log, "Not": np.logical_not, "Identity": np.asarray, "Sign": np.sign,
    "Reciprocal": np.reciprocal,
}  # fmt: skip
SUMS: dict[str, Callable[..., Any]] = {
    "ReduceSum": np.sum, "ReduceProd": np.prod, "ReduceMax": np.max, "ReduceMin": np.min, "ReduceMean": np.mean,
}  # fmt: skip


def _pair(function: Callable[[Array, Array], Any]) -> Callable[..., Any]:
    def compute(run: Any, node: Node, first: Array, *others: Array) -> Any:
        for other in others:
            first = np.asarray(function(first, other))
        return first

    return compute


def _single(function: Callable[[Array], Any]) -> Callable[..., Any]:
    return lambda run, node, x: np.asarray(function(x)).astype(x.dtype if x.dtype.kind != "b" else bool)


def _sum(function: Callable[..., Any]) -> Callable[..., Any]:
    def compute(run: Any, node: Node, x: Array, axes: Array | None = None) -> Any:
        chosen = axes_of(node, axes)
        if not chosen and node.attributes.get("noop_with_empty_axes", 0):
            return x
        along = tuple(chosen) if chosen else None
        return np.asarray(function(x, axis=along, keepdims=bool(node.attributes.get("keepdims", 1)))).astype(x.dtype)

    return compute


def _modulo(run: Any, node: Node, a: Array, b: Array) -> Any:
    return np.asarray(np.fmod(a, b) if node.attributes.get("fmod", 0) else np.mod(a, b))


def _slice(
    run: Any, node: Node, x: Array, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Any:
    begin: list[int] = node.attributes["starts"] if starts is None else starts.tolist()
    stop: list[int] = node.attributes["ends"] if ends is None else ends.tolist()
    chosen = axes_of(node, axes) or list(range(len(begin)))
    strides = [1] * len(begin) if steps is None else steps.tolist()
    for axis, low, high, step in zip(chosen, begin, stop, strides, strict=True):
        places = list(range(x.shape[axis])[slice(low, high, step)])
        x = np.take(x, np.asarray(places, np.int64), axis=axis)
    return x


def _gather(run: Any, node: Node, x: Array, index: Array) -> Any:
    return np.asarray(np.take(x, index.astype(np.int64), axis=node.attributes.get("axis", 0)))


def _concat(run: Any, node: Node, *arrays: Array) -> Any:
    return np.concatenate(arrays, axis=node.attributes.get("axis", 1))


def _squeeze(run: Any, node: Node, x: Array, axes: Array | None = None) -> Any:
    chosen = axes_of(node, axes)
    return np.squeeze(x, axis=None if chosen is None else tuple(chosen))


def _unsqueeze(run: Any, node: Node, x: Array, axes: Array | None = None) -> Any:
    return np.expand_dims(x, tuple(axes_of(node, axes) or ()))


def _reshape(run: Any, node: Node, x: Array, target: Array | None = None) -> Any:
    wanted = [int(n) for n in (node.attributes["shape"] if target is None else target.tolist())]
    if not node.attributes.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


def _cast(run: Any, node: Node, x: Array) -> Any:
    return run.static_cast(x, run.file_dtype(node.attributes["to"], node))


def _where(run: Any, node: Node, condition: Array, a: Array, b: Array) -> Any:
    return np.where(condition, a, b)


def _expand(run: Any, node: Node, x: Array, target: Array) -> Any:
    sizes = np.broadcast_shapes(x.shape, tuple(int(n) for n in target))
    run.check_size(sizes, node)
    return np.broadcast_to(x, sizes).copy()


def _split(run: Any, node: Node, x: Array, sizes: Array | None = None) -> Any:
    axis = node.attributes.get("axis", 0)
    chosen = node.attributes.get("split") if sizes is None else sizes.tolist()
    if chosen is None:
        return tuple(np.array_split(x, len(node.outputs), axis))
    return tuple(np.split(x, np.cumsum(chosen)[:-1].astype(int), axis))


def _tile(run: Any, node: Node, x: Array, repeats: Array) -> Any:
    run.check_size([size * int(n) for size, n in zip(x.shape, repeats, strict=True)], node)
    return np.tile(x, repeats)


def _transpose(run: Any, node: Node, x: Array) -> Any:
    return np.transpose(x, node.attributes.get("perm"))


def _non_zero(run: Any, node: Node, x: Array) -> Any:
    return np.asarray(np.nonzero(x), np.int64)


def _scatter_nd(run: Any, node: Node, x: Array, index: Array, updates: Array) -> Any:
    if node.attributes.get("reduction", b"none") != b"none":
        return None
    result = x.copy()
    result[tuple(np.moveaxis(index, -1, 0))] = updates
    return result


STATIC: dict[str, Callable[..., Any]] = {
    **{name: _pair(function) for name, function in PAIRS.items()},
    **{name: _single(function) for name, function in SINGLES.items()},
    **{name: _sum(function) for name, function in SUMS.items()},
    "Mod": _modulo, "Slice": _slice, "Gather": _gather, "Concat": _concat, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "Reshape": _reshape, "Cast": _cast, "Where": _where, "Expand": _expand, "Split": _split,
    "Transpose": _transpose, "NonZero": _non_zero, "Tile": _tile, "ScatterND": _scatter_nd,
}  # fmt: skip
