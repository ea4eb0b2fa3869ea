"""Can one field write networks for tasks that were never trained, from a description of the task and a width alone?

The tasks are the digits of MNIST (14x14), turned by an angle; a task is described by cosine and sine of it. Fields are
trained on angles 30 degrees apart and asked for those in the middle between two, for perceptrons of 25 to 100 % of
196-64-64-10; no checkpoint and no image of the new angle is seen. Beside `descriptor`: `single` (one field for all
trained angles together, which is not told the angle, with a knot for each unit), `nearest` (a network trained for the
nearest trained angle) and `individual` (one trained for the angle that is asked for, which is what nobody wants to do
for each task).

    METANET_DATA=path/to/data python benchmarks/fields_descriptor.py [--quick] [--json FILE] [--seeds 0 1 2]
        [--variants descriptor ...] [--folder FOLDER]

Four angles are asked for, which turn with the seed. What is finished is kept in the folder, and a run that was stopped
goes on there. Cases are `rotated_mnist/<width>`; `accuracy` is that at the new angles, `accuracy_trained` that at the
trained angles next to them. Settings were chosen with `--held-out` (a fifth of the training images measures) and seeds
from 100 on.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fields_subjects import CASES, Split, accuracy, split, spread, trained
from machine import machine
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import symmetry
from metanet.fields import (
    DescriptorField,
    Field,
    FieldSettings,
    KnotsField,
    Sampling,
    Skeletons,
    Task,
    Training,
    materialise,
    sizes_of,
    train,
    train_family,
)
from metanet.io import read_json, write_json_atomic

CASE = CASES["mnist_mlp"]
WIDTHS = (0.25, 0.5, 0.75, 1.0)
APART = 30  # degrees between trained angles
STEPS, QUICK_STEPS = {"field": 3000, "network": 1000}, {"field": 250, "network": 150}
MOVES = 6
RATES = {"descriptor": 0.02, "single": 0.1}  # the best of .01 to .05, and of .02 to .2
FIELDS = ("descriptor", "single")
VARIANTS = (*FIELDS, "nearest", "individual")
Values = dict[str, dict[str, float]]  # by width and metric


def asked(seed: int) -> list[int]:
    """Four angles that no field is trained on."""
    return [(APART // 2 + APART * seed + 90 * number) % 360 for number in range(4)]


def described(angle: float) -> list[float]:
    return [math.cos(math.radians(angle)), math.sin(math.radians(angle))]


def turned(images: Tensor, angle: float) -> Tensor:
    """Images turned about their middle, on their own background. Shapes: (n, 196) -> (n, 196)."""
    c, s = described(angle)
    # Background is what an image has where nothing is: its lowest value.
    low = images.min()
    maps = images.view(-1, 1, 14, 14) - low
    matrix = torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(maps), -1, -1)
    grid = functional.affine_grid(matrix, list(maps.shape), align_corners=False)
    return functional.grid_sample(maps, grid, align_corners=False).flatten(1) + low


@functools.lru_cache(maxsize=32)
def task(angle: int, held_out: bool) -> Split:
    """Training and test images of one angle."""
    plain = split(CASE, held_out)
    return Split(turned(plain.inputs, angle), plain.labels, turned(plain.scored, angle), plain.scored_labels)


def start(seed: int) -> tuple[nn.Module, symmetry.SymmetrySpec, tuple[Any, ...]]:
    """A network of full width, its spec, and an example of what it reads."""
    model, example = CASE.architecture().build(seed).eval(), CASE.architecture().example_inputs()
    return model, symmetry.trace(model, example), example


def by_field(variant: str, seed: int, steps: int, held_out: bool, moves: int) -> Values:
    """What a field gives at new and at trained angles."""
    model, spec, example = start(seed)
    skeletons = Skeletons(model, spec, example)
    generator, state = torch.Generator().manual_seed(seed), model.state_dict()
    # Without products the single field can write any network: more numbers would not help it.
    rank = CASE.rank if variant == "descriptor" else None
    knots = {"rank": rank, "width_knots": CASE.width_knots, "normalised": False, "generator": generator}
    settings = FieldSettings(steps=steps, rate=RATES[variant], decay=0.02, own=0.5, average=0.998)
    angles = range(0, 360, APART)
    sampling = Sampling("cut", "copies")
    began = time.process_time()
    field: Field
    if variant == "descriptor":
        field = family = DescriptorField(spec, state, sampling, description=2, moves=moves, **knots)
        tasks = [Task(described(a), Training(task(a, held_out).inputs, task(a, held_out).labels)) for a in angles]
        train_family(family, skeletons, tasks, settings, seed)
    else:
        field = KnotsField(spec, state, sampling, **knots)
        parts = [task(angle, held_out) for angle in angles]
        data = Training(torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts]))
        train(field, skeletons, data, settings, seed)
    seconds = time.process_time() - began
    found: Values = {}
    for width in WIDTHS:
        values: dict[str, list[float]] = {"accuracy": [], "accuracy_trained": [], "generate_ms": []}
        for angle in asked(seed):
            near = (angle - APART // 2) % 360
            for metric, where in (("accuracy", angle), ("accuracy_trained", near)):
                before = time.perf_counter()
                one = field.given(described(where)) if isinstance(field, DescriptorField) else field
                with torch.no_grad():
                    one(None, sizes_of(spec, width))
                values["generate_ms"].append(1e3 * (time.perf_counter() - before))
                made = materialise(one, model, sizes_of(spec, width), example)
                values[metric].append(accuracy(made, task(where, held_out)))
        found[f"{width:g}"] = {name: statistics.mean(each) for name, each in values.items()}
        found[f"{width:g}"] |= {"stored": field.stored, "train_s": seconds}
    return found


def by_networks(variant: str, seed: int, steps: int, held_out: bool) -> Values:
    """What networks give that were trained for one angle and one width each."""
    found: Values = {}
    for width in WIDTHS:
        values: dict[str, list[float]] = {"accuracy": [], "train_s": []}
        for number, angle in enumerate(asked(seed)):
            made = CASE.architecture(width).build(10 * seed + number)
            own = angle if variant == "individual" else (angle - APART // 2) % 360
            values["train_s"].append(trained(made, task(own, held_out), steps, seed))
            values["accuracy"].append(accuracy(made, task(angle, held_out)))
            if variant == "nearest":
                values.setdefault("accuracy_trained", []).append(accuracy(made, task(own, held_out)))
        numbers = sum(value.numel() for value in made.state_dict().values())
        found[f"{width:g}"] = {name: statistics.mean(each) for name, each in values.items()} | {"stored": numbers}
    return found


def tidy(variant: str, seed: int, found: Values) -> list[dict[str, Any]]:
    row = {"benchmark": "fields_descriptor", "variant": variant, "seed": seed}
    return [
        {**row, "case": f"rotated_mnist/{width}", "metric": metric, "value": value}
        for width, metrics in found.items()
        for metric, value in metrics.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and deviation over the seeds, accuracies in percent."""
    lines = [f"{'case':<22}{'variant':<14}{'new angles':>14}{'trained angles':>16}{'stored':>9}{'train s':>9}{'ms':>7}"]
    for case, variant in dict.fromkeys((row["case"], row["variant"]) for row in rows):
        cells = {}
        for metric in ("accuracy", "accuracy_trained", "stored", "train_s", "generate_ms"):
            cells[metric] = [
                r["value"] for r in rows if (r["case"], r["variant"], r["metric"]) == (case, variant, metric)
            ]
        shares = [
            f"{100 * statistics.mean(cells[m]):.2f} ± {100 * spread(cells[m]):.2f}" if cells[m] else ""
            for m in ("accuracy", "accuracy_trained")
        ]
        plain = [
            f"{statistics.mean(cells[m]):.{d}f}" if cells[m] else ""
            for m, d in (("stored", 0), ("train_s", 1), ("generate_ms", 2))
        ]
        lines.append(f"{case:<22}{variant:<14}{shares[0]:>14}{shares[1]:>16}{plain[0]:>9}{plain[1]:>9}{plain[2]:>7}")
    return "\n".join(lines)


