"""Where does an edit that stays in a network's orbit pay: quasi against strict and soft, beside closed forms?

Perceptrons 196-32-32-10 on MNIST of 14x14, four in five to train on. A metanetwork edits networks that it has not
seen, from their weights alone; images are used to train it, and test images to measure. Three variants of equal
parameters: `strict` (an equivariant change, which may change the function), `quasi` (one element of the own group) and
`soft` (one element per channel, and the mean). Each is measured as a whole and ("head alone") without the second stage,
in which it goes on from what its head predicts: eight steps down the KL on learned inputs (`merge`), or the best of 64
tries there (the other jobs).

- `merge`: cross-entropy of the average of two matched networks above the mean of both ends;
- `quantise4`, `quantise8`: KL between a network and itself rounded per tensor;
- `prune50`: KL between a network and itself without half of its weights ("strict" by a score, the rest by magnitude).

    METANET_DATA=path/to/data python benchmarks/quasi.py [--quick] [--json FILE] [--cases merge ...] [--folder FOLDER]

What is finished is kept in the folder, and a run that was stopped goes on there. Wanted: a barrier at most .85 of the
best closed form (research: half); rounding at most .95 of cross-layer equalisation; pruning at most half of magnitude.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import quasi_jobs as jobs
import torch
from machine import machine
from quasi_forms import equalised
from quasi_reader import PROBES, Variant, balanced
from quasi_rivals import rivals
from quasi_zoo import WIDTHS, images, network, zoo
from tqdm import tqdm

import symmetry
from metanet.io import read_json, write_json_atomic

SEEDS = (0, 1, 2)
VARIANTS: tuple[Variant, ...] = ("strict", "quasi", "soft")
STEPS = {"merge": 200, "quantise": 120, "prune": 120}
NETWORKS, TRAINED, HELD_OUT = 600, (400, 800), 0.2
QUICK_NETWORKS, QUICK_TRAINED, QUICK_STEPS = 60, (150, 300), 10
# The rivals of a wanted ratio: closed forms. What else is listed says which part of the work learning does.
FREE = ("raw", "magnitude", "unit", "balanced", "equalised")
WANTED = {"merge": 0.85, "quantise4": 0.95, "quantise8": 0.95, "prune50": 0.5}


def bar(title: str, total: int) -> tqdm[Any]:
    return tqdm(total=total, desc=title, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False)


def load(seed: int, job: str, count: int, trained: tuple[int, int], folder: Path) -> jobs.Data:
    """The networks of one seed in the gauge that a job starts from."""
    with bar(f"zoo {seed}", count * trained[1]) as progress:
        raw = zoo(folder, count, trained, seed, lambda n: bool(progress.update(n)))
    data = images()
    spec = symmetry.trace(network(), (torch.zeros(7, WIDTHS[0]),))
    x = data.pool_images.flatten(1)
    start = jobs.noise_like(x, PROBES, torch.Generator().manual_seed(seed))
    states = equalised(raw) if job == "quantise" else balanced(raw, spec)
    held_out = round(HELD_OUT * count)
    return jobs.Data(raw, states, held_out, x, data.test_images.flatten(1), data.test_labels, start, spec)


def piece(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result from its file, or made and kept there."""
    if not file.exists():
        write_json_atomic(file, make())
    return dict(read_json(file))


def trained_and_measured(
    job: str, variant: Variant, data: jobs.Data, seed: int, steps: int
) -> dict[str, jobs.Measures]:
    """One variant as a whole, and what its head does alone (trained anew for that where the stages train together)."""
    found = {}
    reader = None
    for refine in (True, False):
        seconds = 0.0
        if reader is None or job == "merge":
            started = time.process_time()
            with bar(f"{job} {variant} {seed}", steps) as progress:
                reader = jobs.learn(job, variant, data, seed, steps, lambda n: bool(progress.update(n)), refine)
            seconds = time.process_time() - started
        cases = jobs.measure(job, reader, data, refine)
        found[variant if refine else f"{variant}, head alone"] = {
            case: {**values, "train_s": seconds} if seconds else values for case, values in cases.items()
        }
    return found


