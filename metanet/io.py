"""How are small files written so that a kill at any moment leaves the old file or the new one, never half of one?

Write to a temporary name in the same folder, flush to the disk, rename over the target, flush the folder. JSON is
read with a limit on its size and refuses duplicate keys and the non-standard numbers NaN and Infinity.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "open_atomic",
    "parse_json",
    "read_json",
    "umask",
    "write_bytes_atomic",
    "write_json_atomic",
    "write_text_atomic",
]

MAX_JSON_BYTES = 64 * 1024 * 1024


def _sync_folder(folder: Path) -> None:
    # A rename is only durable once the folder itself is on the disk; not every platform lets a folder be opened.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends, and vanishes when it raises.

    Args:
        path: the target; its folder must exist.
    """
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name[:80]}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the permissions that a plain open() would have given.
        os.chmod(temporary, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def umask() -> int:
    """The process's mask of permissions that new files do not get."""
    # The only portable way to read the mask is to set it and set it back.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with open_atomic(path) as file:
        file.write(data)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> None:
    """Write ``value`` as JSON to ``path``, whole or not at all.

    Raises:
        ValueError: for NaN and infinities, which are not JSON.
    """
    write_text_atomic(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """``text`` as a JSON value, strictly.

    Raises:
        ValueError: for anything that is not standard JSON, for duplicate keys, and for values nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"duplicate key {twice[:80]!r}")
        return result

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The JSON value in ``path``, read strictly and never beyond ``max_bytes``.

    Raises:
        ValueError: for a file that is too large or not strict JSON.
        OSError: for a file that cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes of JSON")
    return parse_json(data)
