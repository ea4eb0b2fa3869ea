"""Does the demo go the whole way, and does its page show the figures that it measured?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import metanet as package
from metanet.datasets import Zoo
from metanet.report import check_values
from metanet.tasks import kendall_tau
from tests.cli.command import metanet, within


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    answer = metanet("demo", "--quick", "--runs", "24", "--threads", "1", cwd=folder).works()
    assert "report: demo-quick-runs24/report.html" in answer.out
    assert "5/5" in answer.err
    return folder / "demo-quick-runs24"


def test_the_report_is_whole(demo: Path) -> None:
    values = check_values(json.loads((demo / "report.json").read_text()))
    assert {"zoo", "models", "predictions", "training", "unseen", "versions", "seeds", "verdict"} <= values.keys()
    names = [model["name"] for model in values["models"]]
    assert {"layer statistics + gradient boosting", "flat MLP on raw weights"} <= set(names)
    assert [model["kind"] for model in values["models"]].count("baseline") == 2
    assert all(model["interval"] for model in values["models"])
    page = (demo / "report.html").read_text()
    assert page.count("<svg") == 4
    assert values["verdict"] in page.replace("&#39;", "'")


def test_its_figures_are_those_of_the_stored_predictions(demo: Path) -> None:
    values = json.loads((demo / "report.json").read_text())
    chosen = next(model for model in values["models"] if model["chosen"])
    tau = kendall_tau(values["predictions"]["predicted"], values["predictions"]["true"])
    assert tau == pytest.approx(chosen["score"])
    best = max(values["models"], key=lambda model: model["score"])
    assert [model["name"] for model in values["models"] if model["best"]] == [best["name"]]
    honest = "is NOT the best" if best["kind"] == "baseline" and best["score"] > chosen["score"] else "not below"
    assert honest in values["verdict"]


def test_its_test_runs_were_held_out(demo: Path) -> None:
    values, zoo = json.loads((demo / "report.json").read_text()), Zoo.open(demo / "zoo")
    assert values["zoo"]["networks"] == len(zoo)
    assert sorted(values["predictions"]["true"]) == sorted(zoo.index["test_accuracy"][zoo.split("test")].tolist())


def test_the_unseen_file_is_what_the_report_says(demo: Path) -> None:
    unseen = json.loads((demo / "report.json").read_text())["unseen"]
    checkpoint = package.load(demo / "unseen.safetensors")
    measured = Zoo.open(demo / "zoo").evaluate(checkpoint.state, checkpoint.architecture)
    assert measured["test_accuracy"] == pytest.approx(unseen["measured"])
    (answer,) = within("predict", demo / "model", demo / "unseen.safetensors", "--json").works().json
    assert answer["value"] == pytest.approx(unseen["predicted"], abs=1e-6)
    told = within("inspect", demo / "unseen.safetensors", "--verify", "--json").works().json
    assert told["verification"]["passed"] is unseen["symmetry"]["verification"]["passed"] is True
    assert len(told["symmetry"]["spaces"]) == len(unseen["symmetry"]["table"]["rows"])


def test_again_in_the_same_folder_and_with_another_seed(demo: Path) -> None:
    words = ("demo", "--quick", "--runs", "24", "--folder", demo, "--threads", "1")
    other = within(*words, "--seed", "1")
    assert other.code == 2
    assert "was begun differently: config.seed was 0, is 1" in other.err.splitlines()[-1]
    before = json.loads((demo / "report.json").read_text())
    told = within(*words, "--json").works().json
    scores, before_scores = ([row | {"seconds": 0} for row in rows] for rows in (told["models"], before["models"]))
    assert scores == before_scores
