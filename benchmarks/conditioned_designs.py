"""Which mixtures of its units does a network of another width start from, when a metanetwork reads the old one?

A mixing matrix M says which units of a space go into each new one: incoming weights and biases of the new unit are
those of the old ones times a column of M. What reads them is refitted in closed form, on inputs that a trained
predictor made: ``h ~ U^T h' + c`` with ``U = (A + r D)^-1 (B + r D U0)``, A the covariance of the new units, B theirs
with the old ones, D their variances, and U0 says that old units are what they went into. Designs differ in M:

- ``slots``: new unit j asks at ``t_j = (j + 1/2) / n``; old units answer by attention. No old unit is given out more
  often than n over its space's size (Sinkhorn), so that units are spread over the new ones.
- ``knots``: every old unit gets a learned coordinate, its rank in a learned scalar, and a weight; new unit j reads the
  space linearly between the units around t_j, over a learned width. At full width this is the network itself.
- ``merge``: new units are the ones that optimal brain surgeon keeps, and dropped units are mixed into them by a
  learned function of the pair.
- ``knots_merge``: the same from ``knots``, where units of little worth are squeezed together on the coordinate.

Everything is a function of sets of units: permuting those of the old network changes no new one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from conditioned_reader import PROBES, Perceptrons, Reader, Seen, Told, covariance, perceptron, run, unit_statistics
from torch import Tensor, nn
from torch.nn import functional


def targets(count: int, like: Tensor) -> Tensor:
    """Coordinates of new units. Shapes: -> (count,)."""
    return (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) / count


class Slots(nn.Module):
    """M by attention from coordinates of the new units."""

    def __init__(self, width: int, waves: int = 8, looks: int = 2) -> None:
        super().__init__()
        self.waves = waves
        self.asks = perceptron(2 * waves + 2, width, width)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.steps = nn.ModuleList(perceptron(2 * width, width, width) for _ in range(looks))
        self.weight = nn.Linear(width, 1)
        self.sharp = nn.Parameter(torch.tensor([0.0, 0.5]))

    def forward(self, seen: Seen, count: int) -> tuple[Tensor, Tensor]:
        batch, units, width = seen.features.shape
        t = targets(count, seen.features)
        angles = math.pi * t.unsqueeze(1) * torch.arange(1, self.waves + 1).to(t)
        share = torch.full_like(t, math.log(count / units)).unsqueeze(1)
        x = self.asks(torch.cat([angles.sin(), angles.cos(), share, t.unsqueeze(1)], 1)).expand(batch, -1, -1)
        features = functional.layer_norm(seen.features, (width,))
        key, value, weight = self.key(features), self.value(features), self.weight(features).squeeze(-1)
        for step in self.steps:
            given = _plan(self._fit(key, x, weight), count)
            x = x + step(torch.cat([functional.layer_norm(x, (width,)), given.mT @ value], -1))
        mixed = _plan(
            self._fit(key, x, weight) * (self.sharp[0] + self.sharp[1] * math.log(count / units)).exp(), count
        )
        return mixed, _shared(mixed)

    def _fit(self, key: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        x = functional.layer_norm(x, x.shape[-1:])
        return key @ x.mT / math.sqrt(x.shape[-1]) + weight.unsqueeze(2)


def _plan(fit: Tensor, count: int, rounds: int = 6) -> Tensor:
    """Columns of sum 1, and rows of sum at most ``max(1, count / n)``: Sinkhorn's rounds. Shapes: (B, n, count)."""
    most = math.log(max(1.0, count / fit.shape[1]))
    for _ in range(rounds):
        fit = fit.log_softmax(1)
        fit = fit - (fit.logsumexp(2, keepdim=True) - most).clamp_min(0)
    return fit.softmax(1)


