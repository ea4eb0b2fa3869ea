"""How well does a network keep its function that is written from a checkpoint at another width, with nothing trained?

Networks of a zoo's test part are written with 75, 50 and 25 % of the units of every space that weights alone read.
`conditioned` is `metanet.fields.ConditionedField` on inputs that a trained predictor (`metanet train task=morph`, on
the training part) makes from the weights alone, done for whole stacks; `selection` is optimal brain surgeon and closed
form least squares on the same inputs, `magnitude` the units with the largest weights, and `adam256` sees data: the best
of three rates, chosen on validation networks, for 150 steps of Adam down the divergence on 256 images of the zoo's
pool, from optimal brain surgeon and least squares on these. Slots and knots: `conditioned_continuous.py`.

Seeds draw the networks (at most two in three of the part) and the images of `adam256`. Besides, on few networks and in
float64: how far outputs are from the checkpoint's at its own and larger widths, and how far the network of half the
width moves when the checkpoint's units are permuted, and permuted and scaled, over the spread of the outputs; in a
control the rows of the first weight alone are permuted.

    METANET_DATA=path/to/data python benchmarks/conditioned.py --case conditioned_mlp=ZOO=PREDICTOR [--quick]
        [--json FILE] [--variants conditioned ...] [--seeds 0 1 2] [--folder FOLDER]

What is finished is kept in the folder, and a run that was stopped goes on there. Cases are `<case>/<share that stays>`.
`--held-out` measures on the validation part and on other images, on which settings were chosen.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import machine
from morph import narrowed, table, tidy
from morph_subjects import CHUNK, Images, State, Subject, images_of, subjects_of
from morph_ways import Edit, Way, by_inputs, by_rounds, doubled, magnitude, masks_of, single, surgeon_orders
from torch import Tensor
from tqdm import tqdm

from metanet.datasets import Zoo
from metanet.io import read_json, write_json_atomic
from metanet.morph.batched_refine import may_move
from metanet.morph.batched_refit import input_moments
from metanet.tasks.morph_model import MorphModel
from symmetry import GroupElement, act, canonicalize

VARIANTS = ("conditioned", "selection", "magnitude", "adam256")
ROUNDS = 16
RATES, STEPS, SEEN, RIDGE = (1e-3, 3e-3, 1e-2), 150, 256, 1e-2
NETWORKS, SCORED, TUNED_SEED, TUNED = 60, 2000, 1000, 10
CHECKED, WIDER = 2, (1.0, 1.5, 2.0)


def predicted(model: MorphModel, subject: Subject) -> tuple[Tensor, bool, float]:
    """Inputs, whether they are each network's own, and the ridge. Shapes: (n, ...) or (networks, n, ...)."""
    read_as = tuple(subject.architecture.example_inputs(1)[0].shape[1:])
    with torch.no_grad():
        made = model.model(subject.masked, subject.spec, subject.states, read_as)
    return made.inputs, made.own, float(made.ridge)


def canonical(subject: Subject) -> Subject:
    """The same networks in the canonical form of their orbits, as a conditioned field reads them."""
    found = []
    for number in range(subject.count):
        one = {name: value[number] for name, value in doubled(subject.states).items()}
        found.append(act(subject.spec, canonicalize(subject.spec, one, "balanced"), one))
    return replace(subject, states=single({name: torch.stack([one[name] for one in found]) for name in found[0]}))


def _seen(model: MorphModel, inputs: Tensor) -> Tensor:
    """What rounds look at."""
    joined = model.joined(inputs)
    return inputs if joined is None else torch.cat([inputs, joined])


def conditioned(model: MorphModel) -> Way:
    """The units by optimal brain surgeon, refitted in turn, then rounds."""

    def way(given: Subject, images: Images, generator: torch.Generator) -> Edit:
        subject = canonical(given)
        inputs, own, ridge = predicted(model, subject)
        seen = torch.stack([_seen(model, each) for each in inputs]) if own else _seen(model, inputs)
        edit = by_rounds(subject, inputs, ROUNDS, own, seen)
        return lambda share, _: edit(share, ridge)

    return way


