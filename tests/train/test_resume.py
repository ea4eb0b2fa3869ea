"""Does a run that was killed with SIGKILL end with the very weights of one that was not?"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metanet.errors import TrainError
from metanet.train import Artefact, TrainerSettings, train
from metanet.train.state import LoopState

from .toy import ToyTask, toy_data

OPTIONS = {"epochs": 40, "learning_rate": 0.01, "average": 0.9, "patience": 30, "threads": 1, "progress": False}
SETTINGS = TrainerSettings.from_mapping(OPTIONS)
PROGRAM = Path(__file__).with_name("toy.py")
STATE = "training-state.safetensors"


def _start(folder: Path, delay: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PROGRAM), str(folder), str(delay), json.dumps(OPTIONS)]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def _kill_after_epoch(folder: Path, epoch: int, wait: float) -> None:
    process = _start(folder, delay=0.01)
    log, deadline = folder / "metrics.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") >= epoch):
        assert process.poll() is None, "the run ended before it could be killed: " + process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()


def _assert_same(one: Path, two: Path) -> None:
    first, second = Artefact.open(one), Artefact.open(two)
    for name in ("weights.safetensors", "extra.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert first.manifest["best"] == second.manifest["best"]
    rows = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, two)]
    for row in rows[0] + rows[1]:
        del row["seconds"]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = _start(folder, delay=0)
    assert process.wait(120) == 0, process.stderr.read().decode()
    process.stderr.close()
    return folder


def test_killed_at_random_moments_and_resumed(tmp_path, uninterrupted):
    chance, folder = random.Random(5), tmp_path / "run"
    for epoch in sorted(chance.sample(range(1, 34), 3)):
        _kill_after_epoch(folder, epoch, chance.uniform(0, 0.05))
        assert not (folder / "manifest.json").exists()
        with pytest.raises(TrainError, match="not finished; run the same `metanet train` again"):
            Artefact.open(folder)
    process = _start(folder, delay=0)
    assert process.wait(120) == 0, process.stderr.read().decode()
    process.stderr.close()
    _assert_same(folder, uninterrupted)


def test_another_seed_is_told_apart(tmp_path, uninterrupted):
    train(ToyTask(), toy_data(), {"hidden": 8}, replace(SETTINGS, seed=1), tmp_path / "run")
    with pytest.raises(AssertionError):
        _assert_same(tmp_path / "run", uninterrupted)


class Crash(BaseException):
    """Stands for a kill at one exact line of the run."""


@pytest.mark.parametrize("epoch", [1, 17, 40])
def test_a_crash_between_state_and_log_or_before_the_manifest(tmp_path, monkeypatch, uninterrupted, epoch):
    import metanet.train.logs as logs

    add = logs.FolderLog.add

    def crash(self, row):
        if row["epoch"] == epoch:
            raise Crash
        add(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(logs.FolderLog, "add", crash)
        with pytest.raises(Crash):
            train(ToyTask(), toy_data(), {"hidden": 8}, SETTINGS, tmp_path / "run")
    train(ToyTask(), toy_data(), {"hidden": 8}, SETTINGS, tmp_path / "run")
    _assert_same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("part", ["optimizer", "generators", "average", "best", "model"])
def test_every_part_of_the_state_matters(tmp_path, monkeypatch, uninterrupted, part):
    """The negative control: a state that lacks one part must not end with the same weights."""
    save = LoopState.save

    def save_then_crash(self, path, identity):
        save(self, path, identity)
        if self.epoch == 17:
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(LoopState, "save", save_then_crash)
        with pytest.raises(Crash):
            train(ToyTask(), toy_data(), {"hidden": 8}, SETTINGS, tmp_path / "run")
    load = LoopState.load.__func__

    def damaged(cls, path, identity):
        state = load(cls, path, identity)
        if part == "best":
            state.best_value = 0.0
        elif part == "generators":
            state.generators["loop"] = torch.Generator().get_state()
        elif part == "optimizer":
            state.optimizer = {}
        else:
            for tensor in getattr(state, part).values():
                tensor.zero_()
        return state

    monkeypatch.setattr(LoopState, "load", classmethod(damaged))
    train(ToyTask(), toy_data(), {"hidden": 8}, SETTINGS, tmp_path / "run")
    assert Artefact.open(uninterrupted).manifest["best"]["epoch"] > 17
    with pytest.raises(AssertionError):
        _assert_same(tmp_path / "run", uninterrupted)


def test_finished_and_foreign_folders_are_refused(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    arguments = (ToyTask(), toy_data(), {"hidden": 8})
    with pytest.raises(TrainError, match="holds a finished model; name another folder, or overwrite"):
        train(*arguments, SETTINGS, folder)
    with pytest.raises(TrainError, match=r"another configuration \(differs in trainer.learning_rate\)"):
        train(*arguments, replace(SETTINGS, learning_rate=0.02), folder)
    with pytest.raises(TrainError, match=r"differs in model.hidden"):
        train(ToyTask(), toy_data(), {"hidden": 9}, SETTINGS, folder)
    with pytest.raises(TrainError, match=r"differs in data.name"):
        train(ToyTask(), toy_data(name="other"), {"hidden": 8}, SETTINGS, folder)
    train(*arguments, replace(SETTINGS, epochs=2), folder, overwrite=True)
    assert Artefact.open(folder).manifest["epochs"] == 2
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(TrainError, match=r"holds 'thesis.tex' but no config.json"):
            train(*arguments, SETTINGS, tmp_path / "foreign", overwrite=overwrite)
    assert (tmp_path / "foreign" / "thesis.tex").exists()


def test_presentation_may_change_between_kill_and_resume(tmp_path, monkeypatch):
    save = LoopState.save

    def save_then_crash(self, path, identity):
        save(self, path, identity)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(LoopState, "save", save_then_crash)
        with pytest.raises(Crash):
            train(ToyTask(), toy_data(), {"hidden": 8}, SETTINGS, tmp_path / "run")
    train(ToyTask(), toy_data(), {"hidden": 8}, replace(SETTINGS, checkpoint_every=5), tmp_path / "run")


def test_a_resumed_run_computes_with_as_many_threads_as_before(tmp_path, monkeypatch):
    save, seen = LoopState.save, []

    def save_then_crash(self, path, identity):
        save(self, path, identity)
        raise Crash

    settings = replace(SETTINGS, threads=0, epochs=2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with monkeypatch.context() as patch:
            patch.setattr(LoopState, "save", save_then_crash)
            with pytest.raises(Crash):
                train(ToyTask(), toy_data(), {"hidden": 8}, settings, tmp_path / "run")
        torch.set_num_threads(1)
        monkeypatch.setattr(ToyTask, "metrics", lambda *a: seen.append(torch.get_num_threads()) or {"val_mse": 1.0})
        train(ToyTask(), toy_data(), {"hidden": 8}, settings, tmp_path / "run")
        assert seen == [2]
        assert torch.get_num_threads() == 1, "the number of threads was left changed"
    finally:
        torch.set_num_threads(before)


def test_a_damaged_state_or_artefact_is_named(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    weights = bytearray((folder / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(bytes(weights))
    with pytest.raises(TrainError, match=r"weights\.safetensors: differs from what the manifest says"):
        Artefact.open(folder).tensors()
    with pytest.raises(TrainError, match=r"holds no \.\./secret"):
        Artefact.open(folder).tensors("../secret")
    (folder / "manifest.json").unlink()
    (folder / STATE).write_bytes(b"half a sta")
    with pytest.raises(TrainError, match="not a readable training state"):
        train(ToyTask(), toy_data(), {"hidden": 8}, SETTINGS, folder)