class Knots(nn.Module):
    """M by linear interpolation in a learned coordinate of the old units.

    Args:
        width: of the features.
        dense: whether units stand as densely as they are worth. Their places are then sums of learned densities, which
            start as the choice of optimal brain surgeon, softened.
    """

    def __init__(self, width: int, dense: bool = False) -> None:
        super().__init__()
        self.place, self.weight = perceptron(width, width, 1), perceptron(width, width, 1)
        self.dense = perceptron(width, width, 1) if dense else None
        if self.dense is not None:
            for part in (self.dense, self.weight):
                nn.init.zeros_(part[2].weight)
                nn.init.zeros_(part[2].bias)
            self.cut, self.trust = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))
        self.wide = nn.Parameter(torch.tensor([-2.0 if dense else 0.0, 0.0]))
        self.soft = nn.Parameter(torch.tensor(-2.0))

    def forward(self, seen: Seen, count: int) -> tuple[Tensor, Tensor]:
        units = seen.features.shape[1]
        features = functional.layer_norm(seen.features, seen.features.shape[-1:])
        raw, weight = self.place(features).squeeze(-1), self.weight(features).squeeze(-1)
        raw = functional.layer_norm(raw, (units,))
        density = torch.ones_like(raw)
        if count >= units:
            weight = torch.zeros_like(raw)
        elif self.dense is not None:
            asked = self.cut.exp() * (count - seen.keep.argsort(1).to(raw) - 0.5) + self.dense(features).squeeze(-1)
            density, weight = asked.sigmoid(), weight + self.trust.exp() * functional.logsigmoid(asked)
        apart = raw.unsqueeze(2) - raw.unsqueeze(1)
        # Order itself has no gradient; that of a soft order takes its place.
        soft = (apart / self.soft.exp()).sigmoid()
        order = (apart > 0).to(raw) + 0.5 * (apart == 0).to(raw) + soft - soft.detach()
        place = (order * density.unsqueeze(1)).sum(2) / density.sum(1, keepdim=True)
        share = min(1.0, count / units)
        reach = 1 + functional.softplus(self.wide[0] + self.wide[1] * share) * (1 - share)
        far = (place.unsqueeze(2) - targets(count, raw)).abs() * min(count, units) / reach
        weight = (weight - weight.amax(1, keepdim=True)).clamp_min(-30).exp()
        hat = (1 - far).clamp_min(0) * weight.unsqueeze(2)
        mixed = hat / hat.sum(1, keepdim=True).clamp_min(1e-30)
        return mixed, _shared(mixed)


class Selection(nn.Module):
    """M of zeros and ones: the units that optimal brain surgeon keeps; more than there are come by turns."""

    def forward(self, seen: Seen, count: int) -> tuple[Tensor, Tensor]:
        units = seen.features.shape[1]
        chosen = seen.keep[:, torch.arange(count) % units]
        kept = functional.one_hot(chosen, units).to(seen.features).mT
        return kept, kept.mT / kept.sum(2).clamp_min(1).unsqueeze(1)


class Merge(nn.Module):
    """M of another design, and units that it leaves out mixed in by a learned function of the pair.

    Args:
        width: of the features.
        start: the other design.
        hidden: of the function.
    """

    def __init__(self, width: int, start: nn.Module, hidden: int = 32) -> None:
        super().__init__()
        self.start = start
        self.gives, self.takes = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.pair = nn.Linear(5, hidden)
        self.end = nn.Linear(hidden, 2)
        nn.init.zeros_(self.end.weight)
        nn.init.zeros_(self.end.bias)

    def forward(self, seen: Seen, count: int) -> tuple[Tensor, Tensor]:
        kept, back = self.start(seen, count)
        if count >= seen.features.shape[1]:
            return kept, back
        own = covariance(seen.post / seen.size.unsqueeze(1), seen.post / seen.size.unsqueeze(1))
        among = kept.mT @ own @ kept
        level = 1e-3 * among.diagonal(dim1=1, dim2=2) + 1e-9
        rebuilt = torch.linalg.solve((among + torch.diag_embed(level)).double(), (kept.mT @ own).double()).to(own).mT
        pairs = [_likeness(x) @ kept for x in (seen.post, seen.pre, (seen.pre > 0).to(own))]
        told = torch.stack([*pairs, rebuilt, rebuilt.abs()], -1).clamp(-3, 3)
        features = functional.layer_norm(seen.features, seen.features.shape[-1:])
        hidden = self.pair(told) + self.gives(features).unsqueeze(2) + (kept.mT @ self.takes(features)).unsqueeze(1)
        found = self.end(functional.gelu(hidden))
        moved = found[..., 0] * 0.3 + found[..., 1] * rebuilt.clamp(-1, 1)
        left_out = (1 - kept.sum(2, keepdim=True)).clamp(0, 1)
        return kept + moved * left_out, back


