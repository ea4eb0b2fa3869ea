"""How well is a network's test accuracy told from its weights alone, beside the strong simple baselines?

One zoo per case, three seeds: seed 0 is the zoo's own split, the others split its runs anew; they also seed all models.
Runs are never on two sides, and everything is selected on validation runs. No method sees any data.

    strict      metanetwork, strict under the whole group (`symmetry="full"`, sweeps, learned inputs, layer statistics)
    ensemble    `strict` averaged with `inverted`, the share chosen on validation runs (as `metanet train` does)
    flat        multilayer perceptron on raw weights
    statistics  layer statistics + gradient boosting
    rich        statistics in the canonical gauge, path norms, spectra + gradient boosting
    responses   `rich` and answers to random smooth inputs + gradient boosting
    inverted    `responses` and answers to inputs that the better training networks agree on + gradient boosting
    probing     answers to learned inputs, nothing else (no messages, no statistics)
    nfn         `nfn` 0.1.2 from PyPI (see nfn_runner.py); reads one architecture only, so it has no `mixed` row

Quasi-equivariant layers are no variant: an exact alpha does not reach an invariant answer, its gradient is zero.
`orbit_change` is the largest change of a predicted accuracy when test networks move along their orbit: permutations,
scalings, signs and matrices drawn at random.

    python benchmarks/property.py [--quick] [--json FILE] [--cases mnist_cnn mixed] [--zoos FOLDER]
                                  [--nfn-python PYTHON]

What is finished is kept in the folder, and a run that was stopped goes on there. Wanted on `mnist_cnn`: tau .84, R2
.94, orbit change at most .002; at least 5 times the training throughput of `nfn`. On `mixed`: above every baseline.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nfn_runner import nfn_scores
from tqdm import tqdm

from metanet.commands._compose import compose
from metanet.commands._zoo_data import zoo_items
from metanet.datasets import Zoo, build_zoo
from metanet.graph import ParameterGraph
from metanet.io import read_json, write_json_atomic
from metanet.tasks import (
    FlatMethod,
    MetanetMethod,
    PropertyData,
    PropertyItem,
    PropertyTask,
    Result,
    TreesMethod,
    average,
    property_data,
    split_by_group,
)
from metanet.train import TrainerSettings

SEEDS = (0, 1, 2)
COLUMN = "test_accuracy"
VARIANTS = ("strict", "ensemble", "flat", "statistics", "rich", "responses", "inverted", "probing", "nfn")
METRICS = ("kendall_tau", "r2", "train_tau", "orbit_change", "train_s", "train_networks_per_s")
QUICK_ZOO = ("zoo.runs=64", "zoo.architectures=4")
MOVED = 48  # test networks that are moved along their orbits
STRICT = {
    "layers": 1, "hidden": 16, "messages": "sweep", "symmetry": "full", "statistics": True, "responses": 64,
    "readout": 64,
}  # fmt: skip
PROBING = {"layers": 0, "hidden": 16, "statistics": False, "responses": 64, "readout": 64}


def zoo_of(case: str, folder: Path, overrides: Sequence[str], threads: int | None) -> Zoo:
    """The zoo of a case, built if it is not there."""
    if not (folder / "manifest.json").exists():
        build_zoo(compose("train", [f"zoo={case}", *overrides])["zoo"], folder, progress=False, threads=threads)
    return Zoo.open(folder)


def data_of(items: Sequence[PropertyItem], seed: int) -> tuple[PropertyData, np.ndarray, np.ndarray]:
    """The data of one seed; behind the networks stand copies of test networks, moved along their orbits.

    Returns:
        The data, the places of the test networks that were moved, and those of their copies.
    """
    plain = property_data(items, COLUMN)
    if seed:
        shares = {part: float(np.mean(plain.split == part)) for part in ("train", "val", "test")}
        shares["train"] = 1 - shares["val"] - shares["test"]
        draws = np.random.default_rng(np.random.SeedSequence([seed, 0x5917]))
        plain = plain.with_split(split_by_group(plain.groups, draws, shares))
    test = plain.part("test")
    chosen = test[np.linspace(0, len(test) - 1, min(MOVED, len(test))).astype(int)]
    generator = torch.Generator().manual_seed(seed)
    kept = [
        PropertyItem(graph, float(target), str(group), str(part), name)
        for graph, target, group, part, name in zip(
            plain.graphs, plain.targets, plain.groups, plain.split, plain.names, strict=True
        )
    ]
    copies = [replace(kept[i], graph=moved(kept[i].graph, generator), name=f"{kept[i].name}, moved") for i in chosen]
    data = property_data([*kept, *copies], COLUMN)
    return data, chosen, np.arange(len(kept), len(data))


def moved(graph: ParameterGraph, generator: torch.Generator) -> ParameterGraph:
    """The same function elsewhere on its orbit, by a random element of the whole group."""
    element = graph.spec.sample(generator)
    state = {name: value.double() if value.is_floating_point() else value for name, value in graph.state().items()}
    there = graph.spec.act(element, state)
    rounded = {name: value.to(graph.state()[name].dtype) for name, value in there.items()}
    return ParameterGraph.build(graph.spec, rounded, graph.program)


def nfn_result(task: PropertyTask, data: PropertyData, seed: int, python: Path, epochs: int) -> Result:
    """`nfn` on the stacked weights; the better of two learning rates on the validation part."""
    layers: list[tuple[list[Any], list[Any]]] = []
    for graph in data.graphs:
        state = graph.state()
        weights = [name for name in state if name.endswith(".weight")]
        layers.append(
            ([state[w].numpy() for w in weights], [state[w[: -len("weight")] + "bias"].numpy() for w in weights])
        )
    stacked = [np.stack(column) for column in zip(*(pair[0] for pair in layers), strict=True)]
    biases = [np.stack(column) for column in zip(*(pair[1] for pair in layers), strict=True)]
    labels = task.encoding(data).encode(data.targets)
    tried = [
        nfn_scores(python, stacked, biases, labels, data.split, epochs=epochs, seed=seed, rate=rate)
        for rate in (1e-3, 3e-3)
    ]
    scores, told = min(tried, key=lambda pair: pair[1]["val_loss"])
    told.pop("history")
    return Result("nfn", scores.astype(float), told["train_s"], (), told)


def methods(quick: bool, nfn_python: Path | None) -> dict[str, Callable[[PropertyTask, PropertyData, int], Result]]:
    """How each variant but the ensemble is fitted."""
    settings = TrainerSettings(
        epochs=8 if quick else 40, learning_rate=3e-3, weight_decay=0.1, average=0.95, patience=0, progress=False
    )
    trees = {
        name: TreesMethod(name=name, features=name).run for name in ("statistics", "rich", "responses", "inverted")
    }
    found: dict[str, Callable[[PropertyTask, PropertyData, int], Result]] = {
        "strict": MetanetMethod(STRICT, settings, name="strict").run,
        "flat": FlatMethod().run,
        **trees,
        "probing": MetanetMethod(PROBING, settings, name="probing").run,
    }
    if nfn_python is not None:
        found["nfn"] = lambda task, data, seed: nfn_result(task, data, seed, nfn_python, 10 if quick else 30)
    return found


def run_seed(
    items: Sequence[PropertyItem],
    seed: int,
    folder: Path,
    fits: Mapping[str, Callable[[PropertyTask, PropertyData, int], Result]],
) -> dict[str, dict[str, float]]:
    """All variants on one split; whatever is finished in the folder is used."""
    task = PropertyTask(COLUMN, batch=32, chunk=16, jitter=0.0)
    data, chosen, copies = data_of(items, seed)
    test = np.setdiff1d(data.part("test"), copies)
    train = data.part("train")
    one_architecture = len({tuple(t.shape for t in graph.state().values()) for graph in data.graphs}) == 1
    values: dict[str, dict[str, float]] = {}
    results: dict[str, Result] = {}
    for name in (*fits, "ensemble"):
        done, kept = folder / f"{seed}-{name}.json", folder / f"{seed}-{name}.npz"
        if name == "nfn" and not one_architecture:
            print("nfn: left out, it reads networks of one architecture only", file=sys.stderr)
            continue
        if done.exists() and kept.exists():
            values[name] = dict(read_json(done))
            with np.load(kept) as stored:
                results[name] = Result(name, stored["scores"], values[name]["train_s"])
            continue
        if name == "ensemble":
            # Copies stand in no validation part, so the share is chosen as it is without them.
            result = average(task, data, results["strict"], results["inverted"], "ensemble")
        else:
            result = fits[name](task, data, seed)
        results[name] = result
        encoding = task.encoding(data)
        measured = task.measure(data, test, result.scores[test])
        said = encoding.decode(result.scores)
        value = {
            "kendall_tau": measured["tau"],
            "r2": measured["r2"],
            "train_tau": task.measure(data, train, result.scores[train])["tau"],
            "orbit_change": float(np.abs(said[chosen] - said[copies]).max()),
            "train_s": result.seconds,
        }
        if result.history:
            spent = sum(row["seconds"] for row in result.history)
            value["train_networks_per_s"] = len(train) * len(result.history) / spent
        elif "train_networks_per_s" in result.details:
            value["train_networks_per_s"] = float(result.details["train_networks_per_s"])
        if "share" in result.details:
            value["share"] = float(result.details["share"])
        np.savez(kept, scores=result.scores)
        write_json_atomic(done, value)
        values[name] = value
        print(
            f"seed {seed} {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in value.items()), file=sys.stderr, flush=True
        )
    return values


def table(rows: Sequence[dict[str, Any]], cases: Sequence[str]) -> str:
    """Means over seeds, with tau of every seed."""
    seeds = sorted({row["seed"] for row in rows})
    head = "".join(f"{f'seed {seed}':>8}" for seed in seeds)
    lines = [
        f"{'case':<20}{'variant':<12}{head}{'tau':>8}{'R2':>8}{'train tau':>11}{'orbit':>9}{'train s':>9}{'nets/s':>8}"
    ]
    for case in cases:
        for variant in VARIANTS:
            mine = [row for row in rows if row["case"] == case and row["variant"] == variant]
            if not mine:
                continue

            def mean(metric: str, mine: Sequence[dict[str, Any]] = mine) -> float:
                found = [row["value"] for row in mine if row["metric"] == metric]
                return statistics.mean(found) if found else float("nan")

            taus = "".join(f"{row['value']:>8.3f}" for row in mine if row["metric"] == "kendall_tau")
            speed = mean("train_networks_per_s")
            cells = f"{mean('kendall_tau'):>8.3f}{mean('r2'):>8.3f}{mean('train_tau'):>11.3f}"
            cells += f"{mean('orbit_change'):>9.5f}{mean('train_s'):>9.1f}{'' if speed != speed else f'{speed:.0f}':>8}"
            lines.append(f"{case:<20}{variant:<12}{taus}{cells}")
    return "\n".join(lines)


def machine() -> str:
    """What the numbers were measured on."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s); {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small zoo, one seed: about a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--cases", nargs="+", default=["mnist_cnn", "mixed"], help="zoos, by their configuration")
    parser.add_argument("--zoos", type=Path, help="where the zoos lie (FOLDER/zoos); missing ones are built there")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-property"), help="where results are kept")
    parser.add_argument("--nfn-python", metavar="PYTHON", type=Path, help="interpreter that has nfn, see nfn_runner.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", metavar="N", type=int, help="processor cores that zoos are built with (all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases, seeds = (["digits_cnn"], [0]) if arguments.quick else (arguments.cases, arguments.seeds)
    if arguments.nfn_python is None:
        print("nfn: left out, no --nfn-python given (see nfn_runner.py)", file=sys.stderr)
    fits = methods(arguments.quick, arguments.nfn_python)
    suffix = "-quick" if arguments.quick else ""
    rows: list[dict[str, Any]] = []
    items: dict[str, list[PropertyItem]] = {}
    order = [(case, seed) for seed in seeds for case in cases]
    for case, seed in tqdm(order, desc="property", file=sys.stderr, disable=not sys.stderr.isatty()):
        folder = arguments.folder / f"{case}{suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        if case not in items:
            place = (arguments.zoos or arguments.folder / "zoos") / f"{case}{suffix}"
            overrides = QUICK_ZOO if arguments.quick else ()
            items[case] = list(zoo_items(zoo_of(case, place, overrides, arguments.threads), COLUMN))
        for variant, value in run_seed(items[case], seed, folder, fits).items():
            row = {"benchmark": "property", "case": case, "variant": variant, "seed": seed}
            rows += [{**row, "metric": metric, "value": value[metric]} for metric in METRICS if metric in value]
    print(machine())
    print(table(rows, cases))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
