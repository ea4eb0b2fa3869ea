"""Does `metanet morph --field` write what the field writes, within the budget, and refuse what cannot be?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import metanet
import symmetry
from metanet.fields import KnotsField, Sampling, StoredField, open_field, save_field
from metanet.morph import open_folder, timing, undo_folder
from tests.cli.command import within
from tests.cli.test_morph import flops_as_time

OPTIONS = {"inputs": 64, "widths": [12, 10], "outputs": 10, "activation": "relu"}
MLP = metanet.Architecture("mlp", OPTIONS)
NARROW = metanet.Architecture("mlp", {**OPTIONS, "widths": [12, 9]})
TANH = metanet.Architecture("mlp", {**OPTIONS, "widths": [12, 10, 4]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("field")
    for name, architecture, seed in (("own", MLP, 0), ("other", MLP, 1), ("narrow", NARROW, 0), ("deep", TANH, 0)):
        state = architecture.build(seed).state_dict()
        metanet.save_checkpoint(folder / f"{name}.safetensors", state, architecture)
    np.savez(folder / "other.npz", x=np.zeros((8, 7), dtype=np.float32))
    model = MLP.build(0).eval()
    spec = symmetry.trace(model, MLP.example_inputs())
    field = KnotsField(spec, model.state_dict(), Sampling("cut", "copies"), start="fit")
    save_field(folder / "field", StoredField(field, (0.25, 1.0), ("layers.0", "layers.1"), MLP))
    return folder


def test_a_budget_becomes_a_folder_of_a_morph(folder: Path) -> None:
    words = ("morph", "own.safetensors", "--field", "field", "--parameters", "600", "--data", "digits")
    told = within(*words, "--out", "small", "--report", "small.html", "--json", cwd=folder).works().json
    assert told["certificate"]["after"]["parameters"] <= 600
    assert told["field"]["full_width"]["kl"] == pytest.approx(0, abs=1e-9)
    search = told["field"]["search"]
    assert all(each["parameters"] <= 600 for each in search)
    assert told["field"]["chosen"]["loss"] == min(each["loss"] for each in search) <= told["field"]["uniform"]["loss"]
    assert [point["taken"] for point in told["frontier"]].count(True) == 1
    # What chose does not score: 398 of 797 images, the other 399.
    assert told["field"]["validation"] + told["certificate"]["preservation"]["inputs"] == 797
    opened, sizes = open_folder(folder / "small"), told["field"]["chosen"]["sizes"]
    written = open_field(folder / "field").field(None, sizes)
    assert all(torch.equal(opened.state[name], tensor) for name, tensor in written.items())
    assert opened.architecture is not None
    assert list(opened.architecture.options["widths"]) == list(sizes.values())
    assert opened.certificate is not None
    assert opened.certificate.plan["field"]["search"] == search
    back = undo_folder(MLP.build(5).eval(), folder / "small", MLP.example_inputs())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), MLP.build(0).state_dict().values()))
    assert "written by a field" in (folder / "small.html").read_text()
    again = ("morph", "other.safetensors", "--plan", "small/plan.json")
    assert within(*again, cwd=folder).refuses("layers.0", "no edit makes these weights; have the network written again")


def test_what_is_said_of_a_checkpoint_that_the_field_was_not_made_of(folder: Path) -> None:
    words = ("--field", "field", "--width", "0.5")
    told = within("morph", "other.safetensors", *words, "--json", cwd=folder).works().json
    assert told["field"]["full_width"]["kl"] > 1e-3
    assert told["field"]["search"][0]["sizes"] == {"layers.0": 6, "layers.1": 5}
    text = within("morph", "own.safetensors", *words, cwd=folder).works().out
    assert "by the field field (knots, 1,020 numbers, widths 0.25 to 1)" in text
    assert "its own network of full width: KL 0, agreement 100.0% from the checkpoint" in text
    sized = ("--field", "field", "--sizes", "layers.1=7", "--json")
    told = within("morph", "own.safetensors", *sized, cwd=folder).works().json
    assert told["certificate"]["after"]["parameters"] == 64 * 12 + 12 + 12 * 7 + 7 + 7 * 10 + 10


def test_a_latency_and_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "time_together", flops_as_time)
    words = ("morph", "own.safetensors", "--field", "field", "--latency-ms", "1.2", "--data", "digits", "--json")
    told = within(*words, cwd=folder).works().json
    after = told["certificate"]["after"]
    assert after["latency_ms"] == after["flops"] / 1000 <= 1.2
    assert told["timing"]["calls"][1]["median"] == after["latency_ms"] == told["field"]["chosen"]["latency_ms"]
    refused = within(*words, "--max-kl", "0", "--out", "none", cwd=folder)
    assert refused.code == 1
    assert not (folder / "none").exists()


def test_refusals(folder: Path) -> None:
    field = ("--field", "field")
    for name, words, parts in (
        ("own", (*field, "--parameters", "20"), ("20 parameters cannot be reached", "; ask with --extrapolate")),
        ("own", (*field, "--width", "0.1"), ("the field was trained for 3 to 12", "--extrapolate")),
        ("own", (*field, "--sizes", "layers.0=0"), ("0 units of 'layers.0'; expected 1 or more",)),
        ("own", (*field, "--sizes", "layers.0=900000000", "--extrapolate"), ("numbers; expected at most",)),
        ("own", (*field, "--width", "0.5", "--spaces", "nowhere"), ("no space 'nowhere'; the network has layers.0",)),
        ("own", (*field, "--width", "0.5", "--rounds", "2"), ("--field with --rounds",)),
        ("own", (*field, "--width", "0.5", "--criterion", "l2"), ("--field with --criterion",)),
        ("own", (*field, "--width", "0.5", "--tries", "2"), ("--tries without a budget",)),
        ("own", ("--sizes", "layers.0=3"), ("--sizes without --field",)),
        ("own", ("--width", "0.5", "--extrapolate"), ("--extrapolate without --field",)),
        ("own", ("--field", "own.safetensors", "--width", "0.5"), ("own.safetensors: manifest.json cannot be read",)),
        ("narrow", (*field, "--width", "0.5"), ("field: layers.1.weight, axis 0: the module has shape [9, 12], the",)),
        ("deep", (*field, "--width", "0.5"), ("layers.2.weight, axis 0", "another architecture")),
        ("own", (*field, "--sizes", "layers.0=3,layers.0=4"), ("--sizes: 'layers.0' is named twice",)),
        ("own", (*field, "--sizes", "layers.0=³"), ("--sizes: 'layers.0=³'; expected SPACE=N",)),
        ("own", (*field, "--width", "0.5", "--data", "other.npz"), ("--data: the network does not run on inputs",)),
    ):  # fmt: skip
        assert within("morph", f"{name}.safetensors", *words, cwd=folder).refuses(*parts)


def test_what_sampling_refuses(folder: Path) -> None:
    half = ("--width", "0.5")
    for words, part in (
        (("--width", "1e300", "--extrapolate"), "a network of more than 10^15 numbers; expected at most"),
        (("--width", "nan"), "width nan; expected a positive number"),
        ((*half, "--noise", "nan"), "--noise: nan given, expected a number of at least 0"),
        ((*half, "--draws", "3"), "--draws 3 without --noise"),
        ((*half, "--rows", "3"), "--rows without --data"),
        ((*half, "--data", "nowhere.npz"), "nowhere.npz is no file"),
        ((*half, "--data", "digits", "--rows", "1"), "digits: 1 inputs; give at least two"),
        ((*half, "--out", "field"), "field: exists already"),
        ((*half, "--out", "nowhere/half"), "the folder above it does not exist"),
    ):
        assert within("field", "sample", "field", "--out", "none", *words, cwd=folder).refuses(part)
    assert not (folder / "none").exists()
    stored = open_field(folder / "field")
    with torch.no_grad():
        next(stored.field.parameters()).view(-1)[0] = float("nan")
    save_field(folder / "broken", stored)
    for words in (("field", "sample", "broken", "--out", "none"), ("morph", "own.safetensors", "--field", "broken")):
        told = within(*words, *half, cwd=folder)
        assert told.refuses("broken: the field writes numbers in layers.0.weight that are not finite")
