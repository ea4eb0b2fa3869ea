"""Are the weights of an ONNX file read, wherever they lie, and written back with every other byte as it was?"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import metanet
import symmetry
from metanet.checkpoint import Checkpoint
from metanet.checkpoint.onnx.wire import encode_varint, fields, packed_varints
from metanet.errors import CheckpointError

from . import onnx_bytes as made
from .subjects import linear_state, same, write
from .test_formats import Format


def reference(state: Mapping[str, Tensor]) -> nn.Module:
    """An oracle: the same layers in torch."""
    sizes = [(weight.shape[1], weight.shape[0]) for name, weight in sorted(state.items()) if name.endswith("weight")]
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(sizes):
        layers += [nn.Linear(inputs, outputs)] + ([nn.Tanh()] if i < len(sizes) - 1 else [])
    model = nn.Sequential(*layers)
    model.load_state_dict(dict(state))
    return model.eval()


class TestOnnx(Format):
    kind = "onnx"
    suffix = ".onnx"
    devices = ()
    style = "raw"

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        path.write_bytes(made.mlp(dict(state), self.style))

    def load(self, path: Path, **options: Any) -> Checkpoint:
        return metanet.load(path, **options)

    def test_the_graph_is_the_architecture(self, path: Path) -> None:
        checkpoint = self.load(path)
        (x,) = checkpoint.architecture.example_inputs()
        assert x.shape == (7, 3)
        assert torch.allclose(checkpoint.model()(x), reference(self.state())(x), atol=1e-6)
        spec = checkpoint.spec
        assert spec.permutation_order == math.factorial(5) * math.factorial(4)
        assert spec.sign_bits == 9
        assert symmetry.verify(checkpoint.model(), (x,), spec, trials=2).passed

    def test_the_copy_is_the_same_file(self, path: Path, tmp_path: Path) -> None:
        self.load(path).save(tmp_path / "copy.onnx")
        assert (tmp_path / "copy.onnx").read_bytes() == path.read_bytes()

    def test_only_one_tensor_changes(self, path: Path, tmp_path: Path) -> None:
        checkpoint = self.load(path)
        state = dict(checkpoint.state)
        state["2.weight"] = state["2.weight"] + 1
        self.load(path).save(tmp_path / "copy.onnx", state)
        old, new = path.read_bytes(), (tmp_path / "copy.onnx").read_bytes()
        assert same(self.load(tmp_path / "copy.onnx").state, state)
        if self.style == "raw" and not checkpoint.source.files:
            at = old.index(made.raw_bytes(self.state()["2.weight"]))
            size = 4 * state["2.weight"].numel()
            assert (old[:at], old[at + size :]) == (new[:at], new[at + size :])


class TestOnnxTyped(TestOnnx):
    style = "typed"


class TestOnnxUnpacked(TestOnnx):
    style = "unpacked"


class TestOnnxExternal(TestOnnx):
    """Data in files beside the model, one of them in a subfolder."""

    def write(self, path: Path, state: Mapping[str, Tensor]) -> None:
        (path.parent / "data").mkdir(exist_ok=True)
        tensors, position = [], 0
        with open(path.parent / "weights.bin", "wb") as file:
            for i, (name, tensor) in enumerate(state.items()):
                raw = made.raw_bytes(tensor)
                if i == 1:
                    (path.parent / "data" / "one").write_bytes(raw)
                    entries: dict[str, Any] = {"location": "data/one"}
                else:
                    entries = {"location": "weights.bin", "offset": position, "length": len(raw)}
                    file.write(raw + bytes(12))
                    position += len(raw) + 12
                tensors.append(made.external(name, tensor.shape, **entries))
        path.write_bytes(made.mlp(dict(state), tensors=tensors))

    def test_saves_the_same_kind(self, path: Path, tmp_path: Path) -> None:
        """All of them lie in one new file beside the copy, and the original's are left alone."""
        before = (path.parent / "weights.bin").read_bytes()
        checkpoint = self.load(path)
        assert checkpoint.source.files == ("data/one", "weights.bin")
        other = {name: tensor + 1 for name, tensor in checkpoint.state.items()}
        checkpoint.save(tmp_path / "copy.onnx", other)
        again = self.load(tmp_path / "copy.onnx")
        assert same(again.state, other)
        assert again.source.files == ("copy.onnx.data",)
        assert (path.parent / "weights.bin").read_bytes() == before

    def test_the_copy_is_the_same_file(self, path: Path, tmp_path: Path) -> None:
        self.load(path).save(path)
        assert same(self.load(path).state, self.state())

    def test_another_reader_agrees(self, path: Path, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx", reason="the reference reader is in the package onnx")
        self.load(path).save(tmp_path / "copy.onnx")
        theirs = onnx.load(tmp_path / "copy.onnx")
        found = {item.name: torch.tensor(onnx.numpy_helper.to_array(item)) for item in theirs.graph.initializer}
        assert same({name: found[name] for name in self.state()}, self.state())


def open_model(tmp_path: Path, content: bytes, **options: Any) -> Checkpoint:
    return metanet.load(write(tmp_path, "a.onnx", content), **options)


STATE = dict(linear_state(3, 5, 2))
X = made.value("x", ("n", 3))


def check_function(checkpoint: Checkpoint, state: Mapping[str, Tensor] = STATE) -> None:
    """The model computes what the layers compute, and its symmetry is that of five tanh units."""
    (x,) = checkpoint.architecture.example_inputs()
    assert torch.allclose(checkpoint.model()(x), reference(state)(x), atol=1e-6)
    assert checkpoint.spec.permutation_order == math.factorial(5)
    assert checkpoint.spec.sign_bits == 5
    assert symmetry.verify(checkpoint.model(), (x,), checkpoint.spec, trials=2).passed


def test_products_and_sums_apart(tmp_path: Path) -> None:
    """As exporters of other frameworks write it: MatMul with the weight the other way round, then Add."""
    tensors = {
        "w": STATE["0.weight"].t(), "b": STATE["0.bias"], "v": STATE["2.weight"].t(), "c": STATE["2.bias"],
    }  # fmt: skip
    nodes = [
        made.node("MatMul", "x w", "p"), made.node("Add", "p b", "q"), made.node("Tanh", "q", "h"),
        made.node("MatMul", "h v", "r"), made.node("Add", "c r", "y"),
    ]  # fmt: skip
    checkpoint = open_model(
        tmp_path, made.model(made.graph(nodes, [made.tensor(n, t) for n, t in reversed(tensors.items())], [X], ["y"]))
    )
    assert list(checkpoint.state) == ["c", "v", "b", "w"]
    assert same(checkpoint.state, {name: tensors[name].contiguous() for name in checkpoint.state})
    check_function(checkpoint)


def test_weights_in_constant_nodes(tmp_path: Path) -> None:
    constants = [made.node("Constant", "", name, value=tensor) for name, tensor in STATE.items()]
    nodes = [
        *constants, made.node("Gemm", "x 0.weight 0.bias", "q", transB=1), made.node("Tanh", "q", "h"),
        made.node("Gemm", "h 2.weight 2.bias", "y", transB=1),
    ]  # fmt: skip
    checkpoint = open_model(tmp_path, made.model(made.graph(nodes, [], [X], ["y"])))
    assert same(checkpoint.state, STATE)
    check_function(checkpoint)
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    checkpoint.save(tmp_path / "b.onnx", other)
    assert same(metanet.load(tmp_path / "b.onnx").state, other)


def branches() -> bytes:
    """The second layer lies in both branches of an If, under the same names, as initialisers and in Constant nodes."""
    inner = {"w": STATE["2.weight"], "b": STATE["2.bias"]}
    last = made.node("Gemm", "h w b", "z", transB=1)
    chosen = made.graph([last], [made.tensor(n, t) for n, t in inner.items()], [], ["z"])
    other = made.graph(
        [*(made.node("Constant", "", n, value=t * 0 + 3) for n, t in inner.items()), last], [], [], ["z"]
    )
    nodes = [
        made.node("Gemm", "x 0.weight 0.bias", "q", transB=1), made.node("Tanh", "q", "h"),
        made.node("Equal", "rate known", "is"), made.node("If", "is", "y", then_branch=chosen, else_branch=other),
    ]  # fmt: skip
    tensors = [made.tensor(n, STATE[n]) for n in ("0.weight", "0.bias")]
    tensors.append(made.tensor("known", torch.tensor(16000), "typed"))
    return made.model(made.graph(nodes, tensors, [X, made.value("rate", (), 7)], ["y"]))


def test_weights_in_branches(tmp_path: Path) -> None:
    checkpoint = open_model(tmp_path, branches())
    assert list(checkpoint.state) == ["0.weight", "0.bias", "w", "b", "w#2", "b#2"]
    assert torch.equal(checkpoint.state["w"], STATE["2.weight"])
    assert set(checkpoint.state["w#2"].reshape(-1).tolist()) == {3.0}
    # The rate is fixed to what the graph compares it with, so that the first branch is taken.
    assert checkpoint.architecture.options["fixed"] == {"rate": 16000}
    check_function(checkpoint)


def test_the_other_branch(tmp_path: Path) -> None:
    checkpoint = open_model(tmp_path, branches(), example_inputs=(torch.zeros(7, 3), 8000))
    (x,) = checkpoint.architecture.example_inputs()
    assert torch.allclose(
        checkpoint.model()(x), 3 + 3 * torch.tanh(x @ STATE["0.weight"].t() + STATE["0.bias"]).sum(1, True)
    )
    assert checkpoint.architecture != metanet.load(tmp_path / "a.onnx").architecture
    other = {name: tensor + 1 for name, tensor in checkpoint.state.items()}
    checkpoint.save(tmp_path / "b.onnx", other)
    assert same(metanet.load(tmp_path / "b.onnx").state, other)


def test_weights_in_a_loop(tmp_path: Path) -> None:
    """Three times the same layer: a weight-shared network; an oracle is the loop written out."""
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    body = made.graph(
        [made.node("MatMul", "h w", "p"), made.node("Tanh", "p", "g"), made.node("Identity", "going", "on")],
        [made.tensor("w", weight)],
        [made.value("i", (), 7), made.value("going", (), 9), made.value("h", ("n", 3))],
        ["on", "g", "p"],
    )
    tensors = [made.tensor("three", torch.tensor(3), "typed"), made.tensor("yes", torch.tensor(True))]
    nodes = [made.node("Loop", "three yes x", "y all", body=body)]
    checkpoint = open_model(tmp_path, made.model(made.graph(nodes, tensors, [X], ["y", "all"])))
    (x,) = checkpoint.architecture.example_inputs()
    y, every = checkpoint.model()(x)
    expected = [x @ weight]
    for _ in range(2):
        expected.append(torch.tanh(expected[-1]) @ weight)
    assert torch.allclose(every, torch.stack(expected), atol=1e-6)
    assert torch.allclose(y, torch.tanh(expected[-1]), atol=1e-6)
    assert symmetry.verify(checkpoint.model(), (x,), checkpoint.spec, trials=2).passed


def test_operators_that_the_file_defines(tmp_path: Path) -> None:
    """A layer as a function of the file, called twice, with a slope that it passes on and a weight of its own."""
    own = torch.tensor([1.0, 2.0, 3.0])
    reference_to_slope = made.field(1, "alpha") + made.field(21, "slope") + made.field(20, 1)
    body = [
        made.node("Constant", "", "scale", value=own),
        made.node("Constant", "", "one", value=torch.tensor(1.0)),
        made.node("Gemm", "h w b", "p", transB=1),
        made.node("Add", "one scale", "unused"),
        made.node("Identity", "p", "q"),
        made.node("LeakyRelu", "q", "g") + made.field(5, reference_to_slope),
    ]
    function = made.field(1, "Layer") + b"".join(made.field(4, text) for text in ("h", "w", "b")) + made.field(5, "g")
    function += b"".join(made.field(7, item) for item in body) + made.field(10, "mine")
    nodes = [
        made.node("Layer", "x 0.weight 0.bias", "h", domain="mine", slope=0.5),
        made.node("Layer", "h 2.weight 2.bias", "y", domain="mine", slope=1.0),
    ]
    tensors = [made.tensor(n, t) for n, t in STATE.items()]
    content = made.model(made.graph(nodes, tensors, [X], ["y"]), more=made.field(25, function))
    checkpoint = open_model(tmp_path, content)
    (x,) = checkpoint.architecture.example_inputs()
    hidden = nn.functional.leaky_relu(x @ STATE["0.weight"].t() + STATE["0.bias"], 0.5)
    assert torch.allclose(checkpoint.model()(x), hidden @ STATE["2.weight"].t() + STATE["2.bias"], atol=1e-6)
    assert checkpoint.spec.scale_dimension == 5
    assert "scale" in checkpoint.state
    endless = made.field(1, "Layer") + made.field(4, "h") + made.field(5, "g") + made.field(10, "mine")
    endless += made.field(7, made.node("Layer", "h", "g", domain="mine"))
    content = made.model(made.graph(nodes, tensors, [X], ["y"]), more=made.field(25, endless))
    with pytest.raises(CheckpointError, match="calls itself"):
        open_model(tmp_path, content).model()(x)


def test_names_that_no_module_can_have(tmp_path: Path) -> None:
    names = ["a", "a.b", "forward", "x..y", "train.w", "plan", "/l/0:1", "onnx::MatMul_3", "c.d", "c"]
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(3, generator=generator) for name in names}
    nodes, before = [], "x"
    for i, name in enumerate(names):
        nodes.append(made.node("Add", f"{before} {name}", f"s{i}"))
        before = f"s{i}"
    content = made.model(made.graph(nodes, [made.tensor(n, t) for n, t in tensors.items()], [X], [before]))
    checkpoint = open_model(tmp_path, content)
    expected = ["a", "a/b", "forward_", "x._.y", "train_.w", "plan_", "/l/0:1", "onnx::MatMul_3", "c.d", "c#2"]
    assert list(checkpoint.state) == expected
    assert all(torch.equal(a, b) for a, b in zip(checkpoint.state.values(), tensors.values(), strict=True))
    (x,) = checkpoint.architecture.example_inputs()
    assert torch.allclose(checkpoint.model()(x), x + sum(tensors.values()), atol=1e-6)
    checkpoint.spec.check(checkpoint.model().state_dict())


