"""Do NumPy archives, TorchScript programs, Lightning checkpoints, Keras files and model folders give back what was put
in, bit by bit, and go back to disk the same?"""

from __future__ import annotations

import builtins
import json
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metanet
from metanet.checkpoint import Checkpoint, save_checkpoint
from metanet.errors import CheckpointError

from .subjects import linear_state, same, torch_bytes, write
from .test_formats import Format, TestTorchZip

h5py_missing = "Keras files need h5py (extra 'keras')"


class TestNpz(Format):
    kind = "npz"
    suffix = ".npz"
    devices = ()

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})

    def test_layout_in_memory_is_kept(self, path: Path, tmp_path: Path) -> None:
        """Fortran order is read as a transposed view, and written as Fortran order again."""
        self.load(path).save(tmp_path / "copy.npz")
        assert zipfile.ZipFile(path).read("2.weight.npy") == zipfile.ZipFile(tmp_path / "copy.npz").read("2.weight.npy")
        assert b"'fortran_order': True" in zipfile.ZipFile(path).read("2.weight.npy")


class TestNpzCompressed(TestNpz):
    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in state.items()})


class TestLightning(TestTorchZip):
    kind = "lightning"
    key = "state_dict"
    suffix = ".ckpt"

    def content(self, state: Mapping[str, Tensor]) -> Any:
        return {
            "epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.5.0", "state_dict": OrderedDict(state),
            "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {"ModelCheckpoint": {"best": torch.tensor(0.5)}},
            "optimizer_states": [], "lr_schedulers": [], "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 1e-3, "widths": [3, 5], "name": "x", "weights": torch.ones(2)},
        }  # fmt: skip

    def test_hyper_parameters_are_data(self, path: Path) -> None:
        checkpoint = self.load(path)
        assert checkpoint.source.config == {"lr": 1e-3, "widths": [3, 5], "name": "x", "weights": "<Tensor>"}
        assert "optimizer_states" in checkpoint.source.skipped

    def test_saves_the_same_kind(self, path: Path, tmp_path: Path) -> None:
        """Only the weights are kept, so the copy is a plain torch file."""
        checkpoint = self.load(path)
        checkpoint.save(tmp_path / "copy.ckpt")
        again = self.load(tmp_path / "copy.ckpt")
        assert same(again.state, checkpoint.state)
        assert (again.source.kind, again.source.key) == ("torch", "state_dict")


class TestTorchScript(Format):
    kind = "torchscript"

    def state(self) -> dict[str, Tensor]:
        return dict(linear_state(3, 5, 4, 2))

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
        model.load_state_dict(dict(state))
        torch.jit.save(torch.jit.script(model), path)

    def test_the_copy_still_runs(self, path: Path, tmp_path: Path) -> None:
        """An oracle: torch itself runs the program that was written, and its output follows the new weights."""
        checkpoint = self.load(path)
        other = {name: tensor * 2 for name, tensor in checkpoint.state.items()}
        checkpoint.save(tmp_path / "copy.pt", other)
        program = torch.jit.load(tmp_path / "copy.pt")
        x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
        model = checkpoint.architecture.build()
        model.load_state_dict(other)
        (expected,) = model(x)
        assert torch.allclose(program(x), expected, atol=1e-6)
        assert not torch.allclose(program(x), checkpoint.model()(x)[0], atol=1e-3)


class TestKerasH5(Format):
    kind = "keras-h5"
    suffix = ".h5"
    devices = ()

    @pytest.fixture(autouse=True)
    def _needs_h5py(self) -> None:
        pytest.importorskip("h5py", reason=h5py_missing)

    def state(self) -> dict[str, Tensor]:
        return {name: super(TestKerasH5, self).state()[name] for name in sorted(linear_state(3, 5, 4, 2))}

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            for name, tensor in state.items():
                file[name] = tensor.numpy()
            file["optimizer/vars/0"] = np.ones(3)

    def test_optimiser_is_left(self, path: Path) -> None:
        assert self.load(path).source.skipped == ("optimizer",)


class TestKerasWholeModel(TestKerasH5):
    """As Keras 2 writes whole models: weights in a group, the order of layers and the configuration as attributes."""

    key = "model_weights"

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"name": "s"}})
            file.attrs["keras_version"] = b"2.11.0"
            for name, tensor in state.items():
                file[f"model_weights/{name}"] = tensor.numpy()
            file["optimizer_weights/iteration"] = np.array(3)

    def test_optimiser_is_left(self, path: Path) -> None:
        assert self.load(path).source.skipped == ("optimizer_weights",)

    def test_configuration_is_data(self, path: Path) -> None:
        assert self.load(path).source.config == {"class_name": "Sequential", "config": {"name": "s"}}


