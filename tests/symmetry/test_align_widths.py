"""Are planted elements of wide networks recovered exactly?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import symmetry
from symmetry.verify import generic_state

from .families import Encoder, Recurrent
from .models import BasicBlock, draw, mlp, seeded


def resnet(width: int) -> nn.Module:
    stem = (nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    blocks = (BasicBlock(width, width), BasicBlock(width, 2 * width, 2))
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 5))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp 512": (lambda: mlp([16, 512, 512, 4], torch.relu), (7, 16)),
    "gru 512": (lambda: Recurrent(nn.GRU, hidden=512), (7, 2, 3)),
    "encoder 128": (lambda: Encoder(128, 8, 256, dropout=0.0), (7, 3, 3)),
    "resnet 128": (lambda: resnet(128), (7, 3, 8, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_planted_elements_are_recovered(name: str) -> None:
    build, shape = CASES[name]
    model = seeded(build).double()
    spec = symmetry.trace(model, (draw(*shape, dtype=torch.float64),))
    state = generic_state(spec, model.state_dict(), torch.Generator().manual_seed(5))
    planted = spec.sample(torch.Generator().manual_seed(1))
    found = symmetry.align(spec, state, spec.act(planted, state)) @ planted
    for space in spec.permuted:
        assert torch.equal(found.permutations[space.name], spec.identity().permutations[space.name])
    back = spec.act(found, state)
    for key, value in state.items():
        if value.is_floating_point():
            assert float((back[key] - value).abs().max()) <= 1e-10 * float(value.abs().max())
