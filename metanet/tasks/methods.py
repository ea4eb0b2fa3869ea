"""Which ways of predicting a property are there, and what does each say of every network?

All methods are fitted on the training part, may choose by the validation part, and give *scores* for all networks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from metanet.errors import ConfigError
from metanet.tasks.boosting import BoostingOptions
from metanet.tasks.data import PropertyData
from metanet.tasks.flat import SCALES, FlatData, FlatTask
from metanet.tasks.property import PropertyTask, outputs_of
from metanet.tasks.property_trees import choose_share, features_of, fit_property_trees, tree_scores
from metanet.train import Trained, TrainerSettings, fit

Scores = NDArray[np.float64]
FLAT_SETTINGS = TrainerSettings(epochs=60, learning_rate=1e-3, weight_decay=1e-2, patience=15, progress=False)


@dataclass(frozen=True, eq=False)
class Result:
    """What a method says.

    Attributes:
        method: Its name.
        scores: One row per network of the data, in all parts.
        seconds: How long fitting and predicting took.
        history: One row per epoch, where it was trained in epochs.
        details: What else is worth telling, as JSON.
    """

    method: str
    scores: Scores
    seconds: float
    history: tuple[dict[str, Any], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Method(Protocol):
    """A way of predicting. `kind` is "metanet" or "baseline"."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def run(self, task: PropertyTask, data: PropertyData, seed: int) -> Result:
        """Fit on the training part and score all networks."""
        ...


@dataclass(frozen=True)
class MetanetMethod:
    """A metanetwork of the given options, trained with the given settings."""

    model: Mapping[str, Any]
    settings: TrainerSettings
    name: str = "metanet"
    kind: str = "metanet"

    def run(self, task: PropertyTask, data: PropertyData, seed: int) -> Result:
        began = time.perf_counter()
        settings = replace(self.settings, seed=seed)
        trained = fit(replace(task, ensemble=False), data, self.model, settings)
        with torch.no_grad():
            scores = task.encoding(data).scores(outputs_of(trained.model, data.batch))
        return Result(self.name, scores, time.perf_counter() - began, trained.history, _training_details(trained))


@dataclass(frozen=True)
class FlatMethod:
    """A plain network on the raw weights: trained once for each scaling of them, the better on validation is kept."""

    options: Mapping[str, Any] = field(default_factory=dict)
    settings: TrainerSettings = FLAT_SETTINGS
    scales: tuple[str, ...] = SCALES
    name: str = "flat"
    kind: str = "baseline"

    def run(self, task: PropertyTask, data: PropertyData, seed: int) -> Result:
        began = time.perf_counter()
        kept: tuple[str, FlatData, Trained] | None = None
        for scale in self.scales:
            flat = FlatData.of(data, scale)
            trained = fit(FlatTask(task), flat, self.options, replace(self.settings, seed=seed))
            value = trained.best_value
            if kept is None or (value is not None and task.monitor.improves(value, kept[2].best_value)):
                kept = (scale, flat, trained)
        if kept is None:
            raise ConfigError("no scaling given", where="flat.scales")
        scale, flat, trained = kept
        with torch.no_grad():
            scores = task.encoding(data).scores(trained.model(flat.inputs).numpy())
        details = {"scale": scale, **_training_details(trained)}
        return Result(self.name, scores, time.perf_counter() - began, trained.history, details)


@dataclass(frozen=True)
class TreesMethod:
    """Boosted trees; grown as the task says where no options are given.

    Attributes:
        options: How the trees are grown.
        features: What they see, as in `PropertyTask.features`; "task" takes the task's own.
    """

    options: BoostingOptions | None = None
    name: str = "trees"
    features: str = "task"
    kind: str = "baseline"

    def run(self, task: PropertyTask, data: PropertyData, seed: int) -> Result:
        began = time.perf_counter()
        encoding = task.encoding(data)
        task = task if self.features == "task" else replace(task, features=self.features)
        trees = fit_property_trees(task, data, seed, self.options)
        scores = tree_scores(encoding, trees, features_of(task, data, seed))
        return Result(self.name, scores, time.perf_counter() - began)


@dataclass(frozen=True)
class LinearMethod:
    """A linear model on the standardised layer statistics: ridge or logistic regression.

    Attributes:
        strength: Inverse of the penalty, relative to the number of training networks.
    """

    strength: float = 0.1
    name: str = "linear"
    kind: str = "baseline"

    def run(self, task: PropertyTask, data: PropertyData, seed: int) -> Result:
        from sklearn.linear_model import LogisticRegression, Ridge

        began = time.perf_counter()
        encoding, train = task.encoding(data), data.part("train")
        mean, deviation = data.statistics[train].mean(axis=0), data.statistics[train].std(axis=0)
        x = np.clip((data.statistics - mean) / np.where(deviation > 1e-9, deviation, 1.0), -5, 5)
        y = encoding.encode(data.targets[train])
        if encoding.classes:
            balance = "balanced" if task.balanced else None
            model = LogisticRegression(C=self.strength, max_iter=2000, class_weight=balance).fit(x[train], y)
            scores = model.predict_proba(x)
        else:
            scores = Ridge(alpha=1 / self.strength).fit(x[train], y).predict(x)[:, None]
        return Result(self.name, scores, time.perf_counter() - began)


@dataclass(frozen=True)
class ConstantMethod:
    """The mean, or the shares of the classes: what is known without looking."""

    name: str = "constant"
    kind: str = "baseline"

    def run(self, task: PropertyTask, data: PropertyData, seed: int) -> Result:
        encoding = task.encoding(data)
        y = encoding.encode(data.targets[data.part("train")])
        row = np.bincount(y, minlength=encoding.outputs) / len(y) if encoding.classes else np.array([float(y.mean())])
        return Result(self.name, np.repeat(row[None].astype(float), len(data), axis=0), 0.0)


def average(task: PropertyTask, data: PropertyData, one: Result, two: Result, name: str = "average") -> Result:
    """Two results averaged; the share of the first is the task's, or chosen on the validation part."""
    val = data.part("val")
    share = task.share
    if share < 0:
        share = choose_share(task.encoding(data), one.scores[val], two.scores[val], data.targets[val])
    scores = share * one.scores + (1 - share) * two.scores
    return Result(name, scores, one.seconds + two.seconds, one.history, {"share": share})


def measure_all(
    task: PropertyTask, data: PropertyData, results: Sequence[Result], part: str = "test"
) -> dict[str, dict[str, float]]:
    """The metrics of every method on one part."""
    places = data.part(part)
    return {result.method: task.measure(data, places, result.scores[places]) for result in results}


def _training_details(trained: Trained) -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in trained.model.parameters())
    return {"best_epoch": trained.best_epoch, "epochs": len(trained.history), "parameters": count}
