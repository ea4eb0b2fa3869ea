"""Which numbers describe one weight tensor, and the bias and normalisation behind it?"""

from __future__ import annotations

import torch
from torch import Tensor

from metanet.graph import Bucket, Topology

__all__ = ["LAYER_STATISTICS", "layer_rows"]

_TINY = 1e-12
_LARGE = 128  # below this singular values are cheap
_WEIGHT = (
    "log rms", "log norm", "mean", "absolute mean", "skewness", "log kurtosis",
    "quantile 10", "quantile 50", "quantile 90", "largest", "share near zero",
    "log spectral norm", "log stable rank", "spectral entropy", "log condition",
    "log row norm", "row norm variation", "smallest row", "largest row", "row alignment", "largest row alignment",
    "row mean", "column norm variation", "smallest column", "largest column", "column alignment",
)  # fmt: skip
_BEHIND = (
    "has bias", "log bias rms", "bias mean", "bias skewness", "bias to row norm",
    "has norm", "gain mean", "gain variation", "smallest gain", "offset mean", "offset variation",
    "running mean rms", "log running deviation", "running deviation variation",
)  # fmt: skip
_BETWEEN = ("has reader", "in-out correlation", "log in-out balance", "in-out balance variation")

LAYER_STATISTICS: tuple[str, ...] = (*_WEIGHT, *_BEHIND, *_BETWEEN)
"""Names of the statistics of one layer. Distributions are of weights divided by their root mean square."""


def layer_rows(bucket: Bucket) -> Tensor:
    """The statistics of every edge block, along the data flow.

    Shapes:
        returns ``(B, edge blocks, len(LAYER_STATISTICS))``.
    """
    return bucket.remember("layer rows", _rows)


def _rows(bucket: Bucket) -> Tensor:
    topology = bucket.topology
    if not topology.edges:
        like = next((value for value in bucket.values if value is not None), torch.zeros(0, dtype=torch.float64))
        return like.new_zeros(len(bucket), 0, len(LAYER_STATISTICS))
    rows = []
    for number in topology.edges:
        weight = _weight(bucket.value(number))
        rows.append(torch.cat([weight, _behind(bucket, number), _between(bucket, number)], dim=1))
    return torch.stack(rows, dim=1)


