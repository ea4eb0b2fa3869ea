"""Does the whole way work here, from checkpoints by parameter graphs and a metanetwork to a prediction that is true?"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._compose import compose
from metanet.commands._terminal import bar, count, print_json, say, table
from metanet.errors import ZooError

if TYPE_CHECKING:
    from metanet.checkpoint import Checkpoint
    from metanet.datasets import Zoo
    from metanet.tasks import Prediction

DESCRIPTION = """\
The main job, on real input, in three minutes: build a zoo of networks that read handwritten digits, train a metanetwork
to tell their test accuracy from the weights alone, compare it with two simple baselines on held-out runs, then take one
unseen checkpoint file, inspect its symmetry, predict its accuracy, measure the true one, and write report.html.
"""

EXAMPLES = """\
examples:
  metanet demo
  metanet demo --seed 1 --folder demo-1
  metanet demo --quick --json
"""

# The same steps with networks and a metanetwork so small that it takes seconds, and the figures are of little worth.
QUICK = ("zoo=digits_tiny", "zoo.runs=40", "zoo.architectures=4", "model=small", "trainer=quick")
FULL = ("zoo=digits_mixed",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", metavar="FOLDER", type=Path, help="where everything goes (demo)")
    parser.add_argument("--seed", metavar="N", type=count, default=0, help="root of all randomness (%(default)s)")
    parser.add_argument("--runs", metavar="N", type=count, help="training runs in the zoo (320)")
    parser.add_argument("--quick", action="store_true", help="tiny networks: the same steps in half a minute")
    parser.add_argument("--threads", metavar="N", type=count, help="processor cores to use (all)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    from metanet.commands._report_values import training_values
    from metanet.commands._training import prepare
    from metanet.datasets import build_zoo
    from metanet.report import save_report
    from metanet.tasks import FlatMethod

    started = time.monotonic()
    folder = arguments.folder or _folder(arguments)
    words = [*(QUICK if arguments.quick else FULL), f"zoo.seed={arguments.seed}", f"seed={arguments.seed}"]
    if arguments.runs is not None:
        words.append(f"zoo.runs={arguments.runs}")
    config = compose("train", words)
    config["dataset"]["folder"], config["folder"] = str(folder / "zoo"), str(folder / "model")

    say(f"1/5  building a zoo: {config['zoo']['runs']} training runs on handwritten digits")
    speed: dict[str, float] = {}
    with _watch(speed) as moved:
        zoo = build_zoo(config["zoo"], folder / "zoo", progress=moved, threads=arguments.threads)
    say(f"     {len(zoo):,} networks of {zoo.manifest['runs']} runs, {_seconds(started)}")

    say("2/5  training a metanetwork to tell their test accuracy from the weights")
    training = prepare(config)
    began = time.monotonic()
    trained = training.run(overwrite=(folder / "model" / "manifest.json").exists())
    say(f"     {len(trained.history)} epochs, {_seconds(began)}")

    say("3/5  measuring it on held-out runs, beside two baselines")
    evaluation = training.assess((FlatMethod(),))

    say("4/5  one unseen checkpoint file: inspect, predict, measure")
    unseen = _unseen(zoo, config["zoo"], arguments.seed, folder)
    values = training_values(training, trained, evaluation) | {
        "title": "The accuracy of networks, told from their weights",
        "subtitle": "A metanetwork reads trained digit classifiers and tells their test accuracy without running them.",
        "command": _command(arguments),
        "unseen": unseen,
    }
    values["zoo"] |= speed | {"data": "scikit-learn's handwritten digits, 8x8 pixels"}
    values["headline"] = _headline(values)
    values["seconds"] = round(time.monotonic() - started, 1)
    page = save_report(values, folder)
    say(f"5/5  report written, {_seconds(started)} in all")

    if arguments.json:
        print_json({key: values[key] for key in _TOLD} | {"folder": str(folder), "report": str(page)})
    else:
        say()
        print(_summary(values, page))
    return 0


_TOLD = ("seconds", "seeds", "models", "verdict", "unseen")


def _folder(arguments: argparse.Namespace) -> Path:
    parts = ["demo"] + ["quick"] * arguments.quick
    parts += [f"seed{arguments.seed}"] * bool(arguments.seed) + [f"runs{arguments.runs}"] * (arguments.runs is not None)
    return Path("-".join(parts))


def _command(arguments: argparse.Namespace) -> str:
    words = ["metanet demo", f"--seed {arguments.seed}"] + ["--quick"] * arguments.quick
    return " ".join(words + [f"--runs {arguments.runs}"] * (arguments.runs is not None))


class _watch:
    """Shows how far a zoo's build is, and afterwards knows how fast it was."""

    def __init__(self, found: dict[str, float]) -> None:
        self.found, self.bar = found, bar("zoo")

    def __enter__(self) -> Any:
        move, began = self.bar.__enter__(), time.monotonic()
        first: list[int] = []

        def moved(state: Any) -> None:
            first.append(state.done) if not first else None
            move(state.done, state.total)
            seconds = time.monotonic() - began
            if state.done > first[0] and seconds > 0:
                self.found |= {"seconds": round(seconds, 1), "steps_per_s": round((state.done - first[0]) / seconds)}

        return moved

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)


