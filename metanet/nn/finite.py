"""Which networks of a bucket hold values that are not finite, and in which tensors?"""

from __future__ import annotations

import torch
from torch import Tensor

from metanet.errors import ModelError
from metanet.graph import Bucket

__all__ = ["check_finite", "finite_networks"]

_GRAPHS, _TENSORS = 3, 8  # so many are listed by name when weights are not finite


def finite_networks(bucket: Bucket) -> Tensor:
    """Whether all values are finite, by network and block; kept with the bucket.

    Shapes:
        returns ``(B, blocks)``.
    """
    return bucket.remember("finite", _finite)


def check_finite(bucket: Bucket) -> None:
    """Refuse networks with weights that are not finite.

    Raises:
        ModelError: with the tensors of each such network.
    """
    finite = finite_networks(bucket)
    if not bool(finite.all()):
        rows = (~finite).any(1).nonzero().reshape(-1).tolist()
        told = "; ".join(_bad(bucket, finite, row) for row in rows[:_GRAPHS])
        rest = f"; {len(rows) - _GRAPHS} more graphs like these" if len(rows) > _GRAPHS else ""
        raise ModelError(told + rest, hint="leave diverged networks out of the batch")


def _bad(bucket: Bucket, finite: Tensor, row: int) -> str:
    """Which tensors of a network are not finite."""
    blocks = [bucket.topology.blocks[i] for i in (~finite[row]).nonzero().reshape(-1).tolist()]
    names = list(dict.fromkeys(block.tensor for block in blocks))
    if len(names) == 1:
        return f"graph {int(bucket.index[row])}: tensor {names[0]!r} holds NaN or infinite values"
    listed = ", ".join(map(repr, names[:_TENSORS]))
    more = f" and {len(names) - _TENSORS} more" if len(names) > _TENSORS else ""
    return f"graph {int(bucket.index[row])}: tensors {listed}{more} hold NaN or infinite values"


def _finite(bucket: Bucket) -> Tensor:
    whole = torch.ones(len(bucket), dtype=torch.bool, device=bucket.index.device)
    columns = [whole if value is None else torch.isfinite(value).flatten(1).all(1) for value in bucket.values]
    return torch.stack(columns, dim=1) if columns else whole[:, None]