def piece(folder: Path, variant: str, seed: int, arguments: argparse.Namespace) -> Values:
    """One variant of one seed, from its file or made now."""
    file = folder / str(seed) / f"{variant}.json"
    if not file.exists():
        steps = (QUICK_STEPS if arguments.quick else STEPS)["field" if variant in FIELDS else "network"]
        if variant in FIELDS:
            found = by_field(variant, seed, steps, arguments.held_out, arguments.moves)
        else:
            found = by_networks(variant, seed, steps, arguments.held_out)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(file, found)
    return dict(read_json(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, one seed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="which variants")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="which seeds")
    parser.add_argument("--moves", type=int, default=MOVES, help="directions in which the field's numbers move")
    parser.add_argument("--held-out", action="store_true", help="measure on a fifth of the training images")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/benchmark-fields-descriptor"), help="where results are"
    )
    arguments = parser.parse_args()
    settings = f"{arguments.moves}{'-quick' * arguments.quick}{'-held-out' * arguments.held_out}"
    jobs = [
        (v, seed) for seed in (arguments.seeds[:1] if arguments.quick else arguments.seeds) for v in arguments.variants
    ]
    rows: list[dict[str, Any]] = []
    for variant, seed in tqdm(jobs, disable=not sys.stderr.isatty(), leave=False):
        rows += tidy(variant, seed, piece(arguments.folder / settings, variant, seed, arguments))
    print(machine())
    print(table(sorted(rows, key=lambda row: row["case"])))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
