"""Do `metanet train` and `metanet predict` train, resume and answer as they say, and refuse what they cannot do?"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import metanet as package
from metanet.datasets import Zoo
from tests.cli.command import metanet, within

FAST = ("model=small", "trainer=quick", "trainer.epochs=3", "task.boosting.trees=20")


@pytest.fixture(scope="session")
def model(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "accuracy"
    within("train", *FAST, "--zoo", tiny_zoo, "--folder", folder).works()
    return folder


@pytest.fixture(scope="session")
def files(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, zoo = tmp_path_factory.mktemp("files"), Zoo.open(tiny_zoo)
    paths = [folder / f"network {i}.safetensors" for i in zoo.split("test")]
    for i, path in zip(zoo.split("test"), paths, strict=True):
        zoo.export(int(i), path)
    return paths


def test_train_tells_what_it_did(tiny_zoo: Path, tmp_path: Path) -> None:
    words = ("train", *FAST, "task.column=activation", "--zoo", tiny_zoo, "--folder", tmp_path / "m", "--baselines")
    told = metanet(*words, "--json").works().json
    assert told["test"]["metric"] == "balanced_accuracy"
    assert {row["name"] for row in told["test"]["models"]} == {"average", "metanet", "trees", "flat", "constant"}
    assert Path(told["report"]).read_text().startswith("<!doctype html>")
    assert within(*words, "--json").refuses("finished model", "overwrite")
    assert within("report", tmp_path / "m", "--json").works().json["title"] == "Activation from weights"


def test_the_artefact_says_how_it_came_about(model: Path) -> None:
    config, manifest = (json.loads((model / name).read_text()) for name in ("config.json", "manifest.json"))
    assert config["task"]["column"] == "test_accuracy"
    assert manifest["seed"] == 0
    assert manifest["versions"]["torch"]
    assert len((model / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_killed_training_ends_with_the_same_weights(tiny_zoo: Path, tmp_path: Path) -> None:
    words = ["train", "model=small", "trainer.epochs=12", "trainer.patience=0", "trainer.threads=1"]
    words += ["task.ensemble=false", "--zoo", str(tiny_zoo)]
    within(*words, "--folder", tmp_path / "whole").works()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "metanet.cli", *words, "--folder", str(tmp_path / "killed")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        log, until = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(FileNotFoundError):
                if len(log.read_text().splitlines()) >= 3:
                    process.send_signal(signal.SIGKILL)
                    break
            time.sleep(0.005)
        process.wait()
    # Where it was too quick to be killed, this test has shown nothing.
    assert not (tmp_path / "killed" / "manifest.json").exists()
    assert within("predict", tmp_path / "killed", "x").refuses("not finished")
    within(*words, "--folder", tmp_path / "killed").works()
    whole, killed = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "killed")]
    assert len(rows[0]) == len(rows[1]) == 13


def test_predict_in_a_table_and_as_json(model: Path, files: list[Path]) -> None:
    shown = metanet("predict", model, *files).works().out.splitlines()
    told = within("predict", model, *files, "--json").works().json
    assert [row["name"] for row in told] == [str(path) for path in files]
    assert all(0 <= row["value"] <= 1 for row in told)
    assert len({row["value"] for row in told}) > 1
    assert shown[0].split() == ["test_accuracy", "file"]
    for line, row in zip(shown[1:], told, strict=True):
        assert float(line.split()[0]) == pytest.approx(row["value"], abs=1e-3)
        assert line.endswith(row["name"])


def test_one_file_is_one_answer_whatever_stands_beside_it(model: Path, files: list[Path]) -> None:
    (alone,) = within("predict", model, files[0], "--json").works().json
    together = within("predict", model, *files, "--json").works().json
    assert alone["value"] == pytest.approx(together[0]["value"], abs=1e-5)


def test_renumbered_units_get_the_same_answer(model: Path, files: list[Path], tmp_path: Path) -> None:
    checkpoint = package.load(files[0])
    element = checkpoint.spec.sample(torch.Generator().manual_seed(0), kinds=("permutation",))
    checkpoint.save(tmp_path / "same.safetensors", checkpoint.spec.act(element, checkpoint.state))
    other = {name: tensor + 0.1 * tensor.abs().mean() if tensor.is_floating_point() else tensor
             for name, tensor in checkpoint.state.items()}  # fmt: skip
    checkpoint.save(tmp_path / "other.safetensors", other)
    names = (files[0], tmp_path / "same.safetensors", tmp_path / "other.safetensors")
    one, same, control = (row["value"] for row in within("predict", model, *names, "--json").works().json)
    assert same == pytest.approx(one, abs=1e-5)
    assert abs(control - one) > 1e-4


def test_refused_files_do_not_stop_the_others(model: Path, files: list[Path], weights: Path, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no checkpoint")
    wide = package.Architecture("mlp", {"inputs": 5, "widths": [300], "outputs": 2, "activation": "relu"})
    package.save_checkpoint(tmp_path / "wide.safetensors", wide.build().state_dict(), wide)
    broken = package.load(files[0])
    state = {name: tensor.clone() for name, tensor in broken.state.items()}
    next(iter(state.values())).view(-1)[0] = float("nan")
    broken.save(tmp_path / "nan.safetensors", state)
    names = [tmp_path / "text.pt", files[0], tmp_path / "wide.safetensors", tmp_path / "nan.safetensors", files[1]]
    answer = within("predict", model, *names, "--json")
    assert answer.code == 2
    assert [bool(row["refused"]) for row in answer.json] == [True, False, True, True, False]
    assert "architecture not readable" in answer.json[2]["refused"]
    assert "3 of 5 files refused" in answer.err
    shown = within("predict", model, *names)
    assert shown.code == 2
    assert len(shown.out.splitlines()) == 3
    assert shown.err.count("refused: ") == 3
    forced = within("predict", model, tmp_path / "wide.safetensors", "--anyway", "--json").works().json
    assert "extrapolates" in forced[0]["warning"]


def test_hundreds_of_files_by_a_list(model: Path, files: list[Path], tmp_path: Path) -> None:
    many = [shutil.copy(files[i % len(files)], tmp_path / f"{i}.safetensors") for i in range(300)]
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map(str, many)) + "\n\n")
    told = within("predict", model, "--files-from", listed, "--json").works().json
    assert len(told) == 300
    assert told[0]["value"] == pytest.approx(told[len(files)]["value"], abs=1e-5)


def test_bad_input(model: Path, tiny_zoo: Path, weights: Path, tmp_path: Path) -> None:
    assert within("predict", tmp_path / "none", weights).refuses("no such folder", "metanet train")
    assert within("predict", tiny_zoo, weights).refuses(str(tiny_zoo))
    assert within("predict", model).refuses("--files-from")
    assert within("predict", model, "--files-from", tmp_path / "absent").refuses("absent")
    train = ("train", *FAST, "--zoo", tiny_zoo, "--folder", tmp_path / "m")
    assert within(*train, "task.column=colour").refuses("colour", "test_accuracy")
    assert within(*train, "trainer.epochs=0").refuses("trainer.epochs")
    assert within(*train, "model.hiden=3").refuses("hiden")
    assert within(*train, "model=huge").refuses("huge", "strict")
    assert within("train", *FAST, "--zoo", tmp_path, "--folder", tmp_path / "m").refuses("manifest.json")
    assert within("train", "dataset=folder", "--folder", tmp_path / "m").refuses("dataset.folder")
    assert not (tmp_path / "m").exists()


def test_a_folder_of_files_with_a_table(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    rows = ["file,origin,score"]
    for number in range(12):
        shutil.copy(files[number % len(files)], folder / f"{number}.safetensors")
        rows.append(f"{number}.safetensors,{number // 2},{0.1 * number:.1f}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    words = ("train", "dataset=folder", f"dataset.folder={folder}", "dataset.group=origin", "task.column=score")
    told = within(*words, *FAST, "--folder", tmp_path / "m", "--json").works().json
    assert told["test"]["column"] == "score"
    assert not set(told["test"]["groups"]) & {""}


def test_answers_at_every_weight(tiny_zoo: Path, files: list[Path], tmp_path: Path) -> None:
    words = ("train", "task=edge", "task.examples=16", "trainer.epochs=2", "model.hidden=8", "--zoo", tiny_zoo)
    told = within(*words, "--folder", tmp_path / "m", "--json").works().json
    assert {row["name"] for row in told["test"]["models"]} == {"metanet", "magnitude"}
    (answer,) = within("predict", tmp_path / "m", files[0], "--json").works().json
    state = load_file(files[0])
    values = {name: torch.tensor(value).float() for name, value in answer["values"].items()}
    assert values.keys() <= state.keys()
    assert all(value.shape == state[name].shape for name, value in values.items())
    assert max(float(value.std()) for value in values.values() if value.numel() > 1) > 1e-3
    # A saliency is no change: a rescaled network gets the same answers.
    checkpoint = package.load(files[0])
    element = checkpoint.spec.sample(torch.Generator().manual_seed(0), kinds=("scale", "sign"))
    checkpoint.save(tmp_path / "same.safetensors", checkpoint.spec.act(element, checkpoint.state))
    (same,) = within("predict", tmp_path / "m", tmp_path / "same.safetensors", "--json").works().json
    away = max(float((torch.tensor(same["values"][name]) - value).abs().max()) for name, value in values.items())
    assert away < 1e-2 * max(float(value.std()) for value in values.values() if value.numel() > 1)
