"""What do rounds of messages on weights cost in time and memory, beside the plain form and the bare matrix products?

Five variants of the same four rounds on the same batch, one thread. `pyg` is the plain form of graph networks, written
with torch_geometric's MessagePassing: join the features of both ends, the edge and the layer, a linear map, ReLU, a
linear map per receiver, scatter. `split` splits the first map into its parts and applies the others after the sums, on
lists of edges, with gather and scatter. `dense` is what the library runs: blocks (batch, target, source, feature) in
pieces that fit the cache. These three have the same weights, and their results and gradients are compared first.
`matmul` is the limit: only the matrix products of `dense`, on the same pieces. `sweep` is the library's other kind of
message. `dense+c` and `sweep+c` are trained with activation checkpointing.

Peak memory is the high-water mark of the resident set during one step (forward and backward) in a fresh process, less
what was resident before the step; `forward_peak_mb` is the same for a forward pass without gradients. `--scale` asks
whether cost is linear in edges: one forward pass of whole metanetworks (16 features and one round; wide: 64 and four)
on ResNet-18 of 64 channels (11.7 million numbers), and of 16 and 32.

    python benchmarks/kernel.py [--quick] [--scale] [--json FILE] [--folder DIR] [--cases inr small_cnn mlp mixed]

`--folder` keeps what is measured, piece by piece, and goes on there after a stop.

Wanted of `dense`: at least 3 times `pyg` forward and 2.5 times forward and backward, at most .6 of its memory, at least
40 % of the limit forward; of ResNet-18 under 8 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kernel_forms as forms
import kernel_subjects as subjects
from machine import machine

SEEDS = (0, 1, 2)
ROUNDS = 4
METRICS = ("forward_s", "train_s", "peak_mb", "forward_peak_mb")
SIZES = (16, 32, 64)


def seconds(run: Callable[[], Tensor], train: bool) -> float:
    start = time.perf_counter()
    if train:
        run().square().mean().backward()
    else:
        with torch.no_grad():
            run()
    return time.perf_counter() - start


def compare(runs: dict[str, forms.Run]) -> None:
    """Refuse to measure forms that do not agree in their features and in the gradients of all weights."""
    results, slopes = {}, {}
    for name in ("pyg", "split", "dense"):
        runs[name].net.zero_grad()
        results[name] = runs[name].features()
        results[name].square().mean().backward()
        slopes[name] = torch.cat([p.grad.flatten() for p in runs[name].net.layers.parameters() if p.grad is not None])
        runs[name].net.zero_grad()
    for name in ("pyg", "split"):
        for ours, theirs in ((results["dense"], results[name]), (slopes["dense"], slopes[name])):
            gap = ((ours - theirs).norm() / theirs.norm()).item()
            if ours.shape != theirs.shape or not gap < 1e-4:
                raise SystemExit(f"{name} and dense differ by {gap:.1e} of the norm: they are not the same mathematics")


def times(case: str, seed: int, quick: bool, repeats: int) -> list[dict[str, Any]]:
    runs = forms.make(subjects.batch(case, seed, quick), subjects.HIDDEN[case], ROUNDS, seed)
    compare(runs)
    rows = []
    for metric, train in (("forward_s", False), ("train_s", True)):
        names = [name for name in forms.VARIANTS if train or not name.endswith("+c")]
        for name in names:
            seconds(runs[name].features, train)
        # In turn, so that what else the machine does meets all alike; the fastest of several is what it takes.
        found = [{name: seconds(runs[name].features, train) for name in names} for _ in range(repeats)]
        for name in names:
            rows.append(row(case, name, metric, seed, min(one[name] for one in found)))
    return rows


def row(case: str, variant: str, metric: str, seed: int, value: float) -> dict[str, Any]:
    return {
        "benchmark": "kernel", "case": case, "variant": variant, "metric": metric, "seed": seed,
        "value": round(value, 6),
    }  # fmt: skip


def peak(run: Callable[[], object]) -> float:
    """Megabytes by which the resident set of this process rises during a call, at most."""
    forms.trim()
    before = forms.resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    run()
    return (forms.resident("VmHWM") - before) / 2**20


def child(case: str, variant: str, quick: bool) -> None:
    """Measure one variant in this fresh process; print its numbers."""
    if case.startswith("resnet"):
        print(json.dumps(forms.whole_forward(subjects.resnet(int(case.removeprefix("resnet_"))), variant, peak)))
        return
    # The first step of a process loads kernels and opens pools: it is made on the smallest batch.
    small = forms.make(subjects.batch("inr", 0, True), subjects.HIDDEN[case], ROUNDS, 0, (variant,))[variant]
    seconds(small.features, True)
    run = forms.make(subjects.batch(case, 0, quick), subjects.HIDDEN[case], ROUNDS, 0, (variant,))[variant]
    found = {"forward_peak_mb": peak(lambda: seconds(run.features, False))}
    found["peak_mb"] = peak(lambda: seconds(run.features, True))
    print(json.dumps(found))


def ask(case: str, variant: str, quick: bool) -> dict[str, float]:
    words = [sys.executable, __file__, "--child", case, variant, *(["--quick"] if quick else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case} {variant}: {done.stderr[-800:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def mean(rows: Sequence[dict[str, Any]], case: str, variant: str, metric: str) -> float | None:
    found = [r["value"] for r in rows if (r["case"], r["variant"], r["metric"]) == (case, variant, metric)]
    return statistics.mean(found) if found else None


def table(rows: Sequence[dict[str, Any]], cases: Sequence[str]) -> str:
    lines = [f"{'case':<10}{'metric':<16}" + "".join(f"{name:>10}" for name in forms.VARIANTS)]
    for case in cases:
        for metric in METRICS:
            cells = [mean(rows, case, name, metric) for name in forms.VARIANTS]
            shown = [f"{'-':>10}" if c is None else f"{c:>10.4f}" if c < 10 else f"{c:>10.1f}" for c in cells]
            lines.append(f"{case:<10}{metric:<16}" + "".join(shown))
    for case in cases:
        for text, over, under, metric, wanted, least in (
            ("pyg / dense, forward", "pyg", "dense", "forward_s", 3.0, True),
            ("pyg / dense, forward and backward", "pyg", "dense", "train_s", 2.5, True),
            ("dense / pyg, peak memory", "dense", "pyg", "peak_mb", 0.6, False),
            ("limit / dense, forward", "matmul", "dense", "forward_s", 0.4, True),
        ):
            top, bottom = mean(rows, case, over, metric), mean(rows, case, under, metric)
            if top is None or not bottom:
                continue
            ratio = top / bottom
            verdict = "as wanted" if (ratio >= wanted) == least or ratio == wanted else "NOT as wanted"
            lines.append(f"{case:<10}{text:<36}{ratio:>7.2f}  {'>=' if least else '<='} {wanted}: {verdict}")
    return "\n".join(lines)


def scale_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [f"{'case':<12}{'variant':<11}{'parameters':>12}{'edges':>11}{'forward s':>11}{'ns/edge':>9}{'peak MB':>9}"]
    for variant in forms.WHOLE:
        for size in SIZES:
            metrics = ("parameters", "edges", "forward_s", "peak_mb")
            found = [mean(rows, f"resnet_{size}", variant, metric) for metric in metrics]
            if any(value is None for value in found):
                continue
            parameters, edges, time_taken, peak_mb = (float(value or 0) for value in found)
            each = 1e9 * time_taken / edges
            lines.append(
                f"{f'resnet_{size}':<12}{variant:<11}{parameters:>12,.0f}{edges:>11,.0f}{time_taken:>11.3f}{each:>9.0f}"
                f"{peak_mb:>9.0f}" + ("" if size < 64 else "  as wanted" if peak_mb < 8192 else "  NOT under 8 GB")
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller batch, the first case, one seed")
    parser.add_argument("--scale", action="store_true", help="also the cost on ResNet-18 of three widths")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--cases", nargs="+", choices=tuple(subjects.HIDDEN), default=list(subjects.HIDDEN))
    parser.add_argument("--repeats", type=int, default=5, help="of every measurement of time; the fastest counts")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="keep finished pieces here and go on from them")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        child(*arguments.child, arguments.quick)
        return
    cases, seeds = (arguments.cases[:1], SEEDS[:1]) if arguments.quick else (arguments.cases, SEEDS)
    work: list[tuple[str, Any]] = [("time", (case, seed)) for case in cases for seed in seeds]
    if not arguments.no_memory:
        work += [("memory", (case, variant)) for case in cases for variant in forms.VARIANTS]
    if arguments.scale:
        work += [("scale", (f"resnet_{size}", variant)) for size in SIZES for variant in forms.WHOLE]
    rows: list[dict[str, Any]] = []
    for sort, (case, which) in tqdm(work, desc="kernel", file=sys.stderr, disable=not sys.stderr.isatty()):
        kept = arguments.folder and arguments.folder / f"{sort} {case} {which}{' quick' * arguments.quick}.json"
        if kept and kept.exists():
            rows += json.loads(kept.read_text())
            continue
        if sort == "time":
            found = times(case, which, arguments.quick, 3 if arguments.quick else arguments.repeats)
        else:
            found = [row(case, which, m, 0, value) for m, value in ask(case, which, arguments.quick).items()]
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(found) + "\n")
        rows += found
    print(machine())
    print(table(rows, cases))
    if arguments.scale:
        print(scale_table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
