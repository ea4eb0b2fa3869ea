"""Which algorithm trained this agent? A real zoo that nobody here made, 73 agents of a2c, ars, ppo and trpo.

Nested cross-validation: five outer folds test, three inner folds stop the training and choose the settings, and an
environment is never on two sides. `metanet` is the strict metanetwork with layer statistics and probes in its readout;
`average` is the mean of its probabilities and those of `trees` (gradient boosting on layer statistics). `linear` is
logistic regression on layer statistics, `flat` a multilayer perceptron on raw weights, `majority` the most frequent
class. Balanced accuracy, its interval by resampling whole environments, mean over repeats of the folds.

Agents of ars are linear maps or much smaller than all others: their structure alone gives them away. The second column
of numbers therefore measures on the agents of a2c, ppo and trpo only, which share one structure.

    python benchmarks/rl_agents.py [--quick] [--json FILE] [--data FOLDER] [--state FILE]

Finished folds are kept in the state file, and a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from numpy.typing import NDArray
from tqdm import tqdm

from metanet.commands._compose import compose
from metanet.io import read_json, write_json_atomic
from metanet.tasks import (
    BoostingOptions,
    FlatMethod,
    LinearMethod,
    MetanetMethod,
    Method,
    OuterFold,
    Plan,
    PropertyData,
    PropertyTask,
    TreesMethod,
    balanced_accuracy,
    bootstrap_interval,
    labelled_folder,
    majority_class,
    nested_cross_validation,
    property_data,
    task_from_mapping,
)
from metanet.tasks.nested import collect
from metanet.train import TrainerSettings

STRUCTURAL = "ars"
ROOT = Path(__file__).resolve().parent.parent


def families(config: dict[str, Any], quick: bool) -> dict[str, list[Method]]:
    """The settings that the inner folds choose from."""
    settings = {**config["trainer"], "progress": False}
    if quick:
        settings = {**settings, "epochs": 12, "patience": 0}
    trainer = TrainerSettings.from_mapping(settings)
    small = config["model"]
    models: list[tuple[str, dict[str, Any]]] = [("small", small)]
    if not quick:
        models.append(("wide", {**small, "hidden": 16, "layers": 2}))
    trees = [(depth, BoostingOptions(trees=120, depth=depth, leaf=2)) for depth in (2, 4)]
    return {
        "metanet": [MetanetMethod(model, trainer, name=name) for name, model in models],
        "trees": [TreesMethod(options, name=f"depth {depth}") for depth, options in trees[: 1 if quick else 2]],
        "linear": [LinearMethod(strength, name=f"C {strength}") for strength in (0.01, 0.1, 1.0)],
        "flat": [FlatMethod()],
    }


def predictions(
    task: PropertyTask, data: PropertyData, folds: Sequence[OuterFold], repeat: int
) -> dict[str, NDArray[np.str_]]:
    """What every family says of every agent in one repeat."""
    classes = np.unique(data.targets)
    scores = {family: collect(task, data, folds, family, repeat) for family in ("metanet", "trees", "linear", "flat")}
    scores["average"] = (scores["metanet"] + scores["trees"]) / 2
    said = {family: classes[score.argmax(axis=1)] for family, score in scores.items()}
    said["majority"] = np.full(len(data), majority_class(data.targets))
    return said


def measure(task: PropertyTask, data: PropertyData, folds: Sequence[OuterFold], repeats: int) -> list[dict[str, Any]]:
    """Tidy rows: balanced accuracy and its interval, with and without the class that structure gives away."""
    rows: list[dict[str, Any]] = []
    everyone = np.ones(len(data), dtype=bool)
    for repeat in range(repeats):
        for family, said in predictions(task, data, folds, repeat).items():
            for case, chosen in (("four algorithms", everyone), ("without ars", data.targets != STRUCTURAL)):
                true, predicted, groups = data.targets[chosen], said[chosen], data.groups[chosen]
                if family == "majority":
                    predicted = np.full(len(true), majority_class(true))
                generator = np.random.default_rng(np.random.SeedSequence([repeat, 0xA6E]))
                interval = bootstrap_interval(balanced_accuracy, predicted, true, groups, generator)
                row = {"benchmark": "rl_agents", "case": case, "variant": family, "seed": repeat}
                rows.append({**row, "metric": "balanced_accuracy", "value": balanced_accuracy(predicted, true)})
                rows.append({**row, "metric": "interval_low", "value": interval.low})
                rows.append({**row, "metric": "interval_high", "value": interval.high})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Balanced accuracy by model, mean over repeats."""
    cases = ("four algorithms", "without ars")
    lines = [f"{'balanced accuracy':<20}" + "".join(f"{case:>16}{'95 % interval':>18}" for case in cases)]
    for family in ("average", "metanet", "trees", "linear", "flat", "majority"):
        line = f"{family:<20}"
        for case in cases:
            means = []
            for metric in ("balanced_accuracy", "interval_low", "interval_high"):
                keys = (case, family, metric)
                means.append(
                    statistics.mean(r["value"] for r in rows if (r["case"], r["variant"], r["metric"]) == keys)
                )
            line += f"{means[0]:>16.3f}{f'{means[1]:.2f} to {means[2]:.2f}':>18}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat, fewer folds and epochs")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument(
        "--data", metavar="FOLDER", type=Path, help="holds rl-agents/ (METANET_DATA, or ../shared/data)"
    )
    parser.add_argument("--state", metavar="FILE", type=Path, help="where finished folds are kept")
    parser.add_argument("--repeats", type=int, default=3, help="times that the folds are dealt anew (3)")
    arguments = parser.parse_args()
    base = arguments.data or Path(os.environ.get("METANET_DATA", ROOT.parent / "shared" / "data"))
    if not (base / "rl-agents").is_dir():
        sys.exit(f"rl_agents: {base / 'rl-agents'} is not there; name the folder that holds rl-agents/ with --data")
    config = compose("train", ["task=algorithm", f"dataset.folder={base / 'rl-agents'}"])
    task = task_from_mapping(config["task"])
    data = property_data(labelled_folder(config["dataset"]).items(task.column), task.column, shares={"train": 1.0})
    plan = Plan(outer=3, inner=2) if arguments.quick else Plan(repeats=arguments.repeats)
    methods = families(config, arguments.quick)
    state = arguments.state or Path(f"runs/benchmark-rl_agents{'-quick' if arguments.quick else ''}.json")
    state.parent.mkdir(parents=True, exist_ok=True)
    key = {"data": data.fingerprint, "config": {"task": config["task"], "methods": repr(methods)}, "plan": vars(plan)}
    kept = read_json(state) if state.exists() else {}
    # Folds of other data, settings or code are of no use.
    done = [OuterFold.from_json(value) for value in kept.get("folds", [])] if kept.get("key") == key else []
    folds = list(done)
    total = plan.repeats * plan.outer * len(methods)
    with tqdm(
        total=total, initial=len(done), desc="rl_agents", file=sys.stderr, disable=not sys.stderr.isatty()
    ) as bar:

        def keep(fold: OuterFold) -> None:
            folds.append(fold)
            write_json_atomic(state, {"key": key, "folds": [one.to_json() for one in folds]}, indent=None)
            bar.update()

        finished = nested_cross_validation(task, data, methods, plan, done, keep)
    rows = measure(task, data, finished, plan.repeats)
    counts = {str(name): int(np.sum(data.targets == name)) for name in np.unique(data.targets)}
    print(machine())
    print(f"{len(data)} agents of {len(np.unique(data.groups))} environments: {counts}; {plan}")
    print(table(rows))
    chosen = {family: sorted({fold.chosen for fold in finished if fold.family == family}) for family in methods}
    print(f"chosen by the inner folds: {chosen}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
