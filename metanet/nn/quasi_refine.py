"""How does an element alpha become better at its job on the network at hand? Steps down a loss, or the best of many.

What a head predicts is good on average. A job whose loss can be told from the network alone, on inputs that were
learned together with the head, lets alpha go on: :class:`GaugeDescent` takes a few steps down that loss, and training
goes through them; :class:`GaugeSearch` tries many elements nearby, for losses without a useful slope such as rounding.
Both are maps into the group, whatever the loss: the answer stays in the orbit and keeps its witness. The loss has to
be a function of the network alone (no new random numbers at every call), or the answer is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from metanet.errors import ModelError
from metanet.nn.frames.motion import Motion
from metanet.nn.quasi import learnable

__all__ = ["GaugeDescent", "GaugeLoss", "GaugeSearch"]

# From motions, one per channel, to one number per network.
GaugeLoss: TypeAlias = Callable[[Sequence[Motion]], Tensor]

_MOST = 0.95  # of the interval in which a matrix is sure to be invertible


class GaugeDescent(nn.Module):
    """A few normalised steps down a loss; the size of each step is learned.

    Log-scales move by ``-size * gradient / rms(gradient)``, matrices by ``M (1 - s D / ||D||)`` with D the gradient in
    the Lie algebra, ``M^T dL/dM``, Frobenius norms and ``s < 1``, so that they cannot become singular. Where gradients
    are recorded, they go through the steps (second derivatives); without, each step is taken on its own.

    Args:
        steps: how many.
        size: of the first step before training; the others fall linearly towards zero.

    Raises:
        ModelError: for a number of steps or a size that is not positive.
    """

    def __init__(self, steps: int = 8, size: float = 0.08) -> None:
        super().__init__()
        if steps < 1 or not size > 0:
            raise ModelError(f"steps={steps}, size={size}, expected positive numbers")
        self.log_sizes = nn.Parameter((size * (1 - torch.arange(steps) / steps)).log())

    def forward(self, alphas: Sequence[Motion], loss: GaugeLoss) -> list[Motion]:
        """The motions after the steps.

        Args:
            alphas: where to start; the numbers that may be learned (:func:`metanet.nn.quasi.learnable`) move.
            loss: of the motions; smaller is better.

        Shapes:
            loss returns ``(B,)``, as many as ``alphas[0].size``.
        """
        recorded = torch.is_grad_enabled()
        now = list(alphas)
        for log_size in self.log_sizes:
            size = log_size.exp()
            with torch.enable_grad():
                now = [_free(motion, recorded) for motion in now]
                leaves = [value for motion in now for value in _moving(motion)]
                if not leaves:
                    return now
                told = loss(now).sum()
                slopes = torch.autograd.grad(told, leaves, create_graph=recorded, allow_unused=True)
            slope_of = {id(leaf): slope for leaf, slope in zip(leaves, slopes, strict=True) if slope is not None}
            now = [_stepped(motion, slope_of, size) for motion in now]
        return now if recorded else [_detached(motion) for motion in now]

    def extra_repr(self) -> str:
        return f"steps={len(self.log_sizes)}"


class GaugeSearch:
    """The best of many elements, each drawn near the best so far; log-scales only.

    It needs no slope and never ends worse than it began. Draws are the same for every network and every call. Without
    features they belong to places in the tensors, and alpha is not equivariant under permutations (a quasi-equivariant
    layer need not be). With features, which permutations must carry along, the draws are readings of them, ``sin`` of
    random directions, and all that was equivariant stays so.

    Args:
        rounds: how many are tried.
        size: deviation of the log-scales drawn in the first round; it falls linearly to zero.
        seed: of the draws.

    Raises:
        ModelError: for negative rounds or a size that is not positive.
    """

    def __init__(self, rounds: int = 64, size: float = 0.02, seed: int = 0) -> None:
        if rounds < 0 or not size > 0:
            raise ModelError(f"rounds={rounds}, size={size}, expected no negative rounds and a positive size")
        self.rounds, self.size, self.seed = rounds, size, seed

    @torch.no_grad()
    def __call__(
        self, alphas: Sequence[Motion], loss: GaugeLoss, features: Mapping[str, Tensor] | None = None
    ) -> list[Motion]:
        """The best motions that were found, without gradient.

        Args:
            alphas: where to start.
            loss: of the motions; smaller is better.
            features: of the units by scale factor, of about unit size.

        Shapes:
            features: ``(B, *units, size)``. loss returns ``(B,)``.
        """
        generator = torch.Generator().manual_seed(self.seed)
        moving = {factor.name for factor in learnable(alphas[0].topology)[0]}
        best = [_detached(motion) for motion in alphas]
        least = loss(best)
        for number in range(self.rounds):
            size = self.size * (1 - number / self.rounds)
            tried = [
                replace(
                    motion,
                    log_scales={
                        name: value + size * _draw(value, None if features is None else features[name], generator)
                        if name in moving
                        else value
                        for name, value in motion.log_scales.items()
                    },
                )
                for motion in best
            ]
            told = loss(tried)
            better = told < least
            least = torch.where(better, told, least)
            best = [_picked(better, new, old) for new, old in zip(tried, best, strict=True)]
        return best


def _draw(value: Tensor, features: Tensor | None, generator: torch.Generator) -> Tensor:
    """Numbers of mean 0 and deviation about 1 for every unit."""
    if features is None:
        return torch.randn(value.shape[1:], generator=generator).to(value)
    # A turn of several radians between units that differ by one deviation: draws of different units are independent.
    direction = torch.randn(features.shape[-1], generator=generator) * (4.0 / features.shape[-1] ** 0.5)
    phase = 2 * torch.pi * torch.rand((), generator=generator)
    return 2**0.5 * torch.sin(features @ direction.to(features) + phase.to(features))


def _moving(motion: Motion) -> list[Tensor]:
    """What of a motion may be learned. Orthogonal matrices would not stay orthogonal."""
    scales, linear = learnable(motion.topology)
    found = [motion.log_scales[f.name] for f in scales if f.name in motion.log_scales]
    return found + [motion.matrices[f.space] for f in linear if f.space in motion.matrices]


def _free(motion: Motion, recorded: bool) -> Motion:
    """The motion with numbers that a gradient can be taken for."""

    def free(value: Tensor) -> Tensor:
        return value if recorded and value.requires_grad else value.detach().requires_grad_()

    return replace(
        motion,
        log_scales={name: free(value) for name, value in motion.log_scales.items()},
        matrices={name: free(value) for name, value in motion.matrices.items()},
    )


def _stepped(motion: Motion, slope_of: Mapping[int, Tensor], size: Tensor) -> Motion:
    """One step, each network and factor by its own measure; what has no slope stays."""
    logs, matrices = dict(motion.log_scales), dict(motion.matrices)
    for name, value in logs.items():
        if id(value) in slope_of:
            slope = slope_of[id(value)]
            square = slope.square().flatten(1).mean(1) if slope.ndim > 1 else slope.square()
            length = (square + 1e-8).sqrt().view(-1, *[1] * (slope.ndim - 1))
            logs[name] = value - size.to(value) * slope / length
    for name, value in matrices.items():
        if id(value) in slope_of:
            inner = value.mT @ slope_of[id(value)]
            length = (inner.square().sum((-2, -1), keepdim=True) + 1e-8).sqrt()
            matrices[name] = value - _MOST * torch.tanh(size).to(value) * (value @ inner) / length
    return replace(motion, log_scales=logs, matrices=matrices)


def _detached(motion: Motion) -> Motion:
    return replace(
        motion,
        log_scales={name: value.detach() for name, value in motion.log_scales.items()},
        matrices={name: value.detach() for name, value in motion.matrices.items()},
    )


def _picked(better: Tensor, new: Motion, old: Motion) -> Motion:
    """Row by row the new motion or the old one."""
    logs = {
        name: torch.where(better.view(-1, *[1] * (value.ndim - 1)), value, old.log_scales[name])
        for name, value in new.log_scales.items()
    }
    return replace(old, log_scales=logs)
