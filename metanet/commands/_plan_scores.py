"""What would a stored plan cost these checkpoints? Told by a trained predictor, without data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._terminal import print_json, say, table
from metanet.errors import ConfigError, MetanetError, PlanError

if TYPE_CHECKING:
    from metanet.checkpoint import Checkpoint
    from metanet.morph import Plan
    from metanet.tasks.plan_score_predict import PlanPrediction, PlanScoreModel

__all__ = ["print_plan_scores"]

_MADE_UP = 4096


def print_plan_scores(
    model: PlanScoreModel,
    checkpoints: Iterable[tuple[str, Checkpoint | MetanetError]],
    plan: Path | None,
    compensated: bool,
    anyway: bool,
    as_json: bool,
) -> int:
    """Print one row per checkpoint; how many were refused.

    Raises:
        ConfigError: No plan is named.
        PlanError: The file holds none.
    """
    if plan is None:
        raise ConfigError("the model tells what plans cost, and no plan is named", hint="--plan FOLDER/plan.json")
    edits, rows, told, refused = _plan(plan), [], [], 0
    for name, answer in _scores(model, checkpoints, edits, compensated, anyway):
        if isinstance(answer, str):
            refused += 1
            say(f"refused: {name}: {answer.removeprefix(f'{name}: ')}")
            told.append({"name": name, "refused": answer})
            continue
        if answer.warning:
            say(f"warning: {name}: {answer.warning}")
        told.append({"name": name, "refused": "", **answer.to_json()})
        rows.append(
            [name, *_cells(answer.kl, answer.kl_interval), *_cells(answer.agreement, answer.agreement_interval)]
        )
    if as_json:
        print_json(told)
    elif rows:
        print(table(["file", "KL", "from", "to", "agreement", "from", "to"], rows))
        say("predicted, with 80 % intervals; nothing was measured")
    return refused


def _scores(
    model: PlanScoreModel,
    checkpoints: Iterable[tuple[str, Checkpoint | MetanetError]],
    plan: Plan,
    compensated: bool,
    anyway: bool,
) -> Iterator[tuple[str, PlanPrediction | str]]:
    from metanet.morph import Compensation
    from metanet.score import ProbeInputs
    from metanet.tasks.plan_score_predict import predicted_score

    for name, checkpoint in checkpoints:
        if isinstance(checkpoint, MetanetError):
            yield name, str(checkpoint)
            continue
        try:
            example: tuple[Any, ...] = checkpoint.architecture.example_inputs()
            # The same made-up inputs as those of `metanet morph` without data.
            inputs = [ProbeInputs.of(checkpoint, _MADE_UP, 1).tensors()] if compensated else []
            refit = Compensation(inputs) if compensated else None
            yield (
                name,
                predicted_score(
                    model, checkpoint.model(), plan, example, spec=checkpoint.spec, compensation=refit, anyway=anyway
                ),
            )
        except MetanetError as error:
            yield name, str(error)


def _plan(path: Path) -> Plan:
    from metanet.io import read_json
    from metanet.morph import Plan

    try:
        return Plan.from_json(read_json(path))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"not readable as JSON ({error})", where=path) from error


def _cells(value: float, interval: tuple[float, float]) -> list[str]:
    return [f"{one:.4g}" for one in (value, *interval)]
