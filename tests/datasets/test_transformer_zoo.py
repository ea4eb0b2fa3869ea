"""Does the reader of the Small Transformer Zoo give back its networks, and does its family compute what it should?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, layer_norm, linear, relu

import symmetry
from metanet.checkpoint import Architecture
from metanet.datasets import read_transformer_zoo
from metanet.errors import CheckpointError, ZooError
from tests.datasets.published import TEXT, VISION, transformers


def by_hand(state: Mapping[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """The published networks, head by head and token by token: no residual, norms without numbers."""
    if "embedding.conv1.weight" in state:
        kernel = state["embedding.conv1.weight"]
        x = conv2d(x, kernel, state["embedding.conv1.bias"], stride=kernel.shape[-1])
        x = x.reshape(*x.shape[:2], -1).permute(0, 2, 1) + state["embedding.pos_embedding"]
    width = x.shape[-1]
    size, block = width // heads, 0
    while f"encoder.{block}.fc1.weight" in state:
        at = f"encoder.{block}.attention"
        normed = layer_norm(x, (width,))
        parts = []
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            q, k, v = (linear(normed, state[f"{at}.{name}.weight"][rows]) for name in ("queries", "keys", "values"))
            parts.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(size), dim=-1) @ v)
        x = linear(torch.cat(parts, dim=-1), state[f"{at}.out_projection.weight"])
        for name in ("fc1", "fc2"):
            x = layer_norm(x, (width,)) if name == "fc1" else relu(x)
            x = linear(x, state[f"encoder.{block}.{name}.weight"], state[f"encoder.{block}.{name}.bias"])
        block += 1
    x = layer_norm(x, (width,)).mean(dim=1)
    x = relu(linear(x, state["classifier.fc1.weight"], state["classifier.fc1.bias"]))
    return linear(x, state["classifier.fc2.weight"], state["classifier.fc2.bias"])


@pytest.mark.parametrize("options", [VISION, TEXT])
def test_the_family_computes_what_was_published_and_is_traced(options: dict[str, Any]) -> None:
    architecture = Architecture("zoo_transformer", options)
    module = architecture.build(seed=1).double().eval()
    (x,) = (tensor.double() for tensor in architecture.example_inputs())
    torch.testing.assert_close(module(x), by_hand(module.state_dict(), x, 2), rtol=1e-10, atol=1e-10)
    spec = symmetry.trace(module, (x,))
    assert not spec.pinned
    assert spec.linear_dimension == 2 * 2 * 2 * 16  # layers x heads x (query-key, value-output) x 4 by 4
    found = symmetry.verify(module, (x,), spec, trials=3)
    assert found.passed, found
    assert found.max_error < 1e-10 < found.control_error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "a divisor of width"),
        ({"patch": 4}, "a divisor of size"),
        ({"tokens": 4}, "channels"),
        ({"layers": 0}, "layers"),
        ({"norm": "layer"}, "unknown option"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Architecture("zoo_transformer", {**VISION, **changes})


def test_networks_of_images(tmp_path: Path) -> None:
    files = transformers(tmp_path)
    zoo = read_transformer_zoo(tmp_path)
    assert [network.name for network in zoo] == files[1::3]
    assert zoo.left_out == ("mnist/embedding.pt",)
    parts = [network.split for network in zoo]
    assert [parts.count(part) for part in ("train", "val", "test")] == [14, 3, 3]
    assert parts == [network.split for network in read_transformer_zoo(tmp_path)]
    third = zoo[2]
    assert (third.run, third.step, third.metrics) == ("r2x", 75, {"test_accuracy": (4000 + 2 * 137 + 100) / 10000})
    assert third.config["optimizer"] == "adam"
    assert "model_path" not in third.config
    saved = torch.load(tmp_path / third.name, weights_only=True)
    assert list(third.state) == list(saved) == list(third.architecture.shapes())
    assert all(torch.equal(third.state[name], saved[name]) for name in saved)
    assert dict(third.architecture.options) == {**VISION, "tokens": 0}
    every = read_transformer_zoo(tmp_path, epoch=None)
    assert len(every) == 40  # the best one has no epoch
    assert len({(network.run, network.split) for network in every}) == 20
    assert len(read_transformer_zoo(tmp_path, least=0.5)) == sum(4100 + 137 * n >= 5000 for n in range(20))


def test_networks_of_texts(tmp_path: Path) -> None:
    transformers(tmp_path, "ag_news", 3, TEXT)
    network = read_transformer_zoo(tmp_path)[0]
    assert dict(network.architecture.options) == {**TEXT, "channels": 0, "size": 0, "patch": 0}
    assert network.metrics["test_accuracy"] == 0.41


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    files = transformers(tmp_path, runs=3)
    table = tmp_path / "metadata" / "mnist.csv"
    text = table.read_text()
    for old, new, message in (
        ("ckpt_epoch", "epoch", "has no column 'ckpt_epoch'"),
        ("test_top1_accuracy", "accuracy", "has no column 'test_accuracy'"),
        ("n_attention_heads", "heads", "say how many: heads=2"),
        (files[1], "mnist/../../secret_75_1.pt", "names the file"),
        (files[1], "other/r0x_75_4100.pt", "expected mnist/<run>_<epoch>_<accuracy>.pt"),
        (files[1], files[0], "again"),
        (files[1], "mnist/r9x_75_4100.pt", "which is not there; unpack the whole archive"),
        (",75,", ",74,", "no checkpoint of epoch 75"),
        (",0.41\n", ",nan\n", "expected a number"),
        ("adam", "adam,1", "not as many fields"),
    ):
        data = text.replace("\r\n", "\n")
        assert old in data
        table.write_text(data.replace(old, new, 1 if old == files[1] or "adam" in old else -1))
        with pytest.raises(ZooError, match=message) as caught:
            read_transformer_zoo(tmp_path)
        assert "\n" not in str(caught.value)
    table.write_text(text.replace("n_attention_heads", "heads"))
    assert len(read_transformer_zoo(tmp_path, heads=2)) == 3
    with pytest.raises(ZooError, match="a divisor of width"):
        read_transformer_zoo(tmp_path, heads=3)[0]
    table.write_text(text)
    zoo = read_transformer_zoo(tmp_path)
    good = torch.load(tmp_path / files[1], weights_only=True)
    for state, message in (
        ({**good, "classifier.fc1.bias": torch.ones(7)}, "'classifier.fc1.bias' has shape"),
        ({**good, "encoder.0.norm1.weight": torch.ones(8)}, "'encoder.0.norm1.weight' is not in the architecture"),
        ({name: t for name, t in good.items() if "fc2" not in name}, "'classifier.fc2.weight' is not there"),
        ({name: t.double() for name, t in good.items()}, "expected float32"),
    ):
        torch.save(state, tmp_path / files[1])
        with pytest.raises(ZooError, match=message):
            zoo[0]
    with pytest.raises(ZooError, match="holds no folder 'metadata'"):
        read_transformer_zoo(tmp_path / "mnist")
    (tmp_path / "metadata" / "ag_news.csv").write_text(text)
    with pytest.raises(ZooError, match="holds 2 tables: ag_news, mnist; choose one"):
        read_transformer_zoo(tmp_path)
