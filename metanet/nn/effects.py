"""How much does each weight and each unit do, as far as the network itself can tell? First-order effects on answers.

The network's real operations are run on random smooth inputs, and every weight gets ``w dL/dw`` over the network's
mean size of it (Mozer and Smolensky 1989; Lee et al. 2019, "SNIP", there on data). L is the cross-entropy of the
network's own most likely class, or a random sum of its outputs. No scaling and no sign changes ``w dL/dw``, and
permutations carry it along; it is left out where matrices mix the weights. It holds no parameters: it is computed once
for each network and kept with its bucket.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from metanet.errors import ModelError
from metanet.graph import Bucket, Topology
from metanet.nn.dense import Dense
from metanet.nn.frames.places import views_of
from metanet.nn.rich_inputs import KINDS_OF_INPUT
from metanet.nn.rich_responses import inputs_of
from metanet.nn.structure import Structure

__all__ = ["EFFECTS", "Effects", "effects_of"]

_KINDS, _EACH, _CHUNK = ("field", "blob", "stroke"), 16, 32
_SMALL, _TINY = 1e-6, 1e-30
EFFECTS: tuple[str, ...] = tuple(f"{kind}: {loss}" for kind in _KINDS for loss in ("own class", "random sum"))
"""Names of what is told of each weight."""


def effects_of(bucket: Bucket) -> dict[int, Tensor]:
    """``w dL/dw`` of every weight over the network's mean of its size, by block.

    Args:
        bucket: networks that know their program.

    Shapes:
        returns ``(B, *block shape, len(EFFECTS))`` for blocks of edges and nodes.

    Raises:
        ModelError: for networks whose operations are not known.
    """
    flat = bucket.remember("effects", _effects)
    found, start = {}, 0
    for number in _blocks(bucket.topology):
        value = bucket.value(number)
        size = math.prod(value.shape[1:])
        found[number] = flat[:, start : start + size].reshape(*value.shape, len(EFFECTS))
        start += size
    return found


def levels_of(bucket: Bucket) -> Tensor:
    """Decimal logarithms of the mean size of ``w dL/dw`` over the spread of the answers.

    Shapes:
        returns ``(B, len(EFFECTS))``.
    """
    return bucket.remember("effects", _effects)[:, -1]


def _blocks(topology: Topology) -> list[int]:
    return [*topology.edges, *topology.nodes]


def _effects(bucket: Bucket) -> Tensor:
    places = torch.arange(len(bucket), device=bucket.index.device)
    return torch.cat([_part(bucket.select(rows, rows)) for rows in places.split(_CHUNK)])


@torch.enable_grad()  # type: ignore[untyped-decorator]
def _part(bucket: Bucket) -> Tensor:
    """``(B, weights + 1, len(EFFECTS))``: effects of all blocks behind each other, then the levels."""
    program = bucket.program
    if program is None:
        raise ModelError(
            "effects need the operations of the networks, and the graphs hold none",
            hint="ParameterGraph.build(spec, state, program=program_of(architecture))",
        )
    blocks = _blocks(bucket.topology)
    leaves = {number: bucket.value(number).detach().double().requires_grad_() for number in blocks}
    values = tuple(
        leaves.get(number, None if value is None else value.double()) for number, value in enumerate(bucket.values)
    )
    moved = replace(bucket, values=values, origin=None, cache={})
    state = {name: value.double() if value.is_floating_point() else value for name, value in moved.state().items()}
    given = inputs_of(program.inputs, _EACH)
    rows = [_EACH * KINDS_OF_INPUT.index(kind) + i for kind in _KINDS for i in range(_EACH)]
    outputs = program.run(state, [x[rows].to(bucket.index.device) for x in given])
    answers = torch.cat([y.reshape(len(bucket), len(rows), -1) for y in outputs], dim=-1)
    signs = torch.randn(answers.shape[1:], generator=torch.Generator().manual_seed(len(rows)), dtype=torch.float64)
    columns = []
    for part, sign in zip(answers.split(_EACH, dim=1), signs.to(answers.device).split(_EACH), strict=True):
        spread = (part - part.mean(1, keepdim=True)).detach().square().mean((1, 2)).sqrt().clamp(min=1e-12)
        own = -part.log_softmax(-1).gather(2, part.detach().argmax(-1, keepdim=True)).mean((1, 2))
        random = (part * sign).mean((1, 2)) / spread
        for loss in (own, random):
            slopes = torch.autograd.grad(loss.sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
            columns.append(_relative(bucket.topology, leaves, slopes))
    return torch.stack(columns, dim=-1).to(next(iter(leaves.values())).device).to(bucket.value(blocks[0]).dtype)


def _relative(topology: Topology, leaves: dict[int, Tensor], slopes: tuple[Tensor | None, ...]) -> Tensor:
    views, parts = views_of(topology), []
    for (number, leaf), slope in zip(leaves.items(), slopes, strict=True):
        view = views[number]
        mixed = slope is None or (view is not None and bool(view.turns or view.shifts))
        mixed = mixed or topology.blocks[number].kind.startswith("norm.running")
        parts.append((leaf * (0 if mixed or slope is None else slope)).detach().flatten(1))
    flat = torch.nan_to_num(torch.cat(parts, dim=1), 0, 0, 0).detach()
    mean = flat.abs().mean(1, keepdim=True).clamp(min=_TINY)
    return torch.cat([flat / mean, mean.clamp(min=1e-12).log10() / 3], dim=1)


class Effects(nn.Module):
    """Adds what the effects tell to the features of units and weights.

    Args:
        hidden: width of these features.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        count = len(EFFECTS)
        self.edge = Dense(count, hidden, bias=False)
        self.node = Dense(3 * count, hidden, bias=False)
        self.back = Dense(3 * count, hidden, bias=False)
        self.own = Dense(count, hidden, bias=False)
        self.level = Dense(count, hidden)

    def forward(
        self, structure: Structure, bucket: Bucket, nodes: Tensor, edges: dict[int, Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The features with the effects added.

        Args:
            structure: of the architecture.
            bucket: the networks as they came.
            nodes: features of units.
            edges: features of weights by block; may be empty.

        Shapes:
            nodes: ``(B, nodes, hidden)``. edges: ``(B, target, source, hidden)``. Returns the same.
        """
        topology, found = structure.topology, effects_of(bucket)
        parts = list(nodes.split(structure.sizes, dim=1))
        edges = dict(edges)
        for number, x in found.items():
            block = topology.blocks[number]
            if block.level == "node":
                group = block.groups[0]
                parts[group] = parts[group] + self.own(logarithm(x).mean(2))
                continue
            target, source = block.groups
            parts[target] = parts[target] + self.node(_along(x, 2)) / structure.targets[target] ** 0.5
            parts[source] = parts[source] + self.back(_along(x, 1)) / structure.sources[source] ** 0.5
            if number in edges:
                edges[number] = edges[number] + self.edge(logarithm(x).mean(3))
        level = self.level(levels_of(bucket).to(nodes))
        return torch.cat(parts, dim=1) + level[:, None], edges


def logarithm(x: Tensor) -> Tensor:
    """Sizes of effects on a decimal scale, of order 1."""
    return (x.abs() + _SMALL).log10() / 2


def _along(x: Tensor, axis: int) -> Tensor:
    """What a unit's weights do together: mean size, size of the sum, mean logarithm; ``(B, units, 3 effects)``."""
    axes = (axis, 3)
    return torch.cat([logarithm(x.abs().mean(axes)), logarithm(x.mean(axes)), logarithm(x).mean(axes)], dim=-1)
