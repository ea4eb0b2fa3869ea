"""Is every malicious or damaged file refused, for the right reason, in one clear line, with nothing run?"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

import metanet
from metanet.checkpoint import pickle_scan
from metanet.errors import CheckpointError

from .architecture_attacks import ARCHITECTURES
from .attack import Attack
from .container_attacks import DAMAGED, ZIPS
from .content_attacks import CONTENT
from .format_attacks import FOLDERS, KERAS, LIGHTNING, NPZ, SCRIPTS
from .onnx_attacks import ONNX, RUNS
from .pickles import MARKER, Payload, agent_state, agent_zip, malicious_data, state, torch_bytes, write
from .safetensors_attacks import SAFETENSORS
from .torch_attacks import RUNS_CODE, TAKES_MEMORY

ATTACKS = (
    *RUNS_CODE, *TAKES_MEMORY, *ZIPS, *DAMAGED, *CONTENT, *SAFETENSORS, *ARCHITECTURES, *NPZ, *SCRIPTS, *LIGHTNING,
    *FOLDERS, *KERAS, *ONNX,
)  # fmt: skip
NEEDS_H5PY = {attack.name for attack in KERAS}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory, so that a payload that runs leaves its mark where it is looked for."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_are_unique() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_refused(attack: Attack, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if attack.name in NEEDS_H5PY:
        pytest.importorskip("h5py", reason="Keras files need h5py (extra 'keras')")
    inside = folder / "files"
    inside.mkdir()
    path = attack.make(inside)
    if attack.early:
        monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch saw the file before it was checked"))
    with pytest.raises(CheckpointError) as caught:
        metanet.load(path, **attack.options)
    message = str(caught.value)
    assert (attack.file or path.name.split("\0")[0]) in message.split("; ")[0]
    assert attack.says in message
    assert message.isprintable(), "a message is one line"
    assert len(message) < 1500
    assert caught.value.hint
    assert message.endswith("; " + caught.value.hint)
    if attack.tensor:
        assert f"tensor '{attack.tensor}" in message
    assert not any(found.name == MARKER for found in folder.rglob("*")), "the payload ran"


@pytest.mark.parametrize(("name", "says", "content"), RUNS, ids=[name for name, _, _ in RUNS])
def test_graphs_that_are_refused_when_run(
    name: str, says: str, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metanet.checkpoint.onnx.module.MAX_STEPS", 1000)
    checkpoint = metanet.load(write(folder, f"{name}.onnx", content))
    assert torch.equal(checkpoint.state["w"], torch.ones(3))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.model()(torch.zeros(7, 3))
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.hint


def test_control_the_payload_works(folder: Path) -> None:
    """Without this, a payload that never runs would prove nothing."""
    pickle.loads(pickle.dumps(Payload()))
    assert (folder / MARKER).exists()


def test_control_good_files_open(folder: Path) -> None:
    """Without this, a reader that refuses everything would pass."""
    assert list(metanet.load(write(folder, "a.pt", torch_bytes(state())), activation="relu").state) == list(state())
    assert list(metanet.load(write(folder, "a.zip", agent_zip(torch_bytes(agent_state())))).state) == list(
        agent_state()
    )


def test_agent_data_is_never_decoded(folder: Path) -> None:
    path = write(folder, "agent.zip", agent_zip(torch_bytes(agent_state()), malicious_data()))
    checkpoint = metanet.load(path)
    checkpoint.save(folder / "copy.zip")
    again = metanet.load(folder / "copy.zip")
    assert all(torch.equal(again.state[name], tensor) for name, tensor in agent_state().items())
    assert "data" in checkpoint.source.skipped
    assert not (folder / MARKER).exists()


def test_nan_and_infinity_are_weights(folder: Path) -> None:
    content = {**state(), "0.bias": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])}
    loaded = metanet.load(write(folder, "a.pt", torch_bytes(content)), activation="relu").state["0.bias"]
    assert torch.equal(loaded.view(torch.int32), content["0.bias"].view(torch.int32))


def test_torch_is_always_called_safely(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **named: calls.append(named) or load(*args, **named))
    for legacy in (False, True):
        metanet.load(write(folder, "a.pt", torch_bytes(state(), legacy)), activation="relu")
    assert calls == [{"map_location": "cpu", "weights_only": True}] * 2


def test_a_failing_reader_is_not_retried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*_: object, **named: object) -> None:
        calls.append(named)
        raise RuntimeError("weights only load failed\nsecond line")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(CheckpointError, match=r"torch cannot read it \(weights only load failed\)"):
        metanet.load(write(folder, "a.pt", torch_bytes(state())), activation="relu")
    assert len(calls) == 1


def test_readings_that_differ_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: {**state(), "0.bias": torch.zeros(9)})
    with pytest.raises(CheckpointError, match=r"tensor '0.bias': its two readings differ"):
        metanet.load(write(folder, "a.pt", torch_bytes(state())), activation="relu")


def test_endless_pickles_are_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_scan, "MAX_STEPS", 10)
    with pytest.raises(CheckpointError, match="takes more than 10 steps"):
        metanet.load(write(folder, "a.pt", torch_bytes(state())), activation="relu")
