"""Does `metanet align` find what was done to a network, write it, prove it, and refuse what cannot be aligned?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import metanet
import symmetry
from metanet import cli
from metanet.commands import align
from tests.cli.command import metanet as command
from tests.cli.command import within


@pytest.fixture(scope="module")
def moved(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `weights` without its twins and unread unit, and the same under a random element."""
    folder = tmp_path_factory.mktemp("moved")
    architecture = metanet.load(weights).architecture
    state = architecture.build(seed=3).state_dict()
    metanet.save_checkpoint(folder / "reference.safetensors", state, architecture)
    spec = metanet.load(folder / "reference.safetensors").spec
    element = spec.sample(torch.Generator().manual_seed(1))
    metanet.save_checkpoint(folder / "moved.safetensors", spec.act(element, state), architecture, {"accuracy": 0.5})
    metanet.save_checkpoint(folder / "other.safetensors", architecture.build(seed=4).state_dict(), architecture)
    return folder


def test_what_was_done_is_undone(moved: Path) -> None:
    out = (
        command("align", "reference.safetensors", "moved.safetensors", "--out", "out.safetensors", cwd=moved)
        .works()
        .out
    )
    assert "It computes the same" in out
    assert "Written to out.safetensors." in out
    reference, aligned = (metanet.load(moved / f"{name}.safetensors") for name in ("reference", "out"))
    for name, value in reference.state.items():
        assert torch.allclose(aligned.state[name], value, rtol=1e-4, atol=1e-6)
    assert aligned.metrics == {"accuracy": 0.5}


@pytest.mark.parametrize("method", ["weights", "frank_wolfe"])
def test_json_holds_the_element(moved: Path, method: str) -> None:
    told = (
        within("align", "reference.safetensors", "moved.safetensors", "--method", method, "--json", cwd=moved)
        .works()
        .json
    )
    assert told["distance_after"] < 1e-5 < 0.1 < told["distance_before"]
    assert told["units"] == {"layers.0": 32, "layers.1": 16}
    assert sum(told["moved"].values()) > 30
    checkpoint = metanet.load(moved / "moved.safetensors")
    element = symmetry.GroupElement.from_json(checkpoint.spec, told["element"])
    back = checkpoint.spec.act(element, checkpoint.state)
    assert torch.allclose(
        back["layers.0.weight"], metanet.load(moved / "reference.safetensors").state["layers.0.weight"]
    )
    # Negative control: an unrelated network comes closer, and no more.
    other = (
        within("align", "reference.safetensors", "other.safetensors", "--method", method, "--json", cwd=moved)
        .works()
        .json
    )
    assert 0.3 < other["distance_after"] < other["distance_before"]


def test_a_network_that_would_compute_something_else_is_not_written(
    moved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(align, "output_error", lambda checkpoint, element: 0.3)
    files = [str(moved / "reference.safetensors"), str(moved / "moved.safetensors")]
    assert cli.main(["align", *files, "--out", str(moved / "never.safetensors")]) == cli.CHECK_FAILED
    assert "NOT the same" in capsys.readouterr().out
    assert not (moved / "never.safetensors").exists()


def test_outputs_are_really_compared(moved: Path) -> None:
    checkpoint = metanet.load(moved / "other.safetensors")
    assert align.output_error(checkpoint, checkpoint.spec.sample()) < 1e-12

    class Broken:
        """A spec that forgets a tensor."""

        def act(self, element: object, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            acted = checkpoint.spec.act(element, state)  # type: ignore[arg-type]
            return {**acted, "layers.0.bias": state["layers.0.bias"]}

    class Wrong:
        spec, state, architecture = Broken(), checkpoint.state, checkpoint.architecture

    assert align.output_error(Wrong(), checkpoint.spec.sample()) > 1e-3  # type: ignore[arg-type]


def test_refusals(moved: Path, tmp_path: Path) -> None:
    wider = metanet.Architecture("mlp", {"inputs": 64, "widths": [33, 16], "outputs": 10, "activation": "relu"})
    metanet.save_checkpoint(tmp_path / "wider.safetensors", wider.build(seed=0).state_dict(), wider)
    answer = within("align", moved / "reference.safetensors", tmp_path / "wider.safetensors")
    assert answer.refuses("wider.safetensors", "another architecture", "match_widths")
    assert within("align", moved / "reference.safetensors", tmp_path / "absent.pt").refuses("absent.pt")
    assert within("align", moved / "reference.safetensors").refuses("FILE")
