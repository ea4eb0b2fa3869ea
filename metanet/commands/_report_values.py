"""Which values does the report of a training show? Sections of `report.json`, put together from finished results."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from metanet.commands._training import Training
from metanet.commands._zoo_data import network_name
from metanet.commands.zoo_build import summarize

if TYPE_CHECKING:
    from metanet.datasets import Zoo
    from metanet.tasks import Evaluation, ModelScore
    from metanet.train import Trained

METRICS = {
    "tau": {
        "label": "Kendall's tau",
        "explanation": "Kendall's tau: how well the order of the networks is told; 1 is the right order, 0 is chance.",
    },
    "balanced_accuracy": {
        "label": "balanced accuracy",
        "explanation": "Balanced accuracy is the share of right answers, averaged over the classes.",
    },
    "improvement": {
        "label": "share of the error that is taken away",
        "explanation": "1 - error / error of unchanged networks: 0 for networks as they are, 1 for what is wanted.",
    },
}
METRICS["closeness"] = {
    "label": "closeness",
    "explanation": "Minus the decimal logarithm of the divergence after narrowing, mean over networks and sizes.",
}
NAMES = {
    "smooth": "smooth random inputs",
    "images": "256 images of its own data",
    "average": "metanetwork + gradient boosting",
    "metanet": "metanetwork",
    "flat": "flat MLP on raw weights",
    "constant": "constant",
    "linear": "layer statistics + linear model",
    "norm": "norm of the unit",
    "magnitude": "magnitude of the weight",
    "identity": "networks as they are",
    "same": "one change for all networks",
    "refit": "fitted to the wanted picture (bound)",
}
FEATURES = {
    "statistics": "layer statistics",
    "rich": "canonical statistics",
    "responses": "canonical statistics and answers to random inputs",
    "inverted": "canonical statistics and answers to random and made-up inputs",
}
KINDS = {"average": "average", "metanet": "metanetwork", "refit": "baseline", "images": "baseline"}


def training_values(training: Training, trained: Trained, evaluation: Evaluation) -> dict[str, Any]:
    """What every training's report has: target, models, held-out predictions, curve, configuration, versions."""
    from metanet.tasks import training_curves
    from metanet.train.artefact import versions

    column = training.task.column
    numbers = evaluation.metric == "tau"
    groups = "runs" if training.zoo is not None else str(training.config["dataset"].get("group") or "file") + "s"
    values: dict[str, Any] = {
        "format": "metanet.report/1",
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "target": {
            "column": column,
            "label": column.replace("_", " "),
            "share": numbers and all(0 <= float(v) <= 1 for v in evaluation.true),
        },
        "metric": METRICS[evaluation.metric],
        "groups": groups,
        "verdict": verdict(evaluation, groups),
        "models": [model_row(model, evaluation) for model in evaluation.models],
        "training": {
            "epochs": [int(row["epoch"]) for row in trained.history],
            "best_epoch": trained.best_epoch,
            "curves": readable_curves(training_curves(trained.history), groups),
        },
        "configuration": {key: training.config[key] for key in ("task", "dataset", "model", "trainer")},
        "seeds": {"root": training.settings.seed},
        "versions": versions(),
        "machine": {"cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system()},
    }
    if numbers:
        values["predictions"] = {
            "model": readable_name(evaluation.chosen.name, evaluation),
            "true": list(evaluation.true),
            "predicted": list(evaluation.predicted),
        }
        if training.zoo is not None:
            values["predictions"]["group"] = families(training.zoo, evaluation.names)
    if training.zoo is not None:
        known = numbers and column in training.zoo.index.names
        values["zoo"] = zoo_values(training.zoo, column if known else None)
        values["seeds"]["zoo"] = training.zoo.manifest["config"]["seed"]
        values["configuration"]["zoo"] = training.zoo.manifest["config"]
    return values


def zoo_values(zoo: Zoo, column: str | None) -> dict[str, Any]:
    """The zoo's section: what is in it, and how its networks are spread over `column`."""
    summary = summarize(zoo)
    keys = ("name", "runs", "failed_runs", "networks", "parameters", "families", "split")
    values: dict[str, Any] = {key: summary[key] for key in keys}
    config = zoo.manifest["config"]
    values["data"] = (
        f"a published zoo ({config['layout']})" if zoo.kind == "published" else f"images of {config['data']['name']}"
    )
    if column is not None:
        values["values"] = [float(value) for value in zoo.index[column]]
    return values


def families(zoo: Zoo, names: Sequence[str]) -> list[str]:
    """The family of the architecture of each named network."""
    known = {network_name(record): zoo.architectures[record["architecture"]].family for record in zoo.index}
    return [known[name] for name in names]


def readable_name(name: str, evaluation: Evaluation) -> str:
    """What people read instead of a model's name; of boosted trees also what they see."""
    if name == "trees":
        return f"{FEATURES[evaluation.features]} + gradient boosting"
    return NAMES.get(name, name)


def model_row(model: ModelScore, evaluation: Evaluation) -> dict[str, Any]:
    """One row of the table of models."""
    metric = evaluation.metric
    interval = model.intervals.get(metric)
    best = max((m for m in evaluation.models if _known(m, metric)), key=lambda m: m.values[metric], default=None)
    row = {
        "name": readable_name(model.name, evaluation),
        "kind": KINDS.get(model.name, "baseline"),
        "description": model.description,
        "score": model.values[metric],
        "interval": [interval.low, interval.high] if interval and interval.draws else None,
        "r2": model.values.get("r2"),
        "mae": model.values.get("mae"),
        "accuracy": model.values.get("accuracy"),
        "seconds": model.seconds,
        "best": model is best,
        "chosen": model is evaluation.chosen,
    }
    return {key: _finite(value) for key, value in row.items()} | {"score": _finite(row["score"]) or 0.0}


def verdict(evaluation: Evaluation, groups: str = "runs") -> str:
    """The honest sentence: is what was trained the best of what was tried, and what is it?"""
    metric, label = evaluation.metric, METRICS[evaluation.metric]["label"]
    scores = {m.name: m.values[metric] for m in evaluation.models if _known(m, metric)}
    rivals = {name: score for name, score in scores.items() if KINDS.get(name) is None}
    chosen = evaluation.chosen.name
    if chosen not in scores or not rivals:
        return f"{label} on held-out {groups}: {scores.get(chosen, float('nan')):.3f}."
    best = max(rivals, key=lambda name: rivals[name])
    ours, theirs = scores[chosen], rivals[best]
    if chosen == "average":
        what = (
            f"The model is an average: {evaluation.share:.0%} metanetwork and {1 - evaluation.share:.0%} gradient "
            f"boosting on {FEATURES[evaluation.features]}, the share chosen on validation {groups}."
        )
    else:
        what = "The model is the metanetwork by itself."
    if ours >= theirs:
        relation = f"Its {label} of {ours:.3f} on held-out {groups} is not below the best baseline's {theirs:.3f}"
        relation += f" ({readable_name(best, evaluation)})."
    else:
        relation = f"With a {label} of {ours:.3f} on held-out {groups} it is NOT the best: "
        relation += f"{readable_name(best, evaluation)} has {theirs:.3f}."
    if chosen == "average" and "metanet" in scores:
        alone = scores["metanet"]
        word = "not below" if alone >= theirs else "below"
        relation += f" The metanetwork alone has {alone:.3f}, {word} the best baseline."
    return f"{what} {relation}"


Curves = Mapping[str, Mapping[str, list[float | None]]]


def readable_curves(curves: Curves, groups: str = "runs") -> dict[str, dict[str, list[float | None]]]:
    """The loss and the metric that counts; the learning rate and the rest stay in metrics.csv."""
    wanted = {"loss": ("loss", None), "validation": ("validation", ("tau", "balanced_accuracy"))}
    found: dict[str, dict[str, list[float | None]]] = {}
    for panel, lines in curves.items():
        if panel in wanted and lines:
            names = wanted[panel][1]
            kept = {name: line for name, line in lines.items() if names is None or name in names}
            if panel == "validation" and len(kept) == 1:
                ((name, line),) = kept.items()
                found[f"{METRICS[name]['label']} on validation {groups}"] = {name: line}
            elif kept:
                found[panel] = kept
    return found


def _known(model: ModelScore, metric: str) -> bool:
    value = model.values.get(metric)
    return value is not None and value == value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
