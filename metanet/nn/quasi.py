"""Which element of its own group does a network ask to be moved by? Quasi-equivariant and soft layers.

A layer is quasi-equivariant if for every g there is a g' in the group with ``F(g . theta) = g' . F(theta)``. Here

    F(theta) = alpha(theta) . beta(theta),    g' = alpha(g . theta) @ g @ ~alpha(theta)

with beta strict and alpha any map into the group: one element per network, shared by all that is moved. Alpha is
learned where the group is connected: scalings ``exp(reach tanh(.))`` and invertible matrices ``1 + (eps / n) S`` with
``|S_ij| < 1`` and ``eps < 1``, so that the spectral norm of the second term stays below 1. Signs, shifts, permutations
and orthogonal matrices are left alone. The features that alpha is made from are those of the network in its frame f;
there it is an element a, and on the network itself ``~f @ a @ f``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu

from metanet.errors import ModelError
from metanet.graph import Bucket, Topology
from metanet.nn.dense import Dense
from metanet.nn.frames.motion import Motion
from metanet.nn.structure import Structure
from symmetry import Factor, GroupElement, LinearFactor

__all__ = [
    "BASES",
    "GaugeHead",
    "Moved",
    "check_carried",
    "check_mode",
    "learnable",
    "mean_motion",
    "move",
    "relative_square",
]

BASES = ("own", "frame")
MODES = ("strict", "quasi", "soft")
_MOST = 0.95  # of the interval in which a matrix is sure to be invertible


@dataclass(frozen=True, eq=False, repr=False)
class Moved:
    """What a quasi-equivariant or soft layer makes of the networks of a bucket.

    Args:
        bucket: the networks that were read.
        values: block values of the answer F(theta).
        beta: block values of the strict part, which alpha has moved.
        alphas: the elements, one motion per channel; "quasi" has one channel.
    """

    bucket: Bucket
    values: tuple[Tensor | None, ...]
    beta: tuple[Tensor | None, ...]
    alphas: tuple[Motion, ...]

    @property
    def alpha(self) -> Motion:
        """The element of each network; of a soft answer the mean over its channels, which did not make the answer."""
        return self.alphas[0] if len(self.alphas) == 1 else mean_motion(self.alphas)

    def defect(self) -> Tensor:
        """How far each answer is from ``alpha . beta``, over its own norm: ``(B,)``.

        Zero for "quasi". For "soft" it bounds the distance from the orbit from above;
        :func:`metanet.nn.quasi_check.orbit_distance` searches the orbit for a closer element.
        """
        return relative_square(self.values, self.alpha.act(self.beta)).sqrt()

    def witness(self, row: int, after: GroupElement, other: Moved) -> GroupElement:
        """The g' with ``F(g . theta) = g' . F(theta)``, for the network at ``row``, g = ``after`` and ``other`` the
        answer on ``g . theta`` at the same row.
        """
        return other.alpha.element(row) @ after @ ~self.alpha.element(row)


def relative_square(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
    """``||a - b||^2 / ||a||^2`` of each network, over all blocks: ``(B,)``."""
    pairs = [(x.flatten(1), y.flatten(1)) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    away = torch.stack([(x - y).square().sum(1) for x, y in pairs]).sum(0)
    whole = torch.stack([x.square().sum(1) for x, _ in pairs]).sum(0)
    return away / whole.clamp(min=torch.finfo(whole.dtype).tiny)


def mean_motion(motions: Sequence[Motion]) -> Motion:
    """Geometric mean of the scalings and mean of the matrices of motions that agree in all that is discrete."""
    first, count = motions[0], len(motions)
    return Motion(
        first.topology,
        first.size,
        {name: torch.stack([m.log_scales[name] for m in motions]).sum(0) / count for name in first.log_scales},
        first.flips,
        {name: torch.stack([m.matrices[name] for m in motions]).sum(0) / count for name in first.matrices},
        first.shifts,
    )


def move(bucket: Bucket, beta: Sequence[Tensor | None], alphas: Sequence[Motion]) -> Moved:
    """Let alpha act on beta; with several channels each acts by itself, and the mean of what they make is the answer.

    Shapes:
        beta: as ``Bucket.values``.
    """
    acted = [alpha.act(beta) for alpha in alphas]
    values = tuple(
        None if first is None else first if len(acted) == 1 else torch.stack([a[i] for a in acted]).mean(0)  # type: ignore[misc]
        for i, first in enumerate(acted[0])
    )
    return Moved(bucket, values, tuple(beta), tuple(alphas))


def check_mode(mode: str, base: str, change: bool, possible: bool) -> None:
    """Refuse a mode that is unknown or does not fit the rest of the options.

    Raises:
        ModelError: saying which.
    """
    if mode not in MODES:
        raise ModelError(f"mode={mode!r} is unknown, expected one of {', '.join(MODES)}")
    if base not in BASES:
        raise ModelError(f"base={base!r} is unknown, expected one of {', '.join(BASES)}")
    if mode == "strict" and (base != "own" or not change):
        raise ModelError(f"base={base!r}, change={change} with mode='strict'", hint="use mode='quasi'")
    if mode != "strict" and not possible:
        raise ModelError(
            f"mode={mode!r} answers with whole networks, moved in their orbit",
            hint="use level='state', symmetry='full' and outputs=1",
        )


@lru_cache(maxsize=1024)
def learnable(topology: Topology) -> tuple[tuple[Factor, ...], tuple[LinearFactor, ...]]:
    """The scale factors and the spaces of invertible matrices of an architecture that alpha may move along.

    Those that also act on tensors which the graph only carries stay neutral: an element must act on all it touches.
    """
    spec = topology.spec
    carried = {topology.blocks[number].tensor for number in topology.raw}
    names = {name for group in topology.groups for name in (group.name, *group.spaces)}

    def whole(factor: Factor | LinearFactor) -> bool:
        return not any(slot.tensor in carried for slot in factor.slots)

    scales = [f for f in spec.factors if f.kind == "scale" and whole(f) and (f.space is None or f.space in names)]
    return tuple(scales), tuple(f for f in spec.linear if f.kind == "linear" and whole(f) and f.space in names)


def check_carried(topology: Topology) -> None:
    """Refuse to answer from the frame where the frame would act on tensors that the graph only carries.

    Raises:
        ModelError: with the tensor.
    """
    spec = topology.spec
    touched = {slot.tensor for factor in spec.factors for slot in factor.slots}
    touched |= {slot.tensor for factor in spec.linear for slot in factor.slots}
    touched |= {step.tensor for shift in spec.shifts for step in shift.steps}
    for number in topology.raw:
        block = topology.blocks[number]
        if block.tensor in touched:
            raise ModelError(
                f"base='frame' moves {block.tensor!r}, which the graph only carries: {block.reason}",
                hint="use base='own'",
            )


def unit_features(structure: Structure, nodes: Tensor, space: str) -> Tensor:
    """Node features of the units of a space or named fixed axis, as an array over them.

    Where nodes stand for units of further spaces as well, the mean over those.

    Shapes:
        nodes: ``(B, nodes, hidden)``; returns ``(B, *spec.array_shape(space), hidden)``.
    """
    topology = structure.topology
    spec = topology.spec
    wanted = [*spec.within.get(space, ()), space]
    fitting = [
        number
        for number, group in enumerate(topology.groups)
        if set(wanted) <= set(group.spaces) or (group.fixed and group.name == space)
    ]
    if not fitting:
        raise ModelError(f"no nodes stand for the units of {space!r}")
    number = min(fitting, key=lambda i: len(topology.groups[i].spaces))
    found = nodes[:, structure.rows(number)]
    spaces = topology.groups[number].spaces
    if spaces in ((), (space,)):
        return found
    found = found.unflatten(1, [spec.sizes[name] for name in spaces])
    rest = [1 + i for i, name in enumerate(spaces) if name not in wanted]
    found = found.mean(rest) if rest else found
    left = [name for name in spaces if name in wanted]
    return found.permute(0, *(1 + left.index(name) for name in wanted), found.ndim - 1)


class GaugeHead(nn.Module):
    """The element alpha of every network, from features of the network in its frame.

    A unit's log-scale is read from its node and from the layer nodes of the tensors on which the factor acts, weighted
    by its exponents; a matrix entry S_ij from the nodes of both units. Besides, alpha may depend on the gauge in which
    the network came: the frame's own log-scales and matrices enter with a learned weight (``pull``), so that a network
    and its copy in another gauge are moved differently.

    Args:
        hidden: width of the features.
        channels: numbers that are read per unit. "quasi" averages them to one element; "soft" makes one element each.
        soft: one element per channel instead of one for all.
        base: "own": alpha moves the network from where it stands; "frame": from its canonical form, so that the answer
            does not depend on the gauge in which the network came.
        reach: scalings stay between ``exp(-reach)`` and ``exp(reach)`` (times the frame's, with base "frame").

    Raises:
        ModelError: for an unknown base or a reach that is not positive.
    """

    def __init__(
        self, hidden: int, channels: int = 4, soft: bool = False, base: str = "own", reach: float = 1.5
    ) -> None:
        super().__init__()
        if base not in BASES:
            raise ModelError(f"base={base!r} is unknown, expected one of {', '.join(BASES)}")
        if not reach > 0:
            raise ModelError(f"reach={reach!r}, expected a positive number")
        self.hidden, self.channels, self.soft, self.base, self.reach = hidden, channels, soft, base, reach
        self.unit = Dense(hidden, hidden, gain=1.4)
        self.told = Dense(hidden, hidden, bias=False)
        self.scale = Dense(hidden, channels, gain=0.3)
        self.left = Dense(hidden, channels * hidden)
        self.right = Dense(hidden, channels * hidden)
        self.rho = nn.Parameter(torch.ones(2))
        self.pull = nn.Parameter(torch.full((2,), 0.3))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The largest log-scale, and eps of the matrices."""
        size = torch.tanh(self.rho)
        return self.reach * size[0], _MOST * size[1]

    def forward(self, structure: Structure, nodes: Tensor, layers: Tensor, frame: Motion) -> list[Motion]:
        """One motion per channel ("soft") or one for all, acting on the networks as they came.

        Args:
            structure: of the topology.
            nodes: features of the networks in their frame.
            layers: the same of their tensors.
            frame: what brought them there.

        Shapes:
            nodes: ``(B, nodes, hidden)``. layers: ``(B, layers, hidden)``.

        Raises:
            ModelError: with base "frame", where tensors that the graph only carries would have to move.
        """
        if self.base == "frame":
            check_carried(structure.topology)
        inside = list(self._inside(structure, nodes, layers, frame))
        back = ~frame
        return [a @ frame if self.base == "frame" else back @ a @ frame for a in inside]

    def _inside(self, structure: Structure, nodes: Tensor, layers: Tensor, frame: Motion) -> Iterator[Motion]:
        """The elements in the coordinates of the frame."""
        x, y = layer_norm(nodes, (self.hidden,)), layer_norm(layers, (self.hidden,))
        scales, linear = learnable(structure.topology)
        reach, eps = self.bounds
        logs, matrices = {}, {}
        for factor in scales:
            raw = self._scales(structure, factor, x, y)
            pull = self._pull(frame.log_scales.get(factor.name), 0)
            logs[factor.name] = reach * torch.tanh(raw + pull)
        for space in linear:
            raw = self._matrices(unit_features(structure, x, space.space))
            pull = self._pull(frame.matrices.get(space.space), 1)
            if isinstance(pull, Tensor):
                pull = pull - self.pull[1] * torch.eye(space.size, dtype=x.dtype, device=x.device)
            entries = eps / space.size * torch.tanh(raw + pull)
            matrices[space.space] = torch.eye(space.size, dtype=x.dtype, device=x.device) + entries
        for channel in range(self.channels if self.soft else 1):
            pick = (lambda v: v[channel]) if self.soft else (lambda v: v.mean(0))  # noqa: B023  # used at once
            yield Motion(
                frame.topology,
                frame.size,
                {name: pick(value) for name, value in logs.items()},
                {},
                {name: pick(value) for name, value in matrices.items()},
                {},
            )

    def _pull(self, gauge: Tensor | None, which: int) -> Tensor | float:
        """What the gauge in which the network came adds; nothing where the answer starts from the frame."""
        return 0.0 if gauge is None or self.base == "frame" else self.pull[which] * gauge.to(self.pull)

    def _scales(self, structure: Structure, factor: Factor, x: Tensor, y: Tensor) -> Tensor:
        """``(channels, B, *units)``."""
        layer_of = {layer.name: i for i, layer in enumerate(structure.topology.layers)}
        weights = y.new_zeros(y.shape[1])
        for slot in factor.slots:
            weights[layer_of[structure.topology.owners[slot.tensor]]] += float(slot.exponent) / len(factor.slots)
        told = self.told(torch.einsum("l,blh->bh", weights, y))
        if factor.space is None:
            hidden = told
        else:
            units = self.unit(unit_features(structure, x, factor.space))
            hidden = units + told.reshape(len(told), *[1] * (units.ndim - 2), self.hidden)
        return self.scale(relu(hidden)).movedim(-1, 0)

    def _matrices(self, units: Tensor) -> Tensor:
        """``(channels, B, *outer, n, n)`` from the nodes of the units."""
        left, right = (part(units).unflatten(-1, (self.channels, self.hidden)) for part in (self.left, self.right))
        return torch.einsum("...ich,...jch->c...ij", left, right) / self.hidden**0.5

    def extra_repr(self) -> str:
        return (
            f"hidden={self.hidden}, channels={self.channels}, soft={self.soft}, base={self.base!r}, reach={self.reach}"
        )
