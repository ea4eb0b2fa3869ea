"""Which digit does a sine network hold in its weights? Metanetworks beside render-and-classify and other rivals.

For each case (9,000 or 21,000 training networks) and each of three seeds, on the zoo's own split by image (the seed
draws which networks are trained on; the validation part chooses the epoch):

    responses   the operator sweep: networks run on learned points, mixed behind every activation
    probing     learned points without the mix
    render      the picture at the pixels, through the same small convolutional network, with the same random maps
    strict      weights only: learned channels that keep to permutations, signs and phases (model=strict_weights); no
                points, no sines, nothing is run
    longer      the same for four times as long, only where it is asked for
    framed      weights only: messages along edges in each network's frame (model=framed_weights)
    flat        multilayer perceptron on raw weights
    statistics  layer statistics and gradient boosting
    nfn         nfn 0.1.2 from PyPI, run by a Python of its own (--nfn-python), for some more seconds than the others

    python benchmarks/inr.py --zoo zoos/mnist_inr [--quick] [--json FILE] [--variants probing render] [--seeds 0 1 2]

Metrics: accuracy on test networks, train_accuracy, processor seconds of training (one thread: seconds of the clock on a
machine that does nothing else; validation included), training networks per such second, and what happens when test
networks are moved by random elements of their whole group (permutations, signs, phases): orbit_change, the largest
change of a class's probability in float32; changed, how many predicted digits change; and, for the models that run in
it, orbit_change_double, the same in float64. The case `editing` dilates pictures by changing weights (inr_edits.py).

What is finished is kept in the folder, and a run that was stopped goes on there. Wanted: 97 % with 9,000 in 60 s and
98 % with 21,000 in 75 s, exactly invariant.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import inr_edits
import nfn_runner
import numpy as np
import torch
from machine import machine
from torch import nn
from tqdm import tqdm

from metanet.commands._compose import compose
from metanet.commands._zoo_data import zoo_items
from metanet.datasets import Zoo
from metanet.graph import ParameterGraph, collate
from metanet.io import read_json, write_json_atomic
from metanet.nn import Responses
from metanet.tasks import (
    BoostingOptions,
    FlatMethod,
    PropertyData,
    PropertyItem,
    TreesMethod,
    property_data,
    task_from_mapping,
)
from metanet.tasks.inr import InrClassificationTask
from metanet.tasks.property import outputs_of
from metanet.train import TrainerSettings, fit

SEEDS = (0, 1, 2)
LONGER = "longer"
VARIANTS = ("probing", "render", "responses", "strict", "framed", "nfn", "flat", "statistics")
METRICS = ("accuracy", "train_accuracy", "train_s", "train_networks_per_s", "orbit_change", "changed")
DOUBLE = "orbit_change_double"
# Training networks of a case, and passes over them by variant: about equal time for the two cases.
SIZES = {"9000": 9000, "21000": 21000}
EPOCHS: Mapping[str, Mapping[str, int]] = {
    "9000": {"probing": 20, "render": 20, "responses": 18, "strict": 30, "framed": 6, LONGER: 120},
    "21000": {"probing": 10, "render": 10, "responses": 9, "strict": 15, "framed": 3, LONGER: 60},
}
# What reads weights alone needs smaller batches; waves learn training networks by heart unless they are moved further.
WEIGHTS = ("task.batch=64", "trainer.learning_rate=3e-3")
MAPS = ("task.rotation=0.22", "task.scale=0.15", "task.shear=0.15", "task.shift=0.12", "task.jitter=0.03")
MODELS: Mapping[str, Sequence[str]] = {
    "probing": (),
    "render": (),
    "responses": ("model.mixing=4",),
    "strict": ("model=strict_weights", *WEIGHTS, *MAPS),
    LONGER: ("model=strict_weights", *WEIGHTS, *MAPS),
    "framed": ("model=framed_weights", *WEIGHTS),
}
NFN_EPOCHS = {"9000": 12, "21000": 6}
TESTED, MOVED = 2000, 1000


def part(items: Sequence[PropertyItem], size: int, seed: int, quick: bool, moved: int = MOVED) -> PropertyData:
    """Training networks that the seed draws, all validation and test networks, moved copies of some of the latter."""
    places = {name: [i for i, item in enumerate(items) if item.part == name] for name in ("train", "val", "test")}
    if len(places["train"]) < size:
        raise SystemExit(f"the zoo has {len(places['train'])} training networks, {size} are wanted")
    chosen = np.random.default_rng(np.random.SeedSequence([seed, 1])).permutation(places["train"])[:size]
    ends = [i for name in ("val", "test") for i in places[name][: 200 if quick else None]]
    kept = [replace(items[i], target=str(items[i].target)) for i in (*ends, *sorted(chosen.tolist()))]
    generator = torch.Generator().manual_seed(seed)
    for i in places["test"][: min(moved, 20) if quick else moved]:
        graph = items[i].graph
        state = graph.spec.act(graph.spec.sample(generator), graph.state())
        copy = ParameterGraph.build(graph.spec, state, graph.program)
        kept.append(replace(items[i], graph=copy, target=str(items[i].target), name=f"moved {items[i].name}"))
    return property_data(kept, "label")


@dataclass(frozen=True)
class Outcome:
    """Scores of all networks of the data, the time that training took, and what was trained, if it runs here."""

    scores: np.ndarray
    seconds: float
    seen: float
    model: nn.Module | None = None


class RenderTask(InrClassificationTask):
    """Classification from the picture at the pixels: the points of the grid stay where they are."""

    def model(self, data: PropertyData, options: Mapping[str, Any], generator: torch.Generator) -> nn.Module:
        model = super().model(data, options, generator)
        for module in model.modules():
            if isinstance(module, Responses):
                for table in module.tables.values():
                    table.requires_grad_(False)
        return model


def by_metanet(variant: str, data: PropertyData, case: str, seed: int, quick: bool) -> Outcome:
    """One of this project's models, as `metanet train task=inr_classification` makes it."""
    epochs = 2 if quick else EPOCHS[case][variant]
    words = [f"trainer.epochs={epochs}", "trainer.progress=false", f"seed={seed}", *MODELS[variant]]
    config = compose("train", ["task=inr_classification", *words])
    task = task_from_mapping(config["task"])
    if not isinstance(task, InrClassificationTask):
        raise TypeError(type(task).__name__)
    if variant == "render":
        task = RenderTask.from_mapping(config["task"])
    began = time.process_time()
    trained = fit(task, data, config["model"], TrainerSettings.from_mapping(config["trainer"]))
    seconds = time.process_time() - began
    scores = task.encoding(data).scores(outputs_of(trained.model, data.batch))
    return Outcome(scores, seconds, epochs * len(data.part("train")), trained.model)


