"""Can a network be written at any width by a continuous function of it, learned once, with no training for it?

Metanetworks read perceptrons of a zoo and write them at other widths (`conditioned_designs.py`: `slots`, `knots`,
`merge`, `knots_merge`), on inputs that a trained predictor made (`metanet train task=morph`). They are trained on the
zoo's training part by the logarithm of the divergence between written and old networks on images of the pool, at drawn
widths from 20 to 100 %. Measured on the networks and images of `morph.py`: KL(old || new), agreement, accuracy; at full
and twice the width too, of which only the first is at the edge of training; and how far the written network moves, over
the spread between networks and in float64, if the units of the old one are permuted. A control permutes the rows of its
first weight alone.

    METANET_DATA=path/to/data python benchmarks/conditioned_continuous.py --zoo ZOO --predictor FOLDER [--quick]
        [--json FILE] [--variants slots ...] [--seeds 0 1 2] [--folder FOLDER]

What is finished is kept in the folder, and a run that was stopped goes on there. Cases are `conditioned_mlp/<share>`.
`--held-out` measures on the validation part and other images of the pool, on which steps and designs were chosen.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conditioned_designs import DESIGNS, Conditioned
from conditioned_reader import PROBES, Perceptrons, State, run
from machine import machine
from morph_subjects import Images, Subject, images_of, measured, subjects_of
from morph_ways import Edit, Way, doubled, single
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from metanet.commands._morph_items import morph_items
from metanet.datasets import Zoo
from metanet.io import read_json, write_json_atomic
from metanet.tasks.morph_data import MorphGroup, morph_data
from metanet.tasks.morph_model import MorphModel
from metanet.tasks.morph_task import divergence

SHARES = (2.0, 1.0, 0.75, 0.5, 0.25)
STEPS, QUICK_STEPS = 1200, 60
BATCH, IMAGES, INPUTS = 12, 128, 128  # networks, images and inputs beside the probes in a step
LEAST, MOST = 0.2, 1.0
RATE, FLOOR = 2e-3, 0.01
NETWORKS, SCORED = 60, 2000
PERMUTED = 8  # networks


def predicted(folder: Path, group: MorphGroup) -> tuple[Tensor, float]:
    """The inputs that all networks share, and the ridge. Shapes: -> (n, values)."""
    item = group.item
    with torch.no_grad():
        found = MorphModel.open(folder).model(
            group.masked, item.spec, group.rows(group.kept[:1]), item.images.shape[1:]
        )
    inputs = found.inputs[0] if found.own else found.inputs
    return inputs.flatten(1), float(found.ridge)


def empty(variant: str, states: State, inputs: Tensor, ridge: float) -> Conditioned:
    """A design for perceptrons of this depth, as it starts."""
    nets = Perceptrons.of(states)
    return Conditioned(variant, len(nets.weights), nets.biases[-1].shape[1], inputs, ridge)


def train(variant: str, groups: Sequence[MorphGroup], predictor: Path, seed: int, steps: int = STEPS) -> Conditioned:
    """A design, trained on the training parts of stacks of perceptrons of one depth.

    Args:
        variant: one of `DESIGNS`.
        groups: the networks.
        predictor: folder of a trained predictor of inputs.
        seed: of first weights, batches, widths and inputs.
        steps: of AdamW.
    """
    inputs, ridge = predicted(predictor, groups[0])
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torch's own layers draw from the global generator
        made = empty(variant, dict(groups[0].item.states), inputs, ridge)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(made.parameters(), lr=RATE)
    parts = [torch.from_numpy(group.part("train")) for group in groups]
    known = [made.told(Perceptrons.of(group.rows(part))) for group, part in zip(groups, parts, strict=True)]
    for step in range(steps):
        for each in optimizer.param_groups:
            each["lr"] = RATE * min(1.0, step / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        number = int(torch.randint(len(groups), (), generator=generator))
        group, images = groups[number], groups[number].item.images
        rows = torch.randint(len(parts[number]), (BATCH,), generator=generator)
        nets = Perceptrons.of(group.rows(parts[number][rows]))
        told = [(numbers[rows], order[rows]) for numbers, order in known[number]]
        shown = images[torch.randint(len(images), (IMAGES,), generator=generator)].flatten(1)
        drawn = LEAST + (MOST - LEAST) * torch.rand(len(nets.weights), generator=generator)
        same = bool(torch.rand((), generator=generator) < 0.5)
        counts = [
            max(1, round(float(drawn[-1 if same else space]) * bias.shape[1]))
            for space, bias in enumerate(nets.biases[:-1])
        ]
        beside = PROBES + torch.randperm(len(inputs) - PROBES, generator=generator)[:INPUTS]
        with torch.no_grad():
            whole = run(nets, shown)[0][-1]
        written = run(made(nets, counts, beside, told), shown)[0][-1]
        loss = (divergence(whole, written) + FLOOR).log().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
    return made.eval()


def edit_of(made: Conditioned, subject: Subject) -> Edit:
    """What a design writes for a stack: a function of the share of units, also above 1; the ridge is its own."""
    nets = Perceptrons.of(doubled(subject.states))
    precise = _doubled(made)

    def edit(share: float, ridge: float = 0.0) -> State:
        counts = [max(1, round(share * bias.shape[1])) for bias in nets.biases[:-1]]
        with torch.no_grad():
            return single(precise(nets, counts).named(subject.states))

    return edit


def way_of(made: Conditioned) -> Way:
    """The same as a way of `morph.py`."""
    return lambda subject, images, generator: edit_of(made, subject)


@functools.lru_cache(maxsize=8)
def _doubled(made: Conditioned) -> Conditioned:
    """In float64, in which least squares are solved and errors are measured."""
    return copy.deepcopy(made).double()


def moved(made: Conditioned, subject: Subject, images: Tensor, share: float) -> dict[str, float]:
    """How far written networks move over the spread between them if units are permuted, and if one layer's rows are."""
    generator = torch.Generator().manual_seed(0)
    old = {name: value[:PERMUTED] for name, value in doubled(subject.states).items()}
    stacks = []
    for number in range(len(next(iter(old.values())))):
        state = {name: value[number] for name, value in old.items()}
        stacks.append(subject.spec.act(subject.spec.sample(generator, kinds=("permutation",)), state))
    both = {name: torch.stack([state[name] for state in stacks]) for name in old}
    first = next(iter(old))
    control = {**old, first: both[first]}
    precise, shown = _doubled(made), images[:256].flatten(1).double()

    def answers(states: State) -> Tensor:
        nets = Perceptrons.of(states)
        counts = [max(1, round(share * bias.shape[1])) for bias in nets.biases[:-1]]
        with torch.no_grad():
            return run(precise(nets, counts), shown)[0][-1]

    before = answers(old)
    spread = before.std(0).mean()
    found = {"permuted": both, "permuted_control": control}
    return {name: float((answers(states) - before).abs().max() / spread) for name, states in found.items()}


