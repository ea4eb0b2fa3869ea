"""How long does it take to read all networks of a zoo, at once and one by one, and how much memory?

    weights   one by one: `entry.state` of every network; at once: `Zoo.stacked()`
    graphs    one by one: `ParameterGraph.build` of every state; at once: what training reads, `Zoo.stacked` and
              `ParameterGraph.build_many` in windows of 2,048 networks

    python benchmarks/zoo_read.py --zoo zoos/mnist_inr [--quick] [--json FILE] [--repeats 3]

Every way runs in a process of its own (Linux): seconds of the processor without opening the zoo and deriving its
symmetry, and how far the highest memory goes beyond what the process held then. Both ways must give the same numbers.
The zoo must be of one architecture; --quick builds a small one. Wanted: several times as fast, in the same memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor
from tqdm import tqdm

from metanet.checkpoint import Checkpoint, Source
from metanet.commands._zoo_data import zoo_items
from metanet.datasets import Zoo, build_zoo, load_zoo_config
from metanet.graph import ParameterGraph, program_of
from metanet.io import write_json_atomic
from metanet.tasks import PropertyItem

CASES, VARIANTS = ("weights", "graphs"), ("one by one", "at once")
SAMPLED = 97


def spec_of(zoo: Zoo) -> Any:
    return Checkpoint(zoo[0].state, zoo.architectures[0], Source(zoo.folder, "safetensors")).spec


def read_all(zoo: Zoo, case: str, variant: str) -> list[list[Tensor]]:
    """Everything, kept; returns the numbers of every 97th network."""
    sampled = range(0, len(zoo), SAMPLED)
    if case == "weights" and variant == "at once":
        stacked = zoo.stacked()
        return [[tensor[i] for tensor in stacked.values()] for i in sampled]
    if case == "weights":
        states = [entry.state for entry in zoo]
        return [list(states[i].values()) for i in sampled]
    if variant == "one by one":
        graphs = list(_one_by_one(zoo))
    else:
        items: list[PropertyItem] = list(zoo_items(zoo, "run"))
        graphs = [item.graph for item in items]
    return [list(graphs[i].values) for i in sampled]


def _one_by_one(zoo: Zoo) -> Iterator[ParameterGraph]:
    spec, program = spec_of(zoo), program_of(zoo.architectures[0])
    return (ParameterGraph.build(spec, entry.state, program) for entry in zoo)


def highest_memory() -> float:
    """In megabytes, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def worker(folder: Path, case: str, variant: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    zoo = Zoo.open(folder)
    spec_of(zoo)
    # Linux forgets the highest memory so far, which deriving the symmetry may have taken.
    Path("/proc/self/clear_refs").write_text("5")
    before, began = highest_memory(), time.process_time()
    sampled = read_all(zoo, case, variant)
    seconds, memory = time.process_time() - began, highest_memory() - before
    digest = hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for row in sampled for t in row))
    return {"read_s": seconds, "memory_mb": memory, "networks": len(zoo), "digest": digest.hexdigest()}


def measured(folder: Path, case: str, variant: str) -> dict[str, Any]:
    words = [sys.executable, __file__, "--zoo", str(folder), "--worker", case, variant]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.strip().splitlines()[-1])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", metavar="FOLDER", type=Path, help="of one architecture, such as zoos/mnist_inr")
    parser.add_argument("--quick", action="store_true", help="a small zoo, built for it: under a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--repeats", metavar="N", type=int, default=3)
    parser.add_argument("--worker", nargs=2, metavar=("CASE", "VARIANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.zoo, *arguments.worker)))
        return
    if arguments.zoo is None and not arguments.quick:
        parser.error("give --zoo FOLDER, or --quick")
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.zoo
        if arguments.quick:
            few = {"train": 500, "val": 50, "test": 50}
            training = {"steps": 1, "learning_rate": 1e-3}
            folder = Path(made) / "zoo"
            build_zoo(load_zoo_config("digits_inr", images=few, training=training), folder, threads=1)
        rows: list[dict[str, Any]] = []
        order = [(r, c, v) for r in range(arguments.repeats) for c in CASES for v in VARIANTS]
        digests: dict[str, set[str]] = {case: set() for case in CASES}
        count = 0
        for repeat, case, variant in tqdm(order, file=sys.stderr, disable=not sys.stderr.isatty()):
            found = measured(folder, case, variant)
            digests[case].add(found["digest"])
            count = found["networks"]
            shared = {"benchmark": "zoo_read", "case": case, "variant": variant, "seed": repeat}
            rows += [{**shared, "metric": metric, "value": found[metric]} for metric in ("read_s", "memory_mb")]
    if any(len(found) != 1 for found in digests.values()):
        raise SystemExit("the two ways do not give the same numbers")
    print(machine())
    print(
        f"{count:,} networks\n{'case':<10}{'variant':<14}{'seconds':>10}{'from':>8}{'to':>8}{'MB more':>10}{'times':>8}"
    )
    for case in CASES:
        mean: dict[str, float] = {}
        for variant in VARIANTS:
            own = [row for row in rows if (row["case"], row["variant"]) == (case, variant)]
            seconds = [row["value"] for row in own if row["metric"] == "read_s"]
            memory = statistics.mean(row["value"] for row in own if row["metric"] == "memory_mb")
            mean[variant] = statistics.mean(seconds)
            times = mean[VARIANTS[0]] / mean[variant]
            line = f"{case:<10}{variant:<14}{mean[variant]:>10.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}"
            print(f"{line}{memory:>10.0f}{times:>8.1f}")
    if arguments.json:
        write_json_atomic(arguments.json, rows)


if __name__ == "__main__":
    main()
