"""Does the whole way hold for real modules: traced spec, graph, metanetwork, statistics?"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet.checkpoint import Architecture
from metanet.graph import ParameterGraph, collate
from metanet.nn import Metanet, layer_statistics
from metanet.nn.flow import propagate
from symmetry.testing import equivariance_error

ARCHITECTURES = {
    "mlp": ("mlp", {"inputs": 6, "widths": [5, 4], "outputs": 3, "activation": "tanh"}),
    "mlp residual norm": (
        "mlp",
        {"inputs": 6, "widths": [5, 5], "outputs": 3, "activation": "gelu", "norm": "batch", "residual": True},
    ),
    "cnn": ("cnn", {"channels": 1, "size": 8, "widths": [4, 5], "outputs": 3, "activation": "relu"}),
    "cnn residual norm": (
        "cnn",
        {
            "channels": 2,
            "size": 8,
            "widths": [4, 6],
            "outputs": 3,
            "activation": "sin",
            "norm": "batch",
            "residual": True,
        },
    ),
}


def traced(name: str) -> tuple[symmetry.SymmetrySpec, nn.Module]:
    family, options = ARCHITECTURES[name]
    architecture = Architecture(family, options)
    module = architecture.build().eval()
    return symmetry.trace(module, architecture.example_inputs()), module


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_round_trip_and_nothing_unseen(name):
    spec, module = traced(name)
    state = module.state_dict()
    graph = ParameterGraph.build(spec, state)
    found = graph.state()
    assert list(found) == list(state)
    for key, tensor in state.items():
        assert torch.equal(found[key], tensor)
    assert graph.topology.unseen == ()
    assert all(key.startswith(tuple(state)) and "num_batches_tracked" in key for key in graph.raw())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_follow_permutations(name):
    spec, module = traced(name)
    nets = {
        "graph": Metanet(hidden=8, layers=2, probes=4).double(),
        "edge": Metanet(level="edge", hidden=8, layers=2).double(),
    }

    def answer(level: str, state: dict[str, Tensor]) -> Tensor | dict[str, Tensor]:
        found = nets[level](collate([ParameterGraph.build(spec, state)], torch.float64))
        if level == "graph":
            return found
        return {key: found[0].get(key, torch.zeros_like(value)) for key, value in state.items()}

    for level in nets:
        table = equivariance_error(partial(answer, level), spec, module.state_dict(), trials=2, kinds=("permutation",))
        assert table.max_error < 1e-10, table
        assert table.control_error > 1e-6, table


def test_the_flow_is_the_network_of_a_traced_mlp():
    spec, module = traced("mlp")
    bucket = collate([ParameterGraph.build(spec, module.state_dict())]).buckets[0]
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    ends = propagate(bucket, lambda group, size: x.T, lambda block: torch.ones(1, 7))
    (output,) = [g for g, group in enumerate(bucket.topology.groups) if group.fixed and group.writes]
    torch.testing.assert_close(ends[output][0].T, module(x), rtol=1e-5, atol=1e-5)


def test_edge_answers_are_changes_that_load_into_the_module():
    spec, module = traced("cnn residual norm")
    state = module.state_dict()
    delta = Metanet(level="edge", hidden=8, layers=1)(collate([ParameterGraph.build(spec, state)]))[0]
    module.load_state_dict({key: value + delta.get(key, 0) for key, value in state.items()})


def test_mixed_architectures_in_one_batch():
    graphs = []
    for name in ARCHITECTURES:
        spec, module = traced(name)
        graphs += [ParameterGraph.build(spec, module.state_dict())] * 2
    batch = collate(graphs)
    assert len(batch.buckets) == len(ARCHITECTURES)
    assert Metanet(2, hidden=8, layers=2)(batch).shape == (8, 2)
    values, names = layer_statistics(batch)
    assert values.shape == (8, len(names))