def test_what_is_no_parameter(tmp_path: Path) -> None:
    """Shapes, bounds and numbers of a formula stay with the graph; statistics are buffers; long tables are kept."""
    tensors = {
        "shape": torch.tensor([-1, 3]), "least": torch.tensor(0.0), "factor": torch.tensor([2.0]), "w": torch.ones(3),
        "gain": torch.ones(3), "offset": torch.zeros(3), "mean": torch.zeros(3), "variance": torch.ones(3),
        "table": torch.arange(100),
    }  # fmt: skip
    nodes = [
        made.node("Reshape", "x shape", "a"), made.node("Clip", "a least", "b"), made.node("Mul", "b factor", "c"),
        made.node("BatchNormalization", "c gain offset mean variance", "d"), made.node("Mul", "d w", "y"),
        made.node("Gather", "table shape2", "z"),
    ]  # fmt: skip
    more = made.tensor("shape2", torch.tensor([0, 1]))
    content = made.graph(nodes, [*(made.tensor(n, t) for n, t in tensors.items()), more], [X], ["y", "z"])
    checkpoint = open_model(tmp_path, made.model(content))
    assert list(checkpoint.state) == ["w", "gain", "offset", "mean", "variance", "table"]
    model = checkpoint.architecture.build()
    assert {name for name, _ in model.named_buffers()} == {"mean", "variance", "table"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8])
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(80).reshape(8, 10).to(dtype)
    nodes = [made.node("Identity", "w", "y")]
    styles = ["raw", "typed"] if dtype == torch.float16 else ["raw"]
    for style in styles:
        checkpoint = open_model(tmp_path, made.model(made.graph(nodes, [made.tensor("w", values, style)], [X], ["y"])))
        assert same(checkpoint.state, {"w": values})
        checkpoint.save(tmp_path / "b.onnx", {"w": values + 1})
        assert same(metanet.load(tmp_path / "b.onnx").state, {"w": values + 1})


