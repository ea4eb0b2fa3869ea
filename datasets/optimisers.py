"""How do many networks take one optimiser step at once, each with its own optimiser and settings?

SGD with momentum, Adam and AdamW are one formula with per-network constants (rows of one matrix):

    g = gradient + l2 * w
    m = beta1 * m + c * g                    c = 1 for SGD, 1 - beta1 for Adam
    v = beta2 * v + (1 - beta2) * g^2        Adam only
    w = (1 - rate * decay) * w - rate / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + epsilon)

For SGD both corrections and the divisor are 1. The steps equal those of ``torch.optim`` up to rounding.
Sources: Kingma and Ba, Adam, 2015, algorithm 1; Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019,
algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .draw import RunSettings

__all__ = ["BETA2", "EPSILON", "Optimisers"]

BETA2 = 0.999
EPSILON = 1e-8


class Optimisers:
    """State and settings of one optimiser per row.

    Args:
        runs: the settings, one per row.
        parameters: the matrix that will be updated; gives size and dtype.
    """

    def __init__(self, runs: Sequence[RunSettings], parameters: Tensor) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=parameters.dtype)[:, None]

        self.adaptive = torch.tensor([run.optimiser != "sgd" for run in runs])[:, None]
        self.rate = column([run.learning_rate for run in runs])
        self.beta1 = column([run.momentum for run in runs])
        self.gain = column([1.0 if run.optimiser == "sgd" else 1 - run.momentum for run in runs])
        self.l2 = column([0.0 if run.optimiser == "adamw" else run.weight_decay for run in runs])
        shrink = [run.learning_rate * run.weight_decay if run.optimiser == "adamw" else 0.0 for run in runs]
        self.keep_share = column([1 - value for value in shrink])
        self.first = torch.zeros_like(parameters)
        self.second = torch.zeros_like(parameters)
        self.step_count = 0
        self._note_kinds()

    def _note_kinds(self) -> None:
        # Read once here, because asking a tensor in every step costs more than the step saves.
        self._any_adaptive = bool(self.adaptive.any())
        self._any_shrink = bool((self.keep_share != 1).any())

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        for name in ("adaptive", "rate", "beta1", "gain", "l2", "keep_share", "first", "second"):
            setattr(self, name, getattr(self, name)[rows])
        self._note_kinds()

    def step(self, parameters: Tensor, gradients: Tensor) -> None:
        """Update ``parameters`` in place.

        Shapes:
            both (n, numbers per network).
        """
        self.step_count += 1
        gradients = torch.addcmul(gradients, parameters, self.l2)
        self.first.mul_(self.beta1).addcmul_(gradients, self.gain)
        if not self._any_adaptive:
            parameters.addcmul_(self.first, -self.rate)
            return
        self.second.mul_(BETA2).addcmul_(gradients, gradients, value=1 - BETA2)
        corrected = 1 - self.beta1**self.step_count
        rate = torch.where(self.adaptive, self.rate / corrected, self.rate)
        divisor = (self.second / (1 - BETA2**self.step_count)).sqrt_().add_(EPSILON)
        divisor = torch.where(self.adaptive, divisor, 1.0)
        if self._any_shrink:
            parameters.mul_(self.keep_share)
        parameters.addcdiv_(self.first * -rate, divisor)