def _weight(value: Tensor) -> Tensor:
    """``(B, target, source, features)`` -> ``(B, len(_WEIGHT))``."""
    batch, targets, sources, _ = value.shape
    flat = value.reshape(batch, -1)
    norm = (flat.square().sum(1) + _TINY**2).sqrt()
    rms = norm / flat.shape[1] ** 0.5
    z = flat / rms[:, None]
    square = z.square()
    cuts = torch.quantile(z, z.new_tensor([0.1, 0.5, 0.9]), dim=1)
    distribution = [
        rms.log(), norm.log(), z.mean(1), z.abs().mean(1), (square * z).mean(1),
        (square.square().mean(1) + _TINY).log(), *cuts, z.abs().amax(1), (z.abs() < 0.05).to(z).mean(1),
    ]  # fmt: skip
    matrix = value.reshape(batch, targets, -1)
    singular = _singular_values(matrix / norm[:, None, None])
    power = singular.square()
    share = power / power.sum(1, keepdim=True).clamp(min=_TINY)
    entropy = -(share * (share + _TINY).log()).sum(1)
    middle = singular[:, singular.shape[1] // 2]
    spectrum = [
        (singular[:, 0] * norm + _TINY).log(), -(power[:, 0] + _TINY).log(), entropy,
        (singular[:, 0] + _TINY).log() - (middle + 1e-6).log(),
    ]  # fmt: skip
    rows, columns = matrix, value.transpose(1, 2).reshape(batch, sources, -1)
    incoming, outgoing = rows.square().sum(2).sqrt(), columns.square().sum(2).sqrt()
    row_mean = rows.mean(2).abs().mean(1) / rms
    alignment, largest = _alignment(rows, incoming)
    units = [
        (incoming.mean(1) + _TINY).log(), *_spread(incoming), alignment, largest, row_mean, *_spread(outgoing),
        _alignment(columns, outgoing)[0],
    ]  # fmt: skip
    return torch.stack([*distribution, *spectrum, *units], dim=1)


def _singular_values(matrix: Tensor) -> Tensor:
    """Largest first. Large matrices go through their Gram matrix, many times faster and good to 1e-8 of the largest.

    Shapes:
        (B, rows, columns) -> (B, the smaller of both)
    """
    if min(matrix.shape[-2:]) < _LARGE:
        return torch.linalg.svdvals(matrix)
    wide = matrix.double()
    gram = wide @ wide.mT if matrix.shape[-2] <= matrix.shape[-1] else wide.mT @ wide
    return torch.linalg.eigvalsh(gram).flip(-1).clamp(min=1e-16).sqrt().to(matrix)


def _spread(sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Variation, smallest and largest of positive numbers, relative to their mean."""
    mean = sizes.mean(1).clamp(min=_TINY)
    return sizes.std(1, correction=0) / mean, sizes.amin(1) / mean, sizes.amax(1) / mean


def _alignment(vectors: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Root mean square and largest cosine between different vectors of one tensor."""
    unit = vectors / sizes.clamp(min=_TINY)[:, :, None]
    cosine = unit @ unit.transpose(1, 2)
    count = cosine.shape[1]
    if count < 2:
        return (vectors.new_zeros(len(vectors)),) * 2
    cosine = cosine * (1 - torch.eye(count).to(cosine))
    mean = (cosine.square().sum((1, 2)) / (count * (count - 1))).sqrt()
    return mean, cosine.abs().amax((1, 2))


def _behind(bucket: Bucket, number: int) -> Tensor:
    """Statistics of the bias and the normalisation that follow a weight."""
    topology = bucket.topology
    value = bucket.value(number)
    found = {topology.blocks[i].kind: bucket.value(i)[..., 0] for i in _followers(topology, number)}
    zero = value.new_zeros(len(bucket))
    one = zero + 1
    told = [zero] * len(_BEHIND)
    if "bias" in found:
        bias = found["bias"]
        rms = (bias.square().mean(1) + _TINY).sqrt()
        row = (value.flatten(2).square().sum(2).mean(1) + _TINY).sqrt()
        z = bias / rms[:, None]
        told[:5] = [one, rms.log(), z.mean(1), z.pow(3).mean(1), (rms / row + 1e-6).log()]
    if "norm.weight" in found:
        gain = found["norm.weight"]
        told[5:9] = [one, gain.mean(1), gain.std(1, correction=0), gain.abs().amin(1)]
    if "norm.bias" in found:
        told[9:11] = [found["norm.bias"].mean(1), found["norm.bias"].std(1, correction=0)]
    if "norm.running_mean" in found:
        told[11] = (found["norm.running_mean"].square().mean(1) + _TINY).sqrt()
    if "norm.running_var" in found:
        deviation = (found["norm.running_var"].clamp(min=0) + 1e-8).log() / 2
        told[12:14] = [deviation.mean(1), deviation.std(1, correction=0)]
    return torch.stack(told, dim=1)


def _followers(topology: Topology, number: int) -> list[int]:
    """Node features of a block's target that are used before the next block writes it."""

    def order(i: int) -> int:
        return topology.layers[topology.blocks[i].layer].order

    group = topology.blocks[number].groups[0]
    next_write = min(
        (order(i) for i in topology.edges if topology.blocks[i].groups[0] == group and order(i) > order(number)),
        default=len(topology.layers),
    )
    behind = (i for i in topology.nodes if topology.blocks[i].groups[0] == group)
    return [i for i in behind if order(number) < order(i) < next_write]


def _between(bucket: Bucket, number: int) -> Tensor:
    """How the incoming norms of the target's units go with their outgoing norms in the layers that read them."""
    topology = bucket.topology
    value = bucket.value(number)
    readers = [
        i for i in topology.edges if topology.blocks[i].groups[1] == topology.blocks[number].groups[0] and i != number
    ]
    zero = value.new_zeros(len(bucket))
    if not readers:
        return torch.stack([zero] * len(_BETWEEN), dim=1)
    outgoing = sum((bucket.value(i).square().sum((1, 3)) for i in readers), start=torch.zeros((), dtype=value.dtype))
    out = (outgoing + 1e-8).log() / 2
    into = (value.square().sum((2, 3)) + 1e-8).log() / 2
    a, b = into - into.mean(1, keepdim=True), out - out.mean(1, keepdim=True)
    scale = (a.square().mean(1) * b.square().mean(1)).sqrt()
    # Where all norms are equal, as in a canonical gauge, rounding errors must not pass for a correlation.
    correlation = (a * b).mean(1) * scale / (scale.square() + 1e-8)
    balance = into - out
    return torch.stack([zero + 1, correlation, balance.mean(1), balance.std(1, correction=0)], dim=1)
