"""How do the data of an ONNX tensor become a torch tensor, and go back into the file?

Data lie in the tensor itself, as raw bytes or in a field for their type, or in a file beside the model. A shape that
claims more than is there is refused before memory is taken, and a file outside the model's folder is never opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet.checkpoint.onnx.proto import TensorRecord
from metanet.checkpoint.onnx.wire import BYTES, FIXED32, FIXED64, VARINT, encode_varint, packed_varints
from metanet.errors import CheckpointError, clean

__all__ = ["DTYPES", "Reader", "encoded_field", "encoded_text"]

# TensorProto.DataType to torch.
DTYPES: Mapping[int, torch.dtype] = MappingProxyType(
    {
        1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32,
        7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 12: torch.uint32, 13: torch.uint64,
        14: torch.complex64, 15: torch.complex128, 16: torch.bfloat16, 17: torch.float8_e4m3fn,
        18: torch.float8_e4m3fnuz, 19: torch.float8_e5m2, 20: torch.float8_e5m2fnuz,
    }
)  # fmt: skip
NAMES = {8: "text", 21: "uint4", 22: "int4", 23: "float4e2m1"}
RAW = 9
# Which field holds the data of a type that are not raw, and the NumPy type of what stands there.
FLOATS, INTS, LONGS, DOUBLES, UNSIGNED = 4, 5, 7, 10, 11
TYPED = {
    1: (FLOATS, "<f4"), 14: (FLOATS, "<f4"), 11: (DOUBLES, "<f8"), 15: (DOUBLES, "<f8"), 7: (LONGS, "<i8"),
    12: (UNSIGNED, "<u4"), 13: (UNSIGNED, "<u8"), 6: (INTS, "<i4"), 2: (INTS, "<u1"), 3: (INTS, "<i1"),
    4: (INTS, "<u2"), 5: (INTS, "<i2"), 9: (INTS, "<u1"), 10: (INTS, "<u2"), 16: (INTS, "<u2"), 17: (INTS, "<u1"),
    18: (INTS, "<u1"), 19: (INTS, "<u1"), 20: (INTS, "<u1"),
}  # fmt: skip
MAX_PATH = 1024


class Reader:
    """Reads the tensors of one file.

    Args:
        data: the bytes of the file.
        path: of the file; external data must lie in its folder.
    """

    def __init__(self, data: Any, path: Path) -> None:
        self.data, self.path = data, path
        self.external: dict[tuple[str, int, int], bytearray] = {}
        self.left: dict[str, int] = {}

    def read(self, record: TensorRecord, name: str) -> Tensor:
        """The tensor that a record describes, in memory of its own.

        Raises:
            CheckpointError: where type, shape and data do not fit each other.
        """
        dtype = DTYPES.get(record.kind)
        if dtype is None:
            shown = NAMES.get(record.kind, f"number {record.kind}")
            raise CheckpointError(
                f"has element type {shown}, which torch does not have",
                file=self.path,
                tensor=name,
                hint="convert it to float32",
            )
        needed = math.prod(record.shape) * dtype.itemsize
        if record.external is not None:
            content = self._external(record, needed, name)
        else:
            content = self._inline(record, needed, name)
        if len(content) != needed:
            raise self._mismatch(record, len(content), name)
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return flat.reshape(record.shape)

    def _mismatch(self, record: TensorRecord, found: int, name: str) -> CheckpointError:
        return CheckpointError(
            f"has shape {clean(list(record.shape), 60)} of {DTYPES[record.kind]} but {found} bytes",
            file=self.path,
            tensor=name,
            hint="the file is damaged or forged: export it again",
        )

    def _inline(self, record: TensorRecord, needed: int, name: str) -> bytearray:
        used = [number for number in record.data if record.data[number]]
        field, kind = TYPED[record.kind]
        if used == [RAW]:
            part = record.data[RAW][0]
            if part.kind != BYTES or part.end - part.body != needed:
                raise self._mismatch(record, part.end - part.body, name)
            return bytearray(self.data[part.body : part.end])
        if not used:
            return bytearray()
        if used != [field]:
            raise CheckpointError(
                "has its data in a field for another type, or in two",
                file=self.path,
                tensor=name,
                hint="export it again",
            )
        pieces = []
        for part in record.data[field]:
            content = bytes(self.data[part.body : part.end])
            if field in (FLOATS, DOUBLES):
                if part.kind not in (BYTES, FIXED32 if field == FLOATS else FIXED64):
                    raise CheckpointError("has damaged data", file=self.path, tensor=name, hint="export it again")
                pieces.append(content)
                continue
            values = (
                np.array([part.value], np.uint64).view(np.int64) if part.kind == VARINT else packed_varints(content)
            )
            narrow = values.astype(kind)
            if field != UNSIGNED and not np.array_equal(narrow.astype(np.int64), values):
                raise CheckpointError(
                    f"holds numbers that do not fit {DTYPES[record.kind]}",
                    file=self.path,
                    tensor=name,
                    hint="export it again",
                )
            pieces.append(narrow.tobytes())
        return bytearray(b"".join(pieces))

    def _external(self, record: TensorRecord, needed: int, name: str) -> bytearray:
        def refuse(reason: str, hint: str) -> CheckpointError:
            return CheckpointError(reason, file=self.path, tensor=name, hint=hint)

        entries = record.external or {}
        location = entries.get("location", "")
        path = self._inside(location, name)
        size = path.stat().st_size
        try:
            offset, length = (
                int(entries.get(key, default), 10) for key, default in (("offset", "0"), ("length", str(needed)))
            )
        except ValueError:
            raise refuse("has external data whose place is no number", "export the model again") from None
        if length != needed:
            raise self._mismatch(record, length, name)
        if offset < 0 or offset + length > size:
            raise refuse(
                f"lies at bytes {offset} to {offset + length} of '{clean(location, 60)}', which has {size}",
                "the download is not complete, or the file is forged",
            )
        key = (location, offset, length)
        if key not in self.external:
            # Tensors may share a stretch, but not overlap so often that a small file fills the memory.
            left = self.left.setdefault(location, size) - length
            if left < 0:
                raise refuse(f"overlaps other tensors in '{clean(location, 60)}'", "export the model again")
            self.left[location] = left
            with path.open("rb") as file:
                file.seek(offset)
                self.external[key] = bytearray(file.read(length))
        return self.external[key]

    def _inside(self, location: str, name: str) -> Path:
        """The file that a location names: in the model's folder or below it, with no step out of it by any link."""

        def refuse(
            reason: str, hint: str = "do not use this file: nothing outside its folder is read"
        ) -> CheckpointError:
            return CheckpointError(reason, file=self.path, tensor=name, hint=hint)

        pure = PurePosixPath(location)
        shown = clean(location, 80)
        odd = "\\" in location or ":" in location or not location.isprintable() or len(location) > MAX_PATH
        if not location or odd or pure.is_absolute() or ".." in pure.parts:
            raise refuse(f"keeps its data in '{shown}', which is not a path inside the model's folder")
        folder = self.path.parent
        path = folder / location
        if not path.is_file():
            raise refuse(f"keeps its data in '{shown}', which is not there", "copy the data file beside the model")
        home = folder.resolve()
        # The Hub's cache links the files of a snapshot to the blobs of the same model.
        blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
        real = path.resolve()
        if home not in real.parents and blobs not in real.parents:
            raise refuse(f"keeps its data in '{shown}', a link that leaves the model's folder")
        return path


def _key(number: int, kind: int) -> bytes:
    return encode_varint(number << 3 | kind)


def encoded_text(number: int, content: bytes) -> bytes:
    """A field that holds bytes, text or a message."""
    return _key(number, BYTES) + encode_varint(len(content)) + content


def encoded_field(record: TensorRecord, value: Tensor) -> tuple[int, bytes]:
    """The data of a tensor as the field that the record uses: its number, and the encoded field with its key.

    Args:
        record: as it stands in the file; data outside the file are encoded as raw.
        value: of the same shape and type.
    """
    raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
    used = [number for number in record.data if record.data[number]]
    if used in ([RAW], []):
        return RAW, encoded_text(RAW, raw)
    field, kind = TYPED[record.kind]
    if field in (FLOATS, DOUBLES):
        return field, encoded_text(field, raw)
    numbers = np.frombuffer(raw, kind).tolist()
    return field, encoded_text(field, b"".join(map(encode_varint, numbers)))
