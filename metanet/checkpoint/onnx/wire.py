"""How is a protocol buffer taken apart and put together again without a schema compiler?

The encoding (protobuf.dev/programming-guides/encoding): a message is a sequence of fields; a field is a key (number and
wire type) and a varint, 4 bytes, 8 bytes, or a length and so many bytes. Lengths are compared with what is there before
anything is taken; places in the file are kept, so that new weights can be spliced in and all else stays byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metanet.errors import CheckpointError

__all__ = [
    "BYTES",
    "FIXED32",
    "FIXED64",
    "VARINT",
    "Field",
    "damaged",
    "encode_varint",
    "fields",
    "packed_varints",
    "splice",
]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    Args:
        number: from the schema.
        kind: wire type.
        value: of a varint or fixed field, as an unsigned integer.
        start: where its key begins in the file.
        body: where its content begins, behind a length.
        end: where it ends.
        length_at: where the length stands, for wire type :data:`BYTES`.
    """

    number: int
    kind: int
    value: int
    start: int
    body: int
    end: int
    length_at: int


def damaged(reason: str) -> CheckpointError:
    return CheckpointError(reason, hint="the file is damaged or no ONNX file: copy or export it again")


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    value = 0
    for i in range(MAX_VARINT_BYTES):
        if at + i >= end:
            raise damaged(f"is cut short at byte {end}")
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + i + 1
    raise damaged(f"holds a number of more than {MAX_VARINT_BYTES} bytes at byte {at}")


def fields(data: Any, start: int, end: int) -> Iterator[Field]:
    """The fields of the message between two places.

    Args:
        data: indexable bytes (``bytes``, ``mmap``).
        start: of the message.
        end: of the message.

    Raises:
        CheckpointError: for lengths beyond the message and for wire types that ONNX does not use.
    """
    at = start
    while at < end:
        key, body = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        value, length_at = 0, body
        if number == 0:
            raise damaged(f"holds a field without number at byte {at}")
        if kind == VARINT:
            value, stop = _varint(data, body, end)
        elif kind == BYTES:
            length, body = _varint(data, body, end)
            stop = body + length
        elif kind in (FIXED32, FIXED64):
            stop = body + (4 if kind == FIXED32 else 8)
        else:
            raise damaged(f"holds a field of wire type {kind} at byte {at}")
        if stop > end:
            raise damaged(f"is cut short: a field at byte {at} ends at byte {stop}, its message at {end}")
        if kind in (FIXED32, FIXED64):
            value = int.from_bytes(data[body:stop], "little")
        yield Field(number, kind, value, at, body, stop, length_at)
        at = stop


def packed_varints(content: bytes) -> np.ndarray[Any, Any]:
    """The numbers in a packed field, as ``int64``.

    Raises:
        CheckpointError: where the last number is cut short or one is too long.
    """
    data = np.frombuffer(content, np.uint8)
    if not len(data):
        return np.empty(0, np.int64)
    ends = np.flatnonzero(data < 0x80)
    if not len(ends) or ends[-1] != len(data) - 1:
        raise damaged("holds a packed number that is cut short")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if int(lengths.max()) > MAX_VARINT_BYTES:
        raise damaged(f"holds a packed number of more than {MAX_VARINT_BYTES} bytes")
    result = np.zeros(len(ends), np.uint64)
    for i in range(int(lengths.max())):
        there = lengths > i
        part = (data[starts[there] + i] & 0x7F).astype(np.uint64)
        result[there] |= part << np.uint64(7 * i)
    return result.view(np.int64)


def encode_varint(value: int) -> bytes:
    """``value`` as a varint; negative numbers as their two's complement in 64 bits."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def splice(data: Any, edits: Iterable[tuple[int, int, bytes, Sequence[Field]]]) -> Iterator[bytes]:
    """The file with some stretches replaced, and the lengths of all messages around them put right.

    Args:
        data: the whole file.
        edits: start, end, new bytes, and the messages around that place, outermost first.

    Yields:
        the new file, in pieces.
    """
    changes: dict[tuple[int, int], bytes] = {}
    growth: dict[int, int] = {}
    around: dict[int, tuple[Field, Sequence[Field]]] = {}
    for start, end, new, messages in edits:
        changes[start, end] = new
        for i, message in enumerate(messages):
            growth[message.start] = growth.get(message.start, 0) + len(new) - (end - start)
            around[message.start] = (message, messages[:i])
    # From the inside out: a length that needs more bytes makes the messages around it longer still.
    for place in sorted(growth, key=lambda place: -len(around[place][1])):
        message, outer = around[place]
        if growth[place]:
            new = encode_varint(message.end - message.body + growth[place])
            changes[message.length_at, message.body] = new
            for other in outer:
                growth[other.start] += len(new) - (message.body - message.length_at)
    at = 0
    for (start, end), new in sorted(changes.items()):
        yield bytes(data[at:start])
        yield new
        at = end
    yield bytes(data[at:])
