"""How does the figure of spaces look? Bars along the data flow, from top to bottom, and one line for each weight.

A bar is a set of units: it lasts from the first weight that writes it to the last that reads it, so a residual stream
is a long bar beside the short ones of its blocks. A line runs from what a weight reads (dots) to what it writes
(arrows). Units inside heads or groups stand in a frame. Colours are the page's variables, for light and dark alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

ROW, TOP, NAMES, GAP = 26.0, 34.0, 330.0, 28.0
WIDEST, NARROWEST, LANES_WIDTH = 150.0, 58.0, 690.0
LINE = 'stroke="var(--ink)" stroke-opacity=".55" stroke-width="1.3" fill="none"'
COLOURS = {
    "permuted": "var(--series-0)",
    "linear": "var(--series-1)",
    "orthogonal": "var(--series-2)",
    "input": "var(--muted)",
    "output": "var(--muted)",
}


@dataclass(slots=True)
class _Bar:
    node: Mapping[str, Any]
    start: float = math.inf
    end: float = -math.inf
    lane: int = 0
    inner: list[_Bar] = field(default_factory=list)

    @property
    def lanes(self) -> int:
        return max(1, len(self.inner))

    def reach(self, start: float, end: float) -> None:
        self.start, self.end = min(self.start, start), max(self.end, end)


def spaces_figure(values: Mapping[str, Any]) -> str:
    """One SVG drawing of `values` = {"nodes": [...], "rows": [...]}."""
    rows: Sequence[Mapping[str, Any]] = values["rows"]
    bars = {node["name"]: _Bar(node) for node in values["nodes"]}
    for number, row in enumerate(rows):
        for name in [*row["reads"], *row["writes"]]:
            bars[name].reach(number, number)
    for bar in bars.values():
        bar.reach(*_open_ends(bar, len(rows)))
        outer = bars.get(bar.node["within"] or "")
        if outer is not None:
            outer.inner.append(bar)
    for bar in bars.values():
        for inner in bar.inner:
            bar.reach(inner.start, inner.end)
    top = sorted((bar for bar in bars.values() if bar.node["within"] not in bars), key=lambda bar: bar.start)
    count = _place(top)
    pitch = max(NARROWEST, min(WIDEST, LANES_WIDTH / max(count, 1)))
    width, height = NAMES + GAP + max(count * pitch, LANES_WIDTH) + 8, TOP + len(rows) * ROW + 26
    draw = _Drawing(pitch, pitch >= 88)
    parts = [draw.band(rows, width)]
    parts += [draw.frame(bar) for bar in top if bar.inner]
    parts += [draw.line(number, row, bars) for number, row in enumerate(rows)]
    parts += [draw.bar(bar) for bar in bars.values() if not bar.inner]
    parts += [draw.ends(number, row, bars) for number, row in enumerate(rows)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="Sets of units and the weights between them, along the data flow">{"".join(parts)}</svg>'
    )


def _open_ends(bar: _Bar, rows: int) -> tuple[float, float]:
    """Inputs come from above, outputs leave below; a space that nothing reads still has a length."""
    if bar.start == math.inf:
        return 0.0, 0.0
    if bar.node["kind"] == "input":
        return bar.start - 0.75, bar.end
    if bar.node["kind"] == "output":
        return bar.start, bar.end + 0.75
    return bar.start, max(bar.end, bar.start + 0.75)


def _place(bars: Sequence[_Bar]) -> int:
    """Give every bar the first free lanes; returns how many there are. Long bars stand on the left."""
    taken: list[float] = []
    for bar in sorted(bars, key=lambda bar: (bar.start, -bar.end)):
        lane = 0
        while any(end + 0.4 >= bar.start for end in taken[lane : lane + bar.lanes]):
            lane += 1
        taken += [-math.inf] * (lane + bar.lanes - len(taken))
        taken[lane : lane + bar.lanes] = [bar.end] * bar.lanes
        bar.lane = lane
        for place, inner in enumerate(bar.inner):
            inner.lane = lane + place
    return len(taken)


@dataclass(frozen=True, slots=True)
class _Drawing:
    pitch: float
    named: bool

    def x(self, bar: _Bar) -> float:
        return NAMES + GAP + (bar.lane + 0.32) * self.pitch

    def y(self, place: float) -> float:
        return TOP + (place + 0.5) * ROW

    def band(self, rows: Sequence[Mapping[str, Any]], width: float) -> str:
        """Every other numbered layer stands on a shade."""
        layers = [_layer(row["tensor"]) for row in rows]
        parts, shade, start = [], False, 0
        for number in range(1, len(rows) + 1):
            if number == len(rows) or layers[number] != layers[start]:
                if shade:
                    parts.append(
                        f'<rect x="0" y="{TOP + start * ROW:.1f}" width="{width:.0f}" '
                        f'height="{(number - start) * ROW:.1f}" fill="var(--panel)"/>'
                    )
                shade, start = not shade, number
        return "".join(parts)

    def frame(self, bar: _Bar) -> str:
        x = NAMES + GAP + bar.lane * self.pitch + 5
        y, below = self.y(bar.start) - 0.42 * ROW, self.y(bar.end) + 0.42 * ROW
        word = "heads" if any(inner.node["kind"] == "linear" for inner in bar.inner) else "groups"
        return (
            f'<g><title>{escape(_title(bar))}</title><rect x="{x:.1f}" y="{y:.1f}" '
            f'width="{bar.lanes * self.pitch - 10:.1f}" height="{below - y:.1f}" rx="7" fill="{_colour(bar)}" '
            f'fill-opacity=".10" stroke="{_colour(bar)}" stroke-opacity=".75"/>'
            f'<text x="{x + bar.lanes * self.pitch - 16:.1f}" y="{below - 5:.1f}" text-anchor="end" font-size="10.5" '
            f'fill="{_colour(bar)}">{bar.node["size"]} {word}</text></g>'
        )

    def bar(self, bar: _Bar) -> str:
        if bar.start == math.inf:
            return ""
        half = 2.5 + 1.1 * math.log10(bar.node["size"] + 1)
        x, y, below = self.x(bar), self.y(bar.start) - 4, self.y(bar.end) + 4
        size = bar.node["size"]
        label = f"{size}×{size}" if bar.node["kind"] in ("linear", "orthogonal") else f"{size}"
        if self.named:
            label += f" {_word(bar.node)}"
        return (
            f'<g><title>{escape(_title(bar))}</title><rect x="{x - half:.1f}" y="{y:.1f}" width="{2 * half:.1f}" '
            f'height="{below - y:.1f}" rx="{min(half, 4):.1f}" fill="{_colour(bar)}"/>'
            f'<text x="{x + half + 4:.1f}" y="{self.y(_gap(bar)) + 3.5:.1f}" font-size="10.5" '
            f'fill="{_colour(bar)}">{escape(label)}</text></g>'
        )

    def line(self, number: int, row: Mapping[str, Any], bars: Mapping[str, _Bar]) -> str:
        """A weight's name, its shape, and the line from what it reads to what it writes."""
        y = self.y(number)
        name = shortened(row["tensor"].removesuffix(".weight"), 34)
        beside = row["shape"] + "".join(f" + {label}" for label in row["with"][:2])
        beside += " + …" if len(row["with"]) > 2 else ""
        sources, targets = self._ends(row, bars)
        ends = sources + targets
        line = ""
        if ends and max(ends) > min(ends):
            line = f'<path d="M{min(ends):.1f} {y:.1f}H{max(ends):.1f}" {LINE}/>'
        return (
            f'<g>{_tip(row)}<text x="6" y="{y + 4:.1f}" font-size="11.5" fill="var(--ink)">{escape(name)}'
            f'<tspan dx="7" font-size="10.5" fill="var(--muted)">{escape(shortened(beside, 30))}</tspan></text>'
            f"{line}</g>"
        )

    def ends(self, number: int, row: Mapping[str, Any], bars: Mapping[str, _Bar]) -> str:
        """Circles on what a weight reads, arrows at what it writes; a table that nothing indexes has a short tail."""
        y, parts = self.y(number), []
        sources, targets = self._ends(row, bars)
        for x in targets:
            leftward = sources and min(sources) > x
            tip = x + 6 if leftward else x - 6
            back = 7 if leftward else -7
            if x in sources:
                parts.append(f'<path d="M{x:.1f} {y - 6:.1f}a9 6 0 1 0 0 12" {LINE}/>')
            if not sources:
                parts.append(f'<path d="M{x - 18:.1f} {y:.1f}h8" {LINE}/>')
            parts.append(f'<path d="M{tip:.1f} {y:.1f}l{back} -3.6v7.2z" fill="var(--ink)"/>')
        for x in sources:
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="var(--paper)" stroke="var(--ink)"/>')
        return f"<g>{_tip(row)}{''.join(parts)}</g>"

    def _ends(self, row: Mapping[str, Any], bars: Mapping[str, _Bar]) -> tuple[list[float], list[float]]:
        def places(names: Sequence[str]) -> list[float]:
            # Heads are met through their units where a line ends on those; else at their frame.
            single = [self.x(bars[name]) for name in names if not bars[name].inner]
            return single or [self.x(bars[name]) - 0.27 * self.pitch for name in names]

        return places(row["reads"]), places(row["writes"])


