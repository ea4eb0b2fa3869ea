"""Does the safetensors writer keep every bit, and agree with the reference implementation on any state?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metanet.checkpoint import read, save_checkpoint
from metanet.checkpoint.safetensors_file import DTYPES
from metanet.errors import CheckpointError

from .subjects import bytes_of, same

names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__" and name.isprintable()
)
shapes = st.lists(st.integers(0, 4), max_size=4)


@st.composite
def states(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    state = {}
    for name in draw(st.lists(names, min_size=1, max_size=6, unique=True)):
        dtype, shape = draw(st.sampled_from(list(DTYPES.values()))), draw(shapes)
        size = torch.Size(shape).numel() * dtype.itemsize
        raw = bytearray(draw(st.binary(min_size=size, max_size=size)))
        if dtype == torch.bool:
            raw = bytearray(byte & 1 for byte in raw)
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        state[name] = flat.reshape(shape)
    return state


@settings(max_examples=60, deadline=None)
@given(states())
def test_round_trip(state: dict[str, torch.Tensor]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_checkpoint(path, state)
        assert same(read(path).state, state)
        reference = safetensors.torch.load_file(path)
        assert {name: bytes_of(tensor) for name, tensor in reference.items()} == {
            name: bytes_of(tensor) for name, tensor in state.items()
        }


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("__metadata__", torch.zeros(1)),
        ("a\nb", torch.zeros(1)),
        ("", torch.zeros(1)),
        ("w", torch.zeros(1, dtype=torch.complex128)),
        ("w", torch.zeros(2).to_sparse()),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        save_checkpoint(tmp_path / "a.safetensors", {name: tensor})
    assert not list(tmp_path.iterdir())


def test_refuses_other_endings_and_metrics(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"let the name end in \.safetensors"):
        save_checkpoint(tmp_path / "a.pt", {"w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="the metrics are not JSON"):
        save_checkpoint(tmp_path / "a.safetensors", {"w": torch.zeros(1)}, metrics={"loss": float("nan")})
    with pytest.raises(CheckpointError, match=r"nowhere.*cannot be written"):
        save_checkpoint(tmp_path / "nowhere" / "a.safetensors", {"w": torch.zeros(1)})


def test_data_is_aligned(tmp_path: Path) -> None:
    """Other readers map the file into memory and need every tensor at a multiple of its element size."""
    state = {"a": torch.zeros(3, dtype=torch.bool), "b": torch.zeros(3), "c": torch.zeros(3, dtype=torch.float64)}
    save_checkpoint(tmp_path / "a.safetensors", state)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in state.items())
