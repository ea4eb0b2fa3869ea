"""What is in a checkpoint file, and which changes of its weights leave its function alone?"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._reading import add_reading_arguments, load_named
from metanet.commands._terminal import count, print_json

if TYPE_CHECKING:
    from metanet.checkpoint import Architecture, Checkpoint
    from symmetry import NullDirections, SymmetryReport, Verification

DESCRIPTION = """\
Say what is in a checkpoint file: its tensors, the architecture and where that is known from, and its symmetry group,
space by space: which units can be permuted, rescaled or flipped without changing what the network computes, which are
dead and which are twins.

With --verify the claim is proved: random elements of the group are applied, both networks are run, and the exit code
is 1 if their outputs differ. With --html a page is written with a figure of the spaces and the weights between them.
With --null-directions (small networks) directions beyond the group that change nothing at first order are counted.
"""

EXAMPLES = """\
examples:
  metanet inspect weights.safetensors --verify
  metanet inspect agent.zip --json
  metanet inspect weights.safetensors --html weights.html
  metanet inspect weights.pt --factory my_project.models:make
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a checkpoint file, or a folder that holds one")
    add_reading_arguments(parser)
    parser.add_argument("--verify", action="store_true", help="apply random group elements and run both networks")
    parser.add_argument("--trials", metavar="N", type=count, default=8, help="group elements to apply (%(default)s)")
    parser.add_argument("--html", metavar="PAGE", type=Path, help="also write a page with a figure of the spaces")
    parser.add_argument(
        "--null-directions",
        action="store_true",
        help="count what else changes nothing at first order (up to 2,000 parameters)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    import symmetry

    checkpoint = load_named(arguments.file, arguments)
    report = symmetry.analyze(checkpoint.spec, checkpoint.state)
    verification = verify(checkpoint, arguments.trials) if arguments.verify else None
    null = null_directions(checkpoint) if arguments.null_directions else None
    if arguments.html is not None:
        from metanet.commands._inspect_values import page_values
        from metanet.report.inspect import render_inspection

        values = page_values(checkpoint, report, file_facts(checkpoint), group_summary(report), verification, null)
        render_inspection(values, arguments.html)
    if arguments.json:
        page = None if arguments.html is None else str(arguments.html)
        print_json(as_json(checkpoint, report, verification, null) | {"page": page})
    else:
        print(as_text(checkpoint, report, verification, null))
        if arguments.html is not None:
            print(f"\npage: {arguments.html}")
    return 0 if verification is None or verification.passed else 1


def verify(checkpoint: Checkpoint, trials: int) -> Verification:
    """Run the network before and after random elements of its group."""
    import symmetry

    inputs = checkpoint.architecture.example_inputs()
    return symmetry.verify(checkpoint.model(), inputs, checkpoint.spec, trials=trials)


def null_directions(checkpoint: Checkpoint) -> NullDirections:
    """What changes nothing at first order beyond the group."""
    import symmetry

    return symmetry.null_directions(checkpoint.model(), checkpoint.architecture.example_inputs(), checkpoint.spec)


def file_facts(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """What is in the file and where that is known from."""
    source = checkpoint.source
    facts = [
        ("file", f"{source.path} ({source.kind}" + (f", under '{source.key}')" if source.key else ")")),
        ("holds", f"{checkpoint.parameters:,} numbers in {_tensors(checkpoint)}"),
        ("architecture", describe_architecture(checkpoint.architecture)),
        ("known from", checkpoint.architecture.provenance),
    ]
    if set(source.devices) - {"cpu"}:
        facts.append(("saved on", ", ".join(source.devices)))
    if source.skipped:
        facts.append(("not read", _capped(source.skipped)))
    if checkpoint.extras:
        facts.append(("without part", _capped(checkpoint.extras)))
    for name, value in checkpoint.metrics.items():
        facts.append((f"stored {name}", f"{value:.4f}" if isinstance(value, float) else str(value)))
    return facts


def as_text(
    checkpoint: Checkpoint,
    report: SymmetryReport,
    verification: Verification | None = None,
    null: NullDirections | None = None,
) -> str:
    """For people."""
    facts = file_facts(checkpoint)
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts]
    summary = "; ".join(f"{label} {value}" for label, value in group_summary(report))
    lines += ["", f"Changes of its weights that leave its function alone: {summary}.", ""]
    lines += space_lines(report) or ["  no hidden units: nothing can be permuted"]
    lines += [_wrapped(f"also free: {factor}", "  ") for factor in report.others()]
    if report.not_finite:
        lines.append(f"  values that are not finite in {_capped(report.not_finite)}: single units were not looked at")
    lines += [f"  pinned: {pin}" for pin in report.pinned]
    gauges = [space.gauge for space in report.spaces if space.gauge is not None]
    if gauges:
        worst = max((space for space in report.spaces if space.gauge is not None), key=lambda space: space.gauge or 0)
        lines += [
            "",
            f"Off the canonical gauge (incoming norms 1): scales by a factor of {math.exp(_rms(gauges)):.2f} (root "
            f"mean square of logarithms), most in {worst.name}, {math.exp(worst.gauge or 0):.2f}.",
        ]
    if null is not None:
        lines += ["", str(null)]
    if verification is not None:
        lines += ["", describe_verification(verification)]
    return "\n".join(lines)


def space_lines(report: SymmetryReport) -> list[str]:
    """The spaces in plain words, repeated layers together; below matrices, how well conditioned they are."""
    from symmetry.analyze import describe_conditions

    lines = []
    for group in report.repeated():
        name = group[0].name if len(group) == 1 else f"{group[0].name} to {group[-1].name} ({len(group)} times)"
        lines.append(_wrapped(f"{name}: {group[0].words}", "  "))
        condition = describe_conditions([space.matrix for space in group if space.matrix is not None])
        if condition:
            lines.append(_wrapped(condition, "    "))
    return lines


def group_summary(report: SymmetryReport) -> list[tuple[str, str]]:
    """The size of the group: what there is of each kind."""
    from symmetry.spec import approximate

    rows = [("permutations", approximate(report.permutation_order))]
    for label, value in (
        ("positive scalings", report.scale_dimension),
        ("sign flips", report.sign_bits),
        ("linear dimensions", report.linear_dimension),
        ("orthogonal dimensions", report.orthogonal_dimension),
    ):
        if value or not label.endswith("dimensions"):
            rows.append((label, f"{value:,}"))
    return rows


def space_table(report: SymmetryReport) -> tuple[list[str], list[list[Any]]]:
    """One row for each set of interchangeable units: what is free in it, and which units are not fully used."""
    from symmetry.analyze import unit_names

    def units(found: Sequence[int | tuple[int, ...]]) -> str | None:
        return f"{len(found)} ({unit_names(found, 6)})" if found else None

    columns = ["space", "units", "scales each", "signs each", "matrices", "activation", "unread", "constant", "twins"]
    matrices = {"linear": "any invertible", "orthogonal": "any orthogonal"}
    rows: list[list[Any]] = [
        [
            space.name + (f" inside each of {', '.join(space.within)}" if space.within else ""),
            space.size,
            space.scales,
            space.signs,
            matrices.get(space.group),
            ", ".join(space.activations) or None,
            units(space.unread),
            units(space.constant),
            "; ".join(unit_names(group).replace(", ", " = ") for group in space.twins[:3]) or None,
        ]
        for space in report.spaces
    ]
    # A column that says nothing of any space only widens the table.
    kept = [i for i in range(len(columns)) if i < 4 or any(row[i] is not None for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def describe_architecture(architecture: Architecture) -> str:
    """The architecture in one line."""
    options = architecture.to_json()["options"]
    if architecture.family != "chains":
        return f"{architecture.family}: " + ", ".join(f"{name} {_option(value)}" for name, value in options.items())
    chains = []
    for chain in options["chains"]:
        activations = ", ".join(dict.fromkeys(name for name in chain["activations"] if name != "identity"))
        widths = "-".join(map(str, chain["widths"]))
        chains.append(f"{chain.get('name', '')} {widths}{f' ({activations})' if activations else ''}".strip())
    return f"{len(chains)} chain{'s' * (len(chains) > 1)} of linear layers: " + ", ".join(chains)


def as_json(
    checkpoint: Checkpoint,
    report: SymmetryReport,
    verification: Verification | None = None,
    null: NullDirections | None = None,
) -> dict[str, Any]:
    """For programs."""
    source = checkpoint.source
    return {
        "file": str(source.path),
        "kind": source.kind,
        "key": source.key,
        "skipped": list(source.skipped),
        "devices": list(source.devices),
        "architecture": checkpoint.architecture.to_json(),
        "parameters": checkpoint.parameters,
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in checkpoint.state.items()
        },
        "extras": list(checkpoint.extras),
        "metrics": dict(checkpoint.metrics),
        "symmetry": report.to_json(),
        "null_directions": None if null is None else null.to_json(),
        "verification": None if verification is None else verification.to_json(),
    }


def describe_verification(verification: Verification) -> str:
    """What a verification found, in a sentence."""
    if not verification.passed and not verification.max_error <= verification.tolerance:
        return f"NOT verified: the output moves by up to {verification.max_error:.1e} of its spread"
    if verification.control_error == float("inf"):
        return "nothing to verify: the group is trivial"
    outcome = "verified" if verification.passed else "NOT verified (the control is too weak)"
    return (
        f"{outcome}: {verification.trials} random elements of the group, and every factor alone, move the output by at "
        f"most {verification.max_error:.1e} of its spread; with one tensor left out, as the control, by "
        f"{verification.control_error:.1e}"
    )


def _tensors(checkpoint: Checkpoint) -> str:
    count = len(checkpoint.state)
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()})
    return f"{count} tensor{'s' * (count != 1)} of {', '.join(kinds)}"


def _capped(names: tuple[str, ...], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _wrapped(text: str, indent: str, width: int = 116) -> str:
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent + "    ", break_long_words=False)


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def _option(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
