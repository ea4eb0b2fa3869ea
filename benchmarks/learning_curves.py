"""How many networks does it take to learn to tell their accuracy, and does that carry over to wider networks?

Part `size`: the training runs of a zoo are cut to 50, 100, 200, ... networks (whole runs, nested); validation and test
stay as they are. Part `width`: trained on networks whose widest hidden space has at most 32 units, tested on 48 and
more (zoos that have such networks: `mixed`). Variants as in property.py: strict, statistics, responses, inverted, flat,
and `ensemble`, the average of strict and inverted.

    python benchmarks/learning_curves.py [--quick] [--json FILE] [--cases mnist_cnn mixed] [--zoos FOLDER]

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
from property_ways import COLUMN, QUICK_ZOO, SEEDS, methods, zoo_of
from tqdm import tqdm

from metanet.commands._zoo_data import zoo_items
from metanet.io import read_json, write_json_atomic
from metanet.tasks import PropertyData, PropertyItem, PropertyTask, Result, average, property_data, split_by_group

SIZES = (50, 100, 200, 400)
VARIANTS = ("strict", "statistics", "inverted", "flat", "responses")
NARROW, WIDE = 32, 48
METRICS = ("kendall_tau", "r2")


def cut(data: PropertyData, count: int, seed: int) -> PropertyData:
    """The data with about `count` training networks: whole runs, in an order that the seed decides."""
    train = data.part("train")
    runs = np.unique(data.groups[train])
    order = np.random.default_rng(np.random.SeedSequence([seed, 0xC07])).permutation(runs)
    sizes = np.cumsum([int(np.sum(data.groups[train] == run)) for run in order])
    kept = set(order[: int(np.searchsorted(sizes, count)) + 1])
    return data.subset([i for i in range(len(data)) if data.split[i] != "train" or data.groups[i] in kept])


def by_width(data: PropertyData) -> PropertyData | None:
    """Narrow networks in the parts where they are, wide ones of any run as test; None where there are too few."""
    widest = np.array([max((s.size for s in graph.spec.spaces), default=0) for graph in data.graphs])
    narrow, wide = widest <= NARROW, widest >= WIDE
    if wide.sum() < 20 or narrow.sum() < 60:
        return None
    split = np.where(wide, "test", np.where(data.split == "test", "train", data.split))
    kept = np.flatnonzero(narrow | wide)
    # A run has one architecture, so no run is on two sides; relatives of other widths are left out.
    mixed = {g for g in np.unique(data.groups) if len({split[i] == "test" for i in kept if data.groups[i] == g}) > 1}
    kept = np.array([i for i in kept if data.groups[i] not in mixed])
    return data.subset(kept).with_split(split[kept])


def measure(
    data: PropertyData, seed: int, names: Sequence[str], quick: bool, folder: Path, point: str, epochs: int
) -> dict[str, dict[str, float]]:
    """All variants and the ensemble on one training part; whatever is finished in the folder is used."""
    task = PropertyTask(COLUMN, batch=32, chunk=32, jitter=0.0)
    fits, test = methods(quick, epochs=epochs), data.part("test")
    results: dict[str, Result] = {}
    found: dict[str, dict[str, float]] = {}
    together = ("strict", "inverted")
    for name in (*names, *(["ensemble"] if set(together) <= set(names) else [])):
        done, kept = folder / f"{seed}-{point}-{name}.json", folder / f"{seed}-{point}-{name}.npz"
        if not done.exists():
            if name == "ensemble":
                result = average(task, data, results["strict"], results["inverted"], "ensemble")
            else:
                result = fits[name](task, data, seed)
            value = task.measure(data, test, result.scores[test])
            np.savez(kept, scores=result.scores)
            told = {"kendall_tau": value["tau"], "r2": value["r2"], "networks": len(data.part("train"))}
            write_json_atomic(done, told)
            print(f"{folder.name} seed {seed} {point} {name}: {told}", file=sys.stderr, flush=True)
        found[name] = dict(read_json(done))
        with np.load(kept) as stored:
            results[name] = Result(name, stored["scores"], 0.0)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean tau over seeds: a line for each case and variant, a column for each point."""
    points = list(dict.fromkeys((row["case"], row["point"]) for row in rows))
    lines = []
    for case in dict.fromkeys(case for case, _ in points):
        mine = [point for name, point in points if name == case]
        lines.append(f"{case:<14}{'variant':<12}" + "".join(f"{point:>12}" for point in mine) + "   mean tau")
        for variant in dict.fromkeys(row["variant"] for row in rows if row["case"] == case):
            cells = []
            for point in mine:
                key = (case, point, variant, "kendall_tau")
                values = [r["value"] for r in rows if (r["case"], r["point"], r["variant"], r["metric"]) == key]
                values = [value for value in values if value == value]
                cells.append(f"{statistics.mean(values):>12.3f}" if values else f"{'-':>12}")
            lines.append(f"{case:<14}{variant:<12}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small zoo, one seed, two sizes: about a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--cases", nargs="+", default=["mnist_cnn", "mixed"], help="zoos, by their configuration")
    parser.add_argument("--zoos", type=Path, help="where the zoos lie (FOLDER/zoos); missing ones are built there")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-curves"), help="where results are kept")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--epochs", type=int, default=40, help="of the metanetwork")
    parser.add_argument("--points", nargs="+", help="only these: 50, 100, 200, 400, all, wider")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", metavar="N", type=int, help="processor cores that zoos are built with (all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    cases, seeds = (["digits_cnn"], [0]) if quick else (arguments.cases, arguments.seeds)
    suffix = "-quick" if quick else ""
    names = ("responses", "flat") if quick else arguments.variants
    data_of: dict[str, PropertyData] = {}
    rows: list[dict[str, Any]] = []
    order = [(case, seed) for seed in seeds for case in cases]
    for case, seed in tqdm(order, desc="curves", file=sys.stderr, disable=not sys.stderr.isatty()):
        folder = arguments.folder / f"{case}{suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        if case not in data_of:
            place = (arguments.zoos or arguments.folder / "zoos") / f"{case}{suffix}"
            zoo = zoo_of(case, place, QUICK_ZOO if quick else (), arguments.threads)
            items: list[PropertyItem] = list(zoo_items(zoo, COLUMN))
            data_of[case] = property_data(items, COLUMN)
        data = data_of[case]
        if seed:
            shares = {"train": 0.6, "val": 0.2, "test": 0.2}
            draws = np.random.default_rng(np.random.SeedSequence([seed, 0x5917]))
            data = data.with_split(split_by_group(data.groups, draws, shares))
        whole = len(data.part("train"))
        _ = data.batch  # collated once: all cuts share what is computed of a network alone
        points = {str(size): cut(data, size, seed) for size in ((50,) if quick else SIZES) if size < 0.9 * whole}
        points["all"] = data
        wider = by_width(data)
        if wider is None:
            print(f"{case}: no transfer across widths, too few networks of {WIDE} units and more", file=sys.stderr)
        else:
            points["wider"] = wider
        for point, part in points.items():
            if arguments.points and point not in arguments.points:
                continue
            for variant, value in measure(part, seed, names, quick, folder, point, arguments.epochs).items():
                row = {"benchmark": "learning_curves", "case": case, "variant": variant, "seed": seed, "point": point}
                rows += [{**row, "metric": metric, "value": value[metric]} for metric in METRICS]
    print(machine())
    print(table(rows))
    if arguments.json:
        tidy = [{**row, "metric": f"{row['metric']} at {row['point']}"} for row in rows]
        arguments.json.write_text(json.dumps([{k: v for k, v in row.items() if k != "point"} for row in tidy]) + "\n")


if __name__ == "__main__":
    main()
