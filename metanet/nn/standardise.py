"""How do features of any size become features of order 1? By what the training networks have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Standardise"]


class Standardise(nn.Module):
    """Bring features to mean 0 and deviation 1 over the networks it was fitted on, softly cut at 5 deviations."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    def fit(self, x: Tensor) -> None:
        self.mean.copy_(x.mean(0))
        spread = x.std(0, correction=0)
        self.deviation.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

    def forward(self, x: Tensor) -> Tensor:
        return 5 * torch.tanh((x.to(self.mean) - self.mean) / self.deviation / 5)