def _unseen(zoo: Zoo, config: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """A network that was trained apart from the zoo, from another seed: as a file, and what is found out of it."""
    import metanet
    from metanet.datasets import build_zoo
    from metanet.tasks import PropertyModel

    # The ranges are the zoo's, the seed is not; the first network that the model can read is taken, whatever it is.
    apart = dict(config) | {"name": "unseen", "seed": seed + 1_000_003, "runs": 4, "architectures": 4, "children": 0.0}
    others = build_zoo(apart, folder / "unseen-runs", threads=1)
    model = PropertyModel.open(folder / "model")
    for place in reversed(range(len(others))):
        path = folder / "unseen.safetensors"
        others.export(place, path)
        checkpoint = metanet.load(path)
        (prediction,) = model.predict([(path.name, checkpoint)])
        if not prediction.refused:
            return _found(checkpoint, prediction, zoo, path)
    raise ZooError("no unseen network that the model can read", where=folder, hint="give another --seed")


def _found(checkpoint: Checkpoint, prediction: Prediction, zoo: Zoo, path: Path) -> dict[str, Any]:
    import symmetry
    from metanet.commands import inspect_file

    report = symmetry.analyze(checkpoint.spec, checkpoint.state)
    verification = inspect_file.verify(checkpoint, trials=8)
    columns, rows = inspect_file.space_table(report)
    measured = zoo.evaluate(checkpoint.state, checkpoint.architecture)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "architecture": inspect_file.describe_architecture(checkpoint.architecture),
        "parameters": checkpoint.parameters,
        "how": checkpoint.architecture.provenance,
        "seen": "trained apart from the zoo, from another seed.",
        "predicted": prediction.value,
        "measured": measured["test_accuracy"],
        "measured_on": f"on {len(zoo.data.test_labels)} test images, by running it",
        "symmetry": {
            "summary": [list(row) for row in inspect_file.group_summary(report)],
            "table": {"columns": columns, "rows": rows},
            "notes": [f"also free: {factor}" for factor in report.other_factors]
            + [f"pinned: {pin}" for pin in report.pinned],
            "verification": {
                "passed": verification.passed,
                "trials": verification.trials,
                "max_error": verification.max_error,
                "control_error": verification.to_json()["control_error"],
            },
        },
    }


def _headline(values: Mapping[str, Any]) -> list[dict[str, str]]:
    chosen = next(model for model in values["models"] if model["chosen"])
    cards = [_card("Kendall's tau, held-out runs", chosen)]
    cards += [_card(model["name"], model) for model in values["models"] if model["kind"] == "baseline"]
    unseen = values["unseen"]
    shown = f"{unseen['predicted']:.1%}".replace("%", " %")
    note = f"predicted; {unseen['measured']:.1%}".replace("%", " %") + " measured"
    return [*cards, {"label": "accuracy of an unseen file", "value": shown, "note": note}]


def _card(label: str, model: Mapping[str, Any]) -> dict[str, str]:
    low, high = model["interval"] or (model["score"], model["score"])
    kind = "baseline" if model["kind"] == "baseline" else model["name"]
    return {"label": label, "value": f"{model['score']:.3f}", "note": f"{kind}, {low:.3f} to {high:.3f}"}


def _summary(values: Mapping[str, Any], page: Path) -> str:
    rows = [[m["name"], m["score"], *(m["interval"] or (None, None)), m["r2"]] for m in values["models"]]
    unseen = values["unseen"]
    space = "; ".join(f"{label} {value}" for label, value in unseen["symmetry"]["summary"])
    return "\n".join(
        [
            table(["on held-out runs", "Kendall's tau", "from", "to", "R2"], rows),
            "",
            values["verdict"],
            "",
            f"{unseen['file']}: {unseen['architecture']}",
            f"  symmetry            {space}",
            f"  predicted accuracy  {unseen['predicted']:.3f}",
            f"  measured accuracy   {unseen['measured']:.3f}",
            "",
            f"report: {page}",
        ]
    )


def _seconds(since: float) -> str:
    return f"{time.monotonic() - since:.0f} s"
