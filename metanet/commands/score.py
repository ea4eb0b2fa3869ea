"""How far apart are the functions of two networks on disk? Both are run, and the answer is measured."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._comparison_values import measures, score_values
from metanet.commands._reading import add_reading_arguments, load_named
from metanet.commands._score_data import SETS, read_data
from metanet.commands._terminal import count, not_negative, positive, print_json, share, table

if TYPE_CHECKING:
    from metanet.checkpoint import Checkpoint
    from metanet.score import Preservation

DESCRIPTION = f"""\
Measure how far apart the functions of two networks are, by running both on the same inputs: largest error,
divergence, agreement, change of accuracy where labels are known, similarity of layers, and the barrier on the straight
line between the weights where their shapes agree. A and B may have other widths, depths and kinds, as long as inputs
and outputs fit.

--data names a file of arrays (.npy, .npz, .safetensors; FILE:ARRAY picks one of several) or a set:
{", ".join(SETS)}.
Without it, inputs are made up as the architecture of A describes them, and the answer says so.

The exit code is 1 if a check that was asked for fails (--exact, --min-agreement, --max-kl), or if a network answers
with something that is no number.
"""

EXAMPLES = """\
examples:
  metanet score before.safetensors after.safetensors --data digits
  metanet score before.safetensors narrow --data digits --report both.html
  metanet score before.safetensors after.safetensors --data images.npz:x --labels images.npz:y --min-agreement 0.98
  metanet score before.safetensors after.safetensors --exact --json
  metanet score before.pt after.pt --factory models:large --other-factory models:small --data inputs.npy
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", type=Path, help="the reference")
    parser.add_argument("b", metavar="B", type=Path, help="the network that is held against it")
    add_reading_arguments(parser)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--other-architecture", metavar="JSON", type=Path, help="for B, where it is another one")
    other.add_argument("--other-factory", metavar="MODULE:FUNCTION", help="for B, where it is another one")
    other.add_argument("--other-activation", metavar="NAME", help="for B, where it is another one")
    parser.add_argument("--data", metavar="FILE|NAME", help="the inputs: a file of arrays, or a set by its name")
    parser.add_argument("--labels", metavar="FILE", help="classes or targets, if the data do not bring them")
    parser.add_argument("--rows", metavar="N", type=positive, help="only the first N inputs")
    parser.add_argument(
        "--made-up", metavar="N", type=positive, default=4096, help="inputs to make up without --data (%(default)s)"
    )
    parser.add_argument(
        "--kind",
        choices=("auto", "classes", "probabilities", "binary", "values"),
        default="auto",
        help="how the output is read (%(default)s)",
    )
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="to run in (%(default)s)")
    parser.add_argument(
        "--features",
        choices=("standard", "linear", "whitened", "none"),
        default="standard",
        help="how features of layers are prepared for CKA; none leaves layers out (%(default)s)",
    )
    parser.add_argument("--confidence", metavar="SHARE", type=share, default=0.95, help="of intervals (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=count, default=0, help="of inputs and resamples (%(default)s)")
    parser.add_argument("--exact", action="store_true", help="fail unless the verdict is exact")
    parser.add_argument("--min-agreement", metavar="SHARE", type=share, help="fail below this agreement")
    parser.add_argument("--max-kl", metavar="NATS", type=not_negative, help="fail above this divergence")
    parser.add_argument("--report", metavar="PAGE", type=Path, help="also write a page with both networks side by side")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from metanet.score import ProbeInputs, compare

    a, b = load_named(arguments.a, arguments), _other(arguments)
    if arguments.data is None:
        inputs: Any = ProbeInputs.of(a, arguments.rows or arguments.made_up, arguments.seed)
        labels, origin = None, None
        if arguments.labels is not None:
            from metanet.errors import ConfigError

            raise ConfigError("--labels without --data", hint="made-up inputs have no labels")
    else:
        inputs, labels, origin = read_data(a.architecture, arguments.data, arguments.labels, arguments.rows)
    found = compare(
        a,
        b,
        inputs,
        labels,
        origin=origin,
        kind=arguments.kind,
        dtype=torch.float64 if arguments.dtype == "float64" else torch.float32,
        layers=None if arguments.features == "none" else "auto",
        features="standard" if arguments.features == "none" else arguments.features,
        confidence=arguments.confidence,
        seed=arguments.seed,
    )
    failed = failures(found, arguments.exact, arguments.min_agreement, arguments.max_kl)
    if arguments.report is not None:
        from metanet.report import render_report

        names = arguments.a.name, arguments.b.name
        render_report(score_values(names, (a.parameters, b.parameters), found, failed), arguments.report)
    if arguments.json:
        page = None if arguments.report is None else str(arguments.report)
        told = {"a": str(arguments.a), "b": str(arguments.b), **found.to_json(), "failed": failed, "report": page}
        print_json(told)
    else:
        print(as_text(found, a, b))
        for reason in failed:
            print(f"FAILED: {reason}")
        if arguments.report is not None:
            print(f"page: {arguments.report}")
    return 1 if failed else 0


def _other(arguments: argparse.Namespace) -> Checkpoint:
    """The second network, read as its own options say, or like the first."""
    given = argparse.Namespace(**vars(arguments))
    own = {name: getattr(arguments, f"other_{name}") for name in ("architecture", "factory", "activation")}
    if any(value is not None for value in own.values()):
        vars(given).update(own)
    return load_named(arguments.b, given)


def failures(
    found: Preservation, exact: bool = False, min_agreement: float | None = None, max_kl: float | None = None
) -> list[str]:
    """Which of the checks that were asked for have failed, in words.

    Raises:
        ConfigError: for a check of something that the output does not have.
    """
    from metanet.errors import ConfigError

    failed = []
    if found.verdict == "not finite":
        one, two = (max(output.not_finite[side] for output in found.outputs) for side in (0, 1))
        failed.append(f"answers that are no numbers: A on {one} inputs, B on {two}")
    if exact and not found.exact:
        failed.append(f"not exact: error / spread {found.error:.1e} in {found.dtype}, at most {found.tolerance:.0e}")
    for option, limit, value in (("--min-agreement", min_agreement, found.agreement), ("--max-kl", max_kl, found.kl)):
        if limit is not None and value is None:
            raise ConfigError(f"{option}: the output is read as {found.main.kind}", hint="say otherwise with --kind")
    if min_agreement is not None and found.agreement is not None and not found.agreement >= min_agreement:
        failed.append(f"agreement {found.agreement:.4f} below {min_agreement}")
    if max_kl is not None and found.kl is not None and not found.kl <= max_kl:
        failed.append(f"divergence {found.kl:.4g} above {max_kl}")
    return failed


def as_text(found: Preservation, a: Checkpoint, b: Checkpoint) -> str:
    """For people."""
    lines = [
        f"A       {a.source} ({a.parameters:,} numbers)",
        f"B       {b.source} ({b.parameters:,} numbers)",
        f"inputs  {found.origin}",
        f"run in  {found.dtype}",
        "",
        f"{found.verdict}: error / spread {found.error:.1e} (exact at most {found.tolerance:.0e})",
        "",
    ]
    for output in found.outputs:
        if output.name:
            lines.append(f"output {output.name}")
        rows = measures(output) + (
            [["barrier", found.barrier, None, None]] if output is found.main and found.line else []
        )
        lines.append(table(["measure", "value", f"{found.confidence:.0%} from", "to"], rows))
    if found.layers:
        lines += ["", f"similarity of layers: debiased CKA, {found.features} features"]
        names = [
            [layer.a, layer.b, layer.sizes[0], layer.sizes[1], layer.cka.value, layer.cka.low, layer.cka.high]
            for layer in found.layers
        ]
        lines.append(table(["layer of A", "of B", "size", "size", "CKA", "from", "to"], names))
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])
