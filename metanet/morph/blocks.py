"""Which modules do edits put in place of others?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from metanet.errors import PlanError

__all__ = ["ACTIVATIONS", "ConvMatrix", "Pass", "Residual", "activation", "same_kind_of_map"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


def activation(name: str) -> nn.Module:
    """A pointwise function by name.

    Raises:
        PlanError: for a name that is not known.
    """
    if name not in ACTIVATIONS:
        raise PlanError(f"unknown activation {name!r:.60}", hint="known: " + ", ".join(ACTIVATIONS))
    return ACTIVATIONS[name]()


class Pass(nn.Module):
    """What a dropped block leaves: its first argument passes.

    Shapes:
        any -> the same
    """

    def forward(self, x: Any, *_: Any, **__: Any) -> Any:
        """See the class."""
        return x


class Residual(nn.Module):
    """x + second(act(first(x))).

    Args:
        first, second: maps of the same kind, there and back.
        function: the name of the activation between them.

    Shapes:
        what ``first`` reads -> the same
    """

    def __init__(self, first: nn.Module, second: nn.Module, function: str) -> None:
        super().__init__()
        self.first, self.function, self.second = first, activation(function), second

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self.second(self.function(self.first(x)))


class ConvMatrix(nn.Module):
    """A convolution on maps of one size, as one linear layer between flattened maps.

    Args:
        layer: the linear layer.
        shape: channels and sizes of the output.

    Shapes:
        (batch, channels, *sizes) -> (batch, *shape)
    """

    def __init__(self, layer: nn.Linear, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer, self.shape = layer, tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.layer(x.flatten(1)).unflatten(1, self.shape)

    def extra_repr(self) -> str:
        """The sizes of the output."""
        return f"shape={self.shape}"


def same_kind_of_map(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A linear layer, or a convolution that keeps the sizes of maps, like ``layer``, without values yet.

    Raises:
        PlanError: for other layers.
    """
    weight = getattr(layer, "weight", None)
    device = weight.device if isinstance(weight, Tensor) else None
    dtype = weight.dtype if isinstance(weight, Tensor) else None
    if isinstance(layer, nn.Linear):
        return nn.utils.skip_init(nn.Linear, inputs, outputs, device=device, dtype=dtype)
    pairs = ((nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d))
    for kind, transposed in pairs:
        if isinstance(layer, kind | transposed):
            return nn.utils.skip_init(kind, inputs, outputs, 1, device=device, dtype=dtype)
    raise PlanError(
        f"{type(layer).__name__} is neither a linear layer nor a convolution",
        hint="name a linear layer or a convolution",
    )


def identity_map(layer: nn.Module, units: int) -> nn.Module:
    """A linear layer or convolution like ``layer`` that changes nothing."""
    made: Any = same_kind_of_map(layer, units, units)
    with torch.no_grad():
        made.weight.copy_(torch.eye(units).reshape(units, units, *[1] * (made.weight.ndim - 2)))
        made.bias.zero_()
    return made
