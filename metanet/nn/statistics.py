"""Which permutation-invariant numbers describe a network? The strong simple baseline, and part of the readout.

Per weight tensor: size and shape of the distribution, singular values, norms of rows and columns, the bias and
normalisation that follow, how in and out norms of one unit go together. They are listed for the first and the last two
layers of the data flow and pooled over all. Per network: depth, widths, activations, path norms, and the network's own
responses to fixed inputs. The list is the same for every architecture; what does not exist is 0, and so is its mask.
Without norms of paths and responses: Unterthiner et al. 2020, "Predicting neural network accuracy from weights".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from metanet.graph import Bucket, GraphBatch, ParameterGraph, collate
from metanet.graph.encoding import cosine_basis
from metanet.nn.features import check_bucket
from metanet.nn.flow import propagate
from metanet.nn.spectra import LAYER_STATISTICS, layer_rows
from metanet.nn.structure import ACTIVATIONS

__all__ = ["STATISTICS", "bucket_statistics", "layer_statistics"]

_SLOTS = ("first", "second last", "last")
_POOLS = ("mean", "std")
_POOLED = tuple(name for name in LAYER_STATISTICS if not name.startswith("has "))
_NETWORK = (
    "layers", "log parameters", "mean log width", "min log width", "max log width",
    "path norm", "path square", "path norm per layer", "path square per layer",
    "log norm product", "log spectral product", "has loose values", "loose mean", "loose deviation",
)  # fmt: skip
_RESPONSES = (
    "output spread", "output spread over inputs", "output offset",
    "smooth to white spread", "smooth to white entropy", "largest share", "entropy", "mean share entropy",
    "classes answered", "margin", "hidden size", "hidden active", "hidden dead", "hidden correlation", "hidden rank",
)  # fmt: skip
_INPUTS = 32

STATISTICS: tuple[str, ...] = (
    *(f"{slot}: {name}" for slot in _SLOTS for name in ("exists", *LAYER_STATISTICS)),
    *(f"{pool} over layers: {name}" for name in _POOLED for pool in _POOLS),
    *_NETWORK,
    *(f"activation {name}" for name in (*ACTIVATIONS, "other")),
    "responds",
    *(f"response: {name}" for name in _RESPONSES),
)
"""Names of all statistics, in order."""


def layer_statistics(
    graphs: ParameterGraph | GraphBatch | Sequence[ParameterGraph], partial: bool = True
) -> tuple[Tensor, tuple[str, ...]]:
    """Permutation-invariant statistics of networks of any architectures.

    Args:
        graphs: one graph, several, or a batch (for which the answer is kept: later calls are free).
        partial: accept used tensors that the graph only carries; they are not part of the statistics.

    Shapes:
        returns ``(N, len(STATISTICS))`` in the dtype of the batch, and the names.

    Raises:
        ModelError: for weights that are not finite.
    """
    if isinstance(graphs, ParameterGraph):
        graphs = [graphs]
    batch = graphs if isinstance(graphs, GraphBatch) else collate(graphs)
    for bucket in batch:
        check_bucket(bucket, partial)
    return batch.gather(bucket_statistics(bucket) for bucket in batch), STATISTICS


def bucket_statistics(bucket: Bucket) -> Tensor:
    """The statistics of one bucket, computed in float64 without gradient and kept with it.

    Shapes:
        returns ``(B, len(STATISTICS))``.
    """
    return bucket.remember("statistics", _statistics)


@torch.no_grad()
def _statistics(bucket: Bucket) -> Tensor:
    dtype = next((value.dtype for value in bucket.values if value is not None), torch.float32)
    # Networks that are not finite are refused before their row is read; here they must only not stop the others.
    values = tuple(None if value is None else torch.nan_to_num(value.double(), 0, 0, 0) for value in bucket.values)
    wide = Bucket(bucket.topology, bucket.index, values)
    parts = torch.cat([_layers(wide), _network(wide), _responses(wide)], dim=1)
    return torch.nan_to_num(parts, nan=0.0, posinf=1e6, neginf=-1e6).clamp(-1e6, 1e6).to(dtype)


def _layers(bucket: Bucket) -> Tensor:
    """Slots, then pools over all layers."""
    batch, width = len(bucket), len(LAYER_STATISTICS)
    rows = layer_rows(bucket)  # (B, layers, width)
    count = rows.shape[1]
    places, exist = (0, count - 2, count - 1), (count >= 1, count >= 2, count >= 1)
    slots = []
    for place, here in zip(places, exist, strict=True):
        slots.append(torch.full((batch, 1), float(here), dtype=rows.dtype, device=rows.device))
        slots.append(rows[:, place] if here else rows.new_zeros(batch, width))
    kept = [LAYER_STATISTICS.index(name) for name in _POOLED]
    if not count:
        return torch.cat([*slots, rows.new_zeros(batch, len(kept) * len(_POOLS))], dim=1)
    some = rows[:, :, kept]
    pools = torch.stack([some.mean(1), some.std(1, correction=0)], dim=-1)
    return torch.cat([*slots, pools.flatten(1)], dim=1)


def _network(bucket: Bucket) -> Tensor:
    topology, batch = bucket.topology, len(bucket)
    widths = [math.log(group.size) for group in topology.groups if not group.fixed] or [0.0]
    layers = max(len(topology.edges), 1)
    size = sum(math.prod(block.region.shape) for block in topology.blocks if block.level != "raw")
    fixed = [len(topology.edges), math.log1p(size), sum(widths) / len(widths), min(widths), max(widths)]
    rows = layer_rows(bucket)
    norms = rows[:, :, LAYER_STATISTICS.index("log norm")].sum(1)
    spectral = rows[:, :, LAYER_STATISTICS.index("log spectral norm")].sum(1)
    paths = []
    for measure in ("absolute", "square"):
        ends = propagate(
            bucket,
            lambda _, units: torch.ones(units, 1, dtype=torch.float64),
            lambda number: torch.ones(topology.blocks[number].features, 1, dtype=torch.float64),
            "absolute" if measure == "absolute" else "square",
        )
        found = [
            ends[g].mean((1, 2))
            for g, group in enumerate(topology.groups)
            if group.fixed and group.writes and g in ends
        ]
        total = torch.stack(found).mean(0) if found else norms.new_zeros(batch)
        paths.append((total + 1e-12).log() if found else total)
    told = [norms.new_full((batch,), float(value)) for value in fixed]
    told += [*paths, *(path / layers for path in paths), norms, spectral]
    loose = [
        bucket.value(i).flatten(1) for i in topology.scalars
    ]  # scalars and unused tensors, such as a log deviation
    if loose:
        values = torch.cat(loose, dim=1)
        told += [norms.new_ones(batch), values.mean(1).asinh(), values.std(1, correction=0).asinh()]
    else:
        told += [norms.new_zeros(batch)] * 3
    met = {name for group in topology.groups if not group.fixed for name in group.activations}
    acts = [float(name in met) for name in ACTIVATIONS] + [float(bool(met - set(ACTIVATIONS)))]
    return torch.cat([torch.stack(told, dim=1), norms.new_tensor(acts).expand(batch, -1)], dim=1)


def _responses(bucket: Bucket) -> Tensor:
    """How the network answers to fixed inputs: half of them smooth along the axis and half white, all of unit size."""
    topology, batch = bucket.topology, len(bucket)
    hidden: list[Tensor] = []

    def inputs(_: int, units: int) -> Tensor:
        return _probe_inputs(units).to(bucket.index.device)

    def kernel(number: int) -> Tensor:
        features = topology.blocks[number].features
        generator = torch.Generator().manual_seed(features)
        waves = torch.randn(features, _INPUTS, generator=generator, dtype=torch.float64)
        waves[:, ::2] = 1.0  # every second input sees the sum of the kernel: a constant image
        return waves * (features / waves.square().sum(0, keepdim=True)).sqrt()

    def settled(group: int, x: Tensor) -> Tensor:
        if not topology.groups[group].fixed:
            hidden.append(_inside(x))
        return x

    ends = propagate(bucket, inputs, kernel, settled=settled)
    found = [
        _outside(ends[g])
        for g, group in enumerate(topology.groups)
        if group.fixed and group.writes and group.size > 1 and g in ends
    ]
    if not found:
        return torch.zeros(batch, 1 + len(_RESPONSES), dtype=torch.float64, device=bucket.index.device)
    outside = torch.stack(found).mean(0)
    inside = torch.stack(hidden).mean(0) if hidden else outside.new_zeros(batch, 5)
    return torch.cat([outside.new_ones(batch, 1), outside, inside], dim=1)


@lru_cache(maxsize=256)
def _probe_inputs(units: int) -> Tensor:
    """Fixed inputs of unit size: the first half smooth, the second half white.

    Smooth means along the axis, or along rows and columns where the units fill a square, as the pixels of an image do.

    Shapes:
        returns ``(units, _INPUTS)``.
    """
    half = _INPUTS // 2
    side = math.isqrt(units)
    shape = (side, side) if side > 1 and side * side == units else (units,)
    basis = cosine_basis(shape, max(units // 6, min(units, 3)))
    generator = torch.Generator().manual_seed(units)
    smooth = basis @ torch.randn(basis.shape[1], half, generator=generator, dtype=torch.float64)
    white = torch.randn(units, half, generator=generator, dtype=torch.float64)
    both = torch.cat([smooth, white], dim=1)
    return both / (both.square().mean(0, keepdim=True) + 1e-12).sqrt()


def _outside(x: Tensor) -> Tensor:
    """``(B, outputs, inputs)`` -> the responses of the outputs."""
    half = x.shape[2] // 2
    spread = (x.var((1, 2), correction=0) + 1e-12).log() / 2
    over = _log_spread(x)
    offset = (x.mean(2).var(1, correction=0) + 1e-12).log() / 2
    share = torch.softmax(x, dim=1)
    mean = share.mean(2)
    balance = -(mean * (mean + 1e-12).log()).sum(1)
    ordered = x.topk(2, dim=1).values
    margin = ((ordered[:, 0] - ordered[:, 1]).mean(1) + 1e-12).log()
    rise = _log_spread(x[:, :, :half]) - _log_spread(x[:, :, half:])
    each = -(share * (share + 1e-12).log()).sum(1)
    doubt = each[:, :half].mean(1) - each[:, half:].mean(1)
    answered = torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0).amax(2).mean(1)
    return torch.stack(
        [spread, over, offset, rise, doubt, share.amax(1).mean(1), each.mean(1), balance, answered, margin], dim=1
    )


def _log_spread(x: Tensor) -> Tensor:
    """Logarithm of the deviation over inputs, averaged over outputs."""
    return (x.var(2, correction=0).mean(1) + 1e-12).log() / 2


def _inside(x: Tensor) -> Tensor:
    """``(B, units, inputs)`` -> size, share of active answers, dead units, correlation and rank of one group."""
    size = (x.square().mean((1, 2)) + 1e-12).log() / 2
    active = (x.abs() > 1e-6).double().mean((1, 2))
    deviation = x.var(2, correction=0).sqrt()
    dead = (deviation < 1e-6).double().mean(1)
    centred = x - x.mean(2, keepdim=True)
    unit = centred / (centred.square().sum(2, keepdim=True) + 1e-12).sqrt()
    gram = unit @ unit.transpose(1, 2)
    square = gram.square().mean((1, 2))
    mass = (centred.square().sum((1, 2)) + 1e-12).square()
    rank = mass / ((centred @ centred.transpose(1, 2)).square().sum((1, 2)) + 1e-24)
    return torch.stack([size, active, dead, square.sqrt(), (rank + 1e-12).log()], dim=1)