def by_flat(data: PropertyData, seed: int, quick: bool) -> Outcome:
    """A multilayer perceptron on raw weights."""
    settings = TrainerSettings(
        epochs=2 if quick else 20, learning_rate=1e-3, weight_decay=1e-2, patience=5, progress=False
    )
    began = time.process_time()
    result = FlatMethod(settings=settings, scales=("place",)).run(_plain(), data, seed)
    return Outcome(result.scores, time.process_time() - began, len(result.history) * len(data.part("train")))


def by_statistics(data: PropertyData, seed: int, quick: bool) -> Outcome:
    """Gradient boosting on layer statistics."""
    options = BoostingOptions(trees=10 if quick else 40, rate=0.2, depth=5, subsample=0.6, features=0.25, leaf=3)
    began = time.process_time()
    result = TreesMethod(options).run(_plain(), data, seed)
    return Outcome(result.scores, time.process_time() - began, len(data.part("train")))


def _plain() -> InrClassificationTask:
    """The task without maps, which only networks that are trained step by step can use."""
    return InrClassificationTask(rotation=0.0, scale=0.0, shear=0.0, shift=0.0)


def by_nfn(data: PropertyData, case: str, seed: int, quick: bool, python: Path) -> Outcome:
    """`nfn` 0.1.2: the layer that its authors use for such networks, trained to the end of its own schedule."""
    state = {name: torch.cat([b.state()[name] for b in data.batch]) for name in data.graphs[0].state()}
    weights = [value.numpy() for name, value in state.items() if name.endswith("weight")]
    biases = [value.numpy() for name, value in state.items() if name.endswith("bias")]
    labels = _plain().encoding(data).encode(data.targets)
    options = {"epochs": 4 if quick else NFN_EPOCHS[case], "seed": seed, "layer": "np", "batch": 64}
    scores, told = nfn_runner.nfn_scores(python, weights, biases, labels, data.split, **options)
    share = np.exp(scores - scores.max(1, keepdims=True))
    seen = told["train_s"] * told["train_networks_per_s"]
    return Outcome(share / share.sum(1, keepdims=True), told["train_s"], seen)


