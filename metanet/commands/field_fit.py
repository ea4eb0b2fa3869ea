"""How does a trained network on disk become a weight field, from which a network of any width is read?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._field_data import add_data_arguments, two_parts
from metanet.commands._reading import add_reading_arguments, load_named
from metanet.commands._terminal import bar, count, positive, print_json, table

if TYPE_CHECKING:
    from metanet.fields import Recipe, StoredField
    from metanet.score.certificate import Certificate

DESCRIPTION = """\
Distil a trained network into a weight field: one set of numbers from which a network of any width is read in
milliseconds. The network is the teacher, at full width and at all others; every width of the table is then certified by
running the network that was read beside the one that was given.

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
    parser.add_argument("--hidden", metavar="H", type=positive, help="units of the networks of --kind mlp (32)")
    parser.add_argument(
        "--width-knots",
        metavar="V",
        type=positive,
        default=4,
        help="widths with own biases, gains, statistics (%(default)s)",
    )
    parser.add_argument(
        "--way", choices=("cut", "spread"), default="cut", help="narrow networks: see the docs (%(default)s)"
    )
    parser.add_argument("--order", choices=("importance", "smooth", "none"), help="of units, before anything else")
    parser.add_argument("--low", metavar="RATIO", type=float, default=0.25, help="narrowest width (%(default)s)")
    parser.add_argument("--high", metavar="RATIO", type=float, default=1.0, help="widest width (%(default)s)")
    parser.add_argument("--steps", metavar="N", type=positive, default=3000, help="of training (%(default)s)")
    parser.add_argument("--rate", metavar="RATE", type=float, default=0.05, help="highest learning rate (%(default)s)")
    parser.add_argument("--noise", metavar="SPACINGS", type=float, default=0.0, help="of coordinates (%(default)s)")
    parser.add_argument(
        "--bits", type=int, choices=(8, 32), default=32, help="that tables are stored with (%(default)s)"
    )
    parser.add_argument("--seed", metavar="N", type=count, default=0, help="of everything that is drawn (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    from metanet.errors import FieldError
    from metanet.fields import Training, certify, distil, quantised, save_field

    if arguments.out.exists():
        raise FieldError("exists already", where=arguments.out, hint="give a new name")
    if not arguments.out.parent.is_dir():
        raise FieldError("the folder above it does not exist", where=arguments.out, hint="make it first")
    recipe = _recipe(arguments)
    checkpoint = load_named(arguments.file, arguments)
    model, example = checkpoint.model(), checkpoint.architecture.example_inputs()
    parts = two_parts(checkpoint.architecture, arguments.data, arguments.labels, arguments.rows)
    spaces = None
    if arguments.spaces is not None:
        spaces = tuple(name.strip() for name in arguments.spaces.split(",") if name.strip())
    whole = parts.labels is not None and not parts.labels.is_floating_point()
    output = model(parts.scored[:2])
    classes = whole or (parts.labels is None and getattr(output, "ndim", 0) == 2 and output.shape[1] > 1)
    data = Training(parts.inputs, parts.labels, classes=classes, spaces=spaces)
    state_file = arguments.out.parent / f".{arguments.out.name}.training-state.safetensors"
    with bar("training") as move:
        stored = distil(model, checkpoint.spec, example, data, recipe, checkpoint.architecture, state_file, move)
    widths = _widths(stored)
    options = (model, example, parts.scored, parts.scored_labels, widths, parts.origin, arguments.seed)
    loss: dict[str, float] = {}
    if arguments.bits == 8:
        exact = certify(stored, *options)
        stored = quantised(stored)
        loss = {name: each.preservation.error for name, each in exact.items()}
    certificates = certify(stored, *options)
    made = type(stored)(stored.field, stored.widths, stored.spaces, stored.architecture, stored.record, certificates)
    save_field(arguments.out, made, arguments.bits)
    state_file.unlink(missing_ok=True)
    told = _told(arguments, made, certificates, loss, sum(t.numel() for t in checkpoint.state.values()))
    if arguments.json:
        print_json(told)
    else:
        print(_text(told))
    return 0


def _recipe(arguments: argparse.Namespace) -> Recipe:
    from metanet.errors import ConfigError
    from metanet.fields import FieldSettings, Recipe, Sampling

    options: dict[str, Any] = {"width_knots": arguments.width_knots}
    kinds = {"knots": ("knots", "rank"), "mlp": ("hidden",)}
    for kind, names in kinds.items():
        for name in names:
            value = getattr(arguments, name)
            if value is not None and kind != arguments.kind:
                raise ConfigError(f"--{name} with --kind {arguments.kind}", hint=f"it belongs to --kind {kind}")
            if value is not None:
                options[name] = value
    settings = FieldSettings(
        steps=arguments.steps,
        rate=arguments.rate if arguments.kind == "knots" else arguments.rate / 10,
        low=arguments.low,
        high=arguments.high,
        noise=arguments.noise,
        task=0.5,
        distil=0.5,
        average=0.995,
    )
    return Recipe(arguments.kind, options, Sampling(arguments.way, "copies"), arguments.order, settings, arguments.seed)


def _widths(stored: StoredField) -> list[float]:
    """Widths of the table: eighths within the range, and its ends."""
    low, high = stored.widths
    return sorted({low, high, 1.0, *(number / 8 for number in range(1, 33) if low <= number / 8 <= high)})


def _told(
    arguments: argparse.Namespace,
    stored: StoredField,
    certificates: dict[str, Certificate],
    before: dict[str, float],
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
        "before_8_bits": before,
        "certificates": {name: each.to_json() for name, each in certificates.items()},
    }


def _text(told: dict[str, Any]) -> str:
    from metanet.score.certificate import Certificate

    rows = []
    for width, value in told["certificates"].items():
        certificate = Certificate.from_json(value)
        score = certificate.preservation
        row = [float(width), int(certificate.after["parameters"] or 0), score.kl, score.agreement, score.error]
        rows.append(row + ([told["before_8_bits"][width]] if told["before_8_bits"] else []))
    columns = ["width", "parameters", "KL", "agreement", "error / spread"]
    before, after = told["variation"]
    lines = [
        table(columns + (["error with 32 bits"] if told["before_8_bits"] else []), rows, "  "),
        "",
        f"{told['stored']:,} numbers, {told['bytes']:,} bytes; the network has {told['network']:,} numbers",
        f"order of units: {told['order']}, total variation {before:.4g} -> {after:.4g}",
        f"scored on {told['inputs']}",
        f"written: {told['out']}",
    ]
    return "\n".join(lines)
