"""Do learned steps along gradients follow the whole group, and are they steps along gradients?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import symmetry
from metanet.checkpoint import Architecture
from metanet.errors import ModelError
from metanet.graph import ParameterGraph, collate, program_of
from metanet.nn.dense import make_generator
from metanet.nn.steered import Steered, pixel_grid
from symmetry import SymmetrySpec
from symmetry.testing import equivariance_error

SIDE = 5
SIREN = Architecture("siren", {"inputs": 2, "widths": [6, 5], "outputs": 1, "w0": 4.0})


@pytest.fixture(scope="module")
def spec() -> SymmetrySpec:
    return symmetry.trace(SIREN.build().eval(), SIREN.example_inputs())


def graph(spec: SymmetrySpec, state: dict[str, Tensor], architecture: Architecture = SIREN) -> ParameterGraph:
    return ParameterGraph.build(spec, state, program_of(architecture))


def steered(steps: int = 2) -> Steered:
    found = Steered(SIDE, steps, 4, make_generator(0)).double()
    with torch.no_grad():
        found.rates.weight.normal_(generator=make_generator(1))
    return found


def test_changed_networks_follow_permutations_signs_and_phases(spec):
    model = steered()

    def edit(state: dict[str, Tensor]) -> dict[str, Tensor]:
        (bucket,) = collate([graph(spec, state)], torch.float64).buckets
        return {name: value[0] for name, value in model(bucket).items()}

    state = SIREN.build().state_dict()
    table = equivariance_error(edit, spec, state, trials=3)
    assert {row.kind for row in table.rows} >= {"permutation", "sign", "shift"}
    assert table.max_error < 1e-10, table
    assert table.control_error > 1e-4, table


def test_a_step_is_the_gradient_of_what_the_reader_wants(spec):
    model = steered(steps=1)
    states = [SIREN.build(seed=seed).double().state_dict() for seed in range(3)]
    (bucket,) = collate([graph(spec, state) for state in states], torch.float64).buckets
    with torch.no_grad():
        changed = model(bucket)
    for row, state in enumerate(states):
        module = SIREN.build().double()
        module.load_state_dict(state)
        picture = module(pixel_grid(SIDE).double())[:, 0]
        wanted = model.readers[0](picture[None], picture[None])[0].detach()
        (picture @ wanted).backward()
        slopes = {name: p.grad for name, p in module.named_parameters()}
        length = wanted.square().sum() / sum(slope.square().sum() for slope in slopes.values())
        for place, name in enumerate(slopes):
            rate = torch.exp(-1.5 + model.rates.weight[0, place]) * length
            torch.testing.assert_close(changed[name][row], state[name] + rate * slopes[name], rtol=1e-9, atol=1e-11)


def test_training_goes_through_all_steps_and_gives_the_same_networks(spec):
    model = steered()
    (bucket,) = collate([graph(spec, SIREN.build(seed=1).state_dict())], torch.float64).buckets
    changed = model(bucket)
    with torch.no_grad():
        plain = model(bucket)
    for name, value in plain.items():
        torch.testing.assert_close(changed[name], value, rtol=0, atol=0)
    sum(value.square().sum() for value in changed.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    assert not missing, missing


def test_what_gradients_do_not_follow_is_refused(spec):
    relu = Architecture("mlp", {"inputs": 2, "widths": [4], "outputs": 1, "activation": "relu"})
    scaled = symmetry.trace(relu.build().eval(), relu.example_inputs())
    (bucket,) = collate([graph(scaled, relu.build().state_dict(), relu)], torch.float64).buckets
    with pytest.raises(ModelError, match="scalings or matrices"):
        steered()(bucket)
    with pytest.raises(ModelError, match="hold no program"):
        steered()(collate([ParameterGraph.build(spec, SIREN.build().state_dict())], torch.float64).buckets[0])
    with pytest.raises(ModelError, match="steps=0"):
        Steered(SIDE, 0)
