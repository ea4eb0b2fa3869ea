"""How well is a network's test accuracy told from its weights alone, beside the strong simple baselines?

With `--columns` also other columns: the generalisation gap, the learning rate, the family (classes).
One zoo per case, three seeds: seed 0 is the zoo's own split, the others split its runs anew; they also seed all models.
Runs are never on two sides, and everything is selected on validation runs. No method sees any data.

    strict      metanetwork, strict under the whole group (`symmetry="full"`, sweeps, learned inputs, layer statistics)
    quasi       the same, reading the networks that a quasi-equivariant layer makes: each changed, and moved by one
                element of its own group (which an invariant readout cannot see: its gradient is zero)
    soft        the same with an element per channel, which leaves the orbit; both get half the epochs
    ensemble    `strict` averaged with boosted trees on the features that are best on validation runs, the share chosen
                there too (as `metanet train model=ensemble task.features=...` does)
    flat        multilayer perceptron on raw weights
    statistics  layer statistics + gradient boosting
    rich        statistics in the canonical gauge, path norms, spectra + gradient boosting
    responses   `rich` and answers to random smooth inputs + gradient boosting
    inverted    `responses` and answers to inputs that the better training networks agree on + gradient boosting
    probing     answers to learned inputs, nothing else (no messages, no statistics)
    nfn         `nfn` 0.1.2 from PyPI (see nfn_runner.py); reads one architecture only, so it has no `mixed` row

Seconds are of processor time, of one thread, for all of fitting and predicting (`nfn`: its training steps alone).
With `--speed`, training steps of all networks are timed one after the other, without preparation and validation.
`orbit_change` is the largest change of a predicted accuracy when test networks move along their orbit: permutations,
scalings, signs and matrices drawn at random.

    python benchmarks/property.py [--quick] [--json FILE] [--cases mnist_cnn mixed] [--zoos FOLDER]
                                  [--columns test_accuracy ...] [--variants ...] [--nfn-python PYTHON]

What is finished is kept in the folder, and a run that was stopped goes on there. Wanted on `mnist_cnn`: tau .84, R2
.94, orbit change at most .002; at least 5 times the training throughput of `nfn`. On `mixed`: above every baseline.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from property_ways import (
    COLUMN,
    METANETS,
    QUICK_ZOO,
    SEEDS,
    TREES,
    Split,
    methods,
    nfn_result,
    retold,
    splits_of,
    training_rate,
    zoo_of,
)
from tqdm import tqdm

from metanet.commands._zoo_data import zoo_items
from metanet.datasets import Zoo
from metanet.io import read_json, write_json_atomic
from metanet.tasks import PropertyData, PropertyTask, Result, average

VARIANTS = ("strict", "quasi", "soft", "ensemble", "flat", *TREES, "probing", "nfn")
METRICS = (
    "kendall_tau", "r2", "accuracy", "balanced_accuracy", "train_tau", "train_accuracy", "orbit_change", "train_s",
    "train_networks_per_s",
)  # fmt: skip


def task_of(column: str) -> PropertyTask:
    """The task of all variants."""
    return PropertyTask(column, batch=64, chunk=32, jitter=0.0)


def run_seed(
    split: Split,
    seed: int,
    folder: Path,
    fits: Mapping[str, Callable[[PropertyTask, PropertyData, int], Result]],
    column: str = COLUMN,
    ensemble: bool = True,
) -> dict[str, dict[str, float]]:
    """All variants on one split, and the ensemble of them; whatever is finished in the folder is used."""
    task = task_of(column)
    data = split.data
    one_architecture = len({tuple(t.shape for t in graph.state().values()) for graph in data.graphs}) == 1
    values: dict[str, dict[str, float]] = {}
    results: dict[str, Result] = {}
    for name in (*fits, *(["ensemble"] if ensemble else [])):
        done, kept = folder / f"{seed}-{name}.json", folder / f"{seed}-{name}.npz"
        if name == "nfn" and not one_architecture:
            print("nfn: left out, it reads networks of one architecture only", file=sys.stderr)
            continue
        if done.exists() and kept.exists():
            values[name] = dict(read_json(done))
            with np.load(kept) as stored:
                scores = np.zeros((len(data), stored["scores"].shape[1]))
                scores[split.own] = stored["scores"]
                results[name] = Result(name, scores, values[name]["train_s"])
            continue
        if name == "ensemble":
            known = [name for name in TREES if name in results]
            if "strict" not in results or not known:
                continue
            best = min(known, key=lambda name: told_of(task, data, results[name])["val_loss"])
            # Copies stand in no validation part, so the share is chosen as it is without them.
            result = average(task, data, results["strict"], results[best], "ensemble")
            print(f"seed {seed} ensemble: with {best}", file=sys.stderr)
        else:
            began = time.process_time()
            result = fits[name](task, data, seed)
            if name != "nfn":  # which runs in another process and measures itself
                result = replace(result, seconds=time.process_time() - began)
        results[name] = result
        value = measures(task, split, result)
        np.savez(kept, scores=result.scores[split.own])
        write_json_atomic(done, value)
        values[name] = value
        print(
            f"seed {seed} {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in value.items()), file=sys.stderr, flush=True
        )
    return values


def told_of(task: PropertyTask, data: PropertyData, result: Result) -> dict[str, float]:
    """Loss and metrics on the validation part."""
    val = data.part("val")
    scores = result.scores[val]
    if task.encoding(data).classes:
        scores = np.log(np.clip(scores, 1e-9, None))
    return task.validate(scores.astype(np.float32), data)


def measures(task: PropertyTask, split: Split, result: Result) -> dict[str, float]:
    """What is told of one variant: quality on test and training networks, change along orbits, seconds, speed."""
    data, test, chosen, copies = split.data, split.test, split.chosen, split.copies
    encoding, train = task.encoding(data), data.part("train")
    found = task.measure(data, test, result.scores[test])
    known = task.measure(data, train, result.scores[train])
    said = encoding.decode(result.scores)
    if encoding.classes:
        value = {**found, "train_accuracy": known["accuracy"]}
        value["orbit_change"] = float(np.mean(said[chosen] != said[copies]))  # share of the answers that change
    else:
        value = {"kendall_tau": found["tau"], "r2": found["r2"], "train_tau": known["tau"]}
        value["orbit_change"] = float(np.abs(said[chosen] - said[copies]).max())
    value["train_s"] = result.seconds
    if "share" in result.details:
        value["share"] = float(result.details["share"])
    return value


def rates(split: Split, column: str, variants: Sequence[str], nfn_python: Path | None) -> dict[str, float]:
    """Training networks per second of processor time, one way after the other."""
    task = task_of(column)
    found = {name: training_rate(task, split.data, METANETS[name]) for name in variants if name in METANETS}
    if nfn_python is not None and "nfn" in variants:
        found["nfn"] = float(nfn_result(task, split.data, 0, nfn_python, 2, [1e-3]).details["train_networks_per_s"])
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, with the measure that counts of every seed: tau of numbers, accuracy of classes."""
    seeds = sorted({row["seed"] for row in rows})
    heads = "".join(f"{f'seed {seed}':>8}" for seed in seeds)
    lines: list[str] = []
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        classes = any(row["metric"] == "accuracy" for row in mine)
        first, second, third = METRICS[2:4] + ("train_accuracy",) if classes else ("kendall_tau", "r2", "train_tau")
        names = ("accuracy", "balanced", "train") if classes else ("tau", "R2", "train")
        lines.append(
            f"{case:<30}{'variant':<12}{heads}{names[0]:>10}{'spread':>8}{names[1]:>10}{names[2]:>8}"
            f"{'orbit':>10}{'train s':>9}{'nets/s':>8}"
        )
        for variant in VARIANTS:
            found: dict[str, list[float]] = {}
            for row in mine:
                if row["variant"] == variant:
                    found.setdefault(row["metric"], []).append(row["value"])
            if not found:
                continue
            mean = {metric: statistics.mean(values) for metric, values in found.items()}
            each = "".join(f"{value:>8.3f}" for value in found[first]).ljust(len(heads))
            cells = f"{mean[first]:>10.3f}{np.std(found[first]):>8.3f}{mean[second]:>10.3f}{mean[third]:>8.3f}"
            cells += f"{max(found['orbit_change']):>10.5f}{mean['train_s']:>9.1f}"
            speed = f"{mean['train_networks_per_s']:>8.0f}" if "train_networks_per_s" in mean else ""
            lines.append(f"{'':<30}{variant:<12}{each}{cells}{speed}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small zoo, one seed: about a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--cases", nargs="+", default=["mnist_cnn", "mixed"], help="zoos, by their configuration")
    parser.add_argument("--columns", nargs="+", default=[COLUMN], help="what is told: columns of the index")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--speed", action="store_true", help="also measure training networks per second, in turn")
    parser.add_argument("--zoos", type=Path, help="where the zoos lie (FOLDER/zoos); missing ones are built there")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-property"), help="where results are kept")
    parser.add_argument("--nfn-python", metavar="PYTHON", type=Path, help="interpreter that has nfn, see nfn_runner.py")
    parser.add_argument("--nfn-rates", type=float, nargs="+", default=[1e-3, 3e-3], help="learning rates of nfn")
    parser.add_argument("--epochs", type=int, default=40, help="of the metanetworks (quasi and soft: half)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", metavar="N", type=int, help="processor cores that zoos are built with (all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases, seeds = (["digits_cnn"], [0]) if arguments.quick else (arguments.cases, arguments.seeds)
    if arguments.nfn_python is None and "nfn" in arguments.variants:
        print("nfn: left out, no --nfn-python given (see nfn_runner.py)", file=sys.stderr)
    fits = methods(arguments.quick, arguments.nfn_python, arguments.nfn_rates, arguments.epochs)
    wanted = {name: way for name, way in fits.items() if name in arguments.variants}
    suffix = "-quick" if arguments.quick else ""
    rows: list[dict[str, Any]] = []
    zoos: dict[str, Zoo] = {}
    splits: dict[tuple[str, str], dict[int, Split]] = {}
    order = [(case, column, seed) for case in cases for column in arguments.columns for seed in seeds]
    for case, column, seed in tqdm(order, desc="property", file=sys.stderr, disable=not sys.stderr.isatty()):
        called = case if column == COLUMN else f"{case}-{column}"
        folder = arguments.folder / f"{called}{suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        if case not in zoos:
            place = (arguments.zoos or arguments.folder / "zoos") / f"{case}{suffix}"
            zoos[case] = zoo_of(case, place, QUICK_ZOO if arguments.quick else (), arguments.threads)
        items = list(zoo_items(zoos[case], column)) if (case, column) not in splits else []
        if column == COLUMN and items:
            splits[case, column] = splits_of(items, seeds)
        elif items:
            base = splits.get((case, COLUMN)) or splits_of(list(zoo_items(zoos[case], COLUMN)), seeds)
            splits.setdefault((case, COLUMN), base)
            splits[case, column] = {key: retold(value, items, column) for key, value in base.items()}
        found = run_seed(splits[case, column][seed], seed, folder, wanted, column, "ensemble" in arguments.variants)
        for variant, value in found.items():
            row = {"benchmark": "property", "case": called, "variant": variant, "seed": seed}
            rows += [{**row, "metric": metric, "value": value[metric]} for metric in METRICS if metric in value]
        if arguments.speed and seed == seeds[0]:
            speeds = rates(splits[case, column][seed], column, arguments.variants, arguments.nfn_python)
            for name, speed in speeds.items():
                row = {"benchmark": "property", "case": called, "variant": name, "seed": seed}
                rows.append({**row, "metric": "train_networks_per_s", "value": speed})
    print(machine())
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
