"""How are the same rounds of messages written in the forms that `kernel.py` compares?"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear
from torch_geometric.nn import MessagePassing

from metanet.graph import GraphBatch
from metanet.nn import MessageLayer, Metanet
from metanet.nn.kernel import PIECE_BYTES, uses_onednn
from metanet.nn.structure import structure_of

VARIANTS = ("pyg", "split", "dense", "sweep", "matmul", "dense+c", "sweep+c", "dense+b", "sweep+b")
Features = tuple[Tensor, dict[int, Tensor], Tensor]


@dataclass
class Run:
    """A form of the rounds: the metanetwork whose weights it uses, and what gives all features after them."""

    net: Metanet
    features: Callable[[], Tensor]


@dataclass
class EdgeList:
    """A batch of mixed architectures as one disconnected graph, edge by edge; weights of means, members of layers."""

    source: Tensor
    target: Tensor
    layer: Tensor
    to_target: Tensor
    to_source: Tensor
    to_layer: Tensor
    pair_node: Tensor  # node features of a layer: node, layer, and weights of both means
    pair_layer: Tensor
    to_node: Tensor
    from_node: Tensor
    graph: Tensor  # of each layer node


def edge_list(batch: GraphBatch) -> EdgeList:
    parts: dict[str, list[Tensor]] = {one.name: [] for one in fields(EdgeList)}
    node_start = layer_start = graph = 0
    for bucket in batch:
        topology, structure = bucket.topology, structure_of(bucket.topology)
        count, nodes, layers = len(bucket), structure.offsets[-1], len(bucket.topology.layers)
        rows = torch.arange(count)

        def every(x: Tensor, step: int, start: int, rows: Tensor = rows) -> Tensor:
            return (x + rows[:, None] * step + start).flatten()

        for number in topology.edges:
            block = topology.blocks[number]
            t, s = block.groups
            targets, sources = topology.groups[t].size, topology.groups[s].size
            target = torch.arange(targets).repeat_interleave(sources) + structure.offsets[t]
            source = torch.arange(sources).repeat(targets) + structure.offsets[s]
            parts["target"].append(every(target, nodes, node_start))
            parts["source"].append(every(source, nodes, node_start))
            parts["layer"].append(every(torch.full_like(target, block.layer), layers, layer_start))
            for name, weight in (
                ("to_target", 1 / sources / structure.targets[t] ** 0.5),
                ("to_source", 1 / targets / structure.sources[s] ** 0.5),
                ("to_layer", 1 / (targets * sources) / structure.parts_of[block.layer]),
            ):
                parts[name].append(torch.full((count * targets * sources, 1), weight))
        for number in topology.nodes:
            block = topology.blocks[number]
            (group,) = block.groups
            size, share = topology.groups[group].size, float(structure.node_layers[group, block.layer])
            same = sum(b.groups == (group,) and b.layer == block.layer for b in topology.blocks)
            units = torch.arange(size) + structure.offsets[group]
            parts["pair_node"].append(every(units, nodes, node_start))
            parts["pair_layer"].append(every(torch.full_like(units, block.layer), layers, layer_start))
            parts["to_node"].append(torch.full((count * size, 1), share / same))
            parts["from_node"].append(torch.full((count * size, 1), 1 / size / structure.parts_of[block.layer]))
        parts["graph"].append((graph + rows).repeat_interleave(layers))
        node_start, layer_start, graph = node_start + count * nodes, layer_start + count * layers, graph + count
    return EdgeList(**{name: torch.cat(values) for name, values in parts.items()})


class Plain(MessagePassing):
    """Joined features of both ends, the edge and the layer: made once per round, then sent to each kind of receiver."""

    # edge_updater_type: (x: Tensor, edge: Tensor, told: Tensor, first: Tensor, bias: Tensor)
    # propagate_type: (sent: Tensor, second: Tensor, weight: Tensor)

    def __init__(self) -> None:
        super().__init__(aggr="add")

    def edge_update(self, x_i: Tensor, x_j: Tensor, edge: Tensor, told: Tensor, first: Tensor, bias: Tensor) -> Tensor:
        return linear(torch.cat([x_i, x_j, edge, told], dim=-1), first, bias).relu()

    def message(self, sent: Tensor, second: Tensor, weight: Tensor) -> Tensor:
        return weight * linear(sent, second)


def flat_round(layer: MessageLayer, edges: EdgeList, features: tuple[Tensor, Tensor, Tensor], split: bool) -> Any:
    """One round on a list of edges, with torch_geometric or split."""
    nodes, edge, layers = features
    x, y = layer_norm(nodes, nodes.shape[-1:]), layer_norm(layers, layers.shape[-1:])
    if split:
        ends = layer.target(x)[edges.target] + layer.source(x)[edges.source] + layer.layer(y)[edges.layer]
        sent = torch.addmm(ends, edge, layer.edge.weight.T).relu_()
        at_target = layer.to_target(torch.zeros_like(x).index_add(0, edges.target, edges.to_target * sent))
        at_source = layer.to_source(torch.zeros_like(x).index_add(0, edges.source, edges.to_source * sent))
        at_layer = layer.to_layer(torch.zeros_like(y).index_add(0, edges.layer, edges.to_layer * sent))
    else:
        plain = Plain()
        first = torch.cat([layer.target.weight, layer.source.weight, layer.edge.weight, layer.layer.weight], dim=1)
        index = torch.stack([edges.source, edges.target])
        sent = plain.edge_updater(index, x=x, edge=edge, told=y[edges.layer], first=first, bias=layer.target.bias)
        sizes = (len(x), len(x))
        at_target = plain.propagate(index, sent=sent, second=layer.to_target.weight, weight=edges.to_target, size=sizes)
        at_source = plain.propagate(
            index.flip(0), sent=sent, second=layer.to_source.weight, weight=edges.to_source, size=sizes
        )
        to_layer = torch.stack([edges.source, edges.layer])
        sizes = (len(x), len(y))
        at_layer = plain.propagate(to_layer, sent=sent, second=layer.to_layer.weight, weight=edges.to_layer, size=sizes)
    told = torch.zeros_like(x).index_add(0, edges.pair_node, edges.to_node * y[edges.pair_layer])
    hidden = layer.node_self(x) + at_target + at_source + layer.node_layer(told)
    nodes = nodes + layer.node_out(hidden.relu())
    edge = edge + layer.to_edge(sent) if layer.to_edge is not None else edge
    count = torch.bincount(edges.graph).to(y)[:, None]
    mean = torch.zeros(len(count), y.shape[1]).index_add(0, edges.graph, y) / count
    told = torch.zeros_like(y).index_add(0, edges.pair_layer, edges.from_node * x[edges.pair_node])
    hidden = layer.layer_self(y) + layer.layer_all(mean)[edges.graph] + at_layer + layer.layer_node(told)
    return nodes, edge, layers + layer.layer_out(hidden.relu())


def product(x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """``x W^T`` in the library that dense blocks take for it."""
    if uses_onednn(x, weight):
        return out.copy_(torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""))
    return torch.mm(x, weight.T, out=out)


class Product(torch.autograd.Function):
    """The matrix products of one block there and back, on pieces; nothing else that a message needs."""

    @staticmethod
    def forward(ctx: Any, edge: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(edge, first, second)
        out = torch.empty_like(edge)
        step = max(PIECE_BYTES // (4 * edge.shape[1]), 1)
        buffer = edge.new_empty(min(step, len(edge)), edge.shape[1])
        for piece, into in zip(edge.split(step), out.split(step), strict=True):
            product(product(piece, first, buffer[: len(piece)]), second, into)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        edge, first, second = ctx.saved_tensors
        back, to_first, to_second = torch.empty_like(edge), torch.zeros_like(first), torch.zeros_like(second)
        first_turned, second_turned = first.T.contiguous(), second.T.contiguous()
        step = max(PIECE_BYTES // (4 * edge.shape[1]), 1)
        buffer = edge.new_empty(min(step, len(edge)), edge.shape[1])
        for piece, after, into in zip(edge.split(step), grad.split(step), back.split(step), strict=True):
            slope = product(after, second_turned, buffer[: len(piece)])
            to_second.addmm_(after.T, piece)
            to_first.addmm_(slope.T, piece)
            product(slope, first_turned, into)
        return back, to_first, to_second


def products(layer: MessageLayer, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The matrix products of one round: two per edge, six per node, six per layer node."""
    x, edge, y = features
    if layer.to_edge is not None:
        edge = Product.apply(edge, layer.edge.weight, layer.to_edge.weight)
    for part in (layer.source, layer.target, layer.node_self, layer.to_target, layer.to_source, layer.node_out):
        x = linear(x, part.weight)
    for part in (layer.layer, layer.node_layer, layer.layer_self, layer.layer_all, layer.to_layer, layer.layer_node):
        y = linear(y, part.weight)
    return x, edge, linear(y, layer.layer_out.weight)


