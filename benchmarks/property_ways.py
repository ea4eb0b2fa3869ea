"""Which zoos, splits and variants do the benchmarks of property prediction share? See property.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nfn_runner import nfn_scores
from numpy.typing import NDArray

from metanet.commands._compose import compose
from metanet.datasets import Zoo, build_zoo
from metanet.graph import ParameterGraph
from metanet.tasks import (
    FlatMethod,
    MetanetMethod,
    PropertyData,
    PropertyItem,
    PropertyTask,
    Result,
    TreesMethod,
    property_data,
    split_by_group,
)
from metanet.train import TrainerSettings

SEEDS = (0, 1, 2)
COLUMN = "test_accuracy"
TREES = ("statistics", "rich", "responses", "inverted")
NFN_EPOCHS, NFN_RATES = 30, (1e-3, 3e-3)
QUICK_ZOO = ("zoo.runs=64", "zoo.architectures=4")
MOVED = 48  # test networks that are moved along their orbits
STRICT = {
    "layers": 1, "hidden": 16, "messages": "sweep", "symmetry": "full", "statistics": True, "responses": 64,
    "readout": 64,
}  # fmt: skip
METANETS: dict[str, dict[str, Any]] = {
    "strict": STRICT,
    "quasi": {**STRICT, "hidden": 8, "mode": "quasi"},
    "soft": {**STRICT, "hidden": 8, "mode": "soft"},
    "probing": {"layers": 0, "hidden": 16, "statistics": False, "responses": 64, "readout": 64},
}


def zoo_of(case: str, folder: Path, overrides: Sequence[str], threads: int | None) -> Zoo:
    """The zoo of a case, built if it is not there."""
    if not (folder / "manifest.json").exists():
        build_zoo(compose("train", [f"zoo={case}", *overrides])["zoo"], folder, progress=False, threads=threads)
    return Zoo.open(folder)


def data_of(
    items: Sequence[PropertyItem], seed: int, column: str = COLUMN
) -> tuple[PropertyData, np.ndarray, np.ndarray]:
    """The data of one seed; behind the networks stand copies of test networks, moved along their orbits.

    Returns:
        The data, the places of the test networks that were moved, and those of their copies.
    """
    one = splits_of(items, [seed], column)[seed]
    return one.data, one.chosen, one.copies


@dataclass(frozen=True)
class Split:
    """The data of one seed.

    Attributes:
        data: The networks, and behind them copies of test networks of all seeds, moved along their orbits.
        test: The places of the test networks themselves.
        chosen: The places of those that were moved.
        copies: The places of their copies.
        own: The places of the networks and of these copies; the rest are copies of other seeds.
    """

    data: PropertyData
    test: NDArray[np.intp]
    chosen: NDArray[np.intp]
    copies: NDArray[np.intp]
    own: NDArray[np.intp]


def splits_of(items: Sequence[PropertyItem], seeds: Sequence[int], column: str = COLUMN) -> dict[int, Split]:
    """The data of several seeds. They hold the same networks, so what is computed of a network alone is shared."""
    plain = property_data(items, column)
    shares = {part: float(np.mean(plain.split == part)) for part in ("train", "val", "test")}
    shares["train"] = 1 - shares["val"] - shares["test"]
    graphs, targets, groups, names = list(plain.graphs), list(plain.targets), list(plain.groups), list(plain.names)
    splits, places = {}, {}
    for seed in seeds:
        draws = np.random.default_rng(np.random.SeedSequence([seed, 0x5917]))
        splits[seed] = split_by_group(plain.groups, draws, shares) if seed else plain.split
        test = np.flatnonzero(splits[seed] == "test")
        chosen = test[np.linspace(0, len(test) - 1, min(MOVED, len(test))).astype(int)]
        copies = np.arange(len(graphs), len(graphs) + len(chosen))
        places[seed] = (test, chosen, copies, np.concatenate([np.arange(len(plain)), copies]))
        generator = torch.Generator().manual_seed(seed)
        for i in chosen:
            graphs.append(moved(plain.graphs[i], generator))
            targets.append(plain.targets[i])
            # A group of its own: for another seed the network itself may stand in another part.
            groups.append(f"{plain.groups[i]}, moved")
            names.append(f"{plain.names[i]}, moved")
    every = zip(graphs, targets, groups, names, strict=True)
    whole = property_data((PropertyItem(g, t.item(), str(r), "test", n) for g, t, r, n in every), column)
    added = ["test"] * (len(whole) - len(plain))
    return {seed: Split(whole.with_split([*splits[seed], *added]), *places[seed]) for seed in seeds}


def retold(split: Split, items: Sequence[PropertyItem], column: str) -> Split:
    """The same networks in the same parts with another column as target.

    Raises:
        KeyError: A network has no value there.
    """
    known = {item.name: item.target for item in items}
    values = np.array([known[name.removesuffix(", moved")] for name in split.data.names])
    values = values.astype(float) if values.dtype.kind in "fiu" else values.astype(str)
    return replace(split, data=replace(split.data, targets=values, column=column))


def moved(graph: ParameterGraph, generator: torch.Generator) -> ParameterGraph:
    """The same function elsewhere on its orbit, by a random element of the whole group."""
    element = graph.spec.sample(generator)
    state = {name: value.double() if value.is_floating_point() else value for name, value in graph.state().items()}
    there = graph.spec.act(element, state)
    rounded = {name: value.to(graph.state()[name].dtype) for name, value in there.items()}
    return ParameterGraph.build(graph.spec, rounded, graph.program)


def training_rate(task: PropertyTask, data: PropertyData, options: Mapping[str, Any]) -> float:
    """Training networks per second of processor time: steps alone, without preparation and validation."""
    generator = torch.Generator().manual_seed(0)
    model = task.model(data, options, generator)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    rate = 0.0
    for _ in range(2):  # the first epoch computes what is kept with the networks
        seen, began = 0, time.process_time()
        for batch in task.batches(data, generator):
            optimiser.zero_grad(set_to_none=True)
            task.loss(model, data, batch, generator).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            seen += len(batch)
        rate = seen / (time.process_time() - began)
    return rate


def nfn_result(
    task: PropertyTask, data: PropertyData, seed: int, python: Path, epochs: int, rates: Sequence[float]
) -> Result:
    """`nfn` on the stacked weights; of several learning rates the best on the validation part."""
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
        nfn_scores(python, stacked, biases, labels, data.split, epochs=epochs, seed=seed, rate=rate) for rate in rates
    ]
    scores, told = min(tried, key=lambda pair: pair[1]["val_loss"])
    told.pop("history")
    return Result("nfn", scores.astype(float), told["train_s"], (), told)


def methods(
    quick: bool, nfn_python: Path | None = None, nfn_rates: Sequence[float] = NFN_RATES, epochs: int = 40
) -> dict[str, Callable[[PropertyTask, PropertyData, int], Result]]:
    """How each variant but the ensemble is fitted."""
    settings = TrainerSettings(
        epochs=8 if quick else epochs, learning_rate=3e-3, weight_decay=0.1, average=0.95, patience=0, progress=False
    )
    # A step costs them four times as much: half the epochs take about twice the time.
    moving = replace(settings, epochs=settings.epochs // 2)
    trees = {name: TreesMethod(name=name, features=name).run for name in TREES}
    found: dict[str, Callable[[PropertyTask, PropertyData, int], Result]] = {
        "strict": MetanetMethod(METANETS["strict"], settings, name="strict").run,
        **{mode: MetanetMethod(METANETS[mode], moving, name=mode).run for mode in ("quasi", "soft")},
        "flat": FlatMethod().run,
        **trees,
        "probing": MetanetMethod(METANETS["probing"], settings, name="probing").run,
    }
    if nfn_python is not None:
        most = 5 if quick else NFN_EPOCHS
        found["nfn"] = lambda task, data, seed: nfn_result(task, data, seed, nfn_python, most, nfn_rates)
    return found
