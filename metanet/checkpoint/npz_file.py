"""How are the arrays of a NumPy archive (``.npz``) read and written, with pickled objects refused?

The format (numpy.org, ``numpy.lib.format``): a zip with one ``.npy`` member per array; a member is a magic number, a
header that is a Python literal, and the data. NumPy's own reader takes memory for whatever shape the header claims;
here the header is compared with the size of the member first.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet.checkpoint.limits import MAX_AXES, MAX_RATIO, MAX_TENSORS, check_tensor_name
from metanet.checkpoint.source import Raw, Source
from metanet.checkpoint.zip_file import read_member
from metanet.errors import CheckpointError, clean
from metanet.io import open_atomic

__all__ = ["as_tensor", "is_npz", "read_npz", "write_npz"]

SUFFIX = ".npy"
# Longer headers are only written for structured arrays, which hold no weights.
MAX_NPY_HEADER = 10_000
_HINT = "the file is damaged or forged: save it again"


def is_npz(names: list[str]) -> bool:
    """Whether a zip with these members is a NumPy archive."""
    return bool(names) and all(name.endswith(SUFFIX) for name in names)


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """The array as a tensor of its own memory, in the machine's byte order, its bits unchanged.

    Raises:
        TypeError: for element types that torch does not have.
    """
    native = array.dtype.newbyteorder("=")
    # `astype` with the same type keeps the bits of NaNs; only the byte order changes.
    return torch.from_numpy(np.array(array.astype(native, copy=False), copy=True))


def _header(data: bytes, name: Path, tensor: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, element type, and where the data begin."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=MAX_NPY_HEADER)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream, max_header_size=MAX_NPY_HEADER)
        else:
            raise ValueError(f"version {version} of the format")
    # NumPy falls back on Python's tokenizer for headers of old versions.
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, EOFError, KeyError, TokenError) as error:
        reason = f"has no valid .npy header ({clean(error, 80)})"
        raise CheckpointError(reason, file=name, tensor=tensor, hint=_HINT) from None
    return shape, fortran, dtype, stream.tell()


def _array(data: bytes, name: Path, tensor: str) -> Tensor | None:
    """The array in one member; ``None`` for text, which is no weight."""

    def refuse(reason: str, hint: str = _HINT) -> CheckpointError:
        return CheckpointError(reason, file=name, tensor=tensor, hint=hint)

    shape, fortran, dtype, start = _header(data, name, tensor)
    if dtype.hasobject:
        raise refuse(
            "holds pickled Python objects, which can be code and not data: nothing was run",
            "save plain numeric arrays with numpy.savez",
        )
    if len(shape) > MAX_AXES or any(size < 0 for size in shape):
        raise refuse(f"has a shape that is no list of at most {MAX_AXES} sizes")
    if math.prod(shape) * dtype.itemsize != len(data) - start or math.prod(max(n, 1) for n in shape) > 1 << 48:
        raise refuse(f"has shape {clean(list(shape), 60)} of {dtype} but {len(data) - start} bytes")
    if dtype.kind in "USMm":
        return None
    # NumPy refuses an empty buffer.
    flat = np.frombuffer(data, dtype=dtype, offset=start) if len(data) > start else np.empty(0, dtype)
    try:
        return as_tensor(flat.reshape(shape, order="F" if fortran else "C"))
    except TypeError:
        raise refuse(f"has dtype {clean(dtype, 40)}, which torch does not have", "convert it to float32") from None


def read_npz(archive: zipfile.ZipFile, path: Path, size: int) -> Raw:
    """The numeric arrays of a NumPy archive, in the order of the file.

    Args:
        archive: as checked by ``open_zip``.
        path: of the archive.
        size: of the archive in bytes.

    Raises:
        CheckpointError: for pickled objects, damaged headers and shapes that the data do not have.
    """
    names = archive.namelist()
    if len(names) > MAX_TENSORS:
        raise CheckpointError(f"holds more than {MAX_TENSORS} arrays", file=path, hint="split the file")
    state: dict[str, Tensor] = {}
    skipped = []
    for member in names:
        tensor = check_tensor_name(member.removesuffix(SUFFIX), path)
        value = _array(read_member(archive, member, path, MAX_RATIO * size), path, tensor)
        if value is None:
            skipped.append(tensor)
        else:
            state[tensor] = value
    if not state:
        raise CheckpointError("holds no numeric arrays", file=path, hint="save the weights with numpy.savez")
    return Raw(state, Source(path, "npz", skipped=tuple(clean(entry, 60) for entry in skipped)))


def write_npz(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write ``state`` as a NumPy archive, uncompressed, whole or not at all.

    Raises:
        CheckpointError: for a dtype that NumPy does not have.
    """
    for tensor, value in state.items():
        check_tensor_name(tensor, path)
        try:
            value.detach().cpu().numpy()
        except TypeError:
            reason = f"NumPy cannot hold it ({value.dtype})"
            raise CheckpointError(reason, file=path, tensor=tensor, hint="save to a .safetensors file") from None
    with open_atomic(path) as file, zipfile.ZipFile(file, "w") as archive:
        for tensor, value in state.items():
            buffer = io.BytesIO()
            array = np.asarray(value.detach().cpu().numpy())
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(f"{tensor}{SUFFIX}", buffer.getvalue())
