"""Is a zoo what its index says? Exit code 1 if it is not."""

from __future__ import annotations

import argparse
from pathlib import Path

from metanet.commands._terminal import bar, count, print_json, share

DESCRIPTION = """\
Check a zoo: hash its files, check that the splits are by run, load a sample of its networks and measure them again on
the zoo's own data. The exit code is 1 on any mismatch, or if too many runs failed.
"""

EXAMPLES = """\
examples:
  metanet zoo verify zoos/digits
  metanet zoo verify zoos/digits --sample 1000 --max-failed 0.02 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the zoo's folder")
    parser.add_argument("--sample", metavar="N", type=count, default=64, help="networks to measure again (%(default)s)")
    parser.add_argument(
        "--max-failed", metavar="SHARE", type=share, default=0.1, help="share of failed runs that passes (%(default)s)"
    )
    parser.add_argument("--seed", metavar="N", type=count, default=0, help="which networks are taken (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    from metanet.datasets import verify_zoo

    with bar("measure again") as progress:
        report = verify_zoo(arguments.folder, arguments.sample, arguments.max_failed, arguments.seed, progress)
    if arguments.json:
        print_json(report.to_json())
    else:
        print(report.text())
    return 0 if report.passed else 1
