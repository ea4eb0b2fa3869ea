"""Which examples are trained on, chosen by and tested on, such that no group is on two sides?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metanet.errors import TaskError

PARTS = ("train", "val", "test")
SHARES: Mapping[str, float] = {"train": 0.65, "val": 0.15, "test": 0.2}


def split_by_group(
    groups: ArrayLike, generator: np.random.Generator, shares: Mapping[str, float] = SHARES
) -> NDArray[np.str_]:
    """A part for every example, the same for all of a group.

    Args:
        groups: The group (the run, the environment) of each example.
        generator: Where the order of the groups comes from.
        shares: Share of the groups in each part; they sum to one.

    Raises:
        TaskError: Shares that do not sum to one, or fewer groups than parts.
    """
    names = np.asarray(groups)
    unique = np.unique(names)
    wanted = [part for part in PARTS if shares.get(part, 0) > 0]
    if set(shares) - set(PARTS) or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise TaskError(f"shares {dict(shares)}: expected shares of {', '.join(PARTS)} that sum to 1")
    if len(unique) < len(wanted):
        raise TaskError(f"{len(unique)} groups for {len(wanted)} parts", hint="give each run or source its own group")
    ends = np.round(np.cumsum([shares[part] for part in wanted]) * len(unique)).astype(int)
    # Every part gets at least one group, however few there are.
    for i in range(len(wanted)):
        ends[i] = min(max(ends[i], i + 1), len(unique) - (len(wanted) - 1 - i))
    order = generator.permutation(len(unique))
    part_of = {}
    for position, index in enumerate(order):
        part_of[unique[index]] = wanted[int(np.searchsorted(ends, position, side="right"))]
    return np.array([part_of[name] for name in names])


def group_folds(
    groups: ArrayLike, labels: ArrayLike, count: int, generator: np.random.Generator
) -> list[NDArray[np.intp]]:
    """The examples of each of `count` test folds; groups are kept whole and classes spread evenly.

    Groups are dealt out one by one, the largest first, each to the fold whose class counts then vary least.

    Raises:
        TaskError: Fewer groups than folds.
    """
    names, classes = np.asarray(groups), np.asarray(labels)
    unique = np.unique(names)
    if len(unique) < count:
        raise TaskError(f"{len(unique)} groups for {count} folds", hint="lower the number of folds")
    kinds = np.unique(classes)
    table = np.array([[np.sum((names == group) & (classes == kind)) for kind in kinds] for group in unique], float)
    share = table / table.sum(axis=0)
    order = generator.permutation(len(unique))
    order = order[np.argsort(-table[order].sum(axis=1), kind="stable")]
    totals, sizes = np.zeros((count, len(kinds))), np.zeros(count, dtype=int)
    fold_of: dict[Any, int] = {}
    for position, index in enumerate(order):
        # While there are only as many groups left as empty folds, those folds come first.
        must = len(order) - position <= int(np.sum(sizes == 0))
        costs = []
        for fold in range(count):
            changed = totals.copy()
            changed[fold] += share[index]
            costs.append(float(changed.std(axis=0).sum()) + (1e6 if must and sizes[fold] else 0.0))
        best = int(np.argmin(costs))
        totals[best] += share[index]
        sizes[best] += 1
        fold_of[unique[index]] = best
    return [np.flatnonzero([fold_of[name] == fold for name in names]) for fold in range(count)]


def check_no_leak(groups: Sequence[Any] | NDArray[Any], split: Sequence[str] | NDArray[Any]) -> None:
    """Refuse a split that has one group on two sides.

    Raises:
        TaskError: Naming the first such group.
    """
    seen: dict[Any, str] = {}
    for group, part in zip(groups, split, strict=True):
        if part not in PARTS:
            raise TaskError(f"split {part!r}, expected one of {', '.join(PARTS)}")
        if seen.setdefault(group, part) != part:
            raise TaskError(
                f"group {group} is in both '{seen[group]}' and '{part}': its test result would be flattered",
                hint="split by group",
            )
