"""How well is a network's test accuracy told from its weights alone, beside the simple baselines?

For each zoo and each of three seeds: the zoo is built anew (its runs, its split and the model's first weights change
with the seed), the model of `metanet train` is trained, and Kendall's tau is measured on runs that nothing was trained
on. The model is `average`: the strict metanetwork (`metanet`) averaged with gradient boosting on layer statistics
(`trees`), the share chosen on validation runs. Baselines: `trees` by itself, `flat` (a multilayer perceptron on raw
weights), `linear` (ridge regression on layer statistics).

    python benchmarks/property.py [--quick] [--json FILE] [--cases digits_mixed digits_cnn] [--folder FOLDER]

What is finished is kept in the folder, and a run that was stopped goes on there. Wanted: the mean tau of `average` is
not below that of any baseline.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from metanet.commands._compose import compose
from metanet.commands._zoo_data import zoo_items
from metanet.datasets import Zoo, build_zoo
from metanet.io import read_json, write_json_atomic
from metanet.tasks import FlatMethod, LinearMethod, PropertyModel, evaluate, property_data, task_from_mapping
from metanet.train import Artefact, TrainerSettings, train

SEEDS = (0, 1, 2)
ORDER = ("average", "metanet", "trees", "linear", "flat")
METRICS = ("tau", "r2", "mae")
QUICK = ("zoo.runs=96", "zoo.architectures=4", "trainer.epochs=8", "task.boosting.trees=150")


def result(case: str, seed: int, folder: Path, overrides: Sequence[str], threads: int | None) -> dict[str, Any]:
    """One zoo, one model, its evaluation; whatever of it exists is used."""
    done = folder / "evaluation.json"
    if done.exists():
        return dict(read_json(done))
    words = [f"zoo={case}", f"zoo.seed={seed}", f"seed={seed}", "trainer.progress=false", *overrides]
    config = compose("train", words)
    started = time.perf_counter()
    if not (folder / "zoo" / "manifest.json").exists():
        build_zoo(config["zoo"], folder / "zoo", progress=False, threads=threads)
    built = time.perf_counter() - started
    task = task_from_mapping(config["task"])
    data = property_data(zoo_items(Zoo.open(folder / "zoo"), task.column), task.column)
    started = time.perf_counter()
    if not (folder / "model" / "manifest.json").exists():
        train(task, data, config["model"], TrainerSettings.from_mapping(config["trainer"]), folder / "model")
    Artefact.open(folder / "model")
    trained = time.perf_counter() - started
    found = evaluate(PropertyModel.open(folder / "model"), task, data, (FlatMethod(), LinearMethod()), seed)
    value = {
        **found.to_json(),
        "data": data.describe(),
        "seconds": {"zoo": round(built, 1), "train": round(trained, 1)},
    }
    write_json_atomic(done, value)
    return value


def tidy(case: str, seed: int, value: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per model and metric."""
    rows = []
    for model in value["models"]:
        for metric in METRICS:
            row = {"benchmark": "property", "case": case, "variant": model["name"], "metric": metric, "seed": seed}
            rows.append({**row, "value": model["values"].get(metric)})
    return rows


def table(rows: Sequence[dict[str, Any]], cases: Sequence[str]) -> str:
    """Tau of every model by case and seed, with means."""
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"{'case':<14}{'model':<10}" + "".join(f"{f'seed {seed}':>9}" for seed in seeds) + f"{'mean':>9}{'R2':>8}   tau"
    ]
    for case in cases:
        means = {}
        for model in ORDER:
            mine = [row for row in rows if row["case"] == case and row["variant"] == model]
            taus = [row["value"] for row in mine if row["metric"] == "tau"]
            if not taus:
                continue
            # A constant prediction has no tau: it tells nothing about the order.
            means[model] = statistics.mean(0.0 if tau is None else tau for tau in taus)
            r2 = statistics.mean(row["value"] for row in mine if row["metric"] == "r2")
            cells = "".join(f"{'-':>9}" if tau is None else f"{tau:>9.3f}" for tau in taus)
            lines.append(f"{case:<14}{model:<10}{cells}{means[model]:>9.3f}{r2:>8.3f}")
        best = max((name for name in means if name not in ("average", "metanet")), key=lambda name: means[name])
        verdict = "as wanted" if means["average"] >= means[best] else "BELOW it"
        alone = "not below" if means["metanet"] >= means[best] else "below"
        lines.append(
            f"{case:<14}best baseline {best} {means[best]:.3f}: the model is {verdict}, metanet alone {alone} it"
        )
    return "\n".join(lines)


def machine() -> str:
    """What the numbers were measured on."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s); {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small zoo, one seed: under a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument(
        "--cases", nargs="+", default=["digits_mixed", "digits_cnn"], help="zoos, by their configuration"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-property"), help="where zoos and models go")
    parser.add_argument("--threads", metavar="N", type=int, help="processor cores that zoos are built with (all)")
    arguments = parser.parse_args()
    cases, seeds = (arguments.cases[:1], SEEDS[:1]) if arguments.quick else (arguments.cases, SEEDS)
    overrides = QUICK if arguments.quick else ()
    rows: list[dict[str, Any]] = []
    order = [(case, seed) for case in cases for seed in seeds]
    for case, seed in tqdm(order, desc="property", file=sys.stderr, disable=not sys.stderr.isatty()):
        folder = arguments.folder / f"{case}-{seed}{'-quick' if arguments.quick else ''}"
        folder.mkdir(parents=True, exist_ok=True)
        rows += tidy(case, seed, result(case, seed, folder, overrides, arguments.threads))
    print(machine())
    print(table(rows, cases))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
