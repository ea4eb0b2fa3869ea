"""How well does a way of predicting do on groups it never saw, where examples are few and settings have to be chosen?

Nested cross-validation: the outer folds test, the inner folds stop the training and choose the settings. The models of
the chosen setting's inner folds are averaged for the outer fold, so nothing is fitted without a validation part. Groups
are whole on every level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.errors import TaskError
from metanet.tasks.data import PropertyData
from metanet.tasks.methods import Method
from metanet.tasks.property import PropertyTask
from metanet.tasks.splits import group_folds


@dataclass(frozen=True)
class Plan:
    """How the folds are dealt.

    Attributes:
        outer: Folds that test.
        inner: Folds of the rest, by which is chosen.
        repeats: Times that everything is dealt anew.
        seed: Root seed.
    """

    outer: int = 5
    inner: int = 3
    repeats: int = 1
    seed: int = 0


@dataclass(frozen=True)
class OuterFold:
    """What one family of settings says of one outer fold.

    Attributes:
        repeat: Which deal of the folds.
        fold: Which fold of it.
        family: The family's name.
        chosen: The setting that the inner folds chose.
        places: The tested examples.
        scores: Class probabilities, or standardised numbers turned back, per tested example.
    """

    repeat: int
    fold: int
    family: str
    chosen: str
    places: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "repeat": self.repeat,
            "fold": self.fold,
            "family": self.family,
            "chosen": self.chosen,
            "places": list(self.places),
            "scores": [list(row) for row in self.scores],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OuterFold:
        """The fold that `to_json` told of."""
        rows = tuple(tuple(map(float, row)) for row in value["scores"])
        return cls(
            int(value["repeat"]),
            int(value["fold"]),
            str(value["family"]),
            str(value["chosen"]),
            tuple(map(int, value["places"])),
            rows,
        )


def nested_cross_validation(
    task: PropertyTask,
    data: PropertyData,
    families: Mapping[str, Sequence[Method]],
    plan: Plan,
    done: Sequence[OuterFold] = (),
    on_fold: Callable[[OuterFold], None] | None = None,
) -> list[OuterFold]:
    """Test every family of settings on every outer fold.

    Args:
        task: What is predicted; classes only.
        data: The examples; their own parts are not looked at.
        families: Family name to the settings to choose from. A family with one setting has nothing to choose.
        plan: The folds.
        done: Folds that an earlier, interrupted call has finished; they are not computed again.
        on_fold: Called with every newly finished fold.

    Raises:
        TaskError: Too few groups, or targets that are no classes.
    """
    if not data.labelled and task.kind != "classification":
        raise TaskError("nested cross-validation is for classes", hint="set task.kind=classification")
    finished = {(fold.repeat, fold.fold, fold.family): fold for fold in done}
    folds: list[OuterFold] = []
    for repeat in range(plan.repeats):
        generator = np.random.default_rng(np.random.SeedSequence([plan.seed, repeat]))
        outer = group_folds(data.groups, data.targets, plan.outer, generator)
        for number, test in enumerate(outer):
            rest = np.setdiff1d(np.arange(len(data)), test)
            inner = group_folds(data.groups[rest], data.targets[rest], plan.inner, generator)
            splits = [_split(len(data), test, rest[part]) for part in inner]
            for family, methods in families.items():
                fold = finished.get((repeat, number, family))
                if fold is None:
                    fold = _outer_fold(task, data, (repeat, number), family, methods, splits, test, plan.seed)
                    if on_fold is not None:
                        on_fold(fold)
                elif fold.places != tuple(map(int, test)):
                    raise TaskError("the finished folds are of other examples", hint="start anew")
                folds.append(fold)
    return folds


def collect(
    task: PropertyTask, data: PropertyData, folds: Sequence[OuterFold], family: str, repeat: int
) -> NDArray[np.float64]:
    """The scores of all examples, each from the outer fold that tested it.

    Shapes:
        return: (n, classes)
    """
    scores = np.full((len(data), len(np.unique(data.targets))), np.nan)
    for fold in folds:
        if fold.family == family and fold.repeat == repeat:
            scores[list(fold.places)] = np.array(fold.scores)
    return scores


def _outer_fold(
    task: PropertyTask,
    data: PropertyData,
    place: tuple[int, int],
    family: str,
    methods: Sequence[Method],
    splits: Sequence[NDArray[np.str_]],
    test: NDArray[np.intp],
    seed: int,
) -> OuterFold:
    best_loss, best_scores, chosen = np.inf, None, ""
    for method in methods:
        losses, scores = [], []
        for number, split in enumerate(splits):
            part = data.with_split(split)
            run_seed = int(np.random.SeedSequence([seed, *place, number]).generate_state(1)[0])
            result = method.run(task, part, run_seed)
            losses.append(_log_loss(task, part, result.scores))
            scores.append(result.scores[test])
        if np.mean(losses) < best_loss:
            best_loss, best_scores, chosen = float(np.mean(losses)), np.mean(scores, axis=0), method.name
    if best_scores is None:
        raise TaskError(f"no setting of {family!r} has a finite validation loss")
    rows = tuple(tuple(map(float, row)) for row in best_scores)
    return OuterFold(place[0], place[1], family, chosen, tuple(map(int, test)), rows)


def _log_loss(task: PropertyTask, data: PropertyData, scores: NDArray[np.float64]) -> float:
    val = data.part("val")
    true = task.encoding(data).encode(data.targets[val])
    weights = task.class_weights(data)
    each = -np.log(np.clip(scores[val, true], 1e-6, 1))
    return float(np.mean(each if weights is None else each * weights.numpy()[true]))


def _split(count: int, test: NDArray[np.intp], val: NDArray[np.intp]) -> NDArray[np.str_]:
    split = np.full(count, "train", dtype="<U5")
    split[test], split[val] = "test", "val"
    return split
