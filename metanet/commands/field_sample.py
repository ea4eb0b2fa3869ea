"""How is a network of a chosen width read from a weight field on disk?"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._field_data import add_data_arguments, add_size_arguments, sizes_by_name, two_parts
from metanet.commands._terminal import count, not_negative, positive, print_json

if TYPE_CHECKING:
    from metanet.checkpoint import Architecture
    from metanet.fields import StoredField

DESCRIPTION = """\
Read a network of any width from a field that `metanet field fit` wrote. The folder that comes out is a checkpoint like
any other. With --data, running statistics of batch norms are estimated again for these sizes: they are stored with the
field for some widths only, and interpolated between.
"""

EXAMPLES = """\
examples:
  metanet field sample field --width 0.5 --out half
  metanet field sample field --sizes layers.0=20,layers.1=12 --out other
  metanet field sample field --width 2 --extrapolate --out twice
  metanet score weights.safetensors half --data digits
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FIELD", type=Path, help="a folder of metanet field fit")
    add_size_arguments(parser)
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="where it goes; must not exist")
    parser.add_argument("--factory", metavar="MODULE:FUNCTION", help="the network of full width, if no family has it")
    add_data_arguments(parser, needed=False)
    parser.add_argument(
        "--noise", metavar="SPACINGS", type=not_negative, default=0.0, help="of coordinates (%(default)s)"
    )
    parser.add_argument("--draws", metavar="N", type=positive, default=1, help="of the noise, averaged (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=count, default=0, help="of the noise (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from metanet.fields import Skeletons, open_field, sizes_of
    from metanet.fields.fitting import check_finite, check_numbers, check_range, check_sizes
    from metanet.morph import cost, recalibrate

    _check_options(arguments)
    stored = open_field(arguments.folder)
    architecture = _architecture(arguments, stored)
    spec = stored.field.spec
    if arguments.width is not None:
        sizes = sizes_of(spec, arguments.width, stored.spaces)
    else:
        sizes = sizes_by_name(arguments.sizes)
        check_sizes(spec, sizes)
    if not arguments.extrapolate:
        check_range(spec, sizes, stored.widths)
    check_numbers(spec, sizes)
    model, example = architecture.build().eval(), architecture.example_inputs()
    stored.field.check_model(model)
    generator = torch.Generator().manual_seed(arguments.seed)
    began = time.perf_counter()
    with torch.no_grad():
        state = stored.field(None, sizes, arguments.noise, generator, arguments.draws)
    milliseconds = 1e3 * (time.perf_counter() - began)
    check_finite(state, arguments.folder)
    made = Skeletons(model, spec, example).get(state, sizes).eval()
    parts = None
    if arguments.data is not None:
        parts = two_parts(architecture, arguments.data, arguments.labels, arguments.rows)
    statistics = "none"
    if stored.field.statistics():
        statistics = "stored with the field, interpolated"
        if parts is not None:
            recalibrate(made, parts.batches())
            statistics = f"estimated on {len(parts.inputs[:2048])} inputs"
    told: dict[str, Any] = {
        "out": str(arguments.out),
        "sizes": {space.name: sizes.get(space.name, space.size) for space in spec.spaces},
        "cost": cost(made, example).to_json(),
        "generate_ms": milliseconds,
        "statistics": statistics,
    }
    _write(arguments.out, made.state_dict(), architecture, told)
    if arguments.json:
        print_json(told)
    else:
        print(f"{told['cost']['parameters']:,} parameters, written by the field in {milliseconds:.1f} ms")
        print("sizes: " + ", ".join(f"{name} {size}" for name, size in told["sizes"].items()))
        if statistics != "none":
            print(f"running statistics: {statistics}")
        print(f"written: {arguments.out}")
    return 0


def _check_options(given: argparse.Namespace) -> None:
    """Whether the options go together, and what will be written can be, before any work is done."""
    from metanet.errors import ConfigError, FieldError

    for option in ("labels", "rows"):
        if getattr(given, option) is not None and given.data is None:
            raise ConfigError(f"--{option} without --data", hint="--data names the inputs for running statistics")
    if given.draws > 1 and not given.noise:
        raise ConfigError(f"--draws {given.draws} without --noise", hint="all draws are alike then")
    if given.out.exists():
        raise FieldError("exists already", where=given.out, hint="give a new name")
    if not given.out.absolute().parent.is_dir():
        raise FieldError("the folder above it does not exist", where=given.out, hint="make it first")


def _architecture(arguments: argparse.Namespace, stored: StoredField) -> Architecture:
    from metanet.commands._reading import _made_by
    from metanet.errors import FieldError

    if arguments.factory is not None:
        return _made_by(arguments.factory)
    if stored.architecture is None:
        raise FieldError(
            "is of a network that no family has",
            where=arguments.folder,
            hint="name the Python that builds it at full width: --factory MODULE:FUNCTION",
        )
    return stored.architecture


def _write(out: Path, state: Any, architecture: Architecture, told: dict[str, Any]) -> None:
    from metanet.checkpoint import save_checkpoint
    from metanet.checkpoint.architecture import FAMILIES
    from metanet.errors import FieldError
    from metanet.io import umask, write_json_atomic
    from metanet.morph.folder import resized_architecture

    new = resized_architecture(architecture, state) if architecture.family in FAMILIES else None
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{out.name[:80]}.", dir=out.parent))
    except OSError as error:
        raise FieldError(f"cannot be made ({error.strerror})", where=out, hint="check the folder above it") from None
    try:
        save_checkpoint(made / "weights.safetensors", state, new)
        write_json_atomic(made / "sample.json", told)
        made.chmod(0o777 & ~umask())
        os.rename(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)