def score(made: Conditioned, subjects: Sequence[Subject], images: Images) -> dict[str, dict[str, float]]:
    """Means over all networks, by share and metric."""
    found: dict[str, dict[str, list[float]]] = {f"{share:g}": defaultdict(list) for share in SHARES}
    for subject in subjects:
        before, edit = subject.answers(subject.states, images.score), edit_of(made, subject)
        for share in SHARES:
            after = subject.answers(edit(share, 0.0), images.score)
            for metric, values in measured(before, after, images.score_labels).items():
                found[f"{share:g}"][metric] += values
    means = {share: {m: statistics.mean(v) for m, v in metrics.items()} for share, metrics in found.items()}
    for share in SHARES:
        means[f"{share:g}"] |= moved(made, subjects[0], images.score, share)
    return means


class Run:
    """One zoo: where things are kept."""

    def __init__(self, zoo: Zoo, folder: Path, predictor: Path, steps: int, held_out: bool) -> None:
        self.zoo, self.predictor, self.steps, self.held_out = zoo, predictor, steps, held_out
        self.folder = folder / f"{zoo.manifest['config']['name']}-{steps}"

    @functools.cached_property
    def groups(self) -> Sequence[MorphGroup]:
        return morph_data(morph_items(self.zoo)).groups

    def design(self, variant: str, seed: int) -> tuple[Conditioned, float]:
        """Trained, from its file or now; and the processor's seconds that this took."""
        file = self.folder / str(seed) / f"{variant}.safetensors"
        if not file.exists():
            began = time.process_time()
            made = train(variant, self.groups, self.predictor, seed, self.steps)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(file.with_suffix(".seconds"), time.process_time() - began)
            save_file(made.state_dict(), file)
        inputs, ridge = predicted(self.predictor, self.groups[0])
        made = empty(variant, dict(self.groups[0].item.states), inputs, ridge)
        made.load_state_dict(load_file(file))
        return made.eval(), float(read_json(file.with_suffix(".seconds")))

    def values(self, variant: str, seed: int, networks: int, scored: int) -> dict[str, dict[str, float]]:
        """By share and metric, from its file or now."""
        file = self.folder / str(seed) / f"{variant}-{'val' if self.held_out else 'test'}-{networks}-{scored}.json"
        if not file.exists():
            made, seconds = self.design(variant, seed)
            subjects = subjects_of(self.zoo, "val" if self.held_out else "test", seed, networks)
            found = score(made, subjects, images_of(self.zoo, seed, scored, self.held_out))
            write_json_atomic(file, {share: {**metrics, "train_s": seconds} for share, metrics in found.items()})
        return dict(read_json(file))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean over the seeds, deviation of the KL, and the largest movement."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        values[row["case"], row["variant"], row["metric"]].append(row["value"])
    lines = [
        f"{'case':<26}{'variant':<10}{'KL':>10}{'spread':>9}{'agreement':>11}{'accuracy':>10}{'permuted':>10}{'control':>9}"
        f"{'train s':>9}"
    ]
    for case, variant in dict.fromkeys((row["case"], row["variant"]) for row in rows):
        kl, agreement, accuracy, moved_by, control, seconds = (
            values[case, variant, metric]
            for metric in ("kl", "agreement", "accuracy", "permuted", "permuted_control", "train_s")
        )
        deviation = statistics.stdev(kl) if len(kl) > 1 else math.nan
        lines.append(
            f"{case:<26}{variant:<10}{statistics.mean(kl):>10.5f}{deviation:>9.5f}{statistics.mean(agreement):>11.4f}"
            f"{statistics.mean(accuracy):>10.4f}{max(moved_by):>10.0e}{min(control):>9.2f}{statistics.mean(seconds):>9.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--predictor", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="few steps, networks and images, one seed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--variants", nargs="+", choices=DESIGNS, default=list(DESIGNS), help="which designs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="which seeds")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--held-out", action="store_true", help="measure on the validation part")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/benchmark-conditioned"), help="where results are kept"
    )
    arguments = parser.parse_args()
    steps = QUICK_STEPS if arguments.quick else arguments.steps
    networks, scored = (8, 300) if arguments.quick else (NETWORKS, SCORED)
    work = Run(Zoo.open(arguments.zoo), arguments.folder, arguments.predictor, steps, arguments.held_out)
    jobs = [(v, s) for s in (arguments.seeds[:1] if arguments.quick else arguments.seeds) for v in arguments.variants]
    rows: list[dict[str, Any]] = []
    for variant, seed in tqdm(jobs, disable=not sys.stderr.isatty(), leave=False):
        for share, metrics in work.values(variant, seed, networks, scored).items():
            row = {"benchmark": "conditioned", "case": f"conditioned_mlp/{share}", "variant": variant, "seed": seed}
            rows += [{**row, "metric": metric, "value": value} for metric, value in metrics.items()]
    print(machine())
    print(table(sorted(rows, key=lambda row: -float(row["case"].partition("/")[2]))))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