class TestKerasArchive(TestKerasH5):
    kind = "keras-zip"
    suffix = ".keras"

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        inner = path.with_suffix(".inner")
        super().write(inner, state)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", '{"keras_version": "3.5.0"}')
            archive.writestr("config.json", '{"class_name": "Functional"}')
            archive.write(inner, "model.weights.h5")
        inner.unlink()

    def test_optimiser_is_left(self, path: Path) -> None:
        assert self.load(path).source.skipped == ("optimizer", "metadata.json")
        assert self.load(path).source.config == {"class_name": "Functional"}


class TestModelFolder(Format):
    kind = "huggingface"
    suffix = ""
    devices = ()
    files = ("model.safetensors",)

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "bert", "limit": float("inf")}))
        save_checkpoint(path / "model.safetensors", state)

    def test_says_its_files(self, path: Path) -> None:
        source = self.load(path).source
        assert source.files == self.files
        assert source.config == {"model_type": "bert", "limit": float("inf")}

    def test_does_not_save_a_state_that_does_not_fit(self, path: Path, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="has shape"):
            self.load(path).save(tmp_path / "copy", {**self.load(path).state, "0.bias": torch.zeros(1)})
        assert not (tmp_path / "copy").exists()


class TestShards(TestModelFolder):
    files = ("model.safetensors.index.json", "model-2-of-2.safetensors", "model-1-of-2.safetensors")

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "bert", "limit": float("inf")}))
        parts = {self.files[1]: list(state)[:2], self.files[2]: list(state)[2:]}
        for name, tensors in parts.items():
            self.write_part(path / name, {tensor: state[tensor] for tensor in tensors})
        weight_map = {tensor: name for name, tensors in parts.items() for tensor in tensors}
        (path / self.files[0]).write_text(json.dumps({"metadata": {"total_size": 216}, "weight_map": weight_map}))

    def write_part(self, path: Path, state: Mapping[str, Tensor]) -> None:
        save_checkpoint(path, state)

    def test_the_index_opens_too(self, path: Path) -> None:
        assert same(self.load(path / self.files[0]).state, self.state())

    def test_as_the_cache_of_the_hub_links_it(self, path: Path, tmp_path: Path) -> None:
        snapshot = tmp_path / "models--x" / "snapshots" / "abc"
        (tmp_path / "models--x" / "blobs").mkdir(parents=True)
        snapshot.mkdir(parents=True)
        for i, file in enumerate(sorted(path.iterdir())):
            file.rename(tmp_path / "models--x" / "blobs" / str(i))
            (snapshot / file.name).symlink_to(f"../../blobs/{i}")
        assert same(self.load(snapshot).state, self.state())


class TestBinShards(TestShards):
    devices = ("cpu",)
    files = ("pytorch_model.bin.index.json", "pytorch_model-1.bin", "pytorch_model-2.bin")

    def write_part(self, path: Path, state: Mapping[str, Tensor]) -> None:
        path.write_bytes(torch_bytes(dict(state)))


def unknown(tmp_path: Path) -> Checkpoint:
    np.savez(tmp_path / "a.npz", kernel=np.ones((3, 3, 1, 4), np.float32))
    return metanet.load(tmp_path / "a.npz")


def test_tensors_open_without_an_architecture(tmp_path: Path) -> None:
    checkpoint = unknown(tmp_path)
    assert checkpoint.state["kernel"].shape == (3, 3, 1, 4)
    assert checkpoint.architecture.family == "unknown"
    for use in (lambda: checkpoint.spec, checkpoint.model, checkpoint.architecture.example_inputs):
        with pytest.raises(CheckpointError, match=r"a\.npz.*is not known: .*factory=") as caught:
            use()
        assert str(caught.value).isprintable()
    checkpoint.save(tmp_path / "b.npz", {"kernel": torch.zeros(3, 3, 1, 4)})
    assert float(metanet.load(tmp_path / "b.npz").state["kernel"].sum()) == 0
    with pytest.raises(CheckpointError, match="has shape"):
        checkpoint.save(tmp_path / "b.npz", {"kernel": torch.zeros(1)})


def test_a_factory_says_what_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weight=np.ones((2, 3), np.float32), bias=np.ones(2, np.float32))
    checkpoint = metanet.load(tmp_path / "a.npz", factory=lambda: (nn.Linear(3, 2), torch.zeros(7, 3)))
    assert checkpoint.spec.permutation_order == 1
    assert torch.equal(checkpoint.model()(torch.ones(1, 3)), torch.full((1, 2), 4.0))


