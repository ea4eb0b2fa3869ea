"""Does the page of two networks side by side show what was stored, and nothing that is not there?"""

from __future__ import annotations

import copy
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from metanet.report import ReportError, check_values, render_folder, render_report, save_report
from metanet.report.values import COMPARISON
from metanet.report.widths_figure import widths_figure
from tests.report.test_page import Outline


def space(name: str, before: int | None, after: int | None, kind: str = "units", **more: Any) -> dict[str, Any]:
    told = {"name": name, "before": before, "after": after, "kind": kind, "within": None, "until": name}
    return told | {"last": None, "times": 1} | more


def comparison_values() -> dict[str, Any]:
    spread = {"median": 0.1234, "low": 0.12, "high": 0.13}
    point = {"chosen": False, "amount": 0.5, "parameters": 700, "stored": 701, "flops": 1400, "latency_ms": 0.12}
    return {
        "format": "metanet.comparison/1",
        "title": "weights.safetensors, 2.0 times smaller",
        "created": "2026-01-31 12:00 UTC",
        "command": "metanet morph weights.safetensors --width 0.5",
        "names": ["before", "after"],
        "headline": [{"label": "parameters", "value": "×0.50", "note": "1,400 to 700"}],
        "verdict": "approximate",
        "error": 0.625,
        "tolerance": 1e-10,
        "dtype": "float64",
        "origin": "every second of 797 test images of digits",
        "inputs": 399,
        "made_up": False,
        "confidence": 0.95,
        "outputs": [{"name": "", "rows": [["max error", 2.5, None, None], ["agreement", 0.9674, 0.9451, 0.9809]]}],
        "barrier": 0.0317,
        "features": "standard",
        "layers": [{"before": "0", "after": "zero", "sizes": [64, 32], "cka": 0.9559, "low": 0.95, "high": 0.96}],
        "notes": ["a note"],
        "failed": ["agreement 0.9674 below 0.99"],
        "costs": [{"name": "parameters", "before": 1400, "after": 700}],
        "timing": {"setting": "median of 9 rounds", "calls": [spread, spread], "ratios": [spread, spread]},
        "spaces": [space("0", 64, 32, "stream", until="2"), space("2", 48, 12)],
        "edits": ["keep 32 units of 0 (approximate)"],
        "more_edits": 3,
        "edit_error": 0.62,
        "units": [
            {
                "space": "0",
                "before": 64,
                "kept": 32,
                "gone": "0 to 31",
                "readers": 2,
                "rebuilt": [{"unit": "7", "sources": [{"unit": "40", "coefficient": 0.777}]}],
                "more": 31,
            },
            {"space": "2", "before": 48, "kept": 46, "merged": ["3 and 9", "4 and 5"]},
        ],
        "uncompensated": ["cell.weight_hh_l0"],
        "frontier": {
            "limit": "KL at most 0.2",
            "cost": "latency_ms",
            "points": [
                point | {"kl": 0.1, "agreement": 0.98, "error": 0.6, "chosen": True},
                point | {"kl": 0.35, "agreement": 0.9, "error": 0.9, "latency_ms": 0.11, "parameters": 650},
            ],
        },
        "versions": {"torch": "2.13.0"},
        "machine": {"cores": 2},
    }


def text_of(values: dict[str, Any], folder: Path) -> str:
    page = render_report(values, folder / "page.html").read_text(encoding="utf-8")
    return " ".join(" ".join(Outline(page).text).split())


def test_every_stored_figure_is_shown(tmp_path: Path) -> None:
    text = text_of(comparison_values(), tmp_path)
    shown = ["×0.50", "0.625 of its spread", "0.9451 to 0.9809", "0.0317", "64 → 32", "0.9559", "zero", "a note"]
    shown += ["agreement 0.9674 below 0.99", "50.0", "median of 9 rounds", "0.12 times as long"]
    shown += ["keep 32 units of 0", "3 more"]
    shown += ["0 to 31", "0.78 × unit 40", "(over 2 readers)", "31 more", "3 and 9; 4 and 5", "cell.weight_hh_l0"]
    shown += ["KL at most 0.2", "0.35", "2.13.0", "metanet morph weights.safetensors --width 0.5"]
    assert [figure for figure in shown if figure not in text] == []


