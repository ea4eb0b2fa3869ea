"""Do Gauss-Newton rounds bring narrowed networks closer to the whole ones, and leave gone what is gone?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import symmetry
from metanet.morph.batched import Masked
from metanet.morph.batched_refine import refined
from metanet.morph.batched_refit import masked_only, narrowed_in_turn
from tests.morph.test_batched import stack


def halves(masked: Masked) -> dict[str, Tensor]:
    masks = {space: torch.ones(2, masked.spec.sizes[space]).double() for space in masked.spaces}
    for mask in masks.values():
        mask[:, ::2] = 0
    return masks


def divergence(masked: Masked, one: dict[str, Tensor], two: dict[str, Tensor], data: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        a, b = (masked.outputs(states, data).flatten(2).log_softmax(-1) for states in (one, two))
    return (a.exp() * (a - b)).sum(-1).mean(-1)


@pytest.mark.parametrize("name", ["mlp relu", "conv, batch norm", "encoder layer"])
def test_rounds_lower_the_divergence_of_every_network(name: str) -> None:
    masked, states, data = stack(name)
    masks = halves(masked)
    start = masked_only(masked, states, masks)
    before = divergence(masked, states, start, data)
    after = [divergence(masked, states, refined(masked, states, start, data, masks, n), data) for n in (1, 6)]
    assert bool((after[0] < before).all())
    assert float((after[1] / before).min()) < 0.5
    assert float((after[1] / before).max()) < 0.9
    assert bool((after[1] <= after[0]).all())


def test_nothing_is_read_of_units_that_are_gone_and_buffers_stay() -> None:
    masked, states, data = stack("conv, batch norm")
    masks = halves(masked)
    start = narrowed_in_turn(masked, states, data, masks)
    made = refined(masked, states, start, data, masks, 2)
    again = masked_only(masked, made, masks)
    assert all(torch.equal(made[name], again[name]) for name in made)
    trained = {name for name, _ in masked.module.named_parameters()}
    assert all(torch.equal(made[name], states[name]) for name in states if name not in trained)
    # Control: other masks take away what is read.
    others = {space: 1 - mask for space, mask in masks.items()}
    assert not all(torch.equal(made[name], value) for name, value in masked_only(masked, made, others).items())


def test_one_round_on_a_linear_readout_is_newtons_step() -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).double().eval()
    masked = Masked(model, symmetry.trace(model, (torch.zeros(7, 3).double(),)))
    states = {name: value.detach()[None] for name, value in model.state_dict().items()}
    data = (torch.randn(60, 3, generator=generator, dtype=torch.float64),)
    near = {**states, "2.bias": states["2.bias"] + 0.05 * torch.randn(1, 3, generator=generator, dtype=torch.float64)}
    masks = {"0": torch.ones(1, 4).double()}
    # A shift of the logits is undone up to the square of its size, and further the next time.
    found = [
        float(divergence(masked, states, refined(masked, states, near, data, masks, n, 30, 1e-9), data))
        for n in (0, 1, 2)
    ]
    assert found[1] < 0.01 * found[0]
    assert found[2] < 0.01 * found[1] or found[2] < 1e-12


def test_networks_with_inputs_of_their_own() -> None:
    masked, states, data = stack("mlp relu")
    masks = halves(masked)
    start = narrowed_in_turn(masked, states, data, masks)
    both = tuple(torch.stack([item, item.flip(0) * 2]) for item in data)
    made = refined(masked, states, start, both, masks, 2, own=True)
    alone = refined(masked, states, start, tuple(item[0] for item in both), masks, 2)
    assert all(torch.allclose(made[name][0], alone[name][0], atol=1e-8) for name in made)
    assert not all(torch.allclose(made[name][1], alone[name][1], atol=1e-4) for name in made)
