"""Does the metanetwork refuse what it cannot do, start the same from the same seed, and treat each network alone?"""

from __future__ import annotations

import json
import math

import pytest
import torch

from metanet.errors import ModelError
from metanet.graph import GraphBatch, ParameterGraph, collate
from metanet.nn import LEVELS, Metanet
from symmetry import Fixed
from tests.graph.specs import SPECS, atom, attention, linear, make_spec, mlp, random_state

VISIBLE = [name for name in SPECS if name != "attention"]


def graphs(names: list[str] = VISIBLE, seed: int = 0) -> list[ParameterGraph]:
    generator = torch.Generator().manual_seed(seed)
    specs = [SPECS[name]() for name in names]
    return [ParameterGraph.build(spec, random_state(spec, generator)) for spec in specs]


def batch(names: list[str] = VISIBLE, seed: int = 0, dtype: torch.dtype = torch.float64) -> GraphBatch:
    return collate(graphs(names, seed), dtype)


@pytest.mark.parametrize("level", LEVELS)
def test_shapes(level):
    mixed = graphs()
    for outputs in (1, 3):
        found = Metanet(outputs, level, hidden=8, layers=1)(collate(mixed))
        if level == "graph":
            assert found.shape == (len(mixed), outputs)
            continue
        assert len(found) == len(mixed)
        for graph, answer in zip(mixed, found, strict=True):
            if level == "node":
                sizes = {group.name: group.size for group in graph.topology.groups if not group.fixed}
                assert {name: value.shape for name, value in answer.items()} == {
                    name: (size, outputs) for name, size in sizes.items()
                }
            else:
                state = {name: t for name, t in graph.state().items() if t.is_floating_point() or level == "state"}
                assert set(answer) == set(state)
                for name, tensor in state.items():
                    assert answer[name].shape == (*tensor.shape, *([outputs] if outputs > 1 else []))


@pytest.mark.parametrize("settings", [{}, {"probes": 4}, {"statistics": False}, {"layers": 0, "probes": 2}])
def test_an_answer_does_not_depend_on_companions_or_order(settings):
    net = Metanet(hidden=8, **{"layers": 2, **settings}).double()
    mixed = graphs() + graphs(seed=1)
    net.fit_statistics(collate(mixed, torch.float64))
    together = net(collate(mixed, torch.float64))
    alone = torch.cat([net(collate([graph], torch.float64)) for graph in mixed])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-12)
    order = torch.randperm(len(mixed), generator=torch.Generator().manual_seed(0))
    shuffled = net(collate([mixed[i] for i in order], torch.float64))
    torch.testing.assert_close(shuffled, together[order], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        net(collate(mixed, torch.float64).select(order)), together[order], rtol=1e-11, atol=1e-12
    )
    assert together.std() > 1e-3


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_reach_every_parameter_and_the_weights(level):
    net = Metanet(1, level, hidden=8, layers=2, probes=4 if level == "graph" else 0).double()
    data = batch()
    for bucket in data:
        for value in bucket.values:
            if value is not None:
                value.requires_grad_()
    answer = net(data)
    flat = answer if level == "graph" else torch.cat([v.flatten() for row in answer for v in row.values()])
    flat.square().sum().backward()
    still = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # The last round's layer nodes are not read by answers per unit.
    last = {"layers.1.layer_", "layers.1.to_layer", "layers.1.layer."} if level == "node" else set()
    assert {name for name in still if not any(name.startswith(one) for one in last)} == set()
    for bucket in data:
        for number in (*bucket.topology.edges, *bucket.topology.nodes):
            grad = bucket.value(number).grad
            assert torch.isfinite(grad).all()
            # A tensor of one entry is its own root mean square: only its sign is left, apart from the layer's log.
            assert bucket.value(number).numel() == 1 or grad.abs().sum() > 0


def test_it_starts_well_behaved():
    for hidden, layers in ((16, 2), (32, 8)):
        found = Metanet(4, hidden=hidden, layers=layers)(batch(dtype=torch.float32))
        assert 0.01 < found.std() < 3
        assert found.abs().max() < 10


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e8, 1e18])
def test_weights_of_any_size_give_finite_answers(scale):
    spec = mlp(3, 4, 2)
    state = {k: v * scale for k, v in random_state(spec, torch.Generator().manual_seed(0)).items()}
    data = collate([ParameterGraph.build(spec, state)])
    for level in LEVELS:
        net = Metanet(1, level, hidden=8, layers=2, probes=2 if level == "graph" else 0)
        answer = net(data)
        values = [answer] if level == "graph" else list(answer[0].values())
        assert all(torch.isfinite(value).all() for value in values), level
        sum(value.sum() for value in values).backward()
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        assert all(torch.isfinite(grad).all() for grad in grads), level


