"""Does the reader of the Small CNN Zoo give back the networks that lie in such a folder, and refuse everything else?"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from metanet.datasets import read_small_cnn_zoo
from metanet.errors import ZooError
from tests.datasets.published import small_cnn_zoo


def test_networks_come_back_in_the_order_of_the_file(tmp_path: Path) -> None:
    weights = small_cnn_zoo(tmp_path)
    zoo = read_small_cnn_zoo(tmp_path, strides=(2, 1), size=8)
    assert [network.split for network in zoo] == ["train", "train", "test", "test"]
    assert [network.metrics["test_accuracy"] for network in zoo] == [0.2, 0.4, 0.6, 0.8]
    assert [network.architecture.options["activation"] for network in zoo] == ["relu", "tanh"] * 2
    assert zoo[-1].split == "test"
    assert zoo[0].config["learning_rate"] == "0.1"
    # All checkpoints of a training are in its part: the last half of the trainings, not of the rows, is tested on.
    every = read_small_cnn_zoo(tmp_path, step=None, strides=(2, 1), size=8)
    assert [(network.run, network.step) for network in every][:3] == [("m0", 10), ("m0", 86), ("m1", 10)]
    assert [network.split for network in every] == ["train"] * 4 + ["test"] * 4
    assert every.parts() == [(network.run, network.split) for network in every]
    # The second network at its last step: row 3 of the matrix, TensorFlow's order of the axes.
    state, row = zoo[1].state, weights[3]
    kernel = row[4:76].reshape(3, 3, 2, 4)
    assert torch.equal(state["blocks.0.conv.bias"], torch.from_numpy(row[:4].copy()))
    assert state["blocks.0.conv.weight"][3, 1, 0, 2] == kernel[0, 2, 1, 3]
    assert state["head.weight"][2, 4] == row[-15:].reshape(5, 3)[4, 2]
    module = zoo[1].architecture.build()
    module.load_state_dict(dict(state))
    image = torch.rand(1, 2, 8, 8)
    first = torch.nn.functional.conv2d(image, torch.from_numpy(kernel.copy()).permute(3, 2, 0, 1), padding=1, stride=2)
    ours = module.get_submodule("blocks.0.conv")(image) - state["blocks.0.conv.bias"].view(1, 4, 1, 1)
    torch.testing.assert_close(ours, first)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("layout.csv", "(3, 3, 2, 4)", "__import__('os')", "has shape"),
        ("layout.csv", "conv_1/bias:0,76", "conv_1/bias:0,75", "has 5 numbers from 75 to 81"),
        ("layout.csv", "(5, 3)", "(3, 5)", "expected a kernel and its bias"),
        ("layout.csv", "varname", "name", "has no column 'varname'"),
        ("metrics.csv.gz", "step", "epoch", "has no column 'step'"),
        ("metrics.csv.gz", ",86,", ",85,", "no network of step 86"),
        ("metrics.csv.gz", "tanh,0.1", "tanh", "not as many fields"),
    ],
)
def test_files_that_are_wrong_are_refused(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    small_cnn_zoo(tmp_path)
    path = tmp_path / file
    data = path.read_bytes()
    text = (gzip.decompress(data) if file.endswith(".gz") else data).decode()
    assert old in text
    changed = text.replace(old, new).encode()
    path.write_bytes(gzip.compress(changed) if file.endswith(".gz") else changed)
    with pytest.raises(ZooError, match=message) as caught:
        read_small_cnn_zoo(tmp_path, strides=(2, 1), size=8)
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_plain_matrix_are_refused(tmp_path: Path) -> None:
    small_cnn_zoo(tmp_path)
    np.save(tmp_path / "weights.npy", np.zeros((8, 3), np.float32))
    with pytest.raises(ZooError, match="expected floats"):
        read_small_cnn_zoo(tmp_path, strides=(2, 1), size=8)
    np.save(tmp_path / "weights.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ZooError, match="cannot be read"):
        read_small_cnn_zoo(tmp_path, strides=(2, 1), size=8)


def test_a_table_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    small_cnn_zoo(tmp_path)
    path = tmp_path / "metrics.csv.gz"
    data = path.read_bytes()
    for changed in (data[:-12], data[:20], b"", b"\x1f\x8b" + data[2:].replace(data[30:40], b"x" * 10)):
        path.write_bytes(changed)
        with pytest.raises(ZooError, match=r"metrics.csv.gz: (cannot be read|has no column|has no rows)") as caught:
            read_small_cnn_zoo(tmp_path, strides=(2, 1), size=8)
        assert "\n" not in str(caught.value)


def test_what_is_kept_of_a_table_does_not_grow_with_other_steps(tmp_path: Path) -> None:
    small_cnn_zoo(tmp_path, 40)
    zoo = read_small_cnn_zoo(tmp_path, strides=(2, 1), size=8)
    assert sorted(zoo._table) == list(range(1, 80, 2))  # half of the rows are of step 10
    assert zoo[3].metrics["test_accuracy"] == pytest.approx(8 / 82, abs=1e-3)
