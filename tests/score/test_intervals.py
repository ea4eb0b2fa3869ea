"""Do the intervals hold what they promise, and do narrower ones not? Coverage is counted over simulated samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from metanet.score.intervals import Resamples, agreement, paired_change
from metanet.score.similarity import Similarities
from metanet.score.values import Estimate

TRIALS = 300


def coverage(draw: Callable[[torch.Generator], Estimate], truth: float, trials: int = TRIALS) -> float:
    hits = 0
    for seed in range(trials):
        found = draw(torch.Generator().manual_seed(seed))
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.high
        hits += found.low <= truth <= found.high
    return hits / trials


def skewed(generator: torch.Generator, rows: int) -> Tensor:
    """Gamma draws of shape 1/2: as skewed as divergences are. Mean 1."""
    return torch.randn(rows, generator=generator, dtype=torch.float64).square()


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_a_mean_of_skewed_values_is_covered(method: str) -> None:
    def draw(generator: torch.Generator) -> Estimate:
        return Resamples({"kl": skewed(generator, 200)}, 400, 0.9, 1, method).mean("kl")

    # Three standard errors of a count of 300 are .05.
    assert abs(coverage(draw, 1.0) - 0.9) < 0.055
    # Negative control: the same intervals are no intervals for something else.
    assert coverage(draw, 1.25) < 0.4


def test_bca_against_scipy() -> None:
    values = skewed(torch.Generator().manual_seed(0), 60)
    found = Resamples({"kl": values}, 20_000, 0.9, 1).mean("kl")
    given = stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=20_000, confidence_level=0.9, method="BCa", rng=np.random.default_rng(0)
    )
    assert found.low == pytest.approx(given.confidence_interval.low, rel=0.02)
    assert found.high == pytest.approx(given.confidence_interval.high, rel=0.02)
    plain = Resamples({"kl": values}, 20_000, 0.9, 1, "percentile").mean("kl")
    assert plain.high is not None
    assert found.high is not None
    assert found.high > plain.high * 1.02


def test_a_ratio_of_norms_is_covered() -> None:
    def draw(generator: torch.Generator) -> Estimate:
        norm = skewed(generator, 150) + 0.5
        square = 0.04 * norm * (0.5 + torch.rand(150, generator=generator, dtype=torch.float64))
        return Resamples({"square": square, "norm": norm}, 400, 0.9, 1).root_ratio("square", "norm")

    assert abs(coverage(draw, 0.2) - 0.9) < 0.055
    assert coverage(draw, 0.21) < 0.4


@pytest.mark.parametrize("share", [0.5, 0.98, 0.999])
def test_a_share_is_covered_also_near_one(share: float) -> None:
    def draw(generator: torch.Generator) -> Estimate:
        same = (torch.rand(300, generator=generator) < share).double()
        return Resamples({"agreement": same}, 10, 0.95, 1).agreement("agreement")

    assert coverage(draw, share) >= 0.92

    # Negative control: resampling nothing but agreement says that there is nothing else.
    def bootstrap(generator: torch.Generator) -> Estimate:
        same = (torch.rand(300, generator=generator) < share).double()
        return Resamples({"agreement": same}, 200, 0.95, 1).mean("agreement")

    if share == 0.999:
        assert coverage(bootstrap, share) < 0.5


def test_a_change_of_accuracy_is_covered() -> None:
    better, worse, rows = 0.01, 0.03, 400

    def draw(generator: torch.Generator) -> Estimate:
        drawn = torch.rand(rows, generator=generator)
        before, after = (drawn < 0.8) | (drawn > 1 - worse), (drawn < 0.8) | ((drawn > 0.8) & (drawn < 0.8 + better))
        columns = {"right_a": before.double(), "right_b": after.double()}
        columns["change"] = columns["right_b"] - columns["right_a"]
        return Resamples(columns, 10, 0.95, 1).change("right_a", "right_b", "change")

    assert coverage(draw, better - worse) >= 0.92
    assert coverage(draw, 0.01) < 0.4
    nothing = paired_change(0, 0, 1000, 0.95)
    assert nothing.low is not None
    assert nothing.low < 0 < nothing.high  # type: ignore[operator]


def test_wilson_against_scipy() -> None:
    for right, count in ((0, 10), (7, 10), (10, 10), (995, 1000)):
        found = agreement(right / count, count, 0.95)
        given = stats.binomtest(right, count).proportion_ci(0.95, "wilson")
        assert (found.low, found.high) == pytest.approx((given.low, given.high))


def test_similarity_is_covered() -> None:
    mixing = torch.randn(6, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def features(generator: torch.Generator, rows: int) -> tuple[Tensor, Tensor]:
        hidden = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
        return hidden.tanh(), hidden @ mixing + torch.randn(rows, 5, generator=generator, dtype=torch.float64)

    def measured(generator: torch.Generator, batches: int, rows: int) -> Estimate:
        similar = Similarities([("a", "b")])
        for _ in range(batches):
            grams = [(x @ x.T).fill_diagonal_(0.0) for x in features(generator, rows)]
            similar.add({"a": grams[0]}, {"b": grams[1]})
        found = similar.estimate(("a", "b"), 0.9)
        assert found is not None
        return found

    truth = measured(torch.Generator().manual_seed(1), 40, 1000).value
    assert abs(coverage(lambda generator: measured(generator, 2, 50), truth) - 0.9) < 0.06
    assert coverage(lambda generator: measured(generator, 2, 50), truth + 0.15) < 0.6


def test_no_interval_where_there_is_none() -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert Resamples({"kl": one}, 100, 0.9, 1).mean("kl") == Estimate(1.0)
    infinite = torch.tensor([1.0, math.inf], dtype=torch.float64)
    assert Resamples({"kl": infinite}, 100, 0.9, 1).mean("kl") == Estimate(math.inf)
    assert Resamples({"kl": torch.ones(9, dtype=torch.float64)}, 0, 0.9, 1).mean("kl").low is None
    still = Resamples({"kl": torch.full((9,), 2.0, dtype=torch.float64)}, 50, 0.9, 1).mean("kl")
    assert (still.low, still.high) == (2.0, 2.0)


def test_the_seed_decides() -> None:
    values = {"kl": skewed(torch.Generator().manual_seed(0), 50)}
    assert Resamples(values, 100, 0.9, 1).mean("kl") == Resamples(values, 100, 0.9, 1).mean("kl")
    assert Resamples(values, 100, 0.9, 1).mean("kl") != Resamples(values, 100, 0.9, 2).mean("kl")
