"""How close do the networks of a field made of a trained network come to it, and what do 8 bits cost?

    python benchmarks/fields_distil.py [--quick] [--json FILE] [--cases mnist_mlp digits_cnn] [--seeds 0 1 2]
        [--folder FOLDER]

`field` and `field, 8 bits` are what `metanet field fit` makes of a trained network without other options; both are
written to disk and opened again. `individual` are networks trained one by one, from another start than the teacher's
(at 100 % too: that is how far apart two trained networks are). `morph` is the network narrowed as `metanet morph` does
it: optimal brain surgeon and least squares on 256 training images, ridge (`RIDGES`) and whether running statistics are
estimated again chosen on 1,000 others; beyond 100 % it is exact. KL(teacher || network) and agreement are on the test
images. Settings were chosen with `--held-out` (a fifth of the training images measures) and seeds from 100 on.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fields_subjects import CASES, Case, Split, accuracy, split, spread, trained
from machine import machine
from torch import nn

import symmetry
from metanet.fields import Recipe, StoredField, Training, distil, materialise, open_field, save_field, sizes_of
from metanet.fields.distil import SETTINGS
from metanet.fields.losses import divergence
from metanet.io import write_json_atomic
from metanet.morph import Compensation, apply, narrow_by_obs, recalibrate, widen

WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 2.0)
BETWEEN = (0.3125, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375)
VARIANTS = ("field", "field, 8 bits", "individual", "morph")
WAYS = ("field", "individual", "morph")
METRICS = ("accuracy", "kl", "agreement")
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
FITTED, CHOSEN_ON = 256, 1000
Values = dict[str, dict[str, float]]  # by width and metric; what belongs to all widths under ""


def scores(model: nn.Module, teacher: nn.Module, images: Split) -> dict[str, float]:
    """How far a network is from its teacher on the measuring images."""
    model.eval()
    with torch.no_grad():
        wanted, output = teacher(images.scored), model(images.scored)
    return {
        "accuracy": accuracy(model, images),
        "kl": float(divergence(output, wanted, classes=True)),
        "agreement": float((output.argmax(1) == wanted.argmax(1)).float().mean()),
    }


def by_field(case: Case, teacher: nn.Module, images: Split, seed: int, shorter: int) -> dict[str, Values]:
    """The field as it is, and with 8 bits."""
    began = time.process_time()
    example = case.architecture().example_inputs()
    spec = symmetry.trace(teacher, example)
    recipe = Recipe(settings=replace(SETTINGS, steps=SETTINGS.steps // shorter), seed=seed)
    data = Training(images.inputs, images.labels)
    stored = distil(teacher, spec, example, data, recipe, case.architecture())
    seconds = time.process_time() - began
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, bits in (("field", 32), ("field, 8 bits", 8)):
            place = save_field(Path(folder) / str(bits), stored, bits)
            found[name] = _read(open_field(place), teacher, example, images) | {
                "": {
                    "stored": json.loads((place / "field.json").read_text())["stored"],
                    "bytes": (place / "weights.safetensors").stat().st_size,
                    "train_s": seconds,
                }
            }
    return found


def _read(stored: StoredField, teacher: nn.Module, example: Sequence[Any], images: Split) -> Values:
    found = {}
    for width in (*WIDTHS, *BETWEEN):
        made = materialise(stored.field, teacher, sizes_of(stored.field.spec, width), example)
        found[f"{width:g}"] = scores(made, teacher, images)
    return found


def individually(case: Case, teacher: nn.Module, images: Split, seed: int, shorter: int) -> dict[str, Values]:
    """A network of its own for every width."""
    found: Values = {}
    stored = seconds = 0.0
    for width in WIDTHS:
        model = case.architecture(width).build(5000 + seed)
        seconds += trained(model, images, case.steps // shorter, 5000 + seed)
        found[f"{width:g}"] = scores(model, teacher, images)
        stored += sum(tensor.numel() for tensor in model.state_dict().values())
    return {"individual": found | {"": {"stored": stored, "bytes": 4 * stored, "train_s": seconds}}}


def by_morph(case: Case, teacher: nn.Module, images: Split, seed: int) -> dict[str, Values]:
    """The teacher narrowed by least squares."""
    began = time.process_time()
    example = case.architecture().example_inputs()
    spec = symmetry.trace(teacher, example)
    order = torch.randperm(len(images.inputs), generator=torch.Generator().manual_seed(seed))
    fit, aside = images.inputs[order[:FITTED]], images.inputs[order[-CHOSEN_ON:]]
    with torch.no_grad():
        wanted = teacher(aside)
    found: Values = {}
    for width in WIDTHS:
        sizes = sizes_of(spec, width)
        if width >= 1:
            made = teacher if width == 1 else apply(widen(spec, sizes), teacher, example, spec=spec).model
            found[f"{width:g}"] = scores(made, teacher, images)
            continue
        tried: list[tuple[float, nn.Module]] = []
        for ridge in RIDGES:
            plan = narrow_by_obs(teacher, spec, sizes, [(fit,)], ridge)
            compensation = Compensation([(fit,)], ridge=ridge)
            made = apply(plan, teacher, example, spec=spec, compensation=compensation).model
            for again in (False, True):
                if again and not recalibrate(made, [(fit,)]):
                    continue
                with torch.no_grad():
                    tried.append((float(divergence(made.eval()(aside), wanted, classes=True)), copy.deepcopy(made)))
        found[f"{width:g}"] = scores(min(tried, key=lambda pair: pair[0])[1], teacher, images)
    numbers = sum(tensor.numel() for tensor in teacher.state_dict().values())
    return {"morph": found | {"": {"stored": numbers, "bytes": 4 * numbers, "train_s": time.process_time() - began}}}


def parts(
    case: Case, images: Split, seed: int, shorter: int, folder: Path, told: str, names: Sequence[str]
) -> dict[str, Values]:
    """Some ways for one seed, from the folder where they are there already."""
    teacher = case.architecture().build(seed)
    makers = {
        "field": lambda: by_field(case, teacher, images, seed, shorter),
        "individual": lambda: individually(case, teacher, images, seed, shorter),
        "morph": lambda: by_morph(case, teacher, images, seed),
    }
    files = {name: folder / f"{told}-{name}-{shorter}.json" for name in names}
    missing = [name for name, file in files.items() if not file.exists()]
    if missing:
        trained(teacher, images, case.steps // shorter, seed)
        folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        write_json_atomic(files[name], makers[name]())
        print(f"{told} {name}: done", file=sys.stderr, flush=True)
    found: dict[str, Values] = {}
    for file in files.values():
        found |= json.loads(file.read_text())
    return found


def tidy(case: str, seed: int, found: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Rows of the JSON file."""
    return [
        {
            "benchmark": "fields_distil",
            "case": f"{case}/{width}" if width else case,
            "variant": variant,
            "metric": metric,
            "seed": seed,
            "value": value,
        }
        for variant, values in found.items()
        for width, metrics in values.items()
        for metric, value in metrics.items()
    ]


