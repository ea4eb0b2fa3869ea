"""How do the answers to probes become features: as a picture where the probes are points of one, else as they are?"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

from metanet.errors import ModelError
from metanet.nn.dense import Dense

__all__ = ["FlatReader", "GridReader", "Reader", "make_reader"]

_CHANNELS = 16
_SMALL = 32  # outputs that are read one by one; more are summarised
_SUMMARY = 8


class Reader(nn.Module):
    """Answers, standardised as the training networks' are, to features.

    Shapes:
        ``(B, probes, outputs)`` -> ``(B, width)``.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def fit(self, answers: Tensor) -> None:
        """Take centre and spread of these answers; networks with huge ones do not rule them."""
        finite = answers[torch.isfinite(answers)].double()
        if not finite.numel():
            return
        part = finite[:: max(1, finite.numel() // 1_000_000)]
        low, middle, high = (float(part.quantile(q)) for q in (0.05, 0.5, 0.95))
        inner = part.clamp(low - (high - low), high + (high - low))
        self.centre.fill_(middle)
        self.spread.fill_(max(float(inner.std(correction=0)), 1e-6))

    def standardised(self, answers: Tensor) -> Tensor:
        """Of order 1, softly cut at 5."""
        return 5 * torch.tanh((answers - self.centre) / self.spread / 5)


class FlatReader(Reader):
    """All answers behind each other, with their sizes: logarithms of spreads, how sure and how even the shares are.

    Args:
        probes, outputs: what it reads.
        width: number of features.
    """

    def __init__(self, probes: int, outputs: int, width: int) -> None:
        super().__init__()
        self.summary = Dense(outputs, _SUMMARY, gain=1.4) if outputs > _SMALL else None
        told = _SUMMARY if self.summary is not None else outputs
        self.out = Dense(probes * (told + (3 if outputs > 1 else 0)) + 2, width, gain=1.4)

    def forward(self, answers: Tensor) -> Tensor:
        """See the class."""
        z = self.standardised(answers)
        parts = [(z if self.summary is None else self.summary(z)).flatten(1)]
        if answers.shape[-1] > 1:
            share = torch.log_softmax(answers, dim=-1)
            entropy = -(share.exp() * share).sum(-1) / math.log(answers.shape[-1])
            parts += [_log_spread(answers, -1) / 4, share.amax(-1).exp(), entropy]
        flat = answers.flatten(1)
        size = (flat.square().mean(1, keepdim=True) + 1e-12).log() / 8
        parts += [size, _log_spread(answers, 1).mean(-1, keepdim=True) / 4]
        features: Tensor = self.out(torch.cat(parts, dim=1))
        return features


class GridReader(Reader):
    """The answers at the points of a grid as a picture, through a small convolutional network.

    The points may move in training; where they stand next to each other they go on to be neighbours.

    Args:
        side: points along each side.
        outputs: channels of the picture.
        width: number of features.
    """

    def __init__(self, side: int, outputs: int, width: int) -> None:
        super().__init__()
        self.side, wide = side, 2 * _CHANNELS
        last = -(-side // 2) // 2
        # Kernels as matrices: their first weights must come from a generator that is handed in.
        self.first = Dense(9 * outputs, _CHANNELS, gain=1.4)
        self.second = Dense(9 * _CHANNELS, wide, gain=1.4)
        self.third = Dense(9 * wide, wide, gain=1.4)
        self.out = Dense(wide * last * last, width, gain=1.4)

    def forward(self, answers: Tensor) -> Tensor:
        """See the class."""
        x = self.standardised(answers).transpose(1, 2).unflatten(2, (self.side, self.side))
        x = _convolved(self.first, x, 1)
        x = _convolved(self.second, x, 2)
        x = _convolved(self.third, x, 1)
        features: Tensor = self.out(max_pool2d(x, 2).flatten(1))
        return features


def _convolved(kernel: Dense, x: Tensor, stride: int) -> Tensor:
    weight = kernel.weight.unflatten(1, (-1, 3, 3))
    return torch.relu(conv2d(x, weight, kernel.bias, stride, padding=1))


def _log_spread(x: Tensor, axis: int) -> Tensor:
    return (x.var(axis, correction=0) + 1e-12).log() / 2


def make_reader(key: str, probes: int, width: int) -> Reader:
    """The reader that a key names: "grid_1" for pictures of one channel, "flat_10" for ten outputs.

    Raises:
        ModelError: for a key that names none; a model's file may hold anything.
    """
    kind, _, number = key.partition("_")
    outputs = int(number) if number.isascii() and number.isdigit() and len(number) < 7 else 0
    if kind not in ("grid", "flat") or not outputs:
        raise ModelError(f"no reader is called {key!r:.40}")
    return GridReader(math.isqrt(probes), outputs, width) if kind == "grid" else FlatReader(probes, outputs, width)
