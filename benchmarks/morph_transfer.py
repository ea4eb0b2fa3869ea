"""Can a predictor of morphs narrow networks of a data set that it never saw?

Trained on perceptrons 196-32-32-10 of many made-up data sets (`morph_worlds.py`) and, with `--seen`, of zoos; tested on
the test parts of the zoos given with `--zoo`, without their data. Beside it, least squares on smooth noise (no data)
and on 256 images of the zoo's own data.

    METANET_DATA=path/to/data python benchmarks/morph_transfer.py --zoo ZOO [--zoo ZOO] [--seen ZOO] [--quick]
        [--json FILE] [--folder FOLDER]

Worlds and trained predictors are kept in the folder, and a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import morph_worlds
import numpy as np
import quasi_zoo
import torch
from machine import machine
from tqdm import tqdm

import symmetry
from metanet.commands._morph_items import morph_items
from metanet.datasets import Zoo
from metanet.errors import TrainError
from metanet.tasks.morph_data import MorphItem, morph_data
from metanet.tasks.morph_model import MorphModel
from metanet.tasks.morph_score import evaluate_morph
from metanet.tasks.morph_task import SHARES, MorphTask
from metanet.train import TrainerSettings, train

WORLDS, QUICK_WORLDS = 140, 4
LEAST = 0.5  # accuracy; what learned less has learned its noise by heart
STEPS, EPOCHS, QUICK_EPOCHS = 200, 25, 1
MODEL = {"name": "virtual", "inputs": 0, "fields": 192, "used": 768, "steps": 2, "hidden": 48}
METRICS = ("kl", "agreement")


def world_items(count: int, folder: Path) -> Iterator[MorphItem]:
    """The networks of worlds that can be learned; one world in eight for validation."""
    module = quasi_zoo.network().eval()
    spec = symmetry.trace(module, (torch.randn(7, quasi_zoo.WIDTHS[0]),))
    for number in tqdm(range(count), desc="worlds", disable=not sys.stderr.isatty(), leave=False):
        data = morph_worlds.world(number)
        state = morph_worlds.networks(number, data, folder, lambda _: None)
        test = data.test_images.flatten(1)
        right = quasi_zoo.outputs(quasi_zoo.rows(state, slice(0, 16)), test).argmax(-1) == data.test_labels
        if float(right.float().mean()) < LEAST:
            continue
        names = tuple(f"network {k}" for k in range(len(state[0])))
        yield MorphItem(
            f"world {number}: perceptrons",
            module,
            spec,
            dict(zip(quasi_zoo.NAMES, state, strict=True)),
            data.shape,
            data.pool_images.flatten(1),
            test,
            data.test_labels,
            np.array(names),
            np.array(["val" if number % 8 == 7 else "train"] * len(names)),
            names,
        )


def predictor(folder: Path, items: Sequence[MorphItem], seed: int, epochs: int) -> MorphModel:
    """Trained, or read if it was."""
    try:
        return MorphModel.open(folder)
    except TrainError:
        task = MorphTask(batch=16, steps=STEPS, moments=0.3, validated=8)
        settings = TrainerSettings(
            seed=seed, epochs=epochs, learning_rate=1e-3, weight_decay=0.0, warmup=0.03, patience=0
        )
        train(task, morph_data(items), MODEL, settings, folder, True)
        return MorphModel.open(folder)


def rows_of(zoo: Path, model: MorphModel, variant: str, seed: int) -> list[dict[str, Any]]:
    """KL and agreement at each share, of the predictor and of its rivals."""
    opened = Zoo.open(zoo)
    found = evaluate_morph(model, morph_data(morph_items(opened)), seed=seed)
    names = {"metanet": variant, "smooth": "smooth_noise", "images": "ls256"}
    case = str(opened.manifest["config"]["name"])
    return [
        {
            "benchmark": "morph_transfer",
            "case": f"{case}/{share:g}",
            "variant": names[score.name],
            "metric": metric,
            "seed": seed,
            "value": score.values[f"{metric}_{share:g}"],
        }
        for score in found.models
        for share in SHARES
        for metric in METRICS
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """KL by case and variant, mean over seeds, and each seed."""
    lines = [f"{'case':<32}{'variant':<16}{'KL':>8}{'agreement':>11}  KL by seed"]
    for case, variant in dict.fromkeys((row["case"], row["variant"]) for row in rows):
        kl, agreement = (
            [r["value"] for r in rows if (r["case"], r["variant"], r["metric"]) == (case, variant, metric)]
            for metric in METRICS
        )
        shown = " ".join(f"{value:.4f}" for value in kl)
        lines.append(f"{case:<32}{variant:<16}{statistics.mean(kl):>8.4f}{statistics.mean(agreement):>11.4f}  {shown}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", metavar="FOLDER", type=Path, action="append", required=True, help="tested; repeatable")
    parser.add_argument("--seen", metavar="FOLDER", type=Path, action="append", default=[], help="also trained on")
    parser.add_argument("--quick", action="store_true", help="few worlds, one epoch, one seed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the training")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-morph-transfer"), help="what is kept")
    arguments = parser.parse_args()
    worlds, epochs = (QUICK_WORLDS, QUICK_EPOCHS) if arguments.quick else (WORLDS, EPOCHS)
    items = list(world_items(worlds, arguments.folder / "worlds"))
    items += [item for folder in arguments.seen for item in morph_items(Zoo.open(folder))]
    variant = "predicted_seen" if arguments.seen else "predicted_unseen"
    seen = "".join(f"-{folder.name}" for folder in arguments.seen)
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds[:1] if arguments.quick else arguments.seeds:
        model = predictor(arguments.folder / f"model-{worlds}-{epochs}{seen}-{seed}", items, seed, epochs)
        for zoo in arguments.zoo:
            rows += rows_of(zoo, model, variant, seed)
    print(machine())
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
