"""How good are these predictions, and how sure is that?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from metanet.errors import TaskError

Metric = Callable[[NDArray[Any], NDArray[Any]], float]


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval.

    Attributes:
        low: Lower end.
        high: Upper end.
        level: Share of the draws between both ends.
        draws: Draws in which the metric was defined.
        groups: Number of groups that were drawn from.
    """

    low: float
    high: float
    level: float
    draws: int
    groups: int


def kendall_tau(predicted: ArrayLike, true: ArrayLike) -> float:
    """Kendall's tau-b: how far two orders agree, ties counted fairly (Kendall 1945). NaN for a constant.

    Shapes:
        predicted, true: (n,)
    """
    predicted, true = _pair(predicted, true)
    if len(true) < 2 or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return float("nan")
    return float(stats.kendalltau(predicted, true, variant="b").statistic)


def r_squared(predicted: ArrayLike, true: ArrayLike) -> float:
    """Share of the variance explained, 1 - residual over total sum of squares; NaN for a constant truth.

    Shapes:
        predicted, true: (n,)
    """
    predicted, true = _pair(predicted, true)
    total = float(np.square(true - true.mean()).sum()) if len(true) else 0.0
    return 1.0 - float(np.square(true - predicted).sum()) / total if total > 0 else float("nan")


def mean_absolute_error(predicted: ArrayLike, true: ArrayLike) -> float:
    """Mean absolute difference, in the unit of the target.

    Shapes:
        predicted, true: (n,)
    """
    predicted, true = _pair(predicted, true)
    return float(np.abs(predicted - true).mean()) if len(true) else float("nan")


def balanced_accuracy(predicted: ArrayLike, true: ArrayLike) -> float:
    """Mean over the classes that occur of the share of each that is recognised; NaN without examples.

    Shapes:
        predicted, true: (n,), of labels
    """
    predicted, true = _pair(predicted, true)
    if not len(true):
        return float("nan")
    return float(np.mean([np.mean(predicted[true == label] == label) for label in np.unique(true)]))


def accuracy(predicted: ArrayLike, true: ArrayLike) -> float:
    """Share of equal labels.

    Shapes:
        predicted, true: (n,), of labels
    """
    predicted, true = _pair(predicted, true)
    return float(np.mean(predicted == true)) if len(true) else float("nan")


def majority_class(labels: ArrayLike) -> Any:
    """The most frequent label; of equally frequent ones the first in sorted order."""
    values, counts = np.unique(np.asarray(labels), return_counts=True)
    if not len(values):
        raise TaskError("no label to take the majority of")
    return values[np.argmax(counts)].item()


def bootstrap_interval(
    metric: Metric,
    predicted: ArrayLike,
    true: ArrayLike,
    groups: ArrayLike,
    generator: np.random.Generator,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a metric under resampling of whole groups (Efron 1979; the cluster bootstrap).

    Snapshots of one run, or agents of one environment, are no independent examples: drawing them one by one would make
    the interval too narrow. The model is not trained again, so the interval speaks of the test examples only.

    Args:
        metric: Function of predicted and true values.
        predicted: What the model says.
        true: What is true.
        groups: The group of each example.
        generator: Where the draws come from.
        draws: Number of bootstrap samples.
        level: Share of the draws inside the interval.

    Shapes:
        predicted, true, groups: (n,)
    """
    predicted, true = _pair(predicted, true)
    members = [np.flatnonzero(np.asarray(groups) == group) for group in np.unique(np.asarray(groups))]
    if not members:
        raise TaskError("no example to draw from")
    values = []
    for _ in range(draws):
        chosen = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        value = metric(predicted[chosen], true[chosen])
        if np.isfinite(value):
            values.append(value)
    if not values:
        return Interval(float("nan"), float("nan"), level, 0, len(members))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, len(values), len(members))


def _pair(predicted: ArrayLike, true: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    one, two = np.asarray(predicted), np.asarray(true)
    if one.shape != two.shape or one.ndim != 1:
        raise TaskError(f"predicted {one.shape} and true {two.shape}: expected two lists of the same length")
    return one, two