def _shared(mixed: Tensor) -> Tensor:
    """Which new units stand for each old one: those that it went into. Shapes: (B, n, m) -> (B, m, n)."""
    return mixed.mT / mixed.sum(2).clamp_min(1e-6).unsqueeze(1)


def _likeness(x: Tensor) -> Tensor:
    """Correlations. Shapes: (B, V, n) -> (B, n, n)."""
    both = covariance(x, x)
    size = both.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()
    return both / size.unsqueeze(2) / size.unsqueeze(1)


def _merge(width: int) -> nn.Module:
    return Merge(width, Selection())


def _knots_merge(width: int) -> nn.Module:
    return Merge(width, Knots(width, dense=True))


DESIGNS: dict[str, Callable[[int], nn.Module]] = {
    "slots": Slots,
    "knots": Knots,
    "merge": _merge,
    "knots_merge": _knots_merge,
}


class Conditioned(nn.Module):
    """Reads perceptrons, and writes them at other widths.

    Args:
        variant: one of `DESIGNS`.
        layers: of the perceptrons.
        classes: that they tell apart.
        inputs: that stand for their data.
        ridge: of the refit at first.
        width: of the features.
        rounds: of messages.
    """

    def __init__(
        self, variant: str, layers: int, classes: int, inputs: Tensor, ridge: float, width: int = 48, rounds: int = 2
    ) -> None:
        super().__init__()
        self.register_buffer("inputs", inputs.flatten(1).clone())
        self.reader = Reader(layers, classes, width, rounds)
        self.mixes = nn.ModuleList(DESIGNS[variant](width) for _ in range(layers - 1))
        self.log_ridge = nn.Parameter(torch.tensor(math.log(ridge)))

    @torch.no_grad()
    def told(self, nets: Perceptrons) -> Told:
        """What is not learned about the units, on all inputs; in training it is worked out once."""
        pres, posts = run(nets, self.inputs)
        return [unit_statistics(*each) for each in zip(pres[:-1], posts, nets.weights[1:], strict=True)]

    def forward(
        self, nets: Perceptrons, counts: Sequence[int], rows: Tensor | None = None, told: Told | None = None
    ) -> Perceptrons:
        """The perceptrons at other sizes of their hidden layers.

        Args:
            nets: to be read.
            counts: new sizes.
            rows: which of the inputs are looked at, beside the probes; all by default.
            told: what :meth:`told` gave.
        """
        inputs = self.inputs if rows is None else torch.cat([self.inputs[:PROBES], self.inputs[rows]])
        seen = self.reader(nets, inputs, told)
        weights, biases = [], []
        x: Tensor | None = None
        read, shift = nets.weights[0], nets.biases[0]
        for number, (each, count) in enumerate(zip(seen, counts, strict=True)):
            mixed, start = self.mixes[number](each, count)
            # From units of size one to units as they are, and new ones of size one again.
            mixed, start = mixed / each.size.unsqueeze(2), start * each.size.unsqueeze(1)
            weights.append(mixed.mT @ read)
            biases.append((mixed.mT @ shift.unsqueeze(2)).squeeze(2))
            # The first layer reads what it read before: what it gets is a mixture, which is cheaper than weights.
            x = (each.pre @ mixed if x is None else x @ weights[-1].mT + biases[-1].unsqueeze(1)).relu()
            back, constant = self._refit(x, each.post, start)
            following = nets.weights[number + 1]
            read = following @ back.mT
            shift = nets.biases[number + 1] + (following @ constant.unsqueeze(2)).squeeze(2)
        return Perceptrons((*weights, read), (*biases, shift))

    def _refit(self, new: Tensor, old: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """U and c of the first lines. Shapes: (B, V, m), (B, V, n), (B, m, n) -> (B, m, n), (B, n)."""
        within, across = covariance(new, new).double(), covariance(new, old).double()
        variance = within.diagonal(dim1=1, dim2=2)
        floor = 1e-6 * variance.mean(1, keepdim=True) + 1e-12
        level = self.log_ridge.exp().double() * torch.maximum(variance, floor)
        right = across + level.unsqueeze(2) * start.double()
        back = torch.linalg.solve(within + torch.diag_embed(level), right).to(new)
        return back, old.mean(1) - (back.mT @ new.mean(1).unsqueeze(2)).squeeze(2)
