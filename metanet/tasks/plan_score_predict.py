"""What will this plan cost, told before it is applied and without data?"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import symmetry
from metanet.errors import TaskError, TrainError
from metanet.morph import Compensation, Edit, Plan, apply
from metanet.morph.running import evaluating
from metanet.tasks.coverage import Coverage
from metanet.tasks.plan_score import FORMAT, LEVEL, NORMAL, PLAN_SCORE_NAME, PlanScoreTask
from metanet.tasks.plan_score_data import FLOOR
from metanet.tasks.plan_score_model import PlanScoreReader
from metanet.train import Artefact
from symmetry import SymmetrySpec

__all__ = ["PlanPrediction", "PlanScoreModel", "predicted_score"]


@dataclass(frozen=True)
class PlanPrediction:
    """What a plan will cost on inputs like those that the predictor was trained with.

    Attributes:
        kl: The divergence of the edited network from the network, nats: above it as probably as below.
        kl_interval: Where it lies with probability `level`.
        agreement: The share of inputs on which both decide alike.
        agreement_interval: Where it lies with probability `level`.
        level: Of the intervals; counted on held-out networks.
        warning: What makes this doubtful; empty where nothing does.
    """

    kl: float
    kl_interval: tuple[float, float]
    agreement: float
    agreement_interval: tuple[float, float]
    level: float = LEVEL
    warning: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        told = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}

    def __str__(self) -> str:
        low, high = self.kl_interval
        least, most = self.agreement_interval
        return (
            f"KL {self.kl:.3g} [{low:.3g}, {high:.3g}], agreement {self.agreement:.3f} [{least:.3f}, {most:.3f}] "
            f"({self.level:.0%} intervals), predicted"
        )


class PlanScoreModel:
    """A trained predictor of what plans cost, read from its folder.

    Args:
        artefact: The folder, checked.

    Raises:
        TrainError: The folder is not finished or damaged.
        TaskError: It holds another kind of model.
    """

    def __init__(self, artefact: Artefact) -> None:
        if not artefact.holds(PLAN_SCORE_NAME) or artefact.values(PLAN_SCORE_NAME).get("format") != FORMAT:
            raise TaskError("holds no predictor of what plans cost", where=artefact.folder)
        record = artefact.values(PLAN_SCORE_NAME)
        self.task = PlanScoreTask.from_mapping(artefact.config.get("task") or {})
        self.coverage = Coverage.from_json(record.get("coverage") or {})
        self.validation: dict[str, Any] = record.get("validation") or {}
        try:
            self.numbers, self.widths = int(record["numbers"]), [float(value) for value in record["widths"]]
        except (KeyError, TypeError, ValueError) as error:
            raise TaskError(f"not the record of a predictor ({error!r})", where=artefact.folder) from error
        model = self.task.reader(artefact.config.get("model") or {}, self.numbers, torch.Generator())
        try:
            model.load_state_dict(artefact.tensors())
        except RuntimeError as error:
            raise TrainError("the weights do not fit the configured model", where=artefact.folder) from error
        self.model: PlanScoreReader = model.eval()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> PlanScoreModel:
        """Read a model's folder."""
        return cls(Artefact.open(Path(folder)))

    def between(self, before: nn.Module, after: nn.Module, shape: Sequence[int]) -> PlanPrediction:
        """What real inputs would tell of two networks.

        Args:
            before: A network.
            after: An edited one; of any architecture that reads the same and names the same classes.
            shape: Of one input.

        Raises:
            TaskError: The networks read other inputs than those of the training, or name no classes.
        """
        if math.prod(shape) != self.numbers:
            raise TaskError(
                f"the network reads {math.prod(shape)} numbers, the predictor was trained on {self.numbers}"
            )
        with torch.no_grad():
            answers = [self._answers(network, tuple(shape)) for network in (before, after)]
            if answers[0].shape != answers[1].shape:
                shapes = " and ".join(str(list(one.shape[1:])) for one in answers)
                raise TaskError(f"the networks answer with shapes {shapes}, expected as many classes of both")
            said = self.model(*answers).double()
        mean, spread = said[:, 0], said[:, 1].exp() * torch.tensor(self.widths) * NORMAL
        ends = torch.stack([mean - spread, mean, mean + spread])
        kl = (ends[:, 0].exp() - FLOOR).clamp_min(0).tolist()
        alike = (1 - ends[:, 1].sigmoid()).tolist()
        return PlanPrediction(kl[1], (kl[0], kl[2]), alike[1], (alike[2], alike[0]))

    def _answers(self, network: nn.Module, shape: tuple[int, ...]) -> Tensor:
        like = next((one for one in network.parameters() if one.is_floating_point()), self.model.start)
        with evaluating(network):
            answers = network(self.model.inputs(shape).to(like))
        if not isinstance(answers, Tensor) or answers.ndim != 2 or answers.shape[1] < 2:
            shown = list(answers.shape) if isinstance(answers, Tensor) else type(answers).__name__
            raise TaskError(f"the network answers with {shown}, expected logits (inputs, classes)")
        if not bool(answers.isfinite().all()):
            raise TaskError("the network answers with numbers that are not finite")
        return answers.to(self.model.start)


def predicted_score(
    model: PlanScoreModel,
    network: nn.Module,
    plan: Plan | Edit | Sequence[Edit],
    example_inputs: Sequence[Any],
    *,
    spec: SymmetrySpec | None = None,
    compensation: Compensation | None = None,
    anyway: bool = False,
) -> PlanPrediction:
    """What a plan will cost a network on real inputs, without any.

    The plan is done on a copy in memory, and both networks answer the predictor's inputs; nothing is kept.

    Args:
        model: A trained predictor.
        network: The user's module; it is not changed.
        plan: What is to be done.
        example_inputs: One entry per argument of `forward`.
        spec: Of the network, if it is known; traced otherwise.
        compensation: How the readers of dropped units are to be refitted.
        anyway: Also answer for architectures unlike those of the training, with a warning.

    Raises:
        PlanError: The plan does not fit the network.
        TaskError: The network is unlike those that the predictor was trained on.
    """
    if len(example_inputs) != 1 or not isinstance(example_inputs[0], Tensor):
        raise TaskError(
            f"the network takes {len(example_inputs)} arguments, the predictor knows networks of one tensor"
        )
    if spec is None:
        spec = symmetry.trace(network, tuple(example_inputs))
    refusal = model.coverage.refusal(spec)
    if refusal and not anyway:
        raise TaskError(refusal, hint="train a predictor on a zoo with such networks")
    edited = apply(plan, network, example_inputs, spec=spec, compensation=compensation)
    found = model.between(network, edited.model, example_inputs[0].shape[1:])
    return found if not refusal else PlanPrediction(**{**vars(found), "warning": f"extrapolates: {refusal}"})
