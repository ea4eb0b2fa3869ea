"""How are more inputs made of those that a predictor has learned? Two halves make a new one.

Rounds move every weight that is left and fit what they see: with more inputs they hold better for images that nobody
has shown them. Learned inputs are few; joined along lines they vary in more ways, and stay alike in every small part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["crossed"]

_SHARPNESS = 6.0  # of the line between both halves, in units of half an image


def crossed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image joined with another that is drawn, along a line through the middle at a drawn angle.

    Args:
        images: of any number.
        generator: of the draws.

    Shapes:
        (n, channels, height, width) -> the same
    """
    height, width = images.shape[-2:]
    angle = 2 * math.pi * torch.rand(len(images), 1, 1, 1, generator=generator)
    partner = torch.randperm(len(images), generator=generator)
    along = angle.cos() * _places(width) + angle.sin() * _places(height).unsqueeze(-1)
    share = torch.sigmoid(_SHARPNESS * along).to(images)
    return share * images + (1 - share) * images[partner.to(images.device)]


def _places(size: int) -> Tensor:
    return torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1)
