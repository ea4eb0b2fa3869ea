"""How well is told from the weights alone how much each unit or weight of a network matters?

Cases: `unit removal` (how far the answers move when a unit is silenced), `unit loss` (by how much the cross-entropy
rises then), `edge saliency` (log10 of |w dL/dw|) and `edge change` (how far the weight moves until the end of its
training). Truth is measured on 64 images of the zoo's test set; no method sees an image. Units: the last snapshot of
every run; weights: all snapshots.

    metanet     metanetwork strict under the whole group, one answer per place (configs/model/places.yaml); it sees what
                `smooth` and `norm` see, and the rest of the network
    ensemble    `metanet` and `local` averaged, the share chosen on validation runs
    norm        line from the unit's incoming times outgoing norm (units), from the weight's size (saliency) or from the
                weight itself (change), fitted on the training networks
    smooth      line from the same effect, measured on random smooth inputs instead of images (the network's own most
                likely class stands for the label); not for changes
    local       gradient boosting on the same two numbers, the norms at hand and the layer, place by place

Tau is Kendall's within each space or tensor, averaged over these and over networks; R2 is over all places.

    python benchmarks/places.py [--quick] [--json FILE] [--zoo FOLDER] [--cases ...] [--seeds 0 1 2]

Targets and what is finished are kept in the folder, and a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from property_ways import QUICK_ZOO, SEEDS, zoo_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from metanet.commands._compose import compose
from metanet.commands._place_items import place_items
from metanet.commands._zoo_data import network_name, zoo_items
from metanet.datasets import Zoo
from metanet.graph import ParameterGraph
from metanet.io import read_json, write_json_atomic
from metanet.nn.rich_inputs import smooth_inputs
from metanet.tasks import (
    BoostingOptions,
    EdgeTask,
    PlaceData,
    PlaceItem,
    PlaceTask,
    UnitTask,
    fit_trees,
    place_data,
    split_by_group,
)
from metanet.tasks.effects import unit_effects, weight_saliency
from metanet.tasks.places import joined
from metanet.train import TrainerSettings, fit

CASES = ("unit removal", "unit loss", "edge saliency", "edge change")
VARIANTS = ("ensemble", "metanet", "local", "smooth", "norm")
METRICS = ("kendall_tau", "r2", "train_s", "train_networks_per_s")
EXAMPLES = 64
GROWN = BoostingOptions(trees=150, rate=0.08, depth=5, subsample=0.5, features=0.5, leaf=20)
MOST = 40_000  # places that trees are grown on


def last_of(zoo: Zoo) -> list[str]:
    """The names of the last snapshots of all runs."""
    found = {record["run"]: record for record in sorted(zoo.index, key=lambda record: int(record["step"]))}
    return [network_name(record) for record in found.values()]


def effects(task: PlaceTask, graph: ParameterGraph) -> Mapping[str, Tensor]:
    """The task's effect measured on random smooth inputs; the network's own answers are the labels."""
    program = graph.program
    if program is None or task.target == "change":
        return {}
    inputs = [smooth_inputs(form.shape, EXAMPLES, 2.0) for form in program.inputs]

    def run(state: Mapping[str, Tensor]) -> Tensor:
        like = next(value for value in state.values() if value.is_floating_point())
        stacked = {name: value[None] for name, value in state.items()}
        return program.run(stacked, [x.to(like.dtype) for x in inputs])[0][0].reshape(EXAMPLES, -1)

    labels = run(graph.state()).argmax(-1)
    if task.name == "edge":
        return weight_saliency(graph, run, labels)
    return unit_effects(graph, run, labels if task.target == "loss" else None)


Told = Mapping[str, Mapping[str, Tensor]]  # "true", "simple" or "smooth" -> by space or tensor


def task_of(case: str) -> PlaceTask:
    """The task of a case."""
    name, target = case.split()
    return (UnitTask if name == "unit" else EdgeTask)(target, examples=EXAMPLES)


def measured(zoo: Zoo, task: PlaceTask, graphs: Mapping[str, ParameterGraph], place: Path) -> dict[str, Told]:
    """What is true of the places of every network, and what the baselines read; measured once, kept in a file."""
    if not place.exists():
        kept: dict[str, Tensor] = {}
        for item in place_items(zoo, task, graphs):
            told = {"true": item.targets, "simple": item.simple, "smooth": effects(task, graphs[item.name])}
            for kind, values in told.items():
                kept |= {f"{item.name}/{kind}/{name}": value.contiguous() for name, value in values.items()}
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, place)
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, value in load_file(place).items():
        network, kind, name = key.split("/", 2)
        found.setdefault(network, {"true": {}, "simple": {}, "smooth": {}})[kind][name] = value
    return {network: found[network] for network in graphs if network in found}


def local(graph: ParameterGraph, told: Told) -> np.ndarray:
    """What can be told of each place without any message: its own numbers, its layer, and the norms at hand.

    Shapes:
        return: (places, features)
    """
    state, columns = graph.state(), []
    for number, (name, true) in enumerate(told["true"].items()):
        count = true.numel()
        own = [told["simple"][name].reshape(-1).double(), torch.full((count,), float(number), dtype=torch.float64)]
        own.append(told["smooth"][name].reshape(-1).double() if name in told["smooth"] else torch.zeros(count).double())
        whole = state[name].double() if name in state else None
        if whole is not None and whole.ndim > 1:
            square = whole.square()
            rest = list(range(2, whole.ndim))
            rows = square.mean([1, *rest], keepdim=True).expand_as(whole)
            readers = square.mean([0, *rest], keepdim=True).expand_as(whole)
            own += [(part.reshape(-1) + 1e-12).log() for part in (rows, readers, square.mean().expand_as(whole))]
        else:
            mean = told["simple"][name].double().mean()
            own += [mean.expand(count), told["simple"][name].double().std().expand(count), torch.zeros(count).double()]
        columns.append(torch.stack(own, dim=1))
    return torch.cat(columns).numpy()


def cut(values: np.ndarray, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of all places as they are told, by space or tensor."""
    sizes = [value.numel() for value in like.values()]
    parts = torch.from_numpy(np.ascontiguousarray(values)).float().split(sizes)
    return {name: part.reshape(value.shape) for part, (name, value) in zip(parts, like.items(), strict=True)}