def test_npz_byte_orders_text_and_names(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {
        "a/big": values.astype(">f4"),
        "text": np.array(["x"]),
        "s": np.float64(3),
        "e": np.zeros((0, 2)),
        "b": np.array([True]),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    checkpoint = metanet.load(tmp_path / "a.npz")
    assert checkpoint.source.skipped == ("text",)
    assert torch.equal(checkpoint.state["a/big"], torch.from_numpy(values))
    assert [checkpoint.state[name].dtype for name in ("s", "e", "b")] == [torch.float64, torch.float64, torch.bool]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = self.one
        self.parts = nn.ModuleList([nn.LSTM(3, 4), nn.BatchNorm1d(3)])
        self.register_buffer("table", torch.arange(4))
        self.sizes = [1, 2]
        self.half = torch.ones(2, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x))


def test_torchscript_of_nested_and_shared_modules(tmp_path: Path) -> None:
    """An oracle: torch's own state dict of the program."""
    program = torch.jit.script(Shared().eval())
    torch.jit.save(program, tmp_path / "a.pt")
    checkpoint = metanet.load(tmp_path / "a.pt")
    theirs = program.state_dict()
    assert {name: t for name, t in checkpoint.state.items() if name != "half"}.keys() == theirs.keys()
    assert all(torch.equal(checkpoint.state[name], tensor) for name, tensor in theirs.items())
    assert checkpoint.state["one.weight"].data_ptr() == checkpoint.state["two.weight"].data_ptr()
    with pytest.raises(CheckpointError, match=r"'(one|two)\.weight': shares its memory with a tensor that now differs"):
        checkpoint.save(tmp_path / "b.pt", {**checkpoint.state, "one.weight": torch.zeros(3, 3)})
    assert not (tmp_path / "b.pt").exists()


def test_torchscript_frozen(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
    frozen = torch.jit.freeze(torch.jit.script(model))
    torch.jit.save(frozen, tmp_path / "a.pt")
    checkpoint = metanet.load(tmp_path / "a.pt")
    assert set(checkpoint.state) == {f"CONSTANTS.c{i}" for i in range(4)}
    found = {tuple(tensor.shape): tensor for tensor in checkpoint.state.values()}
    assert all(torch.equal(found[tuple(p.shape)].reshape(p.shape), p) for p in model.parameters())
    checkpoint.save(tmp_path / "b.pt", {name: tensor * 0 + 1 for name, tensor in checkpoint.state.items()})
    out = torch.jit.load(tmp_path / "b.pt")(torch.zeros(1, 3))
    assert torch.allclose(out, 5 * torch.tanh(torch.tensor(1.0)) + 1)


def test_torchscript_is_never_loaded_by_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), tmp_path / "a.pt")
    for owner, name in ((torch, "load"), (torch.jit, "load"), (torch._C, "import_ir_module")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("torch was asked to load the program"))
    assert set(metanet.load(tmp_path / "a.pt").state) == {"weight", "bias"}


def test_keras_order_of_layers(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason=h5py_missing)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for layer in ("dense", "conv"):
            group = file.create_group(layer)
            group[f"{layer}/kernel:0"] = np.ones((2, 3), np.float32)
            group[f"{layer}/bias:0"] = np.ones(3, np.float32)
            group.attrs["weight_names"] = [f"{layer}/kernel:0".encode(), f"{layer}/bias:0".encode()]
        file.attrs["layer_names"] = [b"dense", b"conv"]
        for i in range(11):
            file[f"zz/vars/{i}"] = np.float32(i)
    state = metanet.load(tmp_path / "a.h5").state
    assert list(state)[:4] == ["dense/dense/bias:0", "dense/dense/kernel:0", "conv/conv/bias:0", "conv/conv/kernel:0"]
    assert [float(state[f"zz/vars/{i}"]) for i in range(11)] == list(range(11))
    assert list(state)[4:] == [f"zz/vars/{i}" for i in range(11)]


def test_keras_without_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a.h5", b"\x89HDF\r\n\x1a\n" + bytes(64))
    real = builtins.__import__

    def without(name: str, *args: Any, **named: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return real(name, *args, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CheckpointError, match=r"needs the package h5py; pip install 'metanet\[keras\]'"):
        metanet.load(path)


@pytest.mark.parametrize("name", ["weights.bin", "weights", "weights.onnx", "a.safetensors"])
def test_the_name_decides_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").mkdir()
    np.savez(tmp_path / "x" / "a.npz", w=np.ones(3))
    data = (tmp_path / "x" / "a.npz").read_bytes()
    assert metanet.load(write(tmp_path, name, data)).source.kind == "npz"
