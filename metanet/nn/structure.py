"""What does a metanetwork know of an architecture before it sees weights? Constant features of a topology."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from metanet.graph import KINDS, Topology
from metanet.graph.encoding import position_code

__all__ = ["ACTIVATIONS", "GROUP_FEATURES", "LAYER_FEATURES", "PART_FEATURES", "Structure", "structure_of"]

ACTIVATIONS = (
    "relu", "tanh", "gelu", "sin", "sigmoid", "silu", "leaky_relu", "elu", "softplus", "abs", "softmax", "max_pool",
)  # fmt: skip
"""Pointwise functions with a feature of their own; all others share one."""

_CODE = 32  # columns of the positional code: enough to tell any two of some hundred units apart
GROUP_FEATURES = 4 + len(ACTIVATIONS) + 1 + _CODE
LAYER_FEATURES = len(KINDS) + 5
PART_FEATURES = 12


@dataclass(frozen=True, eq=False)
class Structure:
    """Constant features of one topology.

    Args:
        topology: the topology.
        offsets: first row of every group in the common node axis, and the total at the end.
        groups: features of every node: flags, size, activations, positional code of fixed units.
        layers: features of every layer node: kind, size, place.
        parts: features of every block: which part of a concatenation it is.

    Shapes:
        groups: ``(nodes, GROUP_FEATURES)``. layers: ``(layers, LAYER_FEATURES)``. parts: ``(blocks, PART_FEATURES)``.
    """

    topology: Topology
    offsets: tuple[int, ...]
    groups: Tensor
    layers: Tensor
    parts: Tensor

    def rows(self, group: int) -> slice:
        """The rows of a group in the common node axis."""
        return slice(self.offsets[group], self.offsets[group + 1])

    @property
    def sizes(self) -> list[int]:
        """Number of nodes of every group."""
        return [group.size for group in self.topology.groups]

    @cached_property
    def targets(self) -> list[int]:
        """For every group, how many edge blocks write it (at least 1)."""
        return self._count(0)

    @cached_property
    def sources(self) -> list[int]:
        """For every group, how many edge blocks read it (at least 1)."""
        return self._count(1)

    def _count(self, end: int) -> list[int]:
        met = [self.topology.blocks[i].groups[end] for i in self.topology.edges]
        return [max(met.count(group), 1) for group in range(len(self.topology.groups))]

    @cached_property
    def parts_of(self) -> list[int]:
        """For every layer, how many edge or node blocks it has (at least 1)."""
        met = [block.layer for block in self.topology.blocks if block.level in ("edge", "node")]
        return [max(met.count(layer), 1) for layer in range(len(self.topology.layers))]

    @cached_property
    def node_layers(self) -> Tensor:
        """Mean over the node blocks of each group: ``(groups, layers)``, rows of zeros where there are none."""
        matrix = torch.zeros(len(self.topology.groups), len(self.topology.layers), dtype=torch.float64)
        for i in self.topology.nodes:
            block = self.topology.blocks[i]
            matrix[block.groups[0], block.layer] += 1
        return matrix / matrix.sum(1, keepdim=True).clamp(min=1)

    @cached_property
    def group_of_node(self) -> Tensor:
        """The group of every node."""
        return torch.repeat_interleave(torch.arange(len(self.topology.groups)), torch.tensor(self.sizes))

    def pool(self, name: str) -> Tensor:
        """Weights with which nodes are averaged: all groups of a role alike, all nodes of a group alike.

        Args:
            name: "hidden", "input" or "output".

        Shapes:
            returns ``(nodes,)``, summing to 1, or to 0 where there is no such group.
        """
        chosen = [i for i, group in enumerate(self.topology.groups) if _role(group.fixed, group.writes) == name]
        weights = torch.zeros(self.offsets[-1], dtype=torch.float64)
        for i in chosen:
            weights[self.rows(i)] = 1.0 / (len(chosen) * self.topology.groups[i].size)
        return weights

    @cached_property
    def pools(self) -> Tensor:
        """The weights of :meth:`pool` for hidden, input and output: ``(3, nodes)``."""
        return torch.stack([self.pool(name) for name in ("hidden", "input", "output")])


def _role(fixed: bool, writes: bool) -> str:
    if not fixed:
        return "hidden"
    return "output" if writes else "input"


@lru_cache(maxsize=4096)
def structure_of(topology: Topology) -> Structure:
    """The structure of a topology, built on first use."""
    offsets = [0]
    groups = []
    for group in topology.groups:
        offsets.append(offsets[-1] + group.size)
        flags = [float(group.fixed), float(group.reads), float(group.writes), math.log(group.size) / 4]
        acts = [float(name in group.activations) for name in ACTIVATIONS]
        other = float(any(name not in ACTIVATIONS for name in group.activations))
        code = position_code(group.size, _CODE) if group.fixed else torch.zeros(group.size, _CODE, dtype=torch.float64)
        same = torch.tensor([*flags, *acts, other], dtype=torch.float64).expand(group.size, -1)
        groups.append(torch.cat([same, code], dim=1))
    last = max(len(topology.layers) - 1, 1)
    layers = torch.zeros(len(topology.layers), LAYER_FEATURES, dtype=torch.float64)
    for number, layer in enumerate(topology.layers):
        layers[number, KINDS.index(layer.kind) if layer.kind in KINDS else KINDS.index("unused")] = 1.0
        place = [layer.order / last, math.log1p(layer.order) / 2, math.log1p(last - layer.order) / 2]
        layers[number, len(KINDS) :] = torch.tensor([*place, math.log1p(last) / 2, math.log1p(layer.size) / 8])
    parts = torch.zeros(len(topology.blocks), PART_FEATURES, dtype=torch.float64)
    for number, block in enumerate(topology.blocks):
        for axis, part in enumerate(block.part[:2]):  # a third axis with parts shares the code of the second
            parts[number, axis * 6 : axis * 6 + 6] = position_code(part + 1, 6)[-1] if part else 0.0
    nodes = torch.cat(groups) if groups else torch.zeros(0, GROUP_FEATURES, dtype=torch.float64)
    return Structure(topology, tuple(offsets), nodes, layers, parts)
