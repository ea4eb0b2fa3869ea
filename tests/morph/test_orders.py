"""Do stacks of networks drop their units in the order in which each would alone?"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metanet import morph
from metanet.morph.batched import Masked, rebuilding
from metanet.morph.orders import batched_obs, kept_of, obs_orders, reader_grams
from tests.morph.subjects import network


def drawn(networks: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Covariances and readers. Shapes: -> (B, n, n), (B, 3, n)."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(networks, size, size, generator=generator, dtype=torch.float64)
    x = torch.randn(networks, 40, size, generator=generator, dtype=torch.float64) @ mixed
    centred = x - x.mean(1, keepdim=True)
    readers = torch.randn(networks, 3, size, generator=generator, dtype=torch.float64)
    return centred.mT @ centred / 40, readers


@pytest.mark.parametrize("size", [1, 2, 9])
def test_orders_are_those_of_each_network_alone(size: int) -> None:
    covariance, readers = drawn(6, size)
    gram = readers.mT @ readers
    orders = obs_orders(covariance, gram, ridge=1e-4)
    alone = [morph.obs_order(a, b, ridge=1e-4) for a, b in zip(covariance, gram, strict=True)]
    assert orders.tolist() == alone
    assert size < 9 or len({tuple(order) for order in alone}) > 1
    # Without what reads them, another order: the readers are looked at.
    plain = obs_orders(covariance, torch.eye(size).double().expand(6, -1, -1))
    assert size < 9 or not torch.equal(plain, orders)


def test_units_that_stay_lose_less_than_others_would() -> None:
    covariance, readers = drawn(20, 8, seed=1)
    gram = readers.mT @ readers
    mask = batched_obs(covariance, gram, 5)
    assert mask.dtype == covariance.dtype
    assert bool((mask.sum(1) == 5).all())

    def lost(mask: Tensor) -> Tensor:
        left = torch.eye(8).double() - rebuilding(covariance, mask, 1e-3)
        return torch.einsum("bum,bmn,bnv,buv->b", left.mT, covariance, left, gram)

    generator = torch.Generator().manual_seed(0)
    others = [kept_of(torch.rand(20, 8, generator=generator).argsort(1), 8, 5) for _ in range(10)]
    rivals = torch.stack([lost(other) for other in others])
    assert float((lost(mask) <= rivals.mean(0)).double().mean()) == 1.0
    assert float((lost(mask) <= rivals.min(0).values).double().mean()) > 0.6  # by chance: 1 in 11


def test_float32_and_units_that_never_move() -> None:
    covariance, readers = drawn(4, 6, seed=2)
    covariance[:, 2], covariance[:, :, 2] = 0.0, 0.0
    gram = readers.mT @ readers
    orders = obs_orders(covariance.float(), gram.float())
    # What never moves is dropped first, and for nothing.
    assert bool((orders[:, 0] == 2).all())
    assert bool((orders.sort(1).values == torch.arange(6)).all())
    assert obs_orders(covariance, gram, 0).shape == (4, 0)
    assert bool((batched_obs(covariance, gram, 6) == 1).all())


@pytest.mark.parametrize("name", ["mlp relu", "conv, batch norm", "lstm"])
def test_masks_of_a_stack_are_the_plans_of_its_networks(name: str) -> None:
    models, (_, inputs, spec) = [network(name, seed=seed)[0] for seed in (0, 1)], network(name)
    states = {key: torch.stack([model.state_dict()[key] for model in models]) for key in models[0].state_dict()}
    generator = torch.Generator().manual_seed(3)
    data = tuple(torch.randn(40, *item.shape[1:], generator=generator, dtype=torch.float64) for item in inputs)
    masked = Masked(models[0], spec)
    samples = masked.samples(states, data)
    for space in masked.spaces:
        size, readings = spec.sizes[space], masked.readings[space]
        found = []
        for reading in readings:
            flat = samples[reading.weight].flatten(1, 2)
            # Where no bias takes a constant, a mean is lost with its unit.
            centred = flat - flat.mean(1, keepdim=True) if reading.bias else flat
            found.append(centred.mT @ centred / flat.shape[1])
        mask = batched_obs(torch.stack(found).mean(0), reader_grams(states, readings, size), size // 2)
        for model, kept in zip(models, mask, strict=True):
            plan = morph.narrow_by_obs(model, spec, {space: size // 2}, [data])
            (edit,) = plan.edits
            assert isinstance(edit, morph.Keep)
            assert list(edit.units) == kept.nonzero().flatten().tolist()
