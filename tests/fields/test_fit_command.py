"""What does `metanet field fit` refuse before it learns anything, and what does it say of what it made?"""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import metanet
import symmetry
from metanet.checkpoint import save_checkpoint
from metanet.errors import FieldError
from metanet.fields import Recipe, Training, distil, open_field
from metanet.fields.distil import SETTINGS
from tests.cli.command import Answer, within

MLP = metanet.Architecture("mlp", {"inputs": 6, "widths": [8, 4], "outputs": 3, "activation": "relu"})
VALUES = metanet.Architecture("mlp", {"inputs": 6, "widths": [8], "outputs": 1, "activation": "tanh"})
generator = np.random.default_rng(0)
X = generator.normal(size=(40, 6))
Y = np.arange(40) % 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    state = MLP.build(1).state_dict()
    save_checkpoint(folder / "network.safetensors", state, MLP)
    save_checkpoint(folder / "double.safetensors", {name: value.double() for name, value in state.items()}, MLP)
    save_checkpoint(folder / "broken.safetensors", {name: value * float("nan") for name, value in state.items()}, MLP)
    save_checkpoint(folder / "values.safetensors", VALUES.build(1).state_dict(), VALUES)
    for name, arrays in {
        "data": {"x": X.astype("f4"), "y": Y},
        "double": {"x": X, "y": Y},
        "values": {"x": X.astype("f4"), "y": X[:, :1].astype("f4")},
        "unlabelled": {"x": X.astype("f4")},
        "classes": {"x": X.astype("f4"), "y": Y + 2},
        "narrow": {"x": X[:, :5].astype("f4"), "y": Y},
        "nan": {"x": np.where(np.arange(40)[:, None] == 3, np.nan, X).astype("f4"), "y": Y},
        "few": {"x": X[:3].astype("f4"), "y": Y[:3]},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def fit(place: Path, out: Path, *words: str, file: str = "network", data: str = "data") -> Answer:
    given = [str(place / f"{file}.safetensors"), "--data", str(place / f"{data}.npz"), "--out", str(out)]
    return within("field", "fit", *given, "--steps", "2", *words)


@pytest.mark.parametrize(
    ("words", "file", "data", "message"),
    [
        ((), "network", "classes", "--data: labels from 2 to 4 for 3 classes"),
        ((), "network", "narrow", "--data: the network does not run on inputs [20, 5]"),
        ((), "network", "nan", "--data: the network's answers to 1 of 20 inputs are not finite"),
        ((), "broken", "data", "answers to 20 of 20 inputs are not finite"),
        ((), "network", "few", "3 inputs; give at least four"),
        (("--spaces", ","), "network", "data", "--spaces names none"),
        (("--spaces", "nowhere"), "network", "data", "no space 'nowhere'; the network has layers.0, layers.1"),
        (("--low", "0"), "network", "data", "--low: 0 given, expected a number above 0"),
        (("--low", "1"), "network", "data", "narrowest width 1; expected below 1"),
        (("--low", "0.5", "--high", "0.4"), "network", "data", "widths from 0.5 to 0.4"),
        (("--high", "1e9"), "network", "data", "widest width 1e+09: a network of"),
        (("--rate", "nan"), "network", "data", "--rate: nan given"),
        (("--noise", "-1"), "network", "data", "--noise: -1 given"),
        (("--hidden", "5000", "--kind", "mlp"), "network", "data", "from 1 to 4096"),
        (("--hidden", "8"), "network", "data", "--hidden with --kind knots"),
        (("--seed", str(2**63)), "network", "data", "below 2**63"),
    ],
)
def test_bad_input_is_told_in_one_line(
    words: tuple[str, ...], file: str, data: str, message: str, place: Path, tmp_path: Path
) -> None:
    fit(place, tmp_path / "field", *words, file=file, data=data).refuses(message)
    assert not list(tmp_path.iterdir())


def test_the_table_tells_what_can_be_known(place: Path, tmp_path: Path) -> None:
    def columns(name: str, *words: str, **options: str) -> str:
        return fit(place, tmp_path / name, *words, **options).works().out.splitlines()[0].strip()

    assert columns("a").split() == ["width", "parameters", "accuracy", "KL", "agreement"]
    assert columns("b", data="unlabelled").split() == ["width", "parameters", "KL", "agreement"]
    assert columns("c", "--bits", "8").endswith("KL with 32 bits")
    assert columns("d", file="values", data="values") == "width  parameters  relative L2"
    assert fit(place, tmp_path / "f").works().err == ""
    # Files of another precision are read, and a field is in float32.
    fit(place, tmp_path / "e", file="double", data="double").works()
    assert {tensor.dtype for tensor in open_field(tmp_path / "e").field.state_dict().values()} <= {torch.float32}


def test_accuracy_is_that_of_the_networks(place: Path, tmp_path: Path) -> None:
    told = fit(place, tmp_path / "field", "--rate", "1e-7", "--width-knots", "1", "--json").works().json
    scored = torch.tensor(X[::2], dtype=torch.float32)
    right = float((MLP.build(1)(scored).argmax(1) == torch.tensor(Y[::2])).double().mean())
    assert told["accuracy"] == pytest.approx(right)
    assert told["certificates"]["1"]["preservation"]["outputs"][0]["kl"]["value"] < 1e-6
    assert set(told["certificates"]) == {"0.25", "0.375", "0.5", "0.625", "0.75", "0.875", "1"}
    # A table for each tensor and nothing that varies with the width: exactly the numbers of the network.
    assert told["stored"] == told["network"]


def test_a_killed_fit_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("metanet.fields.training.KEEP_EVERY", 2)
    monkeypatch.setattr(importlib.import_module("metanet.fields.distil"), "estimate", stop)
    words = [str(place / "network.safetensors"), "--data", str(place / "data.npz"), "--out", str(tmp_path / "field")]
    assert within("field", "fit", *words, "--steps", "4").code != 0
    state = tmp_path / ".field.training-state.safetensors"
    assert list(tmp_path.iterdir()) == [state]
    monkeypatch.undo()
    within("field", "fit", *words, "--steps", "4", "--seed", "1").refuses("belongs to another configuration")
    answer = within("field", "fit", *words, "--steps", "4").works()
    assert answer.err.strip() == f"training went on where {state} had left it"
    assert [path.name for path in tmp_path.iterdir()] == ["field"]


def test_full_width_is_always_within_the_range() -> None:
    model, example = MLP.build(1).eval(), MLP.example_inputs()
    spec = symmetry.trace(model, example)
    data = Training(torch.tensor(X, dtype=torch.float32))
    settings = SETTINGS.from_json({**SETTINGS.to_json(), "steps": 1, "high": 0.5})
    assert distil(model, spec, example, data, Recipe(settings=settings)).widths == (0.25, 1.0)
    with pytest.raises(FieldError, match="no space shall vary"):
        distil(model, spec, example, Training(data.inputs, spaces=()), Recipe(settings=settings))
