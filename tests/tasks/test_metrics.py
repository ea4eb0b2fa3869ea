"""Do the measures agree with their definitions and with other people's code?"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from metanet.errors import TaskError
from metanet.tasks import (
    accuracy,
    balanced_accuracy,
    bootstrap_interval,
    kendall_tau,
    majority_class,
    mean_absolute_error,
    r_squared,
)

NUMBERS = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30)


def tau_by_definition(predicted, true):
    """Kendall's tau-b from all pairs."""
    pairs = list(itertools.combinations(range(len(true)), 2))
    one = np.array([np.sign(predicted[i] - predicted[j]) for i, j in pairs])
    two = np.array([np.sign(true[i] - true[j]) for i, j in pairs])
    return (one * two).sum() / math.sqrt((one**2).sum() * (two**2).sum())


@given(NUMBERS)
def test_tau_is_tau_b(pairs):
    predicted, true = np.array(pairs, float).T
    tau = kendall_tau(predicted, true)
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:
        assert math.isnan(tau)
        return
    assert tau == pytest.approx(tau_by_definition(predicted, true))
    assert tau == pytest.approx(kendall_tau(true, predicted))
    assert tau == pytest.approx(-kendall_tau(-predicted, true))
    assert tau == pytest.approx(kendall_tau(np.exp(predicted), true)), "only the order counts"


def test_tau_b_is_not_tau_c_nor_spearman():
    predicted, true = [1, 2, 2, 3, 3, 3], [1, 1, 2, 2, 3, 1]
    assert kendall_tau(predicted, true) != pytest.approx(stats.kendalltau(predicted, true, variant="c").statistic)
    assert kendall_tau(predicted, true) != pytest.approx(stats.spearmanr(predicted, true).statistic)


@given(NUMBERS)
def test_r_squared_and_error_equal_scikit_learn(pairs):
    predicted, true = np.array(pairs, float).T
    assert mean_absolute_error(predicted, true) == pytest.approx(sklearn_metrics.mean_absolute_error(true, predicted))
    if np.ptp(true) == 0:
        assert math.isnan(r_squared(predicted, true))
    else:
        assert r_squared(predicted, true) == pytest.approx(sklearn_metrics.r2_score(true, predicted))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30))
def test_accuracies_equal_scikit_learn(pairs):
    predicted, true = np.array(pairs).T
    assert accuracy(predicted, true) == pytest.approx(sklearn_metrics.accuracy_score(true, predicted))
    assert balanced_accuracy(predicted, true) == pytest.approx(
        sklearn_metrics.recall_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
    )


def test_balanced_accuracy_of_the_majority_is_chance():
    true = np.array(["a"] * 90 + ["b"] * 10)
    guess = np.full(100, majority_class(true))
    assert accuracy(guess, true) == 0.9
    assert balanced_accuracy(guess, true) == 0.5
    assert majority_class(["b", "a", "b", "a"]) == "a"


def test_bootstrap_by_group_is_wider_than_by_example():
    """Ten copies of the same twenty examples know no more than the twenty."""
    generator = np.random.default_rng(0)
    true = np.repeat(generator.normal(size=20), 10)
    predicted = true + np.repeat(generator.normal(size=20), 10)
    groups = np.repeat(np.arange(20), 10)
    by_group = bootstrap_interval(r_squared, predicted, true, groups, generator, draws=300)
    by_example = bootstrap_interval(r_squared, predicted, true, np.arange(200), generator, draws=300)
    assert by_group.high - by_group.low > 2 * (by_example.high - by_example.low)
    assert by_group.low <= r_squared(predicted, true) <= by_group.high
    assert (by_group.groups, by_example.groups) == (20, 200)


def test_bootstrap_covers_what_it_should():
    """In nine of ten worlds or more, a 95 % interval of a mean holds the true mean."""
    generator, hits = np.random.default_rng(1), 0
    for _ in range(100):
        values = generator.normal(size=40)
        interval = bootstrap_interval(lambda p, t: float(p.mean()), values, values, np.arange(40), generator, draws=200)
        hits += interval.low <= 0 <= interval.high
    assert hits >= 88


def test_bootstrap_of_an_undefined_metric_is_nan():
    interval = bootstrap_interval(kendall_tau, [1, 1], [1, 2], ["a", "b"], np.random.default_rng(0), draws=5)
    assert math.isnan(interval.low)
    assert interval.draws == 0


def test_lists_of_different_length_are_refused():
    with pytest.raises(TaskError, match=r"predicted \(2,\) and true \(3,\)"):
        kendall_tau([1, 2], [1, 2, 3])
    with pytest.raises(TaskError, match="no label"):
        majority_class([])
