"""What does each part of NeuMeta's method do for a field that a trained network becomes, and do smooth weights help?

    python benchmarks/fields_ablation.py [--quick] [--json FILE] [--cases mnist_mlp] [--bases spread ...]
        [--seeds 0 1 2] [--steps 1000] [--folder FOLDER]

A network is trained, becomes a field, and the field is trained with one part of a base switched on or off at a time:
order of units, noise on coordinates, draws averaged when a network is read, reconstruction of the teacher's weights,
regulariser, teacher, own full width as teacher, widths in a step. Bases: `spread` (the paper's coordinates and losses,
a knot for each unit), `coarse` (the same with half the knots), `mlp` (the paper's perceptrons), `cut` (ours). `scratch`
starts from a network that has learned nothing, without a teacher.

Every row has the accuracy at seven widths; the difference of their mean to the base, seed by seed, with its deviation
over seeds; `*` where the difference is larger than that, `**` where twice as large. `tv` is the total variation of the
network of full width that the trained field writes, `order` the same over that of its units in random order, `before`
that of the network that the field was made from, after ordering. `at once` is accuracy before any training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from fields_subjects import CASES, Case, Split, accuracy, split, spread, trained
from machine import machine
from scipy.stats import kendalltau
from torch import Tensor, nn

import symmetry
from metanet.fields import FieldSettings, Recipe, Sampling, Training, distil, materialise, sizes_of
from metanet.io import write_json_atomic
from symmetry import SymmetrySpec

WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
# Draws of the noise over which weights are averaged when a network is read; 0: no noise.
DRAWS = (0, 1, 8, 32)
SETTINGS = {each.name for each in fields(FieldSettings)}
RANDOM_ORDERS = 8


@dataclass(frozen=True)
class Setting:
    """What is made of a network.

    Args:
        kind: of field.
        way: of coordinates.
        options: of the field.
        order: of units.
        losses: settings of the training.
        draws: see `DRAWS`.
        taught: whether the field starts from a trained network.
        mixed: sums of two inputs for each input, to learn on where there is a teacher alone.
    """

    kind: str
    way: str
    order: str
    losses: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    draws: int = 0
    taught: bool = True
    mixed: int = 0

    def but(self, **changes: Any) -> Setting:
        """The same with some things changed: settings of the training, options of the field, or what stands here."""
        own = {name: value for name, value in changes.items() if name in {each.name for each in fields(self)}}
        losses = {name: value for name, value in changes.items() if name in SETTINGS}
        options = {name: value for name, value in changes.items() if name not in own and name not in losses}
        return replace(self, **own, losses={**self.losses, **losses}, options={**self.options, **options})


_PAPER = Setting(
    "knots",
    "spread",
    "smooth",
    {"rate": 0.02, "task": 1.0, "reconstruct": 1.0, "regularise": 0.01, "noise": 1.0, "lowest": False},
    {"width_knots": 5},
    draws=8,
)
_OURS = Setting(
    "knots",
    "cut",
    "importance",
    {"rate": 0.02, "task": 0.0, "distil": 1.0, "average": 0.995},
    {"width_knots": 5},
)
_UNTAUGHT = {"start": "random", "taught": False, "order": "none", "distil": 0.0, "reconstruct": 0.0, "task": 1.0}
_SPREAD_CHANGES: dict[str, dict[str, Any]] = {
    "order: none": {"order": "none"},
    "order: importance": {"order": "importance"},
    "no noise": {"noise": 0.0, "draws": 0},
    "no noise, order: none": {"noise": 0.0, "draws": 0, "order": "none"},
    "read without noise": {"draws": 0},
    "1 draw": {"draws": 1},
    "32 draws": {"draws": 32},
    "no reconstruction": {"reconstruct": 0.0},
    "reconstruction to the end": {"reconstruct_until": 1.0},
    "no regulariser": {"regularise": 0.0},
    "+ teacher": {"task": 0.5, "distil": 0.5},
    "+ own teacher": {"own": 0.5},
    "no random width": {"random": 0, "lowest": True},
    "no full width": {"full": False},
    "+ narrowest": {"lowest": True},
    "start: random": {"start": "random"},
    "scratch": _UNTAUGHT,
    "scratch, no noise": {**_UNTAUGHT, "noise": 0.0, "draws": 0},
}
BASES = {
    "spread": _PAPER,
    "coarse": _PAPER.but(knots=32),
    "mlp": _PAPER.but(kind="mlp", rate=0.005, hidden=32),
    "cut": _OURS,
}
_FEW = ("order: none", "order: importance", "no noise", "no noise, order: none")
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "spread": _SPREAD_CHANGES,
    "coarse": {name: _SPREAD_CHANGES[name] for name in _FEW},
    "mlp": {name: _SPREAD_CHANGES[name] for name in ("order: none", "no noise", "scratch")},
    "cut": {
        "order: none": {"order": "none"},
        "order: smooth": {"order": "smooth"},
        "+ noise": {"noise": 1.0},
        "+ noise, 8 draws": {"noise": 1.0, "draws": 8},
        "+ reconstruction": {"reconstruct": 1.0},
        "+ regulariser": {"regularise": 0.01},
        "targets alone": {"task": 1.0, "distil": 0.0},
        "targets and teacher": {"task": 0.5, "distil": 0.5},
        "targets and own teacher": {"task": 1.0, "distil": 0.0, "own": 0.5},
        "+ own teacher": {"own": 0.5},
        "+ mixed inputs": {"mixed": 3},
        "no random width": {"random": 0},
        "no full width": {"full": False},
        "no narrowest": {"lowest": False},
        "a width for each space": {"separate": True},
        "no average": {"average": 0.0},
        "+ decay": {"decay": 0.02},
        "nothing varies with width": {"width_knots": 1},
        "products": {"rank": 32},
        "start: random": {"start": "random"},
        "scratch": _UNTAUGHT,
    },
}


def variants(base: str) -> dict[str, Setting]:
    """The base and all that differ from it."""
    return {"base": BASES[base]} | {name: BASES[base].but(**change) for name, change in CHANGES[base].items()}


def relative_variation(spec: SymmetrySpec, state: Mapping[str, Tensor], seed: int) -> float:
    """Total variation over that of the same network with its units in random order."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (spec.sample(generator, {"permutation"}) for _ in range(RANDOM_ORDERS))
    found = [symmetry.total_variation(spec, spec.act(element, state)) for element in drawn]
    return symmetry.total_variation(spec, state) / statistics.mean(found)


