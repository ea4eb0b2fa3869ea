"""Where does the analysis of one checkpoint file become a page that needs nothing beside it?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from metanet.io import write_text_atomic
from metanet.report.environment import environment
from metanet.report.inspect_figure import spaces_figure
from metanet.report.values import ReportError

INSPECT_FORMAT = "metanet.inspect/1"


def render_inspection(values: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw the values of an inspection as a page at `path`; returns the path.

    Raises:
        ReportError: The values are of another format.
    """
    target = Path(path)
    if values.get("format") != INSPECT_FORMAT:
        raise ReportError(
            f"format {values.get('format')!r}, expected {INSPECT_FORMAT!r}", where=target, hint="give an inspection"
        )
    figure = values["figure"]
    drawing = Markup(spaces_figure(figure)) if figure["rows"] else None  # noqa: S704 - every text in it is escaped
    kinds = {node["kind"] for node in figure["nodes"]}
    page = environment().get_template("inspect.html.j2").render(**values, drawing=drawing, kinds=kinds)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(target, page)
    return target
