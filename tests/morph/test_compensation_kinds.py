"""Is what depends on the rest linearly given back whole: each kind of unit, kept or merged, from data or moments?"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from metanet import morph
from metanet.morph import Compensation, Keep, Merge
from metanet.morph.function import Function
from metanet.morph.group_obs import Read, obs_group_order
from metanet.morph.moments import joint_moments
from symmetry import SymmetrySpec
from tests.morph.subjects import network, same

HEADS = "layer.self_attn.in_proj_weight.0"
KINDS = [
    ("mlp relu", "0"),
    ("conv, batch norm", "0"),
    ("conv, batch norm", "3"),  # flattened maps
    ("u-net", "a"),  # one part of a concatenation
    ("lstm", "cell.l0"),
    ("gru", "cell.l0"),
    ("shared weights, tanh", "i"),  # a square weight that writes what it reads
    ("lora", "layers.0.a.0"),  # matrices act on the space
    ("encoder layer", "layer.linear1"),
    ("encoder layer", HEADS),
    ("encoder layer", f"{HEADS}#2"),  # queries and keys
    ("encoder layer", f"{HEADS}#3"),  # values
    ("llama", "blocks.0.g"),
]


def twins(name: str, space: str) -> tuple[nn.Module, tuple[Tensor, ...], SymmetrySpec]:
    """A network with two copies of each unit of a space, of which one is read more than the other."""
    model, inputs, spec = network(name)
    size = spec.sizes[space]
    share = [0.3] * size + [0.7] * size
    wide = morph.apply(morph.Widen(space, list(range(size)) * 2, share), model, inputs, spec=spec)
    assert wide.exact
    return wide.model, inputs, wide.spec


def data_for(inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(5)
    drawn = (
        torch.randn(40, *item.shape[1:], generator=generator, dtype=torch.float64)
        if item.is_floating_point()
        else torch.randint(int(item.max()) + 1, (40, *item.shape[1:]), generator=generator)
        for item in inputs
    )
    return [tuple(drawn)]


def measured(model: nn.Module, spec: SymmetrySpec, data: list[tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and covariances of what all weights read."""
    axes = {
        name: (axis, axis)
        for name, info in spec.tensors.items()
        for axis, role in zip(spec.axes[name], info.roles, strict=False)
        if role == "in" and info.tied_to is None
    }
    found = joint_moments(model, model, data, axes, missing_ok=True)
    return {name: (moments.mean, moments.within) for name, moments in found.items()}


def ways(model: nn.Module, spec: SymmetrySpec, data: list[tuple[Tensor, ...]]) -> Mapping[str, Compensation]:
    return {
        "sequential": Compensation(data, ridge=1e-12),
        "data": Compensation(data, ridge=1e-12, sequential=False),
        "moments": Compensation(moments=measured(model, spec, data), ridge=1e-12),
    }


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(("name", "space"), KINDS)
def test_copies_are_given_back(name: str, space: str) -> None:
    model, inputs, spec = twins(name, space)
    size, outer = spec.sizes[space] // 2, spec.within.get(space)
    edits: list[morph.Edit] = [Keep(space, range(size))]
    if not outer:
        groups = [(unit, unit + size) for unit in range(size)]
        edits.append(Merge(space, groups, gains=[(0.4, 0.1)] * size))
        edits.append(Merge(space, groups, weights=[(0.5, 0.5)] * size, gains=[(0.4, 0.1)] * size))
    function, data = Function(model, inputs, spec), data_for(inputs)
    found = ways(model, spec, data)
    for edit in edits:
        assert morph.apply(edit, model, inputs, spec=spec).error > 1e-3
        for way, compensation in found.items():
            result = morph.apply(edit, model, inputs, spec=spec, compensation=compensation)
            assert result.uncompensated == (), way
            assert function.error(result.model) < 1e-6, (way, str(edit))
    assert same(morph.undo(result), model)


def test_groups_of_features_are_dropped_as_brute_force_says() -> None:
    """Heads of two features, read by two weights; and for units of one feature the order is that of units."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    samples = [drawn(300, 8) @ drawn(8, 8) for _ in range(2)]
    weights = [drawn(3, 8), drawn(2, 8)]
    groups = [[unit, unit + 4] for unit in range(4)]
    reads = [Read(x.mT @ x / 300, w.mT @ w, groups) for x, w in zip(samples, weights, strict=True)]
    order = obs_group_order(reads, [0] * 4, 3, ridge=0.0)

    def loss(kept: list[int]) -> float:
        total = 0.0
        for x, w in zip(samples, weights, strict=True):
            here = [feature for unit in kept for feature in groups[unit]]
            fit = torch.linalg.lstsq(x[:, here], x @ w.mT).solution
            total += float((x[:, here] @ fit - x @ w.mT).square().sum())
        return total

    left = list(range(4))
    for unit in order:
        assert unit == min(left, key=lambda one: loss([other for other in left if other != one]))
        left.remove(unit)
    single = Read(reads[0].covariance, reads[0].sensitivity, [[unit] for unit in range(8)])
    assert obs_group_order([single], [0] * 8, 5) == morph.obs_order(single.covariance, single.sensitivity)[:5]
    # Each head gives up as many.
    gone = obs_group_order([single], [0, 0, 0, 0, 1, 1, 1, 1], 2)
    assert sorted(unit // 4 for unit in gone) == [0, 0, 1, 1]


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(
    ("name", "space", "size"),
    [("encoder layer", HEADS, 2), ("encoder layer", f"{HEADS}#3", 2), ("u-net", "a", 3), ("gru", "cell.l0", 4)],
)
def test_brain_surgery_keeps_one_of_each_pair_of_copies(name: str, space: str, size: int) -> None:
    model, inputs, spec = twins(name, space)
    data = data_for(inputs)
    plan = morph.narrow_by_obs(model, spec, {space: size}, data, ridge=1e-12)
    assert isinstance(plan.edits[0], Keep)
    for row in torch.tensor(plan.edits[0].units).reshape(-1, size).tolist():
        assert sorted(unit % size for unit in row) == list(range(size))
    result = morph.apply(plan, model, inputs, spec=spec, compensation=Compensation(data, ridge=1e-12))
    assert result.error < 1e-6
