"""Where does a checkpoint's architecture come from, and which source wins?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import metanet
from metanet.checkpoint import Architecture, FactoryArchitecture, save_checkpoint
from metanet.errors import CheckpointError
from metanet.io import write_json_atomic

from .subjects import ARCHITECTURES, linear_state, random_state, same, torch_bytes, write

MLP = ARCHITECTURES["mlp"]
TANH = Architecture("mlp", {**MLP.to_json()["options"], "activation": "tanh"})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_own_files_need_nothing_else(tmp_path: Path, name: str) -> None:
    architecture = ARCHITECTURES[name]
    state = random_state(architecture)
    save_checkpoint(tmp_path / "a.safetensors", state, architecture, {"accuracy": 0.75, "runs": [1, 2]})
    checkpoint = metanet.load(tmp_path / "a.safetensors")
    assert same(checkpoint.state, state)
    assert checkpoint.architecture == architecture
    assert checkpoint.architecture.provenance == "the file's own metadata"
    assert dict(checkpoint.metrics) == {"accuracy": 0.75, "runs": [1, 2]}
    assert checkpoint.metadata == {}


def test_file_beside(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pt", torch_bytes(random_state(MLP)))
    write_json_atomic(tmp_path / "architecture.json", MLP.to_json())
    checkpoint = metanet.load(path)
    assert checkpoint.architecture == MLP
    assert checkpoint.architecture.provenance == "the file architecture.json"


def test_metadata_wins_over_the_file_beside(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.safetensors", random_state(MLP), MLP)
    write_json_atomic(tmp_path / "architecture.json", TANH.to_json())
    assert metanet.load(tmp_path / "a.safetensors").architecture == MLP


@pytest.mark.parametrize("form", ["value", "json", "path"])
def test_the_user_wins(tmp_path: Path, form: str) -> None:
    save_checkpoint(tmp_path / "a.safetensors", random_state(MLP), MLP)
    write_json_atomic(tmp_path / "tanh.json", TANH.to_json())
    given = {"value": TANH, "json": TANH.to_json(), "path": tmp_path / "tanh.json"}[form]
    assert metanet.load(tmp_path / "a.safetensors", given).architecture == TANH
    assert metanet.load(tmp_path / "a.safetensors", activation="sin").architecture.family == "chains"


def test_names_from_data_parallel_are_explained(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in random_state(MLP).items()}
    path = write(tmp_path, "a.pt", torch_bytes(state))
    with pytest.raises(CheckpointError, match=r"'module\.layers\.0\.weight'.*take 'module\.' off its names"):
        metanet.load(path, MLP)
    assert metanet.load(path, activation="relu").source.prefix == "module."


def test_only_one_source_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exclude each other; give one"):
        metanet.load(tmp_path / "a.pt", MLP, activation="relu")


def test_missing_architecture_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pt", torch_bytes(random_state(MLP)))
    with pytest.raises(CheckpointError, match=r"mine\.json: cannot be read"):
        metanet.load(path, tmp_path / "mine.json")


def make_network() -> tuple[torch.nn.Module, torch.Tensor]:
    """The factory that the tests name."""
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.SiLU(), torch.nn.Linear(5, 2)), torch.randn(7, 3)


FACTORY_MODULE = """
import torch
calls = []

def make():
    calls.append(1)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Sigmoid(), torch.nn.Linear(5, 2)), (torch.randn(7, 3),)

def wrong():
    return torch.nn.Linear(3, 5)

def broken():
    raise ValueError("no data\\nhere")

number = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORY_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_factory_by_name_and_as_function(tmp_path: Path, factories: str) -> None:
    path = write(tmp_path, "a.pt", torch_bytes(linear_state(3, 5, 2)))
    before = torch.random.get_rng_state()
    for factory in (f"{factories}:make", make_network):
        checkpoint = metanet.load(path, factory=factory)
        assert isinstance(checkpoint.architecture, FactoryArchitecture)
        assert checkpoint.architecture.provenance == "a Python factory named by the user"
        assert same(checkpoint.model().state_dict(), checkpoint.state)
        assert [space.size for space in checkpoint.spec.spaces] == [5]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_file_does_not_fit_the_factory(tmp_path: Path, factories: str) -> None:
    path = write(tmp_path, "a.pt", torch_bytes(linear_state(3, 6, 2)))
    with pytest.raises(CheckpointError, match=r"a\.pt: tensor '0\.weight': has shape \[6, 3\]"):
        metanet.load(path, factory=f"{factories}:make")


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("nowhere_at_all:make", "No module named"),
        ("{}:missing", "there is no 'missing'"),
        ("{}:number", "is a int"),
        ("{}:wrong", "returned a Linear, no model with example inputs"),
        ("{}:broken", "raised ValueError: no data\\nhere"),
        ("os.system('x')", "is no 'package.module:function'"),
    ],
)
def test_bad_factories(tmp_path: Path, factories: str, factory: str, says: str) -> None:
    path = write(tmp_path, "a.pt", torch_bytes(linear_state(3, 5, 2)))
    with pytest.raises(CheckpointError) as caught:
        metanet.load(path, factory=factory.format(factories))
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_factory_never_comes_from_a_file(tmp_path: Path, factories: str) -> None:
    path = write(tmp_path, "a.pt", torch_bytes(linear_state(3, 5, 2)))
    checkpoint = metanet.load(path, factory=f"{factories}:make")
    saved = tmp_path / "saved.safetensors"
    save_checkpoint(saved, checkpoint.state, checkpoint.architecture)
    module = __import__(factories)
    count = len(module.calls)
    with pytest.raises(CheckpointError, match=r"must not come from a file; if you trust it, name it yourself"):
        metanet.load(saved)
    assert len(module.calls) == count
    assert metanet.load(saved, factory=f"{factories}:make").state.keys() == checkpoint.state.keys()
    write_json_atomic(tmp_path / "architecture.json", json.loads(json.dumps(checkpoint.architecture.to_json())))
    with pytest.raises(CheckpointError, match="must not come from a file"):
        metanet.load(path)


def test_spec_is_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import symmetry

    calls = []
    trace = symmetry.trace
    monkeypatch.setattr(symmetry, "trace", lambda *args: calls.append(1) or trace(*args))
    architecture = Architecture("mlp", {"inputs": 3, "widths": [11], "outputs": 2, "activation": "relu"})
    for i in range(3):
        save_checkpoint(tmp_path / f"{i}.safetensors", random_state(architecture, i), architecture)
    checkpoints = [metanet.load(tmp_path / f"{i}.safetensors") for i in range(3)]
    assert calls == [], "loading alone must not trace"
    assert checkpoints[0].spec is checkpoints[1].spec is checkpoints[2].spec
    assert calls == [1]
    checkpoints[0].spec.check(dict(checkpoints[0].state))
    moved = checkpoints[0].spec.act(checkpoints[0].spec.sample(torch.Generator().manual_seed(0)), checkpoints[0].state)
    assert not same(moved, checkpoints[0].state)
