"""How do many networks of one architecture run at once?

Their parameters are the rows of one matrix; each tensor is a view of a strip of its columns. ``torch.func.vmap`` runs
the architecture's own module over the rows, in training mode too: the running statistics of batch norm are stacked like
everything else, so the module updates each network's own. On the CPU ``vmap`` turns the convolutions of n networks into
one grouped convolution, which oneDNN runs fast where the widths are multiples of 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metanet.checkpoint import Architecture
from metanet.checkpoint.families_transformer import Table

__all__ = ["Networks", "initial_state"]


def initial_state(module: nn.Module, generator: torch.Generator, scale: float) -> dict[str, Tensor]:
    """First weights: normal with deviation ``scale / sqrt(fan-in)``; biases uniform within that; norms the identity.

    Learned positions are drawn as weights are, with their own width as the fan-in.

    Args:
        module: gives names, shapes and kinds of layers; it is not changed.
        generator: the only source of randomness.
        scale: 1 keeps the variance through a linear layer (LeCun), sqrt(2) through a rectified one (He).
    """
    state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    for prefix, layer in module.named_modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, nn.Linear | nn.Conv2d | Table) or not isinstance(weight, Tensor):
            continue
        deviation = scale / math.sqrt(weight[0].numel())
        # Drawn in float64 and rounded, so that both precisions start from the same network.
        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64) * deviation
        state[f"{prefix}.weight"] = drawn.to(weight.dtype)
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            drawn = (torch.rand(bias.shape, generator=generator, dtype=torch.float64) * 2 - 1) * deviation
            state[f"{prefix}.bias"] = drawn.to(weight.dtype)
    return state


class Networks:
    """n networks of one architecture.

    Args:
        architecture: of all of them.
        states: one complete state dict per network.
        dtype: in which they compute.

    Shapes:
        parameters (n, numbers per network); buffers by name (n, ...).
    """

    def __init__(self, architecture: Architecture, states: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> None:
        self.architecture = architecture
        self.module = architecture.build().to(dtype)
        self.names = [name for name, _ in self.module.named_parameters()]
        self.shapes = [parameter.shape for _, parameter in self.module.named_parameters()]
        self.parameters = torch.stack([torch.cat([s[name].reshape(-1) for name in self.names]) for s in states]).to(
            dtype
        )
        self.buffers = {
            name: torch.stack([state[name] for state in states]).to(buffer.dtype)
            for name, buffer in self.module.named_buffers()
        }

    def __len__(self) -> int:
        return len(self.parameters)

    def keep(self, rows: Tensor) -> None:
        """Go on with the networks in these rows only."""
        self.parameters = self.parameters[rows]
        self.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Each parameter of all networks, as a view of :attr:`parameters`."""
        sizes = [shape.numel() for shape in self.shapes]
        strips = self.parameters.split(sizes, dim=1)
        return {n: strip.unflatten(1, shape) for n, strip, shape in zip(self.names, strips, self.shapes, strict=True)}

    def stacked_state(self) -> dict[str, Tensor]:
        """A copy of everything, by name in the module's order; the first axis counts the networks."""
        merged = {**self.tensors(), **self.buffers}
        return {name: merged[name].clone() for name in self.module.state_dict()}

    def forward(self, tensors: Mapping[str, Tensor], inputs: Tensor, training: bool) -> Tensor:
        """All networks on their own inputs, or all on the same ones.

        Args:
            tensors: as from :meth:`tensors`.
            inputs: with or without a first axis that counts the networks.
            training: whether batch norm uses, and learns from, the batch.

        Shapes:
            inputs (n, batch, ...) or (batch, ...); result (n, batch, outputs).
        """
        self.module.train(training)
        shared = inputs.dim() == self.input_dim
        inputs_axis = None if shared else 0

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            result: Tensor = functional_call(self.module, (parameters, buffers), (x,))
            return result

        return vmap(one, in_dims=(0, 0, inputs_axis))(dict(tensors), self.buffers, inputs)

    @property
    def input_dim(self) -> int:
        """Axes of a batch of inputs of one network."""
        return 2 if self.architecture.family == "mlp" else 4

    def shape_inputs(self, images: Tensor) -> Tensor:
        """Images as this architecture reads them: flat for "mlp".

        Shapes:
            (..., channels, height, width) to itself or to (..., features).
        """
        return images.flatten(-3) if self.architecture.family == "mlp" else images
