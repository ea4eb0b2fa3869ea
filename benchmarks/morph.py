"""How much of their function do networks keep that are narrowed in every hidden layer, without fine-tuning?

Networks of a zoo's test part lose 25, 50 and 75 % of the units of every space that weights alone read; test images,
which nothing was fitted to, tell KL(old || narrow), the agreement of classes, and accuracy. Seeds draw the networks (at
most two in three of the part) and the images that are fitted to.

Without data: `random`, `l1`, `l2` (magnitudes), `torch_pruning` (its group L2), `merging` (Srinivas and Babu 2015),
`noise` and `smooth_noise` (optimal brain surgeon and least squares on made-up inputs). With data: `taylor`, `oracle`
(units whose loss alone costs least, measured one by one), `oracle_ls4096` (that order and least squares), `ls64`,
`ls256`, `ls4096` (optimal brain surgeon and least squares on so many images), `sequential` (least squares layer by
layer; convolutional networks: 1,024 images). `..._rounds` go on from there: up to eight rounds of Gauss-Newton on all
weights that are left, down the KL between both networks on the inputs that they were refitted on (at most 1,024, no
labels). Ridge, noise and rounds are chosen for each on validation networks and images of the pool, at half the units.

`--predictor NAME=FOLDER` adds `NAME`, `NAME_sequential` and `NAME_rounds`: the same on inputs that a trained predictor
(`metanet train task=morph`, on the training part) makes from the weights alone; `{seed}` in it stands for the seed.

    METANET_DATA=path/to/data python benchmarks/morph.py --zoo ZOO [--quick] [--json FILE] [--variants l2 ls256 ...]
        [--torch-pruning-python ENV/bin/python] [--predictor probes=FOLDER{seed}] [--folder FOLDER]

What is finished is kept in the folder, and a run that was stopped goes on there. Cases are `<zoo>/<share that stays>`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import morph_torch_pruning as torch_pruning
import torch
from machine import machine
from morph_learned import predictor_ways
from morph_subjects import Images, Subject, images_of, measured, subjects_of
from morph_ways import WAYS, WITH_DATA, Choice, Edit, Way
from tqdm import tqdm

from metanet.datasets import Zoo
from metanet.io import read_json, write_json_atomic

SHARES = (0.75, 0.5, 0.25)
SEEDS = (0, 1, 2)
NETWORKS, QUICK_NETWORKS = 60, 8
SCORED, QUICK_SCORED = 2000, 300
TUNED_NETWORKS, TUNED_SEED = 20, 1000
METRICS = ("kl", "agreement", "accuracy")

Values = dict[str, dict[str, list[float]]]  # by share and metric, one for each network


def choose(choice: Choice, subjects: Sequence[Subject], images: Images) -> dict[str, Any]:
    """The variant and ridge with the lowest KL at half the units."""
    totals: dict[tuple[str, float], list[float]] = defaultdict(list)
    for subject in subjects:
        before = subject.answers(subject.states, images.score)
        for name, way in choice.ways.items():
            edit = way(subject, images, torch.Generator().manual_seed(TUNED_SEED))
            for ridge in choice.ridges:
                after = subject.answers(edit(0.5, ridge), images.score)
                totals[name, ridge] += measured(before, after, images.score_labels)["kl"]
    means = {key: statistics.mean(values) for key, values in totals.items()}
    name, ridge = min(means, key=means.__getitem__)
    return {"way": name, "ridge": ridge, "kl": means[name, ridge]}


def narrowed(way: Way, ridge: float, subjects: Sequence[Subject], images: Images, seed: int) -> Values:
    """What a way does to all networks."""
    generator = torch.Generator().manual_seed(seed)
    found: Values = {str(share): defaultdict(list) for share in SHARES}
    for subject in subjects:
        before = subject.answers(subject.states, images.score)
        edit: Edit = way(subject, images, generator)
        for share in SHARES:
            after = subject.answers(edit(share, ridge), images.score)
            for metric, values in measured(before, after, images.score_labels).items():
                found[str(share)][metric] += values
    return found


def unchanged(subjects: Sequence[Subject], images: Images) -> Values:
    """What the networks are before."""
    return narrowed(lambda subject, *_: lambda share, ridge: subject.states, 0.0, subjects, images, 0)


class Run:
    """One zoo: settings, and pieces that are kept."""

    def __init__(self, zoo: Zoo, folder: Path, networks: int, scored: int, predictors: Mapping[str, str]) -> None:
        self.zoo, self.networks, self.scored, self.predictors = zoo, networks, scored, predictors
        self.name = str(zoo.manifest["config"]["name"])
        self.folder = folder / f"{self.name}-{networks}-{scored}"
        self._drawn: dict[int, tuple[list[Subject], Images]] = {}

    def drawn(self, seed: int) -> tuple[list[Subject], Images]:
        """Networks and images of a seed, or those that settings are chosen on."""
        if seed not in self._drawn:
            tuning = seed == TUNED_SEED
            split, most = ("val", min(TUNED_NETWORKS, self.networks)) if tuning else ("test", self.networks)
            images = images_of(self.zoo, seed, self.scored, tuning)
            self._drawn = {seed: (subjects_of(self.zoo, split, seed, most), images)}
        return self._drawn[seed]

    def choice(self, variant: str, seed: int) -> Choice:
        """The ways of a variant; predictors have one for each seed."""
        if variant in WAYS:
            return WAYS[variant]
        name, folder = next((n, f) for n, f in self.predictors.items() if variant in predicted_names(n))
        return predictor_ways(name, Path(folder.replace("{seed}", str(seed))))[variant]

    def setting(self, variant: str) -> dict[str, Any]:
        """Which way and ridge a variant takes."""
        choice = self.choice(variant, SEEDS[0])
        if len(choice.ways) == 1 and len(choice.ridges) == 1:
            return {"way": next(iter(choice.ways)), "ridge": choice.ridges[0]}
        file = self.folder / "chosen" / f"{variant}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(file, choose(choice, *self.drawn(TUNED_SEED)))
        return dict(read_json(file))

    def values(self, variant: str, seed: int, python: Path | None) -> Values:
        """A variant's piece, from its file or made now."""
        file = self.folder / str(seed) / f"{variant}.json"
        if not file.exists():
            if variant == "unchanged":
                found = unchanged(*self.drawn(seed))
            elif variant == "torch_pruning" and python is not None:
                found = torch_pruning.pruned(python, *self.drawn(seed), SHARES)
            else:
                setting = self.setting(variant)
                found = narrowed(
                    self.choice(variant, seed).ways[setting["way"]], setting["ridge"], *self.drawn(seed), seed
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(file, found)
        return dict(read_json(file))


def predicted_names(name: str) -> tuple[str, str, str]:
    """The variants of a predictor."""
    return name, f"{name}_sequential", f"{name}_rounds"


def tidy(case: str, variant: str, seed: int, found: Values) -> list[dict[str, Any]]:
    """One row per share and metric: the mean over the networks."""
    return [
        {
            "benchmark": "morph",
            "case": f"{case}/{share}",
            "variant": variant,
            "metric": metric,
            "seed": seed,
            "value": statistics.mean(values),
        }
        for share, metrics in found.items()
        for metric, values in metrics.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """By case: mean over the seeds, and for KL the standard deviation and each seed."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        values[row["case"], row["variant"], row["metric"]].append(row["value"])
    lines = [f"{'case':<26}{'variant':<16}{'KL':>9}{'spread':>9}{'agreement':>11}{'accuracy':>10}  KL by seed"]
    for case, variant in dict.fromkeys((row["case"], row["variant"]) for row in rows):
        kl, agreement, accuracy = (values[case, variant, metric] for metric in METRICS)
        spread = statistics.stdev(kl) if len(kl) > 1 else math.nan
        name = variant + (" *" if variant in WITH_DATA else "")
        means = [statistics.mean(value) for value in (agreement, accuracy)]
        lines.append(
            f"{case:<26}{name:<16}{statistics.mean(kl):>9.4f}{spread:>9.4f}{means[0]:>11.4f}{means[1]:>10.4f}"
            f"  {' '.join(f'{value:.4f}' for value in kl)}"
        )
    return "\n".join([*lines, "* sees data when it narrows"])


def wanted(variants: Iterable[str], python: Path | None) -> list[str]:
    """The variants that can be run here; what cannot is told."""
    found = list(variants)
    if "torch_pruning" in found and python is None:
        print("torch_pruning: skipped, no --torch-pruning-python", file=sys.stderr)
        found.remove("torch_pruning")
    return found


def main() -> None:
    known = ["unchanged", *list(WAYS)[:3], "torch_pruning", *list(WAYS)[3:]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", metavar="FOLDER", type=Path, action="append", required=True, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="few networks and images, one seed, not all variants")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--variants", nargs="+", choices=known, default=known, help="which variants")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="which seeds")
    parser.add_argument("--networks", type=int, default=NETWORKS, help="networks for each seed, at most")
    parser.add_argument("--scored", type=int, default=SCORED, help="images that measure, at most")
    parser.add_argument("--torch-pruning-python", metavar="FILE", type=Path, help="interpreter that has torch_pruning")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-morph"), help="where results are kept")
    parser.add_argument("--predictor", metavar="NAME=FOLDER", action="append", default=[], help="may be repeated")
    arguments = parser.parse_args()
    predictors = dict(one.split("=", 1) for one in arguments.predictor)
    variants = wanted(arguments.variants, arguments.torch_pruning_python)
    variants += [variant for name in predictors for variant in predicted_names(name)]
    if arguments.quick:
        variants = [
            v for v in variants if not v.startswith(("oracle", "sequential", "torch")) and not v.endswith("rounds")
        ]
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    networks = QUICK_NETWORKS if arguments.quick else arguments.networks
    rows: list[dict[str, Any]] = []
    for folder in arguments.zoo:
        scored = QUICK_SCORED if arguments.quick else arguments.scored
        run = Run(Zoo.open(folder), arguments.folder, networks, scored, predictors)
        steps = [(variant, seed) for seed in seeds for variant in variants]
        for variant, seed in tqdm(steps, desc=run.name, disable=not sys.stderr.isatty(), leave=False):
            rows += tidy(run.name, variant, seed, run.values(variant, seed, arguments.torch_pruning_python))
    print(machine())
    print(table(sorted(rows, key=lambda row: (row["case"].partition("/")[0], -float(row["case"].partition("/")[2])))))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
