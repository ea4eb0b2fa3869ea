"""What does the metanetwork of `quasi.py` see of a network, and which edits can it ask for?

Learned inputs are run through the network in the balanced gauge; a unit's features are its answers to them, how the
outputs answer to it, its bias, norms and largest weights. One head on
them, of one size for all variants, is read in three ways:

- quasi: one scaling per unit, shared by all that the unit touches (:class:`metanet.nn.quasi.GaugeHead`);
- soft: four scalings per unit, each acting on a copy of the network of its own, and the mean of the copies;
- strict: four numbers per unit that change the network in its frame: gains of what comes in, of the bias and of what
  goes out, without any relation between them, and an offset of the bias.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from quasi_forms import sensitivities
from quasi_zoo import WIDTHS, State, activations, rows
from torch import Tensor, nn
from torch.nn.functional import relu

from metanet.graph import Bucket, ParameterGraph, Topology, collate
from metanet.nn.dense import Dense, Table, make_generator
from metanet.nn.frames import Motion, canonical
from metanet.nn.quasi import GaugeHead, Moved, move
from metanet.nn.structure import structure_of
from symmetry import SymmetrySpec

Variant: TypeAlias = Literal["strict", "quasi", "soft"]
PROBES, HIDDEN, CHANNELS = 128, 64, 4
SPACES = (WIDTHS[1], WIDTHS[2])


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
    """Learned inputs, features of the units, and one head that is read as the variant says.

    Args:
        spec: of the architecture.
        variant: how the head is read.
        start: first values of the learned inputs; without them there are none and nothing to match by.
        seed: of the first weights.

    Shapes:
        start ``(probes, 196)``.
    """

    def __init__(self, spec: SymmetrySpec, variant: Variant, start: Tensor, seed: int) -> None:
        super().__init__()
        self.variant = variant
        state = {name: torch.zeros(info.shape) for name, info in spec.tensors.items()}
        self.like = collate([ParameterGraph.build(spec, state)]).buckets[0]
        self.topology = self.like.topology
        self.structure = structure_of(self.topology)
        self.probes = nn.Parameter(start.clone())
        self.first = nn.ModuleList(Dense(len(start) + WIDTHS[-1] + 7, HIDDEN, gain=1.4) for _ in SPACES)
        self.second = nn.ModuleList(Dense(HIDDEN, HIDDEN, gain=1.4) for _ in SPACES)
        self.layers = Table(len(self.topology.layers), HIDDEN)
        self.head = GaugeHead(HIDDEN, CHANNELS, soft=variant != "quasi", base="own", reach=1.5)
        generator = make_generator(seed)
        for module in self.modules():
            if isinstance(module, Dense | Table):
                module.reset_parameters(generator)
        with torch.no_grad():
            self.head.scale.weight.mul_(0.1)
            self.head.pull.zero_()  # the networks come in the gauge of the frame

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

    def motions(self, state: State, answers: list[Tensor]) -> list[Motion]:
        """The head's elements: one ("quasi") or one per channel."""
        hidden = []
        for x, first, second in zip(self.features(state, answers), self.first, self.second, strict=True):
            y = relu(first(x))
            hidden.append(y + relu(second(y)))
        nodes = state[0].new_zeros(len(state[0]), self.structure.offsets[-1], HIDDEN)
        groups = [n for n, group in enumerate(self.topology.groups) if not group.fixed]
        for group, y in zip(groups, hidden, strict=True):
            nodes[:, self.structure.rows(group)] = y
        layers = self.layers.weight.expand(len(state[0]), -1, -1)
        return self.head(self.structure, nodes, layers, Motion.identity(as_bucket(self.topology, state, self.like)))

    def forward(self, state: State, answers: list[Tensor]) -> tuple[State, Moved]:
        """The edited networks, and the record of it (for "strict": with the identity as alpha)."""
        bucket = as_bucket(self.topology, state, self.like)
        motions = self.motions(state, answers)
        if self.variant != "strict":
            moved = move(bucket, bucket.values, motions)
        else:
            changed = tuple(self._changed(state, [dict(m.log_scales) for m in motions]))
            values = as_bucket(self.topology, changed, self.like).values
            moved = Moved(bucket, values, bucket.values, (Motion.identity(bucket),))
        return as_state(moved.values, self.topology), moved

    def _changed(self, state: State, numbers: list[dict[str, Tensor]]) -> list[Tensor]:
        """Gains and offsets without any relation between them."""
        inner, bias, outer, offset = ([n[f.name] for f in self.topology.spec.factors] for n in numbers)
        w1, b1, w2, b2, w3, b3 = state
        return [
            w1 * inner[0].exp()[..., None],
            b1 * bias[0].exp() + offset[0],
            w2 * inner[1].exp()[..., None] * outer[0].exp()[:, None, :],
            b2 * bias[1].exp() + offset[1],
            w3 * outer[1].exp()[:, None, :],
            b3,
        ]
