"""Does the graph in an ONNX file compute what onnxruntime computes, and is its symmetry found and true?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import metanet
import symmetry
from metanet.checkpoint import Checkpoint

from . import onnx_bytes as made
from .onnx_bytes import node
from .subjects import same, write

ort = pytest.importorskip("onnxruntime", reason="the oracle is the package onnxruntime (extra 'onnx')")


def run_theirs(path: Path, checkpoint: Checkpoint, inputs: tuple[Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = checkpoint.model()
    feed = dict(zip(model.input_names, (value.numpy() for value in inputs), strict=True))
    return list(session.run(list(model.output_names), feed | dict(checkpoint.architecture.fixed)))


def difference(checkpoint: Checkpoint, path: Path) -> float:
    """The largest difference of any output between this module and onnxruntime; large outputs: as a share of them."""
    inputs = checkpoint.architecture.example_inputs()
    with torch.no_grad():
        ours = checkpoint.model()(*inputs)
    ours = ours if isinstance(ours, tuple) else (ours,)
    theirs = run_theirs(path, checkpoint, inputs)
    assert len(ours) == len(theirs)
    assert [tuple(a.shape) for a in ours] == [b.shape for b in theirs]
    return max(apart(a.double().numpy(), b) for a, b in zip(ours, theirs, strict=True))


def apart(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.abs(a.astype(np.float64) - b).max() / max(1.0, float(np.abs(b).max())))


class Network:
    """Writes a network node by node, with random weights."""

    def __init__(self, *shape: int | str, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.nodes: list[bytes] = []
        self.tensors: list[bytes] = []
        self.input = made.value("x", shape)
        self.last = "x"

    def weight(self, *shape: int, positive: bool = False) -> str:
        value = torch.randn(shape, generator=self.generator) / max(np.prod(shape[1:]), 1) ** 0.5
        name = f"w{len(self.tensors)}"
        self.tensors.append(made.tensor(name, value.abs() + 0.5 if positive else value))
        return name

    def known(self, *numbers: int) -> str:
        name = f"k{len(self.tensors)}"
        self.tensors.append(made.tensor(name, torch.tensor(numbers, dtype=torch.int64), "typed"))
        return name

    def add(self, operator: str, *others: str, outputs: str = "", first: str = "", **attributes: Any) -> str:
        name = outputs or f"h{len(self.nodes)}"
        self.nodes.append(node(operator, " ".join((first or self.last, *others)), name, **attributes))
        self.last = name.split()[0]
        return self.last

    def bytes(self, opset: int = 17) -> bytes:
        return made.model(made.graph(self.nodes, self.tensors, [self.input], [self.last]), opset)


def convolutional() -> Network:
    n = Network("n", 2, 9, 9)
    n.add("Conv", n.weight(5, 2, 3, 3), n.weight(5), kernel_shape=[3, 3], auto_pad="SAME_LOWER", strides=[2, 2])
    n.add("BatchNormalization", n.weight(5), n.weight(5), n.weight(5), n.weight(5, positive=True))
    n.add("Relu")
    n.add("MaxPool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], strides=[2, 2], ceil_mode=1)
    n.add("Conv", n.weight(5, 1, 3, 3), kernel_shape=[3, 3], pads=[1, 0, 1, 2], group=5)
    n.add("LeakyRelu", alpha=0.2)
    n.add("GlobalAveragePool")
    n.add("Flatten")
    n.add("Gemm", n.weight(3, 5), n.weight(3), transB=1)
    return n


def attention() -> Network:
    """A block of a transformer as exporters write it: one matrix for Q, K and V, cut and reshaped by known shapes."""
    n = Network("n", 5, 6)
    residual = n.add("Identity")
    n.add("LayerNormalization", n.weight(6), n.weight(6))
    n.add("MatMul", n.weight(6, 18))
    qkv = n.add("Add", n.weight(18))
    heads = []
    for i in range(3):
        n.add("Slice", n.known(6 * i), n.known(6 * i + 6), n.known(2), first=qkv)
        n.add("Reshape", n.known(0, 0, 2, 3))
        heads.append(n.add("Transpose", perm=[0, 2, 1, 3]))
    n.add("Transpose", first=heads[1], perm=[0, 1, 3, 2])
    n.add("MatMul", n.last, first=heads[0])
    n.add("Softmax", axis=-1)
    n.add("MatMul", heads[2])
    n.add("Transpose", perm=[0, 2, 1, 3])
    n.nodes.append(node("Shape", "x", "sizes"))
    n.add("Reshape", "sizes")
    n.add("MatMul", n.weight(6, 6))
    stream = n.add("Add", residual)
    n.add("MatMul", n.weight(6, 7))
    n.add("Add", n.weight(7))
    n.add("Gelu")
    n.add("MatMul", n.weight(7, 6))
    n.add("Add", stream)
    n.add("ReduceMean", n.known(1), keepdims=0)
    n.add("MatMul", n.weight(6, 3))
    return n


def attention_operator() -> Network:
    """Grouped queries, causal, after a root-mean-square norm, with a gated unit behind."""
    n = Network("n", 5, 6)
    n.add("RMSNormalization", n.weight(6))
    normed = n.last
    q, k, v = (n.add("MatMul", n.weight(6, width), first=normed) for width in (8, 4, 4))
    n.add("Attention", k, v, first=q, q_num_heads=4, kv_num_heads=2, is_causal=1)
    n.add("MatMul", n.weight(8, 6))
    stream = n.add("Add", "x")
    gate = n.add("MatMul", n.weight(6, 7))
    n.add("Sigmoid")
    opened = n.add("Mul", gate)
    n.add("MatMul", n.weight(6, 7), first=stream)
    n.add("Mul", opened)
    n.add("MatMul", n.weight(7, 3))
    return n


def recurrent(operator: str, gates: int, **attributes: Any) -> Callable[[], Network]:
    def make() -> Network:
        n = Network(4, "n", 3)
        directions = 2 if attributes.get("direction") == "bidirectional" else 1
        w, r, b = (
            n.weight(directions, gates * 5, 3),
            n.weight(directions, gates * 5, 5),
            n.weight(directions, gates * 10),
        )
        n.add(operator, w, r, b, outputs="all", hidden_size=5, **attributes)
        n.add("Transpose", perm=[2, 0, 1, 3])
        n.add("Reshape", n.known(0, -1))
        n.add("MatMul", n.weight(4 * directions * 5, 2))
        return n

    return make


def upsampling() -> Network:
    n = Network("n", 2, 6, 6)
    skip = n.add("Conv", n.weight(4, 2, 3, 3), n.weight(4), pads=[1, 1, 1, 1])
    n.add("Relu")
    n.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2], count_include_pad=1, pads=[0, 0, 0, 0])
    n.add("Conv", n.weight(5, 4, 1, 1), n.weight(5))
    n.add("HardSwish")
    up = n.add(
        "ConvTranspose", n.weight(5, 4, 3, 3), n.weight(4), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
    )
    sizes = n.known(7, 4, 6, 6)
    n.nodes.append(node("Resize", f"{up} _ _ {sizes}", "big", mode="linear"))
    n.last = "big"
    n.add("Concat", skip, axis=1)
    n.add("Conv", n.weight(3, 8, 3, 3), n.weight(3), kernel_shape=[3, 3])
    n.add("Mul", n.last)
    n.add("ReduceSum", n.known(2, 3), keepdims=0)
    return n


# Each with how many permutations there are at least: a factorial for each hidden layer.
NETWORKS: dict[str, tuple[Callable[[], Network], int]] = {
    "convolutional": (convolutional, 120),
    "attention": (attention, 5040 * 2),
    "attention_operator": (attention_operator, 5040 * 2),
    "lstm": (recurrent("LSTM", 4), 120),
    # The units of both directions lie in one tensor, and are moved together.
    "lstm_both_ways": (recurrent("LSTM", 4, direction="bidirectional"), 120),
    "gru": (recurrent("GRU", 3, linear_before_reset=1), 120),
    "gru_reset_before": (recurrent("GRU", 3, linear_before_reset=0, direction="reverse"), 120),
    "rnn": (recurrent("RNN", 1), 120),
    "upsampling": (upsampling, 120 * 24),
}


OPSETS = {"attention": 20, "attention_operator": 23}


@pytest.mark.parametrize("name", NETWORKS)
def test_runs_as_onnxruntime_and_its_symmetry_holds(name: str, tmp_path: Path) -> None:
    network, order = NETWORKS[name]
    path = write(tmp_path, "a.onnx", network().bytes(OPSETS.get(name, 17)))
    checkpoint = metanet.load(path)
    assert checkpoint.architecture.family == "onnx", repr(checkpoint.architecture)
    assert difference(checkpoint, path) < 1e-5
    spec = checkpoint.spec
    assert spec.permutation_order >= order
    assert symmetry.verify(checkpoint.model(), checkpoint.architecture.example_inputs(), spec, trials=2).passed
    # Other weights, written back, are what onnxruntime then runs: first the same function, then another one.
    moved = spec.act(spec.sample(torch.Generator().manual_seed(0), kinds=("permutation",)), checkpoint.state)
    assert not same(moved, checkpoint.state)
    before = run_theirs(path, checkpoint, checkpoint.architecture.example_inputs())
    checkpoint.save(tmp_path / "b.onnx", moved)
    after = run_theirs(tmp_path / "b.onnx", checkpoint, checkpoint.architecture.example_inputs())
    assert apart(before[0], after[0]) < 1e-5
    checkpoint.save(tmp_path / "c.onnx", {key: tensor * 1.1 for key, tensor in checkpoint.state.items()})
    after = run_theirs(tmp_path / "c.onnx", checkpoint, checkpoint.architecture.example_inputs())
    assert apart(before[0], after[0]) > 1e-3
    assert difference(metanet.load(tmp_path / "c.onnx"), tmp_path / "c.onnx") < 1e-5
