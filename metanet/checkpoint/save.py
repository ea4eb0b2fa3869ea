"""How does a state go back to disk, in a new file of ours or in the kind of file that it came from?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from metanet.checkpoint.architecture import Architecture
from metanet.checkpoint.hf_folder import write_hf_folder
from metanet.checkpoint.keras_file import write_keras_h5, write_keras_zip
from metanet.checkpoint.npz_file import write_npz
from metanet.checkpoint.onnx import write_onnx
from metanet.checkpoint.safetensors_file import write_safetensors
from metanet.checkpoint.sb3_file import write_sb3
from metanet.checkpoint.script_file import write_script
from metanet.checkpoint.source import Source
from metanet.errors import CheckpointError, clean
from metanet.io import open_atomic

__all__ = ["ARCHITECTURE_FILE", "ARCHITECTURE_KEY", "METRICS_KEY", "save_checkpoint", "save_like"]

ARCHITECTURE_FILE = "architecture.json"
ARCHITECTURE_KEY = "metanet.architecture"
METRICS_KEY = "metanet.metrics"
# Formats whose files hold more than tensors: new weights go into a copy of the original.
LIKE_ORIGINAL: Mapping[str, Callable[[Path, Mapping[str, Tensor], Path], None]] = MappingProxyType(
    {
        "torchscript": write_script,
        "keras-h5": write_keras_h5,
        "keras-zip": write_keras_zip,
        "onnx": write_onnx,
    }
)


def _metadata(
    architecture: Architecture | None, metrics: Mapping[str, Any] | None, path: str | os.PathLike[str]
) -> dict[str, str]:
    result: dict[str, str] = {}
    try:
        if architecture is not None:
            result[ARCHITECTURE_KEY] = json.dumps(architecture.to_json(), separators=(",", ":"), allow_nan=False)
        if metrics:
            result[METRICS_KEY] = json.dumps(dict(metrics), separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the metrics are not JSON ({clean(error, 80)})", file=path, hint="use text and finite numbers"
        ) from None
    return result


def save_checkpoint(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    architecture: Architecture | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a safetensors file that carries its architecture and metrics, so that it needs no other file.

    Args:
        path: the file, ending in ``.safetensors``; its folder must exist.
        state: the tensors; they come back bit by bit, in this order.
        architecture: what they belong to; checked.
        metrics: what was measured on this network: JSON values.

    Raises:
        CheckpointError: where the state does not fit the architecture, or cannot be stored.
    """
    if Path(path).suffix != ".safetensors":
        raise CheckpointError(
            "a new checkpoint is a safetensors file", file=path, hint="let the name end in .safetensors"
        )
    try:
        if architecture is not None:
            architecture.check_state(state)
    except CheckpointError as error:
        raise error.within(path) from None
    _write(Path(path), lambda: write_safetensors(Path(path), state, _metadata(architecture, metrics, path)))


def _write(path: Path, work: Any) -> None:
    try:
        work()
    except OSError as error:
        raise CheckpointError(f"cannot be written ({error.strerror})", file=path, hint="check the folder") from None


def _compact(tensor: Tensor) -> Tensor:
    # torch.save writes whole storages, so a view would take everything beside it along.
    tensor = tensor.detach().cpu()
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _write_torch(path: Path, state: Mapping[str, Tensor], source: Source) -> None:
    value: Any = {name: _compact(tensor) for name, tensor in state.items()}
    for part in reversed(source.key.split("/") if source.key else []):
        value = {part: value}
    with open_atomic(path) as file:
        torch.save(value, file, _use_new_zipfile_serialization=source.kind != "torch-legacy")


def save_like(
    source: Source,
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    architecture: Architecture | None,
    metrics: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> None:
    """Write ``state`` to ``path`` in the kind of file that ``source`` is; see :meth:`Checkpoint.save`."""
    target = Path(path)
    if source.kind == "safetensors":
        complete = {**metadata, **_metadata(architecture, metrics, path)}
        _write(target, lambda: write_safetensors(target, state, complete))
    elif source.kind == "sb3":
        compact = {name: _compact(tensor) for name, tensor in state.items()}
        _write(target, lambda: write_sb3(target, compact, source.path))
    elif source.kind == "npz":
        _write(target, lambda: write_npz(target, state))
    elif source.kind == "huggingface":
        _write(target, lambda: write_hf_folder(target, state, source, metadata))
    elif source.kind in LIKE_ORIGINAL:
        _write(target, lambda: LIKE_ORIGINAL[source.kind](target, state, source.path))
    else:
        _write(target, lambda: _write_torch(target, state, source))
