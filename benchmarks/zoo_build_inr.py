"""How are SIRENs fitted with automatic differentiation? Two rivals of the backward pass that is written by hand.

Part of zoo_build.py. All three fit the same networks to the same pictures from the same first weights, with the same
Adam and the same learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import interpolate, mse_loss

from metanet.checkpoint import Architecture
from metanet.datasets import SirenBatch, coordinates, load_zoo_config
from metanet.datasets.images import ImageData
from metanet.datasets.inr import fit, siren_weights

# Networks that are fitted at once: by hand as in zoos; by vmap the number at which it is fastest.
AT_ONCE, VMAP_AT_ONCE = 16, 256


@dataclass(frozen=True)
class Fits:
    """What is to be fitted.

    Args:
        architecture: of all networks.
        rows: first weights.
        points: of the pictures' pixels.
        targets: the pictures.
        steps: of Adam.
        learning_rate: of the first step; it falls to zero as a half cosine.

    Shapes:
        rows (n, numbers), points (points, 2), targets (n, 1, points).
    """

    architecture: Architecture
    rows: Tensor
    points: Tensor
    targets: Tensor
    steps: int
    learning_rate: float

    def rate(self, step: int) -> float:
        """The learning rate of one step."""
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


def drawn_fits(seed: int, networks: int, steps: int, data: ImageData) -> Fits:
    """Networks as in `zoo=mnist_inr`; scikit-learn's digits, stretched to 14x14, stand for MNIST."""
    config = load_zoo_config("mnist_inr")
    architecture = config.architecture(1)
    generator = torch.Generator().manual_seed(seed)
    side = int(config.data["size"])
    chosen = torch.randperm(len(data.pool_images), generator=generator)[:networks]
    pictures = interpolate(data.pool_images[chosen].float(), size=(side, side), mode="bilinear", align_corners=True)
    rows = torch.stack([siren_weights(architecture, generator) for _ in range(networks)]).float()
    points = coordinates(side, side).float()
    return Fits(architecture, rows, points, pictures.flatten(2), steps, config.learning_rate)


def by_hand(fits: Fits) -> Tensor:
    """What `metanet zoo build` runs; returns the mean squared errors at the end."""
    found = []
    for rows, targets in zip(fits.rows.split(AT_ONCE), fits.targets.split(AT_ONCE), strict=True):
        batch = SirenBatch(fits.architecture, rows, fits.points)
        found.append(fit(batch, targets, fits.steps, fits.learning_rate))
    return torch.cat(found)


def by_vmap(fits: Fits) -> Tensor:
    """Gradients of many networks at once by `torch.func.vmap`, one fused Adam for all of them."""
    module = fits.architecture.build()
    shapes = fits.architecture.shapes()

    def error(weights: dict[str, Tensor], target: Tensor) -> Tensor:
        return mse_loss(functional_call(module, weights, (fits.points,)).T, target)

    def named(rows: Tensor) -> dict[str, Tensor]:
        parts = rows.split([math.prod(shape) for shape in shapes.values()], dim=1)
        return {name: part.unflatten(1, shapes[name]) for name, part in zip(shapes, parts, strict=True)}

    gradients = vmap(grad_and_value(error))
    found = []
    for rows, targets in zip(fits.rows.split(VMAP_AT_ONCE), fits.targets.split(VMAP_AT_ONCE), strict=True):
        parameter = torch.nn.Parameter(rows.clone())
        optimiser = torch.optim.Adam([parameter], fused=True)
        for step in range(fits.steps):
            slopes, _ = gradients(named(parameter.detach()), targets)
            parameter.grad = torch.cat([slope.flatten(1) for slope in slopes.values()], dim=1)
            optimiser.param_groups[0]["lr"] = fits.rate(step)
            optimiser.step()
        with torch.no_grad():
            found.append(vmap(error)(named(parameter), targets).double())
    return torch.cat(found)


def one_by_one(fits: Fits) -> Tensor:
    """Ordinary PyTorch: a module, an optimiser, backward, step, one network after another."""
    found = []
    for row, target in zip(fits.rows, fits.targets, strict=True):
        module = fits.architecture.build()
        torch.nn.utils.vector_to_parameters(row.clone(), module.parameters())
        optimiser = torch.optim.Adam(module.parameters(), fused=True)
        for step in range(fits.steps):
            optimiser.zero_grad()
            mse_loss(module(fits.points).T, target).backward()
            optimiser.param_groups[0]["lr"] = fits.rate(step)
            optimiser.step()
        with torch.no_grad():
            found.append(mse_loss(module(fits.points).T, target).double())
    return torch.stack(found)


VARIANTS: dict[str, Callable[[Fits], Tensor]] = {"by hand": by_hand, "vmap": by_vmap, "loop": one_by_one}


def disagreement(results: dict[str, Tensor]) -> float:
    """How far, at most, a network's peak signal-to-noise ratio is from that of the plain loop, in decibel."""
    decibel = {name: -10 * torch.log10(errors) for name, errors in results.items()}
    return max(float((values - decibel["loop"]).abs().max()) for values in decibel.values())
