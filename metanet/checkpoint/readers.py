"""Which reader does a file need? Decided by what is in it, never by its name."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from metanet.checkpoint.hf_folder import INDEXES, is_hf_folder, read_hf_folder
from metanet.checkpoint.keras_file import HDF5_START, WEIGHTS_MEMBER, read_keras_h5, read_keras_zip
from metanet.checkpoint.limits import READABLE, file_size
from metanet.checkpoint.npz_file import is_npz, read_npz
from metanet.checkpoint.onnx import looks_like_onnx, read_onnx
from metanet.checkpoint.safetensors_file import looks_like_safetensors, read_safetensors
from metanet.checkpoint.sb3_file import POLICY, read_sb3
from metanet.checkpoint.script_file import is_script, read_script
from metanet.checkpoint.source import Raw
from metanet.checkpoint.torch_file import LEGACY_START, read_torch
from metanet.checkpoint.zip_file import ZIP_START, open_zip
from metanet.errors import CheckpointError

__all__ = ["find_weights", "read"]

WEIGHTS = ("weights.safetensors", "model.safetensors")
SUFFIXES = (".safetensors", ".pt", ".pth", ".zip", ".ckpt", ".npz", ".h5", ".keras", ".onnx")

# Formats that people will try, told apart by their first bytes so that the refusal can say what the file is.
OTHERS = (
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x80", "a pickle that torch did not write; pickles can run code"),
)


def find_weights(folder: Path) -> Path:
    """The file in ``folder`` that holds the weights.

    Raises:
        CheckpointError: where there is none, or several and none of the usual names.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"cannot be listed ({error.strerror})", file=folder, hint="check the path") from None
    if len(files) != 1:
        found = "no checkpoint file" if not files else f"{len(files)} checkpoint files, such as '{files[0].name}'"
        raise CheckpointError(f"the folder holds {found}", file=folder, hint=f"name one file, or call it {WEIGHTS[0]}")
    return files[0]


def read(
    path: Path, key: str | None = None, inputs: Sequence[Any] | None = None, plain: Sequence[str] = ()
) -> Raw:
    """The tensors in ``path``.

    Args:
        path: a file, or a folder: one of the Hugging Face Hub, or one that holds a single file.
        key: where the state dict is inside a torch file.
        inputs: example inputs for the graph in an ONNX file.
        plain: entries of a torch state dict that may be plain numbers or text; they become metadata.

    Raises:
        CheckpointError: for anything that is no checkpoint, with the reason.
    """
    if path.name in INDEXES and path.is_file():
        path = path.parent
    if path.is_dir():
        if is_hf_folder(path):
            return read_hf_folder(path)
        path = find_weights(path)
    size = file_size(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
            file.seek(0)
            if start.startswith(ZIP_START):
                return _read_zip(file, path, size, key, plain)
            if start.startswith(HDF5_START):
                return read_keras_h5(file, path, size)
            if start.startswith(LEGACY_START):
                return read_torch(file, path, size, key, plain)
            if path.suffix == ".safetensors" or looks_like_safetensors(start, size):
                return read_safetensors(file, path, size)
            known = any(start.startswith(magic) for magic, _ in OTHERS)
            if not known and (path.suffix == ".onnx" or _is_onnx(file, size)):
                return read_onnx(file, path, size, inputs)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror or error})", file=path, hint="check the path") from None
    what = next((what for magic, what in OTHERS if start.startswith(magic)), "no checkpoint of a known format")
    raise CheckpointError(f"is {what}", file=path, hint=READABLE)


def _is_onnx(file: BinaryIO, size: int) -> bool:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return looks_like_onnx(data, size)


def _read_zip(file: BinaryIO, path: Path, size: int, key: str | None, plain: Sequence[str]) -> Raw:
    archive = open_zip(file, path)
    names = archive.namelist()
    if POLICY in names:
        return read_sb3(archive, path, size)
    if WEIGHTS_MEMBER in names:
        return read_keras_zip(archive, path, size)
    if is_npz(names):
        return read_npz(archive, path, size)
    if is_script(names):
        return read_script(archive, path)
    file.seek(0)
    return read_torch(file, path, size, key, plain)
