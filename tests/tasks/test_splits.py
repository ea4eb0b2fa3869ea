"""Is a group ever on two sides, and would it be noticed?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metanet.errors import TaskError
from metanet.tasks import check_no_leak, group_folds, split_by_group


@given(count=st.integers(3, 40), each=st.integers(1, 5), seed=st.integers(0, 99))
def test_no_group_is_split_and_no_part_is_empty(count, each, seed):
    groups = np.repeat(np.arange(count), each).astype(str)
    split = split_by_group(groups, np.random.default_rng(seed))
    check_no_leak(groups, split)
    assert set(split) == {"train", "val", "test"}
    assert np.array_equal(split, split_by_group(groups, np.random.default_rng(seed)))


def test_shares_are_kept():
    split = split_by_group(np.arange(1000), np.random.default_rng(0), {"train": 0.5, "val": 0.2, "test": 0.3})
    assert [int(np.sum(split == part)) for part in ("train", "val", "test")] == [500, 200, 300]
    assert set(split_by_group(np.arange(9), np.random.default_rng(0), {"train": 0.7, "val": 0.3})) == {"train", "val"}


def test_a_leak_is_noticed():
    """The negative control: one example on the other side."""
    groups = np.repeat(np.arange(10), 3)
    split = split_by_group(groups, np.random.default_rng(0))
    place = np.flatnonzero(split == "train")[0]
    split[place] = "test"
    with pytest.raises(TaskError, match=f"group {groups[place]} is in both 't"):
        check_no_leak(groups, split)
    with pytest.raises(TaskError, match="split 'holdout'"):
        check_no_leak([1], ["holdout"])


@pytest.mark.parametrize("shares", [{"train": 1.2, "val": -0.2}, {"train": 0.5}, {"learn": 1.0}])
def test_bad_shares_are_refused(shares):
    with pytest.raises(TaskError, match="sum to 1"):
        split_by_group(np.arange(9), np.random.default_rng(0), shares)


@given(count=st.integers(6, 25), folds=st.integers(2, 6), seed=st.integers(0, 99))
def test_folds_are_a_partition_of_whole_groups(count, folds, seed):
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(count), generator.integers(1, 5, count))
    labels = generator.choice(list("abc"), len(groups))
    parts = group_folds(groups, labels, folds, generator)
    assert sorted(np.concatenate(parts)) == list(range(len(groups)))
    assert all(len(part) for part in parts)
    for i, part in enumerate(parts):
        for other in parts[i + 1 :]:
            assert not set(groups[part]) & set(groups[other])


def test_folds_spread_the_classes():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 4)
    labels = np.array(["a", "b", "c", "c"] * 20)
    for part in group_folds(groups, labels, 5, generator):
        assert [int(np.sum(labels[part] == kind)) for kind in "abc"] == [4, 4, 8]


def test_more_folds_than_groups_is_refused():
    with pytest.raises(TaskError, match="2 groups for 3 folds"):
        group_folds([1, 1, 2], list("aba"), 3, np.random.default_rng(0))
    with pytest.raises(TaskError, match="2 groups for 3 parts"):
        split_by_group([1, 1, 2], np.random.default_rng(0))
