"""Training a predictor of morphs and narrowing with it, as users do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import metanet
from metanet import morph
from metanet.datasets import Zoo
from metanet.tasks.morph_model import MorphModel
from tests.cli.command import within

FAST = ("trainer.epochs=1", "task.steps=3", "task.batch=4", "task.images=16", "trainer.progress=false")


@pytest.fixture(scope="module")
def predictor(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictor") / "model"
    arguments = ("train", "task=morph", "--zoo", tiny_zoo, "--folder", folder, "model.inputs=24", *FAST, "--json")
    found = within(*arguments)
    told = found.works().json
    assert {model["name"] for model in told["test"]["models"]} == {"metanet", "smooth", "images"}
    assert told["test"]["metric"] == "closeness"
    return folder


@pytest.fixture(scope="module")
def network(tiny_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    zoo, path = Zoo.open(tiny_zoo), tmp_path_factory.mktemp("network") / "weights.safetensors"
    zoo.export(next(i for i, entry in enumerate(zoo) if entry.architecture.family == "mlp"), path)
    return path


def test_a_network_is_narrowed_from_its_weights_alone(predictor: Path, network: Path, tmp_path: Path) -> None:
    out = tmp_path / "narrow"
    told = within("morph", network, "--width", "0.5", "--predict", predictor, "--out", out, "--rounds", "1", "--json")
    assert told.works().json["certificate"]["preservation"]["outputs"]
    assert (out / "weights.safetensors").is_file()


def test_the_command_edits_with_the_inputs_that_the_predictor_makes(
    predictor: Path, network: Path, tmp_path: Path
) -> None:
    out = tmp_path / "narrow"
    within("morph", network, "--width", "0.5", "--predict", predictor, "--out", out).works()
    checkpoint = metanet.load(network)
    model, spec, example = checkpoint.model(), checkpoint.spec, checkpoint.architecture.example_inputs()
    compensation = MorphModel.open(predictor).compensation(model, spec, example[0])
    sizes = morph.to_sizes(spec, 0.5, morph.resizable(spec))
    plan = morph.narrow_by_obs(model, spec, sizes, compensation.batches or (), compensation.ridge)
    made = morph.apply(plan, model, example, spec=spec, compensation=compensation).model.state_dict()
    stored = metanet.load(out).state
    assert made.keys() == stored.keys()
    assert all(torch.allclose(made[name], stored[name], rtol=1e-5, atol=1e-6) for name in made)


def test_several_zoos_are_for_morphs_alone(tiny_zoo: Path, tmp_path: Path) -> None:
    two = ("--zoo", tiny_zoo, "--zoo", tiny_zoo, "--folder", tmp_path / "model")
    found = within("train", "task=property", "task.column=test_accuracy", *two, *FAST[:1])
    assert found.refuses("2 zoos given; only task=morph learns from several")


def test_refusals(predictor: Path, network: Path, tmp_path: Path) -> None:
    for words, arguments in (
        ("--predict with --no-compensation", ("--predict", predictor, "--no-compensation")),
        ("no such", ("--predict", tmp_path / "nothing")),
    ):
        assert within("morph", network, "--width", "0.5", *arguments).refuses(words)