def selection(model: MorphModel) -> Way:
    """The units by optimal brain surgeon, refitted at once."""

    def way(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
        inputs, own, ridge = predicted(model, subject)
        edit = by_inputs(subject, inputs, own)
        return lambda share, _: edit(share, ridge)

    return way


def adam256(rate: float) -> Way:
    """Steps down the divergence on a few images that the network learned."""

    def way(subject: Subject, images: Images, generator: torch.Generator) -> Edit:
        seen = subject.shaped(images.fit[:SEEN])
        start = by_inputs(subject, seen)
        names = [name for name, _ in subject.masked.module.named_parameters()]
        with torch.no_grad():
            target = subject.masked.outputs(subject.states, (seen,)).log_softmax(-1)
            moments = input_moments(subject.masked, subject.states, (seen,), CHUNK)

        def edit(share: float, _: float) -> State:
            made = start(share, RIDGE)
            masks = masks_of(subject, surgeon_orders(subject, moments, RIDGE), share)
            free = may_move(subject.masked, made, masks)
            leaves = {name: made[name].clone().requires_grad_() for name in names}
            optimizer = torch.optim.Adam(leaves.values(), lr=rate)
            for _step in range(STEPS):
                found = subject.masked.outputs({**made, **leaves}, (seen,)).log_softmax(-1)
                optimizer.zero_grad()
                (target.exp() * (target - found)).sum(-1).mean(-1).sum().backward()
                for name, mask in free.items():
                    grad = leaves[name].grad
                    leaves[name].grad = None if grad is None else grad * mask
                optimizer.step()
            return {**made, **{name: value.detach() for name, value in leaves.items()}}

        return edit

    return way


def checks(model: MorphModel, subject: Subject, images: Images, seed: int, count: int) -> dict[str, float]:
    """Exactness, invariance and its control: largest changes over the spread of outputs, the worst of some networks."""
    found: dict[str, list[float]] = {f"error_{width:g}": [] for width in WIDER} | {
        "permuted": [],
        "orbit": [],
        "control": [],
    }
    shown = subject.shaped(images.score[:200]).double()
    example = tuple(each.double() for each in subject.architecture.example_inputs())
    generator = torch.Generator().manual_seed(seed)
    for number in range(min(count, subject.count)):
        whole = subject.architecture.build().double().eval()
        whole.load_state_dict({name: value[number] for name, value in doubled(subject.states).items()})
        state = {name: value.clone() for name, value in whole.state_dict().items()}
        field = model.field(whole, subject.spec, example[0], ROUNDS)

        def far(one: torch.nn.Module, two: torch.nn.Module) -> float:
            with torch.no_grad():
                a, b = one(shown), two(shown)
            return float((a - b).abs().max() / a.std())

        for width in WIDER:
            found[f"error_{width:g}"].append(far(whole, field.network(subject_sizes(subject, width))))
        half = field.network(subject_sizes(subject, 0.5))
        permuted, moved, broken = (copy.deepcopy(whole) for _ in range(3))
        drawn = subject.spec.sample(generator)
        order = replace(GroupElement.identity(subject.spec), permutations=drawn.permutations)
        permuted.load_state_dict(act(subject.spec, order, state))
        moved.load_state_dict(act(subject.spec, drawn, state))
        first = next(name for name, value in state.items() if value.ndim > 1)
        broken.load_state_dict({**state, first: state[first][torch.randperm(len(state[first]), generator=generator)]})
        for name, other in (("permuted", permuted), ("orbit", moved), ("control", broken)):
            made = model.field(other, subject.spec, example[0], ROUNDS).network(subject_sizes(subject, 0.5))
            found[name].append(far(half, made))
    return {name: min(values) if name == "control" else max(values) for name, values in found.items()}


def subject_sizes(subject: Subject, width: float) -> dict[str, int]:
    """Sizes of the spaces that weights alone read."""
    return {space: max(1, round(width * subject.spec.sizes[space])) for space in subject.masked.spaces}


class Run:
    """One case: its networks, its predictor, and pieces that are kept."""

    def __init__(self, case: str, zoo: Zoo, predictor: Path, folder: Path, networks: int, scored: int, tuning: bool):
        self.case, self.zoo, self.predictor = case, zoo, predictor
        self.networks, self.scored, self.tuning = networks, scored, tuning
        self.folder = folder / f"{case}-{networks}-{scored}{'-held' if tuning else ''}"
        self.given: float | None = None
        self._drawn: dict[int, tuple[list[Subject], Images]] = {}

    def drawn(self, seed: int) -> tuple[list[Subject], Images]:
        """Networks and images of a seed; those of `TUNED_SEED` are for settings."""
        if seed not in self._drawn:
            tuning = self.tuning or seed == TUNED_SEED
            networks = TUNED if seed == TUNED_SEED else self.networks
            images = images_of(self.zoo, seed, self.scored, tuning)
            self._drawn = {seed: (subjects_of(self.zoo, "val" if tuning else "test", seed, networks), images)}
        return self._drawn[seed]

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What a file holds, made if it is not there."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            made = make()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(file, made)
        return read_json(file)

    def rate(self) -> float:
        """Of Adam: the best at half the units on validation networks."""

        def make() -> dict[str, float]:
            subjects, images = self.drawn(TUNED_SEED)
            return {
                str(rate): statistics.mean(narrowed(adam256(rate), 0.0, subjects, images, 0)["0.5"]["kl"])
                for rate in RATES
            }

        kls = self.kept("rates", make)
        return float(min(kls, key=lambda rate: float(kls[rate])))

    def way(self, variant: str) -> Way:
        """How a variant writes networks."""
        if variant == "magnitude":
            return magnitude("l2")
        if variant == "adam256":
            return adam256(self.given or self.rate())
        model = MorphModel.open(Path(str(self.predictor).replace("{seed}", "0")))
        return conditioned(model) if variant == "conditioned" else selection(model)

    def rows(self, variant: str, seed: int) -> list[dict[str, Any]]:
        """A variant's piece, as tidy rows."""

        def make() -> Any:
            way = self.way(variant)
            return narrowed(way, 0.0, *self.drawn(seed), seed)

        made = tidy(self.case, variant, seed, self.kept(f"{seed}/{variant}", make))
        return [{**row, "benchmark": "conditioned"} for row in made]

    def checked(self, seed: int, count: int) -> dict[str, float]:
        """Exactness and invariance of so many networks."""

        def make() -> dict[str, float]:
            subjects, images = self.drawn(seed)
            return checks(MorphModel.open(self.predictor), subjects[0], images, seed, count)

        return dict(self.kept(f"{seed}/checks", make))


def ratios(rows: Sequence[dict[str, Any]]) -> str:
    """KL of every variant over that of `selection`, mean over the seeds."""
    kl: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["metric"] == "kl":
            kl.setdefault((row["case"], row["variant"]), []).append(row["value"])
    lines = []
    for (case, variant), values in kl.items():
        base = kl.get((case, "selection"))
        if base and variant != "selection" and len(base) == len(values):
            each = " ".join(f"{a / b:.3f}" for a, b in zip(values, base, strict=True))
            lines.append(f"{case:<26}{variant:<16}{sum(values) / sum(base):>8.3f} of selection  {each}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", metavar="NAME=ZOO=PREDICTOR", action="append", required=True, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="few networks and images, one seed, without adam256")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write tidy rows")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="which variants")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="which seeds")
    parser.add_argument("--networks", type=int, default=NETWORKS, help="networks for each seed, at most")
    parser.add_argument("--rate", type=float, help="of adam256; chosen on validation networks by default")
    parser.add_argument("--checked", type=int, default=CHECKED, help="networks that are checked for each seed")
    parser.add_argument("--held-out", action="store_true", help="measure on the validation part")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-conditioned"), help="where pieces are kept")
    arguments = parser.parse_args()
    variants = [v for v in arguments.variants if not (arguments.quick and v == "adam256")]
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    networks, scored = (6, 300) if arguments.quick else (arguments.networks, SCORED)
    rows: list[dict[str, Any]] = []
    for given in arguments.case:
        if given.count("=") != 2:
            parser.error(f"--case {given}: expected NAME=ZOO=PREDICTOR")
        case, zoo, predictor = given.split("=")
        run = Run(case, Zoo.open(zoo), Path(predictor), arguments.folder, networks, scored, arguments.held_out)
        run.given = arguments.rate
        jobs = [(variant, seed) for seed in seeds for variant in variants]
        for variant, seed in tqdm(jobs, desc=case, disable=not sys.stderr.isatty(), leave=False):
            rows += run.rows(variant, seed)
        for seed in seeds if arguments.checked else []:
            for name, value in run.checked(seed, arguments.checked).items():
                row = {"benchmark": "conditioned", "case": case, "variant": "conditioned", "metric": name}
                rows.append({**row, "seed": seed, "value": value})
    print(machine())
    by_share = [row for row in rows if "/" in row["case"]]
    by_share.sort(key=lambda row: (row["case"].partition("/")[0], -float(row["case"].partition("/")[2])))
    print(table(by_share).replace("* sees data when it narrows", "adam256 sees data"))
    print(ratios(by_share))
    for case in dict.fromkeys(row["case"] for row in rows if "/" not in row["case"]):
        for metric in dict.fromkeys(row["metric"] for row in rows if row["case"] == case):
            values = [row["value"] for row in rows if row["case"] == case and row["metric"] == metric]
            print(f"{case:<26}{metric:<16}" + " ".join(f"{value:.1e}" for value in values))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
