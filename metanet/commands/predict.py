"""What does a trained metanetwork say of these checkpoint files? Answers stream; what it cannot read is refused."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metanet.commands._plan_scores import print_plan_scores
from metanet.commands._reading import add_reading_arguments, load_named
from metanet.commands._terminal import cell, progress, say, table
from metanet.errors import ConfigError, MetanetError

if TYPE_CHECKING:
    from metanet.checkpoint import Checkpoint
    from metanet.tasks.place_predict import PlacePrediction
    from metanet.tasks.predict import Prediction

DESCRIPTION = """\
Ask a trained metanetwork about checkpoint files: one, or thousands.

The answer is read from the weights alone; no network is run. A file that cannot be read, or whose architecture the
model has not learned to read, is refused with its reason; the others are answered, and the exit code is 2.
"""

EXAMPLES = """\
examples:
  metanet predict runs/accuracy weights.safetensors
  metanet predict runs/accuracy checkpoints/*.pt --json
  metanet predict runs/plan-score weights.safetensors --plan narrow/plan.json
  find checkpoints -name '*.safetensors' | metanet predict runs/accuracy --files-from -
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a trained metanetwork (metanet train)")
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help="checkpoint files, or folders of one each")
    parser.add_argument("--files-from", metavar="LIST", help="a text file with one file name a line; - for stdin")
    parser.add_argument(
        "--anyway", action="store_true", help="answer for architectures unlike those it was trained on, with a warning"
    )
    parser.add_argument("--plan", metavar="PLAN", type=Path, help="for task=plan_score: what this plan would cost")
    parser.add_argument(
        "--no-compensation", action="store_true", help="with --plan: leave the readers of dropped units alone"
    )
    add_reading_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the answers as one JSON array")


def run(arguments: argparse.Namespace) -> int:
    from metanet.tasks import PlaceModel, PropertyModel
    from metanet.tasks.place_task import PLACES_NAME
    from metanet.tasks.plan_score import PLAN_SCORE_NAME
    from metanet.tasks.plan_score_predict import PlanScoreModel
    from metanet.train import Artefact

    names = [*arguments.files, *_listed(arguments.files_from)]
    if not names:
        raise ConfigError("no checkpoint file named", hint="name files, or a list of them with --files-from")
    artefact = Artefact.open(arguments.model)
    checkpoints = _read(progress(names, "predict", len(names)), arguments)
    if artefact.holds(PLAN_SCORE_NAME):
        told, refit = PlanScoreModel(artefact), not arguments.no_compensation
        refused = print_plan_scores(told, checkpoints, arguments.plan, refit, arguments.anyway, arguments.json)
    elif arguments.plan is not None:
        raise ConfigError("--plan needs a model of task=plan_score", where=arguments.model)
    elif artefact.holds(PLACES_NAME):
        places = PlaceModel(artefact)
        found = places.predict(checkpoints, arguments.anyway)
        refused = _print_json(found) if arguments.json else _print_places(found, places.column)
    else:
        model = PropertyModel(artefact)
        answers = model.predict(checkpoints, arguments.anyway)
        refused = _print_json(answers) if arguments.json else _print_table(answers, model.column)
    if refused:
        say(f"metanet predict: {refused} of {len(names)} files refused")
    return 2 if refused else 0


def _listed(source: str | None) -> list[Path]:
    if source is None:
        return []
    text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    return [Path(line) for line in text.splitlines() if line.strip()]


def _read(names: Iterable[Path], arguments: argparse.Namespace) -> Iterator[tuple[str, Checkpoint | MetanetError]]:
    for name in names:
        try:
            yield str(name), load_named(name, arguments)
        except MetanetError as error:
            yield str(name), error


def _print_table(answers: Iterable[Prediction], column: str) -> int:
    print(f"{column:<18}  file")
    refused = 0
    for answer in answers:
        if answer.refused:
            refused += 1
            # The reason names the file already where it is about the file itself.
            reason = answer.refused.removeprefix(f"{answer.name}: ")
            say(f"refused: {answer.name}: {reason}")
            continue
        shown = cell(answer.value)
        if answer.probabilities:
            shown += f" ({max(answer.probabilities.values()):.2f})"
        print(f"{shown:<18}  {answer.name}", flush=True)
        if answer.warning:
            say(f"warning: {answer.name}: {answer.warning}")
    return refused


def _print_places(answers: Iterable[PlacePrediction], column: str) -> int:
    """One row per space or tensor: the mean, the highest and where it stands; all values are in `--json`."""
    refused = 0
    for answer in answers:
        if answer.refused:
            refused += 1
            say(f"refused: {answer.name}: {answer.refused.removeprefix(f'{answer.name}: ')}")
            continue
        rows = []
        for name, values in answer.values.items():
            top = int(values.argmax())
            place = ", ".join(str(int(i)) for i in np.unravel_index(top, tuple(values.shape)))
            rows.append([name, f"{float(values.mean()):.3f}", f"{float(values.reshape(-1)[top]):.3f}", place])
        print(answer.name)
        print(table([column, "mean", "highest", "at"], rows), flush=True)
        if answer.warning:
            say(f"warning: {answer.name}: {answer.warning}")
    return refused


def _print_json(answers: Iterable[Prediction | PlacePrediction]) -> int:
    """One array, an answer a line, printed as the answers come."""
    refused, separator = 0, "["
    for answer in answers:
        refused += bool(answer.refused)
        line = json.dumps(answer.to_json(), ensure_ascii=False, allow_nan=False)
        print(separator, line, sep="\n", end="", flush=True)
        separator = ","
    print("\n]" if separator == "," else "[]")
    return refused
