"""How does the user say what network a file holds, where the file does not say it?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metanet.checkpoint import Checkpoint


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """`--architecture` and `--factory`, one of which may be given."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--architecture", metavar="JSON", type=Path, help="an architecture.json that says what the file holds")
    choice.add_argument(
        "--factory",
        metavar="MODULE:FUNCTION",
        help="Python that makes the module and its example inputs; it is imported and run, so name only your own",
    )


def load_named(path: Path, arguments: argparse.Namespace) -> Checkpoint:
    """The checkpoint at `path`, read as the arguments of the command line say.

    Raises:
        CheckpointError: It cannot be read, or does not fit what the user named.
    """
    from metanet.checkpoint import load

    return load(path, architecture=arguments.architecture, factory=arguments.factory)
