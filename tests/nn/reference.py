"""The plain form of one round of messages: concatenate and scatter, with torch_geometric's MessagePassing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from metanet.graph import GraphBatch
from metanet.nn.layer import MessageLayer
from metanet.nn.structure import structure_of


@dataclass
class Flat:
    """A batch of mixed architectures as one disconnected graph, edge by edge."""

    nodes: Tensor
    layers: Tensor
    edge_index: Tensor  # source, target
    edges: Tensor
    edge_layer: Tensor
    to_target: Tensor  # weight of each edge in the mean at its target, at its source, at its layer
    to_source: Tensor
    to_layer: Tensor
    pair_index: Tensor  # node, layer: node features of the layer
    to_node: Tensor
    from_node: Tensor
    graph_of_layer: Tensor


def flatten(batch: GraphBatch, features: list[tuple[Tensor, dict[int, Tensor], Tensor]]) -> Flat:
    parts: dict[str, list[Tensor]] = {name: [] for name in Flat.__dataclass_fields__}
    node_start = layer_start = graph = 0
    for bucket, (nodes, edges, layers) in zip(batch, features, strict=True):
        topology, structure = bucket.topology, structure_of(bucket.topology)
        for row in range(len(bucket)):
            parts["nodes"].append(nodes[row])
            parts["layers"].append(layers[row])
            parts["graph_of_layer"].append(torch.full((layers.shape[1],), graph))
            for number, edge in edges.items():
                block = topology.blocks[number]
                t, s = block.groups
                targets, sources = edge.shape[1:3]
                target = torch.arange(targets).repeat_interleave(sources) + structure.offsets[t] + node_start
                source = torch.arange(sources).repeat(targets) + structure.offsets[s] + node_start
                parts["edge_index"].append(torch.stack([source, target]))
                parts["edges"].append(edge[row].reshape(targets * sources, -1))
                parts["edge_layer"].append(torch.full((targets * sources,), block.layer + layer_start))
                writers = sum(topology.blocks[i].groups[0] == t for i in topology.edges)
                readers = sum(topology.blocks[i].groups[1] == s for i in topology.edges)
                same = sum(b.layer == block.layer for b in topology.blocks if b.level in ("edge", "node"))
                for name, weight in (
                    ("to_target", 1 / sources / writers**0.5),
                    ("to_source", 1 / targets / readers**0.5),
                    ("to_layer", 1 / (targets * sources) / same),
                ):
                    parts[name].append(torch.full((targets * sources,), weight, dtype=nodes.dtype))
            for number in topology.nodes:
                block = topology.blocks[number]
                size = topology.groups[block.groups[0]].size
                units = torch.arange(size) + structure.offsets[block.groups[0]] + node_start
                parts["pair_index"].append(torch.stack([units, torch.full_like(units, block.layer + layer_start)]))
                on_group = sum(topology.blocks[i].groups == block.groups for i in topology.nodes)
                same = sum(b.layer == block.layer for b in topology.blocks if b.level in ("edge", "node"))
                parts["to_node"].append(torch.full((size,), 1 / on_group, dtype=nodes.dtype))
                parts["from_node"].append(torch.full((size,), 1 / size / same, dtype=nodes.dtype))
            node_start += nodes.shape[1]
            layer_start += layers.shape[1]
            graph += 1
    return Flat(
        **{
            name: torch.cat(value, dim=1 if name in ("edge_index", "pair_index") else 0)
            for name, value in parts.items()
        }
    )


class Messages(MessagePassing):
    """``sum_j weight * second(relu(first [x_target, x_source, e, y]))`` at the target, or at the source."""

    def __init__(self, layer: MessageLayer, second: Tensor, at: str) -> None:
        super().__init__(aggr="add", flow="source_to_target" if at == "target" else "target_to_source")
        self.first = torch.cat([layer.target.weight, layer.source.weight, layer.edge.weight, layer.layer.weight], dim=1)
        self.bias, self.second, self.at = layer.target.bias, second, at

    def hidden(self, x_target: Tensor, x_source: Tensor, edge: Tensor, layer: Tensor) -> Tensor:
        return (torch.cat([x_target, x_source, edge, layer], dim=-1) @ self.first.T + self.bias).relu()

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor, layer: Tensor, weight: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x, edge=edge, layer=layer, weight=weight)

    def message(self, x_i: Tensor, x_j: Tensor, edge: Tensor, layer: Tensor, weight: Tensor) -> Tensor:
        ends = (x_i, x_j) if self.at == "target" else (x_j, x_i)
        return weight[:, None] * (self.hidden(*ends, edge, layer) @ self.second.T)


def run(layer: MessageLayer, flat: Flat) -> tuple[Tensor, Tensor, Tensor]:
    """New nodes, edges and layer nodes."""
    width = (layer.hidden,)
    x = torch.nn.functional.layer_norm(flat.nodes, width)
    y = torch.nn.functional.layer_norm(flat.layers, width)
    told = y[flat.edge_layer]
    at_target = Messages(layer, layer.to_target.weight, "target")
    at_source = Messages(layer, layer.to_source.weight, "source")
    hidden = layer.node_self(x)
    hidden = hidden + at_target(x, flat.edge_index, flat.edges, told, flat.to_target)
    hidden = hidden + at_source(x, flat.edge_index, flat.edges, told, flat.to_source)
    units, layers = flat.pair_index
    hidden = hidden.index_add(0, units, flat.to_node[:, None] * layer.node_layer(y[layers]))
    nodes = flat.nodes + layer.node_out(hidden.relu())

    source, target = flat.edge_index
    message = at_target.hidden(x[target], x[source], flat.edges, told)
    edges = flat.edges + layer.to_edge(message) if layer.to_edge is not None else flat.edges

    count = torch.bincount(flat.graph_of_layer).to(y)
    mean = torch.zeros(len(count), y.shape[1], dtype=y.dtype).index_add(0, flat.graph_of_layer, y) / count[:, None]
    hidden = layer.layer_self(y) + layer.layer_all(mean)[flat.graph_of_layer]
    hidden = hidden.index_add(0, flat.edge_layer, flat.to_layer[:, None] * layer.to_layer(message))
    hidden = hidden.index_add(0, layers, flat.from_node[:, None] * layer.layer_node(x[units]))
    return nodes, edges, flat.layers + layer.layer_out(hidden.relu())
