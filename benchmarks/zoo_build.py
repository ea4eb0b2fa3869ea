"""How many network-steps per second does training at once give, against a plain loop over the same networks?

Both variants train the same runs on the same minibatches, with the same first weights, optimisers and settings, in one
process with the same number of threads and the same memory settings (those of the workers that build zoos). `vmap` is
what `metanet zoo build` runs; `loop` is ordinary PyTorch: a module, an optimiser of torch.optim, backward, step, one
network after another. Drawing first weights and minibatches is part of both; measuring accuracy is part of neither.
The networks are drawn as in `zoo=digits_cnn`, `zoo=digits_mlp` and `zoo=digits_transformer`: norms, residual blocks,
heads and all activations.

The case `inr` fits SIRENs as in `zoo=mnist_inr` (2-32-32-1, pictures of 14x14 pixels): `by hand`, the backward pass
that is written out in metanet.datasets.inr, which is what `metanet zoo build` runs; `vmap` with 256 networks at once,
where it is fastest; and `loop`. All three end at the same errors, or the case fails.

    python benchmarks/zoo_build.py [--quick] [--json FILE] [--threads N] [--cases cnn mlp transformer inr]

With --json a run that was stopped goes on where it was.

Wanted: at least 3 times the steps per second of the loop, for every case; `by hand` also faster than vmap.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import zoo_build_inr as inr
from machine import machine
from tqdm import tqdm

from metanet.checkpoint import Architecture
from metanet.datasets import load_digits_dataset, load_zoo_config
from metanet.datasets.alone import train_alone
from metanet.datasets.draw import RunSettings, draw_zoo
from metanet.datasets.images import ImageData
from metanet.datasets.ranges import parse_range
from metanet.datasets.trainer import train_states
from metanet.datasets.worker import environment
from metanet.io import write_json_atomic

SEEDS = (0, 1, 2)
WANTED = 3.0
CASES = ("cnn", "mlp", "transformer", "inr")
# Largest difference of a network's error between two ways to fit it, in decibel: they sum in different orders.
AGREEMENT = 0.05
Group = tuple[Architecture, list[RunSettings]]
Row = dict[str, Any]


def clock() -> float:
    """Seconds of the processor: what else the machine does is not counted. With several threads, of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def drawn_groups(case: str, seed: int, architectures: int, networks: int, steps: int, data: ImageData) -> list[Group]:
    """Groups of the size that digits_cnn has, all runs with the same number of steps."""
    config = load_zoo_config(f"digits_{case}", seed=seed, runs=architectures * networks, architectures=architectures)
    training = {**config.training, "steps": parse_range("steps", steps)}
    config = replace(config, children=0.0, snapshot_count=1, training=training)
    draw = draw_zoo(config, data)
    return [(draw.architectures[group.architecture], [draw.runs[run] for run in group.runs]) for group in draw.groups]


def at_once(groups: Sequence[Group], data: ImageData, batch: int) -> None:
    for architecture, runs in groups:
        train_states(architecture, runs, data, batch)


def one_by_one(groups: Sequence[Group], data: ImageData, batch: int) -> None:
    for architecture, runs in groups:
        for run in runs:
            train_alone(architecture, run, data, batch)


VARIANTS: dict[str, Callable[[Sequence[Group], ImageData, int], None]] = {"vmap": at_once, "loop": one_by_one}


def measure(cases: Sequence[str], quick: bool, unfinished: Path | None, setting: str) -> list[Row]:
    """All rows; with ``unfinished`` they are kept there one by one, and what is there is not measured again."""
    data = load_digits_dataset()
    rows: list[Row] = []
    if unfinished is not None and unfinished.exists():
        before = json.loads(unfinished.read_text())
        rows = before["rows"] if before["setting"] == setting else []
    known = {(row["case"], row["seed"]) for row in rows}
    order = [(case, seed) for seed in SEEDS for case in cases if (case, seed) not in known]
    for case, seed in tqdm(order, desc="zoo_build", file=sys.stderr, disable=not sys.stderr.isatty()):
        rows += measure_inr(seed, quick, data) if case == "inr" else measure_case(case, seed, quick, data)
        if unfinished is not None:
            write_json_atomic(unfinished, {"setting": setting, "rows": rows})
    return rows


