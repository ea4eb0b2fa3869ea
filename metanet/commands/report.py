"""How does a run look? Draw its page again from the values that it stored."""

from __future__ import annotations

import argparse
from pathlib import Path

from metanet.commands._terminal import print_json

DESCRIPTION = """\
Draw report.html again from the report.json that `metanet demo`, `metanet train` or `metanet morph` left in a folder.

Nothing is computed: the page shows the stored values.
"""

EXAMPLES = """\
examples:
  metanet report demo
  metanet report runs/accuracy --output accuracy.html
  metanet report narrow
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the run's folder (or its report.json)")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the page goes (FOLDER/report.html)")
    parser.add_argument("--json", action="store_true", help="print the page's path and the stored headline as JSON")


def run(arguments: argparse.Namespace) -> int:
    from metanet.report import load_values, render_folder

    page = render_folder(arguments.folder, arguments.output)
    if arguments.json:
        values = load_values(arguments.folder)
        print_json({"report": str(page), "title": values["title"], "headline": values.get("headline", [])})
    else:
        print(page)
    return 0
