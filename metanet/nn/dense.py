"""Linear maps whose first weights come from a generator that is handed in, never from torch's global one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Dense", "Table", "make_generator"]


def make_generator(seed: int) -> torch.Generator:
    """A generator on the CPU with this seed."""
    return torch.Generator().manual_seed(seed)


class Dense(nn.Module):
    """``y = x W^T + b``.

    Args:
        inputs: features in.
        outputs: features out.
        bias: add ``b``.
        gain: weights are drawn with standard deviation ``gain / sqrt(inputs)``; biases start at zero.

    Shapes:
        ``(..., inputs)`` -> ``(..., outputs)``.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the weights anew."""
        with torch.no_grad():
            self.weight.normal_(0.0, self.gain / math.sqrt(max(self.weight.shape[1], 1)), generator=generator)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"


class Table(nn.Module):
    """A learned array, one entry per kind of tensor.

    Args:
        shape: its shape.
        scale: standard deviation at the start.
    """

    def __init__(self, *shape: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(*shape))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the entries anew."""
        with torch.no_grad():
            self.weight.normal_(0.0, self.scale, generator=generator)

    def forward(self, row: int) -> Tensor:
        return self.weight[row]

    def extra_repr(self) -> str:
        return ", ".join(map(str, self.weight.shape))