def measured(case: Case, setting: Setting, teacher: nn.Module, images: Split, steps: int, seed: int) -> dict[str, Any]:
    """What comes of one setting, before and after training."""
    began = time.process_time()
    model = teacher if setting.taught else case.architecture().build(1000 + seed).eval()
    example = case.architecture().example_inputs()
    spec = symmetry.trace(model, example)

    def fitted(settings: FieldSettings) -> Any:
        sampling = Sampling(setting.way, "copies")
        recipe = Recipe(setting.kind, setting.options, sampling, setting.order, settings, setting.mixed, seed)
        return distil(model, spec, example, Training(images.inputs, images.labels), recipe)

    def read(stored: Any, draws: int, noise: float) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        options = {"noise": noise, "draws": draws, "generator": generator} if draws else {}
        return {
            f"{width:g}": accuracy(
                materialise(stored.field, model, sizes_of(spec, width), example, **options), images
            )
            for width in WIDTHS
        }  # fmt: skip

    settings = FieldSettings(**{"steps": steps, **setting.losses})
    # A single step at no rate to speak of: the field as it starts.
    start = fitted(replace(settings, steps=1, rate=1e-9, average=0.0))
    stored = fitted(settings)
    with torch.no_grad():
        state = {name: tensor.detach() for name, tensor in stored.field().items()}
    return {
        "accuracy": {str(draws): read(stored, draws, settings.noise) for draws in (DRAWS if settings.noise else (0,))},
        "at_once": read(start, 0, 0.0),
        "variation": stored.record["variation"],
        "tv": symmetry.total_variation(spec, state),
        "tv_relative": relative_variation(spec, state, seed),
        "teacher": accuracy(teacher, images),
        "stored": stored.field.stored,
        "train_s": time.process_time() - began,
    }


