"""Does the loop learn, keep the best weights, stop in time, and stop loudly when numbers break?"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metanet.errors import ConfigError, TrainError
from metanet.train import Artefact, Monitor, TrainerSettings, fit, learning_rate, train

from .toy import ToyTask, toy_data

SETTINGS = TrainerSettings(epochs=30, learning_rate=0.05, patience=0, progress=False)


def test_learns_and_is_a_function_of_its_arguments():
    before = torch.get_rng_state()
    first = fit(ToyTask(), toy_data(), {}, SETTINGS)
    again = fit(ToyTask(), toy_data(), {}, SETTINGS)
    other = fit(ToyTask(), toy_data(), {}, replace(SETTINGS, seed=1))
    assert first.best_value < 0.25 * first.history[0]["val_mse"]
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
    assert not torch.equal(first.model[0].weight, other.model[0].weight)
    assert torch.equal(before, torch.get_rng_state()), "the global generator was left changed"


def test_the_best_epoch_is_kept_not_the_last():
    task, data = ToyTask(), toy_data()
    result = fit(task, data, {}, replace(SETTINGS, learning_rate=0.5, schedule="constant"))
    values = [row["val_mse"] for row in result.history]
    assert result.best_value == min(values) == values[result.best_epoch - 1]
    assert result.best_epoch < len(values), "this setting should end worse than its best"
    with torch.no_grad():
        assert task.metrics(result.model, data)["val_mse"] == result.best_value
    assert not result.model.training


def test_early_stopping_waits_for_patience_and_for_the_minimum():
    # Asked for the highest error, the run gets no better once it has learned.
    result = fit(ToyTask(higher_is_better=True), toy_data(), {}, replace(SETTINGS, patience=4))
    assert result.stopped_early
    assert len(result.history) == result.best_epoch + 4
    longer = fit(ToyTask(higher_is_better=True), toy_data(), {}, replace(SETTINGS, patience=4, minimum_epochs=20))
    assert len(longer.history) == 20
    never = fit(ToyTask(higher_is_better=True), toy_data(), {}, replace(SETTINGS, patience=0))
    assert len(never.history) == 30
    assert not never.stopped_early


def test_average_of_weights_is_what_is_validated_and_kept():
    task, data = ToyTask(), toy_data()
    plain = fit(task, data, {}, SETTINGS)
    average = fit(task, data, {}, replace(SETTINGS, average=0.9))
    with torch.no_grad():
        assert task.metrics(average.model, data)["val_mse"] == average.best_value
    assert not torch.equal(plain.model[0].weight, average.model[0].weight)


def test_nan_stops_with_place_and_advice():
    with pytest.raises(TrainError, match=r"the loss is nan at epoch 1, step 1, .*lower trainer.learning_rate"):
        fit(ToyTask(nan_at=0), toy_data(), {}, SETTINGS)


def test_logs_and_manifest_agree_with_the_run(tmp_path):
    result = train(ToyTask(), toy_data(), {}, SETTINGS, tmp_path / "run")
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [int(row["epoch"]) for row in rows] == [line["epoch"] for line in lines] == list(range(1, 31))
    assert [float(row["val_mse"]) for row in rows] == [row["val_mse"] for row in result.history]
    artefact = Artefact.open(tmp_path / "run")
    assert artefact.manifest["best"] == {"epoch": result.best_epoch, "metric": "val_mse", "value": result.best_value}
    assert artefact.manifest["seed"] == 0
    assert artefact.manifest["versions"]["torch"] == artefact.config["versions"]["torch"]
    assert artefact.config["trainer"]["learning_rate"] == 0.05
    for name, tensor in artefact.tensors().items():
        assert torch.equal(tensor, result.model.state_dict()[name])
    assert not (tmp_path / "run" / "training-state.safetensors").exists()


def test_in_memory_and_in_a_folder_are_the_same_run(tmp_path):
    one = fit(ToyTask(), toy_data(), {}, SETTINGS).model.state_dict()
    two = train(ToyTask(), toy_data(), {}, SETTINGS, tmp_path / "run").model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_tensorboard_when_asked_for(tmp_path, monkeypatch):
    settings = replace(SETTINGS, epochs=2, tensorboard=True)
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    train(ToyTask(), toy_data(), {}, settings, tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainError, match=r"TensorBoard is not installed.*pip install"):
        train(ToyTask(), toy_data(), {}, settings, tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, "no such setting: 'epoch'"),
        ({"epochs": 0}, "trainer.epochs: 0 given, expected 1 or more"),
        ({"epochs": 2.5}, "trainer.epochs: 2.5 given, expected a whole number"),
        ({"learning_rate": "fast"}, "trainer.learning_rate: 'fast' given, expected a number"),
        ({"learning_rate": math.nan}, "trainer.learning_rate: nan given"),
        ({"schedule": "steps"}, "expected one of constant, cosine, one_cycle"),
        ({"progress": 1}, "expected true, false or null"),
        ({"tensorboard": "yes"}, "expected true or false"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        TrainerSettings.from_mapping(options)


def test_a_device_that_is_not_there_is_a_config_error():
    with pytest.raises(ConfigError, match=r"trainer\.device"):
        fit(ToyTask(), toy_data(), {}, replace(SETTINGS, device="warp:9"))


@given(
    schedule=st.sampled_from(["constant", "cosine", "one_cycle"]),
    warmup=st.floats(0, 0.9),
    final=st.floats(0, 1),
    progress=st.floats(0, 1),
)
def test_learning_rate_stays_between_zero_and_its_peak(schedule, warmup, final, progress):
    settings = TrainerSettings(schedule=schedule, warmup=warmup, final=final, learning_rate=0.3)
    assert 0 <= learning_rate(settings, progress) <= 0.3 * (1 + 1e-12)
    assert learning_rate(settings, warmup) == pytest.approx(0.3)


def test_cosine_rises_then_falls_to_its_end():
    settings = TrainerSettings(warmup=0.25, final=0.1, learning_rate=1.0)
    rates = [learning_rate(settings, step / 100) for step in range(101)]
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_monitor_never_takes_nan():
    monitor = Monitor("tau", True)
    assert not monitor.improves(math.nan, None)
    assert monitor.improves(0.1, None)
    assert monitor.improves(0.2, 0.1)
    assert not monitor.improves(0.1, 0.1)
    assert Monitor("loss", False).improves(0.1, 0.2)
