"""How does a metanetwork answer: once per network, once per unit, or once per weight?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu

from metanet.errors import ModelError
from metanet.graph import KINDS, Bucket, Topology
from metanet.graph.encoding import cosine_basis
from metanet.nn.dense import Dense, Table
from metanet.nn.effects import EFFECTS, logarithm
from metanet.nn.features import excess, moments, standardised
from metanet.nn.frames import Motion
from metanet.nn.frames.places import gains_of, views_of
from metanet.nn.structure import Structure

__all__ = ["EdgeHead", "GraphHead", "NodeHead"]

_SMALL = 1e-5  # of a weight over its tensor's root mean square: smaller ones are as good as zero


class GraphHead(nn.Module):
    """One answer per network, from averages over nodes and layers and from further features of the whole network.

    Args:
        hidden: width of the node features; 0 to read further features alone.
        extra: number of further features (statistics, probes).
        outputs: numbers per network.
        width: width of its hidden layer.
    """

    def __init__(self, hidden: int, extra: int, outputs: int, width: int) -> None:
        super().__init__()
        self.pooled = Dense(7 * hidden, width, gain=0.7) if hidden else None
        self.further = Dense(extra, width, bias=False, gain=0.7) if extra else None
        self.middle = Dense(width, width, gain=1.4)
        self.out = Dense(width, outputs, gain=0.3)

    def forward(
        self, structure: Structure, nodes: Tensor | None, layers: Tensor | None, extra: Tensor | None
    ) -> Tensor:
        """The answers.

        Shapes:
            nodes: ``(B, nodes, hidden)``. layers: ``(B, layers, hidden)``. extra: ``(B, extra)``. Returns ``(B,
            outputs)``.
        """
        parts = []
        if self.pooled is not None and nodes is not None and layers is not None:
            parts.append(self.pooled(self._pools(structure, nodes, layers)))
        if self.further is not None and extra is not None:
            parts.append(self.further(extra))
        hidden = relu(torch.stack(parts).sum(0)) if len(parts) > 1 else relu(parts[0])
        answer: Tensor = self.out(relu(self.middle(hidden)) + hidden)
        return answer

    @staticmethod
    def _pools(structure: Structure, nodes: Tensor, layers: Tensor) -> Tensor:
        width = nodes.shape[-1]
        x, y = layer_norm(nodes, (width,)), layer_norm(layers, (width,))
        pools = (structure.pools.to(x) @ x).flatten(1)
        if y.shape[1]:
            edges = [structure.topology.blocks[i].layer for i in structure.topology.edges] or [0]
            ends = [y.mean(1), y.amax(1), y[:, edges[0]], y[:, edges[-1]]]
        else:
            ends = [x.new_zeros(len(x), width)] * 4
        return torch.cat([pools, *ends], dim=-1)


class NodeHead(nn.Module):
    """One answer per unit of every space.

    Args:
        hidden: width of the node features.
        outputs: numbers per unit.
    """

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.middle = Dense(hidden, hidden, gain=1.4)
        self.out = Dense(hidden, outputs)

    def forward(self, structure: Structure, nodes: Tensor) -> dict[str, Tensor]:
        """The answers by space (units inside heads: by the name of their group, "heads x units").

        Shapes:
            nodes: ``(B, nodes, hidden)``. Returns ``(B, units, outputs)`` per space.
        """
        answer = self.out(relu(self.middle(layer_norm(nodes, nodes.shape[-1:]))))
        groups = enumerate(structure.topology.groups)
        return {group.name: answer[:, structure.rows(number)] for number, group in groups if not group.fixed}


class EdgeHead(nn.Module):
    """One answer per weight, of every tensor that the graph interprets; in the shape of the state.

    Answers are in units of the tensor: ``sqrt(RMS^2 + 0.01^2)``, so that a change of 1 is as large as the weights are.

    Args:
        hidden: width of the features.
        outputs: numbers per weight.
        positions: cosine coefficients that are answered separately; a learned gain on the weight itself is added to
        them.
        gauge: how weights are brought to order 1, see :func:`metanet.nn.features.standardised`.
        whole: answer for every tensor of the state: zeros where the graph interprets nothing, and changes of a variance
            that keep it above minus its epsilon.
        invariant: answers are numbers of order 1 and not changes: only permutations move them. They also get a learned
            gain on the logarithm of the weight's size.
        effects: answers also get learned gains on what is known of each weight's effects.
    """

    def __init__(
        self,
        hidden: int,
        outputs: int,
        positions: int,
        gauge: str = "rms",
        whole: bool = False,
        invariant: bool = False,
        effects: bool = False,
    ) -> None:
        super().__init__()
        self.outputs, self.positions, self.gauge, self.whole = outputs, positions, gauge, whole
        self.invariant = invariant
        count = len(EFFECTS) if effects else 0
        self.own = Dense(hidden, hidden, gain=1.4)
        self.layer = Dense(hidden, hidden, bias=False)
        self.out = Table(len(KINDS), hidden, positions + 1 + invariant + count, outputs, scale=0.3 * hidden**-0.5)

    def forward(
        self,
        structure: Structure,
        bucket: Bucket,
        nodes: Tensor,
        edges: dict[int, Tensor],
        layers: Tensor,
        back: Motion | None = None,
        effects: dict[int, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The answers by state-dict name; raw tensors have none.

        Args:
            structure: of the architecture.
            bucket: the networks in the gauge in which they were read.
            nodes: features of the units.
            edges: features of the weights by block.
            layers: features of the layers.
            back: carries answers from that gauge to the networks' own.
            effects: of the weights by block, see :func:`metanet.nn.effects.effects_of`.

        Shapes:
            returns ``(B, outputs, *shape)`` per tensor.
        """
        topology, batch = structure.topology, len(bucket)
        y = self.layer(layer_norm(layers, layers.shape[-1:]))
        changes: list[Tensor | None] = [None] * len(topology.blocks)
        for number in (*topology.edges, *topology.nodes, *topology.scalars):
            block = topology.blocks[number]
            told = y[:, block.layer]
            if block.level == "edge":
                feature = relu(self.own(edges[number]) + told[:, None, None])
            elif block.level == "node":
                own = layer_norm(nodes[:, structure.rows(block.groups[0])], nodes.shape[-1:])
                feature = relu(self.own(own) + told[:, None])
            else:
                feature = relu(told)
            changes[number] = self._values(bucket, number, feature, None if effects is None else effects.get(number))
        if back is not None and self.invariant:
            _check_apart(topology)
        elif back is not None:
            for number in gains_of(topology):  # matrices act through them, so a change of theirs has no linear part
                change = changes[number]
                changes[number] = None if change is None else torch.zeros_like(change)
            carried = back.carry(_whole(bucket, changes), bucket.values)
            most = torch.finfo(y.dtype).max  # a least size of .01 there may be any size here
            changes = [None if change is None else change.clamp(-most, most).to(y.dtype) for change in carried]
        answers: dict[str, Tensor] = {}
        for block, values in zip(topology.blocks, changes, strict=True):
            if values is None:
                continue
            if block.tensor not in answers:
                shape = topology.spec.tensors[block.tensor].shape
                answers[block.tensor] = values.new_zeros(batch * self.outputs, *shape)
            region = block.region.batched(batch * self.outputs)
            if block.region.whole:
                answers[block.tensor] = region.restore(values.flatten(0, 1))
            else:
                region.write(values.flatten(0, 1), answers[block.tensor])
        if self.whole:
            return self._state(topology, batch, answers, y)
        named = {name: answers[owner] for name, owner in topology.owners.items() if owner in answers}
        return {name: value.reshape(batch, self.outputs, *value.shape[1:]) for name, value in named.items()}

    def _state(self, topology: Topology, batch: int, answers: dict[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """An answer for every tensor; integers stay integers."""
        found = {}
        for name, info in topology.spec.tensors.items():
            owner, shape = topology.owners[name], (batch, self.outputs, *info.shape)
            if owner in answers:
                found[name] = answers[owner].reshape(shape)
            else:
                dtype = like.dtype if "float" in info.dtype else torch.int64
                found[name] = torch.zeros(shape, dtype=dtype, device=like.device)
        return found

    def _values(self, bucket: Bucket, number: int, feature: Tensor, effects: Tensor | None) -> Tensor:
        """``(B, outputs, ..., features)`` from ``(B, ..., hidden)``."""
        block, value = bucket.topology.blocks[number], bucket.value(number)
        basis = cosine_basis(block.positions, self.positions).to(feature)
        table = self.out(KINDS.index(block.kind))
        low = torch.einsum("b...h,hco,pc->bo...p", feature, table[:, : basis.shape[1]], basis)
        gain = torch.einsum("b...h,ho->bo...", feature, table[:, self.positions]).unsqueeze(-1)
        z = standardised(block, value, self.gauge)[0].unsqueeze(1)
        first = self.positions + 1 + self.invariant
        if effects is not None:
            # What pulls a weight, pulls along it: a change is told by the effect times the weight.
            told = logarithm(effects).unsqueeze(1) if self.invariant else z.unsqueeze(-1) * effects.unsqueeze(1).asinh()
            pulls = torch.einsum("b...h,hko->bo...k", feature, table[:, first:]).unsqueeze(-2)
            low = low + (pulls * told).sum(-1)
        if self.invariant:
            power = torch.einsum("b...h,ho->bo...", feature, table[:, first - 1]).unsqueeze(-1)
            return low + gain * z + power * (z.abs() + _SMALL).log()
        if self.whole and block.offset is not None:
            # A change of the logarithm: what is under the root stays positive.
            return (value + block.offset).unsqueeze(1) * torch.expm1(torch.tanh(low + gain * z))
        rms = moments(value)[0]
        scale = torch.hypot(rms, torch.full_like(rms, 1e-2)).reshape(-1, *[1] * value.ndim)
        return (low + gain * z) * scale


def _whole(bucket: Bucket, changes: list[Tensor | None]) -> list[Tensor | None]:
    """Changes in the units of the canonical form itself, where that left the range of its dtype."""
    logs = excess(bucket)
    if not bool(logs.any()):
        return changes
    return [
        change
        if change is None or not bool(log.any())
        else change.double() * log.exp().reshape(-1, *[1] * (change.ndim - 1))
        for change, log in zip(changes, logs.unbind(1), strict=True)
    ]


def _check_apart(topology: Topology) -> None:
    """Refuse invariant answers where matrices mix the weights: no number of a single weight is invariant then.

    Raises:
        ModelError: naming the tensor and its space.
    """
    for number in (*topology.edges, *topology.nodes):
        view = views_of(topology)[number]
        if view is not None and view.turns:
            raise ModelError(
                f"matrices of {view.turns[0].space!r} mix the weights of {topology.blocks[number].tensor!r}: no answer "
                "at a single one is invariant",
                hint="use symmetry='permutation'",
            )
