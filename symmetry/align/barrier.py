"""How much worse does a network get halfway along the straight line between two networks?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from symmetry.errors import SpecError

__all__ = ["Barrier", "barrier", "interpolate"]


@dataclass(frozen=True)
class Barrier:
    """Losses along the straight line between two networks.

    Args:
        weights: where on the line, from 0 (the first network) to 1 (the second).
        losses: the loss there.
    """

    weights: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def excess(self) -> tuple[float, ...]:
        """Loss above the straight line between the losses of both ends, at each place."""
        first, last = self.losses[0], self.losses[-1]
        return tuple(
            loss - ((1 - weight) * first + weight * last)
            for weight, loss in zip(self.weights, self.losses, strict=True)
        )

    @property
    def midpoint(self) -> float:
        """The barrier at the midpoint: its loss minus the mean loss of both ends; negative where it is better."""
        return self.excess[min(range(len(self.weights)), key=lambda k: abs(self.weights[k] - 0.5))]

    @property
    def highest(self) -> float:
        """The largest excess anywhere on the line, at least 0 (the ends)."""
        return max(self.excess)

    def __str__(self) -> str:
        return f"barrier {self.midpoint:.4f} at the midpoint, {self.highest:.4f} at most, on {len(self.weights)} points"


def interpolate(first: Mapping[str, Tensor], second: Mapping[str, Tensor], weight: float = 0.5) -> dict[str, Tensor]:
    """The state at ``(1 - weight) first + weight second``; entries that are no floating point numbers are the first's.

    Entries that are one tensor in the first state are one tensor in the result.
    """
    done: dict[int, Tensor] = {}
    for name, tensor in first.items():
        if name not in second or second[name].shape != tensor.shape:
            raise SpecError(f"{name}: the second state has no entry of shape {tuple(tensor.shape)}; align states first")
        if id(tensor) not in done:
            mixed = (
                tensor.detach().lerp(second[name].detach().to(tensor), weight) if tensor.is_floating_point() else tensor
            )
            done[id(tensor)] = mixed
    return {name: done[id(tensor)] for name, tensor in first.items()}


def barrier(
    model: nn.Module,
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    batches: Sequence[tuple[Sequence[Any], Tensor]],
    loss: Callable[[Any, Tensor], Tensor] = nn.functional.cross_entropy,
    points: int = 3,
    path: Callable[[float], Mapping[str, Tensor]] | None = None,
) -> Barrier:
    """Measure the loss along the straight line between two states, in eval mode.

    Args:
        model: the module; it is not changed.
        first: one of its states.
        second: another, aligned to the first.
        batches: pairs (arguments of ``forward``, targets); losses are averaged over rows of the targets.
        loss: from (output, targets) to the mean loss of the batch.
        points: how many places on the line, both ends included; odd, so that the midpoint is one.
        path: the state to measure at a place strictly between the ends, such as a repaired one; the straight line if
            ``None``.

    Raises:
        SpecError: for an even or too small number of points, or no batches.
    """
    if points < 3 or points % 2 == 0:
        raise SpecError(f"points={points}: expected an odd number, 3 or more")
    if not batches:
        raise SpecError("batches: empty; expected at least one pair of (arguments, targets)")
    modes = {module: module.training for module in model.modules()}
    weights = tuple(k / (points - 1) for k in range(points))
    losses = []
    try:
        model.eval()
        for weight in weights:
            straight = path is None or weight in (0.0, 1.0)
            state = interpolate(first, second, weight) if path is None or straight else path(weight)
            total, rows = 0.0, 0
            for arguments, targets in batches:
                with torch.no_grad():
                    output = torch.func.functional_call(model, dict(state), tuple(arguments))
                    total += float(loss(output, targets)) * len(targets)
                rows += len(targets)
            losses.append(total / rows)
    finally:
        for module, training in modes.items():
            module.training = training
    return Barrier(weights, tuple(losses))
