"""How sure is a mean over inputs? Intervals for what more inputs of the same origin would give.

Means and ratios of sums over inputs: the bootstrap, bias-corrected and accelerated (Efron, Better bootstrap
confidence intervals, 1987; the acceleration from the influence of each input). Shares of agreement: Wilson's interval
(1927), since a bootstrap of 1,000 agreements in 1,000 says [1, 1]. Changes of accuracy: Agresti and Min, Simple
improved confidence intervals for comparing matched proportions, 2005, for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from metanet.score.values import Estimate

__all__ = ["Resamples", "agreement", "normal_quantile", "paired_change"]

CHUNK = 1 << 22


def normal_quantile(probability: float) -> float:
    """The normal quantile."""
    return float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))


def _normal(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2.0))


class Resamples:
    """Sums of columns over resampled inputs, the same resamples for all columns.

    Args:
        columns: name to values, one for each input, float64 on the CPU.
        count: how many resamples; 0 for no intervals.
        confidence: of the intervals.
        seed: of the resamples.
        method: ``bca`` or ``percentile``.
    """

    def __init__(
        self, columns: Mapping[str, Tensor], count: int, confidence: float, seed: int, method: str = "bca"
    ) -> None:
        self.columns = dict(columns)
        self.names = list(columns)
        self.confidence = confidence
        self.method = method
        self.rows = len(columns[self.names[0]])
        self.sums = self._draw(count, seed) if count and self.rows > 1 else None

    def _draw(self, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        values = torch.stack([self.columns[name] for name in self.names], -1)
        # An infinite value is infinite in every mean: no interval is made of it, and 0 times infinity is no number.
        values = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        made = []
        step = max(1, min(count, CHUNK // self.rows))
        for start in range(0, count, step):
            number = min(step, count - start)
            drawn = torch.randint(self.rows, (number, self.rows), generator=generator)
            times = torch.zeros(number, self.rows, dtype=torch.float64)
            times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))
            made.append(times @ values)
        return torch.cat(made)

    def mean(self, name: str) -> Estimate:
        """The mean of a column."""
        values = self.columns[name]
        value = float(values.mean())
        if self.sums is None or not math.isfinite(value):
            return Estimate(value)
        return self._interval(value, self.sums[:, self.names.index(name)] / self.rows, values - value)

    def root_ratio(self, above: str, below: str) -> Estimate:
        """The root of a ratio of two columns' sums; 0 if nothing is above, infinite if nothing is below."""
        one, two = self.columns[above], self.columns[below]
        total, base = float(one.sum()), float(two.sum())
        value = 0.0 if total == 0 else math.sqrt(total / base) if base > 0 else math.inf
        if self.sums is None or not math.isfinite(value):
            return Estimate(value)
        drawn = self.sums[:, self.names.index(above)] / self.sums[:, self.names.index(below)].clamp(min=1e-300)
        return self._interval(value, drawn.sqrt(), one - value * value * two)

    def _interval(self, value: float, drawn: Tensor, influence: Tensor) -> Estimate:
        tail = (1.0 - self.confidence) / 2.0
        levels = [tail, 1.0 - tail]
        spread = float(influence.square().sum())
        if self.method == "bca" and spread > 0:
            count = len(drawn)
            below = float((drawn < value).double().mean()) + float((drawn == value).double().mean()) / 2.0
            bias = normal_quantile(min(max(below, 0.5 / count), 1.0 - 0.5 / count))
            acceleration = float(influence.pow(3).sum()) / (6.0 * spread**1.5)
            moved = [bias + normal_quantile(level) for level in levels]
            levels = [_normal(bias + z / max(1.0 - acceleration * z, 1e-3)) for z in moved]
        low, high = torch.quantile(drawn, torch.tensor(levels, dtype=torch.float64)).tolist()
        return Estimate(value, low, high, self.method)

    def agreement(self, name: str) -> Estimate:
        """The mean of a column of shares: Wilson's interval where each input is one decision or nothing varies."""
        values = self.columns[name]
        single = bool(((values == 0) | (values == 1)).all())
        if self.sums is not None and (single or bool((values == values[0]).all())):
            return agreement(float(values.mean()), self.rows, self.confidence)
        return self.mean(name)

    def change(self, before: str, after: str, change: str) -> Estimate:
        """The mean of ``change``, the column after minus the column before."""
        first, second = self.columns[before], self.columns[after]
        single = all(bool(((values == 0) | (values == 1)).all()) for values in (first, second))
        if self.sums is not None and single:
            worse, better = int((first > second).sum()), int((second > first).sum())
            return paired_change(better, worse, self.rows, self.confidence)
        return self.mean(change)


def agreement(share: float, count: int, confidence: float) -> Estimate:
    """Wilson's interval for a share of ``count`` independent decisions.

    >>> print(agreement(1.0, 1000, 0.95))
    1.0000 [0.9962, 1.0000]
    """
    z = normal_quantile(0.5 + confidence / 2.0)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Estimate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)), "wilson")


def paired_change(better: int, worse: int, count: int, confidence: float) -> Estimate:
    """Agresti and Min's interval for the difference of two shares of the same inputs (half an input in each cell).

    Args:
        better: inputs that only the second network gets right.
        worse: inputs that only the first gets right.
        count: all inputs.
        confidence: of the interval.
    """
    z = normal_quantile(0.5 + confidence / 2.0)
    total, up, down = count + 2.0, better + 0.5, worse + 0.5
    middle = (up - down) / total
    half = z * math.sqrt(up + down - (up - down) ** 2 / total) / total
    return Estimate((better - worse) / count, max(-1.0, middle - half), min(1.0, middle + half), "agresti-min")
