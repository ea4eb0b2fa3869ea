"""How much faster are messages on dense blocks with a split kernel than concatenate-and-scatter, at equal mathematics?

Three variants of the same rounds of edge messages, with the same weights and (checked first) the same results:
`dense` is what the library runs: blocks (batch, target, source, feature), the first linear map split into its parts,
the second applied after the sum. `split` does the same on lists of edges, with gather and scatter. `concatenate` is the
plain form of graph networks: join the features of both ends, the edge and the layer, two linear maps, scatter.

    python benchmarks/nn_kernels.py [--quick] [--json FILE] [--threads N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from metanet.graph import Bucket, ParameterGraph, collate
from metanet.nn import MessageLayer, Metanet
from metanet.nn.structure import structure_of
from symmetry import trace

SEEDS = (0, 1, 2)
CASES = {"small": ((2, 32, 32, 1), 64, 64), "digits": ((64, 32, 32, 10), 32, 16)}  # widths, batch, hidden features
ROUNDS = 4
Features = tuple[Tensor, dict[int, Tensor], Tensor]


@dataclass
class EdgeList:
    """One bucket as a disconnected graph, edge by edge."""

    source: Tensor
    target: Tensor
    layer: Tensor
    to_target: Tensor  # weight of an edge in the mean at its target, its source and its layer
    to_source: Tensor
    to_layer: Tensor


def make_bucket(widths: tuple[int, ...], batch: int, seed: int) -> Bucket:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = []
        for _ in range(batch):
            layers: list[torch.nn.Module] = []
            for a, b in itertools.pairwise(widths):
                layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
            modules.append(torch.nn.Sequential(*layers[:-1]))
    spec = trace(modules[0].eval(), (torch.zeros(7, widths[0]),))
    return collate([ParameterGraph.build(spec, module.state_dict()) for module in modules]).buckets[0]


def edge_list(bucket: Bucket) -> EdgeList:
    topology, structure = bucket.topology, structure_of(bucket.topology)
    nodes, layers = structure.offsets[-1], len(topology.layers)
    parts: dict[str, list[Tensor]] = {name: [] for name in EdgeList.__dataclass_fields__}
    for number in topology.edges:
        t, s = topology.blocks[number].groups
        targets, sources = topology.groups[t].size, topology.groups[s].size
        count = len(bucket) * targets * sources
        row = torch.arange(len(bucket)).repeat_interleave(targets * sources)
        target = torch.arange(targets).repeat_interleave(sources).repeat(len(bucket))
        source = torch.arange(sources).repeat(targets * len(bucket))
        parts["target"].append(target + structure.offsets[t] + row * nodes)
        parts["source"].append(source + structure.offsets[s] + row * nodes)
        parts["layer"].append(topology.blocks[number].layer + row * layers)
        for name, size in (("to_target", sources), ("to_source", targets), ("to_layer", targets * sources)):
            parts[name].append(torch.full((count, 1), 1 / size))
    return EdgeList(**{name: torch.cat(values) for name, values in parts.items()})


def flat_round(
    layer: MessageLayer, bucket: Bucket, edges: EdgeList, features: tuple[Tensor, Tensor, Tensor], split: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One round on a list of edges; `split` or concatenated."""
    nodes, edge, layers = features
    norm = torch.nn.functional.layer_norm
    x, y = norm(nodes, nodes.shape[-1:]), norm(layers, layers.shape[-1:])
    batch = len(bucket)
    if split:
        pre = layer.target(x)[edges.target] + layer.source(x)[edges.source] + layer.layer(y)[edges.layer]
        message = torch.addmm(pre, edge, layer.edge.weight.T).relu_()
        at_target = layer.to_target(torch.zeros_like(x).index_add(0, edges.target, edges.to_target * message))
        at_source = layer.to_source(torch.zeros_like(x).index_add(0, edges.source, edges.to_source * message))
        at_layer = layer.to_layer(torch.zeros_like(y).index_add(0, edges.layer, edges.to_layer * message))
    else:
        first = [layer.target.weight, layer.source.weight, layer.edge.weight, layer.layer.weight]
        joined = torch.cat([x[edges.target], x[edges.source], edge, y[edges.layer]], dim=-1)
        message = (joined @ torch.cat(first, dim=1).T + layer.target.bias).relu_()
        at_target = torch.zeros_like(x).index_add(0, edges.target, edges.to_target * layer.to_target(message))
        at_source = torch.zeros_like(x).index_add(0, edges.source, edges.to_source * layer.to_source(message))
        at_layer = torch.zeros_like(y).index_add(0, edges.layer, edges.to_layer * layer.to_layer(message))
    structure = structure_of(bucket.topology)
    wide, tall = x.reshape(batch, -1, x.shape[-1]), y.reshape(batch, -1, y.shape[-1])
    told = layer.node_layer(structure.node_layers.to(y) @ tall)[:, structure.group_of_node].reshape(nodes.shape)
    nodes = nodes + layer.node_out((layer.node_self(x) + at_target + at_source + told).relu())
    edge = edge + layer.to_edge(message) if layer.to_edge is not None else edge
    means = torch.zeros_like(tall)
    for number in bucket.topology.nodes:
        block = bucket.topology.blocks[number]
        means[:, block.layer] = wide[:, structure.rows(block.groups[0])].mean(1)
    rest = (layer.layer_self(tall) + layer.layer_all(tall.mean(1, keepdim=True)) + layer.layer_node(means)).flatten(
        0, 1
    )
    layers = layers + layer.layer_out((rest + at_layer).relu())
    return nodes, edge, layers