def teacher_of(case: Case, images: Split, seed: int, shorter: int, file: Path) -> nn.Module:
    """The trained network of a seed, kept in a file."""
    model = case.architecture().build(seed)
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        trained(model, images, case.steps // shorter, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    return model.eval()


Found = dict[tuple[str, int], dict[str, Any]]  # by variant and seed


def pieces(
    case: Case, base: str, seeds: Sequence[int], names: Sequence[str], held_out: bool, shorter: int, steps: int,
    folder: Path,
) -> Found:  # fmt: skip
    """All that was measured of a base, from the folder where it is there already."""
    images, found = split(case, held_out), {}
    told = f"{case.name}{'-held' if held_out else ''}-{shorter}"
    for seed in seeds:
        teacher = teacher_of(case, images, seed, shorter, folder / f"{told}-teacher-{seed}.pt")
        done: dict[str, Any] = {}
        for name in names:
            setting = variants(base)[name]
            # Two variants that only read a field in different ways are trained once.
            key = repr(replace(setting, draws=0))
            file = folder / f"{told}-{base}-{_plain(name)}-{seed}-{steps}.json"
            if key not in done:
                if not file.exists():
                    write_json_atomic(file, measured(case, setting, teacher, images, steps, seed))
                    print(f"{case.name} {base} {name}, seed {seed}: done", file=sys.stderr, flush=True)
                done[key] = json.loads(file.read_text())
            found[name, seed] = {**done[key], "accuracy": done[key]["accuracy"][str(setting.draws)]}
    return found


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def tidy(case: str, base: str, found: Found) -> list[dict[str, Any]]:
    """Rows of the JSON file."""
    rows = []
    for (name, seed), values in found.items():
        told = {"benchmark": "fields_ablation", "variant": f"{base}, {name}", "seed": seed}
        for width in values["accuracy"]:
            for metric in ("accuracy", "at_once"):
                rows.append({**told, "case": f"{case}/{width}", "metric": metric, "value": values[metric][width]})
        for metric in ("tv", "tv_relative", "stored", "train_s", "teacher"):
            rows.append({**told, "case": case, "metric": metric, "value": values[metric]})
    return rows


def table(case: str, base: str, found: Found) -> str:
    """A row for each variant, accuracies in percent, means over seeds."""
    names = list(dict.fromkeys(name for name, _ in found))
    seeds = sorted({seed for _, seed in found})
    widths = [f"{width:g}" for width in WIDTHS]

    def over(name: str, pick: Any) -> list[float]:
        return [pick(found[name, seed]) for seed in seeds]

    def middle(values: Mapping[str, Any]) -> float:
        return 100 * statistics.mean(values["accuracy"].values())

    head = "".join(f"{f'{100 * float(width):g}':>7}" for width in widths)
    lines = [
        f"{f'{case}, {base}':<26}{head}{'mean':>7}{'to the base':>17}{'at once 25 50 100':>19}"
        f"{'before':>8}{'tv':>8}{'order':>7}{'stored':>8}"
    ]
    for name in names:
        cells = [100 * statistics.mean(over(name, lambda v, w=width: v["accuracy"][w])) for width in widths]
        means = over(name, middle)
        gaps = [one - other for one, other in zip(means, over("base", middle), strict=True)]
        gap, deviation = statistics.mean(gaps), spread(gaps)
        stars = "" if name == "base" or len(seeds) < 2 else "*" * sum(abs(gap) > n * deviation for n in (1, 2))
        told = f"± {spread(means):.2f}" if name == "base" else f"{gap:+.2f} ± {deviation:.2f}"
        once = [100 * statistics.mean(over(name, lambda v, w=w: v["at_once"][w])) for w in ("0.25", "0.5", "1")]
        numbers = [statistics.mean(found[name, s][key] for s in seeds) for key in ("tv", "tv_relative", "stored")]
        before = statistics.mean(over(name, lambda v: v["variation"][1]))
        lines.append(
            f"{name:<26}" + "".join(f"{cell:>7.2f}" for cell in cells) + f"{statistics.mean(means):>7.2f}"
            f"{told:>15}{stars:<2}" + " " + "".join(f"{value:>6.1f}" for value in once)
            + f"{before:>8.1f}{numbers[0]:>8.1f}{numbers[1]:>7.3f}{numbers[2]:>8.0f}"
        )  # fmt: skip
    taught = [name for name in names if BASES[base].taught and variants(base)[name].taught]
    if len(taught) > 2:
        order = [statistics.mean(over(name, lambda v: v["tv_relative"])) for name in taught]
        right = [statistics.mean(over(name, middle)) for name in taught]
        lines.append(
            f"Kendall's tau of order and mean accuracy over {len(taught)} settings: {kendalltau(order, right)[0]:.2f}; "
            f"variation of the trained network {statistics.mean(found['base', s]['variation'][0] for s in seeds):.1f}, "
            f"its accuracy {100 * statistics.mean(found['base', s]['teacher'] for s in seeds):.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits_mlp, one seed, few steps, some variants")
    parser.add_argument("--json", metavar="FILE", type=Path)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["mnist_mlp"])
    parser.add_argument("--bases", nargs="+", choices=list(BASES), default=list(BASES))
    parser.add_argument("--variants", nargs="+", help="some of them only; the base is always there")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000, help="of each field (%(default)s)")
    parser.add_argument("--held-out", action="store_true", help="measure on a part of the training images")
    parser.add_argument("--folder", metavar="FOLDER", type=Path, default=Path("runs/fields_ablation"))
    arguments = parser.parse_args()
    cases, seeds, steps, bases, shorter = arguments.cases, arguments.seeds, arguments.steps, arguments.bases, 1
    chosen = arguments.variants
    if arguments.quick:
        cases, seeds, steps, bases, shorter = ["digits_mlp"], [0], 100, ["spread", "cut"], 2
        chosen = ["order: none", "read without noise", "order: smooth", "scratch"]
    print(machine())
    rows: list[dict[str, Any]] = []
    for case in cases:
        for base in bases:
            names = [name for name in variants(base) if chosen is None or name in chosen or name == "base"]
            found = pieces(
                CASES[case], base, seeds, names, arguments.held_out, shorter, steps, arguments.folder
            )  # fmt: skip
            rows += tidy(case, base, found)
            print("\n" + table(case, base, found), flush=True)
    if arguments.json is not None:
        write_json_atomic(arguments.json, rows)


if __name__ == "__main__":
    main()
