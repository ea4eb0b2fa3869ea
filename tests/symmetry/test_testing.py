"""Does the equivariance measure pass what is equivariant and catch what is not?"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import symmetry

from .models import draw, mlp, resnet, seeded


def invariant(state: Mapping[str, Tensor]) -> Tensor:
    """Sums of squares of each tensor: every permutation leaves them alone."""
    return torch.stack([value.square().sum() for value in state.values() if value.is_floating_point()])


def per_position(state: Mapping[str, Tensor]) -> Tensor:
    """Negative control: weighs entries by their place."""
    return torch.stack(
        [
            (value.flatten() * torch.arange(value.numel(), dtype=value.dtype)).sum()
            for value in state.values()
            if value.is_floating_point()
        ]
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_invariant_and_not(dtype: torch.dtype, bound: float) -> None:
    model = seeded(resnet)
    spec = symmetry.trace(model, (draw(7, 3, 8, 8),))
    table = symmetry.testing.equivariance_error(
        invariant, spec, model.state_dict(), kinds=("permutation",), dtype=dtype
    )
    assert table.max_error <= bound
    wrong = symmetry.testing.equivariance_error(
        per_position, spec, model.state_dict(), kinds=("permutation",), dtype=dtype
    )
    assert wrong.max_error > 1e-3
    assert "permutation" in str(table)


def test_scalings_are_told_from_permutations() -> None:
    model = seeded(lambda: mlp([3, 4, 4, 2], torch.relu))
    spec, state = symmetry.trace(model, (draw(7, 3),)), model.state_dict()
    assert symmetry.testing.equivariance_error(invariant, spec, state, kinds=("permutation",)).max_error <= 1e-10
    assert symmetry.testing.equivariance_error(invariant, spec, state, kinds=("scale",)).max_error > 1e-3


def test_equivariant_maps_of_states() -> None:
    model = seeded(lambda: mlp([3, 4, 4, 2], torch.relu))
    spec, state = symmetry.trace(model, (draw(7, 3),)), model.state_dict()

    def centred(given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: (value - value.mean()).tanh() for name, value in given.items()}

    def rolled(given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.roll(1, 0) for name, value in given.items()}

    assert symmetry.testing.equivariance_error(centred, spec, state, kinds=("permutation",)).max_error <= 1e-10
    assert symmetry.testing.equivariance_error(rolled, spec, state, kinds=("permutation",)).max_error > 1e-3


def test_the_function_itself_is_the_best_invariant() -> None:
    """The network's outputs do not change under the whole group, and a control does change them."""
    model = seeded(lambda: mlp([3, 4, 4, 2], torch.tanh)).to(torch.float64)
    x = draw(7, 3, dtype=torch.float64)
    spec = symmetry.trace(model, (x,))
    table = symmetry.testing.equivariance_error(
        lambda state: torch.func.functional_call(model, state, (x,)), spec, model.state_dict()
    )
    assert table.max_error <= 1e-10
    assert table.control_error >= 1e-6
