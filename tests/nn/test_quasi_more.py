"""Do quasi-equivariant answers hold on trained networks, for scales and matrices, alone and in one batch?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from metanet.graph import Bucket, ParameterGraph, collate
from metanet.nn import Metanet
from metanet.nn.quasi import Moved, learnable
from metanet.nn.quasi_check import check_orbit
from tests.nn.test_quasi import Twice
from tests.nn.trained import trained

NAMES = ("mlp relu", "cnn", "residual", "transformer")


def make(mode: str = "quasi", **options: object) -> Metanet:
    settings = {"level": "state", "symmetry": "full", "hidden": 8, "layers": 1, "partial": True, "seed": 3}
    return Metanet(mode=mode, **{**settings, **options}).double()  # type: ignore[arg-type]


def check(name: str, layer: object):
    one = trained(name)
    return check_orbit(layer, one.spec, one.module, one.states[1], (one.inputs,))  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_trained_networks(name, change):
    found = check(name, make(change=change).move)
    assert found.passed, found
    assert min(found.moved, found.turned) > 1e-3
    scales, linear = learnable(collate([graph(name)], torch.float64).buckets[0].topology)
    assert scales
    assert len(linear) == (2 if name == "transformer" else 0)


def graph(name: str) -> ParameterGraph:
    return ParameterGraph.build(trained(name).spec, trained(name).states[1])


@pytest.mark.parametrize("name", NAMES)
def test_soft_is_caught_on_trained_networks(name):
    found = check(name, make("soft").move)
    assert not found.passed
    assert max(found.orbit, found.member, found.kept) > 1e-5, found


@pytest.mark.parametrize("base", ["own", "frame"])
def test_the_inverse_forgotten_is_caught_on_a_trained_transformer(base):
    net = make(base=base, change=False)

    def twice(bucket: Bucket) -> Moved:
        moved = net.move(bucket)
        alpha = moved.alpha
        wrong = Twice(alpha.topology, alpha.size, alpha.log_scales, alpha.flips, alpha.matrices, alpha.shifts)
        return replace(moved, values=wrong.act(moved.beta))

    assert check("transformer", net.move).passed
    found = check("transformer", twice)
    assert not found.passed
    assert found.kept > 1e-4


def test_one_batch_of_all_answers_as_each_alone():
    net = make()
    graphs = [graph(name) for name in NAMES]
    with torch.no_grad():
        together = net(collate(graphs, torch.float64))
        alone = [net(collate([one], torch.float64))[0] for one in graphs]
    for found, expected in zip(together, alone, strict=True):
        assert found.defect < 1e-14
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-12)
