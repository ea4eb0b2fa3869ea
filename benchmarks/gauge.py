"""What does the choice of gauge do to a strict metanetwork's accuracy prediction?

The same model and training on the same splits; only what the weights look like to the model differs.

    permutation  the weights as they are, each tensor divided by its root mean square
    rms          `symmetry="full"`: incoming norms 1, then each tensor divided by its root mean square (logarithm kept)
    unit         incoming norms 1, then constants of the architecture alone
    balanced     incoming norm = outgoing norm, then as `rms`

No probes and no responses: those run the networks' functions, which no gauge changes. `orbit_change` is the largest
change of a predicted accuracy when test networks move along their orbits (see property.py). The default is chosen by
`val_tau`, never by the test figures.

    python benchmarks/gauge.py [--quick] [--json FILE] [--cases mnist_cnn mixed] [--zoos FOLDER]

What is finished is kept in the folder, and a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from property_ways import COLUMN, QUICK_ZOO, SEEDS, data_of, zoo_of
from tqdm import tqdm

from metanet.commands._zoo_data import zoo_items
from metanet.io import read_json, write_json_atomic
from metanet.tasks import MetanetMethod, PropertyItem, PropertyTask
from metanet.train import TrainerSettings

MODEL = {"layers": 2, "hidden": 16, "messages": "sweep", "statistics": True, "readout": 64}
VARIANTS: dict[str, dict[str, str]] = {
    "permutation": {"symmetry": "permutation"},
    "rms": {"symmetry": "full", "gauge": "rms"},
    "unit": {"symmetry": "full", "gauge": "unit"},
    "balanced": {"symmetry": "full", "gauge": "balanced"},
}
METRICS = ("kendall_tau", "val_tau", "r2", "train_tau", "orbit_change", "train_s")


def run_variant(items: Sequence[PropertyItem], seed: int, variant: str, epochs: int) -> dict[str, float]:
    """One variant on one split."""
    task = PropertyTask(COLUMN, batch=32, chunk=16, jitter=0.0)
    data, chosen, copies = data_of(items, seed)
    settings = TrainerSettings(
        epochs=epochs, learning_rate=3e-3, weight_decay=0.1, average=0.95, patience=0, progress=False
    )
    result = MetanetMethod({**MODEL, **VARIANTS[variant]}, settings, name=variant).run(task, data, seed)
    test = np.setdiff1d(data.part("test"), copies)
    measured, said = task.measure(data, test, result.scores[test]), task.encoding(data).decode(result.scores)
    tau = {
        part: task.measure(data, data.part(part), result.scores[data.part(part)])["tau"] for part in ("train", "val")
    }
    return {
        "kendall_tau": measured["tau"],
        "val_tau": tau["val"],
        "r2": measured["r2"],
        "train_tau": tau["train"],
        "orbit_change": float(np.abs(said[chosen] - said[copies]).max()),
        "train_s": result.seconds,
    }


def table(rows: Sequence[dict[str, Any]], cases: Sequence[str]) -> str:
    """Means over seeds, with tau of every seed and the deviation between seeds."""
    seeds = sorted({row["seed"] for row in rows})
    head = "".join(f"{f'seed {seed}':>8}" for seed in seeds)
    columns = f"{'tau':>8}{'+-':>7}{'val tau':>9}{'R2':>8}{'train tau':>11}{'orbit':>11}{'train s':>9}"
    lines = [f"{'case':<12}{'variant':<13}{head}{columns}"]
    for case in cases:
        for variant in VARIANTS:
            mine = [row for row in rows if row["case"] == case and row["variant"] == variant]
            found = {metric: [row["value"] for row in mine if row["metric"] == metric] for metric in METRICS}
            if mine:
                mean = {metric: statistics.mean(values) for metric, values in found.items()}
                taus = "".join(f"{value:>8.3f}" for value in found["kendall_tau"])
                cells = f"{mean['kendall_tau']:>8.3f}{statistics.pstdev(found['kendall_tau']):>7.3f}"
                cells += f"{mean['val_tau']:>9.3f}{mean['r2']:>8.3f}{mean['train_tau']:>11.3f}"
                cells += f"{mean['orbit_change']:>11.6f}{mean['train_s']:>9.1f}"
                lines.append(f"{case:<12}{variant:<13}{taus}{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small zoo, one seed: under a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--cases", nargs="+", default=["mnist_cnn", "mixed"], help="zoos, by their configuration")
    parser.add_argument("--zoos", type=Path, help="where the zoos lie (FOLDER/zoos); missing ones are built there")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-gauge"), help="where results are kept")
    parser.add_argument("--epochs", type=int, default=40, help="of training; results of other numbers stand apart")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", metavar="N", type=int, help="processor cores that zoos are built with (all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases, seeds = (["digits_cnn"], [0]) if arguments.quick else (arguments.cases, arguments.seeds)
    suffix = "-quick" if arguments.quick else ""
    epochs = 8 if arguments.quick else arguments.epochs
    rows: list[dict[str, Any]] = []
    items: dict[str, list[PropertyItem]] = {}
    order = [(case, seed, variant) for case in cases for seed in seeds for variant in VARIANTS]
    for case, seed, variant in tqdm(order, desc="gauge", file=sys.stderr, disable=not sys.stderr.isatty()):
        folder = arguments.folder / f"{case}{suffix}{'' if epochs in (8, 40) else f'-{epochs}'}"
        folder.mkdir(parents=True, exist_ok=True)
        done = folder / f"{seed}-{variant}.json"
        if not done.exists():
            if case not in items:
                place = (arguments.zoos or arguments.folder / "zoos") / f"{case}{suffix}"
                overrides = QUICK_ZOO if arguments.quick else ()
                items[case] = list(zoo_items(zoo_of(case, place, overrides, arguments.threads), COLUMN))
            value = run_variant(items[case], seed, variant, epochs)
            write_json_atomic(done, value)
            print(f"{case} seed {seed} {variant}: {value}", file=sys.stderr, flush=True)
        row = {"benchmark": "gauge", "case": case, "variant": variant, "seed": seed}
        rows += [{**row, "metric": metric, "value": value} for metric, value in read_json(done).items()]
    print(machine())
    print(table(rows, cases))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
