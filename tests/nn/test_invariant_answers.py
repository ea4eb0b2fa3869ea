"""Which answers do scalings and signs leave alone? Numbers at weights, and numbers told of moved networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metanet.errors import ModelError
from metanet.graph import ParameterGraph, collate
from metanet.nn import Metanet
from tests.nn.cases import batch_of, case

LIMIT = 1e-10


def weights(**options) -> Metanet:
    return Metanet(1, "edge", **{"hidden": 8, "layers": 1, "symmetry": "full", "seed": 1, **options}).double()


def furthest(a, b) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("messages", ["edge", "sweep"])
@pytest.mark.parametrize("name", ["mlp relu", "mlp tanh", "cnn", "residual"])
def test_numbers_at_weights_follow_permutations_and_nothing_else(name, messages):
    one = case(name)
    spec, state = one.spec, one.state(0)
    generator = torch.Generator().manual_seed(3)
    everything = spec.sample(generator)
    units = spec.sample(generator, kinds=("permutation",))
    apart = spec.sample(generator, kinds=("scale", "sign"))
    other = one.state(1)
    states = [state, spec.act(everything, state), spec.act(units, state), spec.act(apart, state), other]

    def answers(net):
        with torch.no_grad():
            return net(batch_of(spec, states))

    whole, moved, permuted, scaled, different = answers(weights(invariant=True, messages=messages))
    spread = furthest(whole, different)
    assert spread > 1e-3
    assert furthest(scaled, whole) < LIMIT * spread
    carried = replace(spec.identity(), permutations=everything.permutations)
    for found, element in ((permuted, units), (moved, carried)):
        expected = spec.act(element, {**state, **whole})
        assert furthest(found, {key: expected[key] for key in whole}) < LIMIT * spread
    assert furthest(permuted, whole) > 1e-3 * spread  # units do differ
    # Negative controls: changes move with the scales, and so do numbers that are read outside the frame.
    for options in ({}, {"invariant": True, "symmetry": "permutation"}):
        before, _, _, after, _ = answers(weights(messages=messages, **options))
        assert furthest(before, after) > 1e-3 * spread


def test_numbers_are_of_order_one_however_small_the_weights_are():
    one = case("mlp tanh")
    small = {name: 1e-3 * value for name, value in one.state(0).items()}
    graph = ParameterGraph.build(one.spec, small)
    with torch.no_grad():
        (number,), (change,) = (
            weights(invariant=flag, symmetry="permutation")(collate([graph], torch.float64)) for flag in (True, False)
        )
    assert max(float(value.abs().max()) for value in number.values()) > 0.05
    assert max(float(value.abs().max()) for value in change.values()) < 0.05


def test_no_numbers_at_weights_that_matrices_mix():
    one = case("transformer")
    with pytest.raises(ModelError, match=r"matrices of .* mix the weights of .*symmetry='permutation'"):
        weights(invariant=True, partial=True)(batch_of(one.spec, [one.state(0)]))
    weights(invariant=True, partial=True, symmetry="permutation")(batch_of(one.spec, [one.state(0)]))
    with pytest.raises(ModelError, match="only answers at weights"):
        Metanet(1, "graph", invariant=True)


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_what_is_told_of_moved_networks(name):
    """An exact alpha cannot be seen in an invariant answer; channels that leave the orbit can."""
    one = case(name)
    spec, states = one.spec, [one.state(0), one.state(1)]
    generator = torch.Generator().manual_seed(5)
    moved = [spec.act(spec.sample(generator), state) for state in states]
    found = {}
    for mode in ("quasi", "soft"):
        options = {"hidden": 8, "layers": 1, "symmetry": "full", "mode": mode, "seed": 2, "partial": True}
        net = Metanet(1, "graph", **options).double()
        net.fit_statistics(batch_of(spec, states))
        with torch.no_grad():
            before, after = net(batch_of(spec, states)), net(batch_of(spec, moved))
        found[mode] = float((before - after).abs().max() / before.std())
        assert Metanet(**net.config).mover is not None
        assert float(net.move(next(iter(batch_of(spec, states)))).defect().max().detach()) > 1e-4 or mode == "quasi"
    assert found["quasi"] < 1e-9
    assert found["soft"] > 1e-5
    net.zero_grad()
    net(batch_of(spec, states)).square().sum().backward()
    told = {key: p.grad for key, p in net.mover.head.change.named_parameters()}
    assert any(grad is not None and bool((grad != 0).any()) for grad in told.values())
