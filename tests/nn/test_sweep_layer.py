"""Does a new sweep start as the network itself, there as its activations and back as its gradients?"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import symmetry
from metanet.graph import Bucket, ParameterGraph, collate
from metanet.nn import Metanet, SweepLayer
from metanet.nn.steps import endings
from metanet.nn.structure import structure_of
from symmetry import Fixed, SymmetrySpec
from symmetry.testing import equivariance_error
from tests.graph.specs import SPECS, atom, linear, make_spec, mlp, random_state, residual
from tests.nn.test_equivariance import carry_nodes, edge_answer, graph_answer, node_answer
from tests.symmetry.models import draw, seeded

HIDDEN = 8
CONSTANT = (HIDDEN // 2 + 1) // 2  # probes that start with constant kernels


def bucket_of(spec: SymmetrySpec, *states: dict[str, Tensor]) -> Bucket:
    return collate([ParameterGraph.build(spec, state) for state in states], torch.float64).buckets[0]


def new_layer(bucket: Bucket, moved: bool = False) -> tuple[SweepLayer, Tensor]:
    """A layer as it starts, or with what starts at zero drawn at random; and what units know."""
    net = Metanet(level="node", hidden=HIDDEN, layers=1, messages="sweep", partial=True, seed=2).double()
    layer = net.layers[0]
    assert isinstance(layer, SweepLayer)
    if moved:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for part in (layer.ahead, layer.mix, layer.behind, layer.mix_back):
                part.weight.normal_(0, 0.3, generator=generator)
    return layer, net.embedding(bucket, edges=False)[0]


def values(layer: SweepLayer, bucket: Bucket, nodes: Tensor) -> dict[str, Tensor]:
    trace = layer.there(structure_of(bucket.topology), bucket, nodes)
    return {bucket.topology.groups[g].name: trace.slots[slot] for g, slot in endings(bucket.topology).items()}


@pytest.mark.parametrize(("name", "function"), [("relu", torch.relu), ("gelu", nn.functional.gelu), ("sin", torch.sin)])
def test_at_the_start_features_are_activations_and_come_back_as_gradients(name, function):
    spec = mlp(4, 6, 5, 3, activation=name)
    generator = torch.Generator().manual_seed(0)
    states = [random_state(spec, generator) for _ in range(2)]
    bucket = bucket_of(spec, *states)
    layer, nodes = new_layer(bucket)
    structure = structure_of(bucket.topology)
    trace = layer.there(structure, bucket, nodes)
    back, _, _ = layer.back(structure, bucket, nodes, trace)
    names = {group.name: g for g, group in enumerate(bucket.topology.groups)}
    ends = endings(bucket.topology)
    seeds = back[names["output.0.1"]]
    for row, state in enumerate(states):
        h = layer.inputs.at(4).T
        met = {"input.0.1": h}
        for i, unit in enumerate(("h1", "h2", "output.0.1")):
            h = nn.functional.linear(h, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"])
            met[unit] = h = function(h) if i < 2 else h
        scalar = (h.T * seeds[row]).sum()
        slopes = torch.autograd.grad(scalar, list(met.values()), retain_graph=True)
        for (unit, expected), gradient in zip(met.items(), slopes, strict=True):
            torch.testing.assert_close(trace.slots[ends[names[unit]]][row], expected.T)
            torch.testing.assert_close(back[names[unit]][row], gradient.T)
    moved, _ = new_layer(bucket, moved=True)  # negative control: with other mixes it is another function
    assert (values(moved, bucket, nodes)["h2"] - trace.slots[ends[names["h2"]]]).abs().max() > 1e-2


def test_at_the_start_it_is_a_convolutional_network_on_constant_images():
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
        )
    ).eval()  # fmt: skip
    images = draw(2, 2, 12, 12)
    spec = symmetry.trace(model, (images,))
    bucket = bucket_of(spec, model.state_dict())
    layer, nodes = new_layer(bucket)
    (output,) = [v for name, v in values(layer, bucket, nodes).items() if name.startswith("output")]
    constant = layer.inputs.at(2).T[:, :, None, None].expand(-1, -1, 12, 12)
    expected = model.double()(constant).T
    torch.testing.assert_close(output[0, :, :CONSTANT], expected[:, :CONSTANT])
    assert (output[0, :, CONSTANT:] - expected[:, CONSTANT:]).abs().max() > 1e-3  # the others see plane waves


def test_at_the_start_it_is_a_residual_network():
    spec = residual(4)
    state = random_state(spec, torch.Generator().manual_seed(0))
    bucket = bucket_of(spec, state)
    layer, nodes = new_layer(bucket)

    def apply(name: str, h: Tensor) -> Tensor:
        return nn.functional.linear(h, state[f"{name}.weight"], state.get(f"{name}.bias"))

    stream = apply("stem", layer.inputs.at(3).T)
    stream = stream + apply("down", nn.functional.gelu(apply("up", stream)))
    stream = stream + apply("square", stream)
    found = values(layer, bucket, nodes)
    torch.testing.assert_close(found["stream"][0], stream.T)
    torch.testing.assert_close(found["output.0.1"][0], apply("head", stream).T)


@pytest.mark.parametrize("name", SPECS)
def test_answers_follow_permutations(name):
    spec = SPECS[name]()
    state = random_state(spec, torch.Generator().manual_seed(0))
    for level, answer, carry in (
        ("graph", graph_answer, None), ("node", node_answer, carry_nodes), ("edge", edge_answer, None),
    ):  # fmt: skip
        net = Metanet(level=level, hidden=HIDDEN, layers=2, messages="sweep", partial=True, statistics=False).double()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())), alpha=0.1)
        found = equivariance_error(
            lambda moved, net=net, answer=answer: answer(net, spec, moved), spec, state, trials=2,
            kinds=("permutation",), dtype=torch.float64, **({"carry": carry} if carry else {}),
        )  # fmt: skip
        assert found.max_error < 1e-10, (level, found)
        assert found.spread > 1e-4


def test_interchangeable_units_that_nothing_writes_start_alike():
    spec = make_spec([*linear("a", atom("b", 3), atom("free", 4)), *linear("head", Fixed(2, "output"), atom("b", 3))])
    state = random_state(spec, torch.Generator().manual_seed(0))
    bucket = bucket_of(spec, state)
    layer, nodes = new_layer(bucket)
    found = values(layer, bucket, nodes)["free"]
    torch.testing.assert_close(found, found[:, :1].expand_as(found))


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e18])
@pytest.mark.parametrize("name", ["relu", "gelu", "sin", "softplus"])
def test_weights_of_any_size_give_finite_answers_and_gradients(name, scale):
    spec = mlp(3, 4, 4, 2, activation=name)
    state = {k: v * scale for k, v in random_state(spec, torch.Generator().manual_seed(0)).items()}
    net = Metanet(hidden=HIDDEN, layers=2, messages="sweep", statistics=False)
    answer = net(collate([ParameterGraph.build(spec, state)]))
    answer.sum().backward()
    assert torch.isfinite(answer).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_features_are_of_order_one_and_all_parts_learn():
    generator = torch.Generator().manual_seed(0)
    specs = [make() for name, make in SPECS.items() if name != "attention"]
    batch = collate([ParameterGraph.build(spec, random_state(spec, generator)) for spec in specs])
    net = Metanet(3, "node", hidden=HIDDEN, layers=3, messages="sweep")
    answers = torch.cat([value for row in net(batch) for value in row.values()])
    assert 0.1 < answers.std() < 5
    assert answers.abs().max() < 20
    answers.square().mean().backward()
    still = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # No features of edges are made; the last round's layer nodes are not read by answers per unit.
    assert {name for name in still if not name.startswith(("embedding.edge", "layers.2.layer_"))} == set()


def test_mixed_batches_are_answered_one_by_one():
    generator = torch.Generator().manual_seed(0)
    specs = (mlp(3, 4, 2), residual(), mlp(3, 4, 2))
    graphs = [ParameterGraph.build(spec, random_state(spec, generator)) for spec in specs]
    net = Metanet(2, hidden=HIDDEN, layers=2, messages="sweep").double()
    together = net(collate(graphs, torch.float64))
    alone = torch.cat([net(collate([graph], torch.float64)) for graph in graphs])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-12)
    assert all((a - b).abs().max() > 1e-4 for a, b in itertools.combinations(together, 2))


def test_it_says_what_it_is():
    assert "probes=4, lanes=2" in repr(SweepLayer(8))
