"""Predict what a plan will cost, from the networks alone: what is learned, measured and kept."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metanet.errors import ConfigError, ModelError, TaskError
from metanet.tasks import metrics
from metanet.tasks.coverage import Coverage
from metanet.tasks.options import check_ranges, task_options
from metanet.tasks.plan_score_data import PlanScoreData, ScoredStack
from metanet.tasks.plan_score_model import PlanScoreReader
from metanet.train import Extras, Monitor

__all__ = ["FORMAT", "LEVEL", "NORMAL", "PLAN_SCORE_NAME", "Answers", "PlanScoreTask", "told_of"]

PLAN_SCORE_NAME, FORMAT = "plan_score.json", "metanet.plan_score/1"
LEVEL = 0.8
"""Share of the costs that a predicted interval is to hold."""

NORMAL = 1.2815515655446004
"""So many deviations on both sides of a normal distribution's mean hold `LEVEL` of it."""

_CHUNK = 32
Batch = tuple[int, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Answers:
    """What is said and what is true of the plans of one stack's networks.

    Attributes:
        said: Means and logarithms of spreads.
        true: What was measured.
        kinds: In which way each plan was drawn.
        places: Of the networks in the data.

    Shapes:
        said (n, plans, 2, 2), true (n, plans, 2)
    """

    said: Tensor
    true: Tensor
    kinds: tuple[str, ...]
    places: NDArray[np.intp]


@dataclass(frozen=True)
class PlanScoreTask:
    """Predict what edits of networks cost on real inputs: the divergence, and the share of inputs decided otherwise.

    Attributes:
        plans: How many plans narrow each network of the zoo; blocks that can be dropped and heads come on top.
        images: Real inputs on which they are measured.
        fitting: Real inputs of which some plans' readers are refitted.
        batch: Networks per step.
        at_once: Plans of each of them per step.
    """

    column: ClassVar[str] = "cost of a plan"

    plans: int = 20
    images: int = 512
    fitting: int = 128
    batch: int = 16
    at_once: int = 6

    def __post_init__(self) -> None:
        leasts = {"plans": 1, "images": 16, "fitting": 8, "batch": 1, "at_once": 1}
        check_ranges(self, [(name, getattr(self, name) >= least, f"{least} or more") for name, least in leasts.items()])

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> PlanScoreTask:
        """The task of a configuration.

        Raises:
            ConfigError: Unknown keys, or values of the wrong type or out of range.
        """
        return cls(**task_options(cls, options))

    @property
    def monitor(self) -> Monitor:
        return Monitor("val_tau", True)

    def describe(self) -> dict[str, Any]:
        return {"task": "plan_score", **asdict(self)}

    def model(self, data: PlanScoreData, options: Mapping[str, Any], generator: torch.Generator) -> nn.Module:
        model = self.reader(options, data.numbers, generator)
        # Made-up inputs tell a divergence of another size: the offset between the two is no matter of learning.
        with torch.no_grad():
            found = self.answers(model, data, "train", at_most=64)
            apart = torch.cat([(one.true - one.said[..., 0]).flatten(0, 1) for one in found])
            model.offsets.add_(apart.mean(0))
            model.spreads.add_(apart.std(0).clamp_min(1e-2).log())
        return model

    def reader(self, options: Mapping[str, Any], numbers: int, generator: torch.Generator) -> PlanScoreReader:
        """The model that the options name.

        Raises:
            ConfigError: An unknown model or option, or one out of range.
        """
        given = {key: value for key, value in options.items() if key != "name"}
        if options.get("name") != "plan_score":
            raise ConfigError(f"{options.get('name')!r} given, this task has only 'plan_score'", where="model.name")
        known = [key for key in inspect.signature(PlanScoreReader).parameters if key not in ("numbers", "generator")]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise ConfigError(f"no such option: {unknown[0]!r}", hint=f"there are {', '.join(known)}", where="model")
        try:
            return PlanScoreReader(numbers, **given, generator=generator)
        except ModelError as error:
            raise ConfigError(error.reason, hint=error.hint, where="model") from error

    def batches(self, data: PlanScoreData, generator: torch.Generator) -> Sequence[Batch]:
        found: list[Batch] = []
        for stack, rows, _ in data.rows("train"):
            number = data.stacks.index(stack)
            for some in rows[torch.randperm(len(rows), generator=generator)].split(self.batch):
                plans = torch.randperm(len(stack.variants), generator=generator)
                found += [(number, some, chosen) for chosen in plans.split(self.at_once)]
        order = torch.randperm(len(found), generator=generator)
        return [found[i] for i in order.tolist()]

    def loss(self, model: nn.Module, data: PlanScoreData, batch: Batch, generator: torch.Generator) -> Tensor:
        number, rows, plans = batch
        stack = data.stacks[number]
        said = told_of(model, stack, rows, plans.tolist())
        return _losses(said, stack.targets[rows][:, plans]).mean()

    def metrics(self, model: nn.Module, data: PlanScoreData) -> dict[str, float]:
        return {f"val_{name}": value for name, value in self.measure(self.answers(model, data, "val")).items()}

    def answers(self, model: nn.Module, data: PlanScoreData, part: str, at_most: int | None = None) -> list[Answers]:
        """What a model says of one part's plans, stack by stack.

        Args:
            model: A reader.
            data: The networks.
            part: Whose.
            at_most: Only so many networks of each stack.

        Raises:
            TaskError: The part is empty.
        """
        found = []
        with torch.no_grad():
            for stack, rows, places in data.rows(part):
                some, plans = rows[:at_most], range(len(stack.variants))
                said = torch.cat([told_of(model, stack, chunk, plans) for chunk in some.split(_CHUNK)])
                found.append(Answers(said, stack.targets[some].float(), stack.kinds, places[:at_most]))
        if not found:
            raise TaskError(f"the part {part!r} is empty", hint="give it a share of the groups")
        return found

    def measure(self, answers: Sequence[Answers], widths: Sequence[float] = (1.0, 1.0)) -> dict[str, float]:
        """Loss and metrics of what was said.

        `tau` is Kendall's, over all plans and networks; `tau_network` over the plans of each network; `tau_kind` over
        the networks of one architecture, plans drawn in one way each by itself. `coverage` is the share of costs in the
        interval, `r2` and `error` (root mean square) are of log KL.

        Args:
            answers: Stack by stack.
            widths: What spreads are multiplied by, see `PlanScoreTask.widths`.
        """
        said, true = (torch.cat([getattr(one, name).flatten(0, 1) for one in answers]) for name in ("said", "true"))
        mean, level = said[..., 0], said[..., 1].exp() * torch.tensor(widths) * NORMAL
        within = ((true - mean).abs() <= level).double().mean(0)
        return {
            "loss": float(_losses(said, true).mean()),
            "tau": metrics.kendall_tau(mean[:, 0].numpy(), true[:, 0].numpy()),
            "tau_network": _over(
                answers, lambda a, b, _: [metrics.kendall_tau(*row) for row in zip(a, b, strict=True)]
            ),
            "tau_kind": _over(answers, _taus_by_kind),
            "tau_agreement": metrics.kendall_tau(mean[:, 1].numpy(), true[:, 1].numpy()),
            "r2": metrics.r_squared(mean[:, 0].numpy(), true[:, 0].numpy()),
            "error": float((mean - true)[:, 0].double().square().mean().sqrt()),
            "coverage": float(within[0]),
            "coverage_agreement": float(within[1]),
        }

    def widths(self, answers: Sequence[Answers]) -> list[float]:
        """By what spreads have to be multiplied so that intervals hold `LEVEL` of these costs.

        The quantile of the errors in units of their spreads, as in Papadopoulos et al., Inductive Confidence Machines,
        2002 (normalised conformal prediction).
        """
        said, true = (torch.cat([getattr(one, name).flatten(0, 1) for one in answers]) for name in ("said", "true"))
        far = (true - said[..., 0]).abs() / said[..., 1].exp()
        rank = min(LEVEL * (1 + 1 / len(far)), 1.0)
        return [float(value) / NORMAL for value in far.double().quantile(rank, 0)]

    def complete(self, model: nn.Module, data: PlanScoreData, generator: torch.Generator) -> Extras:
        answers = self.answers(model, data, "val")
        widths = self.widths(answers)
        specs = [stack.networks.spec for stack, _, _ in data.rows("train")]
        record = {
            "format": FORMAT,
            "numbers": data.numbers,
            "widths": widths,
            "coverage": Coverage.of(specs).to_json(),
            "images": data.stacks[0].measured,
            "validation": {
                name: value if np.isfinite(value) else None for name, value in self.measure(answers, widths).items()
            },
        }
        return Extras({}, {PLAN_SCORE_NAME: record})


def told_of(model: nn.Module, stack: ScoredStack, rows: Tensor, plans: Sequence[int]) -> Tensor:
    """What a reader says of some networks and plans. Shapes: rows (b,) -> (b, len(plans), 2, 2)."""
    shape = tuple(stack.networks.inputs.shape[1:])
    if not isinstance(model, PlanScoreReader):
        raise TaskError(f"a {type(model).__name__} tells no cost of a plan", hint="use a PlanScoreReader")
    before, after = stack.answers(rows, plans, model.inputs(shape))
    said: Tensor = model(before.unsqueeze(1).expand_as(after), after)
    return said


def _losses(said: Tensor, true: Tensor) -> Tensor:
    """Negative log likelihood of normal distributions, up to a constant; the divergence counts twice."""
    mean, spread = said.unbind(-1)
    each = spread + 0.5 * ((true.to(mean) - mean) / spread.exp()).square()
    return each[..., 0] + 0.5 * each[..., 1]


def _over(
    answers: Sequence[Answers],
    taus: Callable[[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]], Sequence[float]],
) -> float:
    """Mean over what can be ordered at all, each architecture weighted by its networks."""
    found, weights = [], []
    for one in answers:
        own = np.array(taus(one.said[..., 0, 0].double().numpy(), one.true[..., 0].double().numpy(), one.kinds))
        if np.isfinite(own).any():
            found.append(float(np.nanmean(own)))
            weights.append(len(one.said))
    return float(np.average(found, weights=weights)) if found else float("nan")


def _taus_by_kind(said: NDArray[np.float64], true: NDArray[np.float64], kinds: tuple[str, ...]) -> list[float]:
    found = []
    for kind in sorted(set(kinds)):
        columns = [i for i, one in enumerate(kinds) if one == kind]
        found.append(float(np.mean([metrics.kendall_tau(said[:, i], true[:, i]) for i in columns])))
    return found
