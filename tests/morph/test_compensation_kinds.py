"""Is what depends on the rest linearly given back whole: each kind of unit, kept or merged, from data or moments?"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from metanet import morph
from metanet.morph import Compensation, Keep, Merge
from metanet.morph.function import Function
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
