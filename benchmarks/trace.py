"""How long does it take, and how much memory, to derive the symmetry of models of a usual size?

Cases: `resnet50` (the shape of ResNet-50: bottlenecks 3-4-6-3, 25 million parameters, images 3x64x64) and `bert_base`
(12 encoder layers, width 768, 12 heads, 110 million parameters, 2 x 8 words), written in plain torch. Each runs in a
process of its own. Export (torch's own work) and analysis are apart; memory is the peak beyond the model. `act` is one
random element of the whole group acting on all weights. The rows `x layers` are BERT of other depths: analysis that is
linear in the number of nodes keeps `microseconds per node` level.

    python benchmarks/trace.py [--quick] [--json FILE] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor, nn
from tqdm import tqdm

SEEDS = (0, 1, 2)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with batch norm around a residual connection."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.c1, self.n1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.c2, self.n2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.c3, self.n3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.n1(self.c1(x)))
        y = torch.relu(self.n2(self.c2(y)))
        return torch.relu(self.down(x) + self.n3(self.c3(y)))


def resnet50() -> tuple[nn.Module, Tensor]:
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    ]  # fmt: skip
    inputs = 64
    for number, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for place in range(count):
            layers.append(Bottleneck(inputs, width, 2 if number and not place else 1))
            inputs = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000)]
    return nn.Sequential(*layers), torch.randn(2, 3, 64, 64)


class Bert(nn.Module):
    """Embeddings of words, places and segments, encoder layers, a classifier on the first word."""

    def __init__(self, layers: int, width: int, heads: int, words: int) -> None:
        super().__init__()
        self.words, self.places, self.segments = (nn.Embedding(count, width) for count in (words, 512, 2))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x) + self.places(torch.arange(x.shape[1])) + self.segments(torch.zeros_like(x))
        y = self.norm(y)
        for layer in self.layers:
            y = layer(y)
        return self.head(y[:, 0])


def bert(layers: int = 12, width: int = 768, heads: int = 12, words: int = 30522) -> tuple[nn.Module, Tensor]:
    return Bert(layers, width, heads, words), torch.randint(0, words, (2, 8))


def peak() -> float:
    """Most memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def measured(build: Callable[..., tuple[nn.Module, Tensor]], options: dict[str, int], act: bool) -> dict[str, float]:
    """Seconds and gigabytes of one model; imports and first uses are not counted."""
    from symmetry.trace import derive
    from symmetry.trace.export import export

    derive(export(small := nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), (torch.zeros(2, 2),)), small)
    model, x = build(**options)
    model.eval()
    with torch.no_grad():
        model(x)
    before, start = peak(), time.perf_counter()
    graph = export(model, (x,))
    exported, nodes = time.perf_counter(), len(graph.nodes)
    spec = derive(graph, model, strict=True)
    done = time.perf_counter()
    found = {
        "nodes": nodes,
        "export_s": exported - start,
        "analysis_s": done - exported,
        "memory_gb": peak() - before,
        "us_per_node": 1e6 * (done - exported) / nodes,
    }
    if act:
        element, state = spec.sample(torch.Generator().manual_seed(0)), model.state_dict()
        start = time.perf_counter()
        spec.act(element, state)
        found["act_s"] = time.perf_counter() - start
    return found


def _child(queue: Any, threads: int, name: str, options: dict[str, int], act: bool) -> None:
    torch.set_num_threads(threads)
    queue.put(measured({"resnet50": resnet50, "bert": bert}[name], options, act))


def in_a_process(threads: int, name: str, options: dict[str, int], act: bool) -> dict[str, float]:
    """Measure in a fresh process: the peak of one model must not hide that of the next."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_child, args=(queue, threads, name, options, act))
    process.start()
    found: dict[str, float] = queue.get()
    process.join()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition, shallower growth rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write tidy rows")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (2)")
    arguments = parser.parse_args()
    cases: dict[str, tuple[str, dict[str, int], bool]] = {
        "resnet50": ("resnet50", {}, True),
        "bert_base": ("bert", {}, True),
    }
    narrow = {"width": 48, "heads": 4, "words": 100}
    for layers in (3, 6, 12) if arguments.quick else (3, 6, 12, 24):
        cases[f"x {layers} layers"] = ("bert", {"layers": layers, **narrow}, False)
    rows = []
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    work = [(case, seed) for seed in seeds for case in cases]
    for case, seed in tqdm(work, disable=not sys.stderr.isatty()):
        for metric, value in in_a_process(arguments.threads, *cases[case]).items():
            rows.append(
                {
                    "benchmark": "trace",
                    "case": case,
                    "variant": "derive",
                    "metric": metric,
                    "seed": seed,
                    "value": value,
                }
            )
    print(machine(arguments.threads))
    metrics = ("nodes", "export_s", "analysis_s", "us_per_node", "memory_gb", "act_s")
    print(f"{'case':14}" + "".join(f"{metric:>14}" for metric in metrics) + "   median of " + str(len(seeds)))
    for case in cases:
        cells = []
        for metric in metrics:
            found = [row["value"] for row in rows if row["case"] == case and row["metric"] == metric]
            cells.append(f"{statistics.median(found):14.2f}" if found else f"{'-':>14}")  # type: ignore[type-var]
        print(f"{case:14}" + "".join(cells))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
