"""What does the metanetwork of `quasi.py` see of a network, and which edits can it ask for?

Learned inputs are run through the network in the gauge that the job starts from; a unit's features are its answers to
them, how the outputs answer to it, its bias, norms and largest weights. A head reads four numbers per unit from them
(and from the features of the unit that it is matched with, where two networks are merged). They mean

- quasi: one scaling per unit, their mean, shared by all that the unit touches;
- soft: four scalings per unit, each acting on a copy of the network of its own, and the mean of the copies;
- strict: gains of what comes in, of the bias and of what goes out, without any relation between them, and an offset of
  the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from quasi_forms import scaled, sensitivities
from quasi_zoo import WIDTHS, State, activations, rows
from torch import Tensor, nn
from torch.nn.functional import relu

from metanet.graph import Bucket, ParameterGraph, Topology, collate
from metanet.nn.dense import Dense, make_generator
from metanet.nn.frames import Motion, canonical
from metanet.nn.quasi import Moved, move
from metanet.nn.quasi_refine import GaugeDescent
from symmetry import SymmetrySpec

Variant: TypeAlias = Literal["strict", "quasi", "soft"]
PROBES, HIDDEN, NUMBERS, REACH = 128, 64, 4, 1.5
SPACES = (WIDTHS[1], WIDTHS[2])
# Of the steps down the slope where networks are merged; each size is learned from there.
DESCENT_STEPS, DESCENT_SIZE = 8, 0.08
# Answers, how the outputs answer, and seven numbers on sizes.
FEATURES = PROBES + WIDTHS[-1] + 7


def as_bucket(topology: Topology, state: State, like: Bucket) -> Bucket:
    """A stack of networks as a bucket."""
    by_name = dict(zip(like.topology.spec.tensors, state, strict=True))
    values = tuple(block.region.batched(len(state[0])).read(by_name[block.tensor]) for block in topology.blocks)
    return Bucket(topology, torch.arange(len(state[0])), values)


def as_state(moved: tuple[Tensor | None, ...], topology: Topology) -> State:
    """Block values as a stack of networks."""
    found = {
        block.tensor: block.region.batched(len(value)).restore(value)
        for block, value in zip(topology.blocks, moved, strict=True)
        if value is not None
    }
    return tuple(found[name] for name in topology.spec.tensors)


def balanced(state: State, spec: SymmetrySpec) -> State:
    """Every network in the balanced gauge of the library."""
    graph = ParameterGraph.build(spec, dict(zip(spec.tensors, rows(state, 0), strict=True)))
    bucket = as_bucket(graph.topology, state, collate([graph]).buckets[0])
    return as_state(canonical(bucket, "balanced")[1].values, graph.topology)


class Reader(nn.Module):
    """Learned inputs, features of the units, a head that is read as the variant says, and learned step sizes.

    Args:
        spec: of the architecture.
        variant: what the four numbers per unit mean.
        start: first values of the learned inputs.
        seed: of the first weights.

    Shapes:
        start ``(PROBES, 196)``.
    """

    def __init__(self, spec: SymmetrySpec, variant: Variant, start: Tensor, seed: int) -> None:
        super().__init__()
        self.variant = variant
        state = {name: torch.zeros(info.shape) for name, info in spec.tensors.items()}
        self.like = collate([ParameterGraph.build(spec, state)]).buckets[0]
        self.topology = self.like.topology
        self.names = [factor.name for factor in spec.factors]
        self.probes = nn.Parameter(start.clone())
        generator = make_generator(seed)
        self.own, self.pair = (
            nn.ModuleList(
                nn.ModuleList([Dense(size, HIDDEN, gain=1.4), Dense(HIDDEN, HIDDEN, gain=1.4), Dense(HIDDEN, NUMBERS)])
                for _ in SPACES
            )
            for size in (FEATURES, 2 * FEATURES)
        )
        for module in self.modules():
            if isinstance(module, Dense):
                module.reset_parameters(generator)
        with torch.no_grad():
            for head in (*self.own, *self.pair):
                head[-1].weight.mul_(0.03)  # the networks come in a good gauge
        self.descent = GaugeDescent(DESCENT_STEPS, DESCENT_SIZE)

    def answers(self, state: State) -> list[Tensor]:
        """What the hidden layers and the outputs answer to the learned inputs."""
        return activations(state, self.probes)

    def features(self, state: State, answers: list[Tensor]) -> list[Tensor]:
        """``(n, units, features)`` of both hidden layers."""
        found = []
        out = sensitivities(state, answers)
        backs = ((state[4] @ state[2]).mT / 2, state[4].mT)
        for layer, (h, back) in enumerate(zip(answers[:2], backs, strict=True)):
            size = (h.square().mean(1) + 1e-4).sqrt()
            weight, bias = state[2 * layer], state[2 * layer + 1]
            norms = [size.log(), weight.norm(dim=-1).clamp_min(1e-4).log(), out[layer].log(), bias, h.mean(1)]
            for number, axis in ((2 * layer, 2), (2 * layer + 2, 1)):
                largest = state[number].abs().amax(axis).clamp_min(1e-4)
                norms.append((largest / largest.amax(1, keepdim=True)).log())
            h = h.mT / size.mean(1)[:, None, None]
            back = back / (back.square().mean((1, 2), keepdim=True).sqrt() + 1e-4)
            found.append(torch.cat([h, back, torch.stack(norms, dim=-1)], dim=-1))
        return found

    def alphas(self, own: list[Tensor], other: list[Tensor] | None = None) -> list[Motion]:
        """The head's elements for networks with these features, one ("quasi") or one per number.

        Args:
            own: features of the networks.
            other: features of the networks they are merged with, units in matched order.
        """
        told = []
        for layer, x in enumerate(own):
            numbers = _read(self.own[layer], x)
            if other is not None:
                y = other[layer]
                numbers = numbers + _read(self.pair[layer], torch.cat([x, y], dim=-1))
                if self.variant == "quasi":
                    # An element that moves both alike cannot be seen in their mean: only what is odd in the pair can.
                    back = _read(self.own[layer], y) + _read(self.pair[layer], torch.cat([y, x], dim=-1))
                    numbers = numbers - back
            if self.variant == "quasi":
                numbers = numbers.mean(-1, keepdim=True)
            told.append(REACH * torch.tanh(numbers / REACH))
        return [self.motion([numbers[..., i] for numbers in told]) for i in range(told[0].shape[-1])]

    def motion(self, logs: Sequence[Tensor]) -> Motion:
        """Log-scales of both hidden layers as elements of the group."""
        return Motion(self.topology, len(logs[0]), dict(zip(self.names, logs, strict=True)), {}, {}, {})

    def logs(self, motion: Motion) -> list[Tensor]:
        """The log-scales of both hidden layers."""
        return [motion.log_scales[name] for name in self.names]

    def edit(self, state: State, alphas: Sequence[Motion]) -> State:
        """The edited networks."""
        logs = [self.logs(motion) for motion in alphas]
        if self.variant == "quasi":
            return scaled(state, *logs[0])
        w1, b1, w2, b2, w3, b3 = state
        if self.variant == "strict":
            inner, bias, outer, offset = logs
            return (
                w1 * inner[0].exp()[..., None],
                b1 * bias[0].exp() + offset[0],
                w2 * inner[1].exp()[..., None] * outer[0].exp()[:, None],
                b2 * bias[1].exp() + offset[1],
                w3 * outer[1].exp()[:, None],
                b3,
            )
        # The mean of the copies without making them: every weight times the mean of what the copies multiply it by.
        a, b = (torch.stack([log[layer] for log in logs], dim=-1) for layer in (0, 1))
        first, second = a.exp().mean(-1), b.exp().mean(-1)
        between = b.exp() @ (-a).exp().mT / a.shape[-1]
        return (w1 * first[..., None], b1 * first, w2 * between, b2 * second, w3 * (-b).exp().mean(-1)[:, None], b3)

    def record(self, state: State, alphas: Sequence[Motion]) -> Moved:
        """The edit of "quasi" or "soft" as the library makes and checks it."""
        bucket = as_bucket(self.topology, state, self.like)
        return move(bucket, bucket.values, alphas)


def _read(head: nn.Module, x: Tensor) -> Tensor:
    first, second, last = head
    y = relu(first(x))
    return last(y + relu(second(y)))
