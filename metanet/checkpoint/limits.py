"""How large and how strange may a checkpoint file be before it is refused?

Every limit is checked on what a file *says*, before memory is taken for what it holds.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from metanet.errors import CheckpointError

__all__ = [
    "MAX_AXES",
    "MAX_HEADER_BYTES",
    "MAX_MEMBERS",
    "MAX_NAME",
    "MAX_PICKLE_BYTES",
    "MAX_RATIO",
    "MAX_TENSORS",
    "READABLE",
    "check_tensor_name",
    "file_size",
]

MAX_TENSORS = 100_000
MAX_MEMBERS = 200_000
MAX_NAME = 512
MAX_AXES = 16
MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_PICKLE_BYTES = 32 * 1024 * 1024
# Weights hardly compress; text in a pickle compresses well, but not a hundredfold.
MAX_RATIO = 100

READABLE = (
    "readable are safetensors, torch state dicts (.pt, .pth, .ckpt), TorchScript, ONNX, Keras (.h5, .keras), .npz, "
    "Hugging Face folders and Stable-Baselines3 zips"
)


def check_tensor_name(name: object, file: str | os.PathLike[str]) -> str:
    """``name`` if it can safely name a tensor.

    Raises:
        CheckpointError: if it is no text, is empty, too long, or holds control characters.
    """
    if not isinstance(name, str):
        raise CheckpointError(
            f"a tensor is named by a {type(name).__name__}, expected text", file=file, hint="save a plain state dict"
        )
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise CheckpointError(
            f"a tensor name of {len(name)} characters is empty, too long or not printable",
            file=file,
            tensor=name,
            hint=f"use 1 to {MAX_NAME} printable characters",
        )
    return name


def file_size(path: Path) -> int:
    """Size of ``path`` in bytes.

    Raises:
        CheckpointError: if there is no such file, or it is a device, a pipe or empty.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot be opened ({reason})", file=path, hint="check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("is not a regular file", file=path, hint=READABLE)
    if status.st_size == 0:
        raise CheckpointError("is empty", file=path, hint="copy or save the file again")
    return status.st_size
