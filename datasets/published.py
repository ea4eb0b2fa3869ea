"""What do the readers of published zoos share: a network as they tell it, tables, folders, parts?"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from metanet.checkpoint import Architecture, Raw, read
from metanet.errors import CheckpointError, ZooError, clean

__all__ = ["KIND", "PublishedNetwork", "PublishedZoo", "parts_by_share", "table_rows"]

# What a zoo that was imported has as its kind.
KIND = "published"

_MAX_TABLE_BYTES, _MAX_LINE_BYTES = 1 << 31, 1 << 20
# What seeds the choice of parts where the authors published none: a constant, so that every reader sees the same.
_SPLIT_SEED = 0x2EAD


@dataclass(frozen=True, eq=False)
class PublishedNetwork:
    """One network of a published zoo.

    Args:
        state: its weights, in PyTorch's order.
        architecture: what builds its module.
        metrics: the columns of the table that hold numbers.
        config: the columns that tell how it was trained, as text.
        split: "train", "val" or "test".
        run: what it shares with the other snapshots of one training.
        step: steps or epochs of training behind it, as the zoo counts them.
        label: what it shows, where it is an image itself.
        name: how messages call it.
    """

    state: Mapping[str, Tensor]
    architecture: Architecture
    metrics: Mapping[str, float]
    config: Mapping[str, str]
    split: str
    run: str = ""
    step: int = 0
    label: str | int | None = None
    name: str = ""


class PublishedZoo(Sequence[PublishedNetwork]):
    """Networks in a fixed order, each read when it is asked for.

    Attributes:
        folder: where they are.
        metrics: names of the numbers that say how good a network is; the last one says it best.
        left_out: what lies in the folder and is no network of the zoo, or of none of its parts.
    """

    folder: Path
    metrics: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @abstractmethod
    def parts(self) -> list[tuple[str, str]]:
        """Run and part of every network, without reading weights."""

    def __iter__(self) -> Iterator[PublishedNetwork]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({clean(self.folder, 80)}: {len(self)} networks)"


def parts_by_share(names: Sequence[str], shares: Mapping[str, float]) -> dict[str, str]:
    """A part for each of ``names``: drawn once and for all, the same on every machine, whatever their order.

    Args:
        names: of runs or images; repetitions count once.
        shares: of "train", "val" and "test".
    """
    unique = sorted(set(names))
    order = np.random.default_rng(np.random.SeedSequence(_SPLIT_SEED)).permutation(len(unique))
    kept = {part: share for part, share in shares.items() if share > 0}
    ends = np.round(np.cumsum(list(kept.values())) * len(unique)).astype(int)
    for place in range(len(kept)):
        # No part is empty while there is a name for each.
        ends[place] = min(max(ends[place], place + 1), max(len(unique) - (len(kept) - 1 - place), 0))
    part_of = np.searchsorted(ends, np.arange(len(unique)), side="right")
    parts = list(kept)
    return {unique[int(order[i])]: parts[int(part_of[i])] for i in range(len(unique))}


def read_network(path: Path, plain: Sequence[str] = ()) -> Raw:
    """The tensors in one file of a zoo, read without running anything.

    Args:
        path: the file.
        plain: entries that may be plain numbers or text; they become metadata.

    Raises:
        ZooError: for anything that is no state dict.
    """
    try:
        return read(path, plain=plain)
    except CheckpointError as error:
        tensor = f"'{error.tensor}' " if error.tensor else ""
        raise ZooError(f"{tensor}{error.reason}", where=path, hint="unpack or fetch the zoo again") from error


def is_number(text: str) -> bool:
    """Whether ``text`` is a number, infinities and NaN included."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def listing(folder: Path) -> list[str]:
    """Names in a folder, sorted.

    Raises:
        ZooError: if it is no folder that can be read.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise ZooError(
            f"cannot be listed: {error.strerror}", where=folder, hint="name the folder of the unpacked zoo"
        ) from error


def table_rows(path: Path, needed: Sequence[str], what: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV table, plain or gzipped, one after the other: a table may be larger than what is kept of it.

    Args:
        path: the file.
        needed: columns that must be there.
        what: the zoo whose table it should be, for messages.

    Raises:
        ZooError: for anything that is no such table.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            reader = csv.reader(_lines(path, file))
            columns = next(reader, [])
            missing = [name for name in needed if name not in columns]
            if missing:
                raise ZooError(f"has no column {missing[0]!r}", where=path, hint=f"is it a table of {what}?")
            if len(set(columns)) < len(columns):
                raise ZooError("names a column twice", where=path, hint="fetch it again")
            # Settings come again and again: each text is kept once.
            known: dict[str, str] = {}
            count = 0
            for row in reader:
                if not row:
                    continue
                count += 1
                if len(row) != len(columns):
                    stated = f"line {reader.line_num} has not as many fields as the first"
                    raise ZooError(stated, where=path, hint="fetch it again")
                yield dict(zip(columns, (known.setdefault(text, text) for text in row), strict=True))
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise ZooError(f"cannot be read: {clean(error, 120)}", where=path, hint="fetch it again") from error
    if not count:
        raise ZooError("has no rows", where=path, hint="fetch it again")


def _lines(path: Path, file: io.BufferedIOBase) -> Iterator[str]:
    read = 0
    while line := file.readline(_MAX_LINE_BYTES + 1):
        read += len(line)
        if len(line) > _MAX_LINE_BYTES:
            raise ZooError(f"has a line of more than {_MAX_LINE_BYTES} bytes, which no such table has", where=path)
        if read > _MAX_TABLE_BYTES:
            raise ZooError(f"is larger than {_MAX_TABLE_BYTES} bytes, which no such table is", where=path)
        yield line.decode("utf-8")


def finite(text: str, where: Path, column: str) -> float:
    """A number of a table that must be one.

    Raises:
        ZooError: for text, infinities and NaN.
    """
    value = float(text) if is_number(text) else math.nan
    if not math.isfinite(value):
        raise ZooError(f"column {column!r} holds {clean(repr(text), 40)}, expected a number", where=where)
    return value
