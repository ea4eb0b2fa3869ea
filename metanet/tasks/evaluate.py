"""How good is a trained model on groups that it never saw, beside the strong simple baselines?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.errors import TaskError
from metanet.tasks import metrics
from metanet.tasks.data import PropertyData
from metanet.tasks.encoding import Encoding
from metanet.tasks.methods import ConstantMethod, FlatMethod, Method
from metanet.tasks.metrics import Interval, bootstrap_interval
from metanet.tasks.predict import PropertyModel
from metanet.tasks.property import PropertyTask

DESCRIPTIONS: Mapping[str, str] = {
    "average": "metanetwork and gradient boosting, averaged",
    "metanet": "strict metanetwork on the parameter graph, layer statistics in its readout",
    "trees": "gradient boosting on the layer statistics",
    "flat": "multilayer perceptron on the raw weights",
    "linear": "linear model on the layer statistics",
    "constant": "the mean of the training networks, or their most frequent class",
}
LABELS: Mapping[str, str] = {
    "tau": "Kendall's tau",
    "balanced_accuracy": "balanced accuracy",
    "improvement": "share of the error that is taken away",
    "closeness": "closeness (minus the decimal logarithm of the divergence)",
}

_TREES: Mapping[str, str] = {
    "statistics": DESCRIPTIONS["trees"],
    "rich": "gradient boosting on statistics in the canonical gauge",
    "responses": "gradient boosting on canonical statistics and answers to random inputs",
    "inverted": "gradient boosting on canonical statistics and answers to random and made-up inputs",
}


@dataclass(frozen=True)
class ModelScore:
    """How good one way of predicting is.

    Attributes:
        name: "metanet", "trees", "average", "flat", ...
        kind: "model" for what was trained to be used, "part" for what it consists of, "baseline" for the rest.
        description: In words.
        values: Metrics on the tested part.
        intervals: Bootstrap intervals of the first metrics, by whole groups.
        seconds: How long fitting took, where it is known.
    """

    name: str
    kind: str
    description: str
    values: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "description": self.description,
            "values": _defined(self.values),
            "intervals": {key: _defined(asdict(interval)) for key, interval in self.intervals.items()},
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Evaluation:
    """A trained model and its baselines on one part of the data.

    Attributes:
        column: What is predicted.
        part: Which part was tested.
        metric: The metric that counts, higher is better: one of `LABELS`.
        models: The scores, the trained model first.
        names: The tested networks.
        groups: The group of each.
        true: What is true of each.
        predicted: What the trained model says of each.
        share: Share of the metanetwork in the model's average; 1 where nothing is averaged.
        seed: Seed of baselines and bootstrap.
        features: What the boosted trees of an average see, as in `PropertyTask.features`.
    """

    column: str
    part: str
    metric: str
    models: tuple[ModelScore, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    true: tuple[float | str, ...]
    predicted: tuple[float | str, ...]
    share: float
    seed: int
    features: str = "statistics"

    def score(self, name: str) -> ModelScore:
        """The score of one way of predicting."""
        for model in self.models:
            if model.name == name:
                return model
        raise TaskError(f"no score of {name!r}", hint=f"there are {', '.join(model.name for model in self.models)}")

    @property
    def chosen(self) -> ModelScore:
        """The trained model as it predicts."""
        return self.models[0]

    @property
    def verdict(self) -> str:
        """One plain sentence: is the trained model above its baselines or not?"""
        label = LABELS[self.metric]
        ours = self.chosen.values[self.metric]
        rivals = {
            model.name: model.values[self.metric]
            for model in self.models[1:]
            if model.kind != "model" and model.name != "metanet" and np.isfinite(model.values[self.metric])
        }
        if not rivals or not np.isfinite(ours):
            return f"{label} of the model: {ours:.3f}."
        best = max(rivals, key=lambda name: rivals[name])
        relation = "above" if ours > rivals[best] else "equal to" if ours == rivals[best] else "below"
        others = ", ".join(f"{name} {value:.3f}" for name, value in rivals.items())
        return (
            f"{label} of the model ({self.chosen.name}) on {len(set(self.groups))} unseen groups is {ours:.3f}, "
            f"{relation} the best baseline ({best}, {rivals[best]:.3f}); baselines: {others}."
        )

    def to_json(self) -> dict[str, Any]:
        plain = {
            key: getattr(self, key) for key in ("column", "part", "metric", "share", "seed", "features", "verdict")
        }
        lists = {key: list(getattr(self, key)) for key in ("names", "groups", "true", "predicted")}
        return {**plain, "models": [model.to_json() for model in self.models], **lists}


def evaluate(
    model: PropertyModel,
    task: PropertyTask,
    data: PropertyData,
    baselines: Sequence[Method] = (FlatMethod(), ConstantMethod()),
    seed: int = 0,
    part: str = "test",
    draws: int = 500,
) -> Evaluation:
    """Measure a trained model on a part that it was not trained on, beside baselines fitted on the same training part.

    Gradient boosting on the task's features, which the model keeps for its average, is listed without asking.

    Args:
        model: The trained model, as read from its folder.
        task: The task that it was trained for.
        data: The data that it was trained on.
        baselines: Further ways of predicting, fitted here.
        seed: Seeds baselines and bootstrap.
        part: The part to test on.
        draws: Bootstrap samples.

    Raises:
        TaskError: The part is empty, or the model was trained on targets of another kind.
    """
    places, encoding = data.part(part), task.encoding(data)
    if not len(places):
        raise TaskError(f"the part {part!r} is empty", hint="give it a share of the groups")
    if encoding != model.encoding:
        raise TaskError("the model was trained on other targets than these", hint="use the data that it was trained on")
    found: list[tuple[str, str, NDArray[np.float64], float | None]] = []
    own = model.parts(data.subset(places))
    chosen = "average" if "average" in own else "metanet"
    for name in sorted(own, key=lambda key: key != chosen):
        kind = "model" if name == chosen else "baseline" if name == "trees" else "part"
        found.append((name, kind, own[name], None))
    for method in baselines:
        began = time.perf_counter()
        result = method.run(task, data, seed)
        found.append((method.name, "baseline", result.scores[places], time.perf_counter() - began))
    generator = np.random.default_rng(np.random.SeedSequence([seed, 0xB007]))
    scores = [
        ModelScore(
            name,
            kind,
            _TREES[model.features] if name == "trees" else DESCRIPTIONS.get(name, name),
            task.measure(data, places, score),
            _intervals(encoding, data, places, score, generator, draws),
            seconds,
        )
        for name, kind, score, seconds in found
    ]
    predicted = encoding.decode(found[0][2])
    return Evaluation(
        data.column,
        part,
        "balanced_accuracy" if encoding.classes else "tau",
        tuple(scores),
        tuple(data.names[i] for i in places),
        tuple(str(group) for group in data.groups[places]),
        tuple(value.item() for value in data.targets[places]),
        tuple(value.item() for value in predicted),
        model.share,
        seed,
        model.features,
    )


def training_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """The history of a training as curves: by panel and name, one value per epoch, None where it is not defined."""
    if not history:
        return {}
    panels: dict[str, dict[str, list[float | None]]] = {"loss": {}, "validation": {}, "learning rate": {}}
    labels = {
        "train_loss": ("loss", "training"),
        "val_loss": ("loss", "validation"),
        "learning_rate": ("learning rate", ""),
    }
    for key in history[0]:
        panel, name = labels.get(key, ("validation", key.removeprefix("val_")))
        if key in labels or key.startswith("val_"):
            values = [float(row[key]) for row in history]
            panels[panel][name or "learning rate"] = [value if np.isfinite(value) else None for value in values]
    return panels


def _defined(values: Mapping[str, float]) -> dict[str, float | None]:
    # NaN is no JSON: a metric that is not defined, as the rank correlation of a constant, is null.
    return {key: value if np.isfinite(value) else None for key, value in values.items()}


def _intervals(
    encoding: Encoding,
    data: PropertyData,
    places: NDArray[np.intp],
    scores: NDArray[np.float64],
    generator: np.random.Generator,
    draws: int,
) -> dict[str, Interval]:
    true, groups = data.targets[places], data.groups[places]
    if encoding.classes:
        wanted = {"balanced_accuracy": (metrics.balanced_accuracy, encoding.decode(scores))}
    else:
        wanted = {
            "tau": (metrics.kendall_tau, scores[:, 0]),
            "r2": (metrics.r_squared, encoding.decode(scores)),
        }
    return {
        name: bootstrap_interval(metric, predicted, true, groups, generator, draws)
        for name, (metric, predicted) in wanted.items()
    }
