"""Do all shipped configurations compose, build what they say, and hold data only?"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from metanet.commands._compose import compose
from metanet.errors import ConfigError
from metanet.nn import Metanet
from metanet.tasks import PropertyTask, build_model, task_from_mapping
from metanet.tasks.morph_task import MorphTask
from metanet.tasks.virtual import VirtualInputs
from metanet.train import TrainerSettings

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def names(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("task", names("task"))
def test_every_task_model_and_trainer_compose(task):
    for model, trainer in itertools.zip_longest(names("model"), names("trainer"), fillvalue="default"):
        words = [f"task={task}", f"trainer={trainer}", "seed=7"]
        config = compose("train", words + ([f"model={model}"] if model != "default" else []))
        made = task_from_mapping(config["task"])
        settings = TrainerSettings.from_mapping(config["trainer"])
        if config["model"]["name"] in ("steered", "virtual", "plan_score"):  # no metanetworks, built by their own tasks
            with pytest.raises(ConfigError, match="there is only 'metanet'"):
                build_model(config["model"], 2, torch.Generator())
            continue
        net = build_model(config["model"], 2, torch.Generator().manual_seed(0))
        assert made.describe()["task"] == config["task"]["task"]
        assert isinstance(net, Metanet)
        assert settings.seed == 7
        assert config["folder"].startswith("runs/")
        if model != "default":
            assert net.config["hidden"] == config["model"]["hidden"]


@pytest.mark.parametrize("model", ["virtual", "made_inputs"])
def test_inputs_of_morphs_compose_and_are_built(model):
    config = compose("train", ["task=morph", f"model={model}"])
    made = VirtualInputs.from_mapping(config["model"], (1, 8, 8), 2, torch.Generator().manual_seed(0))
    assert (made.options.inputs, made.kinds) == ((256, 2) if model == "virtual" else (0, 1))
    assert task_from_mapping(config["task"]) == MorphTask()
    assert config["trainer"]["weight_decay"] == 0


def test_the_property_task_of_the_files_is_that_of_the_code():
    """A default that stands twice must not differ: the files are the documentation of the code."""
    shipped = task_from_mapping(compose("train", [])["task"])
    assert shipped == PropertyTask("test_accuracy")


def test_a_task_may_prefer_a_data_set_and_the_user_may_overrule_it():
    config = compose("train", ["task=algorithm"])
    assert config["dataset"]["name"] == "rl_agents"
    assert config["dataset"]["group"] == "environment"
    assert config["task"]["kind"] == "classification"
    assert compose("train", ["task=algorithm", "dataset=zoo"])["dataset"]["kind"] == "zoo"
    assert compose("train", ["task=algorithm", "trainer=default"])["trainer"]["patience"] == 10


def test_configurations_are_data_and_name_no_code_and_no_machine():
    for path in CONFIGS.rglob("*.yaml"):
        text = path.read_text()
        for word in ("_target_", "/home/", "/work", "/tmp", "!!python", "eval("):
            assert word not in text, f"{path.name} holds {word}"
