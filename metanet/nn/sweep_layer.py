"""What do units learn of each other when features travel through the weights themselves? One sweep, there and back.

Forwards, learned probes at the inputs pass every tensor in the order of the data flow and meet the network's own
activations, ``h = f(W h + b)``. Backwards, learned probes at the outputs pass the transposes and the derivatives of the
activations at what the forward half met, ``g = W^T (f'(z) g)``. Beside both goes a lane of non-negative features
through ``|W|`` and ``|W|^T``: how much can reach a unit, and how much a unit can reach. What a unit has learned from
earlier rounds is added before its activation, and the channels are mixed behind it, with weights that start at zero: a
new layer is the network itself, run on random inputs, and its gradients by random sums of outputs.

Each block costs one product of matrices per lane and direction; nothing is kept per edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu, softplus

from metanet.graph import Bucket, Topology
from metanet.graph.encoding import position_code
from metanet.nn.dense import Dense
from metanet.nn.flow import LIMIT, activation, advance, distinct, measured, retreat, slope, total
from metanet.nn.probes import CODE, Probes
from metanet.nn.steps import endings, schedule
from metanet.nn.structure import Structure

__all__ = ["SweepLayer", "Trace"]

_FLOOR = 1e-12


@dataclass
class Trace:
    """What stood where during a sweep.

    Args:
        slots: features by slot of the forward flow.
        before: by slot of a "settle", the sum that went into the activation.
        reach: features of the lane through absolute weights, by slot.
        levels: by group, the logarithm of the size that was taken out of that lane.
        weights: by block, the weights of edges.
        absolute: by block, the absolute weights of edges, summed over kernel positions: made once for both directions.
    """

    slots: list[Tensor] = field(default_factory=list)
    before: dict[int, Tensor] = field(default_factory=dict)
    reach: list[Tensor] = field(default_factory=list)
    levels: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)
    absolute: dict[int, Tensor] = field(default_factory=dict)


class SweepLayer(nn.Module):
    """One sweep of features through a network and back. Permutation-equivariant, for every topology.

    Args:
        hidden: width of node and layer features; half as many probes travel, and a quarter as many absolute features.
        rounds: number of rounds in the metanetwork; residual branches start smaller in deeper ones.
    """

    def __init__(self, hidden: int, rounds: int = 1) -> None:
        super().__init__()
        self.hidden, self.probes, self.lanes = hidden, max(hidden // 2, 1), max(hidden // 4, 1)
        branch = rounds**-0.5
        self.inputs = Probes(self.probes)
        self.outputs = Dense(CODE, self.probes, gain=1.4)
        self.reach_inputs = Dense(CODE, self.lanes, gain=1.4)
        self.reach_outputs = Dense(CODE, self.lanes, gain=1.4)
        self.ahead = Dense(hidden, self.probes, bias=False, gain=0.0)
        self.mix = Dense(self.probes, self.probes, gain=0.0)
        self.behind = Dense(hidden, self.probes, bias=False, gain=0.0)
        self.mix_back = Dense(self.probes, self.probes, gain=0.0)
        features = 2 * self.probes + 2 * self.lanes + 4
        self.node_self = Dense(hidden, hidden)
        self.node_layer = Dense(hidden, hidden, bias=False)
        self.node_sweep = Dense(features, hidden, bias=False, gain=1.4)
        self.node_out = Dense(hidden, hidden, gain=branch)
        self.layer_self = Dense(hidden, hidden)
        self.layer_all = Dense(hidden, hidden, bias=False)
        self.layer_sweep = Dense(features, hidden, bias=False, gain=1.4)
        self.layer_out = Dense(hidden, hidden, gain=branch)

    def forward(
        self, structure: Structure, bucket: Bucket, nodes: Tensor, edges: dict[int, Tensor], layers: Tensor
    ) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        """One sweep there and back.

        Shapes:
            nodes: ``(B, nodes, hidden)``. edges: by block, passed on as they are. layers: ``(B, layers, hidden)``.
            Returns the same.
        """
        x, y = layer_norm(nodes, (self.hidden,)), layer_norm(layers, (self.hidden,))
        trace = self.there(structure, bucket, x)
        gradients, reach, levels = self.back(structure, bucket, x, trace)
        ends = endings(structure.topology)
        batch, kinds = len(bucket), (self.probes, self.probes, self.lanes, self.lanes, 2, 2)
        found = []
        for group, one in enumerate(structure.topology.groups):
            parts = [x.new_zeros(batch, one.size, width) for width in kinds]
            if group in ends:
                value, gradient = trace.slots[ends[group]], gradients.get(group)
                parts[0] = torch.asinh(value)
                parts[2] = (_share(trace.reach[ends[group]]) + 1e-3).log() / 4
                parts[4] = torch.cat([_log_size(value), trace.levels[group]], dim=-1).expand(-1, one.size, -1) / 8
                if gradient is not None:
                    parts[1] = torch.asinh(gradient / _divisor(gradient.square().mean(1, keepdim=True)).sqrt())
                    parts[3] = (_share(reach[group]) + 1e-3).log() / 4
                    parts[5] = torch.cat([_log_size(gradient), levels[group]], dim=-1).expand(-1, one.size, -1) / 8
            found.append(torch.cat(parts, dim=-1))
        swept = torch.cat(found, dim=1)
        told = self.node_layer(structure.node_layers.to(y) @ y)[:, structure.group_of_node]
        nodes = nodes + self.node_out(relu(self.node_self(x) + self.node_sweep(swept) + told))
        if layers.shape[1]:
            means = torch.stack([part.mean(1) for part in found], dim=1)
            here = self.layer_sweep(_groups_of_layers(structure.topology).to(means) @ means)
            hidden = self.layer_self(y) + self.layer_all(y.mean(1, keepdim=True)) + here
            layers = layers + self.layer_out(relu(hidden))
        return nodes, edges, layers

    def there(self, structure: Structure, bucket: Bucket, x: Tensor) -> Trace:
        """The forward half.

        Args:
            structure: of the bucket's topology.
            bucket: networks of one architecture.
            x: what the units know, at order 1.

        Shapes:
            x: ``(B, nodes, hidden)``; features of slots are ``(B, units, probes)``.
        """
        topology, trace = structure.topology, Trace()
        kernel, flat, ahead = self.inputs.kernel(topology), _flat(bucket), self.ahead(x)
        for step in schedule(topology):
            group = topology.groups[step.group]
            own = ahead[:, structure.rows(step.group)]
            if step.sort == "input":
                size = distinct(topology, step.group)
                trace.slots.append(self.inputs.at(size) + own)
                start = softplus(self.reach_inputs(position_code(size, CODE).to(x)))
                start = start.expand(len(bucket), group.size, -1)
                trace.reach.append(_share(start))
                trace.levels[step.group] = _level(start)
                continue
            values, reach = [trace.slots[i] for i in step.reads], [trace.reach[i] for i in step.reads]
            if step.sort == "settle":
                before = (total(values) + own).clamp(-LIMIT, LIMIT)
                value = activation(group.activations)(before)
                trace.before[step.writes] = before
                trace.slots.append(value if group.fixed else value + self.mix(value))
                trace.reach.append(_share(total(reach)))
                trace.levels[step.group] = _level(total(reach))
                continue
            if step.sort == "edge":
                cut = trace.weights[step.block] = _weight(bucket, step.block)
                trace.absolute[step.block] = measured(cut, "absolute").sum(-1, keepdim=True)
            weight = trace.absolute.get(step.block)
            trace.slots.append(advance(step, bucket, values, kernel, weight=trace.weights.get(step.block)))
            trace.reach.append(advance(step, bucket, reach, flat, "absolute", weight))
        return trace

    def back(
        self, structure: Structure, bucket: Bucket, x: Tensor, trace: Trace
    ) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]:
        """The backward half, through the transposes.

        Shapes:
            returns by group the gradients ``(B, units, probes)``, the absolute features ``(B, units, lanes)`` and the
            logarithms of the sizes of these ``(B, 1, 1)``.
        """
        topology = structure.topology
        kernel, flat, behind = self.inputs.kernel(topology), _flat(bucket), self.behind(x)
        gradients: dict[int, Tensor] = {}  # by slot
        reach: dict[int, Tensor] = {}
        ends, levels = endings(topology), dict[int, Tensor]()
        for group, slot in ends.items():
            one = topology.groups[group]
            if one.fixed and one.writes:
                code = position_code(one.size, CODE).to(x)
                _add(gradients, slot, self.outputs(code).expand(len(bucket), -1, -1))
                _add(reach, slot, softplus(self.reach_outputs(code)).expand(len(bucket), -1, -1))
        found: dict[int, Tensor] = {}
        lanes: dict[int, Tensor] = {}
        for step in reversed(schedule(topology)):
            if step.writes not in gradients:
                continue
            one = topology.groups[step.group]
            gradient, lane = gradients.pop(step.writes), reach.pop(step.writes)
            if step.sort in ("input", "settle"):
                gradient = (gradient + behind[:, structure.rows(step.group)]).clamp(-LIMIT, LIMIT)
                gradient = gradient if one.fixed else gradient + self.mix_back(gradient)
            if ends.get(step.group) == step.writes:
                found[step.group], lanes[step.group], levels[step.group] = gradient, lane, _level(lane)
            if step.sort == "input":
                continue
            if step.sort == "settle":
                lane = _share(lane)
                gradient = gradient * slope(one.activations)(trace.before[step.writes])
                for slot in step.reads:
                    _add(gradients, slot, gradient)
                    _add(reach, slot, lane)
                continue
            values, met = [trace.slots[i] for i in step.reads], [trace.reach[i] for i in step.reads]
            weight = trace.absolute.get(step.block)
            back = retreat(step, bucket, values, gradient, kernel, weight=trace.weights.get(step.block))
            for slot, change in zip(step.reads, back, strict=True):
                _add(gradients, slot, change)
            for slot, change in zip(
                step.reads, retreat(step, bucket, met, lane, flat, "absolute", weight), strict=True
            ):
                _add(reach, slot, change)
        return found, lanes, levels

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, probes={self.probes}, lanes={self.lanes}"


def _add(sums: dict[int, Tensor], slot: int, value: Tensor) -> None:
    sums[slot] = sums[slot] + value if slot in sums else value


def _weight(bucket: Bucket, number: int) -> Tensor:
    """The weights of a block, cut where products of several would leave the range of their numbers."""
    value = bucket.value(number)
    large = bucket.remember(f"large/{number}", lambda source: source.value(number).detach().abs().flatten(1).amax(1))
    return value.clamp(-LIMIT, LIMIT) if bool((large > LIMIT).any()) else value


def _share(x: Tensor) -> Tensor:
    """Non-negative features over their mean over units: of order 1 whatever the size of the weights."""
    return x / _divisor(x.mean(1, keepdim=True))


def _divisor(size: Tensor) -> Tensor:
    """A size to divide by; 1 for nothing, so that slopes through a dead network are not blown up layer by layer."""
    return torch.where(size > _FLOOR, size + _FLOOR, 1.0)


def _level(x: Tensor) -> Tensor:
    """The logarithm of what :func:`_share` takes out: ``(B, 1, 1)``."""
    return (x.mean((1, 2), keepdim=True) + _FLOOR).log()


def _log_size(x: Tensor) -> Tensor:
    return (x.square().mean((1, 2), keepdim=True) + 1e-6).log()


def _flat(bucket: Bucket) -> Callable[[int], Tensor]:
    """Equal weights for all kernel positions; edges are summed over them beforehand."""
    topology = bucket.topology

    def weights(number: int) -> Tensor:
        block = topology.blocks[number]
        return bucket.value(number).new_ones(1 if block.level == "edge" else block.features, 1)

    return weights


@lru_cache(maxsize=4096)
def _groups_of_layers(topology: Topology) -> Tensor:
    """Mean over the groups that the blocks of each layer touch: ``(layers, groups)``."""
    matrix = torch.zeros(len(topology.layers), len(topology.groups), dtype=torch.float64)
    for block in topology.blocks:
        if block.level in ("edge", "node"):
            for group in block.groups:
                matrix[block.layer, group] += 1
    return matrix / matrix.sum(1, keepdim=True).clamp(min=1)
