"""What does a field learn on, and what is it scored on? Never the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._score_data import SETS, read_data
from metanet.errors import ConfigError, clean

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from torch import Tensor

    from metanet.checkpoint import Architecture

__all__ = ["Parts", "add_data_arguments", "add_size_arguments", "sizes_by_name", "two_parts"]


class Parts:
    """Inputs and labels to learn on and to score on, and where the latter come from."""

    def __init__(
        self, inputs: Tensor, labels: Tensor | None, scored: Tensor, scored_labels: Tensor | None, origin: str
    ) -> None:
        self.inputs, self.labels, self.scored, self.scored_labels = inputs, labels, scored, scored_labels
        self.origin = origin

    def batches(self, most: int = 2048) -> Sequence[tuple[Tensor]]:
        """Argument lists for statistics."""
        return [(rows,) for rows in self.inputs[:most].split(256) if len(rows) > 1]


def two_parts(architecture: Architecture, data: str, labels: str | None, rows: int | None) -> Parts:
    """Of a set by its name, the images for training and those of the test; of a file, every second input each.

    Raises:
        ConfigError: for a name that means nothing, inputs that do not fit, or fewer than four.
    """
    found, told, origin = read_data(architecture, data, labels, rows)
    if data in SETS and not Path(data).exists():
        from metanet.datasets.images import image_sizes, load_images

        numbers = found[0].numel()
        fitting = [size for size in image_sizes(data) if size * size == numbers]
        images = load_images({"name": data, "size": (fitting or image_sizes(data))[0]})
        inputs = images.pool_images[:rows].reshape(-1, *found.shape[1:])
        if len(inputs) < 2:
            raise ConfigError(f"{len(inputs)} inputs", where=data, hint="give at least two")
        return Parts(inputs, images.pool_labels[:rows], found, told, origin)
    if len(found) < 4:
        raise ConfigError(f"{len(found)} inputs", where=data, hint="give at least four")
    halves = [(found[start::2], None if told is None else told[start::2]) for start in (1, 0)]
    return Parts(*halves[0], *halves[1], f"every second of {origin}")


def add_data_arguments(parser: argparse.ArgumentParser, needed: bool) -> None:
    """`--data`, `--labels` and `--rows`."""
    from metanet.commands._terminal import positive

    parser.add_argument(
        "--data", metavar="FILE|NAME", required=needed, help="inputs: a file of arrays, or a set by its name"
    )
    parser.add_argument("--labels", metavar="FILE", help="classes or values, if the data do not bring them")
    parser.add_argument("--rows", metavar="N", type=positive, help="only the first N inputs")


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """`--width` or `--sizes`, and `--extrapolate`."""
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--width", metavar="RATIO", type=float, help="of units in every space: 0.5 halves")
    choice.add_argument("--sizes", metavar="SPACE=N,...", help="units of single spaces; the others at full width")
    parser.add_argument("--extrapolate", action="store_true", help="allow sizes outside those that it was trained for")


def sizes_by_name(text: str) -> dict[str, int]:
    """`a=3,b=5` as sizes.

    Raises:
        ConfigError: for anything else.
    """
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            size = int(number)
        except ValueError:
            size = None
        if not name.strip() or size is None:
            raise ConfigError(clean(repr(part), 80), where="--sizes", hint="expected SPACE=N, by commas")
        if name.strip() in found:
            raise ConfigError(f"{clean(repr(name.strip()), 80)} is named twice", where="--sizes", hint="once is enough")
        found[name.strip()] = size
    return found
