"""How do weights, units and layers of a network talk to each other? One round of edge messages on dense blocks.

For an edge ``w`` from unit ``s`` to unit ``t`` of layer ``l`` the message is, in the plain form of graph networks
(Battaglia et al. 2018, section 3.2; Kofinas et al. 2024, equations 4-6),

    m = relu(A [x_t, x_s, e_w, y_l] + b)
    x_t += ... B mean_s m,    x_s += ... C mean_t m,    e_w += D m,    y_l += ... E mean m

Here A is split into its four parts, each applied before the parts are combined (so that only ``e`` pays per edge), and
B, C and E are applied after the mean. The blocks are dense: no gather and no scatter; :mod:`metanet.nn.kernel` works
through them in pieces that fit the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu

from metanet.graph import Bucket
from metanet.nn.dense import Dense
from metanet.nn.kernel import edge_messages
from metanet.nn.structure import Structure

__all__ = ["MessageLayer"]


class MessageLayer(nn.Module):
    """One round of messages between nodes, edges and layer nodes, in both directions. Permutation-equivariant.

    Args:
        hidden: width of all features.
        edges: update edge features too; a last round before a readout from nodes does not need it.
        rounds: number of rounds in the network; residual branches start smaller in deeper ones.
    """

    def __init__(self, hidden: int, edges: bool = True, rounds: int = 1) -> None:
        super().__init__()
        self.hidden = hidden
        branch = rounds**-0.5
        self.source = Dense(hidden, hidden, bias=False)
        self.target = Dense(hidden, hidden)
        self.edge = Dense(hidden, hidden, bias=False)
        self.layer = Dense(hidden, hidden, bias=False)
        self.to_target = Dense(hidden, hidden, bias=False, gain=2.0)
        self.to_source = Dense(hidden, hidden, bias=False, gain=2.0)
        self.to_edge = Dense(hidden, hidden, gain=branch) if edges else None
        self.to_layer = Dense(hidden, hidden, bias=False, gain=2.0)
        self.node_self = Dense(hidden, hidden)
        self.node_layer = Dense(hidden, hidden, bias=False)
        self.node_out = Dense(hidden, hidden, gain=branch)
        self.layer_self = Dense(hidden, hidden)
        self.layer_node = Dense(hidden, hidden, bias=False)
        self.layer_all = Dense(hidden, hidden, bias=False)
        self.layer_out = Dense(hidden, hidden, gain=branch)

    def forward(
        self, structure: Structure, bucket: Bucket, nodes: Tensor, edges: dict[int, Tensor], layers: Tensor
    ) -> tuple[Tensor, dict[int, Tensor], Tensor]:
        """One round.

        Shapes:
            nodes: ``(B, nodes, hidden)``. edges: by block, ``(B, target, source, hidden)``. layers: ``(B, layers,
            hidden)``. Returns the same.
        """
        topology = structure.topology
        x, y = layer_norm(nodes, (self.hidden,)), layer_norm(layers, (self.hidden,))
        source, target, layer = self.source(x), self.target(x), self.layer(y)
        to_target: dict[int, Tensor] = {}
        to_source: dict[int, Tensor] = {}
        to_layer: dict[int, Tensor] = {}
        from_node: dict[int, Tensor] = {}
        updated = {}
        for number, edge in edges.items():
            block = topology.blocks[number]
            t, s = block.groups
            weight, bias = (None, None) if self.to_edge is None else (self.to_edge.weight, self.to_edge.bias)
            ends = target[:, structure.rows(t)] + layer[:, block.layer, None]
            found = edge_messages(edge, ends, source[:, structure.rows(s)], self.edge.weight, weight, bias)
            if found.edges is not None:
                updated[number] = found.edges
            rows, columns = found.rows / edge.shape[2], found.columns / edge.shape[1]
            _add(to_target, t, rows, structure.targets[t] ** -0.5)
            _add(to_source, s, columns, structure.sources[s] ** -0.5)
            _add(to_layer, block.layer, rows.mean(1, keepdim=True), 1 / structure.parts_of[block.layer])
        for number in topology.nodes:
            block = topology.blocks[number]
            mean = x[:, structure.rows(block.groups[0])].mean(1, keepdim=True)
            _add(from_node, block.layer, mean, 1 / structure.parts_of[block.layer])
        hidden = self.node_self(x)
        hidden = hidden + self.to_target(_stack(to_target, structure.sizes, nodes))
        hidden = hidden + self.to_source(_stack(to_source, structure.sizes, nodes))
        told = structure.node_layers.to(y) @ y
        hidden = hidden + self.node_layer(told)[:, structure.group_of_node]
        nodes = nodes + self.node_out(relu(hidden))
        if layers.shape[1]:
            ones = [1] * layers.shape[1]
            hidden = self.layer_self(y) + self.layer_all(y.mean(1, keepdim=True))
            hidden = hidden + self.to_layer(_stack(to_layer, ones, layers))
            hidden = hidden + self.layer_node(_stack(from_node, ones, layers))
            layers = layers + self.layer_out(relu(hidden))
        return nodes, updated if self.to_edge is not None else edges, layers

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, edges={self.to_edge is not None}"


def _add(sums: dict[int, Tensor], key: int, value: Tensor, weight: float) -> None:
    scaled = value * weight if weight != 1 else value
    sums[key] = sums[key] + scaled if key in sums else scaled


def _stack(sums: dict[int, Tensor], sizes: list[int], like: Tensor) -> Tensor:
    """The sums along the common axis, zero where nothing came."""
    batch, _, width = like.shape
    return torch.cat(
        [sums[k] if k in sums else like.new_zeros(batch, size, width) for k, size in enumerate(sizes)], dim=1
    )
