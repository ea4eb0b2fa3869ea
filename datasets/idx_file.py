"""What is in an IDX file, the format that MNIST and Fashion-MNIST are published in?

Big-endian: two zero bytes, a byte for the type (8: unsigned bytes), a byte for the number of axes, a 32-bit size for
each axis, the numbers. Source: LeCun, Cortes and Burges, The MNIST database, "File formats".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from metanet.errors import ZooError, clean

__all__ = ["read_idx"]

_BYTES = 8
_MOST = 1 << 28


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of a file, packed with gzip where its name ends in ``.gz``.

    Args:
        path: of the file.
        axes: how many it must have.

    Raises:
        ZooError: if it cannot be read, or holds something else.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            header = file.read(4 + 4 * axes)
            if header[:4] != bytes([0, 0, _BYTES, axes]) or len(header) < 4 + 4 * axes:
                raise ZooError(f"is no IDX file of bytes with {axes} axes", where=path, hint="fetch it again")
            shape = struct.unpack(f">{axes}I", header[4:])
            size = math.prod(shape)
            if size > _MOST:
                raise ZooError(f"states {size:,} numbers, expected at most {_MOST:,}", where=path)
            # One byte more than stated tells a file that goes on from one that ends; a packed bomb is never unpacked.
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ZooError(f"cannot be read: {clean(error, 120)}", where=path, hint="fetch it again") from error
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content):,}"
        raise ZooError(f"holds {found} numbers, expected {size:,} as it states", where=path, hint="fetch it again")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
