"""Which positive scalings bring the networks of a bucket to a common gauge? Batched, and differentiable in the weights.

In the order of the data flow each unit's incoming norm becomes 1: the norm of those entries of its incoming tensors
whose other scale factors are settled, weight and bias together. Variances come before offsets, so that a batch norm
stands at variance 1 and gain 1. What has no incoming entry waits until its outgoing norm can decide; what nothing
determines keeps its scale. Scalings keep zeros, so which entries count is the same on the whole orbit, and the result
is equivariant: ``x(g theta) = x(theta) - x_g`` up to scalings that change nothing.

All norms are sums of exponentials of logarithms, in float64: weights of 1e-15 are as good as any.
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
_NOTHING = -1e30  # stands for the logarithm of 0, and has finite gradients
_LARGEST = 300.0  # logarithm of a square that balancing starts from, so that products stay in range


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
            number: (view, _log_squares(view, value))
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
        norm = parts[0] if len(parts) == 1 else torch.logsumexp(2 * torch.stack(parts), dim=0) / 2
        return norm, norm > _NOTHING / 10

    def _norm(self, number: int, place: Place) -> Tensor:
        view, logs = self.blocks[number]
        ndim = len(view.sizes)
        for other in view.scales:
            if other is not place:
                logs = logs + 2 * other.exponent * onto(self.logs[other.factor], other.dims, ndim)
                if other.factor not in self.complete:
                    logs = torch.where(onto(self.settled[other.factor], other.dims, ndim), logs, 2 * _NOTHING)
        rest = _rest(view, place)
        return _in_front(place.dims, (torch.logsumexp(logs, rest, keepdim=True) if rest else logs) / 2)

    def stuck(self) -> Tensor:
        """Networks with an open unit that some entry could still settle together with other open units: ``(B,)``."""
        found = torch.zeros(self.size, dtype=torch.bool, device=next(iter(self.logs.values())).device)
        for name in self.plan.order:
            if name in self.complete:
                continue
            for view, logs in self.blocks.values():
                for place in view.scales:
                    if place.factor == name:
                        alive = _sum((logs > _NOTHING).double(), view, place) > 0
                        free = alive & ~_in_front(place.dims, onto(self.settled[name], place.dims, len(view.sizes)))
                        found = found | free.flatten(1).any(1)
        return found

    def balance(self) -> None:
        """Rounds that make incoming and outgoing norms equal, where a unit has both.

        From where the gauge now stands, squares are of order 1: the rounds multiply instead of adding logarithms.
        """
        pairs = [pair for pair in self.plan.pairs if self._sides(pair)]
        names = {name for pair in pairs for name in pair}
        squares = {
            number: self._squares(view, logs)
            for number, (view, logs) in self.blocks.items()
            if any(place.factor in names for place in view.scales)
        }
        moves = {name: torch.zeros_like(self.logs[name]) for name in names}
        for _ in range(ROUNDS if pairs else 0):
            for pair in pairs:
                into, out = (self._side(pair, which, squares, moves) for which in (True, False))
                move = torch.where((into > 0) & (out > 0), (_log(out) - _log(into)) / 4, 0.0)
                for name in pair:
                    moves[name] = moves[name] + move
        for name, move in moves.items():
            self.logs[name] = self.logs[name] + move

    def _squares(self, view: View, logs: Tensor) -> Tensor:
        for place in view.scales:
            logs = logs + 2 * place.exponent * onto(self.logs[place.factor], place.dims, len(view.sizes))
        return logs.clamp(max=_LARGEST).exp()

    def _sides(self, pair: tuple[str, ...]) -> bool:
        shapes = {self.logs[name].shape for name in pair}
        groups = [group for name in pair for which in (2, 3) for group in self.plan.groups[name][which]]
        return len(shapes) == 1 and {group.exponent for group in groups} == {1.0, -1.0}

    def _side(self, pair: tuple[str, ...], into: bool, squares: dict[int, Tensor], moves: dict[str, Tensor]) -> Tensor:
        """Sum of the squares of all that comes in, or of all that goes out, after the moves."""
        total = torch.zeros_like(moves[pair[0]])
        for name in pair:
            for group in self.plan.groups[name][2 if into else 3]:
                for number, place in group.places:
                    view = self.blocks[number][0]
                    value = squares[number]
                    for other in view.scales:
                        if other is not place and other.factor in moves:
                            power = 2 * other.exponent * moves[other.factor]
                            value = value * onto(power.exp(), other.dims, len(view.sizes))
                    mine = (2 * group.exponent * moves[name]).exp()
                    total = total + mine * _sum(value, view, place)
        return total


def _log_squares(view: View, value: Tensor) -> Tensor:
    """Logarithms of squares, summed over the dimensions that no scale runs along (size 1 is left of them)."""
    wide = value.reshape(len(value), *view.sizes)
    if view.offset is not None:
        wide = wide + view.offset
    used = {dim for place in view.scales for dim in place.dims}
    rest = [1 + dim for dim in range(len(view.sizes)) if dim not in used]
    square = wide.square().sum(rest, keepdim=True) if rest else wide.square()
    return torch.where(square > 0, _log(square), 2 * _NOTHING)


def _log(square: Tensor) -> Tensor:
    return square.clamp_min(torch.finfo(square.dtype).tiny).log()


def _rest(view: View, place: Place) -> list[int]:
    """The dimensions of a viewed block that a place does not run along; none: that of nothing."""
    return [1 + dim for dim in range(len(view.sizes)) if dim not in place.dims]


def _sum(value: Tensor, view: View, place: Place) -> Tensor:
    """Sums over the dimensions that a place does not run along."""
    rest = _rest(view, place)
    return _in_front(place.dims, value.sum(rest, keepdim=True) if rest else value)


def _in_front(dims: tuple[int, ...], reduced: Tensor) -> Tensor:
    """The dimensions of a place in its own order, without the others (of size 1)."""
    rest = [1 + dim for dim in range(reduced.ndim - 1) if dim not in dims]
    kept = reduced.permute(0, *(1 + dim for dim in dims), *rest)
    return kept.reshape(kept.shape[: 1 + len(dims)])


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
