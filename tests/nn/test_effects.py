"""Are effects of weights the slopes that they are said to be, and do they follow the whole group?"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from metanet.errors import ModelError
from metanet.graph import ParameterGraph, Program, collate
from metanet.nn import Metanet
from metanet.nn.effects import EFFECTS, effects_of
from metanet.nn.rich_inputs import smooth_inputs
from tests.nn.cases import case
from tests.symmetry.models import draw

LIMIT = 1e-9


def bucket_of(name, states):
    one = case(name)
    program = Program.of(one.module, (draw(*one.shape, dtype=torch.float32),))
    graphs = [ParameterGraph.build(one.spec, state, program) for state in states]
    batch = collate(graphs, torch.float64)
    return batch, next(iter(batch))


def test_effects_are_slopes_of_what_the_network_says():
    one = case("mlp relu")
    state = one.state(0)
    _, bucket = bucket_of("mlp relu", [state, one.state(1)])
    x = torch.cat([smooth_inputs((3,), 8, 1.5), smooth_inputs((3,), 8, 3.0)])  # the first kind: fields of two scales

    def loss(values):
        answers = torch.func.functional_call(one.module.double(), values, (x,))
        return cross_entropy(answers, answers.argmax(-1))

    found = {}
    topology = bucket.topology
    for number, value in effects_of(bucket).items():
        block = topology.blocks[number]
        found[block.tensor] = block.region.batched(2).restore(value[..., 0])[0]
    ours, slopes = [], []
    for name, value in state.items():
        for place in range(value.numel()):
            ends = []
            for step in (1e-6, -1e-6):
                changed = {key: tensor.clone() for key, tensor in state.items()}
                changed[name].view(-1)[place] *= 1 + step
                ends.append(float(loss(changed)))
            slopes.append((ends[0] - ends[1]) / 2e-6)
            ours.append(float(found[name].reshape(-1)[place]))
    ours, slopes = torch.tensor(ours), torch.tensor(slopes)
    assert float(slopes.abs().max()) > 1e-3
    torch.testing.assert_close(ours, slopes / slopes.abs().mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "level"),
    [("mlp tanh", "edge"), ("mlp tanh", "node"), ("mlp tanh", "graph"), ("cnn", "edge"), ("transformer", "edge")],
)
def test_answers_that_see_effects_respect_the_group(name, level):
    one = case(name)
    spec, state = one.spec, one.state(0)
    generator = torch.Generator().manual_seed(4)
    apart = spec.sample(generator, kinds=("scale", "sign", "linear"))
    units = spec.sample(generator, kinds=("permutation",))
    options = {"hidden": 8, "layers": 1, "symmetry": "full", "partial": True, "seed": 1}
    invariant = level == "edge" and name != "transformer"
    net = Metanet(1, level, **options, effects=True, invariant=invariant).double()
    states = [state, spec.act(apart, state), spec.act(units, state), one.state(1)]
    with torch.no_grad():
        whole, scaled, permuted, other = net(bucket_of(name, states)[0])
        blind = Metanet(1, level, **options, invariant=invariant).double()(bucket_of(name, states)[0])[0]
    if level == "graph":
        assert float((whole - blind).abs().max()) > 1e-3
        assert float((torch.stack([scaled, permuted]) - whole).abs().max()) < LIMIT * float((other - whole).abs().max())
        return
    spread = max(float((whole[key] - other[key]).abs().max()) for key in whole)
    assert max(float((whole[key] - blind[key]).abs().max()) for key in whole) > 1e-3 * spread  # they are used
    if level == "edge":
        moved = spec.act(units, {**state, **whole})
        if not invariant:  # changes move with the scales
            still = {key: torch.zeros_like(value) for key, value in state.items()}
            there, origin = spec.act(apart, {**still, **whole}), spec.act(apart, still)
            whole_there = {key: there[key] - origin[key] for key in whole}
            control = whole
        else:
            whole_there, control = whole, other
    else:
        moved = {key: value[units.permutations[key]] for key, value in whole.items() if key in units.permutations}
        whole_there, control = whole, other
    assert max(float((scaled[key] - whole_there[key]).abs().max()) for key in whole) < LIMIT * spread
    assert max(float((permuted[key] - moved[key]).abs().max()) for key in moved) < LIMIT * spread
    assert max(float((scaled[key] - control[key]).abs().max()) for key in whole) > 1e-3 * spread


def test_effects_are_refused_where_nothing_can_be_run():
    one = case("cnn")
    batch = collate([ParameterGraph.build(one.spec, one.state(0))], torch.float64)
    with pytest.raises(ModelError, match="effects need the operations of the networks"):
        Metanet(1, "node", hidden=4, layers=1, effects=True).double()(batch)
    assert len(set(EFFECTS)) == 6
