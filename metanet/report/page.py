"""Where do the stored values become one HTML file that needs nothing beside it?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from metanet.io import write_json_atomic, write_text_atomic
from metanet.report import figures
from metanet.report.comparison import comparison_page
from metanet.report.environment import environment
from metanet.report.values import COMPARISON_FORMAT, check_values, complete, load_values

PAGE, VALUES = "report.html", "report.json"
GROUPS = "runs"  # what training, validation and test never share, where the values do not say it
METRIC = {
    "label": "Kendall's tau",
    "explanation": "Kendall's tau says how well the order of the networks is told: 1 is the right order, 0 is chance.",
}


def render_report(values: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw `values` as a page at `path`.

    Args:
        values: The values of a report, as `metanet.report.values.SHAPES` declares them.
        path: The HTML file to write; its folder is made if need be.

    Returns:
        The path of the page.

    Raises:
        ReportError: An entry of `values` is not what the page can draw.
    """
    target = Path(path)
    page = _page(check_values(values, where=target))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomic(target, page)
    return target


def save_report(values: Mapping[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write `report.json` and then the `report.html` drawn from it into `folder`; returns the page's path."""
    checked = check_values(values)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json_atomic(Path(folder) / VALUES, checked)
    return render_report(checked, Path(folder) / PAGE)


def render_folder(folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Draw `report.html` again from the `report.json` that a run left in `folder`.

    Args:
        folder: The run's folder, or its `report.json`.
        path: Where the page goes; beside the values if not given.

    Raises:
        ReportError: There are no such values, or they are damaged.
    """
    source = Path(folder)
    values = load_values(source)
    return render_report(values, path or (source if source.is_dir() else source.parent) / PAGE)


def _page(values: Mapping[str, Any]) -> str:
    if values["format"] == COMPARISON_FORMAT:
        return comparison_page(values)
    target: dict[str, Any] = {"label": "target", "share": False} | dict(values.get("target") or {})
    drawings = dict.fromkeys(("scatter", "histogram", "curves", "intervals")) | _drawings(
        values, target["label"], target["share"]
    )
    metric = values.get("metric") or METRIC
    groups = values.get("groups") or GROUPS
    shown = complete(values) | {"target": target, "metric": {"explanation": ""} | metric, "groups": groups}
    shown["drawings"] = drawings
    return environment().get_template("report.html.j2").render(shown)


def _drawings(values: Mapping[str, Any], label: str, share: bool) -> dict[str, Markup]:
    """Every drawing that there are values for. The SVG is our own, with matplotlib's escaping of all text in it."""
    drawn: dict[str, str] = {}
    if (values.get("predictions") or {}).get("true"):
        drawn["scatter"] = figures.scatter(values["predictions"], label, share)
    if (values.get("zoo") or {}).get("values"):
        drawn["histogram"] = figures.histogram(values["zoo"]["values"], label, share)
    if (values.get("training") or {}).get("curves"):
        drawn["curves"] = figures.curves(values["training"])
    if values.get("models"):
        metric, groups = (values.get("metric") or METRIC)["label"], values.get("groups") or GROUPS
        drawn["intervals"] = figures.intervals(values["models"], f"{metric} on held-out {groups}")
    return {name: Markup(text) for name, text in drawn.items()}  # noqa: S704 - matplotlib escapes the text it is given
