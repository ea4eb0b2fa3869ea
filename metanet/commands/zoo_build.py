"""How does a person get a zoo? Compose its configuration, build it or go on with it, and say what is in it."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet.commands._compose import compose
from metanet.commands._terminal import count, print_json, say, watched

if TYPE_CHECKING:
    from metanet.checkpoint import Architecture
    from metanet.datasets import Zoo

DESCRIPTION = """\
Build a zoo: train many networks of varied quality at once and keep several snapshots of each.

A build that was killed goes on where it stopped when the same command is given again, and ends with the same zoo.
OVERRIDES are Hydra's: `zoo=NAME` chooses the zoo, `zoo.KEY=VALUE` changes one of its settings.
"""

EXAMPLES = """\
examples:
  metanet zoo build zoo=digits_mixed --folder zoos/digits
  metanet zoo build zoo=digits_cnn zoo.runs=40 zoo.seed=1 folder=zoos/small
  metanet zoo build --config-dir my_configs zoo=my_zoo --folder zoos/mine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="such as zoo=digits_cnn or zoo.runs=40")
    parser.add_argument("--folder", metavar="FOLDER", type=Path, help="where it goes (zoos/NAME); or folder=FOLDER")
    parser.add_argument("--config-dir", metavar="FOLDER", type=Path, help="YAML of your own: FOLDER/zoo/my_zoo.yaml")
    parser.add_argument("--threads", metavar="N", type=count, help="processor cores to use (all); the zoo is the same")
    parser.add_argument("--json", action="store_true", help="print what was built as JSON")


def run(arguments: argparse.Namespace) -> int:
    from metanet.datasets import build_zoo

    config = compose("zoo_build", arguments.overrides, arguments.config_dir)
    folder = arguments.folder or Path(config["folder"])
    started = time.monotonic()
    zoo = build_zoo(config["zoo"], folder, progress=watched(), threads=arguments.threads)
    summary = summarize(zoo) | {"folder": str(folder), "seconds": round(time.monotonic() - started, 2)}
    if arguments.json:
        print_json(summary)
        return 0
    print(f"{folder}: {summary['networks']:,} networks of {summary['runs']:,} runs, {summary['failed_runs']} failed")
    parts = ", ".join(f"{name} {part['runs']}" for name, part in summary["split"].items())
    print(f"split by run: {parts}")
    print_quality(zoo, summary)
    say(f"took {summary['seconds']:.1f} s; check it with: metanet zoo verify {folder}")
    return 0


def print_quality(zoo: Zoo, summary: Mapping[str, Any]) -> None:
    """How good the networks are, in a line; nothing for a published zoo that does not say."""
    for metric in zoo.metrics[-1:]:
        low, middle, high = (summary[metric][key] for key in ("lowest", "median", "highest"))
        print(f"{metric.replace('_', ' ')}: {low:.3f} to {high:.3f}, half of them above {middle:.3f}")


def summarize(zoo: Zoo) -> dict[str, Any]:
    """What is in a zoo, as plain data."""
    import numpy

    families: dict[str, int] = {}
    for number in zoo.index["architecture"].tolist():
        family = zoo.architectures[number].family
        families[family] = families.get(family, 0) + 1
    runs, sizes = zoo.index["run"], [_size(architecture) for architecture in zoo.architectures]
    return {
        "name": zoo.manifest["config"]["name"],
        "networks": len(zoo),
        "runs": zoo.manifest["runs"],
        "failed_runs": zoo.manifest["failed_runs"],
        "architectures": len(zoo.architectures),
        "families": families,
        "parameters": [min(sizes), max(sizes)],
        "split": {
            part: {"runs": len(numpy.unique(runs[zoo.split(part)])), "networks": len(zoo.split(part))}
            for part in ("train", "val", "test")
        },
        **{
            metric: {
                "lowest": float(numpy.nanmin(quality)),
                "median": float(numpy.nanmedian(quality)),
                "highest": float(numpy.nanmax(quality)),
            }
            for metric, quality in ((metric, zoo.index[metric]) for metric in zoo.metrics[-1:])
        },
    }


def _size(architecture: Architecture) -> int:
    return sum(math.prod(shape) for shape in architecture.shapes().values())
