"""Does `metanet inspect` tell the truth about a file, prove it when asked, and refuse what is no checkpoint?"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path

import pytest
import torch

from metanet import cli
from metanet.commands import inspect_file
from symmetry import Verification
from tests.cli.command import metanet, within


def numbers_blurred(text: str) -> str:
    """Measured errors differ in their last digits between machines; everything else must be the same."""
    return re.sub(r"\d\.\de[+-]\d\d", "N", text)


def test_the_page_shows_what_the_command_prints(weights: Path, root: Path) -> None:
    shown = re.search(r"```text\n(.*?)```", (root / "docs" / "inspect.md").read_text(), re.DOTALL)
    assert shown is not None
    printed = metanet("inspect", weights.name, "--verify", cwd=weights.parent).works().out
    assert numbers_blurred(printed) == numbers_blurred(shown[1])


def test_json_says_the_same(weights: Path) -> None:
    told = within("inspect", weights, "--verify", "--json").works().json
    assert told["symmetry"]["permutation_order"] == str(math.factorial(32) * math.factorial(16))
    assert told["symmetry"]["scale_dimension"] == 48
    assert told["symmetry"]["sign_bits"] == 0
    first = told["symmetry"]["spaces"][0]
    assert first["twins"] == [[3, 7]]
    assert first["unread"] == [5]
    assert told["verification"]["passed"] is True
    assert told["architecture"]["family"] == "mlp"
    assert told["tensors"]["layers.0.weight"] == {"shape": [32, 64], "dtype": "float32"}
    assert told["parameters"] == sum(math.prod(t["shape"]) for t in told["tensors"].values())


def test_a_failed_check_exits_with_one(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = Verification((), 0.3, 0.5, 1.0, False, 8)
    monkeypatch.setattr(inspect_file, "verify", lambda checkpoint, trials: failed)
    assert cli.main(["inspect", str(weights), "--verify"]) == cli.CHECK_FAILED
    assert "NOT verified" in capsys.readouterr().out
    # Without --verify nothing is claimed to be checked.
    assert cli.main(["inspect", str(weights)]) == cli.OK


def test_the_architecture_may_be_said(bare: Path, tmp_path: Path) -> None:
    assert "activation relu" in within("inspect", bare, "--activation", "relu").works().out
    said = tmp_path / "said.json"
    said.write_text(
        '{"format": "metanet.architecture/1", "family": "mlp", "options": '
        '{"inputs": 64, "widths": [32, 16], "outputs": 10, "activation": "tanh"}}'
    )
    assert "sign flips 48" in within("inspect", bare, "--architecture", said).works().out


def test_a_factory_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(
        "import torch\n"
        "def make():\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))\n"
        "    return model, (torch.randn(7, 4),)\n"
    )
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    told = within("inspect", "mine.pt", "--factory", "my_models:make", "--verify", "--json", cwd=tmp_path).works().json
    assert told["symmetry"]["scale_dimension"] == 8
    within("inspect", "mine.pt", "--factory", "my_models:no_such", cwd=tmp_path).refuses("no_such")


def test_refusals(bare: Path, weights: Path, tmp_path: Path) -> None:
    assert within("inspect", tmp_path / "absent.pt").refuses("absent.pt")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    assert within("inspect", tmp_path / "text.pt").refuses("text.pt", "no checkpoint")
    assert within("inspect", bare).refuses("bare.pt", "activation")
    assert within("inspect", weights, "--activation", "relu", "--factory", "a:b").refuses("not allowed with")


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]  # any callable will do


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    with open(tmp_path / "attack.pt", "wb") as file:
        pickle.dump({"weight": Attack()}, file)
    torch.save({"weight": Attack()}, tmp_path / "attack.pth")
    for name in ("attack.pt", "attack.pth"):
        assert metanet("inspect", name, cwd=tmp_path).refuses(name)
    assert not (tmp_path / "ran").exists()


def test_a_real_agent(real_agents: Path) -> None:
    agent = real_agents / "ppo__CartPole-v1_1__CartPole-v1.zip"
    told = within("inspect", agent, "--verify", "--json").works().json
    assert told["symmetry"]["sign_bits"] == 256
    assert told["verification"]["passed"] is True


def test_a_page_that_needs_nothing_beside_it(weights: Path, tmp_path: Path) -> None:
    page = tmp_path / "deep" / "page.html"
    told = metanet("inspect", weights, "--html", page, "--json").works().json
    assert told["page"] == str(page)
    text = page.read_text()
    assert "<svg" in text
    assert not re.search(r"<script|<link|https?://(?!www\.w3\.org)|@import", text)
    assert "1 unread (5)" in text
    # Every weight has its line, every set of units its bar.
    for name in ("layers.0", "layers.1", "layers.2"):
        assert f"<title>{name}.weight" in text
    assert "<title>layers.0 [32]" in text


def test_null_directions_on_request(tmp_path: Path, weights: Path) -> None:
    import metanet as package

    architecture = package.Architecture("mlp", {"inputs": 3, "widths": [4], "outputs": 2, "activation": "tanh"})
    package.save_checkpoint(tmp_path / "small.safetensors", architecture.build(seed=0).state_dict(), architecture)
    told = within("inspect", tmp_path / "small.safetensors", "--null-directions", "--json").works().json
    assert told["null_directions"]["remaining"] == 0
    within("inspect", weights, "--null-directions").refuses("2,778 parameters", "at most 2,000")