def joined(features: Sequence[Features]) -> Tensor:
    """All features of a batch in the order of its list of edges: what is compared, and what a loss is taken of."""
    nodes = [nodes.flatten(0, 1) for nodes, _, _ in features]
    edges = [edge.reshape(-1, edge.shape[-1]) for _, blocks, _ in features for edge in blocks.values()]
    return torch.cat([*nodes, *edges, *(layers.flatten(0, 1) for _, _, layers in features)])


def make(batch: GraphBatch, hidden: int, rounds: int, seed: int, names: Sequence[str] | None = None) -> dict[str, Run]:
    """The named forms, with the same weights, on the same starting features."""

    def metanet(**more: Any) -> Metanet:
        return Metanet(level="edge", hidden=hidden, layers=rounds, seed=seed, partial=True, **more)

    plain = metanet()
    with torch.no_grad():
        start = [plain.embedding(bucket) for bucket in batch]

    def blocks(net: Metanet, sweep: bool, low: bool) -> Callable[[], Tensor]:
        if sweep:  # rounds of sweeps alone: the one of edge messages behind them is another kind
            del net.layers[-1]

        def run() -> Tensor:
            found = []
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
                for bucket, (nodes, edges, layers) in zip(batch, start, strict=True):
                    given = {} if sweep else edges
                    found.append(net.layers.run(structure_of(bucket.topology), bucket, nodes, given, layers))
            return joined(found)

        return run

    def on_list(step: Callable[[MessageLayer, tuple[Tensor, Tensor, Tensor]], Any]) -> Callable[[], Tensor]:
        nodes = torch.cat([nodes.flatten(0, 1) for nodes, _, _ in start])
        edge = torch.cat([e.reshape(-1, hidden) for _, blocks, _ in start for e in blocks.values()])
        layers = torch.cat([layers.flatten(0, 1) for _, _, layers in start])

        def run() -> Tensor:
            features = (nodes, edge, layers)
            for layer in plain.layers:
                features = step(layer, features)
            return torch.cat([features[0], features[1], features[2]])

        return run

    wanted = names or VARIANTS
    edges = edge_list(batch) if {"pyg", "split"} & set(wanted) else None
    runs = {}
    for name in wanted:
        if name in ("pyg", "split") and edges is not None:
            split = name == "split"
            runs[name] = Run(plain, on_list(lambda layer, x, split=split: flat_round(layer, edges, x, split)))
        elif name == "matmul":
            runs[name] = Run(plain, on_list(products))
        else:
            kind = "sweep" if name.startswith("sweep") else "edge"
            net = plain if name == "dense" else metanet(messages=kind, checkpointing=name.endswith("+c"))
            runs[name] = Run(net, blocks(net, kind == "sweep", name.endswith("+b")))
    return runs