def change_in_double(model: nn.Module, data: PropertyData, places: Sequence[int], seed: int) -> float:
    """The largest change of a class's probability when these networks are moved, all in float64."""
    generator = torch.Generator().manual_seed(seed)
    before, after = [], []
    for graph in (data.graphs[i] for i in places):
        state = {name: value.double() for name, value in graph.state().items()}
        before.append(ParameterGraph.build(graph.spec, state, graph.program))
        moved = graph.spec.act(graph.spec.sample(generator), state)
        after.append(ParameterGraph.build(graph.spec, moved, graph.program))
    model = copy.deepcopy(model).double()
    batches = (collate(graphs, torch.float64) for graphs in (before, after))
    one, two = (_plain().encoding(data).scores(outputs_of(model, batch)) for batch in batches)
    return float(np.abs(two - one).max())


def measured(outcome: Outcome, data: PropertyData, seed: int) -> dict[str, float]:
    """The metrics of a way of telling digits."""
    task = _plain()
    moved = np.array([name.startswith("moved") for name in data.names])
    test = np.flatnonzero((data.split == "test") & ~moved)
    train = data.part("train")[:TESTED]
    one, two = outcome.scores[test[: moved.sum()]], outcome.scores[moved]
    found = {
        "accuracy": task.measure(data, test, outcome.scores[test])["accuracy"],
        "train_accuracy": task.measure(data, train, outcome.scores[train])["accuracy"],
        "train_s": outcome.seconds,
        "train_networks_per_s": outcome.seen / outcome.seconds,
        "orbit_change": float(np.abs(two - one).max()),
        "changed": float((two.argmax(1) != one.argmax(1)).sum()),
    }
    if outcome.model is not None:
        found[DOUBLE] = change_in_double(outcome.model, data, test[: moved.sum()].tolist(), seed)
    return found


