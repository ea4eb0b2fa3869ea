"""Safetensors files that break the specification."""

from __future__ import annotations

import json
import struct
from typing import Any

from .attack import Attack, file


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def st(name: str, says: str, tensor: str, header: Any, data: int = 0, length: int | None = None) -> Attack:
    """A file with this header and so many zero bytes of data."""
    write = file("a.safetensors", lambda: safetensors_bytes(header, bytes(data), length))
    return Attack(f"safetensors_{name}", write, says, tensor)


def one(name: str, says: str, described: Any, data: int = 4) -> Attack:
    """A file with one tensor, described so."""
    return st(name, says, "a", {"a": described}, data)


_TWICE = (
    b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
    b' "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
)

SAFETENSORS = (
    Attack("safetensors_short", file("a.safetensors", lambda: b"\x10\0\0"), "is cut short"),
    st("header_beyond_file", "its header says", "", {}, length=1 << 20),
    st("header_absurd", "its header says", "", {}, length=(1 << 64) - 1),
    st("not_json", "not valid JSON", "", b"{nope}"),
    st("not_utf8", "not valid JSON", "", b'{"\xff": 1}'),
    st("nan", "NaN is not JSON", "", b'{"w": NaN}'),
    st("deep", "nested too deeply", "", b'{"w":' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
    st("list", "header is a list", "", []),
    st("no_tensors", "holds no tensors", "", {}),
    st("name_twice", "duplicate key 'w'", "", _TWICE, 4),
    st("overlap", "overlaps another", "b", {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12),
    st("same_bytes", "overlaps another", "b", {"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, 8),
    st("hole", "leaves a hole", "b", {"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, 12),
    st("trailing", "5 bytes belong to no tensor", "", {"a": entry([1], 0, 4)}, 9),
    st("metadata", "no mapping from text to text", "", {"__metadata__": {"a": 1}, "w": entry([1], 0, 4)}, 4),
    st("name_control", "not printable", "a\\x07", {"a\x07": entry([1], 0, 4)}, 4),
    st("overflow", "but 0 bytes", "a", {"a": entry([1 << 63, 2], 0, 0), "b": entry([1], 0, 4)}, 4),
    st("zero_times_huge", "but 0 bytes", "a", {"a": entry([0, 1 << 63], 0, 0), "b": entry([1], 0, 4)}, 4),
    one("absurd_shape", "but 4 bytes", entry([1 << 62, 1 << 62], 0, 4)),
    one("truncated", "lies at bytes 0 to 16 of 9", entry([4], 0, 16), 9),
    one("backwards", "lies at bytes 4 to 0", entry([1], 4, 0)),
    one("negative_offset", "lies at bytes -4", entry([1], -4, 0)),
    one("negative_size", "no list of", entry([-1], 0, 4)),
    one("float_size", "no list of", entry([1.0], 0, 4)),
    one("boolean_size", "no list of", entry([True], 0, 4)),
    one("many_axes", "no list of", entry([1] * 65, 0, 4)),
    one("dtype", "dtype 'F31'", entry([1], 0, 4, "F31")),
    one("dtype_list", "has dtype", entry([1], 0, 4, ["F32"])),
    one("extra_field", "is not described by", {**entry([1], 0, 4), "run": "x"}),
    one("entry_list", "is not described by", [1]),
    one("offsets", "no pair of integers", {**entry([1], 0, 4), "data_offsets": [0]}),
)