WHOLE: dict[str, dict[str, Any]] = {
    "edge": {"messages": "edge", "hidden": 16, "layers": 1, "probes": 16, "readout": 32},
    "sweep": {"messages": "sweep", "hidden": 16, "layers": 1, "probes": 16, "readout": 32},
    "edge wide": {"messages": "edge", "hidden": 64, "layers": 4},
    "sweep wide": {"messages": "sweep", "hidden": 64, "layers": 4},
}
"""Whole metanetworks: of the sizes of the configuration `strict`, and of those of the other cases."""


def whole_forward(batch: GraphBatch, variant: str, peak: Callable[[Callable[[], object]], float]) -> dict[str, float]:
    """A whole metanetwork on a batch: its cost and the batch's size."""
    net = Metanet(statistics=False, partial=True, **WHOLE[variant])
    sizes = [bucket.topology for bucket in batch]
    edges = sum(one.groups[t].size * one.groups[s].size for one in sizes for t, s in ends(one))
    found = {"parameters": float(sum(v.numel() for b in batch for v in b.values if v is not None)), "edges": edges}
    with torch.no_grad():
        found["peak_mb"] = peak(lambda: net(batch))
        taken = []
        for _ in range(3):
            for bucket in batch:
                bucket.cache.clear()
            start = time.perf_counter()
            net(batch)
            taken.append(time.perf_counter() - start)
    return {**found, "forward_s": min(taken)}


def ends(topology: Any) -> list[tuple[int, int]]:
    return [topology.blocks[i].groups for i in topology.edges]


def trim() -> None:
    """Give freed memory back, so that it does not hide what is taken next."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))