def _tip(row: Mapping[str, Any]) -> str:
    tied = f"; tied: {', '.join(row['tied'])}" if row["tied"] else ""
    return f"<title>{escape(row['tensor'])} {escape(row['shape'])}{escape(tied)}</title>"


def _gap(bar: _Bar) -> float:
    """Where a bar's label stands: between its first two rows, where no line crosses it."""
    if bar.node["kind"] == "input":
        return bar.start + 0.05
    return bar.start + 0.5 if bar.node["kind"] != "output" else bar.end - 0.1


def _layer(tensor: str) -> str:
    """The name up to its first number: `layers.3` of `layers.3.linear1.weight`."""
    found = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", tensor)
    return found[0] if found else tensor


def _word(node: Mapping[str, Any]) -> str:
    """The last part of a space's name, where it is a word."""
    if node["kind"] in ("input", "output"):
        return str(node["kind"])
    if node["kind"] != "permuted":
        return ""
    last = str(node["name"]).rpartition(".")[2]
    return shortened(last, 14) if re.fullmatch(r"[A-Za-z_]\w*", last) else "units"


def _title(bar: _Bar) -> str:
    return f"{bar.node['name']} [{bar.node['size']}]: {bar.node['words']}"


def _colour(bar: _Bar) -> str:
    return COLOURS[bar.node["kind"]]


def shortened(text: str, most: int) -> str:
    """The end of a text, which tells more than its beginning."""
    return text if len(text) <= most else "…" + text[1 - most :]
