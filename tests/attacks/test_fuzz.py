"""Does a reader given any damaged file either open it or refuse it, and never fail in another way?"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import metanet
from metanet.checkpoint import save_checkpoint
from metanet.errors import CheckpointError
from tests.checkpoint import onnx_bytes

from .pickles import agent_state, agent_zip, state, torch_bytes


def _safetensors() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_checkpoint(path, state())
        return path.read_bytes()


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: tensor.numpy() for name, tensor in state().items()})
    return buffer.getvalue()


def _script() -> bytes:
    buffer = io.BytesIO()
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    torch.jit.save(torch.jit.script(model), buffer)
    return buffer.getvalue()


FILES = {
    "torch": torch_bytes({"epoch": 3, "state_dict": state()}),
    "legacy": torch_bytes(state(), legacy=True),
    "agent": agent_zip(torch_bytes(agent_state())),
    "safetensors": _safetensors(),
    "npz": _npz(),
    "script": _script(),
    "onnx": onnx_bytes.mlp(dict(state())),
}


@st.composite
def damages(draw: st.DrawFn, size: int) -> list[tuple[str, int, bytes]]:
    """Up to four changes: bytes written over, put in, taken out, or the end cut off."""
    kinds = st.sampled_from(["write", "write", "insert", "remove", "cut"])
    interesting = st.sampled_from(
        [b"\xff" * 4, b"\x00" * 8, b"\xff" * 8, b"R", b"c", b".", b"}", b"PK\x01\x02", b"9999"]
    )
    change = st.tuples(kinds, st.integers(0, size - 1), st.binary(min_size=1, max_size=6) | interesting)
    return draw(st.lists(change, min_size=1, max_size=4))


def _apply(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, at, content in changes:
        match kind:
            case "write":
                data = data[:at] + content + data[at + len(content) :]
            case "insert":
                data = data[:at] + content + data[at:]
            case "remove":
                data = data[:at] + data[at + len(content) :]
            case _:
                data = data[:at]
    return data


@pytest.mark.parametrize("kind", FILES)
def test_any_damage(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(damages(len(FILES[kind])))
    @example([("write", 138, b"\x00")])  # another pickle protocol, where the file is a legacy one
    def check(changes: list[tuple[str, int, bytes]]) -> None:
        path.write_bytes(_apply(FILES[kind], changes))
        try:
            checkpoint = metanet.load(path, activation="relu")
        except CheckpointError as error:
            refusal = error
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in checkpoint.state.values())
            return
        assert str(refusal).isprintable()
        assert refusal.hint

    check()


def _graph() -> bytes:
    """A graph with shape arithmetic, a branch and a loop in it."""
    made = onnx_bytes
    body = made.graph(
        [made.node("Add", "h w", "g"), made.node("Identity", "c", "d")],
        [],
        [made.value("i", (), 7), made.value("c", (), 9), made.value("h", (7, 4))],
        ["d", "g"],
    )
    branch = made.graph([made.node("Relu", "b", "t")], [], [], ["t"])
    nodes = [
        made.node("Shape", "x", "s"), made.node("Gather", "s one", "n"), made.node("Concat", "minus n", "z", axis=0),
        made.node("Reshape", "x z", "v"), made.node("Pad", "v pads", "p"), made.node("Slice", "p one many zero", "a"),
        made.node("Add", "a w", "b"), made.node("If", "yes", "q", then_branch=branch, else_branch=branch),
        made.node("Loop", "three yes q", "r", body=body), made.node("Softmax", "r", "y", axis=1),
    ]  # fmt: skip
    tensors = [
        made.tensor("w", torch.ones(4)), made.tensor("one", torch.tensor([1]), "typed"),
        made.tensor("many", torch.tensor([99])), made.tensor("pads", torch.tensor([1, 0, 0, 0])),
        made.tensor("zero", torch.tensor([0])), made.tensor("minus", torch.tensor([-1])),
        made.tensor("yes", torch.tensor(True)), made.tensor("three", torch.tensor(3)),
    ]  # fmt: skip
    return made.model(made.graph(nodes, tensors, [made.value("x", ("n", 4))], ["y"]))


def test_any_damage_to_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What opens is also run: it gives tensors, or is refused in words."""
    monkeypatch.setattr("metanet.checkpoint.onnx.module.MAX_STEPS", 1000)
    content = _graph()
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    assert metanet.load(path).model()(torch.zeros(7, 4)).shape == (7, 4)
    ran = []

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(damages(len(content)))
    def check(changes: list[tuple[str, int, bytes]]) -> None:
        path.write_bytes(_apply(content, changes))
        try:
            model = metanet.load(path).model()
            model(*[torch.zeros(7, 4)] * len(model.input_names))
        except CheckpointError as error:
            refusal = error
        else:
            ran.append(changes)
            return
        assert str(refusal).isprintable()
        assert refusal.hint

    check()
    assert ran, "without damage that goes unnoticed nothing was run"


def test_the_undamaged_files_open(tmp_path: Path) -> None:
    for data in FILES.values():
        (tmp_path / "a.bin").write_bytes(data)
        assert metanet.load(tmp_path / "a.bin", activation="relu").parameters
