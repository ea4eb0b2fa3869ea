"""What does a metanetwork see of the units of perceptrons that it reads: features that do not change with their order?

Units are run on inputs that stand for the data; what they answer there, a few statistics and messages through the
weights say which one each is. All of it is divided by the size of what a unit gets, so that scales do not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from metanet.morph.orders import obs_orders

State = dict[str, Tensor]
Told = Sequence[tuple[Tensor, Tensor]]  # for each space numbers of its units, and the order that they are kept in
PROBES = 256  # inputs whose answers are a unit's features
STATISTICS = 6
HEADS = 4


@dataclass(frozen=True)
class Perceptrons:
    """A stack of perceptrons, layer by layer.

    Shapes:
        weights (B, out, in) and biases (B, out) each
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @classmethod
    def of(cls, states: Mapping[str, Tensor]) -> Perceptrons:
        """Weights and biases in the order of the state."""
        return cls(
            tuple(value for name, value in states.items() if name.endswith("weight")),
            tuple(value for name, value in states.items() if name.endswith("bias")),
        )

    def named(self, like: Mapping[str, Tensor]) -> State:
        """The same as a state with the names of another."""
        weights, biases = iter(self.weights), iter(self.biases)
        return {name: next(weights if name.endswith("weight") else biases) for name in like}


@dataclass(frozen=True)
class Seen:
    """What is known of the units of one space.

    Args:
        pre: what they get, on inputs.
        post: what they give.
        size: root mean square of what each gets, so that scales do not count.
        features: of each, learned.
        keep: the order in which optimal brain surgeon drops them, the last to go first.

    Shapes:
        pre and post (B, inputs, n), size (B, n), features (B, n, d), keep (B, n)
    """

    pre: Tensor
    post: Tensor
    size: Tensor
    features: Tensor
    keep: Tensor


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class Attention(nn.Module):
    """Units of a space look at each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.asks, self.gives = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.asks(self.norm(x)).chunk(3, -1))
        found: Tensor = self.gives(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


class Reader(nn.Module):
    """Features of all hidden units: what they answer to inputs, statistics, and rounds of messages through the weights.

    Args:
        layers: of the perceptrons.
        classes: that they tell apart.
        width: of the features.
        rounds: of messages.
    """

    def __init__(self, layers: int, classes: int, width: int, rounds: int) -> None:
        super().__init__()
        hidden = layers - 1
        self.first = nn.ModuleList(perceptron(2 * PROBES + STATISTICS, width, width) for _ in range(hidden))
        self.classes = nn.Parameter(torch.randn(classes, width))
        self.looks = nn.ModuleList(Attention(width) for _ in range(rounds * hidden))
        self.steps = nn.ModuleList(perceptron(3 * width, width, width) for _ in range(rounds * hidden))
        self.rounds = rounds

    def forward(self, nets: Perceptrons, inputs: Tensor, told: Told | None = None) -> list[Seen]:
        pres, posts = run(nets, inputs)
        sizes = [z.square().mean(1).sqrt() + 1e-12 for z in pres]
        first, keeps = [], []
        for number, (z, h, size) in enumerate(zip(pres[:-1], posts, sizes[:-1], strict=True)):
            numbers, keep = told[number] if told is not None else unit_statistics(z, h, nets.weights[number + 1])
            both = torch.cat([z[:, :PROBES], h[:, :PROBES]], 1) / size.unsqueeze(1)
            first.append(self.first[number](torch.cat([both.mT / math.sqrt(PROBES), numbers], -1)))
            keeps.append(keep)
        x = [*first, self.classes.expand(len(nets.biases[0]), -1, -1)]
        # Weights as they act on units of size one.
        acts = [
            weight * sizes[number].unsqueeze(1) / sizes[number + 1].unsqueeze(2)
            for number, weight in enumerate(nets.weights[1:])
        ]
        steps = iter(zip(self.looks, self.steps, strict=True))
        for _ in range(self.rounds):
            for number, own in enumerate(first):
                look, step = next(steps)
                own = x[number] + look(x[number])
                back = acts[number].mT @ x[number + 1]
                forth = acts[number - 1] @ x[number - 1] if number else torch.zeros_like(own)
                x[number] = own + step(torch.cat([functional.layer_norm(own, own.shape[-1:]), back, forth], -1))
        return [Seen(*each) for each in zip(pres[:-1], posts, sizes[:-1], x[:-1], keeps, strict=True)]


def run(nets: Perceptrons, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What all layers get, and what hidden ones give. Shapes: inputs (V, in) -> (B, V, n) each."""
    pres, posts = [], []
    x = inputs.expand(len(nets.biases[0]), -1, -1)
    for weight, bias in zip(nets.weights, nets.biases, strict=True):
        pres.append(x @ weight.mT + bias.unsqueeze(1))
        x = pres[-1].relu()
        posts.append(x)
    return pres, posts[:-1]


def covariance(x: Tensor, y: Tensor) -> Tensor:
    """Shapes: (B, V, n), (B, V, m) -> (B, n, m)."""
    return (x - x.mean(1, keepdim=True)).mT @ (y - y.mean(1, keepdim=True)) / x.shape[1]


@torch.no_grad()
def unit_statistics(z: Tensor, h: Tensor, reader: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of each unit that do not change with its scale; and the order in which units are dropped, reversed."""
    size = z.square().mean(1).sqrt() + 1e-12
    own = covariance(h, h)
    gram = reader.mT @ reader
    variance = own.diagonal(dim1=1, dim2=2)
    floor = 1e-12 + 1e-6 * variance.mean(1, keepdim=True)
    inverse = torch.linalg.inv(own.double() + torch.diag_embed(1e-3 * variance + floor).double())
    cost = gram.diagonal(dim1=1, dim2=2) / inverse.diagonal(dim1=1, dim2=2).to(gram)
    power = gram.diagonal(dim1=1, dim2=2) * variance
    logs = [(x + 1e-6 * x.mean(1, keepdim=True) + 1e-30).log() for x in (cost, power)]
    logs = [x - x.mean(1, keepdim=True) for x in logs]
    order = obs_orders(own, gram).flip(1)
    rank = order.argsort(1).to(z) / order.shape[1]
    numbers = [z.mean(1) / size, h.mean(1) / size, (z > 0).to(z).mean(1), *logs, rank]
    return torch.stack(numbers, -1), order