def result(
    items: Sequence[PropertyItem], case: str, variant: str, seed: int, arguments: argparse.Namespace
) -> dict[str, float] | None:
    """What one variant reaches; whatever of it exists is used. None where it cannot run here."""
    quick = bool(arguments.quick)
    folder = Path(arguments.folder)
    done = folder / f"{case}-{variant}-{seed}{'-quick' if quick else ''}.json"
    if done.exists():
        return dict(read_json(done))
    if variant == "nfn" and arguments.nfn_python is None:
        return None
    data = part(items, 600 if quick else SIZES[case], seed, quick)
    if variant in MODELS:
        outcome = by_metanet(variant, data, case, seed, quick)
    elif variant == "flat":
        outcome = by_flat(data, seed, quick)
    elif variant == "statistics":
        outcome = by_statistics(data, seed, quick)
    else:
        outcome = by_nfn(data, case, seed, quick, arguments.nfn_python)
    value = measured(outcome, data, seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(done, value)
    return value


def editing_rows(
    items: Sequence[PropertyItem], seed: int, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Errors of the case `editing`; whatever of it exists is used."""
    done = Path(arguments.folder) / f"editing-{seed}{'-quick' if arguments.quick else ''}.json"
    if done.exists():
        return dict(read_json(done))
    data = part(items, 100 if arguments.quick else inr_edits.NETWORKS, seed, bool(arguments.quick), moved=0)
    value = inr_edits.errors(data, seed, bool(arguments.quick))
    done.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(done, value)
    return value


def tidy(case: str, variant: str, seed: int, value: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row per metric."""
    told = {"benchmark": "inr", "case": case, "variant": variant}
    return [{**told, "metric": metric, "seed": seed, "value": number} for metric, number in value.items()]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, with the smallest and the largest accuracy."""
    head = f"{'case':<9}{'variant':<12}{'seeds':>6}{'accuracy':>10}{'from':>8}{'to':>8}{'train acc':>11}{'train s':>9}"
    lines = [head + f"{'networks/s':>12}{'orbit change':>14}{'in float64':>12}{'changed':>9}"]
    for case in dict.fromkeys(row["case"] for row in rows):
        for variant in dict.fromkeys(row["variant"] for row in rows if row["case"] == case):
            mine = [row for row in rows if row["case"] == case and row["variant"] == variant]
            values = {m: [row["value"] for row in mine if row["metric"] == m] for m in (*METRICS, DOUBLE, "mse")}
            if values["mse"]:
                errors = ", ".join(f"{value:.5f}" for value in values["mse"])
                speed = f"  {statistics.mean(values['train_s']):.0f} s" if values["train_s"] else ""
                lines.append(f"{case:<9}{variant:<12}{len(values['mse']):>6}  mse {errors}{speed}")
                continue
            found = values["accuracy"]
            mean = {metric: statistics.mean(values[metric]) for metric in METRICS}
            lines.append(
                f"{case:<9}{variant:<12}{len(found):>6}{mean['accuracy']:>10.4f}{min(found):>8.4f}{max(found):>8.4f}"
                f"{mean['train_accuracy']:>11.4f}{mean['train_s']:>9.1f}{mean['train_networks_per_s']:>12.0f}"
                f"{max(values['orbit_change']):>14.1e}{max(values[DOUBLE], default=math.nan):>12.1e}"
                f"{max(values['changed']):>9.0f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="600 networks, one seed: under a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--zoo", metavar="FOLDER", type=Path, default=Path("zoos/mnist_inr"))
    parser.add_argument("--cases", nargs="+", choices=(*SIZES, "editing"), default=[*SIZES, "editing"])
    parser.add_argument("--variants", nargs="+", choices=(*VARIANTS, LONGER), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--nfn-python", metavar="PYTHON", type=Path, help="a Python that has nfn 0.1.2; else left out")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-inr"), help="where results are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases, seeds = (["9000", "editing"], [0]) if arguments.quick else (arguments.cases, arguments.seeds)
    zoo = Zoo.open(arguments.zoo)
    items = list(tqdm(zoo_items(zoo, "label"), "read", len(zoo), disable=not sys.stderr.isatty()))
    rows: list[dict[str, Any]] = []
    order = [
        (seed, case, variant) for seed in seeds for case in cases if case in SIZES for variant in arguments.variants
    ]
    for seed, case, variant in tqdm(order, desc="inr", file=sys.stderr, disable=not sys.stderr.isatty()):
        found = result(items, case, variant, seed, arguments)
        rows += tidy(case, variant, seed, found) if found is not None else []
    for seed in seeds if "editing" in cases else ():
        for variant, values in editing_rows(items, seed, arguments).items():
            rows += tidy("editing", variant, seed, values)
    print(machine())
    print(table(sorted(rows, key=lambda row: (cases.index(row["case"]), row["seed"]))))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
