"""How many pairs of networks are scored per second when thousands are run at once, beside a plain loop?

A pair is a network and a narrower one of its family, as an edit would leave it. Three ways, with the same measures of
the outputs (errors, divergence both ways, agreement, accuracy, loss) on the same inputs:

    at once   metanet.score.compare_many: stacked states and torch.func.vmap, in chunks of bounded memory
    loop      ordinary PyTorch: for each pair load both states, run both modules, measure
    compare   metanet.score.compare for each pair, without layers, line and bootstrap

    python benchmarks/score.py [--quick] [--json FILE] [--threads N] [--device cuda]

That all three say the same is checked before the clock starts. Reading files is part of none.

Wanted: at once 5 times the pairs per second of the loop, for small networks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor
from tqdm import tqdm

from metanet.checkpoint import Architecture, Checkpoint, Source
from metanet.io import write_json_atomic
from metanet.score import compare, compare_many
from metanet.score.measures import Reading, measure

SEEDS = (0, 1, 2)
WANTED = 5.0
AGREEMENT = {torch.float64: 1e-10, torch.float32: 1e-4}
VARIANTS = ("at once", "loop", "compare")
Row = dict[str, Any]
Pairs = list[tuple[Checkpoint, Checkpoint]]

_MLP = {"outputs": 10, "activation": "relu"}
_CNN = {"channels": 1, "size": 14, "outputs": 10, "activation": "relu", "norm": "batch", "strides": [2, 2, 1]}
# Name -> family, options, widths of the network and of the narrower one, shape of an input.
CASES: dict[str, tuple[str, dict[str, Any], list[int], list[int], tuple[int, ...]]] = {
    "mlp 64-32-10": ("mlp", {**_MLP, "inputs": 64}, [32], [16], (64,)),
    "mlp 196-32-32-10": ("mlp", {**_MLP, "inputs": 196}, [32, 32], [16, 16], (196,)),
    "cnn 1-16-16-16-10": ("cnn", _CNN, [16, 16, 16], [8, 8, 8], (1, 14, 14)),
}
SETTINGS = [(64, torch.float32), (256, torch.float32), (64, torch.float64), (256, torch.float64)]


def drawn(case: str, seed: int, count: int, device: torch.device) -> Pairs:
    family, options, wide, narrow, _ = CASES[case]
    sides = [Architecture(family, {**options, "widths": widths}) for widths in (wide, narrow)]
    pairs = []
    for number in range(count):
        states = [side.build(seed * 100_003 + number).to(device).state_dict() for side in sides]
        source = Source(Path("drawn"), "safetensors")
        one, two = (Checkpoint(state, side, source) for state, side in zip(states, sides, strict=True))
        pairs.append((one, two))
    return pairs


def loop(pairs: Pairs, inputs: Tensor, labels: Tensor, dtype: torch.dtype) -> list[float]:
    """What one writes without the library."""
    models = [side.architecture.build().to(inputs.device, dtype).eval() for side in pairs[0]]
    x = inputs.to(dtype)
    reading = Reading("classes", 1)
    found = []
    with torch.no_grad():
        for pair in pairs:
            for model, side in zip(models, pair, strict=True):
                model.load_state_dict(side.state)
            told = measure(models[0](x), models[1](x), reading, labels)
            found.append(float(told["kl"].mean()))
    return found


def one_by_one(pairs: Pairs, inputs: Tensor, labels: Tensor, dtype: torch.dtype) -> list[float]:
    plain: dict[str, Any] = {"layers": None, "line": 0, "resamples": 0, "dtype": dtype, "device": inputs.device}
    return [float(compare(*pair, inputs, labels, **plain).kl or 0.0) for pair in pairs]


def at_once(pairs: Pairs, inputs: Tensor, labels: Tensor, dtype: torch.dtype) -> list[float]:
    return compare_many(pairs, inputs, labels, dtype=dtype, device=inputs.device)["kl"].tolist()


WAYS: dict[str, Callable[[Pairs, Tensor, Tensor, torch.dtype], list[float]]] = {
    "at once": at_once,
    "loop": loop,
    "compare": one_by_one,
}


def measure_case(case: str, seed: int, quick: bool, device: torch.device) -> list[Row]:
    # Thousands of networks that are run in a fraction of a millisecond; hundreds of those that are not.
    most = (512 if quick else 4096) if case.startswith("mlp") else (128 if quick else 512)
    counts = {"at once": most, "loop": most // 8, "compare": max(most // 64, 8)}
    pairs = drawn(case, seed, counts["at once"], device)
    rows: list[Row] = []
    for number, (inputs, dtype) in enumerate(SETTINGS):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(inputs, *CASES[case][-1], generator=generator).to(device)
        labels = torch.randint(0, 10, (inputs,), generator=generator).to(device)
        told = [WAYS[name](pairs[:8], x, labels, dtype) for name in VARIANTS]
        apart = max(abs(a - b) for other in told[1:] for a, b in zip(told[0], other, strict=True))
        if not apart <= AGREEMENT[dtype]:
            raise SystemExit(f"{case}: the ways differ by {apart:.1e}, at most {AGREEMENT[dtype]:.0e}")
        seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
        # The ways in turn, three times: what else the machine does meets all of them.
        for turn in range(3):
            for name in VARIANTS[:: 1 if (turn + seed + number) % 2 else -1]:
                start = clock(device)
                WAYS[name](pairs[: counts[name]], x, labels, dtype)
                seconds[name].append(clock(device) - start)
        kind = f"{case}, {inputs} inputs, {str(dtype).removeprefix('torch.')}"
        shared = {"benchmark": "score", "case": kind, "metric": "pairs_per_s", "seed": seed}
        rows += [
            {**shared, "variant": n, "value": round(counts[n] / statistics.median(seconds[n]), 1)} for n in VARIANTS
        ]
    return rows


def clock(device: torch.device) -> float:
    """Seconds of the processor, which other work on the machine disturbs less; of the wall where a device works."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'case':<42}{'at once':>10}{'loop':>10}{'compare':>10}{'ratio':>8}  by seed, pairs per second"]
    for case in dict.fromkeys(row["case"] for row in rows):
        values = {(row["variant"], row["seed"]): row["value"] for row in rows if row["case"] == case}
        seeds = sorted({seed for _, seed in values})
        means = [statistics.mean(values[name, seed] for seed in seeds) for name in VARIANTS]
        ratios = [values["at once", seed] / values["loop", seed] for seed in seeds]
        shown = " ".join(f"{ratio:.1f}" for ratio in ratios)
        verdict = "as wanted" if statistics.mean(ratios) >= WANTED else "below 5"
        rates = "".join(f"{mean:>10,.0f}" for mean in means)
        lines.append(f"{case:<42}{rates}{statistics.mean(ratios):>8.1f}  {shown}  {verdict}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer networks: under a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="of torch, for all variants (1)")
    parser.add_argument("--device", default="cpu", help="where the networks are run (%(default)s)")
    parser.add_argument("--seeds", metavar="N", nargs="+", type=int, default=SEEDS, help="of networks and inputs")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="only these")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    order = [(case, seed) for seed in arguments.seeds for case in arguments.cases]
    rows: list[Row] = []
    for case, seed in tqdm(order, desc="score", file=sys.stderr, disable=not sys.stderr.isatty()):
        rows += measure_case(case, seed, arguments.quick, device)
    print(machine(arguments.threads, device))
    print(table(rows))
    if arguments.json:
        write_json_atomic(arguments.json, rows)


if __name__ == "__main__":
    main()
