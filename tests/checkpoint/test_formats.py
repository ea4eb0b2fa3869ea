"""Does every kind of file give back what was put in, bit by bit, and go back to disk the same?

One abstract case, one subclass per kind of file.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import metanet
from metanet.checkpoint import Checkpoint, save_checkpoint
from metanet.errors import CheckpointError

from .subjects import ARCHITECTURES, linear_state, random_state, same, torch_bytes, write


class Format:
    """What holds for every kind of file; a subclass says how one is written."""

    kind: str
    suffix = ".pt"
    key = ""
    devices: tuple[str, ...] = ("cpu",)
    prefix = ""

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        state = dict(linear_state(3, 5, 4, 2))
        # Names that do not sort, a tensor that is not contiguous and one that is a view of a larger storage.
        state["2.weight"] = state["2.weight"].t().contiguous().t()
        state["0.bias"] = torch.arange(20.0)[3:8]
        return {self.prefix + name: state[name] for name in sorted(state, reverse=True)}

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / f"network{self.suffix}"
        self.write(path, self.state())
        return path

    def load(self, path: Path, **options: Any) -> Checkpoint:
        return metanet.load(path, activation="tanh", **options)

    def test_reads_what_was_written(self, path: Path) -> None:
        checkpoint = self.load(path)
        assert same(checkpoint.state, self.state())
        source = checkpoint.source
        assert (source.kind, source.key, source.devices, source.prefix) == (
            self.kind, self.key, self.devices, self.prefix,
        )  # fmt: skip
        assert source.path == path
        assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in checkpoint.state.values())

    def test_saves_the_same_kind(self, path: Path, tmp_path: Path) -> None:
        checkpoint = self.load(path)
        copy = tmp_path / f"copy{self.suffix}"
        checkpoint.save(copy)
        again = self.load(copy)
        assert same(again.state, checkpoint.state)
        expected = dataclasses.replace(checkpoint.source, path=copy)
        if self.devices == ("cuda:0",):
            expected = dataclasses.replace(expected, devices=("cpu",))
        assert dataclasses.replace(again.source, skipped=()) == dataclasses.replace(expected, skipped=())

    def test_saves_other_weights(self, path: Path, tmp_path: Path) -> None:
        checkpoint = self.load(path)
        other = {name: tensor + 1 for name, tensor in checkpoint.state.items()}
        copy = tmp_path / f"copy{self.suffix}"
        checkpoint.save(copy, other)
        assert same(self.load(copy).state, other)
        assert not same(self.load(copy).state, checkpoint.state)

    def test_does_not_save_a_state_that_does_not_fit(self, path: Path, tmp_path: Path) -> None:
        checkpoint = self.load(path)
        name = next(iter(checkpoint.state))
        with pytest.raises(CheckpointError, match=rf"copy.*tensor '{name}': has shape"):
            checkpoint.save(tmp_path / "copy", {**checkpoint.state, name: torch.zeros(1)})
        assert not (tmp_path / "copy").exists()

    def test_model_runs_with_the_weights(self, path: Path) -> None:
        checkpoint = self.load(path)
        model = checkpoint.model()
        assert same({name: model.state_dict()[name] for name in checkpoint.state}, checkpoint.state)
        assert not model.training
        model(*checkpoint.architecture.example_inputs())

    def test_state_is_read_only(self, path: Path) -> None:
        with pytest.raises(TypeError):
            self.load(path).state["0.bias"] = torch.zeros(5)  # type: ignore[index]

    def test_prints(self, path: Path) -> None:
        text = repr(self.load(path))
        assert f"({self.kind})" in text
        assert "6 tensors, 54 numbers" in text


class TestSafetensors(Format):
    kind = "safetensors"
    suffix = ".safetensors"
    devices = ()

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        save_checkpoint(path, state)


class TestTorchZip(Format):
    kind = "torch"

    def content(self, state: Mapping[str, Tensor]) -> Any:
        return dict(state)

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        path.write_bytes(torch_bytes(self.content(state), legacy=self.kind == "torch-legacy"))


class TestTorchLegacy(TestTorchZip):
    kind = "torch-legacy"


class TestNested(TestTorchZip):
    key = "state_dict"

    def content(self, state: Mapping[str, Tensor]) -> Any:
        optimiser = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
        return {"epoch": 3, "loss": 0.5, "note": "é", "optimizer": optimiser, "state_dict": dict(state)}

    def test_other_entries_are_named(self, path: Path) -> None:
        assert self.load(path).source.skipped == ("epoch", "loss", "note", "optimizer")


class TestNestedLegacy(TestNested):
    kind = "torch-legacy"


class TestNestedTwice(TestTorchZip):
    key = "model/model_state"

    def content(self, state: Mapping[str, Tensor]) -> Any:
        return {"model": {"model_state": dict(state), "step": 3}, "size": torch.Size([3]), "dtype": torch.float16}


class TestModuleParameters(TestTorchZip):
    def content(self, state: Mapping[str, Tensor]) -> Any:
        return {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}


class TestDataParallel(TestTorchZip):
    prefix = "module."


class TestSavedOnCuda(TestTorchZip):
    devices = ("cuda:0",)

    @pytest.fixture(autouse=True)
    def _pretend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # torch writes where each storage lives; only the first file of each test is written so.
        calls: list[None] = []
        monkeypatch.setattr(
            torch.serialization,
            "location_tag",
            lambda _: calls.append(None) or ("cuda:0" if len(calls) <= 6 else "cpu"),
        )


class TestSavedOnCudaLegacy(TestSavedOnCuda):
    kind = "torch-legacy"


class TestAgent(Format):
    kind = "sb3"
    suffix = ".zip"

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", b"never read \x00\xff")
            archive.writestr("policy.pth", torch_bytes(dict(state)))
            archive.writestr("policy.optimizer.pth", b"never read either")

    def test_other_members_are_copied_unread(self, path: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy.zip"
        checkpoint = self.load(path)
        checkpoint.save(copy, {name: tensor * 2 for name, tensor in checkpoint.state.items()})
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy) as new:
            assert old.namelist() == new.namelist()
            differ = [name for name in old.namelist() if old.read(name) != new.read(name)]
        assert differ == ["policy.pth"]

    def test_needs_its_original(self, path: Path, tmp_path: Path) -> None:
        checkpoint = self.load(path)
        path.unlink()
        with pytest.raises(CheckpointError, match=r"network.zip: the agent that this state came from cannot be read"):
            checkpoint.save(tmp_path / "copy.zip")


class TestAgentLegacy(TestAgent):
    """As the first versions of Stable-Baselines3 wrote it."""

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("policy.pth", torch_bytes(dict(state), legacy=True))


OLD_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64, torch.complex128,
)  # fmt: skip
# The older format has no storages of these.
NEW_DTYPES = (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize(
    ("dtype", "legacy"),
    [(dtype, True) for dtype in OLD_DTYPES] + [(dtype, False) for dtype in OLD_DTYPES + NEW_DTYPES],
)
def test_every_dtype_in_torch_files(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    content = {
        "a": torch.arange(6).to(dtype).reshape(2, 3),
        "b": torch.ones((), dtype=dtype),
        "c": torch.ones(0, 2).to(dtype),
    }
    raw = metanet.checkpoint.read(write(tmp_path, "a.pt", torch_bytes(content, legacy)))
    assert same(raw.state, content)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    raw = metanet.checkpoint.read(write(tmp_path, "a.pt", torch_bytes({"a": weight, "b": weight.t()})))
    assert raw.state["a"].data_ptr() == raw.state["b"].data_ptr()
    assert torch.equal(raw.state["b"], weight.t())


def test_state_with_key_given(tmp_path: Path) -> None:
    content = {"mine": {"ema": dict(linear_state(2, 3)), "raw": dict(linear_state(2, 3, seed=1))}}
    path = write(tmp_path, "a.pt", torch_bytes(content))
    for name in ("ema", "raw"):
        checkpoint = metanet.load(path, activation="relu", key=f"mine/{name}")
        assert same(checkpoint.state, content["mine"][name])
        assert checkpoint.source.key == f"mine/{name}"


def test_pathlike_folder_and_text(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["mlp"]
    save_checkpoint(tmp_path / "weights.safetensors", random_state(architecture), architecture)
    for path in (tmp_path, str(tmp_path), tmp_path / "weights.safetensors"):
        assert metanet.load(path).architecture == architecture


def test_big_endian_files_are_read_right(tmp_path: Path) -> None:
    data = io.BytesIO()
    weights = torch.arange(4.0).reshape(2, 2)
    with zipfile.ZipFile(io.BytesIO(torch_bytes({"0.weight": weights}))) as old, zipfile.ZipFile(data, "w") as new:
        for info in old.infolist():
            content = old.read(info.filename)
            if info.filename.endswith("byteorder"):
                content = b"big"
            if info.filename.endswith("data/0"):
                content = weights.numpy().astype(">f4").tobytes()
            new.writestr(info.filename, content)
    assert torch.equal(metanet.checkpoint.read(write(tmp_path, "a.pt", data.getvalue())).state["0.weight"], weights)


def test_official_reader_agrees(tmp_path: Path) -> None:
    """An oracle: the reference implementation reads what is written here, and the other way round."""
    state = random_state(ARCHITECTURES["cnn_residual"])
    save_checkpoint(tmp_path / "ours.safetensors", state, ARCHITECTURES["cnn_residual"], {"accuracy": 0.5})
    theirs = safetensors.torch.load_file(tmp_path / "ours.safetensors")
    assert same({name: theirs[name] for name in state}, state)
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors", {"format": "pt"})
    checkpoint = metanet.load(tmp_path / "theirs.safetensors", ARCHITECTURES["cnn_residual"])
    assert same({name: checkpoint.state[name] for name in state}, state)
    assert checkpoint.metadata == {"format": "pt"}
    checkpoint.save(tmp_path / "copy.safetensors")
    assert metanet.load(tmp_path / "copy.safetensors").metadata == {"format": "pt"}
