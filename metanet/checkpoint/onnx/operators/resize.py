"""Resize and Upsample: which elements of the input does each element of the output mix, and by how much?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from metanet.checkpoint.onnx.proto import Node
from metanet.checkpoint.onnx.registry import operator
from metanet.errors import CheckpointError

Array = np.ndarray[Any, Any]


def _places(transform: str, count: int, size: int, scale: float, roi: tuple[float, float]) -> Array:
    """Where each output element lies among the input's (ONNX, operator Resize, coordinate_transformation_mode)."""
    x = np.arange(count, dtype=np.float64)
    length = size * scale
    match transform:
        case "half_pixel":
            return (x + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            adjusted = count / length
            return size / 2 * (1 - adjusted) + (x + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (x + 0.5) / scale - 0.5 if count > 1 else x * 0
        case "align_corners":
            return x * (size - 1) / (length - 1) if length != 1 else x * 0
        case "asymmetric":
            return x / scale
        case "tf_crop_and_resize":
            start, end = roi
            if count > 1:
                return start * (size - 1) + x * (end - start) * (size - 1) / (count - 1)
            return x * 0 + 0.5 * (start + end) * (size - 1)
    raise CheckpointError(f"Resize with coordinates '{transform}'", hint="export it with half_pixel")


def _nearest(places: Array, rounding: str) -> Array:
    match rounding:
        case "round_prefer_floor":
            return np.ceil(places - 0.5)
        case "round_prefer_ceil":
            return np.floor(places + 0.5)
        case "floor":
            return np.floor(places)
        case "ceil":
            return np.ceil(places)
    raise CheckpointError(f"Resize with rounding '{rounding}'", hint="export it with floor")


def _curve(mode: str, distance: Array, a: float) -> Array:
    """The interpolation kernel: a tent, or the cubic of Keys (1981) with parameter ``a``."""
    x = np.abs(distance)
    if mode == "linear":
        return np.clip(1 - x, 0, None)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _mixture(mode: str, places: Array, size: int, scale: float, a: float, outside: bool, antialias: bool) -> Array:
    """Weights of each output element over the input's: (count, size)."""
    stretch = max(1 / scale, 1.0) if antialias else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) * stretch)
    base = np.floor(places)
    result = np.zeros((len(places), size))
    total = np.zeros(len(places))
    for step in range(-reach, reach + 2):
        neighbour = base + step
        weight = _curve(mode, (places - neighbour) / stretch, a)
        inside = (neighbour >= 0) & (neighbour <= size - 1)
        if outside:
            weight = np.where(inside, weight, 0.0)
        total += weight
        np.add.at(result, (np.arange(len(places)), np.clip(neighbour, 0, size - 1).astype(int)), weight)
    return result / total[:, None]


def _native(x: Tensor, node: Node, mode: str, transform: str, sizes: list[int], scales: list[float]) -> Tensor | None:
    """The upsampling of torch, where it means the same."""
    rank = x.ndim - 2
    if rank not in (1, 2, 3) or list(sizes[:2]) != list(x.shape[:2]):
        return None
    whole = all(math.isclose(n * s, m) for n, s, m in zip(x.shape, scales, sizes, strict=True))
    plain = whole and not node.attributes.get("antialias", 0)
    if (
        mode == "nearest"
        and transform == "asymmetric"
        and node.attributes.get("nearest_mode", b"") == b"floor"
        and plain
    ):
        return functional.interpolate(x, size=sizes[2:], mode="nearest")
    plain = plain and 1 not in sizes[2:]
    if mode == "linear" and rank == 2 and plain and transform in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return functional.interpolate(x, size=sizes[2:], mode="bilinear", align_corners=transform == "align_corners")
    return None


@operator("Upsample", static=(1,))
def upsample(run: Any, node: Node, x: Tensor, scales: Any = None) -> Tensor:
    factors = node.attributes["scales"] if scales is None else scales.tolist()
    chosen = Node("Resize", "", node.name, node.inputs, node.outputs, {**node.attributes})
    chosen.attributes |= {"coordinate_transformation_mode": b"asymmetric", "nearest_mode": b"floor"}
    return resize(run, chosen, x, None, np.asarray(factors, np.float64))


@operator("Resize", static=(1, 2, 3))
def resize(run: Any, node: Node, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    read = node.attributes.get
    if run.opset == 10 and node.operator == "Resize" and scales is None:
        roi, scales = None, roi
    mode = read("mode", b"nearest").decode()
    default = b"asymmetric" if run.opset == 10 else b"half_pixel"
    transform = read("coordinate_transformation_mode", default).decode()
    rounding = read("nearest_mode", b"floor" if run.opset == 10 else b"round_prefer_floor").decode()
    axes = [axis % x.ndim for axis in read("axes") or range(x.ndim)]
    factors = [1.0] * x.ndim
    target = list(x.shape)
    if sizes is not None and sizes.size:
        stated = [int(n) for n in sizes]
        ratios = [n / x.shape[axis] for n, axis in zip(stated, axes, strict=True)]
        policy = read("keep_aspect_ratio_policy", b"stretch")
        if policy != b"stretch":
            same = min(ratios) if policy == b"not_larger" else max(ratios)
            ratios = [same] * len(ratios)
            stated = [math.floor(same * x.shape[axis] + 0.5) for axis in axes]
        for axis, count, ratio in zip(axes, stated, ratios, strict=True):
            target[axis], factors[axis] = count, ratio
    elif scales is not None:
        for axis, factor in zip(axes, scales.tolist(), strict=True):
            factors[axis], target[axis] = factor, math.floor(x.shape[axis] * factor)
    run.check_size(target, node)
    native = _native(x, node, mode if mode != "bilinear" else "linear", transform, target, factors)
    if native is not None:
        return native
    bounds = dict.fromkeys(range(x.ndim), (0.0, 1.0))
    if roi is not None and roi.size:
        bounds |= {axis: (float(roi[i]), float(roi[len(axes) + i])) for i, axis in enumerate(axes)}
    outside = transform == "tf_crop_and_resize"
    for axis in axes:
        size, count = x.shape[axis], target[axis]
        if count == size and factors[axis] == 1 and not outside:
            continue
        places = _places(transform, count, size, factors[axis], bounds[axis])
        x = _along(run, node, x, axis, places, mode, rounding, factors[axis])
        if outside and ((places < 0) | (places > size - 1)).any():
            beyond = torch.tensor((places < 0) | (places > size - 1)).reshape(
                [-1 if i == axis else 1 for i in range(x.ndim)]
            )
            x = torch.where(beyond, torch.full((), read("extrapolation_value", 0.0), dtype=x.dtype), x)
    return x


def _along(run: Any, node: Node, x: Tensor, axis: int, places: Array, mode: str, rounding: str, scale: float) -> Tensor:
    size = x.shape[axis]
    if mode == "nearest":
        chosen = np.clip(_nearest(places, rounding), 0, size - 1).astype(np.int64)
        return x.index_select(axis, torch.tensor(chosen))
    if mode not in ("linear", "bilinear", "cubic"):
        raise CheckpointError(f"{node} has mode '{mode}'", hint="known are nearest, linear and cubic")
    curve = "cubic" if mode == "cubic" else "linear"
    weights = _mixture(
        curve, places, size, scale, node.attributes.get("cubic_coeff_a", -0.75),
        bool(node.attributes.get("exclude_outside", 0)), bool(node.attributes.get("antialias", 0)),
    )  # fmt: skip
    matrix = torch.tensor(weights, dtype=x.dtype)
    return torch.matmul(x.movedim(axis, -1), matrix.t()).movedim(-1, axis)