def line(data: PlaceData, task: PlaceTask, readings: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Answers of a line from one number per place, fitted on the training part, on the scale of learning."""
    train, scale = data.part("train"), task.transform(data)
    x = torch.cat([joined(readings[i], data.targets[i]) for i in train]).double().numpy()
    y = (torch.cat([data.flat(i) for i in train]).double().numpy() - scale.mean) / scale.deviation
    slope, offset = np.polyfit(x, y, 1)
    return [{name: value * slope + offset for name, value in readings[i].items()} for i in range(len(data))]


def grown(data: PlaceData, task: PlaceTask, told: Sequence[Told], seed: int) -> list[dict[str, Tensor]]:
    """Answers of boosted trees on the local features."""
    scale, draws = task.transform(data), np.random.default_rng([seed, 0x10CA1])
    features = [local(graph, one) for graph, one in zip(data.graphs, told, strict=True)]
    train = data.part("train")
    x = np.concatenate([features[i] for i in train])
    y = np.concatenate([(data.flat(i).double().numpy() - scale.mean) / scale.deviation for i in train])
    rows = draws.choice(len(x), min(MOST, len(x)), replace=False)
    trees = fit_trees(x[rows], y[rows], 0, seed, GROWN)
    return [cut(trees.raw(mine)[:, 0], target) for mine, target in zip(features, data.targets, strict=True)]


def learned(
    data: PlaceData, task: PlaceTask, seed: int, epochs: int, overrides: Sequence[str]
) -> tuple[list[dict[str, Tensor]], float]:
    """Answers of a metanetwork, and its training networks per second."""
    options = compose("train", [f"task={task.name}", *overrides])["model"]
    settings = TrainerSettings(
        seed=seed, epochs=epochs, learning_rate=1e-2, weight_decay=0.02, average=0.95, patience=0, progress=False
    )
    trained = fit(task, data, options, settings)
    spent = sum(row["seconds"] for row in trained.history)
    answers = task.answers(trained.model, data, np.arange(len(data)))
    return answers, len(data.part("train")) * len(trained.history) / spent


def averaged(
    data: PlaceData, task: PlaceTask, ours: Sequence[Mapping[str, Tensor]], theirs: Sequence[Mapping[str, Tensor]]
) -> tuple[list[dict[str, Tensor]], float]:
    """The average whose squared error on the validation part is smallest, and the share of the first."""
    val, scale = data.part("val"), task.transform(data)
    a, b = (torch.cat([joined(rows[i], data.targets[i]) for i in val]).double() for rows in (ours, theirs))
    true = (torch.cat([data.flat(i) for i in val]).double() - scale.mean) / scale.deviation
    share = float(((true - b) * (a - b)).sum() / (a - b).square().sum().clamp(min=1e-12))
    share = min(max(share, 0.0), 1.0)
    mixed = [
        {
            name: share * one[name].double().reshape(value.shape) + (1 - share) * value.double()
            for name, value in two.items()
        }
        for one, two in zip(ours, theirs, strict=True)
    ]
    return mixed, share


def run_seed(
    data: PlaceData,
    told: Sequence[Told],
    task: PlaceTask,
    seed: int,
    folder: Path,
    epochs: int,
    overrides: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """All variants on one split; whatever is finished in the folder is used."""
    found: dict[str, dict[str, float]] = {}
    ways: dict[str, Callable[[], list[dict[str, Tensor]]]] = {
        "norm": lambda: line(data, task, data.simple),
        "local": lambda: grown(data, task, told, seed),
    }
    if task.target != "change":
        ways["smooth"] = lambda: line(data, task, [one["smooth"] for one in told])
    test = data.part("test")
    told_by: dict[str, list[dict[str, Tensor]]] = {}
    for name in (*ways, "metanet", "ensemble"):
        done = folder / f"{task.name}-{task.target}-{seed}-{name}.json"
        if not done.exists():
            began = time.process_time()
            speed: dict[str, float] = {}
            if name == "metanet":
                answers, rate = learned(data, task, seed, epochs, overrides)
                speed["train_networks_per_s"] = rate
            elif name == "ensemble":
                ours = told_by["metanet"] if "metanet" in told_by else learned(data, task, seed, epochs, overrides)[0]
                theirs = told_by["local"] if "local" in told_by else ways["local"]()
                answers, speed["share"] = averaged(data, task, ours, theirs)
            else:
                answers = ways[name]()
            told_by[name] = answers
            values = task.measure(data, test, [answers[i] for i in test])
            spent = {"train_s": time.process_time() - began}
            write_json_atomic(done, {"kendall_tau": values["tau"], "r2": values["r2"], **spent, **speed})
        found[name] = dict(read_json(done))
        said = ", ".join(f"{key} {value:.4g}" for key, value in found[name].items())
        print(f"{task.column} seed {seed} {name}: {said}", file=sys.stderr, flush=True)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, with tau of every seed."""
    seeds = sorted({row["seed"] for row in rows})
    head = "".join(f"{f'seed {seed}':>8}" for seed in seeds)
    lines = [f"{'case':<16}{'variant':<10}{head}{'tau':>8}{'R2':>8}{'train s':>9}{'nets/s':>8}"]
    for case in dict.fromkeys(row["case"] for row in rows):
        for variant in VARIANTS:
            mine = [row for row in rows if row["case"] == case and row["variant"] == variant]
            if not mine:
                continue
            means = {}
            for metric in METRICS:
                values = [row["value"] for row in mine if row["metric"] == metric]
                means[metric] = statistics.mean(values) if values else float("nan")
            taus = "".join(f"{row['value']:>8.3f}" for row in mine if row["metric"] == "kendall_tau")
            cells = f"{means['kendall_tau']:>8.3f}{means['r2']:>8.3f}{means['train_s']:>9.1f}"
            speed = means["train_networks_per_s"]
            lines.append(f"{case:<16}{variant:<10}{taus}{cells}{'' if speed != speed else f'{speed:.0f}':>8}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small zoo, one seed, two cases: about a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--zoo", type=Path, help="a zoo of classifiers of images; mnist_cnn is built if none is given")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-places"), help="where results are kept")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--overrides", nargs="*", default=[], help="of the configuration, such as model.hidden=32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = "digits_cnn" if arguments.quick else "mnist_cnn"
    cases, seeds = (["unit removal", "edge saliency"], [0]) if arguments.quick else (arguments.cases, arguments.seeds)
    folder = arguments.folder / (f"{name}-quick" if arguments.quick else name)
    folder.mkdir(parents=True, exist_ok=True)
    zoo = zoo_of(name, arguments.zoo or folder / "zoo", QUICK_ZOO if arguments.quick else (), None)
    networks = list(zoo_items(zoo, "test_accuracy"))
    graphs = {item.name: item.graph for item in networks}
    rows: list[dict[str, Any]] = []
    for case in cases:
        task = task_of(case)
        # Silencing every unit takes a run for each: one network of every training run must do.
        chosen = {name: graphs[name] for name in (last_of(zoo) if task.name == "unit" else graphs) if name in graphs}
        told = measured(zoo, task, chosen, folder / f"{task.name}-{task.target}.safetensors")
        items = [
            PlaceItem(item.graph, told[item.name]["true"], told[item.name]["simple"], item.group, item.part, item.name)
            for item in networks
            if item.name in told
        ]
        whole = place_data(items, task.level, task.column)
        for seed in seeds:
            data = whole
            if seed:
                draws = np.random.default_rng(np.random.SeedSequence([seed, 0x5917]))
                data = whole.with_split(split_by_group(whole.groups, draws, {"train": 0.6, "val": 0.2, "test": 0.2}))
            kept = [told[name] for name in data.names]
            epochs = 6 if arguments.quick else arguments.epochs
            if task.name == "unit":
                epochs *= 3  # half as many networks, a hundredth of the places
            found = run_seed(data, kept, task, seed, folder, epochs, arguments.overrides)
            for variant, values in found.items():
                row = {"benchmark": "places", "case": case, "variant": variant, "seed": seed}
                rows += [{**row, "metric": metric, "value": values[metric]} for metric in METRICS if metric in values]
    print(machine())
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
