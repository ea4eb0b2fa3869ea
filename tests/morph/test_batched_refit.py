"""Are stacks that are narrowed in turn the networks that compensation narrows one by one, with gradients?"""

from __future__ import annotations

import pytest
import torch

from metanet import morph
from metanet.morph import Compensation, Keep, Plan
from metanet.morph.batched_refit import input_moments, masked_only, narrowed_in_turn
from tests.morph.subjects import network
from tests.morph.test_batched import moments_of, stack

NAMES = ("mlp relu", "conv, batch norm", "resnet")


@pytest.mark.parametrize("name", NAMES)
def test_in_turn_is_sequential_compensation(name: str) -> None:
    masked, states, data = stack(name)
    model, inputs, spec = network(name)
    kept = {space: list(range(1, spec.sizes[space])) for space in masked.spaces}
    masks = {space: torch.ones(2, spec.sizes[space]).double() for space in masked.spaces}
    for mask in masks.values():
        mask[:, 0] = 0
    plan = Plan(tuple(Keep(space, units) for space, units in kept.items()))
    made = masked.outputs(narrowed_in_turn(masked, states, data, masks), data)[0]
    found = {
        sequential: morph.apply(
            plan, model, inputs, spec=spec, compensation=Compensation([data], sequential=sequential)
        ).model
        for sequential in (True, False)
    }
    with torch.no_grad():
        expected, at_once = found[True](*data), found[False](*data)
    error, control = float((made - expected).abs().max()), float((at_once - expected).abs().max())
    assert error < 1e-8 * float(expected.std())
    assert control > 1e3 * error


@pytest.mark.parametrize("name", NAMES)
def test_masked_only_is_the_plain_edit(name: str) -> None:
    masked, states, data = stack(name)
    model, inputs, spec = network(name)
    space = masked.spaces[0]
    mask = torch.ones(2, spec.sizes[space]).double()
    mask[:, 1] = 0
    made = masked.outputs(masked_only(masked, states, {space: mask}), data)[0]
    kept = [unit for unit in range(spec.sizes[space]) if unit != 1]
    with torch.no_grad():
        expected, whole = morph.apply(Keep(space, kept), model, inputs, spec=spec).model(*data), model(*data)
    assert torch.allclose(made, expected, atol=1e-10)
    assert not torch.allclose(made, whole, atol=1e-6)


def test_moments_in_pieces_are_those_at_once() -> None:
    masked, states, data = stack("conv, batch norm")
    expected = moments_of(masked.samples(states, data))
    for chunk in (None, 7):
        found = input_moments(masked, states, data, chunk)
        assert found.keys() == expected.keys()
        for name, (mean, covariance) in found.items():
            assert torch.allclose(mean, expected[name][0], atol=1e-12)
            assert torch.allclose(covariance, expected[name][1], atol=1e-12)


def test_networks_with_inputs_of_their_own() -> None:
    masked, states, data = stack("mlp relu")
    others = tuple(item.flip(0)[:30] * 2 for item in data)
    both = tuple(torch.stack([one[:30], other]) for one, other in zip(data, others, strict=True))
    masks = {space: torch.ones(2, masked.spec.sizes[space]).double() for space in masked.spaces}
    for mask in masks.values():
        mask[:, 0] = 0
    made = narrowed_in_turn(masked, states, both, masks, chunk=11, own=True)
    for row, alone in enumerate((tuple(item[:30] for item in data), others)):
        expected = narrowed_in_turn(masked, states, alone, masks)
        assert all(torch.allclose(made[name][row], expected[name][row], atol=1e-10) for name in made)
        assert not all(torch.allclose(made[name][1 - row], expected[name][1 - row], atol=1e-3) for name in made)


def test_gradients_reach_the_inputs() -> None:
    masked, states, data = stack("mlp relu")
    probes = tuple(item.clone().requires_grad_() for item in data)
    masks = {space: torch.ones(2, masked.spec.sizes[space]).double() for space in masked.spaces}
    for mask in masks.values():
        mask[:, 0] = 0
    made = masked.outputs(narrowed_in_turn(masked, states, probes, masks), data)
    (made - masked.outputs(states, data)).square().sum().backward()
    assert all(bool(item.grad.isfinite().all()) and float(item.grad.abs().max()) > 0 for item in probes)
