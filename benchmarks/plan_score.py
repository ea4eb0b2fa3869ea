"""How well is told, before a plan is applied and without data, what it will cost a network?

Cases are zoos. Every network gets twenty plans that narrow it (units chosen at random, by norms or by optimal brain
surgeon; readers left alone, refitted or merged, from smooth noise or from images), and one for every block that can be
dropped and for heads. Truth is log KL on 512 images that no network was trained on; networks are split by training run.

    learned     task=plan_score: both networks answer 64 learned inputs, a small network reads their answers
    lines       without that network: a line from the log KL on learned inputs
    noise+      with it, but the inputs stay smooth noise
    noise       log KL on the smooth noise, and an increasing function (isotonic regression)
    plan        boosted trees on the plan alone: widths, shares of the importance that are kept, way
    images64    no prediction: KL on 64 other images
    control     `learned`, with the networks exchanged

Tau is Kendall's over all plans and networks, over the plans of each network, and over networks for plans of one way;
`drops` over networks and blocks, for plans that drop one; coverage is that of intervals made to hold 80 % of the costs.
`unseen` trains without one way of making plans (the one given) and tests on it alone.

    python benchmarks/plan_score.py --zoos FOLDER... [--quick] [--json FILE] [--seeds 0 1 2] [--unseen]

What is finished is kept in the folder, and a run that was stopped goes on there.
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
from property_ways import QUICK_ZOO, SEEDS, zoo_of

from metanet.commands._compose import compose
from metanet.commands._plan_score_items import plan_score_stacks
from metanet.datasets import Zoo
from metanet.io import read_json, write_json_atomic
from metanet.tasks.metrics import kendall_tau
from metanet.tasks.plan_score import Answers, PlanScoreTask
from metanet.tasks.plan_score_data import PlanScoreData, ScoredStack, plan_score_data
from metanet.tasks.plan_score_evaluate import few_inputs, plan_alone, shuffled, smooth_noise
from metanet.train import TrainerSettings, fit

VARIANTS = ("learned", "lines", "noise+", "noise", "plan", "images64", "control")
LEARNED = {"learned": {}, "lines": {"correct": False}, "noise+": {"learned": False}}
METRICS = ("tau", "tau_network", "tau_kind", "drops", "tau_agreement", "r2", "error", "coverage", "seconds")
UNSEEN = ("drop", "obs, refitted in turn")

Measured = tuple[list[Answers], list[float]]


def trained(
    task: PlanScoreTask, data: PlanScoreData, seed: int, config: Mapping[str, Any], options: dict[str, Any]
) -> Callable[[PlanScoreData], Measured]:
    """A trained predictor, as a function of the data that it is asked about."""
    given = {**config["trainer"], "seed": seed, "progress": False}
    model = fit(task, data, {**config["model"], **options}, TrainerSettings.from_mapping(given)).model
    widths = task.widths(task.answers(model, data, "val"))
    return lambda asked: (task.answers(model, asked, "test"), widths)


def measured(task: PlanScoreTask, found: Measured, spent: float) -> dict[str, float]:
    """All metrics, over blocks that are dropped too where there are some."""
    values = {**task.measure(*found), "seconds": spent}
    said, true = [], []
    for one in found[0]:
        columns = [number for number, kind in enumerate(one.kinds) if kind == "drop"]
        said.append(one.said[:, columns, 0, 0].double().flatten().numpy())
        true.append(one.true[:, columns, 0].double().flatten().numpy())
    values["drops"] = kendall_tau(np.concatenate(said), np.concatenate(true))
    return {name: value for name, value in values.items() if np.isfinite(value)}


def only(data: PlanScoreData, kind: str, wanted: bool) -> PlanScoreData:
    """The same networks with their plans of one way alone, or with all others."""

    def some(stack: ScoredStack) -> ScoredStack:
        columns = [number for number, one in enumerate(stack.kinds) if (one == kind) == wanted]
        kept = {name: getattr(stack, name)[:, columns] for name in ("kl", "agreement", "few")}
        return replace(stack, variants=tuple(stack.variants[number] for number in columns), **kept)

    return replace(data, stacks=tuple(map(some, data.stacks)))


def run_seed(
    zoo: Zoo, seed: int, folder: Path, config: Mapping[str, Any], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """All variants on one split; whatever is finished in the folder is used."""
    task = PlanScoreTask.from_mapping(config["task"])
    found: dict[str, dict[str, float]] = {}
    made: PlanScoreData | None = None
    ours: Measured | None = None
    for name in names:
        done = folder / f"{seed}-{name}.json"
        if not done.exists():
            if made is None:
                began = time.process_time()
                made = data_of(zoo, task, seed)
                told = made.describe()
                spent = time.process_time() - began
                line = f"{told['plans']:,} plans of {sum(told['networks'].values())} networks measured in {spent:.0f} s"
                print(f"{folder.name} seed {seed}: {line}; {told['dropped']} left out", file=sys.stderr, flush=True)
            began = time.process_time()
            result: Measured
            if name in LEARNED:
                result = trained(task, made, seed, config, LEARNED[name])(made)
            elif name.startswith("unseen "):
                kind = name.removeprefix("unseen ")
                if not any(kind in stack.kinds for stack in made.stacks):
                    continue
                result = trained(task, only(made, kind, False), seed, config, {})(only(made, kind, True))
            elif name == "control":
                if ours is None:
                    ours = trained(task, made, seed, config, {})(made)
                result = shuffled(ours[0], seed), ours[1]
            else:
                way = {"noise": smooth_noise, "plan": plan_alone}.get(name)
                result = way(task, made, "test", seed) if way else few_inputs(task, made, "test")
            if name == "learned":
                ours = result
            write_json_atomic(done, measured(task, result, time.process_time() - began))
        found[name] = dict(read_json(done))
        said = ", ".join(f"{key} {value:.3g}" for key, value in found[name].items() if key in METRICS)
        print(f"{folder.name} seed {seed} {name}: {said}", file=sys.stderr, flush=True)
    return found


def data_of(zoo: Zoo, task: PlanScoreTask, seed: int) -> PlanScoreData:
    """The networks of a zoo with plans drawn by a seed; seed 0 has the zoo's own split."""
    return plan_score_data(plan_score_stacks(zoo, task), task.plans, seed=seed, resplit=seed > 0)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, with the overall tau of every seed."""
    seeds = sorted({row["seed"] for row in rows})
    heads = ("tau", "network", "kind", "drops", "agree", "R2", "error", "cover", "train s")
    head = "".join(f"{f'seed {seed}':>8}" for seed in seeds)
    lines = [f"{'case':<20}{'variant':<28}{head}" + "".join(f"{name:>9}" for name in heads)]
    for case in dict.fromkeys(row["case"] for row in rows):
        for variant in dict.fromkeys(row["variant"] for row in rows):
            mine = [row for row in rows if row["case"] == case and row["variant"] == variant]
            if not mine:
                continue
            by_seed = {row["seed"]: row["value"] for row in mine if row["metric"] == "tau"}
            cells = "".join(f"{by_seed[seed]:>8.3f}" if seed in by_seed else f"{'':>8}" for seed in seeds)
            for metric in METRICS:
                values = [row["value"] for row in mine if row["metric"] == metric]
                shown = "" if not values else f"{statistics.mean(values):.{0 if metric == 'seconds' else 3}f}"
                cells += f"{shown:>9}"
            lines.append(f"{case:<20}{variant:<28}{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small zoo, one seed: about a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--zoos", nargs="*", type=Path, default=[], help="zoos of classifiers of images")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-plan-score"), help="where results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--overrides", nargs="*", default=[], help="of the configuration, such as task.images=256")
    parser.add_argument("--unseen", action="store_true", help="also test on ways of making plans that were left out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.quick and not arguments.zoos:
        parser.error("name zoos with --zoos, or take --quick")
    if arguments.quick:
        quick = arguments.folder / "digits_cnn-quick"
        quick.mkdir(parents=True, exist_ok=True)
        zoos, seeds = [(quick, zoo_of("digits_cnn", quick / "zoo", QUICK_ZOO, None))], [0]
    else:
        zoos = [(arguments.folder / folder.name, Zoo.open(folder)) for folder in arguments.zoos]
        seeds = arguments.seeds
    small = ["task.plans=10", "task.images=256", "trainer.epochs=4"] if arguments.quick else []
    config = compose("train", ["task=plan_score", *small, *arguments.overrides])
    names = [*arguments.variants, *(f"unseen {kind}" for kind in UNSEEN if arguments.unseen)]
    rows: list[dict[str, Any]] = []
    for folder, zoo in zoos:
        folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            found = run_seed(zoo, seed, folder, config, names)
            for variant, values in found.items():
                row = {"benchmark": "plan_score", "case": folder.name, "variant": variant, "seed": seed}
                rows += [{**row, "metric": metric, "value": values[metric]} for metric in METRICS if metric in values]
    print(machine())
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
