"""How does a trained network on disk become a weight field, from which a network of any width is read?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._field_data import add_data_arguments, two_parts
from metanet.commands._reading import add_reading_arguments, load_named
from metanet.commands._terminal import above_zero, bar, count, not_negative, number, positive, print_json, say, table

if TYPE_CHECKING:
    from torch import nn

    from metanet.commands._field_data import Parts
    from metanet.fields import Recipe, StoredField
    from metanet.score.certificate import Certificate
    from metanet.score.preservation import Preservation

DESCRIPTION = """\
Distil a trained network into a weight field: one set of numbers from which a network of any width is read in
milliseconds. The network is the teacher, at full width and at all others, and no labels are needed; every width of the
table is then certified by running the network that was read beside the one that was given.

Of a data set by its name the field learns on the training images and is scored on the test images; of a file, every
second input each. A run that was interrupted goes on where it was if the same command is given again.
"""

EXAMPLES = """\
examples:
  metanet field fit weights.safetensors --data digits --out field
  metanet field fit weights.safetensors --data mnist --rank 24 --bits 8 --out small-field
  metanet field fit weights.safetensors --data images.npz --low 0.5 --kind mlp --out field
  metanet field sample field --width 0.5 --out half
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="CHECKPOINT", type=Path, help="the network, at full width")
    add_reading_arguments(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, required=True, help="where the field goes; must not exist"
    )
    add_data_arguments(parser, needed=True)
    parser.add_argument("--spaces", metavar="NAMES", help="only these vary, by commas (metanet inspect names them)")
    parser.add_argument("--kind", choices=("knots", "mlp"), default="knots", help="of field (%(default)s)")
    parser.add_argument("--knots", metavar="K", type=positive, help="knots per space; one per unit by default")
    parser.add_argument("--rank", metavar="R", type=positive, help="weights as products of this rank, to store less")
    parser.add_argument("--hidden", metavar="H", type=_few, help="units of the networks of --kind mlp (32)")
    parser.add_argument(
        "--width-knots",
        metavar="V",
        type=_few,
        default=4,
        help="widths with own biases, gains, statistics (%(default)s)",
    )
    parser.add_argument(
        "--way", choices=("cut", "spread"), default="cut", help="narrow networks: see the docs (%(default)s)"
    )
    parser.add_argument("--order", choices=("importance", "smooth", "none"), help="of units, before anything else")
    parser.add_argument("--low", metavar="RATIO", type=above_zero, default=0.25, help="narrowest width (%(default)s)")
    parser.add_argument("--high", metavar="RATIO", type=above_zero, default=1.0, help="widest width (%(default)s)")
    parser.add_argument("--steps", metavar="N", type=positive, default=3000, help="of training (%(default)s)")
    parser.add_argument(
        "--rate", metavar="RATE", type=above_zero, help="highest learning rate (0.03; for --kind mlp 0.005)"
    )
    parser.add_argument(
        "--mixed", metavar="N", type=count, default=3, help="sums of two inputs to learn on, for each (%(default)s)"
    )
    parser.add_argument(
        "--noise", metavar="SPACINGS", type=not_negative, default=0.0, help="of coordinates (%(default)s)"
    )
    parser.add_argument(
        "--bits", type=int, choices=(8, 32), default=32, help="that tables are stored with (%(default)s)"
    )
    parser.add_argument("--seed", metavar="N", type=count, default=0, help="of everything that is drawn (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _few(text: str) -> int:
    """A number of things that are stored many times over."""
    return int(number(text, "a whole number from 1 to 4096", lambda value: 1 <= value <= 4096, int))


def run(arguments: argparse.Namespace) -> int:
    from metanet.errors import FieldError
    from metanet.fields import Training, certify, distil, quantised, save_field

    if arguments.out.exists():
        raise FieldError("exists already", where=arguments.out, hint="give a new name")
    if not arguments.out.parent.is_dir():
        raise FieldError("the folder above it does not exist", where=arguments.out, hint="make it first")
    recipe, spaces = _recipe(arguments), _spaces(arguments.spaces)
    checkpoint = load_named(arguments.file, arguments)
    # Fields are trained in float32, whatever the precision of the file.
    model, example = checkpoint.model().float(), checkpoint.architecture.example_inputs()
    parts = two_parts(checkpoint.architecture, arguments.data, arguments.labels, arguments.rows)
    classes, accuracy = _checked(model, parts)
    inputs = parts.inputs.float() if parts.inputs.is_floating_point() else parts.inputs
    data = Training(inputs, parts.labels, classes=classes, spaces=spaces)
    state_file = arguments.out.parent / f".{arguments.out.name}.training-state.safetensors"
    steps: list[int] = []
    with bar("training") as move:

        def moved(done: int, total: int) -> None:
            steps.append(done)
            move(done, total)

        stored = distil(model, checkpoint.spec, example, data, recipe, checkpoint.architecture, state_file, moved)
    if steps[:1] != [1]:
        say(f"training went on where {state_file} had left it")
    widths = _widths(stored)
    options = (model, example, parts.scored, parts.scored_labels, widths, parts.origin, arguments.seed)
    exact: dict[str, Certificate] = {}
    if arguments.bits == 8:
        exact = certify(stored, *options)
        stored = quantised(stored)
    certificates = certify(stored, *options)
    made = type(stored)(stored.field, stored.widths, stored.spaces, stored.architecture, stored.record, certificates)
    save_field(arguments.out, made, arguments.bits)
    state_file.unlink(missing_ok=True)
    told = _told(arguments, made, certificates, exact, sum(t.numel() for t in checkpoint.state.values()))
    told["accuracy"] = accuracy
    if arguments.json:
        print_json(told)
    else:
        print(_text(told))
    return 0


def _spaces(text: str | None) -> tuple[str, ...] | None:
    from metanet.errors import ConfigError

    if text is None:
        return None
    found = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not found:
        raise ConfigError("--spaces names none", hint="name them as metanet inspect does, by commas")
    return found


def _checked(model: nn.Module, parts: Parts) -> tuple[bool, float | None]:
    """Whether the network tells classes, and how many of the scored inputs it tells right.

    Both parts are run before anything is learned, so that inputs and labels which do not fit are refused at once.
    """
    from metanet.errors import FieldError, ScoreError
    from metanet.score import compare

    scores = []
    for inputs, labels in ((parts.inputs, parts.labels), (parts.scored, parts.scored_labels)):
        try:
            scores.append(compare(model, model, inputs, labels, layers=None, line=0, resamples=0).main)
        except ScoreError as error:
            reason = error.reason.replace("network a ", "the network ")
            raise FieldError(reason, where="--data", hint=error.hint) from None
        wrong = scores[-1].not_finite[0]
        if wrong:
            raise FieldError(
                f"the network's answers to {wrong} of {len(inputs)} inputs are not finite",
                where="--data",
                hint="look for NaN and infinity in the inputs and the network",
            )
    accuracy = scores[1].accuracy
    return scores[1].kind == "classes", None if accuracy is None else accuracy[0]


def _recipe(arguments: argparse.Namespace) -> Recipe:
    from dataclasses import replace

    from metanet.errors import ConfigError
    from metanet.fields import Recipe, Sampling
    from metanet.fields.distil import SETTINGS

    options: dict[str, Any] = {"width_knots": arguments.width_knots}
    kinds = {"knots": ("knots", "rank"), "mlp": ("hidden",)}
    for kind, names in kinds.items():
        for name in names:
            value = getattr(arguments, name)
            if value is not None and kind != arguments.kind:
                raise ConfigError(f"--{name} with --kind {arguments.kind}", hint=f"it belongs to --kind {kind}")
            if value is not None:
                options[name] = value
    rate = arguments.rate or {"knots": SETTINGS.rate, "mlp": 0.005}[arguments.kind]
    settings = replace(
        SETTINGS, steps=arguments.steps, rate=rate, low=arguments.low, high=arguments.high, noise=arguments.noise
    )
    sampling = Sampling(arguments.way, "copies")
    return Recipe(arguments.kind, options, sampling, arguments.order, settings, arguments.mixed, arguments.seed)


def _widths(stored: StoredField) -> list[float]:
    """Widths of the table: eighths within the range, and its ends."""
    low, high = stored.widths
    return sorted({low, high, 1.0, *(number / 8 for number in range(1, 33) if low <= number / 8 <= high)})


def _told(
    arguments: argparse.Namespace,
    stored: StoredField,
    certificates: dict[str, Certificate],
    exact: dict[str, Certificate],
    numbers: int,
) -> dict[str, Any]:
    from metanet.fields.folder import packed

    tensors = packed(stored.field, arguments.bits)
    return {
        "file": str(arguments.file),
        "out": str(arguments.out),
        "stored": sum(tensor.numel() for tensor in tensors.values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        "network": numbers,
        "variation": stored.record["variation"],
        "order": stored.record["order"],
        "inputs": next(iter(certificates.values())).preservation.origin,
        "with_32_bits": {name: _distances(each.preservation) for name, each in exact.items()},
        "certificates": {name: each.to_json() for name, each in certificates.items()},
    }


def _distances(score: Preservation) -> dict[str, float | None]:
    """What the table shows of a network beside the one that was given."""
    accuracy = score.main.accuracy
    return {
        "accuracy": None if accuracy is None else accuracy[1],
        "KL": score.kl,
        "agreement": score.agreement,
        "relative L2": score.relative_l2 if score.kl is None else None,
    }


def _text(told: dict[str, Any]) -> str:
    from metanet.score.certificate import Certificate

    coarse = told["with_32_bits"]
    found: dict[str, dict[str, float | None]] = {}
    for width, value in told["certificates"].items():
        certificate = Certificate.from_json(value)
        numbers = {"width": float(width), "parameters": int(certificate.after["parameters"] or 0)}
        found[width] = {**numbers, **_distances(certificate.preservation)}
        if coarse:
            distance = "KL" if coarse[width]["KL"] is not None else "relative L2"
            found[width][f"{distance} with 32 bits"] = coarse[width][distance]
    # Nothing is said of what cannot be known: accuracy without labels, classes of values.
    columns = [name for name in next(iter(found.values())) if any(row[name] is not None for row in found.values())]
    before, after = told["variation"]
    lines = [
        table(columns, [[row[name] for name in columns] for row in found.values()], "  "),
        "",
        f"scored beside the network on {told['inputs']}"
        + (f"; its own accuracy is {told['accuracy']:.4f}" if told["accuracy"] is not None else ""),
        f"{told['stored']:,} numbers, {told['bytes']:,} bytes; the network has {told['network']:,} numbers",
        f"order of units: {told['order']}, total variation {before:.4g} -> {after:.4g}",
        f"written: {told['out']}",
    ]
    return "\n".join(lines)
