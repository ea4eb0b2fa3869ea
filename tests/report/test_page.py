"""Is the page whole, self-contained, safe and the same every time; and are damaged values refused by name?"""

from __future__ import annotations

import copy
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from metanet.report import ReportError, check_values, render_folder, render_report, save_report
from metanet.report.values import SHAPE
from tests.report.example import example_values

SECTIONS = sorted(key for key in SHAPE if not key.endswith("!"))


class Outline(HTMLParser):
    """Collects what a browser would fetch or run, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on"), f"{name} runs code"
            if name in ("src", "href", "xlink:href", "action"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(values: dict[str, Any], folder: Path) -> str:
    return render_report(values, folder / "report.html").read_text(encoding="utf-8")


def test_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = page_of(example_values(), tmp_path)
    outline = Outline(page)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(outline.tags)
    assert all(reference.startswith(("#", "data:")) for reference in outline.references)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_the_ids_of_its_drawings_do_not_clash(tmp_path: Path) -> None:
    ids = Outline(page_of(example_values(), tmp_path)).ids
    assert ids
    assert len(ids) == len(set(ids))


def test_every_stored_figure_is_shown(tmp_path: Path) -> None:
    values = example_values()
    text = " ".join(" ".join(Outline(page_of(values, tmp_path)).text).split())
    shown = [values["title"], values["verdict"], "0.861", "0.848", "0.412", "91.2", "92.5", "unseen.safetensors"]
    shown += ["12!", "4.1e-16", "4.1e-01", "900", "digits_cnn", "2.13.0"]
    assert [figure for figure in shown if figure not in text] == []


def test_drawings_are_well_formed_and_described(tmp_path: Path) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page_of(example_values(), tmp_path), flags=re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("aria-label")
        # Every colour follows the theme of the page.
        assert not re.search(r"#[0-9a-f]{6}", drawing.replace("#ffffff", ""))


def test_every_point_is_drawn(tmp_path: Path) -> None:
    """The plot shows the stored values: as many marks as points, and one more with one more point."""
    few, more = (page_of(example_values(points), tmp_path).count("<use ") for points in (60, 61))
    assert more == few + 1


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    first = page_of(example_values(), tmp_path / "a")
    assert page_of(example_values(), tmp_path) == first
    changed = example_values() | {"title": "Another"}
    assert page_of(changed, tmp_path) != first


@pytest.mark.parametrize("section", SECTIONS)
def test_any_section_may_be_absent(section: str, tmp_path: Path) -> None:
    values = example_values()
    values.pop(section, None)
    Outline(page_of(values, tmp_path))


def test_the_smallest_report(tmp_path: Path) -> None:
    page = page_of({"format": "metanet.report/1", "title": "Nothing yet"}, tmp_path)
    assert "Nothing yet" in page
    assert "<svg" not in page


def test_text_from_files_cannot_become_code(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    values = example_values()
    values["title"] = values["verdict"] = values["unseen"]["file"] = values["models"][0]["name"] = attack
    values["predictions"]["group"] = [attack] * len(values["predictions"]["true"])
    values["predictions"]["group"][0] = "relu $\\frac$"
    values["target"]["label"] = attack
    values["unseen"]["symmetry"]["table"]["rows"][0][0] = attack
    values["training"]["curves"] = {attack: {attack: [1.0] * 40}}
    outline = Outline(page_of(values, tmp_path))
    assert not {"script", "img"} & set(outline.tags)


def test_one_point_and_gaps_are_drawn(tmp_path: Path) -> None:
    values = example_values()
    values["predictions"] = {"model": "m", "true": [0.5], "predicted": [0.5]}
    values["training"] = {"epochs": [1, 2], "curves": {"loss": {"train": [0.5, None]}}}
    values["zoo"]["values"] = [0.3]
    assert page_of(values, tmp_path).count("<svg") == 4


def test_the_page_is_drawn_again_from_the_folder(tmp_path: Path) -> None:
    page = save_report(example_values(), tmp_path)
    before = page.read_bytes()
    page.unlink()
    assert render_folder(tmp_path).read_bytes() == before
    elsewhere = render_folder(tmp_path / "report.json", tmp_path / "other.html")
    assert elsewhere.read_bytes() == before


def test_values_survive_json() -> None:
    values = example_values()
    assert check_values(json.loads(json.dumps(values))) == values


def planted() -> list[tuple[str, Any, str]]:
    return [
        ("format", "metanet.report/2", "format"),
        ("title", None, "title: is missing"),
        ("seconds", "long", "seconds: expected float"),
        ("seconds", float("nan"), "seconds: expected float"),
        ("models", [{"name": "m", "kind": "baseline"}], "models[0].score: is missing"),
        ("models", {"name": "m"}, "models: expected a list"),
        ("zoo", [1], "zoo: expected an object"),
        ("zoo", {"runs": 1.5}, "zoo.runs: expected int"),
        ("predictions", {"model": "m", "true": [1, 2], "predicted": [1]}, "lists of different lengths"),
        ("training", {"epochs": [1], "curves": {"loss": {"train": [1, 2]}}}, "training.curves.loss.train"),
        ("training", {"epochs": [True], "curves": {}}, "training.epochs[0]: expected int"),
        ("configuration", 3, "configuration: expected an object"),
    ]


@pytest.mark.parametrize(("entry", "value", "reason"), planted())
def test_damage_is_refused_by_name(entry: str, value: Any, reason: str, tmp_path: Path) -> None:
    values = copy.deepcopy(example_values())
    values[entry] = value
    with pytest.raises(ReportError) as caught:
        render_report(values, tmp_path / "report.html")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": NaN}', "null"])
def test_a_file_that_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ReportError, match=r"report\.json"):
        render_folder(tmp_path)


def test_a_folder_without_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"no report\.json"):
        render_folder(tmp_path)
