"""How well is the cost of plans told for networks that were never seen, beside what is told without learned inputs?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metanet.errors import TaskError
from metanet.tasks.boosting import fit_trees
from metanet.tasks.evaluate import Evaluation, ModelScore
from metanet.tasks.plan_score import Answers, PlanScoreTask
from metanet.tasks.plan_score_data import FLOOR, PlanScoreData, ScoredStack
from metanet.tasks.plan_score_model import PlanScoreReader
from metanet.tasks.plan_score_predict import PlanScoreModel

__all__ = ["evaluate_plan_scores", "few_inputs", "plan_alone", "shuffled", "smooth_noise"]

_SHOWN = 2000  # plans in a report's plot


def evaluate_plan_scores(model: PlanScoreModel, data: PlanScoreData, seed: int = 0, part: str = "test") -> Evaluation:
    """Measure a trained predictor on networks that it was not trained on, beside baselines and a control.

    Args:
        model: The predictor, as read from its folder.
        data: The data that it was trained on.
        seed: Seeds the baselines.
        part: The part to test on.

    Raises:
        TaskError: The part is empty, or the networks read other inputs.
    """
    if data.numbers != model.numbers:
        raise TaskError(f"networks that read {data.numbers} numbers, the predictor was trained on {model.numbers}")
    task = model.task
    ours = task.answers(model.model, data, part)
    found = {
        "metanet": ("model", "divergence on learned inputs, with a learned correction", (ours, model.widths)),
        "smooth noise": (
            "baseline",
            "divergence on smooth made-up inputs, calibrated (isotonic)",
            smooth_noise(task, data, part, seed),
        ),
        "plan alone": (
            "baseline",
            "gradient boosting on widths, and on shares of the importance that are kept",
            plan_alone(task, data, part, seed),
        ),
        "64 real inputs": ("baseline", "no prediction: measured on 64 real inputs", few_inputs(task, data, part)),
        "control": ("part", "the model, with the networks exchanged", (shuffled(ours, seed), model.widths)),
    }
    scores = tuple(
        ModelScore(name, kind, words, task.measure(*answers)) for name, (kind, words, answers) in found.items()
    )
    names = [data.names[place] for one in ours for place in one.places.tolist() for _ in one.kinds]
    groups = [str(data.groups[place]) for one in ours for place in one.places.tolist() for _ in one.kinds]
    true, said = (torch.cat([getattr(one, name).flatten(0, 1) for one in ours]) for name in ("true", "said"))
    kept = np.linspace(0, len(names) - 1, min(_SHOWN, len(names))).round().astype(int).tolist()
    scale = float(np.log(10))
    return Evaluation(
        task.column,
        part,
        "tau",
        scores,
        tuple(names[i] for i in kept),
        tuple(groups[i] for i in kept),
        tuple(float(value) / scale for value in true[kept, 0]),
        tuple(float(value) / scale for value in said[kept, 0, 0]),
        1.0,
        seed,
    )


Measured = tuple[list[Answers], list[float]]


def smooth_noise(task: PlanScoreTask, data: PlanScoreData, part: str, seed: int = 0) -> Measured:
    """The divergence on the inputs from which learning starts, brought to the right size by an increasing function."""
    from sklearn.isotonic import IsotonicRegression

    reader = PlanScoreReader(data.numbers, learned=False, correct=False, generator=torch.Generator().manual_seed(seed))

    def raw(part: str) -> list[Answers]:
        return task.answers(reader, data, part)

    lines = [IsotonicRegression(out_of_bounds="clip") for _ in range(2)]
    train = raw("train")
    for which, line in enumerate(lines):
        x, y = (torch.cat([getattr(one, name).flatten(0, 1) for one in train]) for name in ("said", "true"))
        line.fit(x[:, which, 0].double().numpy(), y[:, which].double().numpy())

    def mapped(part: str) -> Iterator[tuple[Answers, Tensor]]:
        for one in raw(part):
            flat = one.said[..., 0].double().flatten(0, 1).numpy()
            values = np.stack([line.predict(flat[:, which]) for which, line in enumerate(lines)], -1)
            yield one, torch.from_numpy(values).reshape(one.true.shape)

    return _with_one_spread(task, mapped, part)


def plan_alone(task: PlanScoreTask, data: PlanScoreData, part: str, seed: int = 0) -> Measured:
    """Boosted trees on what is known of the plan without running anything."""

    def features(stack: ScoredStack, rows: Tensor) -> NDArray[np.float64]:
        return stack.features[rows].double().flatten(0, 1).numpy()

    train = [(features(stack, rows), stack.targets[rows].flatten(0, 1)) for stack, rows, _ in data.rows("train")]
    x, y = np.concatenate([one for one, _ in train]), torch.cat([two for _, two in train]).double().numpy()
    trees = [fit_trees(x, y[:, which], 0, seed) for which in range(2)]

    def told(part: str) -> Iterator[tuple[Answers, Tensor]]:
        for stack, rows, places in data.rows(part):
            true = stack.targets[rows].float()
            values = np.stack([tree.raw(features(stack, rows))[:, 0] for tree in trees], -1)
            none = torch.zeros(*true.shape, 2)
            yield Answers(none, true, stack.kinds, places), torch.from_numpy(values).reshape(true.shape)

    return _with_one_spread(task, told, part)


def few_inputs(task: PlanScoreTask, data: PlanScoreData, part: str) -> Measured:
    """What 64 real inputs say that are not among those measured on; of the agreement nothing is told."""

    def told(part: str) -> Iterator[tuple[Answers, Tensor]]:
        for stack, rows, places in data.rows(part):
            true = stack.targets[rows].float()
            one = (stack.few[rows].double() + FLOOR).log()
            yield Answers(torch.zeros(*true.shape, 2), true, stack.kinds, places), torch.stack([one, one], -1)

    return _with_one_spread(task, told, part)


def shuffled(answers: Sequence[Answers], seed: int = 0) -> list[Answers]:
    """The answers with the networks of each architecture exchanged: a control that must not tell networks apart."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for one in answers:
        # A cycle in random order: no network keeps its own answers.
        order = torch.randperm(len(one.said), generator=generator)
        moved = one.said.clone()
        moved[order] = one.said[order.roll(1)]
        found.append(Answers(moved, one.true, one.kinds, one.places))
    return found


def _with_one_spread(
    task: PlanScoreTask, told: Callable[[str], Iterator[tuple[Answers, Tensor]]], part: str
) -> Measured:
    """Means with a spread that is the same everywhere, calibrated on the validation part like that of the model."""

    def whole(part: str) -> list[Answers]:
        return [
            Answers(torch.stack([mean, torch.zeros_like(mean)], -1).float(), one.true, one.kinds, one.places)
            for one, mean in told(part)
        ]

    val = whole("val")
    errors = torch.cat([(one.true - one.said[..., 0]).flatten(0, 1) for one in val])
    spread = errors.square().mean(0).sqrt().clamp_min(1e-6).log()
    found = []
    for answers in (val, whole(part)):
        for one in answers:
            one.said[..., 1] = spread
        found.append(answers)
    return found[1], task.widths(found[0])