def test_runs_in_double(tmp_path: Path) -> None:
    """Casts to float in the file mean the type that the module was converted to; else float32 noise would come in."""
    nodes = [made.node("Cast", "x", "a", to=1), made.node("Mul", "a half", "b"), made.node("MatMul", "b w", "y")]
    tensors = [made.tensor("half", torch.tensor(0.5)), made.tensor("w", STATE["0.weight"].t())]
    model = open_model(tmp_path, made.model(made.graph(nodes, tensors, [X], ["y"]))).model().double()
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x * 0.5 @ STATE["0.weight"].t().double()
    assert model(x).dtype == torch.float64
    assert float((model(x).detach() - expected).abs().max()) < 1e-14


def test_unknown_operator_is_named(tmp_path: Path) -> None:
    nodes = [made.node("Add", "x w", "a"), made.node("Wobble", "a", "y", name="third", domain="com.example")]
    checkpoint = open_model(tmp_path, made.model(made.graph(nodes, [made.tensor("w", torch.ones(3))], [X], ["y"])))
    assert torch.equal(checkpoint.state["w"], torch.ones(3))
    for use in (lambda: checkpoint.spec, checkpoint.model):
        with pytest.raises(CheckpointError, match=r"a\.onnx.*operator com\.example\.Wobble \(node 'third'\).*factory="):
            use()
    factory = metanet.load(tmp_path / "a.onnx", factory=lambda: (_Offset(), torch.zeros(7, 3)))
    assert torch.equal(factory.model()(torch.zeros(1, 3)), torch.ones(1, 3))


