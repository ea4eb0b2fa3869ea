"""How do raw weights become features that a network can learn from?

Every tensor is divided by its own root mean square, whose logarithm goes to its layer node; variances enter as the
logarithm of the standard deviation. Kernel positions are expressed in a cosine basis, so that one table of weights per
kind of tensor reads kernels of any size. This respects permutations; invariance to rescaling single units comes from
the frame that the weights stand in (:mod:`metanet.nn.frames`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metanet.errors import ModelError
from metanet.graph import KINDS, Block, Bucket
from metanet.graph.encoding import cosine_basis
from metanet.nn.dense import Dense, Table
from metanet.nn.finite import check_finite
from metanet.nn.structure import GROUP_FEATURES, LAYER_FEATURES, PART_FEATURES, structure_of

__all__ = ["EXCESS", "Embedding", "check_bucket", "coefficients", "excess", "moments", "standardised"]

EXCESS = "excess"
"""What a framed bucket remembers :func:`excess` as."""
MOMENTS = 5
_FLOOR = 1e-12
_LOGARITHM = 1e-3  # logarithms have a size of their own; in the canonical gauge those of variances are 0
_LOG = 3.0  # logarithms of sizes are divided by it
_LARGEST = 1e6  # of a feature, where a constant alone brings weights to order 1


def check_bucket(bucket: Bucket, partial: bool) -> None:
    """Refuse networks that a metanetwork would misread.

    Args:
        bucket: networks of one architecture.
        partial: accept tensors that the network uses but the graph only carries.

    Raises:
        ModelError: for weights that are not finite, and for used tensors that would not be seen.
    """
    unseen = bucket.topology.unseen
    if unseen and not partial:
        raise ModelError(
            f"{len(unseen)} used tensors would not be seen ({', '.join(unseen[:4])}): {_reason(bucket, unseen[0])}",
            hint="pass partial=True to read the rest of the network",
        )
    check_finite(bucket)


def _reason(bucket: Bucket, tensor: str) -> str:
    return next(block.reason for block in bucket.topology.blocks if block.tensor == tensor)


def excess(bucket: Bucket) -> Tensor:
    """Logarithms of what the blocks of a bucket in canonical form were divided by to stay in the range of its dtype; 0
    for all networks of ordinary size.

    Shapes:
        returns ``(B, blocks)``.
    """

    def nothing(source: Bucket) -> Tensor:
        return torch.zeros(len(source), len(source.values), dtype=torch.float64, device=source.index.device)

    return bucket.remember(EXCESS, nothing)


def moments(value: Tensor, floor: float = _FLOOR) -> tuple[Tensor, Tensor]:
    """The root mean square of each network's block, and what its layer node is told of it.

    Args:
        value: the block's values.
        floor: sizes below it count as nothing: rounding errors are not blown up to features.

    Shapes:
        value: ``(B, ...)``; returns ``(B,)`` and ``(B, MOMENTS)``: log RMS, mean / RMS, mean absolute value / RMS,
        skewness, logarithm of kurtosis, each of order 1.
    """
    flat = value.reshape(value.shape[0], -1)
    peak = flat.detach().abs().amax(1, keepdim=True).clamp(min=floor)  # squares of huge or tiny values stay in range
    unit = flat / peak
    relative = unit.square().mean(1, keepdim=True).clamp(min=(floor / peak).square()).sqrt()
    rms = (relative * peak).squeeze(1)
    z = unit / relative
    log = (rms + 1e-6).log() / _LOG
    square = z.square()
    kurtosis = (square.square().mean(1) + 1e-3).log() / 2
    told = torch.stack([log, z.mean(1), z.abs().mean(1), (square * z).mean(1) / 3, kurtosis], dim=1)
    return rms, told


def standardised(block: Block, value: Tensor, gauge: str = "rms") -> tuple[Tensor, Tensor]:
    """A block's values at order 1, and the moments that were taken out.

    Args:
        block: the block.
        value: its values.
        gauge: "unit" multiplies by a constant of the architecture (the root of the number of weights per unit, which
            is right for incoming norms of 1); any other divides by each network's own root mean square.

    Shapes:
        value: ``(B, ..., features)``; returns the same and ``(B, MOMENTS)``.
    """
    if block.kind == "norm.running_var":
        value = 0.5 * (value.clamp(min=0) + max(block.offset or 0.0, 1e-8)).log()
        return value, moments(value, _LOGARITHM)[1]
    rms, told = moments(value)
    if gauge == "unit":
        constant = math.prod(value.shape[2:] if block.level == "edge" else ()) ** 0.5
        return (value * constant).clamp(-_LARGEST, _LARGEST), told
    return value / rms.clamp(min=_FLOOR).reshape(-1, *[1] * (value.ndim - 1)), told


def coefficients(block: Block, z: Tensor, most: int) -> Tensor:
    """Values at kernel positions as cosine coefficients, with their root sum of squares behind.

    Shapes:
        z: ``(B, ..., features)``; returns ``(B, ..., min(features, most) + 1)``.
    """
    if block.features == 1:
        return torch.cat([z, z.abs()], dim=-1)
    basis = cosine_basis(block.positions, most).to(z)
    size = (z.square().sum(-1, keepdim=True) + _FLOOR).sqrt()
    return torch.cat([z @ basis, size], dim=-1)


class Embedding(nn.Module):
    """Features of nodes, edges and layer nodes from the raw weights of a bucket.

    Args:
        hidden: width.
        positions: kernel positions that are told apart exactly; larger kernels are seen through their smoothest
            ``positions`` cosine coefficients and their norm.
        gauge: how values are brought to order 1, see :func:`standardised`.
    """

    def __init__(self, hidden: int, positions: int, gauge: str = "rms") -> None:
        super().__init__()
        self.hidden, self.positions, self.gauge = hidden, positions, gauge
        self.way = "constant/" if gauge == "unit" else ""  # names what is kept with a bucket
        self.edge = Table(len(KINDS), positions + 1, hidden, scale=0.7)
        self.node = Table(len(KINDS), positions + 1, hidden, scale=0.7)
        self.kind = Table(len(KINDS), hidden, scale=0.3)
        self.part = Dense(PART_FEATURES, hidden, bias=False)
        self.group = Dense(GROUP_FEATURES, hidden, gain=2.0)
        self.incoming = Table(len(KINDS), 2, hidden, scale=0.5)
        self.outgoing = Table(len(KINDS), 2, hidden, scale=0.5)
        self.layer = Dense(LAYER_FEATURES + MOMENTS, hidden, gain=2.0)

    def inputs(self, bucket: Bucket, number: int) -> tuple[Tensor, Tensor]:
        """Cosine coefficients and moments of one block; kept with the bucket, since they hold no parameters."""
        block, value = bucket.topology.blocks[number], bucket.value(number)

        def make(source: Bucket, which: int) -> Tensor:
            z, told = standardised(block, source.value(number), self.gauge)
            if which == 0:
                return coefficients(block, z, self.positions)
            log = excess(source)[:, number, None].to(told)
            return torch.cat([told[:, :1] + log / _LOG, told[:, 1:]], dim=1)

        if value.requires_grad:
            return make(bucket, 0), make(bucket, 1)
        key = f"input/{self.way}{self.positions}/{number}"
        first = bucket.remember(key, lambda source: make(source, 0))
        return first, bucket.remember(f"{key}/moments", lambda source: make(source, 1))

    def _values(self, table: Table, bucket: Bucket, number: int, constant: Tensor) -> Tensor:
        x, _ = self.inputs(bucket, number)
        kind = KINDS.index(bucket.topology.blocks[number].kind)
        weight = torch.cat([table.weight[kind, : x.shape[-1] - 1], table.weight[kind, -1:]])
        bias = self.kind.weight[kind] + constant
        return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], self.hidden)

    def forward(self, bucket: Bucket, edges: bool = True) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        """The starting features.

        Args:
            bucket: networks of one architecture.
            edges: make edge features too.

        Shapes:
            returns nodes ``(B, nodes, hidden)``, edges by block ``(B, target, source, hidden)``, layer nodes
            ``(B, layers, hidden)``.
        """
        topology, structure = bucket.topology, structure_of(bucket.topology)
        like, batch = self.part.weight, len(bucket)
        constants = self.part(structure.parts.to(like))
        nodes = [
            self.group(structure.groups[structure.rows(g)].to(like)).expand(batch, -1, -1)
            for g in range(len(topology.groups))
        ]
        told = [torch.zeros(batch, MOMENTS, dtype=like.dtype, device=like.device) for _ in topology.layers]
        features = {}
        for number in topology.edges:
            block = topology.blocks[number]
            if edges:
                features[number] = self._values(self.edge, bucket, number, constants[number])
            kind = KINDS.index(block.kind)
            rows, columns = self.rows(bucket, number)
            target, source = block.groups
            nodes[target] = nodes[target] + rows @ self.incoming(kind) / structure.targets[target] ** 0.5
            nodes[source] = nodes[source] + columns @ self.outgoing(kind) / structure.sources[source] ** 0.5
        for number in topology.nodes:
            group = topology.blocks[number].groups[0]
            nodes[group] = nodes[group] + self._values(self.node, bucket, number, constants[number])
        for number in (*topology.edges, *topology.nodes, *topology.scalars):
            layer = topology.blocks[number].layer
            told[layer] = told[layer] + self.inputs(bucket, number)[1] / max(structure.parts_of[layer], 1)
        places = structure.layers.to(like).expand(batch, -1, -1)
        layers = self.layer(torch.cat([places, torch.stack(told, dim=1)], dim=-1)) if topology.layers else None
        return (
            torch.cat(nodes, dim=1),
            features,
            layers if layers is not None else like.new_zeros(batch, 0, self.hidden),
        )

    def rows(self, bucket: Bucket, number: int) -> tuple[Tensor, Tensor]:
        """Log root mean square and mean over each unit's incoming and outgoing weights, relative to the tensor's own.

        Shapes:
            returns ``(B, target, 2)`` and ``(B, source, 2)``.
        """
        block, value = bucket.topology.blocks[number], bucket.value(number)

        def make(source: Bucket, axis: int) -> Tensor:
            z, _ = standardised(block, source.value(number), self.gauge)
            size = (z.square().mean((axis, 3)) + 1e-6).log() / 2
            return torch.stack([size, z.mean((axis, 3))], dim=-1)

        if value.requires_grad:
            return make(bucket, 2), make(bucket, 1)
        incoming = bucket.remember(f"rows/{self.way}{number}/in", lambda source: make(source, 2))
        return incoming, bucket.remember(f"rows/{self.way}{number}/out", lambda source: make(source, 1))
