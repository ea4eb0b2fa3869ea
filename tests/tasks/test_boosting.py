"""Do the kept arrays say what scikit-learn's trees say, bit by bit, and do damaged arrays get caught?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from metanet.errors import TaskError
from metanet.tasks import BoostedTrees, BoostingOptions, fit_trees
from metanet.tasks import boosting as module

OPTIONS = BoostingOptions(trees=40)


@pytest.fixture
def world():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(150, 6))
    x[:, 3] = np.round(x[:, 3])  # thresholds that fall between equal values
    return x, x[:, 0] ** 2 + x[:, 1] * x[:, 3], (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_equal_to_scikit_learn_to_the_last_bit(world, classes, monkeypatch):
    x, numbers, kinds = world
    y = numbers if classes == 0 else np.minimum(kinds, classes - 1)
    grown = []
    grower = module._grower
    monkeypatch.setattr(module, "_grower", lambda *a: grown.append(grower(*a)) or grown[-1])
    trees = fit_trees(x, y, classes, seed=3, options=OPTIONS)
    fresh = np.random.default_rng(1).normal(size=(3000, 6))
    if classes == 0:
        # The mean is added first here and last there.
        assert np.allclose(trees.raw(fresh)[:, 0], y.mean() + grown[0].predict(fresh), rtol=1e-12, atol=1e-12)
    else:
        decision = grown[0].decision_function(fresh).reshape(len(fresh), -1)
        assert np.array_equal(trees.raw(fresh), decision)
        assert np.allclose(trees.probabilities(fresh), grown[0].predict_proba(fresh), rtol=1e-12)


def test_through_a_file_and_back(world):
    x, numbers, _ = world
    trees = fit_trees(x, numbers, 0, seed=0, options=OPTIONS)
    again = BoostedTrees.from_tensors(load(save(trees.tensors())))
    assert np.array_equal(trees.raw(x), again.raw(x))
    other = fit_trees(x, numbers, 0, seed=1, options=OPTIONS)
    assert not np.array_equal(trees.raw(x), other.raw(x)), "the seed has no say"


def test_weights_of_examples_count(world):
    x, _, kinds = world
    y = (kinds == 2).astype(int)
    plain = fit_trees(x, y, 2, 0, OPTIONS)
    heavy = fit_trees(x, y, 2, 0, OPTIONS, weights=np.where(y == 1, 20.0, 1.0))
    fresh = np.random.default_rng(1).normal(size=(500, 6))
    assert heavy.probabilities(fresh)[:, 1].mean() > plain.probabilities(fresh)[:, 1].mean()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("left", lambda t: t * 0),
        ("right", lambda t: t + 10**6),
        ("feature", lambda t: t + 100),
        ("roots", lambda t: t - 10**6),
        ("value", lambda t: t[:-1]),
        ("base", lambda t: torch.cat([t, t])),
    ],
)
def test_damaged_arrays_are_refused(world, name, change):
    x, numbers, _ = world
    tensors = fit_trees(x, numbers, 0, 0, OPTIONS).tensors()
    with pytest.raises(TaskError, match="not the arrays of boosted trees"):
        BoostedTrees.from_tensors({**tensors, name: change(tensors[name])})
    with pytest.raises(TaskError, match="not the arrays of boosted trees"):
        BoostedTrees.from_tensors({key: value for key, value in tensors.items() if key != name})


def test_what_cannot_be_fitted_is_refused(world):
    x, numbers, kinds = world
    with pytest.raises(TaskError, match="NaN or infinities"):
        fit_trees(np.where(x > 2, np.nan, x), numbers, 0, 0)
    with pytest.raises(TaskError, match="of 3 classes, expected all 4"):
        fit_trees(x, kinds, 4, 0)
    with pytest.raises(TaskError, match="1 examples"):
        fit_trees(x[:1], numbers[:1], 0, 0)
    with pytest.raises(TaskError, match=r"expected \(n, 6\)"):
        fit_trees(x, numbers, 0, 0, OPTIONS).raw(x[:, :5])
