"""How are two networks shown side by side? The page of a morph, and of a score, from stored values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from metanet.report import figures
from metanet.report.environment import environment
from metanet.report.values import complete
from metanet.report.widths_figure import widths_figure

__all__ = ["comparison_page"]

LABELS = {"latency_ms": "milliseconds for one call", "flops": "operations for an input", "parameters": "parameters"}


def comparison_page(values: Mapping[str, Any]) -> str:
    """The HTML of a comparison's checked values."""
    drawings: dict[str, str] = {}
    shown = complete(values)
    if shown["spaces"]:
        drawings["widths"] = widths_figure(shown["spaces"])
    points = (shown["frontier"] or {}).get("points") or []
    if len(points) > 1:
        asked = shown["frontier"]["cost"]
        cost = asked if asked in LABELS and all(point[asked] is not None for point in points) else "parameters"
        drawings["frontier"] = figures.frontier(points, cost, LABELS[cost])
    marked = {name: Markup(text) for name, text in drawings.items()}  # noqa: S704 - every text in them is escaped
    kinds = {space["kind"] for space in shown["spaces"] or ()}
    drawn = dict.fromkeys(("widths", "frontier")) | marked
    return environment().get_template("comparison.html.j2").render(**shown, drawings=drawn, kinds=kinds)
