"""How does a group element go to a file and back?

JSON for reading and small elements, safetensors (https://github.com/huggingface/safetensors#format) for exact and large
ones; this module reads and writes the latter's bytes itself. Everything in a file is checked before it is used: sizes
before memory is taken, names, dtypes and shapes against the spec, values before they act. Files are written under a
temporary name, synced and renamed, so that a name never holds half a file.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from symmetry.elements import GroupElement
from symmetry.errors import SpecError
from symmetry.spec import SymmetrySpec

__all__ = ["load_element", "save_element"]

FORMAT = "symmetry.element/1"
MOST_HEADER = 100_000_000
MOST_JSON = 1_000_000_000
DTYPES = {"I64": torch.int64, "F64": torch.float64, "BOOL": torch.bool}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def save_element(element: GroupElement, path: str | os.PathLike[str]) -> None:
    """Write an element to ``path``: ``.json`` or ``.safetensors``.

    The spec's fingerprint goes with it; the spec itself does not.

    Raises:
        SpecError: for another ending.
        OSError: where the file cannot be written.
    """
    path = Path(path)
    if _ending(path) == ".json":
        _replace(path, json.dumps(element.to_json(), allow_nan=False).encode())
    else:
        _replace(path, _encode(element))


def load_element(spec: SymmetrySpec, path: str | os.PathLike[str]) -> GroupElement:
    """Read what :func:`save_element` wrote.

    Args:
        spec: the spec that the element belongs to.
        path: ``.json`` or ``.safetensors``.

    Raises:
        SpecError: for a file that is missing, damaged or something else, or an element of another spec.
    """
    path = Path(path)
    ending = _ending(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if ending == ".json":
                if size > MOST_JSON:
                    raise SpecError(f"{size:,} bytes of JSON, expected at most {MOST_JSON:,}")
                return _decode_json(spec, file.read())
            return _decode(spec, size, file.read)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from error


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in (".json", ".safetensors"):
        raise SpecError(f"{path}: ending {path.suffix!r}, expected .json or .safetensors")
    return ending


def _sections(element: GroupElement) -> dict[str, Tensor]:
    """All arrays of an element, by ``section/name``."""
    return {
        f"{section}/{name}": array
        for section, arrays in vars(element).items()
        if section != "spec"
        for name, array in arrays.items()
    }


def _element(spec: SymmetrySpec, arrays: Mapping[str, Tensor]) -> GroupElement:
    """The element of some arrays, whose values may be anything yet."""
    found: dict[str, dict[str, Tensor]] = {section: {} for section in vars(spec.identity()) if section != "spec"}
    for key, array in arrays.items():
        section, name = key.split("/", 1)
        if array.is_floating_point() and not bool(array.isfinite().all()):
            raise SpecError(f"{key}: holds values that are not finite")
        found[section][name] = array
    for factor in spec.linear:
        matrix = found["matrices"][factor.space]
        if bool((torch.linalg.matrix_rank(matrix) < factor.size).any()):
            raise SpecError(f"matrices/{factor.space}: a matrix without an inverse")
    return GroupElement(spec, **found)


def _replace(path: Path, data: bytes) -> None:
    """Write to a temporary name beside ``path``, sync, and rename."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp gives the file to its owner alone; a saved file has the rights of any other.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _encode(element: GroupElement) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "spec": element.spec.fingerprint}}
    chunks, offset = [], 0
    for key, array in _sections(element).items():
        data = array.detach().cpu().contiguous().numpy().tobytes()
        header[key] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *chunks])


def _decode(spec: SymmetrySpec, size: int, read: Any) -> GroupElement:
    if size < 8:
        raise SpecError(f"{size} bytes, expected a safetensors file")
    length = int.from_bytes(read(8), "little")
    if length > min(size - 8, MOST_HEADER):
        raise SpecError(f"a header of {length:,} bytes in a file of {size:,}; expected a safetensors file")
    header = _parse(read(length))
    _check_origin(spec, header.pop("__metadata__", None))
    expected = {key: (NAMES[array.dtype], list(array.shape)) for key, array in _sections(spec.identity()).items()}
    if set(header) != set(expected):
        odd = sorted(set(header) ^ set(expected))[0]
        raise SpecError(f"{odd!r} is {'unknown to the spec' if odd in header else 'missing'}")
    ranges = []
    for key, (dtype, shape) in expected.items():
        entry = header[key]
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise SpecError(f"{key}: expected the entries dtype, shape and data_offsets")
        if entry["dtype"] != dtype or entry["shape"] != shape or any(type(n) is not int for n in entry["shape"]):
            raise SpecError(f"{key}: {str(entry)[:80]}, expected dtype {dtype} and shape {shape}")
        offsets = entry["data_offsets"]
        wanted = math.prod(shape) * DTYPES[dtype].itemsize
        if (
            not isinstance(offsets, list)
            or len(offsets) != 2
            or any(type(place) is not int for place in offsets)
            or offsets[1] - offsets[0] != wanted
        ):
            raise SpecError(f"{key}: offsets {str(offsets)[:60]}, expected {wanted} bytes")
        ranges.append((offsets[0], offsets[1], key))
    # Every byte of the data belongs to one array: no gaps that could hide something, no overlaps, nothing behind.
    place = 0
    for start, stop, key in sorted(ranges):
        if start != place:
            raise SpecError(f"{key}: starts at byte {start:,} of the data, expected {place:,}")
        place = stop
    if place != size - 8 - length:
        raise SpecError(f"{size - 8 - length:,} bytes of data, expected {place:,}")
    data = bytearray(read(place))
    if len(data) != place:
        raise SpecError(f"{len(data):,} bytes of data, expected {place:,}")
    arrays = {}
    for start, stop, key in ranges:
        dtype, shape = expected[key]
        if dtype == "BOOL" and any(byte > 1 for byte in data[start:stop]):
            raise SpecError(f"{key}: a boolean that is neither 0 nor 1")
        raw = torch.frombuffer(data[start:stop], dtype=DTYPES[dtype]) if stop > start else torch.empty(0)
        arrays[key] = raw.to(DTYPES[dtype]).reshape(shape)
    return _element(spec, arrays)


def _decode_json(spec: SymmetrySpec, data: bytes) -> GroupElement:
    value = _parse(data)
    _check_origin(spec, value)
    element = GroupElement.from_json(spec, value)
    return _element(spec, _sections(element))


def _check_origin(spec: SymmetrySpec, value: Any) -> None:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise SpecError(f"format {str(found)[:40]!r}, expected {FORMAT!r}: not an element of a symmetry group")
    if value.get("spec") != spec.fingerprint:
        raise SpecError(
            f"element of the spec {str(value.get('spec'))[:12]}..., expected {spec.fingerprint[:12]}...; "
            "use the spec that it was made with"
        )


def _parse(data: bytes) -> dict[str, Any]:
    """JSON without repeated keys, infinities or anything that is not an object."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def refuse(constant: str) -> None:
        raise ValueError(f"the constant {constant}")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"not JSON: {str(error)[:100]}") from error
    if not isinstance(value, dict):
        raise SpecError(f"JSON of a {type(value).__name__}, expected an object")
    return value