def table(rows: Sequence[Mapping[str, Any]], case: str) -> str:
    """Mean and deviation over seeds: accuracy and agreement in percent."""

    def cell(variant: str, width: str, metric: str) -> str:
        place = f"{case}/{width}" if width else case
        values = [
            row["value"] for row in rows if (row["case"], row["variant"], row["metric"]) == (place, variant, metric)
        ]
        if not values:
            return "-"
        if metric in ("stored", "bytes", "train_s"):
            return f"{statistics.mean(values):.0f}"
        factor, digits = (1, 4) if metric == "kl" else (100, 1)
        return f"{factor * statistics.mean(values):.{digits}f} ± {factor * spread(values):.{digits}f}"

    lines = []
    for title, widths in (("", WIDTHS), (", between the widths of the tables", BETWEEN)):
        names = [f"{width:g}" for width in widths]
        variants = VARIANTS if widths == WIDTHS else VARIANTS[:2]
        for metric in METRICS:
            lines += ["", f"{f'{case}, {metric}{title}':<26}" + "".join(f"{name:>18}" for name in names)]
            lines += [
                f"{variant:<26}" + "".join(f"{cell(variant, name, metric):>18}" for name in names)
                for variant in variants
            ]  # fmt: skip
    lines += ["", f"{case:<26}{'stored':>12}{'bytes':>12}{'train s':>12}"]
    for variant in VARIANTS:
        lines.append(f"{variant:<26}" + "".join(f"{cell(variant, '', m):>12}" for m in ("stored", "bytes", "train_s")))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits_mlp, one seed, a tenth of the steps")
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["mnist_mlp", "digits_cnn"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="field: with 8 bits as well")
    parser.add_argument("--held-out", action="store_true", help="measure on a part of the training images")
    parser.add_argument("--folder", metavar="FOLDER", type=Path, default=Path("runs/fields_distil"))
    arguments = parser.parse_args()
    cases, seeds, shorter = arguments.cases, arguments.seeds, 1
    if arguments.quick:
        cases, seeds, shorter = ["digits_mlp"], [0], 10
    print(machine())
    rows: list[dict[str, Any]] = []
    for name in cases:
        case, images = CASES[name], split(CASES[name], arguments.held_out)
        for seed in seeds:
            told = f"{name}-{seed}{'-held' if arguments.held_out else ''}"
            found = parts(case, images, seed, shorter, arguments.folder, told, arguments.ways)
            rows += tidy(name, seed, found)
        print(table(rows, name), flush=True)
    if arguments.json is not None:
        write_json_atomic(arguments.json, rows)


if __name__ == "__main__":
    main()