def test_all_zero_weights_give_finite_answers_and_gradients():
    spec = SPECS["cnn"]()
    state = {k: torch.zeros_like(v) for k, v in random_state(spec, torch.Generator().manual_seed(0)).items()}
    net = Metanet(hidden=8, layers=2, probes=2)
    net(collate([ParameterGraph.build(spec, state)])).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_the_same_seed_gives_the_same_weights_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    first, second, other = Metanet(hidden=8, seed=3), Metanet(hidden=8, seed=3), Metanet(hidden=8, seed=4)
    third = Metanet(hidden=8, generator=torch.Generator().manual_seed(3))
    first(batch(dtype=torch.float32))
    assert torch.equal(before, torch.random.get_rng_state())
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
        assert torch.equal(value, third.state_dict()[name])
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())
    first.reset_parameters(torch.Generator().manual_seed(4))
    for name, value in first.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_configuration_is_json_and_builds_the_same_network():
    net = Metanet(2, "graph", hidden=8, layers=1, probes=4, statistics=False)
    again = Metanet(**json.loads(json.dumps(net.config)))
    assert again.config == net.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert "hidden=8" in repr(net)
    assert "parameters" in repr(net)


def test_statistics_are_standardised_by_the_networks_it_was_fitted_on():
    data = batch()
    net = Metanet(hidden=8, layers=1).double()
    before = net(data)
    net.fit_statistics(data)
    assert (net(data) - before).abs().max() > 1e-6
    saved = net.state_dict()
    other = Metanet(hidden=8, layers=1, seed=9).double()
    other.load_state_dict(saved)
    torch.testing.assert_close(other(data), net(data), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "layer"}, r"level='layer', expected one of graph, node, edge"),
        ({"outputs": 0}, r"outputs=0, expected an integer of at least 1"),
        ({"hidden": 1}, r"hidden=1, expected"),
        ({"hidden": 8.0}, r"hidden=8\.0, expected an integer"),
        ({"layers": -1}, r"layers=-1, expected"),
        ({"layers": True}, r"layers=True, expected an integer"),
        ({"positions": 0}, r"positions=0"),
        ({"readout": 0}, r"readout=0"),
        ({"probes": -1}, r"probes=-1"),
        ({"seed": -1}, r"seed=-1"),
        ({"statistics": 1}, r"statistics=1, expected True, False or 'rich'"),
        ({"partial": None}, r"partial=None"),
        ({"symmetry": "scale"}, r"symmetry='scale' is unknown, expected 'permutation' or 'full'"),
        ({"symmetry": "full", "gauge": "none"}, r"gauge='none' is unknown, expected one of rms, unit, balanced"),
        ({"gauge": "unit"}, r"gauge='unit' with symmetry='permutation'; use symmetry='full'"),
        ({"mode": "quasi"}, r"mode='quasi' answers with whole networks.*use level='state', symmetry='full'"),
        ({"mode": "soft"}, r"mode='soft' answers with whole networks"),
        ({"mode": "hard"}, r"mode='hard' is unknown, expected one of strict, quasi, soft"),
        ({"level": "node", "probes": 2}, r"probes=2 with level='node'"),
    ],
)
def test_bad_settings_are_refused_at_construction(settings, message):
    with pytest.raises(ModelError, match=message):
        Metanet(**settings)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    mixed = graphs(["mlp", "cnn", "cnn"])
    state = mixed[2].state()
    state["conv2.weight"][0, 0, 0, 0] = bad
    mixed[2] = ParameterGraph.build(mixed[2].spec, state)
    with pytest.raises(ModelError, match=r"graph 2: tensor 'conv2\.weight' holds NaN or infinite values"):
        Metanet(hidden=8)(collate(mixed))


def test_used_tensors_that_would_not_be_seen_are_refused_unless_told():
    spec = attention()
    data = collate([ParameterGraph.build(spec, random_state(spec, torch.Generator().manual_seed(0)))])
    with pytest.raises(ModelError, match=r"would not be seen \(odd\): it has 3 unit axes.*partial=True"):
        Metanet(hidden=8)(data)
    assert Metanet(hidden=8, partial=True)(data).shape == (1, 1)


def test_another_dtype_is_refused():
    with pytest.raises(ModelError, match=r"torch\.float64 on cpu, the metanetwork torch\.float32"):
        Metanet(hidden=8)(batch(dtype=torch.float64))


def test_kernels_larger_than_the_declared_positions_are_read():
    from tests.graph.specs import conv

    spec = make_spec(
        [*conv("a", atom("c", 4), Fixed(1, "input"), kernel=7), *linear("b", Fixed(2, "output"), atom("c", 4))]
    )
    state = random_state(spec, torch.Generator().manual_seed(0))
    data = collate([ParameterGraph.build(spec, state)])
    for level in LEVELS:
        answer = Metanet(1, level, hidden=8, layers=1, positions=4)(data)
        if level == "edge":
            assert answer[0]["a.weight"].shape == (4, 1, 7, 7)


def test_it_learns():
    """A few steps on one question that statistics do not answer: which of two hidden units writes a larger output."""
    generator = torch.Generator().manual_seed(0)
    spec = mlp(3, 4, 2)
    mixed, truth = [], []
    for _ in range(48):
        state = random_state(spec, generator)
        mixed.append(ParameterGraph.build(spec, state))
        truth.append(float((state["layers.1.weight"] @ state["layers.0.bias"])[0]))
    target = torch.tensor(truth)[:, None]
    target = (target - target.mean()) / target.std()
    data = collate(mixed)
    net = Metanet(hidden=16, layers=2, statistics=False, seed=0)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        loss = (net(data) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
