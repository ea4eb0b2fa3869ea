"""Are the directions that change nothing, beyond the group, counted and named as by hand?"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import symmetry
from symmetry import NullDirections, null_directions

from .families import Stages
from .models import draw, mlp, seeded


class Attention(nn.Module):
    """Queries, keys, values and output, each with a bias."""

    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def counted(model: nn.Module, *shape: int) -> tuple[NullDirections, dict[tuple[str, ...], int]]:
    spec = symmetry.trace(model, (draw(*shape),))
    found = null_directions(model, (draw(*shape),), spec)
    assert found.defect < 1e-7
    assert found.gap > 1e3
    assert found.group == spec.scale_dimension + spec.linear_dimension + spec.orthogonal_dimension
    assert found.kernel == found.group + found.remaining == found.group + sum(n.dimension for n in found.carried)
    return found, {part.tensors: part.dimension for part in found.carried}


def test_attention() -> None:
    """A key's bias adds the same to all scores of a query; a value's bias passes softmax and adds to the output's."""
    found, carried = counted(seeded(Attention), 7, 5, 4)
    assert found.group == 2 * 4 + 2 * 4
    assert carried == {("k.bias",): 4, ("v.bias", "o.bias"): 4}
    assert "4 in k.bias" in str(found)
    assert json.loads(json.dumps(found.to_json()))["remaining"] == 8


def test_layer_norm_projects_out_what_is_common_to_all_units() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)))
    _, carried = counted(model, 7, 3)
    assert carried == {("0.weight",): 3, ("0.bias",): 1}


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_before_batch_norm(bias: bool) -> None:
    """Per channel the running mean undoes a change of the bias, and the norm's bias a change of the running mean."""
    model = seeded(
        lambda: Stages(
            nn.Conv2d(2, 3, 3, bias=bias),
            nn.BatchNorm2d(3),
            torch.relu,
            lambda x: x.mean((2, 3)),
            nn.Linear(3, 2),
        )
    )
    found, carried = counted(model, 7, 2, 4, 4)
    assert found.remaining == (6 if bias else 3)
    means, shifts = "layers.1.running_mean", "layers.1.bias"
    expected = {tuple(sorted((means, shifts))): 3}
    if bias:
        expected[tuple(sorted(("layers.0.bias", means)))] = 3
    pairs = {tuple(sorted(tensors)): dimension for tensors, dimension in carried.items()}
    if bias:
        # Three tensors that shift one number: any two of the three pairs span the same.
        assert sorted(pairs.values()) == [3, 3]
        assert set().union(*pairs) == {means, shifts, "layers.0.bias"}
    else:
        assert pairs == expected


def test_frozen_buffers_leave_the_bias_and_a_scale_with_an_offset() -> None:
    """With constant statistics: bias against the norm's bias, and weight against gain, which moves the bias too."""
    model = seeded(lambda: Stages(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), torch.relu, lambda x: x.mean((2, 3)),
                                  nn.Linear(3, 2)))  # fmt: skip
    example = (draw(7, 2, 4, 4),)
    spec = symmetry.trace(model, example, frozen_buffers=True)
    found = null_directions(model, example, spec, frozen_buffers=True)
    assert (found.group, found.remaining, found.defect < 1e-7) == (3, 6, True)
    assert found.carried[0].dimension == 3
    assert set(found.carried[0].tensors) == {"layers.0.bias", "layers.1.bias"}


def test_a_linear_chain_carries_its_bias_on() -> None:
    found, carried = counted(seeded(lambda: mlp([4, 3, 5], None)), 7, 4)
    assert found.group == 9
    assert carried == {("0.bias", "1.bias"): 3}


@pytest.mark.parametrize(
    ("widths", "function"), [([3, 4, 4, 2], torch.tanh), ([3, 5, 2], torch.relu), ([3, 4, 4, 2], functional.gelu)]
)
def test_plain_networks_have_none(widths: list[int], function: object) -> None:
    """The negative control: nothing is found where nothing is."""
    found, carried = counted(seeded(lambda: mlp(widths, function)), 7, 3)  # type: ignore[arg-type]
    assert (found.remaining, carried) == (0, {})


def test_what_the_group_lacks_is_counted() -> None:
    """Without its scalings the same network has as many directions more: they are told apart from the group's."""
    model = seeded(lambda: mlp([3, 4, 2], torch.relu))
    example = (draw(7, 3),)
    spec = symmetry.trace(model, example)
    poorer = dataclasses.replace(spec, factors=(), scale_dimension=0)
    assert null_directions(model, example, spec).remaining == 0
    assert null_directions(model, example, poorer).remaining == 4


def test_a_group_that_is_too_large_shows_a_defect() -> None:
    """Tangents that are not in the kernel: the spec claims scalings that tanh does not let through."""
    example = (draw(7, 3),)
    model = seeded(lambda: mlp([3, 4, 2], torch.tanh))
    wrong = symmetry.trace(seeded(lambda: mlp([3, 4, 2], torch.relu)), example)
    assert null_directions(model, example, wrong).defect > 1e-2


def test_large_networks_are_refused() -> None:
    model = seeded(lambda: mlp([30, 80, 2], torch.relu))
    example = (draw(7, 30),)
    spec = symmetry.trace(model, example)
    with pytest.raises(symmetry.SpecError, match=r"2,642 parameters, at most 2,000.*narrower"):
        null_directions(model, example, spec)
