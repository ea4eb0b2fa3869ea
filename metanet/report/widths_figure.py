"""How does the figure of a network's widths before and after look? One bar for each space, in the order of the data.

The outline is the width before, the filled part the width after. A residual stream is one space, however many blocks
add to it: it stands once, and a line in the margin runs along the spaces inside its blocks. Colours are the page's
variables, for light and dark alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from metanet.report.inspect_figure import shortened

__all__ = ["widths_figure"]

TOP, BARS, NUMBERS = 10.0, 540.0, 190.0
LANE, INDENT, LETTER, LONGEST = 13.0, 14.0, 7.0, 38
COLOURS = {
    "units": "var(--series-0)",
    "stream": "var(--series-2)",
    "matrix": "var(--series-1)",
    "heads": "var(--series-1)",
}


def widths_figure(spaces: Sequence[Mapping[str, Any]]) -> str:
    """One SVG drawing.

    Args:
        spaces: in order, each with `name`, `before` and `after` (nothing where it does not exist), `kind`, `within`
            (the space that it lies inside), `until` (the last space that a stream runs along), `last` and `times`
            (for blocks that are told once).
    """
    row = 30.0 if len(spaces) <= 16 else 23.0 if len(spaces) <= 32 else 19.0
    lanes = _lanes(spaces)
    left = 6 + LANE * (max(lanes.values(), default=-1) + 1)
    bars = left + 12 + max((LETTER * min(len(_name(s)), LONGEST) + _indent(s) for s in spaces), default=0)
    height = TOP + row * len(spaces) + 8
    place = {space["name"]: number for number, space in enumerate(spaces)}
    widest = max((max(space["before"] or 0, space["after"] or 0) for space in spaces), default=1)
    parts = [_line(spaces[number], place, row, 4 + LANE * lane) for number, lane in lanes.items()]
    parts += [_bar(space, TOP + number * row, row, left, bars, widest) for number, space in enumerate(spaces)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {bars + BARS + NUMBERS:.0f} {height:.0f}" role="img" '
        f'aria-label="Widths of the spaces of both networks, in the order of the data">{"".join(parts)}</svg>'
    )


def _lanes(spaces: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """For each stream that runs along other spaces the lane of its line; long lines stand on the left."""
    place = {space["name"]: number for number, space in enumerate(spaces)}
    runs = [
        (number, place.get(space["until"], number)) for number, space in enumerate(spaces) if space["kind"] == "stream"
    ]
    ends: list[int] = []
    found = {}
    for start, end in sorted((run for run in runs if run[1] > run[0]), key=lambda run: (run[0], -run[1])):
        lane = next((lane for lane, taken in enumerate(ends) if taken < start), len(ends))
        ends[lane : lane + 1] = [end]
        found[start] = lane
    return found


def _line(space: Mapping[str, Any], place: Mapping[str, int], row: float, x: float) -> str:
    start, end = (TOP + (place[name] + 0.5) * row for name in (space["name"], space["until"]))
    return (
        f"<g><title>{escape(space['name'])}: one space, which the blocks along this line read and add to</title>"
        f'<path d="M{x + 8:.1f} {start:.1f}H{x:.1f}V{end:.1f}h5" fill="none" stroke="{COLOURS["stream"]}" '
        f'stroke-width="2.4" stroke-linejoin="round"/></g>'
    )


def _bar(space: Mapping[str, Any], y: float, row: float, left: float, x: float, widest: int) -> str:
    before, after = space["before"] or 0, space["after"] or 0
    colour, indent = COLOURS[space["kind"]], _indent(space)
    # The longer of both grows with the square root of the width; the other has its true share of it.
    longer = max(before, after)
    length = max(BARS * math.sqrt(longer / widest), 6.0)
    old, new = (length * size / longer for size in (before, after))
    middle, thick = y + row / 2, row * 0.6
    size = 12.5 if row > 20 else 11.5
    parts = [
        f"<title>{escape(_title(space))}</title>",
        f'<text x="{left + indent:.1f}" y="{middle + 4:.1f}" font-size="{size}" fill="var(--ink)">'
        f"{escape(shortened(_name(space), LONGEST))}</text>",
        _box(x, middle, thick, old, 'fill="none" stroke="var(--muted)" stroke-width="1.1"') if before else "",
        _box(x, middle, thick, new, f'fill="{colour}" fill-opacity=".82"') if after else "",
    ]
    if after > before > 0:
        # The old outline would vanish under the wider bar.
        parts.append(
            f'<path d="M{x + old:.1f} {middle - thick / 2:.1f}v{thick:.1f}" stroke="var(--paper)" stroke-width="2"/>'
        )
    parts.append(
        f'<text x="{x + length + 8:.1f}" y="{middle + 4:.1f}" font-size="{size}" fill="var(--muted)">'
        f"{escape(_numbers(space))}</text>"
    )
    return f"<g>{''.join(parts)}</g>"


def _box(x: float, middle: float, thick: float, length: float, look: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{middle - thick / 2:.1f}" width="{max(length, 1.5):.1f}" height="{thick:.1f}" rx="2" '
        f"{look}/>"
    )


def _numbers(space: Mapping[str, Any]) -> str:
    before, after = space["before"], space["after"]
    if before is None:
        told = f"new: {after:,}"
    elif after is None:
        told = f"{before:,}, gone"
    else:
        told = f"{before:,}" if before == after else f"{before:,} → {after:,}"
    return told + {"stream": " (residual stream)", "heads": " heads", "matrix": " in each head"}.get(space["kind"], "")


def _indent(space: Mapping[str, Any]) -> float:
    return INDENT if space["within"] else 0.0


def _name(space: Mapping[str, Any]) -> str:
    return str(space["name"]) + (f" ×{space['times']}" if (space["times"] or 1) > 1 else "")


def _title(space: Mapping[str, Any]) -> str:
    to = f" to {space['last']}" if space["last"] else ""
    inside = f", in each of {space['within']}" if space["within"] else ""
    return f"{space['name']}{to}{inside}: {_numbers(space)}"
