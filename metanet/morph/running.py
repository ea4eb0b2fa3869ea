"""How is a user's own module run without leaving a trace on it?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["doubled", "evaluating"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the block; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def doubled(example_inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The same inputs, floating point ones in float64."""
    return tuple(
        item.to(torch.float64) if isinstance(item, Tensor) and item.is_floating_point() else item
        for item in example_inputs
    )