def test_needs_nothing_from_outside_and_text_cannot_become_code(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    values = comparison_values()
    values["title"] = values["edits"][0] = values["notes"][0] = values["units"][0]["gone"] = attack
    values["spaces"] = [space(attack, 3, 2, "stream", until="2", last=attack, times=2), space("2", 3, 3, within=attack)]
    values["layers"][0]["before"] = values["outputs"][0]["rows"][0][0] = attack
    outline = Outline(render_report(values, tmp_path / "page.html").read_text())
    assert not {"script", "img", "link", "iframe"} & set(outline.tags)
    assert all(reference.startswith(("#", "data:")) for reference in outline.references)


@pytest.mark.parametrize("section", sorted(key for key in COMPARISON if not key.endswith("!")))
def test_any_section_may_be_absent(section: str, tmp_path: Path) -> None:
    values = comparison_values()
    values["frontier"]["points"].pop()  # a single point needs no drawing
    del values[section]
    text_of(values, tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("verdict",), None, "verdict: is missing"),
        (("spaces", 0, "before"), "wide", r"spaces\[0\].before: expected int"),
        (("units", 0, "rebuilt", 0, "sources"), None, "sources: is missing"),
        (("frontier", "points"), 3, "frontier.points: expected a list"),
        (("format",), "metanet.comparison/9", "format: expected 'metanet.report/1' or 'metanet.comparison/1'"),
    ],
)
def test_damaged_values_are_refused_by_name(path: tuple[Any, ...], value: Any, message: str) -> None:
    values = copy.deepcopy(comparison_values())
    place: Any = values
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ReportError, match=message):
        check_values(values)


def test_drawn_again_from_the_folder(tmp_path: Path) -> None:
    first = save_report(comparison_values(), tmp_path).read_bytes()
    assert render_folder(tmp_path, tmp_path / "again.html").read_bytes() == first


SVG = "{http://www.w3.org/2000/svg}"


def bars(drawing: str) -> dict[str, list[ElementTree.Element]]:
    """The rectangles of each space, by the name in its title."""
    root = ElementTree.fromstring(drawing)
    rows = [row for row in root.iter(f"{SVG}g") if row.find(f"{SVG}rect") is not None]
    return {str(row.findtext(f"{SVG}title")).split(":")[0]: row.findall(f"{SVG}rect") for row in rows}


def width(box: ElementTree.Element) -> float:
    return float(box.get("width", "nan"))


def test_the_filled_part_is_the_true_share() -> None:
    found = bars(widths_figure([space("a", 64, 16), space("b", 16, 64), space("c", 16, None), space("d", None, 9)]))
    outline, filled = found["a"]
    assert width(filled) / width(outline) == pytest.approx(0.25, abs=2e-3)
    before, after = found["b"]
    assert width(before) / width(after) == pytest.approx(0.25, abs=2e-3)
    # Twice as long for four times the width; what is not there is not drawn.
    assert width(outline) / width(found["c"][0]) == pytest.approx(2, abs=2e-3)
    assert [len(found[name]) for name in "cd"] == [1, 1]
    assert found["c"][0].get("fill") == "none"
    assert found["d"][0].get("fill") != "none"


@pytest.mark.parametrize("count", [1, 3, 40])
def test_rows_do_not_touch_and_stay_inside(count: int) -> None:
    spaces = [space("stem", 64, 32, "stream", until=f"blocks.{count - 1}.up")] + [
        space(f"blocks.{number}.up", 48 + number, 24, within="stem" if number % 3 else None) for number in range(count)
    ]
    drawing = widths_figure(spaces)
    root = ElementTree.fromstring(drawing)
    right, below = (float(number) for number in str(root.get("viewBox")).split()[2:])
    boxes = [box for row in bars(drawing).values() for box in row[:1]]
    tops = [float(box.get("y", "nan")) for box in boxes]
    ends = [top + float(box.get("height", "nan")) for top, box in zip(tops, boxes, strict=True)]
    assert len(boxes) == count + 1
    assert all(later - end > 4 for end, later in zip(ends, tops[1:], strict=False))
    assert ends[-1] < below
    assert max(float(box.get("x", "nan")) + width(box) for box in boxes) < right - 100  # room for the numbers
    # The line of the stream runs from its row to that of the last space on it.
    (line,) = [str(path.get("d")) for path in root.iter(f"{SVG}path") if path.get("stroke") == "var(--series-2)"]
    start, end = (float(number) for number in re.findall(r"M[\d.]+ ([\d.]+)H[\d.]+V([\d.]+)", line)[0])
    assert tops[0] < start < ends[0]
    assert tops[-1] < end < ends[-1]


def test_streams_beside_each_other_have_lanes_of_their_own() -> None:
    crossing = [space("a", 8, 8, "stream", until="c"), space("b", 8, 8, "stream", until="d"), space("c", 8, 8)]
    drawing = widths_figure([*crossing, space("d", 8, 8)])
    lanes = re.findall(r'd="M[\d.]+ [\d.]+H([\d.]+)V', drawing)
    assert len(lanes) == len(set(lanes)) == 2
