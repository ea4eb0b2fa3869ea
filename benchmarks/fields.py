"""How good are whole networks that one weight field writes, at every width, beside networks trained for that width?

Fields (one set of numbers for all widths): `knots` (our recipe: cut coordinates, products of low rank, biases and gains
at a few widths, distilled from its own full width), `knots_spread` (the same on spread coordinates), `mlp` (small
networks write the weights, as in NeuMeta), `slimmable` (a shared prefix: Yu et al. 2019; a field with one knot per unit
and nothing that varies with the width; running statistics estimated again for each). One network for each width:
`individual`, `distilled` (from the individual one of full width), `torch_pruning` and `torch_pruning_tuned` (of the
individual one, without and with two epochs after it).

    METANET_DATA=path/to/data python benchmarks/fields.py [--quick] [--json FILE] [--cases mnist_mlp ...]
        [--variants knots ...] [--seeds 0 1 2] [--torch-pruning-python ENV/bin/python] [--folder FOLDER]

What is finished is kept in the folder, and a run that was stopped goes on there. Cases are `<family>/<width>`. Settings
were chosen with `--held-out` (a fifth of the training images measures) and seeds from 100 on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fields_subjects import CASES, Case, Split, accuracy, latency, split, spread, trained
from machine import machine

import symmetry
from metanet.fields import (
    Field,
    FieldSettings,
    KnotsField,
    MlpField,
    Sampling,
    Skeletons,
    Training,
    estimate,
    materialise,
    sizes_of,
    train,
)
from metanet.io import write_json_atomic
from metanet.morph import recalibrate

WIDTHS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.5, 2.0, 4.0)
FIELDS = ("knots", "knots_spread", "mlp", "slimmable")
ALONE = ("individual", "distilled", "torch_pruning", "torch_pruning_tuned")
Values = dict[str, dict[str, float]]


def field_of(variant: str, case: Case, seed: int) -> tuple[Field, FieldSettings]:
    """The field of a variant as it starts, and how it is trained."""
    model = case.architecture().build(seed).eval()
    spec = symmetry.trace(model, case.architecture().example_inputs())
    generator, state = torch.Generator().manual_seed(seed), model.state_dict()
    small = {"width_knots": case.width_knots, "generator": generator}
    every = {"steps": case.field_steps, "random": case.random}
    ours = FieldSettings(**every, rate=0.1, decay=0.02, own=0.5, average=0.998)
    if variant == "mlp":
        field: Field = MlpField(spec, state, Sampling("spread", "copies"), hidden=32, blocks=1, **small)
        return field, FieldSettings(steps=case.field_steps // 2, random=case.random, rate=0.005, own=0.5, average=0.998)
    if variant == "slimmable":
        field = KnotsField(spec, state, Sampling("cut", "copies"), generator=generator)
        return field, FieldSettings(**every, rate=0.1)
    way = "spread" if variant == "knots_spread" else "cut"
    return KnotsField(spec, state, Sampling(way, "copies"), rank=case.rank, normalised=False, **small), ours


def by_field(variant: str, case: Case, seed: int, images: Split, shorter: int) -> Values:
    """What a field gives at every width."""
    began = time.process_time()
    field, settings = field_of(variant, case, seed)
    settings = FieldSettings.from_json({**settings.to_json(), "steps": max(settings.steps // shorter, 1)})
    model, example = case.architecture().build(seed).eval(), case.architecture().example_inputs()
    skeletons = Skeletons(model, field.spec, example)
    train(field, skeletons, Training(images.inputs, images.labels), settings, seed)
    batches = [(rows,) for rows in images.inputs[:2048].split(256)]
    estimate(field, skeletons, batches)
    field.fold()
    seconds = time.process_time() - began
    found: Values = {}
    for width in WIDTHS:
        sizes = sizes_of(field.spec, width)
        made = materialise(field, model, sizes, example)
        if variant == "slimmable":
            recalibrate(made, batches)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            with torch.no_grad():
                field(None, sizes)
            times.append(1e3 * (time.perf_counter() - start))
        found[f"{width:g}"] = {
            "accuracy": accuracy(made, images),
            "stored": field.stored,
            "train_s": seconds,
            "generate_ms": statistics.median(times),
            "latency_ms": latency(made, example),
        }
        if field.statistics() and variant != "slimmable":
            recalibrate(made, batches)
            found[f"{width:g}"]["accuracy_estimated"] = accuracy(made, images)
    return found


def alone(variant: str, case: Case, seed: int, images: Split, shorter: int, python: Path | None) -> Values:
    """What a network of its own gives at every width."""
    found: Values = {}
    teacher = None
    steps = max(case.steps // shorter, 1)
    if variant != "individual":
        teacher = case.architecture().build(seed)
        trained(teacher, images, steps, seed, case.rate, case.decay)
    for width in WIDTHS:
        if width > case.widest or (variant.startswith("torch_pruning") and width >= 1):
            continue
        if variant.startswith("torch_pruning"):
            import fields_torch_pruning as torch_pruning

            tuned = 2 if variant.endswith("tuned") else 0
            model, seconds = torch_pruning.pruned(python, case, teacher, width, images, tuned, seed)
        else:
            model = case.architecture(width).build(seed)
            seconds = trained(model, images, steps, seed, case.rate, case.decay, teacher)
        found[f"{width:g}"] = {
            "accuracy": accuracy(model, images),
            "stored": sum(tensor.numel() for tensor in model.state_dict().values()),
            "train_s": seconds,
            "latency_ms": latency(model, case.architecture().example_inputs()),
        }
    return found


def measured(case: str, variant: str, seed: int, images: Split, shorter: int, python: Path | None) -> Values:
    """All that is measured of one variant."""
    if variant in FIELDS:
        return by_field(variant, CASES[case], seed, images, shorter)
    return alone(variant, CASES[case], seed, images, shorter, python)


def tidy(case: str, variant: str, seed: int, values: Values) -> list[dict[str, Any]]:
    return [
        {"benchmark": "fields", "case": f"{case}/{width}", "variant": variant, "metric": metric, "seed": seed}
        | {"value": value}
        for width, metrics in values.items()
        for metric, value in metrics.items()
    ]


def table(rows: Sequence[Mapping[str, Any]], case: str, variants: Sequence[str]) -> str:
    """Accuracy in percent, mean and deviation over seeds, a row for each variant; differences from `individual`.

    What is stored and the seconds of training are those of all networks of 25 to 100 % together.
    """
    found = {(row["case"], row["variant"], row["metric"], row["seed"]): row["value"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    names = [f"{width:g}" for width in WIDTHS]

    def values(variant: str, width: str, metric: str) -> list[float]:
        keys = [(f"{case}/{width}", variant, metric, seed) for seed in seeds]
        return [found[key] for key in keys if key in found]

    def cost(variant: str, metric: str) -> str:
        told = [values(variant, name, metric) for name in names if 0.25 <= float(name) <= 1]
        told = [each for each in told if each]
        if not told:
            return f"{'-':>9}"
        means = [statistics.mean(each) for each in told]
        together = variant in ALONE and metric in ("stored", "train_s")
        return f"{sum(means) if together else means[-1]:>9.{3 if metric.endswith('_ms') else 0}f}"

    heads = {"stored": "stored", "train_s": "train s", "generate_ms": "write ms", "latency_ms": "call ms"}
    lines = [f"{case:<22}" + "".join(f"{name:>13}" for name in names) + "".join(f"{h:>9}" for h in heads.values())]
    for variant in variants:
        for metric in ("accuracy", "accuracy_estimated"):
            cells = [values(variant, name, metric) for name in names]
            if any(cells):
                shown = [
                    f"{100 * statistics.mean(cell):.2f} ± {100 * spread(cell):.2f}" if cell else "-" for cell in cells
                ]
                label = variant + (" (estimated)" if metric == "accuracy_estimated" else "")
                tail = "".join(cost(variant, name) for name in heads) if metric == "accuracy" else ""
                lines.append(f"{label:<22}" + "".join(f"{text:>13}" for text in shown) + tail)
    for variant in [name for name in variants if name != "individual"]:
        shown = []
        for name in names:
            pairs = [
                (f"{case}/{name}", variant, "accuracy", seed)
                for seed in seeds
                if all((f"{case}/{name}", each, "accuracy", seed) in found for each in (variant, "individual"))
            ]
            gaps = [100 * (found[key] - found[key[0], "individual", *key[2:]]) for key in pairs]
            shown.append(f"{statistics.mean(gaps):+.2f}" if gaps else "-")
        if any(text != "-" for text in shown):
            lines.append(f"{'  ' + variant + ' - ind.':<22}" + "".join(f"{text:>13}" for text in shown))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits_mlp, one seed, a fifth of the steps")
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--variants", nargs="+", choices=[*FIELDS, *ALONE], default=[*FIELDS, *ALONE])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--held-out", action="store_true", help="measure on a part of the training images")
    parser.add_argument("--torch-pruning-python", metavar="FILE", type=Path, help="interpreter that has torch_pruning")
    parser.add_argument("--folder", metavar="FOLDER", type=Path, default=Path("runs/fields"))
    arguments = parser.parse_args()
    cases, seeds, shorter = arguments.cases, arguments.seeds, 1
    variants = list(arguments.variants)
    if arguments.quick:
        cases, seeds, shorter, variants = ["digits_mlp"], [0], 5, ["knots", "slimmable", "individual"]
    if arguments.torch_pruning_python is None:
        variants = [name for name in variants if not name.startswith("torch_pruning")]
        print("torch_pruning: left out, no --torch-pruning-python", file=sys.stderr)
    print(machine())
    rows: list[dict[str, Any]] = []
    for case in cases:
        images = split(CASES[case], arguments.held_out)
        for variant in variants:
            for seed in seeds:
                name = f"{case}-{variant}-{seed}{'-held' if arguments.held_out else ''}-{shorter}.json"
                file = arguments.folder / name
                if not file.exists():
                    made = measured(case, variant, seed, images, shorter, arguments.torch_pruning_python)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_json_atomic(file, made)
                values = json.loads(file.read_text())
                rows += tidy(case, variant, seed, values)
                print(f"{case} {variant} seed {seed}: done", file=sys.stderr, flush=True)
        print("\n" + table(rows, case, variants), flush=True)
    if arguments.json is not None:
        write_json_atomic(arguments.json, rows)


if __name__ == "__main__":
    main()
