"""Which positive scalings bring the networks of a bucket to a common gauge? Batched, and differentiable in the weights.

In the order of the data flow each unit's incoming norm becomes 1: the norm of those entries of its incoming tensors
whose other scale factors are settled, weight and bias together. Variances come before offsets, so that a batch norm
stands at variance 1 and gain 1. What has no incoming entry waits until its outgoing norm can decide; what nothing
determines keeps its scale. Scalings keep zeros, so which entries count is the same on the whole orbit, and the result
is equivariant: ``x(g theta) = x(theta) - x_g`` up to scalings that change nothing.

All norms are taken in logarithms with the largest entry divided out: weights of 1e-15 are as good as any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from metanet.graph import Topology
from metanet.nn.frames.places import Place, View, onto, views_of
from symmetry.frames.parts import make_parts
from symmetry.frames.scales import canonical_scales

__all__ = ["Scales", "settle_scales"]

ROUNDS = 8  # of balancing; any number is equivariant, more are nearer to equal norms
_NOTHING = -1e30


@dataclass(frozen=True, slots=True)
class _Group:
    """Places of one factor with one exponent, whose entries make one norm."""

    exponent: float
    places: tuple[tuple[int, Place], ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """In which order the factors of a topology are settled, and by what.

    Args:
        order: scale factors along the data flow.
        groups: by factor five lists, tried in turn: incoming weights, variances, all that comes in, what goes out, and
            buffers.
        pairs: directions along which variances stay as they are, for balancing: factors that move together.
    """

    order: tuple[str, ...]
    groups: dict[str, tuple[tuple[_Group, ...], ...]]
    pairs: tuple[tuple[str, ...], ...]


@lru_cache(maxsize=4096)
def _plan(topology: Topology) -> _Plan:
    spec, views = topology.spec, views_of(topology)
    general = {factor.space for factor in spec.linear if factor.kind == "linear"}
    names = [factor.name for factor in spec.factors if factor.kind == "scale"]
    keys: dict[str, tuple[int, int]] = {}
    groups: dict[str, tuple[tuple[_Group, ...], ...]] = {}
    for rank, name in enumerate(names):
        ranks: dict[int, int] = {}
        classes: tuple[dict[float, list[tuple[int, Place]]], ...] = ({}, {}, {}, {}, {})
        for number, view in enumerate(views):
            if view is None or any(turn.space in general for turn in view.turns):
                continue
            for place in view.scales:
                if place.factor != name or any(set(place.dims) & set(turn.dims) for turn in view.turns):
                    continue
                block = topology.blocks[number]
                order = topology.layers[block.layer].order
                for which in _classes(place, block.kind, spec.tensors[block.tensor].buffer, view.offset is not None):
                    classes[which].setdefault(place.exponent, []).append((number, place))
                    ranks[which] = min(order, ranks.get(which, order))
        groups[name] = tuple(
            tuple(_Group(power, tuple(places)) for power, places in found.items()) for found in classes
        )
        keys[name] = (ranks.get(0, ranks.get(2, min(ranks.values(), default=0))), rank)
    return _Plan(tuple(sorted(names, key=lambda name: keys[name])), groups, _pairs(topology, names, views))


def _classes(place: Place, kind: str, buffer: bool, offset: bool) -> tuple[int, ...]:
    if offset:
        return (1,)
    if buffer:
        return (4,)
    if place.exponent < 0:
        return (3,)
    return (2,) if kind == "norm.bias" else (0, 2)


def _pairs(topology: Topology, names: Sequence[str], views: Sequence[View | None]) -> tuple[tuple[str, ...], ...]:
    """Each factor that can be balanced, with the gains that move with it so that no variance changes."""
    gains = {
        place.factor
        for number, view in enumerate(views)
        if view is not None and topology.blocks[number].kind == "norm.weight"
        for place in view.scales
    }
    variances = [view.scales for view in views if view is not None and view.offset is not None]
    found = []
    for name in names:
        together = [name]
        fits = True
        for scales in variances:
            mine = sum(place.exponent for place in scales if place.factor == name)
            if mine:
                partner = [p.factor for p in scales if p.factor in gains and p.factor != name and p.exponent == -mine]
                fits = fits and mine < 0 and len(partner) == 1
                together += partner
        if fits:
            found.append(tuple(dict.fromkeys(together)))
    return tuple(found)


class Scales:
    """Log-scales of the networks of one bucket while they are being settled.

    Args:
        topology: the architecture.
        values: the block values.

    Attributes:
        logs: by factor, the log-scales so far, 0 where open.
        settled: by factor, whether a unit's scale is settled.
    """

    def __init__(self, topology: Topology, values: Sequence[Tensor | None]) -> None:
        spec = topology.spec
        self.topology, self.views, self.plan = topology, views_of(topology), _plan(topology)
        like = next(value for value in values if value is not None)
        self.size = len(like)
        self.blocks = {
            number: (view, value.reshape(self.size, *view.sizes))
            for number, (value, view) in enumerate(zip(values, self.views, strict=True))
            if value is not None and view is not None and view.scales
        }
        spaces = {factor.name: factor.space for factor in spec.factors}
        shapes = {name: (self.size, *spec.array_shape(spaces[name])) for name in self.plan.order}
        self.logs = {name: like.new_zeros(shape) for name, shape in shapes.items()}
        self.settled = {
            name: torch.zeros(shape, dtype=torch.bool, device=like.device) for name, shape in shapes.items()
        }
        self.complete: set[str] = set()
        self.peaks: dict[int, Tensor] = {}

    def sweep(self) -> None:
        """Settle all that can be settled."""
        self._pass((0, 1, 2))
        while len(self.complete) < len(self.plan.order):
            if not self._pass((0, 1, 2)) and not self._pass((3,)) and not self._pass((4,)):
                return

    def _pass(self, classes: tuple[int, ...]) -> bool:
        progress = False
        for name in self.plan.order:
            for which in classes:
                for group in self.plan.groups[name][which]:
                    if name not in self.complete:
                        progress |= self._try(name, group)
        return progress

    def _try(self, name: str, group: _Group) -> bool:
        norm, alive = self.log_norm(group)
        free = alive & ~self.settled[name]
        if not bool(free.any()):
            return False
        self.logs[name] = torch.where(free, -norm / group.exponent, self.logs[name])
        self.settled[name] = self.settled[name] | free
        if bool(self.settled[name].all()):
            self.complete.add(name)
        return True

    def log_norm(self, group: _Group) -> tuple[Tensor, Tensor]:
        """Logarithm of the norm of each unit's entries whose other factors are settled, and whether there are any.

        Shapes:
            returns ``(B, *array shape)`` twice.
        """
        parts = [self._norm(number, place) for number, place in group.places]
        if len(parts) == 1:
            norm = parts[0]
        else:
            norm = torch.logsumexp(2 * torch.stack(parts), dim=0) / 2
        return norm, norm > _NOTHING / 2

    def _norm(self, number: int, place: Place) -> Tensor:
        view, value = self.blocks[number]
        ndim = len(view.sizes)
        if view.offset is not None:
            value = value + view.offset
        if number not in self.peaks:
            peak = value.detach().abs().flatten(1).amax(1)
            self.peaks[number] = torch.where(peak > 0, peak, torch.ones_like(peak))
        peak = self.peaks[number].reshape(-1, *[1] * ndim)
        logs, mask = None, None
        for other in view.scales:
            if other is not place:
                log = onto(self.logs[other.factor], other.dims, ndim) * other.exponent
                logs = log if logs is None else logs + log
                if other.factor not in self.complete:
                    here = onto(self.settled[other.factor], other.dims, ndim)
                    mask = here if mask is None else mask & here
        if logs is None:
            value, taken = value / peak, peak.log()
        else:
            most = logs.detach().reshape(len(logs), -1).amax(1).reshape(peak.shape)
            factor = (logs - most).exp() / peak
            value = value * (factor if mask is None else factor * mask)
            taken = most + peak.log()
        rest = [1 + dim for dim in range(ndim) if dim not in place.dims]
        norm = torch.linalg.vector_norm(value, dim=rest, keepdim=True) if rest else value.abs()
        tiny = torch.finfo(norm.dtype).tiny
        found = torch.where(norm > 0, norm.clamp_min(tiny).log() + taken, norm.new_full((), _NOTHING))
        kept = found.permute(0, *(1 + dim for dim in place.dims), *rest)
        return kept.reshape(kept.shape[: 1 + len(place.dims)])

    def stuck(self) -> Tensor:
        """Networks with an open unit that some entry could still settle together with other open units: ``(B,)``."""
        found = torch.zeros(self.size, dtype=torch.bool, device=next(iter(self.logs.values())).device)
        for name in self.plan.order:
            if name in self.complete:
                continue
            for view, value in self.blocks.values():
                for place in view.scales:
                    if place.factor == name:
                        rest = [1 + dim for dim in range(len(value.shape) - 1) if dim not in place.dims]
                        alive = (value != 0).sum(rest, keepdim=True) > 0 if rest else value != 0
                        free = alive & ~onto(self.settled[name], place.dims, len(value.shape) - 1)
                        found = found | free.flatten(1).any(1)
        return found

    def balance(self) -> None:
        """Rounds that make incoming and outgoing norms equal, where a unit has both."""
        pairs = [pair for pair in self.plan.pairs if self._sides(pair)]
        for _ in range(ROUNDS if pairs else 0):
            for pair in pairs:
                into, out = (self._side(pair, which) for which in (True, False))
                move = torch.where((into > _NOTHING / 2) & (out > _NOTHING / 2), (out - into) / 2, 0.0)
                for name in pair:
                    self.logs[name] = self.logs[name] + move

    def _sides(self, pair: tuple[str, ...]) -> bool:
        shapes = {self.logs[name].shape for name in pair}
        groups = [group for name in pair for which in (2, 3) for group in self.plan.groups[name][which]]
        return len(shapes) == 1 and {group.exponent for group in groups} == {1.0, -1.0}

    def _side(self, pair: tuple[str, ...], into: bool) -> Tensor:
        """Logarithm of the norm of all that comes in, or of all that goes out, where the gauge now stands."""
        parts = []
        for name in pair:
            for group in self.plan.groups[name][2 if into else 3]:
                parts.append(self.log_norm(group)[0] + group.exponent * self.logs[name])
        return torch.logsumexp(2 * torch.stack(parts), dim=0) / 2


def settle_scales(topology: Topology, values: Sequence[Tensor | None], balanced: bool) -> dict[str, Tensor]:
    """Log-scales that bring the networks to the gauge.

    Networks in which open units hold each other (each entry has two open ends, as between units that nothing else
    reads or writes) are settled by :func:`symmetry.canonicalize`'s method one by one, without gradient.

    Args:
        topology: the architecture.
        values: its block values.
        balanced: make incoming and outgoing norms equal instead of incoming norms 1.
    """
    scales = Scales(topology, values)
    if not scales.plan.order:
        return {}
    scales.sweep()
    if len(scales.complete) < len(scales.plan.order):
        for row in scales.stuck().nonzero().reshape(-1).tolist():
            found = _alone(topology, values, row)
            for name, logs in found.items():
                chosen = torch.arange(scales.size, device=scales.logs[name].device) == row
                where = chosen.reshape(-1, *[1] * logs.ndim)
                scales.logs[name] = torch.where(where, logs.to(scales.logs[name]), scales.logs[name])
        for name in scales.plan.order:  # what nothing determines keeps its scale and counts for the others
            scales.settled[name] = torch.ones_like(scales.settled[name])
            scales.complete.add(name)
    if balanced:
        scales.balance()
    return scales.logs


def _alone(topology: Topology, values: Sequence[Tensor | None], row: int) -> dict[str, Tensor]:
    """The unit gauge of one network, by the library's own method."""
    spec = topology.spec
    state = {
        name: torch.zeros(info.shape, dtype=torch.float64 if "float" in info.dtype else torch.int64)
        for name, info in spec.tensors.items()
    }
    for block, value in zip(topology.blocks, values, strict=True):
        if value is not None:
            block.region.write(value[row].detach().to("cpu", torch.float64), state[block.tensor])
    return canonical_scales(spec, make_parts(spec, state), "unit")
