"""How does any torch_geometric layer run on a parameter graph?"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from metanet.graph.encoding import position_code
from metanet.graph.graph import ParameterGraph
from metanet.graph.topology import Topology

__all__ = ["to_pyg"]

CODE = 16  # columns of the positional code of fixed units


def to_pyg(graph: ParameterGraph, reverse: bool = True, layers: bool = True) -> HeteroData:
    """The graph as :class:`torch_geometric.data.HeteroData`.

    One node type per group and one named ``layer``; one edge type ``(source, tensor, target)`` per edge block, its
    reverse ``(target, "rev_" + tensor, source)``, and ``(group, "in", "layer")`` with ``("layer", "holds", group)``.
    All ``x`` have one width and all ``edge_attr`` have one width, so that ``to_homogeneous()`` keeps them.

    Args:
        graph: the graph.
        reverse: add reverse edges (both directions of messages).
        layers: add layer nodes, one per stored tensor that is interpreted.

    Shapes:
        ``x``: (nodes, F): node features of every kind in slots, a mask for the slots that exist, a positional code
        (zero for interchangeable units), and the flags fixed, reads, writes. For layer nodes: kind, log size, depth,
        the values of tensors without a unit axis. ``edge_index``: (2, target * source). ``edge_attr``: (target *
        source, E): the values at all positions, zero-padded, then a mask.
    """
    topology = graph.topology
    slots, width = _slots(topology)
    columns = max(2 * width + CODE + 3, _layer_width(graph))
    most = max((topology.blocks[i].features for i in topology.edges), default=1)
    data = HeteroData()
    for number, group in enumerate(topology.groups):
        x = torch.zeros(group.size, columns)
        for slot, start in slots.items():
            if topology.blocks[slot].groups == (number,):
                values = graph.values[slot].to(x.dtype)
                x[:, start : start + values.shape[1]] = values
                x[:, width + start : width + start + values.shape[1]] = 1.0
        if group.fixed:
            x[:, 2 * width : 2 * width + CODE] = position_code(group.size, CODE)
        x[:, 2 * width + CODE : 2 * width + CODE + 3] = torch.tensor([group.fixed, group.reads, group.writes]).to(x)
        data[group.name].x = x
        data[group.name].num_nodes = group.size
    for number in topology.edges:
        block = topology.blocks[number]
        target, source = (topology.groups[g].name for g in block.groups)
        index, attributes = _edges(graph.values[number], most)
        data[source, block.label, target].edge_index = index
        data[source, block.label, target].edge_attr = attributes
        if reverse:
            data[target, f"rev_{block.label}", source].edge_index = index.flip(0)
            data[target, f"rev_{block.label}", source].edge_attr = attributes
    if layers:
        _add_layers(data, graph, columns, 2 * most)
    return data


def _slots(topology: Topology) -> tuple[dict[int, int], int]:
    """First column of every block of node features; blocks of one kind on one group get different slots."""
    widest: dict[tuple[str, int], int] = {}
    place: dict[int, tuple[str, int]] = {}
    met: Counter[tuple[str, int]] = Counter()
    for number in topology.nodes:
        block = topology.blocks[number]
        slot = (block.kind, met[block.kind, block.groups[0]])
        met[block.kind, block.groups[0]] += 1
        place[number] = slot
        widest[slot] = max(widest.get(slot, 0), block.features)
    starts, width = {}, 0
    for slot in sorted(widest):
        starts[slot] = width
        width += widest[slot]
    return {number: starts[slot] for number, slot in place.items()}, width


def _edges(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    targets, sources, features = values.shape
    index = torch.stack([torch.arange(sources).repeat(targets), torch.arange(targets).repeat_interleave(sources)])
    attributes = torch.zeros(targets * sources, 2 * most)
    attributes[:, :features] = values.reshape(-1, features).to(attributes.dtype)
    attributes[:, most : most + features] = 1.0
    return index, attributes


def _layer_width(graph: ParameterGraph) -> int:
    kinds = len({layer.kind for layer in graph.topology.layers})
    return kinds + 2 + max(_scalar_slots(graph).values(), default=0)


def _scalar_slots(graph: ParameterGraph) -> dict[int, int]:
    """Number of values without a unit axis that each layer node carries; unused tensors only count by type and size."""
    found: dict[int, int] = {}
    for number in graph.topology.scalars:
        block = graph.topology.blocks[number]
        if block.kind != "unused":
            found[block.layer] = found.get(block.layer, 0) + block.features
    return found


def _add_layers(data: HeteroData, graph: ParameterGraph, columns: int, edge_width: int) -> None:
    topology = graph.topology
    kinds = sorted({layer.kind for layer in topology.layers})
    kept = sorted({block.layer for block in topology.blocks if block.level != "raw"})
    row = {layer: k for k, layer in enumerate(kept)}
    x = torch.zeros(len(kept), columns)
    for number, k in row.items():
        layer = topology.layers[number]
        x[k, kinds.index(layer.kind)] = 1.0
        x[k, len(kinds)] = float(torch.tensor(float(max(layer.size, 1))).log())
        x[k, len(kinds) + 1] = layer.order / max(len(topology.layers) - 1, 1)
    links: dict[int, set[int]] = {}
    for one in topology.blocks:
        for where in one.groups:
            links.setdefault(where, set()).add(row[one.layer])
    filled = dict.fromkeys(_scalar_slots(graph), len(kinds) + 2)
    for number in topology.scalars:
        block = topology.blocks[number]
        if block.layer in filled:
            start = filled[block.layer]
            x[row[block.layer], start : start + block.features] = graph.values[number].to(x.dtype)
            filled[block.layer] += block.features
    data["layer"].x = x
    data["layer"].num_nodes = len(kept)
    for number, members in links.items():
        group = topology.groups[number]
        pairs = [(unit, member) for member in sorted(members) for unit in range(group.size)]
        index = torch.tensor(pairs).reshape(-1, 2).T.contiguous()
        for key, edges in (((group.name, "in", "layer"), index), (("layer", "holds", group.name), index.flip(0))):
            data[key].edge_index = edges
            data[key].edge_attr = torch.zeros(index.shape[1], edge_width)
