"""What do a network's weights say when they stand in the canonical gauge? Statistics that the whole group leaves alone.

The layer statistics of :mod:`metanet.nn.statistics` change when a unit is scaled up and its readers down, though the
network stays the same. Here they are taken in the canonical gauge (:func:`metanet.nn.frames.canonical`): the same
numbers for the whole orbit, and further quantiles, singular values and path norms by output with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metanet.graph import Bucket, GraphBatch, ParameterGraph, collate
from metanet.nn.features import check_bucket
from metanet.nn.flow import propagate
from metanet.nn.frames import canonical
from metanet.nn.rich_responses import RESPONSES, bucket_responses
from metanet.nn.statistics import STATISTICS, bucket_statistics

__all__ = ["RICH", "RICH_WEIGHTS", "bucket_rich", "bucket_rich_weights", "rich_statistics"]

_SLOTS = ("first", "second last", "last")
_CUTS = (0.01, 0.05, 0.25, 0.75, 0.95, 0.99)
_SINGULAR = 6
_LAYER = (
    *(f"quantile {cut:g}" for cut in _CUTS),
    *(f"log singular value {i + 2} to 1" for i in range(_SINGULAR - 1)),
    "log geometric mean of singular values", "variation of row means", "log entropy of unit energies",
)  # fmt: skip
_PATHS = ("mean", "variation", "smallest", "largest")
_DECIMALS = 5  # what differs by less is rounding, on which no tree should split

RICH_WEIGHTS: tuple[str, ...] = (
    *(f"canonical {name}" for name in STATISTICS),
    *(f"canonical {slot}: {name}" for slot in (*_SLOTS, "mean over layers") for name in _LAYER),
    *(f"{path} path norm over outputs: {name}" for path in ("absolute", "square") for name in _PATHS),
)
"""Names of the statistics of the weights alone."""

RICH: tuple[str, ...] = (*RICH_WEIGHTS, *RESPONSES)
"""Names of all rich statistics: of the weights, and of the answers to random smooth inputs."""


def rich_statistics(
    graphs: ParameterGraph | GraphBatch | Sequence[ParameterGraph], partial: bool = True
) -> tuple[Tensor, tuple[str, ...]]:
    """Statistics that no element of the group changes, of networks of any architectures.

    Args:
        graphs: one graph, several, or a batch (for which the answer is kept). Graphs that know their program are also
            run on random smooth inputs; for others these features are 0.
        partial: accept used tensors that the graph only carries; they are not part of the statistics.

    Shapes:
        returns ``(N, len(RICH))`` in float64, and the names.

    Raises:
        ModelError: for weights that are not finite, and for an architecture with a factor that no frame settles.
    """
    if isinstance(graphs, ParameterGraph):
        graphs = [graphs]
    batch = graphs if isinstance(graphs, GraphBatch) else collate(graphs)
    for bucket in batch:
        check_bucket(bucket, partial)
    return batch.gather(bucket_rich(bucket) for bucket in batch), RICH


def bucket_rich(bucket: Bucket) -> Tensor:
    """All rich statistics of one bucket, kept with it.

    Shapes:
        returns ``(B, len(RICH))`` in float64.
    """
    return torch.cat([bucket_rich_weights(bucket), bucket_responses(bucket)], dim=1)


def bucket_rich_weights(bucket: Bucket) -> Tensor:
    """The statistics of the weights in the canonical gauge, kept with the bucket.

    Shapes:
        returns ``(B, len(RICH_WEIGHTS))`` in float64.
    """
    return bucket.remember("rich weights", _weights)


@torch.no_grad()
def _weights(bucket: Bucket) -> Tensor:
    values = tuple(None if value is None else torch.nan_to_num(value.double(), 0, 0, 0) for value in bucket.values)
    wide = Bucket(bucket.topology, bucket.index, values)
    settled = canonical(wide, "balanced")[1]
    parts = torch.cat([bucket_statistics(settled), _layers(settled), _paths(settled)], dim=1)
    parts = torch.nan_to_num(parts, nan=0.0, posinf=1e6, neginf=-1e6).clamp(-1e6, 1e6)
    return torch.round(parts, decimals=_DECIMALS)


def _layers(bucket: Bucket) -> Tensor:
    """Further statistics of the first, the last two and all layers: ``(B, (len(_SLOTS) + 1) * len(_LAYER))``."""
    edges = bucket.topology.edges
    like = next((value for value in bucket.values if value is not None), torch.zeros(0, dtype=torch.float64))
    if not edges:
        return like.new_zeros(len(bucket), (len(_SLOTS) + 1) * len(_LAYER))
    rows = [_layer(bucket.value(number)) for number in edges]
    zero = torch.zeros_like(rows[0])
    slots = [rows[0], rows[-2] if len(rows) > 1 else zero, rows[-1]]
    return torch.cat([*slots, torch.stack(rows).mean(0)], dim=1)


def _layer(value: Tensor) -> Tensor:
    """``(B, target, source, features)`` -> ``(B, len(_LAYER))``."""
    flat = value.flatten(1)
    size = (flat.square().mean(1, keepdim=True).sqrt() + 1e-30).clamp(min=1e-30)
    cuts = torch.quantile(flat / size, flat.new_tensor(_CUTS), dim=1).T
    matrix = value.flatten(2) / size[:, :, None]
    singular = torch.linalg.svdvals(matrix)
    ratio = torch.nn.functional.pad(singular, (0, max(_SINGULAR - singular.shape[1], 0)))[:, 1:_SINGULAR]
    ratio = (ratio / singular[:, :1].clamp(min=1e-12) + 1e-4).log()
    mean = (singular + 1e-6).log().mean(1, keepdim=True)
    rows = matrix.mean(2).std(1, correction=0)[:, None]
    energy = matrix.square().sum(2)
    share = energy / energy.sum(1, keepdim=True).clamp(min=1e-12)
    entropy = -(share * (share + 1e-12).log()).sum(1, keepdim=True)
    return torch.cat([cuts, ratio, mean, rows, entropy], dim=1)


def _paths(bucket: Bucket) -> Tensor:
    """Sums over paths to each output, of absolute and of squared weights: ``(B, 2 * len(_PATHS))``."""
    topology = bucket.topology
    like = next((value for value in bucket.values if value is not None), torch.zeros(0, dtype=torch.float64))
    told = []
    for absolute in (True, False):
        ends = propagate(
            bucket,
            lambda _, units: torch.ones(units, 1, dtype=torch.float64),
            lambda number: torch.ones(topology.blocks[number].features, 1, dtype=torch.float64),
            "absolute" if absolute else "square",
        )
        found = [
            ends[g][..., 0] for g, group in enumerate(topology.groups) if group.fixed and group.writes and g in ends
        ]
        if not found:
            told.append(like.new_zeros(len(bucket), len(_PATHS)))
            continue
        logs = (torch.cat(found, dim=1) + 1e-12).log()
        told.append(torch.stack([logs.mean(1), logs.std(1, correction=0), logs.amin(1), logs.amax(1)], dim=1))
    return torch.cat(told, dim=1)
