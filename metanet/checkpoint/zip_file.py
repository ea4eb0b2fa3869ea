"""Is this zip archive what it says it is, and may a member of it be unpacked?

Only the table of contents is read here; a member is unpacked in pieces and never beyond the size that was allowed.
"""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from metanet.checkpoint.limits import MAX_MEMBERS, MAX_NAME, MAX_RATIO
from metanet.errors import CheckpointError, clean

__all__ = ["ZIP_START", "check_member", "open_zip", "read_member"]

ZIP_START = b"PK\x03\x04"
_PIECE = 1 << 20
# Small members may compress better than any honest weights; they cannot hurt.
_SMALL = 1 << 20


def _error(name: Path, reason: str, hint: str = "the file is damaged or forged: save it again") -> CheckpointError:
    return CheckpointError(reason, file=name, hint=hint)


def _check_members(archive: zipfile.ZipFile, name: Path, size: int) -> None:
    seen: set[str] = set()
    spans: list[tuple[int, int, str]] = []
    for info in archive.infolist():
        member = info.orig_filename
        shown = clean(member, 80)
        if not 0 < len(member) <= MAX_NAME or not member.isprintable():
            raise _error(name, f"a member's name ('{shown}') is empty, too long or not printable")
        if member.startswith(("/", "\\")) or "\\" in member or ":" in member or ".." in member.split("/"):
            raise _error(name, f"member '{shown}' points outside the archive", "do not unpack this file")
        if member in seen:
            raise _error(name, f"member '{shown}' comes twice")
        seen.add(member)
        if info.flag_bits & 0x1:
            raise _error(name, f"member '{shown}' is encrypted", "save it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _error(name, f"member '{shown}' is compressed with method {info.compress_type}", "use plain zip")
        if info.file_size > _SMALL and info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise _error(
                name, f"member '{shown}' would unpack from {info.compress_size} to {info.file_size} bytes, a zip bomb"
            )
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise _error(name, f"member '{shown}' has two sizes, {info.compress_size} and {info.file_size}")
        spans.append((info.header_offset, info.header_offset + 30 + info.compress_size, shown))
    spans.sort()
    for (_, end, first), (start, _, second) in itertools.pairwise(spans):
        if end > start:
            raise _error(name, f"members '{first}' and '{second}' overlap")
    if spans and (spans[0][0] != 0 or spans[-1][1] > size):
        raise _error(name, "its members do not lie within the file")


def open_zip(file: BinaryIO, name: Path) -> zipfile.ZipFile:
    """The archive in ``file``, its table of contents checked.

    Raises:
        CheckpointError: for duplicates, overlaps, names that point elsewhere, encryption and zip bombs.
    """
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    try:
        archive = zipfile.ZipFile(file)
        members = len(archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise _error(name, f"is a damaged zip archive ({clean(error, 80)})", "copy or save the file again") from None
    if members > MAX_MEMBERS:
        raise _error(name, f"has {members} members, more than {MAX_MEMBERS}")
    # A comment could hide a second table of contents that another reader would believe.
    if archive.comment:
        raise _error(name, "has a zip comment, which no checkpoint has")
    _check_members(archive, name, size)
    return archive


def _pieces(archive: zipfile.ZipFile, member: str, name: Path) -> Iterator[bytes]:
    info = archive.getinfo(member)
    count = 0
    try:
        with archive.open(info) as stream:
            while piece := stream.read(_PIECE):
                count += len(piece)
                if count > info.file_size:
                    raise _error(name, f"member '{clean(member, 80)}' is longer than it says")
                yield piece
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise _error(name, f"member '{clean(member, 80)}' is damaged ({clean(error, 80)})") from None
    if count != info.file_size:
        raise _error(name, f"member '{clean(member, 80)}' is shorter than it says")


def check_member(archive: zipfile.ZipFile, member: str, name: Path) -> None:
    """Compare a member with its checksum, in pieces.

    Raises:
        CheckpointError: where they differ.
    """
    for _ in _pieces(archive, member, name):
        pass


def read_member(archive: zipfile.ZipFile, member: str, name: Path, limit: int) -> bytes:
    """The bytes of one member, never more than ``limit`` nor than it says it has.

    Raises:
        CheckpointError: where it is larger, or damaged.
    """
    size = archive.getinfo(member).file_size
    if size > limit:
        raise _error(name, f"member '{clean(member, 80)}' has {size} bytes, more than {limit}")
    return b"".join(_pieces(archive, member, name))
