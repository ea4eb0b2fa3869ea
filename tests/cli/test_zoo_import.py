"""Can a published zoo be trained on from the command line: imported, verified, learned from, predicted from?"""

from __future__ import annotations

from pathlib import Path

from metanet.datasets import Zoo
from tests.cli.command import within
from tests.datasets.published import VISION, mnist_inrs, small_cnn_zoo, transformers

FAST = ("trainer.epochs=2", "trainer.patience=0", "model.hidden=8", "model.layers=1", "task.ensemble=false")


def test_from_published_cnns_to_a_prediction(tmp_path: Path) -> None:
    small_cnn_zoo(tmp_path / "cnn", 60)
    zoo, model = tmp_path / "zoo", tmp_path / "model"
    words = ("zoo", "import", "small_cnn_zoo", tmp_path / "cnn", "strides=[2,1]", "size=8", "--expect", "60")
    told = within(*words, "--folder", zoo, "--json").works().json
    assert (told["networks"], told["runs"], told["families"]) == (60, 60, {"cnn": 60})
    assert {part: row["networks"] for part, row in told["split"].items()} == {"train": 27, "val": 3, "test": 30}
    said = within("zoo", "verify", zoo).works().out
    assert "read again" in said
    assert "measured again" not in said
    within("train", *FAST, "task.column=test_accuracy", "--zoo", zoo, "--folder", model).works()
    assert "a published zoo (small_cnn_zoo)" in (model / "report.html").read_text()
    Zoo.open(zoo).export(0, tmp_path / "network.safetensors")
    (answer,) = within("predict", model, tmp_path / "network.safetensors", "--json").works().json
    assert isinstance(answer["value"], float)


def test_images_and_transformers(tmp_path: Path) -> None:
    mnist_inrs(tmp_path / "inr", 60, 20)
    words = ("zoo", "import", "inr_folders", tmp_path / "inr", "data=mnist")
    said = within(*words, "--folder", tmp_path / "images").works()
    assert "80 networks of 80 runs" in said.out
    assert "train 55, val 5, test 20" in said.out
    assert "left out: 2 entries of the folder, such as cifar10_png_train_airplane_7" in said.err
    learn = ("task=inr_classification", "trainer.epochs=1", "model.responses=8", "task.batch=20", "task.chunk=20")
    told = within("train", *learn, "--zoo", tmp_path / "images", "--folder", tmp_path / "m", "--json").works().json
    assert set(told["test"]["true"]) <= set("0123456789")
    transformers(tmp_path / "small", options=VISION)
    words = ("zoo", "import", "transformer_zoo", tmp_path / "small", "least=0.45", "--folder", tmp_path / "t")
    assert "test accuracy: 0.451 to" in within(*words).works().out
    learn = (*FAST, "task.column=test_accuracy")
    within("train", *learn, "--zoo", tmp_path / "t", "--folder", tmp_path / "n", "--json").works()


def test_bad_input(tmp_path: Path) -> None:
    small_cnn_zoo(tmp_path / "cnn")
    words = ("zoo", "import", "small_cnn_zoo", tmp_path / "cnn", "strides=[2,1]", "size=8")
    new = ("--folder", tmp_path / "zoo")
    assert within(*words, *new, "--expect", "30000").refuses("holds 4 networks, expected 30000")
    assert within(*words, "stp=86", *new).refuses("stp", "known: step, strides, size")
    assert within(*words, "86", *new).refuses("'86'", "step=86")
    assert within(*words, "size=[", *new).refuses("size=[")
    assert within("zoo", "import", "cnns", tmp_path, *new).refuses("cnns", "inr_folders")
    assert within("zoo", "import", "inr_folders", tmp_path / "cnn", *new).refuses("holds no network")
    assert within("zoo", "import", "transformer_zoo", tmp_path / "cnn", *new).refuses("metadata")
    assert within(*words).refuses("--folder")
    data = (tmp_path / "cnn" / "weights.npy").read_bytes()
    (tmp_path / "cnn" / "weights.npy").write_bytes(data[:-100])
    assert within(*words, *new).refuses("weights.npy")
    assert not (tmp_path / "zoo").exists()
