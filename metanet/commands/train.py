"""How does a person get a metanetwork? Compose its configuration, train it or go on with it, and measure it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from metanet.commands._compose import compose
from metanet.commands._terminal import print_json, say, table

DESCRIPTION = """\
Train a metanetwork to predict a property of networks from their weights: any column of a zoo's index (a number or a
label), or of a table beside checkpoint files of your own. With task=morph it learns to narrow networks without data,
and with task=plan_score what edits cost.

A training that was killed goes on where it stopped when the same command is given again, and ends with the same
weights. Validation and test are on runs of their own. OVERRIDES are Hydra's.
"""

EXAMPLES = """\
examples:
  metanet train task=property --zoo zoos/digits --folder runs/accuracy
  metanet train task.column=activation --zoo zoos/digits model=small trainer.epochs=20
  metanet train task=morph --zoo zoos/mnist_mlp --folder runs/morph
  metanet train dataset=folder dataset.folder=my_checkpoints task.column=accuracy
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="as in task.column=activation model=small")
    parser.add_argument(
        "--zoo",
        metavar="FOLDER",
        type=Path,
        action="append",
        help="the zoo to learn from; or dataset.folder=FOLDER; task=morph takes several: --zoo A --zoo B",
    )
    parser.add_argument("--folder", metavar="FOLDER", type=Path, help="where the model goes; or folder=FOLDER")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier run left in the folder")
    parser.add_argument("--baselines", action="store_true", help="also fit the simple baselines, for the comparison")
    parser.add_argument("--config-dir", metavar="FOLDER", type=Path, help="YAML of your own: FOLDER/model/mine.yaml")
    parser.add_argument("--json", action="store_true", help="print what was trained, and how good it is, as JSON")


def run(arguments: argparse.Namespace) -> int:
    from metanet.commands._report_values import training_values
    from metanet.commands._training import prepare
    from metanet.report import save_report
    from metanet.tasks import ConstantMethod, FlatMethod

    config = compose("train", arguments.overrides, arguments.config_dir)
    if arguments.zoo is not None:
        folders = [str(folder) for folder in arguments.zoo]
        config["dataset"]["folder"] = folders[0] if len(folders) == 1 else folders
    if arguments.folder is not None:
        config["folder"] = str(arguments.folder)
    started = time.monotonic()
    training = prepare(config)
    trained = training.run(arguments.overwrite or bool(config.get("overwrite")))
    evaluation = training.assess((FlatMethod(), ConstantMethod()) if arguments.baselines else ())
    seconds = round(time.monotonic() - started, 2)
    values = training_values(training, trained, evaluation) | {
        "title": f"{values_title(training.task.column)} from weights",
        "subtitle": f"A metanetwork trained on {len(training.data.part('train')):,} networks.",
        "command": "metanet train " + " ".join(arguments.overrides),
        "seconds": seconds,
    }
    page = save_report(values, training.folder)
    if arguments.json:
        print_json(
            {
                "folder": str(training.folder),
                "epochs": len(trained.history),
                "best_epoch": trained.best_epoch,
                "stopped_early": trained.stopped_early,
                "seconds": seconds,
                "dropped": [list(entry) for entry in training.data.dropped],
                "test": evaluation.to_json(),
                "report": str(page),
            }
        )
        return 0
    rows = [[m["name"], m["score"], *(m["interval"] or (None, None)), m["r2"], m["accuracy"]] for m in values["models"]]
    columns = [f"on held-out {values['groups']}", values["metric"]["label"], "from", "to", "R2", "accuracy"]
    kept = [i for i in range(len(columns)) if any(row[i] is not None for row in rows)]
    print(table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows]))
    print(f"\n{values['verdict']}")
    for name, reason in training.data.dropped[:5]:
        say(f"left out: {name}: {reason}")
    if len(training.data.dropped) > 5:
        say(f"left out: {len(training.data.dropped) - 5} more")
    say(f"took {seconds:.1f} s; {page}")
    if training.task.describe()["task"] == "morph":
        say(f"narrow a network with it: metanet morph FILE --width 0.5 --predict {training.folder}")
    else:
        say(f"ask it about a file: metanet predict {training.folder} FILE")
    return 0


def values_title(column: str) -> str:
    """A column's name as the beginning of a title."""
    return column.replace("_", " ").capitalize()
