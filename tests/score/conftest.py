"""The pair of networks that the tests of this folder compare."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.symmetry import models


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (models.seeded(lambda: models.mlp([6, 12, 9, 4], torch.relu), seed) for seed in (0, 1))
    inputs = torch.randn(200, 6, generator=generator)
    return a, b, inputs, torch.randint(0, 4, (200,), generator=generator)
