"""The architectures, states and kinds of file that the tests of this folder share."""

from __future__ import annotations

import io
import itertools
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanet.checkpoint import Architecture

ARCHITECTURES: dict[str, Architecture] = {
    "mlp": Architecture("mlp", {"inputs": 5, "widths": [6, 4], "outputs": 3, "activation": "relu"}),
    "linear": Architecture("mlp", {"inputs": 5, "widths": [], "outputs": 3, "activation": "tanh"}),
    "mlp_residual_norm": Architecture(
        "mlp", {"inputs": 5, "widths": [6, 6], "outputs": 3, "activation": "sin", "norm": "batch", "residual": True}
    ),
    "cnn": Architecture("cnn", {"channels": 1, "size": 8, "widths": [4, 5], "outputs": 3, "activation": "gelu"}),
    "cnn_pool_flatten": Architecture(
        "cnn",
        {
            "channels": 2, "size": 9, "widths": [4, 5], "outputs": 3, "activation": "tanh", "norm": "batch",
            "strides": [2, 2], "reduce": "max", "head": "flatten",
        },
    ),
    "cnn_stride_flatten": Architecture(
        "cnn",
        {
            "channels": 2, "size": 9, "widths": [4, 5], "outputs": 3, "activation": "relu", "strides": [2, 2],
            "head": "flatten", "kernel": 5,
        },
    ),
    "cnn_residual": Architecture(
        "cnn",
        {
            "channels": 1, "size": 8, "widths": [4, 4, 6], "outputs": 3, "activation": "relu", "norm": "batch",
            "residual": True, "strides": [1, 1, 2],
        },
    ),
    "cnn_residual_pool": Architecture(
        "cnn",
        {
            "channels": 1, "size": 8, "widths": [4, 4], "outputs": 3, "activation": "relu", "residual": True,
            "strides": [1, 2], "reduce": "average",
        },
    ),
    "transformer": Architecture(
        "transformer",
        {
            "channels": 2, "size": 6, "patch": [3, 2], "width": 6, "heads": 2, "hidden": [5, 4], "outputs": 3,
            "activation": "relu",
        },
    ),
    "transformer_token": Architecture(
        "transformer",
        {
            "channels": 1, "size": 4, "patch": [1, 4], "width": 4, "heads": 1, "hidden": [5], "outputs": 3,
            "activation": "gelu", "norm": "none", "readout": "token",
        },
    ),
    "gru": Architecture("gru", {"channels": 2, "size": 3, "widths": [4, 5], "outputs": 3, "norm": "layer"}),
    "gru_relu_mean": Architecture(
        "gru", {"channels": 1, "size": 3, "widths": [4], "outputs": 3, "activation": "relu", "readout": "mean"}
    ),
    "chains": Architecture(
        "chains",
        {
            "chains": [
                {"name": "trunk", "input": "x", "layers": ["t.0", "t.2"], "widths": [4, 6, 5],
                 "activations": ["tanh", "tanh"]},
                {"name": "one", "input": "trunk", "layers": ["one"], "widths": [5, 2], "activations": ["identity"]},
                {"name": "two", "input": "trunk", "layers": ["two.0"], "widths": [5, 3], "activations": ["identity"],
                 "bias": [False]},
                {"name": "far", "input": "y", "layers": ["far"], "widths": [3, 2], "activations": ["identity"]},
            ],
            "noises": [{"parameter": "log_std", "input": "trunk", "shape": [5, 2]}],
            "extras": {"t.alpha": [2, 1]},
        },
    ),
}  # fmt: skip


def random_state(architecture: Architecture, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors that fit ``architecture``; counters stay integers, variances positive."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, tensor in architecture.build().state_dict().items():
        if tensor.is_floating_point():
            tensor = torch.randn(tensor.shape, generator=generator, dtype=dtype)
            tensor = tensor.abs() + 0.1 if name.endswith("running_var") else tensor
        state[name] = tensor
    return state


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two states are equal bit by bit: names and their order, dtypes, shapes, NaNs included."""
    return list(a) == list(b) and all(same_bits(a[name], b[name]) for name in a)


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bytes_of(a) == bytes_of(b)


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def torch_bytes(value: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def linear_state(*widths: int, names: str = "{}", seed: int = 0, step: int = 2) -> OrderedDict[str, Tensor]:
    """A chain of linear layers; ``names`` has the number of the layer where ``{}`` stands."""
    generator = torch.Generator().manual_seed(seed)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        state[f"{names.format(i * step)}.weight"] = torch.randn(outputs, inputs, generator=generator)
        state[f"{names.format(i * step)}.bias"] = torch.randn(outputs, generator=generator)
    return state
