"""What is in a checkpoint file, and which changes of its weights leave its function alone?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._reading import add_reading_arguments, load_named
from metanet.commands._terminal import print_json

if TYPE_CHECKING:
    from metanet.checkpoint import Checkpoint
    from symmetry import SymmetryReport, Verification

DESCRIPTION = """\
Say what is in a checkpoint file: its tensors, the architecture and where that is known from, and its symmetry group,
space by space: which units can be permuted, rescaled or flipped without changing what the network computes, which are
dead and which are twins.

With --verify the claim is proved: random elements of the group are applied, both networks are run, and the exit code
is 1 if their outputs differ.
"""

EXAMPLES = """\
examples:
  metanet inspect weights.safetensors --verify
  metanet inspect agent.zip --json
  metanet inspect weights.pt --factory my_project.models:make
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="a checkpoint file, or a folder that holds one")
    add_reading_arguments(parser)
    parser.add_argument("--verify", action="store_true", help="apply random group elements and run both networks")
    parser.add_argument("--trials", metavar="N", type=int, default=8, help="group elements to apply (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    import symmetry

    checkpoint = load_named(arguments.file, arguments)
    report = symmetry.analyze(checkpoint.spec, checkpoint.state)
    verification = verify(checkpoint, arguments.trials) if arguments.verify else None
    if arguments.json:
        print_json(as_json(checkpoint, report, verification))
    else:
        print(as_text(checkpoint, report, verification))
    return 0 if verification is None or verification.passed else 1


def verify(checkpoint: Checkpoint, trials: int) -> Verification:
    """Run the network before and after random elements of its group."""
    import symmetry

    inputs = checkpoint.architecture.example_inputs()
    return symmetry.verify(checkpoint.model(), inputs, checkpoint.spec, trials=trials)


def as_text(checkpoint: Checkpoint, report: SymmetryReport, verification: Verification | None) -> str:
    """For people."""
    facts = [
        ("file", str(checkpoint.source)),
        ("size", f"{checkpoint.parameters:,} numbers in {len(checkpoint.state)} tensors, {_dtypes(checkpoint)}"),
        ("architecture", describe_architecture(checkpoint)),
        ("known from", checkpoint.architecture.provenance),
    ]
    if checkpoint.source.devices and set(checkpoint.source.devices) != {"cpu"}:
        facts.append(("saved on", ", ".join(checkpoint.source.devices)))
    if checkpoint.source.skipped:
        facts.append(("not read", _capped(checkpoint.source.skipped)))
    if checkpoint.extras:
        facts.append(("no part in it", _capped(checkpoint.extras)))
    for name, value in checkpoint.metrics.items():
        facts.append((f"stored {name}", f"{value:.4f}" if isinstance(value, float) else str(value)))
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts]
    lines += ["", report.text()]
    if verification is not None:
        lines += ["", describe_verification(verification)]
    return "\n".join(lines)


def as_json(checkpoint: Checkpoint, report: SymmetryReport, verification: Verification | None) -> dict[str, Any]:
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
        "verification": None if verification is None else verification_values(verification),
    }


def describe_architecture(checkpoint: Checkpoint) -> str:
    """The architecture in one line."""
    return repr(checkpoint.architecture).removeprefix("Architecture(").removesuffix(")")


def verification_values(verification: Verification) -> dict[str, Any]:
    """What a verification found, as plain data."""
    return {
        "passed": bool(verification.passed),
        "max_error": float(verification.max_error),
        "control_error": float(verification.control_error),
    }


def describe_verification(verification: Verification) -> str:
    """What a verification found, in a sentence."""
    outcome = "verified" if verification.passed else "NOT verified"
    return (
        f"{outcome}: random elements of the group move the output by at most {verification.max_error:.1e} of its spread; "
        f"with one parameter left out, as the control, by {verification.control_error:.1e}"
    )


def _dtypes(checkpoint: Checkpoint) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()}))


def _capped(names: tuple[str, ...], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
