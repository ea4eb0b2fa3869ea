"""How does the user say what network a file holds, where the file does not say it?"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metanet.checkpoint import Architecture, Checkpoint


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """`--architecture`, `--factory` and `--activation`, one of which may be given, and `--key`."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--architecture", metavar="JSON", type=Path, help="an architecture.json that says what the file holds"
    )
    choice.add_argument(
        "--factory",
        metavar="MODULE:FUNCTION",
        help="Python that returns (model, example_inputs); it is imported and run, so name only your own",
    )
    choice.add_argument(
        "--activation", metavar="NAME", help="relu, tanh, gelu, sin or identity, where names and shapes tell the rest"
    )
    parser.add_argument("--key", metavar="KEY", help="where in a torch file the state dict is, as in model/ema")


def load_named(path: Path, arguments: argparse.Namespace) -> Checkpoint:
    """The checkpoint at `path`, read as the arguments of the command line say.

    Raises:
        CheckpointError: It cannot be read, or does not fit what the user named.
    """
    from metanet.checkpoint import load

    # One object for all files, so that thousands of files of one factory are traced once.
    architecture = _made_by(arguments.factory) if arguments.factory else arguments.architecture
    if path.is_dir():
        from metanet.commands._morph_folder import edited_architecture

        # A file that describes an architecture describes what the folder holds; a factory may build the old network.
        if not isinstance(architecture, Path):
            architecture = edited_architecture(path, architecture) or architecture
    return load(path, architecture=architecture, activation=arguments.activation, key=arguments.key)


@cache
def _made_by(factory: str) -> Architecture:
    from metanet.checkpoint.factory import FactoryArchitecture

    # As with `python -m`: a module in the working folder can be named.
    if "" not in sys.path:
        sys.path.insert(0, "")
    return FactoryArchitecture(factory)