class _Offset(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.w


@pytest.mark.parametrize(
    ("inputs", "says"),
    [((), "0 example inputs, expected 1: x"), ((torch.zeros(7, 3), 1), "2 example inputs, expected 1: x")],
)
def test_wrong_example_inputs(tmp_path: Path, inputs: tuple[Any, ...], says: str) -> None:
    path = write(tmp_path, "a.onnx", made.mlp(STATE))
    with pytest.raises(CheckpointError, match=rf"a\.onnx: {says}"):
        metanet.load(path, example_inputs=inputs)
    with pytest.raises(CheckpointError, match=r"example_inputs= is for ONNX files"):
        np.savez(tmp_path / "a.npz", w=np.ones(3))
        metanet.load(tmp_path / "a.npz", example_inputs=inputs)


def test_wrong_inputs_name_the_node(tmp_path: Path) -> None:
    model = open_model(tmp_path, made.mlp(STATE)).model()
    with pytest.raises(CheckpointError, match=r"Gemm \(node 'h0'\) failed on inputs of shape \[7, 4\]"):
        model(torch.zeros(7, 4))
    with pytest.raises(CheckpointError, match=r"2 inputs, expected 1: x"):
        model(torch.zeros(7, 3), torch.zeros(7, 3))


def test_architecture_is_a_value(tmp_path: Path) -> None:
    one = open_model(tmp_path, made.mlp(STATE)).architecture
    other = open_model(tmp_path, made.mlp({name: tensor + 1 for name, tensor in STATE.items()})).architecture
    wider = open_model(tmp_path, made.mlp(dict(linear_state(3, 6, 2)))).architecture
    assert one == other
    assert hash(one) == hash(other)
    assert one != wider
    assert pickle.loads(pickle.dumps(one)) == one
    assert "inputs x" in repr(one)
    assert one.to_json()["options"]["operators"] == "2 Gemm, 1 Tanh"
    with pytest.raises(CheckpointError, match="unknown architecture family 'onnx'"):
        metanet.Architecture.from_json(one.to_json())


def test_recognised_by_content(tmp_path: Path) -> None:
    for name in ("a.bin", "model", "a.pt"):
        assert metanet.load(write(tmp_path, name, made.mlp(STATE))).source.kind == "onnx"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1), max_size=40))
def test_packed_numbers(values: list[int]) -> None:
    content = b"".join(map(encode_varint, values))
    assert packed_varints(content).tolist() == values
    message = b"".join(b"\x08" + encode_varint(value) for value in values)
    assert [item.value for item in fields(message, 0, len(message))] == [value % (1 << 64) for value in values]
