"""How is a safetensors file read and written?

The format (github.com/huggingface/safetensors, section "Format"): eight bytes with the length of the header, the
header as JSON, the data. Reading checks what the specification demands (no duplicate names, no holes, no overlaps)
and keeps the header's order of names. Writing keeps the order of the state in the header and orders the data by
element size, so that every tensor is aligned.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from metanet.checkpoint.limits import MAX_AXES, MAX_HEADER_BYTES, MAX_TENSORS, check_tensor_name
from metanet.checkpoint.source import Raw, Source
from metanet.errors import CheckpointError, clean
from metanet.io import open_atomic, parse_json

__all__ = ["DTYPES", "looks_like_safetensors", "read_safetensors", "write_safetensors"]

METADATA = "__metadata__"
MAX_ELEMENTS = 1 << 48
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
        "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
        "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
        "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    }
)  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HINT = "the file is damaged or forged: save it again"


def looks_like_safetensors(start: bytes, size: int) -> bool:
    """Whether the first nine bytes can be those of a safetensors file of ``size`` bytes."""
    return len(start) >= 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8


def _header(file: BinaryIO, name: Path, size: int) -> tuple[dict[str, Any], int]:
    start = file.read(8)
    if len(start) < 8:
        raise CheckpointError(f"is cut short: {size} bytes are no safetensors file", file=name, hint=_HINT)
    length = struct.unpack("<Q", start)[0]
    if length > size - 8 or length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"its header says that it has {length} bytes, the file has {size} (limit {MAX_HEADER_BYTES})",
            file=name,
            hint=_HINT,
        )
    try:
        header = parse_json(file.read(length).decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"its header is not valid JSON ({clean(error, 100)})", file=name, hint=_HINT) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"its header is a {type(header).__name__}, expected an object", file=name, hint=_HINT)
    return header, 8 + length


def _metadata(header: dict[str, Any], name: Path) -> dict[str, str]:
    value = header.pop(METADATA, {})
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{METADATA} is no mapping from text to text", file=name, hint=_HINT)
    return value


def _entry(tensor: str, entry: Any, available: int, name: Path) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(reason, file=name, tensor=tensor, hint=_HINT)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse("is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise refuse(f"has dtype {clean(repr(kind), 40)}, known are {', '.join(DTYPES)}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise refuse(f"has a shape that is no list of at most {MAX_AXES} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise refuse("has data_offsets that are no pair of integers")
    begin, end = offsets
    if not 0 <= begin <= end <= available:
        raise refuse(f"lies at bytes {clean(begin, 40)} to {clean(end, 40)} of {available}")
    needed = math.prod(shape) * DTYPES[kind].itemsize
    # A size of 0 beside a huge one needs no bytes, yet torch cannot hold it.
    if needed != end - begin or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise refuse(f"has shape {clean(shape, 60)} of {kind} but {end - begin} bytes")
    return DTYPES[kind], tuple(shape), begin, end


def read_safetensors(file: BinaryIO, name: Path, size: int) -> Raw:
    """The tensors in a safetensors file, in the order of its header.

    Args:
        file: seekable, at its start.
        name: for messages.
        size: of the file in bytes.

    Raises:
        CheckpointError: where the file breaks the specification.
    """
    header, start = _header(file, name, size)
    metadata = _metadata(header, name)
    if not header:
        raise CheckpointError("holds no tensors", file=name, hint="save a state dict with at least one tensor")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"holds more than {MAX_TENSORS} tensors", file=name, hint="split the file")
    entries = {check_tensor_name(tensor, name): _entry(tensor, e, size - start, name) for tensor, e in header.items()}
    position = 0
    for tensor, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            what = "overlaps another" if begin < position else "leaves a hole in front of it"
            raise CheckpointError(f"{what} at byte {begin}", file=name, tensor=tensor, hint=_HINT)
        position = end
    if position != size - start:
        raise CheckpointError(f"{size - start - position} bytes belong to no tensor", file=name, hint=_HINT)
    state: dict[str, Tensor] = {}
    for tensor, (dtype, shape, begin, end) in entries.items():
        file.seek(start + begin)
        data = bytearray(file.read(end - begin))
        if len(data) != end - begin:
            raise CheckpointError("is cut short", file=name, tensor=tensor, hint=_HINT)
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        state[tensor] = flat.reshape(shape)
    return Raw(state, Source(name, "safetensors"), MappingProxyType(metadata))


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``state`` to ``path``, whole or not at all.

    Raises:
        CheckpointError: for a name or a dtype that the format does not have.
    """
    for tensor, value in state.items():
        check_tensor_name(tensor, path)
        if tensor == METADATA or value.dtype not in _NAMES or value.layout != torch.strided:
            raise CheckpointError(
                f"safetensors cannot hold it ({value.dtype}, {value.layout})",
                file=path,
                tensor=tensor,
                hint="leave it out",
            )
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    header.update(dict.fromkeys(state))
    position = 0
    order = sorted(state, key=lambda tensor: -state[tensor].dtype.itemsize)
    for tensor in order:
        value = state[tensor]
        end = position + value.numel() * value.dtype.itemsize
        header[tensor] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open_atomic(path) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for tensor in order:
            value = state[tensor].detach().cpu().contiguous()
            if value.numel():
                file.write(value.reshape(-1).view(torch.uint8).numpy().data)
