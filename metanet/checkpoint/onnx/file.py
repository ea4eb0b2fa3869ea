"""How is an ONNX file read into a checkpoint, and written back with other weights and every other byte as it was?"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from metanet.checkpoint.onnx.architecture import OnnxArchitecture
from metanet.checkpoint.onnx.plan import Constant, Plan, make_plan
from metanet.checkpoint.onnx.proto import parse
from metanet.checkpoint.onnx.tensors import Reader, encoded_field, encoded_text
from metanet.checkpoint.onnx.wire import Field, splice
from metanet.checkpoint.source import Raw, Source
from metanet.checkpoint.unknown import UnknownArchitecture
from metanet.errors import CheckpointError
from metanet.io import open_atomic

__all__ = ["read_onnx", "write_onnx"]

# Large enough that a data file of a million tensors still maps by pages, as the ONNX documentation advises.
ALIGNMENT = 4096
Edit = tuple[int, int, bytes, Sequence[Field]]


def _planned(data: Any, path: Path, size: int) -> tuple[Plan, Reader]:
    reader = Reader(data, path)
    try:
        return make_plan(parse(data, size), reader), reader
    except CheckpointError as error:
        raise error.within(path) from None


def _digest(data: Any, size: int, plan: Plan) -> str:
    """Hash of the file without the values of its parameters and buffers."""
    spans = sorted(
        (part.body, part.end) for c in plan.stored if c.record for parts in c.record.data.values() for part in parts
    )
    found = hashlib.sha256()
    at = 0
    for start, end in spans:
        found.update(data[at:start])
        at = end
    found.update(data[at:size])
    return found.hexdigest()[:32]


def read_onnx(file: BinaryIO, path: Path, size: int, inputs: Sequence[Any] | None = None) -> Raw:
    """The parameters in an ONNX file under the names of their initialisers, and its graph as the architecture.

    A graph with operators that have no rule still gives its tensors; its architecture then says which operator.

    Args:
        file: seekable, at its start.
        path: of the file; external data must lie in its folder.
        size: of the file in bytes.
        inputs: example inputs, one for each input of the file, where its own sizes are not enough.

    Raises:
        CheckpointError: for what is no ONNX file, lies, or reaches outside its folder.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        plan, reader = _planned(data, path, size)
        try:
            state = {c.name: reader.read(c.record, c.label) for c in plan.stored if c.record is not None}
        except OSError as error:
            raise CheckpointError(
                f"external data cannot be read ({error.strerror})", file=path, hint="check it"
            ) from None
        if not state:
            raise CheckpointError("is an ONNX file without parameters", file=path, hint="export a network with weights")
        digest = _digest(data, size, plan)
    try:
        architecture: Any = OnnxArchitecture(plan, digest, inputs)
    except CheckpointError as error:
        if inputs is not None:
            raise error.within(path) from None
        architecture = UnknownArchitecture(error.within(path), state)
    files = sorted({(c.record.external or {}).get("location", "") for c in plan.stored if c.record} - {""})
    return Raw(state, Source(path, "onnx", files=tuple(files)), architecture=architecture)


def _edits(
    constant: Constant, value: Tensor, external: list[Tensor], location: str, position: int
) -> tuple[list[Edit], int]:
    """What changes in the file for one tensor; data outside of it go behind ``position`` of a new data file."""
    record = constant.record
    if record is None:
        return [], position
    if record.external is None:
        number, content = encoded_field(record, value)
        old = record.data.get(number, [])
        if not old:
            return [], position
        first, *others = old
        edits: list[Edit] = [(first.start, first.end, content, record.messages)]
        return edits + [(part.start, part.end, b"", record.messages) for part in others], position
    length = value.numel() * value.dtype.itemsize
    entries = (("location", location), ("offset", str(position)), ("length", str(length)))
    content = b"".join(
        encoded_text(13, encoded_text(1, key.encode()) + encoded_text(2, text.encode())) for key, text in entries
    )
    first, *others = record.external_fields
    external.append(value)
    edits = [(first.start, first.end, content, record.messages)]
    edits += [(part.start, part.end, b"", record.messages) for part in others]
    return edits, -(-(position + length) // ALIGNMENT) * ALIGNMENT


def _same(reader: Reader, constant: Constant, value: Tensor) -> bool:
    if constant.record is None or not value.numel():
        return True
    old = reader.read(constant.record, constant.label)
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (old, value.detach().cpu())))


def write_onnx(path: Path, state: Mapping[str, Tensor], original: Path) -> None:
    """An ONNX file like ``original`` with other weights; all else is copied byte by byte.

    Weights that lay outside the file go to a new file beside the new one, named after it.

    Raises:
        CheckpointError: where the original is gone, or a tensor does not fit it.
    """
    try:
        source = open(original, "rb")  # noqa: SIM115
    except OSError as error:
        reason = f"the file that this state came from cannot be read ({error.strerror})"
        raise CheckpointError(reason, file=original, hint="save to a .safetensors file instead") from None
    with source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
        plan, reader = _planned(data, original, len(data))
        location = f"{path.name}.data"
        edits: list[Edit] = []
        external: list[Tensor] = []
        position = 0
        for constant in plan.stored:
            value = state.get(constant.name)
            if value is None or tuple(value.shape) != constant.shape or value.dtype != constant.dtype:
                raise CheckpointError(
                    f"is no {constant.dtype} of shape {list(constant.shape)}, as in {original.name}",
                    file=path,
                    tensor=constant.name,
                    hint="keep names, shapes and dtypes",
                )
            inside = constant.record is not None and constant.record.external is None
            if inside and _same(reader, constant, value):
                continue
            more, position = _edits(constant, value, external, location, position)
            edits += more
        # External tensors that are no parameters stay where they are and would be missed beside the new file.
        for constants in plan.constants:
            for constant in constants.values():
                if constant.role == "static" and constant.record is not None and constant.record.external is not None:
                    kept = reader.read(constant.record, constant.label)
                    more, position = _edits(constant, kept, external, location, position)
                    edits += more
        if external:
            _write_data(path.with_name(location), external)
        with open_atomic(path) as file:
            for piece in splice(data, edits):
                file.write(piece)


def _write_data(path: Path, tensors: list[Tensor]) -> None:
    with open_atomic(path) as file:
        for value in tensors:
            raw = value.detach().cpu().contiguous().reshape(-1)
            content = raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b""
            file.write(content)
            file.write(bytes(math.ceil(len(content) / ALIGNMENT) * ALIGNMENT - len(content)))
