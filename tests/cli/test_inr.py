"""Do `metanet train` and `metanet predict` read pictures that are held in weights, from a zoo to an answer?"""

from __future__ import annotations

from pathlib import Path

import pytest

from metanet.datasets import Zoo
from tests.cli.command import within

SMALL = ("zoo.images.train=120", "zoo.images.val=40", "zoo.images.test=40", "zoo.copies=1", "zoo.training.steps=60")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "zoo"
    within("zoo", "build", "zoo=digits_inr", *SMALL, "zoo.group=100", "--folder", folder, "--threads", "1").works()
    return folder


def test_digits_are_told_from_the_weights_of_sine_networks(pictures: Path, tmp_path: Path) -> None:
    words = ("task=inr_classification", "trainer.epochs=25", "model.responses=64", "task.batch=40", "task.chunk=40")
    told = within("train", *words, "--zoo", pictures, "--folder", tmp_path / "m", "--json").works().json["test"]
    assert set(told["true"]) <= {str(digit) for digit in range(10)}  # words, though the index holds whole numbers
    assert told["models"][0]["values"]["accuracy"] > 0.35  # one in ten by chance
    zoo = Zoo.open(pictures)
    zoo.export(int(zoo.split("test")[0]), tmp_path / "network.safetensors")
    (answer,) = within("predict", tmp_path / "m", tmp_path / "network.safetensors", "--json").works().json
    assert answer["value"] in set("0123456789")
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)


def test_pictures_are_changed_through_weights(pictures: Path, tmp_path: Path) -> None:
    words = ("task=inr_editing", "task.side=8", "trainer.epochs=3", "model.hidden=8", "model.layers=1", "task.batch=20")
    told = within("train", *words, "--zoo", pictures, "--folder", tmp_path / "m", "--json").works().json["test"]
    scores = {row["name"]: row["values"]["improvement"] for row in told["models"]}
    assert scores["identity"] == 0
    assert scores["same"] < scores["metanet"] < scores["refit"] <= 1
    # It holds no predictor of a property, and says so.
    within("predict", tmp_path / "m", tmp_path / "network.safetensors").refuses("holds no property predictor")