def measure_case(case: str, seed: int, quick: bool, data: ImageData) -> list[Row]:
    batch = load_zoo_config("digits_mixed").batch_size
    architectures, networks, steps = (3, 27, 16) if quick else (8, 27, 50)
    groups = drawn_groups(case, seed, architectures, networks, steps, data)
    # Once without a clock: the first call of every kind also loads and tunes kernels.
    for variant in VARIANTS.values():
        variant([(a, [replace(run, steps=2, snapshot_steps=(2,)) for run in runs]) for a, runs in groups], data, batch)
    # One architecture after another and the variants in turn: what else the machine does meets both.
    seconds = dict.fromkeys(VARIANTS, 0.0)
    for i, group in enumerate(groups):
        for name in list(VARIANTS)[:: 1 if (i + seed) % 2 else -1]:
            start = clock()
            VARIANTS[name]([group], data, batch)
            seconds[name] += clock() - start
    shared = {"benchmark": "zoo_build", "case": case, "metric": "steps_per_s", "seed": seed}
    work = architectures * networks * steps
    return [{**shared, "variant": name, "value": round(work / seconds[name], 1)} for name in VARIANTS]


def measure_inr(seed: int, quick: bool, data: ImageData) -> list[Row]:
    networks, steps, parts = (256, 10, 1) if quick else (256, 50, 3)
    fits = inr.drawn_fits(seed, networks, steps, data)
    for variant in inr.VARIANTS.values():
        variant(replace(fits, steps=2))  # without a clock
    seconds = dict.fromkeys(inr.VARIANTS, 0.0)
    for i in range(parts):
        fits = inr.drawn_fits(seed * parts + i, networks, steps, data)
        results = {}
        for name in list(inr.VARIANTS)[:: 1 if (i + seed) % 2 else -1]:
            start = clock()
            results[name] = inr.VARIANTS[name](fits)
            seconds[name] += clock() - start
        if inr.disagreement(results) > AGREEMENT:
            raise SystemExit(f"the ways to fit differ by {inr.disagreement(results):.3f} dB, at most {AGREEMENT}")
    shared = {"benchmark": "zoo_build", "case": "inr", "metric": "steps_per_s", "seed": seed}
    work = parts * networks * steps
    return [{**shared, "variant": name, "value": round(work / seconds[name], 1)} for name in inr.VARIANTS]


def table(rows: Sequence[Row]) -> str:
    unit = "network-steps per second of the processor"
    lines = [f"{'case':<14}{'seed':<8}{'by hand':>12}{'vmap':>12}{'loop':>12}{'ratio':>8}   {unit}"]
    for case in dict.fromkeys(row["case"] for row in rows):
        values = {(r["seed"], r["variant"]): r["value"] for r in rows if r["case"] == case}
        best = "by hand" if case == "inr" else "vmap"
        ratios = []
        for seed in SEEDS:
            ratios.append(values[seed, best] / values[seed, "loop"])
            told = [values.get((seed, name)) for name in ("by hand", "vmap", "loop")]
            shown = "".join(f"{'-' if value is None else format(value, ',.0f'):>12}" for value in told)
            lines.append(f"{case:<14}{seed:<8}{shown}{ratios[-1]:>8.2f}")
        mean = statistics.mean(ratios)
        verdict = "as wanted" if mean >= WANTED else "below"
        lines.append(f"{case:<14}{'mean':<8}{'':>36}{mean:>8.2f}   wanted {WANTED:.1f}: {verdict}")
        if best == "by hand":
            over = statistics.mean(values[seed, best] / values[seed, "vmap"] for seed in SEEDS)
            lines.append(f"{case:<14}{'':<44}{over:>8.2f}   over vmap")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer networks and steps: under a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="of torch, for both variants (1)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="only these")
    arguments = parser.parse_args()
    wanted = environment()
    if os.environ.get("MALLOC_MMAP_THRESHOLD_") != wanted["MALLOC_MMAP_THRESHOLD_"]:
        # These settings are read when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)  # noqa: S606 - this very script again
    torch.set_num_threads(arguments.threads)
    unfinished = arguments.json and arguments.json.with_name(arguments.json.name + ".unfinished")
    rows = measure(
        arguments.cases, arguments.quick, unfinished, f"{machine(arguments.threads)}, quick={arguments.quick}"
    )
    print(machine(arguments.threads))
    print(table(rows))
    if arguments.json:
        write_json_atomic(arguments.json, rows)
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
