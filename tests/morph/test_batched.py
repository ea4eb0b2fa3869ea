"""Is a stack of networks with masked units the stack of narrowed networks, and do gradients flow through it?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metanet import morph
from metanet.errors import PlanError
from metanet.morph import Compensation, Keep
from metanet.morph.batched import Masked, rebuilding
from tests.morph.subjects import network

NAMES = (
    "mlp relu",
    "conv, batch norm",
    "resnet",
    "encoder layer",
    "gru",
    "lstm",
    "residual stream",
    "shared weights, tanh",
    "mlp on sequences",
)


def stack(name: str) -> tuple[Masked, dict[str, Tensor], tuple[Tensor, ...]]:
    model, inputs, spec = network(name)
    other, _, _ = network(name, seed=1)
    states = {key: torch.stack([value, other.state_dict()[key]]) for key, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    data = tuple(torch.randn(40, *item.shape[1:], generator=generator, dtype=torch.float64) for item in inputs)
    return Masked(model, spec), states, data


def moments_of(samples: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for name, value in samples.items():
        flat = value.flatten(1, 2)
        centred = flat - flat.mean(1, keepdim=True)
        found[name] = flat.mean(1), centred.mT @ centred / flat.shape[1]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_masked_networks_compute_what_narrowed_ones_do(name: str) -> None:
    masked, states, data = stack(name)
    model, inputs, spec = network(name)
    moments = moments_of(masked.samples(states, data))
    for space in masked.spaces[:2]:
        kept = [unit for unit in range(spec.sizes[space]) if unit != 1]
        mask = torch.zeros(2, spec.sizes[space], dtype=torch.float64)
        mask[:, kept] = 1
        made = masked.outputs(masked.narrowed(states, moments, {space: mask}), data)[0]
        compensation = Compensation([data], sequential=False)
        narrow = morph.apply(Keep(space, kept), model, inputs, spec=spec, compensation=compensation).model
        with torch.no_grad():
            expected, whole = narrow(*data), masked.outputs(states, data)[0]
        assert float((made - expected).abs().max()) < 1e-9 * float((expected - whole).abs().max() + whole.std())
        assert torch.allclose(whole, model(*data), atol=1e-12)


def test_gradients_reach_weights_and_inputs() -> None:
    masked, states, data = stack("conv, batch norm")
    probes = tuple(item.clone().requires_grad_() for item in data)
    trained = {key for key, _ in masked.module.named_parameters()}
    weights = {key: value.clone().requires_grad_(key in trained) for key, value in states.items()}
    moments = moments_of(masked.samples(weights, probes))
    masks = {space: torch.ones(2, masked.spec.sizes[space]).double() for space in masked.spaces}
    masks[masked.spaces[0]][:, 0] = 0
    loss = (
        (masked.outputs(masked.narrowed(weights, moments, masks), data) - masked.outputs(states, data)).square().sum()
    )
    loss.backward()
    assert all(bool(item.grad.isfinite().all()) and float(item.grad.abs().max()) > 0 for item in probes)
    assert all(bool(weights[key].grad.isfinite().all()) for key in ("0.weight", "3.weight", "7.weight"))


def test_a_full_mask_changes_nothing_and_dead_units_do_no_harm() -> None:
    masked, states, data = stack("mlp relu")
    states = {key: value.clone() for key, value in states.items()}
    states["0.weight"][:, 2], states["0.bias"][:, 2] = 0.0, -1.0
    moments = moments_of(masked.samples(states, data))
    full = {space: torch.ones(2, masked.spec.sizes[space]).double() for space in masked.spaces}
    same = masked.outputs(masked.narrowed(states, moments, full), data)
    assert torch.allclose(same, masked.outputs(states, data), atol=1e-9)
    full["0"][:, 2] = 0
    assert torch.allclose(masked.outputs(masked.narrowed(states, moments, full), data), same, atol=1e-9)


def test_rebuilding_does_not_depend_on_the_basis() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(1, 50, 4, generator=generator, dtype=torch.float64)
        @ torch.randn(4, 4, generator=generator).double()
    )
    covariance, mask = x.mT @ x / 50, torch.tensor([[1.0, 0.0, 1.0, 1.0]]).double()
    scale = torch.tensor([2.0, 0.1, 5.0, 1.0]).double()
    plain = rebuilding(covariance, mask, 1e-2)
    scaled = rebuilding(covariance * scale[:, None] * scale, mask, 1e-2)
    assert torch.allclose(scaled, plain / scale[:, None] * scale, atol=1e-9)


def test_what_cannot_be_masked_is_refused() -> None:
    model, _, spec = network("layer norm")
    assert Masked(model, spec).spaces == ("layers.2",)  # a norm runs over the units of the first
    model, _, spec = network("width one")
    with pytest.raises(PlanError, match="no space of this network can be narrowed"):
        Masked(model, spec)
