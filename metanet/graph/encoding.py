"""Which numbers tell a fixed unit or a kernel position who it is, whatever the size of its axis?"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["cosine_basis", "position_code"]


@lru_cache(maxsize=1024)
def position_code(size: int, width: int = 16) -> Tensor:
    """A code for the index of each unit of a fixed axis: the same index has nearly the same code at every size.

    Columns: normalised position in [0, 1]; log of the size; then sines and cosines of the index at wavelengths that
    grow geometrically from 3 to 3000 (Vaswani et al. 2017, section 3.5, with a shorter range).

    Args:
        size: number of units.
        width: number of columns, even and at least 4.

    Shapes:
        returns ``(size, width)`` in float64.
    """
    index = torch.arange(size, dtype=torch.float64)
    waves = (width - 2) // 2
    length = 3.0 * 1000.0 ** (torch.arange(waves, dtype=torch.float64) / max(waves - 1, 1))
    angle = 2 * math.pi * index[:, None] / length
    normalised = index[:, None] / max(size - 1, 1)
    scale = torch.full((size, 1), math.log(size) / 4 if size else 0.0, dtype=torch.float64)
    return torch.cat([normalised, scale, angle.sin(), angle.cos()], dim=1)


@lru_cache(maxsize=1024)
def cosine_basis(positions: tuple[int, ...], most: int) -> Tensor:
    """Orthonormal cosine (DCT-II) basis over kernel positions, lowest frequencies first.

    For up to ``most`` positions it is a change of basis and loses nothing; for more it keeps the ``most`` smoothest
    parts.

    Args:
        positions: sizes of the position axes, as (3, 3); () stands for a single position.
        most: largest number of columns.

    Shapes:
        returns ``(prod(positions), min(prod(positions), most))`` in float64.
    """
    columns = torch.ones(1, 1, dtype=torch.float64)
    for size in positions:
        place = torch.arange(size, dtype=torch.float64)[:, None] + 0.5
        frequency = torch.arange(size, dtype=torch.float64)[None, :]
        wave = torch.cos(math.pi * place * frequency / size) * math.sqrt(2.0 / size)
        wave[:, 0] = math.sqrt(1.0 / size)
        columns = torch.kron(columns, wave)
    frequencies = list(itertools.product(*(range(size) for size in positions)))
    smooth = sorted(range(len(frequencies)), key=lambda k: (sum(frequencies[k]), frequencies[k]))
    return columns[:, smooth[:most]].contiguous()