def variants(net: Metanet, bucket: Bucket) -> dict[str, Callable[[], Tensor]]:
    """Each runs all rounds and returns the nodes."""
    with torch.no_grad():
        nodes, blocks, layers = net.embedding(bucket)
    edges, structure = edge_list(bucket), structure_of(bucket.topology)
    flat = torch.cat([block.reshape(-1, block.shape[-1]) for block in blocks.values()])

    def dense() -> Tensor:
        features: Features = (nodes, blocks, layers)
        for layer in net.layers:
            features = layer(structure, bucket, *features)
        return features[0]

    def on_list(split: bool) -> Tensor:
        features = (nodes.flatten(0, 1), flat, layers.flatten(0, 1))
        for layer in net.layers:
            if isinstance(layer, MessageLayer):
                features = flat_round(layer, bucket, edges, features, split)
        return features[0].reshape(nodes.shape)

    return {"dense": dense, "split": lambda: on_list(True), "concatenate": lambda: on_list(False)}


def seconds(run: Callable[[], Tensor], backward: bool) -> float:
    start = time.perf_counter()
    if backward:
        run().square().mean().backward()
    else:
        with torch.no_grad():
            run()
    return time.perf_counter() - start


def measure(quick: bool) -> list[dict[str, object]]:
    repeats = 3 if quick else 10
    rows: list[dict[str, object]] = []
    order = [(case, seed) for case in CASES for seed in SEEDS]
    for case, seed in tqdm(order, desc="nn_kernels", file=sys.stderr, disable=not sys.stderr.isatty()):
        widths, batch, hidden = CASES[case]
        bucket = make_bucket(widths, batch // 4 if quick else batch, seed)
        runs = variants(Metanet(level="edge", hidden=hidden, layers=ROUNDS, seed=seed), bucket)
        with torch.no_grad():
            results = {name: run() for name, run in runs.items()}
        for name, result in results.items():
            torch.testing.assert_close(result, results["dense"], rtol=1e-3, atol=1e-3, msg=name)
        for metric, backward in (("forward_s", False), ("training_s", True)):
            # In turn, so that what else the machine does meets all alike; the fastest of several is what it takes.
            times = [{name: seconds(run, backward) for name, run in runs.items()} for _ in range(repeats)]
            for name in runs:
                value = round(min(one[name] for one in times), 5)
                row = {"benchmark": "nn_kernels", "case": case, "variant": name, "metric": metric, "seed": seed}
                rows.append({**row, "value": value})
    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    names = ("dense", "split", "concatenate")
    lines = [f"{'case':<10}{'metric':<12}" + "".join(f"{name:>13}" for name in names) + "   ratio to dense"]
    for case in CASES:
        for metric in ("forward_s", "training_s"):
            means = [
                statistics.mean(
                    float(str(r["value"]))
                    for r in rows
                    if (r["case"], r["metric"], r["variant"]) == (case, metric, name)
                )
                for name in names
            ]
            ratios = " ".join(f"{mean / means[0]:.2f}" for mean in means[1:])
            lines.append(f"{case:<10}{metric:<12}" + "".join(f"{mean:>13.4f}" for mean in means) + f"   {ratios}")
    return "\n".join(lines)


def machine(threads: int) -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((x.split(":")[1].strip() for x in cpuinfo.read_text().splitlines() if "model name" in x), model)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{model}, {os.cpu_count()} cores, {threads} thread(s); {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the batch, fewer repeats: under a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="of torch, for all variants (1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = measure(arguments.quick)
    print(machine(arguments.threads))
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
