"""How is the cost of an edit told from the two networks alone? Both answer inputs that are learned for this question.

The answers are functions of the networks: whatever element of the group acts on either, they stay the same, and so does
what is told from them. No frame and no graph is needed, and networks of any kind are compared, as long as they read as
many numbers and name the same classes.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from metanet.errors import ModelError
from metanet.nn.rich_inputs import KINDS_OF_INPUT, probe_inputs

__all__ = ["PlanScoreReader"]

_FLOOR = 1e-5
_FEATURES, _POOLED = 8, 3
_FASTER = 10.0  # inputs move on a scale of their own, weights of layers on a smaller one


class PlanScoreReader(nn.Module):
    """What two networks answer to learned inputs -> what real inputs would tell of them, and how sure that is.

    The answer is the logarithm of the divergence on the learned inputs, and that of how far the probabilities differ in
    direction, with a correction that starts at zero: before training this is the score on smooth made-up inputs.

    Args:
        numbers: How many numbers one input has.
        inputs: How many inputs are learned.
        hidden: Features of every input.
        correct: Whether there is a correction; without, two lines are fitted.
        learned: Whether the inputs are learned; without, they stay smooth noise.
        generator: Source of the first weights.

    Raises:
        ModelError: Sizes below 1.

    Shapes:
        before, after (..., inputs, classes) -> (..., 2, 2): log(KL + floor) and the logit of the share of inputs
        decided otherwise, each as a mean and a logarithm of the spread
    """

    start: Tensor

    def __init__(
        self,
        numbers: int,
        inputs: int = 64,
        hidden: int = 32,
        correct: bool = True,
        learned: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("numbers", numbers), ("inputs", inputs), ("hidden", hidden)):
            if value < 1:
                raise ModelError(f"{name}={value}, expected at least 1")
        kinds = len(KINDS_OF_INPUT)
        drawn = probe_inputs((numbers,), -(-inputs // kinds)).float()
        # Some of every kind: they lie one kind behind the other.
        self.register_buffer("start", drawn.unflatten(0, (kinds, -1)).transpose(0, 1).flatten(0, 1)[:inputs].clone())
        self.moves = nn.Parameter(torch.zeros(inputs, numbers), requires_grad=learned)
        self.weights = nn.Parameter(torch.zeros(inputs))
        self.slopes, self.offsets, self.spreads = (nn.Parameter(torch.full((2,), value)) for value in (1.0, 0.0, 0.0))
        self.correct = correct
        if correct:
            self.each = nn.Linear(_FEATURES, hidden)
            self.own = nn.Parameter(torch.zeros(inputs, hidden))
            sizes = (2 * hidden + _POOLED, 2 * hidden, 2 * hidden)
            self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
            self.last = nn.Linear(sizes[-1], 4)
            self._draw(generator)

    def _draw(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            for layer in (self.each, *self.layers):
                layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
                layer.bias.zero_()
            self.last.weight.zero_()
            self.last.bias.zero_()

    def inputs(self, shape: tuple[int, ...]) -> Tensor:
        """The learned inputs, as a network reads them. Shapes: -> (inputs, *shape)."""
        return (self.start + _FASTER * self.moves).reshape(-1, *shape)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """See the class."""
        log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        there, back = (p * (log_p - log_q)).sum(-1).clamp_min(0), (q * (log_q - log_p)).sum(-1).clamp_min(0)
        turned = 1 - (p * q).sum(-1) / (p.square().sum(-1) * q.square().sum(-1)).sqrt()
        share = self.weights.softmax(0)
        lines = torch.stack([((x.clamp_min(0) * share).sum(-1) + _FLOOR).log() for x in (there, turned)], -1)
        mean, spread = self.slopes * lines + self.offsets, self.spreads.expand_as(lines)
        if self.correct:
            found = self._features(before, after, (log_p, log_q, p, q), (there, back, turned))
            seen = gelu(self.each(found) + self.own)
            steep = (((there.square() * share).sum(-1) + _FLOOR**2).sqrt().log() / 3).unsqueeze(-1)
            x = torch.cat([seen.mean(-2), seen.amax(-2), lines / 3, steep], -1)
            for layer in self.layers:
                x = gelu(layer(x))
            corrections = self.last(x).unflatten(-1, (2, 2))
            mean, spread = mean + corrections[..., 0], spread + corrections[..., 1]
        return torch.stack([mean, spread.clamp(-4, 3)], -1)

    def _features(self, before: Tensor, after: Tensor, shares: tuple[Tensor, ...], far: tuple[Tensor, ...]) -> Tensor:
        """What is told of each input, of order 1. Shapes: -> (..., inputs, features)."""
        log_p, log_q, p, q = shares
        there, back, turned = far
        one, two = before - before.mean(-1, keepdim=True), after - after.mean(-1, keepdim=True)
        # The floors keep gradients finite where an edit changes nothing.
        apart = ((one - two).square().sum(-1) + 1e-10).sqrt() / (one.square().sum(-1) + 1e-10).sqrt()
        best = log_p.topk(2, -1)
        kept = log_q.gather(-1, best.indices[..., :1])[..., 0]
        return torch.stack(
            [
                (there + _FLOOR).log() / 3,
                (back + _FLOOR).log() / 3,
                -(p * log_p).sum(-1),
                -(q * log_q).sum(-1),
                1 - turned,
                kept.clamp_min(-8) / 3,
                (best.values[..., 0] - best.values[..., 1]).clamp_max(10) / 3,
                (apart + 1e-3).log(),
            ],
            -1,
        )