def results(job: str, seed: int, quick: bool, folder: Path) -> dict[str, jobs.Measures]:
    """All rivals and variants of one job."""
    count, trained = (QUICK_NETWORKS, QUICK_TRAINED) if quick else (NETWORKS, TRAINED)
    steps = QUICK_STEPS if quick else STEPS[job]
    at = folder / f"{job}-{seed}-{count}-{steps}"
    at.mkdir(parents=True, exist_ok=True)
    data: list[jobs.Data] = []

    def here() -> jobs.Data:
        if not data:
            data.append(load(seed, job, count, trained, folder))
        return data[0]

    found: dict[str, jobs.Measures] = dict(piece(at / "rivals.json", lambda: {**rivals(job, here(), seed)}))
    for variant in VARIANTS:

        def make(variant: Variant = variant) -> dict[str, Any]:
            return trained_and_measured(job, variant, here(), seed, steps)

        found |= piece(at / f"{variant}.json", make)
    return found


def tidy(seed: int, found: dict[str, jobs.Measures]) -> list[dict[str, Any]]:
    """One row per case, variant and metric."""
    return [
        {"benchmark": "quasi", "case": case, "variant": variant, "metric": metric, "seed": seed, "value": value}
        for variant, cases in found.items()
        for case, values in cases.items()
        for metric, value in values.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """By case: each variant's value by seed, mean and standard deviation over the seeds, the ratio of its mean to that
    of the best or named rival, and what it did to the networks before the job: how far their functions moved, and how
    far they are from the orbit.
    """
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        f"{'case':<11}{'variant':<35}"
        + "".join(f"{f'seed {s}':>10}" for s in seeds)
        + f"{'mean':>10}{'spread':>10}{'ratio':>8}{'edit KL':>10}{'defect':>9}"
    ]
    for case in WANTED:
        mine = [row for row in rows if row["case"] == case]
        if not mine:
            continue
        metric = "barrier" if case == "merge" else "kl"
        names = list(dict.fromkeys(row["variant"] for row in mine))

        def values(name: str, what: str, mine: Sequence[dict[str, Any]] = mine) -> list[float]:
            return [row["value"] for row in mine if row["variant"] == name and row["metric"] == what]

        means = {name: statistics.mean(values(name, metric)) for name in names}
        rival = {"merge": min((n for n in FREE if n in means), key=means.__getitem__), "prune50": "magnitude"}.get(
            case, "equalised"
        )
        for name in names:
            cells = "".join(f"{value:>10.3g}" for value in values(name, metric))
            spread = statistics.stdev(values(name, metric)) if len(seeds) > 1 else 0.0
            line = f"{case:<11}{name:<35}{cells}{means[name]:>10.3g}{spread:>10.2g}{means[name] / means[rival]:>8.2f}"
            for what, width in (("edit_kl", 10), ("defect", 9)):
                told = values(name, what)
                line += f"{abs(statistics.mean(told)):>{width}.1e}" if told else " " * (width - 1) + "-"
            lines.append(line)
        best = min((v for v in VARIANTS if v in means), key=means.__getitem__)
        ratios = {v: means[v] / means[rival] for v in VARIANTS if v in means}
        met = [f"{v} {r:.2f} ({'met' if r <= WANTED[case] else 'NOT met'})" for v, r in ratios.items()]
        lines.append(f"{case:<11}against {rival}, wanted at most {WANTED[case]}: {', '.join(met)}; best {best}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few networks and steps, one seed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--cases", nargs="+", choices=jobs.JOBS, default=list(jobs.JOBS), help="which jobs")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="which seeds")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-quasi"), help="where zoos and results go")
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        for job in arguments.cases:
            rows += tidy(seed, results(job, seed, arguments.quick, arguments.folder))
    print(machine())
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
