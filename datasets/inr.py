"""How are many SIRENs fitted at once, each to its own image, without automatic differentiation?

Units come before points in every buffer, ``(networks, width, points)``, so that one layer of all networks is one
``baddbmm`` forward and two ``bmm`` backward into buffers that are allocated once. The weights of a network are one row
of a matrix, its gradients one row of another, and Adam is one fused step on both. Sine and cosine are each taken once:
the sine goes forward, the cosine is its derivative. On the CPU they come from numpy, whose vectorised versions take
less than half the time of torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metanet.checkpoint import Architecture
from metanet.errors import ZooError

__all__ = ["SirenBatch", "coordinates", "fit", "peak_signal_to_noise", "siren_weights"]

# Beta 1, beta 2 and epsilon of Adam: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015, algorithm 1.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def coordinates(height: int, width: int) -> Tensor:
    """Where the pixels of an image lie in the square from -1 to 1: first to the right, then downwards.

    Shapes:
        (height * width, 2) float64, row by row.

    >>> coordinates(2, 2).tolist()
    [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]
    """
    down = torch.linspace(-1, 1, height, dtype=torch.float64)
    right = torch.linspace(-1, 1, width, dtype=torch.float64)
    y, x = torch.meshgrid(down, right, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def peak_signal_to_noise(loss: Tensor) -> Tensor:
    """PSNR in decibel for signals between 0 and 1, from mean squared errors."""
    return -10.0 * torch.log10(loss)


def siren_weights(architecture: Architecture, generator: torch.Generator) -> Tensor:
    """First weights of one network: a row in the order of its state dict.

    Source: Sitzmann et al., Implicit Neural Representations with Periodic Activation Functions, 2020, section 3.2:
        the first layer uniform within 1 / fan-in, the others within sqrt(6 / fan-in) / w0; biases within
        1 / sqrt(fan-in), as in the code of its authors.

    Shapes:
        (numbers per network,) float64.
    """
    w0 = architecture.options["w0"]
    parts = []
    for name, shape in architecture.shapes().items():
        if name.endswith("weight"):
            fan_in = shape[1]
            bound = 1.0 / fan_in if name == "layers.0.weight" else math.sqrt(6.0 / fan_in) / w0
        else:
            # The bias follows its weight.
            bound = 1.0 / math.sqrt(fan_in)
        parts.append((torch.rand(math.prod(shape), generator=generator, dtype=torch.float64) * 2 - 1) * bound)
    return torch.cat(parts)


def _sine(values: Tensor, cosine: Tensor) -> None:
    # In place: `values` becomes its sine.
    if values.device.type == "cpu":
        plain = values.numpy()
        np.cos(plain, out=cosine.numpy())
        np.sin(plain, out=plain)
    else:
        torch.cos(values, out=cosine)
        values.sin_()


class SirenBatch:
    """n SIRENs of one architecture on the same points.

    Args:
        architecture: of the family "siren".
        rows: the weights, one network per row in the order of its state dict; they are copied.
        points: where the networks are read.

    Shapes:
        rows (n, numbers per network), points (points, inputs); :attr:`weights` and :attr:`gradients` like rows.
    """

    def __init__(self, architecture: Architecture, rows: Tensor, points: Tensor) -> None:
        if architecture.family != "siren":
            raise ZooError(f"a network of the family {architecture.family!r}, expected 'siren'")
        options = architecture.options
        self.frequencies = (options["first_w0"], *[options["w0"]] * (len(options["widths"]) - 1))
        self.names = tuple(architecture.shapes())
        self.shapes = tuple(architecture.shapes().values())
        self.weights = rows.clone()
        self.gradients = torch.zeros_like(self.weights)
        n, count = len(rows), len(points)
        self.points = points.to(rows).T.contiguous().expand(n, -1, -1)
        self._layers = self._views(self.weights)
        self._slopes = self._views(self.gradients)
        buffer = [rows.new_empty(n, width, count) for width in options["widths"]]
        self._sines, self._cosines = buffer, [torch.empty_like(part) for part in buffer]
        self._values = rows.new_empty(n, options["outputs"], count)
        self._errors = torch.empty_like(self._values)

    def _views(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        strips = rows.split([math.prod(shape) for shape in self.shapes], dim=1)
        views = [
            strip.unflatten(1, shape) if len(shape) == 2 else strip.unsqueeze(2)
            for strip, shape in zip(strips, self.shapes, strict=True)
        ]
        return list(zip(views[::2], views[1::2], strict=True))

    def state(self) -> dict[str, Tensor]:
        """All weights by name, as views; the first axis counts the networks."""
        strips = self.weights.split([math.prod(shape) for shape in self.shapes], dim=1)
        return {n: s.unflatten(1, shape) for n, s, shape in zip(self.names, strips, self.shapes, strict=True)}

    def forward(self) -> Tensor:
        """What the networks say at the points; the buffer is used again by the next call.

        Shapes:
            (n, outputs, points).
        """
        x = self.points
        layers = zip(self._layers[:-1], self.frequencies, self._sines, self._cosines, strict=True)
        for (weight, bias), frequency, sine, cosine in layers:
            torch.baddbmm(bias, weight, x, beta=frequency, alpha=frequency, out=sine)
            _sine(sine, cosine)
            x = sine
        weight, bias = self._layers[-1]
        return torch.baddbmm(bias, weight, x, out=self._values)

    def losses(self, targets: Tensor) -> Tensor:
        """Mean squared error of each network.

        Shapes:
            targets (n, outputs, points); result (n,) float64.
        """
        return (self.forward() - targets).double().square().mean(dim=(1, 2))

    def backward(self, targets: Tensor) -> None:
        """Fill :attr:`gradients` with those of the mean squared errors; :meth:`forward` must have run before.

        Shapes:
            targets (n, outputs, points).
        """
        error = torch.sub(self._values, targets, out=self._errors)
        error.mul_(2.0 / (error.shape[1] * error.shape[2]))
        for depth in reversed(range(len(self._layers))):
            below = self._sines[depth - 1] if depth else self.points
            weight_slope, bias_slope = self._slopes[depth]
            torch.bmm(error, below.mT, out=weight_slope)
            torch.sum(error, dim=2, keepdim=True, out=bias_slope)
            if depth:
                # The sine is not needed any more, so the error of the layer below takes its place.
                torch.bmm(self._layers[depth][0].mT, error, out=below)
                error = below.mul_(self._cosines[depth - 1]).mul_(self.frequencies[depth - 1])


def fit(
    batch: SirenBatch,
    targets: Tensor,
    steps: int,
    learning_rate: float,
    progress: Callable[[int], None] = lambda steps: None,
) -> Tensor:
    """Fit the networks by Adam with a learning rate that falls to zero as a half cosine.

    Args:
        batch: the networks; their weights change.
        targets: what they should say at their points.
        steps: how many.
        learning_rate: of the first step.
        progress: is told how many network-steps were done, now and then.

    Shapes:
        targets (n, outputs, points); result (n,) float64, the mean squared errors at the end.
    """
    parameter = torch.nn.Parameter(batch.weights)
    parameter.grad = batch.gradients
    options: dict[str, Any] = {"lr": learning_rate, "betas": _BETAS, "eps": _EPSILON, "fused": True}
    optimiser = torch.optim.Adam([parameter], **options)
    with torch.no_grad():
        for step in range(steps):
            batch.forward()
            batch.backward(targets)
            optimiser.param_groups[0]["lr"] = learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            optimiser.step()
        progress(steps * len(targets))
        return batch.losses(targets)
