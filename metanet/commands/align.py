"""How is one network brought into the basis of another, so that their weights can be compared or averaged?"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._reading import add_reading_arguments, load_named
from metanet.commands._terminal import count, print_json, table

if TYPE_CHECKING:
    from torch import Tensor

    from metanet.checkpoint import Checkpoint
    from symmetry import GroupElement

DESCRIPTION = """\
Bring a network into the basis of a reference: permute its units, change their scales and signs and turn its matrices,
as far as its symmetries allow, so that its weights come close to those of the reference. What it computes stays the
same; that is checked by running it before and after, and the exit code is 1 if its outputs have moved.

Both files must hold networks of one architecture.
"""

EXAMPLES = """\
examples:
  metanet align reference.safetensors other.safetensors --out aligned.safetensors
  metanet align reference.pt other.pt --activation relu --method frank_wolfe --json
"""

TOLERANCE = 1e-9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REFERENCE", type=Path, help="the network to come close to")
    parser.add_argument("file", metavar="FILE", type=Path, help="the network that is brought there")
    add_reading_arguments(parser)
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="write the aligned network, in the kind of file it came from"
    )
    parser.add_argument(
        "--method", choices=("weights", "frank_wolfe"), default="weights", help="how units are matched (%(default)s)"
    )
    parser.add_argument("--starts", metavar="N", type=count, default=2, help="starts, the best is kept (%(default)s)")
    parser.add_argument(
        "--seed", metavar="N", type=count, default=0, help="of the starts from the third on (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, the group element too")


def run(arguments: argparse.Namespace) -> int:
    import torch

    import symmetry
    from metanet.errors import CheckpointError

    reference, other = load_named(arguments.reference, arguments), load_named(arguments.file, arguments)
    if reference.spec != other.spec:
        raise CheckpointError(
            f"another architecture than {arguments.reference} ({_shape(reference)}, here {_shape(other)})",
            file=arguments.file,
            hint="align networks of one architecture; symmetry.match_widths compares different widths",
        )
    generator = torch.Generator().manual_seed(arguments.seed)
    element = symmetry.align(
        other.spec, reference.state, other.state, arguments.method, max(arguments.starts, 1), generator
    )
    aligned = other.spec.act(element, other.state)
    told: dict[str, Any] = {
        "reference": str(arguments.reference),
        "file": str(arguments.file),
        "method": arguments.method,
        "starts": max(arguments.starts, 1),
        "seed": arguments.seed,
        "distance_before": distance(reference.state, other.state),
        "distance_after": distance(reference.state, aligned),
        "output_error": output_error(other, element),
        "moved": {
            name: int((order != torch.arange(order.shape[-1])).sum()) for name, order in element.permutations.items()
        },
        "units": {name: order.numel() for name, order in element.permutations.items()},
    }
    same = told["output_error"] <= TOLERANCE
    if arguments.out is not None and same:
        other.save(arguments.out, aligned)
    told["out"] = None if arguments.out is None or not same else str(arguments.out)
    if arguments.json:
        print_json({**told, "element": element.to_json()})
    else:
        print(as_text(told, element))
    return 0 if same else 1


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Distance of all weights, over the norm of the first network's."""
    pairs = [(value.double(), second[name].double()) for name, value in first.items() if value.is_floating_point()]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    return math.sqrt(apart / max(sum(float(a.square().sum()) for a, _ in pairs), 1e-300))


def output_error(checkpoint: Checkpoint, element: GroupElement) -> float:
    """How far an element moves the outputs of a network in float64, over their spread on normal inputs."""
    import torch
    from torch.utils import _pytree as pytree

    wide = {k: v.double() if v.is_floating_point() else v for k, v in checkpoint.state.items()}
    model = checkpoint.architecture.build().double().eval()
    inputs = tuple(
        item.double() if isinstance(item, torch.Tensor) and item.is_floating_point() else item
        for item in checkpoint.architecture.example_inputs()
    )
    flat = []
    for state in (wide, checkpoint.spec.act(element, wide)):
        with torch.no_grad():
            made = pytree.tree_leaves(torch.func.functional_call(model, state, inputs))
        flat.append(torch.cat([leaf.reshape(-1) for leaf in made if isinstance(leaf, torch.Tensor)]))
    spread = float((flat[0] - flat[0].mean()).square().mean().sqrt())
    return float((flat[1] - flat[0]).abs().max()) / (spread or 1.0)


def as_text(told: Mapping[str, Any], element: GroupElement) -> str:
    """For people."""
    columns = ["space", "units", "moved"]
    rows = [[name, told["units"][name], moved] for name, moved in told["moved"].items()]
    facts = [
        ("reference", told["reference"]),
        ("file", told["file"]),
        ("method", f"{told['method']}, best of {told['starts']} starts"),
        (
            "distance",
            f"{told['distance_before']:.4f} before, {told['distance_after']:.4f} after, of the reference's norm",
        ),
        ("element", str(element)),
    ]
    lines = [f"{name:<10} {value}" for name, value in facts]
    lines += ["", table(columns, rows, "  ") if rows else "  no hidden units: nothing can be permuted", ""]
    if told["output_error"] <= TOLERANCE:
        lines.append(f"It computes the same: its outputs moved by {told['output_error']:.1e} of their spread.")
    else:
        lines.append(
            f"NOT the same: its outputs moved by {told['output_error']:.1e} of their spread; nothing was written."
        )
    if told["out"]:
        lines.append(f"Written to {told['out']}.")
    return "\n".join(lines)


def _shape(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.parameters:,} numbers in {len(checkpoint.state)} tensors"
