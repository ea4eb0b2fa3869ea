"""How are the weights of many networks of a zoo read at once? Shard by shard, in as few pieces as the rows allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from metanet.errors import ZooError

__all__ = ["read_stacked"]

# Rows that lie no further apart are read with what is between them: reading is cheaper than asking.
_GAP = 64


def read_stacked(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    rows: ArrayLike | None,
    shapes: Callable[[int], Mapping[str, tuple[int, ...]]],
    shard_of: Callable[[str], Any],
) -> dict[str, Tensor]:
    """The tensors of networks of one architecture, by name, stacked in the order of ``rows``.

    Args:
        folder: of the zoo, for messages.
        records: the index.
        rows: of the index, in any order; all of them if None.
        shapes: of the tensors of an architecture, by its number.
        shard_of: opens a shard.

    Raises:
        ZooError: for rows that do not exist, rows of several architectures, or a shard that does not hold them.
    """
    wanted = _checked(folder, len(records), rows)
    numbers = sorted({records[row]["architecture"] for row in wanted.tolist()})
    if len(numbers) > 1:
        raise ZooError(
            f"the rows are of {len(numbers)} architectures, such as number {numbers[0]} and {numbers[1]}",
            where=folder,
            hint="stack those of one: rows where index['architecture'] is equal",
        )
    places: dict[str, list[int]] = {}
    for place, row in enumerate(wanted.tolist()):
        places.setdefault(records[row]["shard"], []).append(place)
    stacked: dict[str, Tensor] = {}
    for shard, found in places.items():
        keys = np.array([records[wanted[place]]["key"] for place in found])
        target = torch.tensor(found)
        for name, shape in shapes(numbers[0]).items():
            part = _rows_of(shard_of(shard), name, shape, keys, folder / shard)
            if len(places) == 1:
                stacked[name] = part
                continue
            whole = stacked.setdefault(name, part.new_empty(len(wanted), *shape))
            if whole.dtype != part.dtype:
                raise ZooError(f"tensor '{name}' is {part.dtype}, in other shards {whole.dtype}", where=folder / shard)
            whole.index_copy_(0, target, part)
    return stacked


def _checked(folder: Path, count: int, rows: ArrayLike | None) -> np.ndarray:
    wanted = np.arange(count) if rows is None else np.asarray(rows)
    if wanted.ndim != 1 or not len(wanted) or wanted.dtype.kind not in "iu":
        raise ZooError(f"rows of shape {wanted.shape}, expected a list of row numbers, at least one", where=folder)
    if wanted.min() < 0 or wanted.max() >= count:
        raise ZooError(f"row {int(wanted.max() if wanted.min() >= 0 else wanted.min())} of {count}", where=folder)
    return wanted


def _rows_of(shard: Any, name: str, shape: tuple[int, ...], keys: np.ndarray, where: Path) -> Tensor:
    """The rows ``keys`` of one tensor of a shard, in that order."""
    try:
        part = shard.get_slice(name)
        stated = tuple(part.get_shape())
        if stated[1:] != shape or not keys.max() < stated[0]:
            raise ZooError(
                f"tensor '{name}' is {stated}, expected {shape} behind more than {keys.max()} rows",
                where=where,
                hint="restore the file",
            )
        order, inverse = np.unique(keys, return_inverse=True)
        starts = np.flatnonzero(np.diff(order, prepend=-_GAP - 1) > _GAP)
        pieces = []
        for piece in np.split(order, starts[1:]):
            read = part[int(piece[0]) : int(piece[-1]) + 1]
            pieces.append(read if len(read) == len(piece) else read[torch.from_numpy(piece - piece[0])])
        found: Tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    except safetensors.SafetensorError as error:
        raise ZooError(f"{error}", where=where, hint="restore the file") from error
    in_order = len(inverse) == len(order) and bool((np.diff(inverse) == 1).all())
    return found if in_order else found[torch.from_numpy(inverse)]
